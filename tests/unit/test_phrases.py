"""The list of phrases that may not return (`.ci/phrases.py`)."""

import importlib.util
from pathlib import Path

import pytest

from tests.support.paths import ROOT

_SPEC = importlib.util.spec_from_file_location("phrases", ROOT / ".ci" / "phrases.py")
phrases = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(phrases)


@pytest.mark.parametrize(
    ("text", "line", "wanted"),
    [
        ("a\nb goes on where it was", 2, "resumes, continues"),
        ("# it goes on\n# where it was stopped", 1, "resumes, continues"),
        ("leave one of them away", 1, "omit"),
        ("leave HOSTS away", 1, "omit"),
        ("OUT is no file", 1, "is not a ..."),
        ("Whoever reads", 1, "anyone who, the process that"),
        ('print("tumour")', 1, "tumor"),
        ("two centres", 1, "center"),
    ],
)
def test_a_phrase_is_found_at_its_line(text: str, line: int, wanted: str) -> None:
    found = [(number, write) for number, _, write in phrases.faults(text)]
    assert (line, wanted) in found


@pytest.mark.parametrize(
    "text",
    [
        "training resumes; there is no label; the run goes on",
        "concentric windows; recommend; amended",
        'row.get("tumour_mm2")  # old spelling',
        "a folder is not a file",
    ],
)
def test_good_english_passes(text: str) -> None:
    assert phrases.faults(text) == []


def test_a_file_with_a_phrase_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(phrases, "ROOT", tmp_path)
    (tmp_path / "a.md").write_text("fine\nbuilt anew\n")
    (tmp_path / "b.bin").write_text("anew")
    assert phrases.main([str(tmp_path / "a.md"), str(tmp_path / "b.bin")]) == 1
    assert capsys.readouterr().out == "a.md:2: 'anew': write again\n"
    assert phrases.main([str(tmp_path / "b.bin")]) == 0
