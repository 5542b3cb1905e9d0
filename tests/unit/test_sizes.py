"""Limits of files and functions (`.ci/sizes.py`)."""

import importlib.util
from pathlib import Path

_SPEC = importlib.util.spec_from_file_location("sizes", Path(__file__).resolve().parents[2] / ".ci" / "sizes.py")
sizes = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(sizes)


def function(lines: int) -> str:
    """A function whose body has this many lines, below a docstring that does not count."""
    return 'def f():\n    """One\n\n    three."""\n' + "    x = 1\n" * lines


def test_a_function_of_60_lines_is_too_long() -> None:
    assert list(sizes.faults("a.py", function(59))) == []
    assert list(sizes.faults("a.py", "\n" + function(60))) == ["a.py:2: f has 60 lines; fewer than 60 are allowed"]


def test_a_file_of_400_lines_is_too_long() -> None:
    assert list(sizes.faults("a.sh", "x\n" * 399)) == []
    assert list(sizes.faults("a.sh", "x\n" * 400)) == ["a.sh: 400 lines; fewer than 400 are allowed"]


def test_named_files_are_checked(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sizes, "ROOT", tmp_path)
    (tmp_path / "long.py").write_text(function(60))
    (tmp_path / "short.py").write_text(function(1))
    assert sizes.main(["short.py", "absent.py"]) == 0
    assert sizes.main(["short.py", "long.py"]) == 1
    assert capsys.readouterr().out == "long.py:1: f has 60 lines; fewer than 60 are allowed\n"
