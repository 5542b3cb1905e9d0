"""python -m preprocessing.folds: from a table of samples to folds, and back."""

from pathlib import Path

import pytest

from cohorts import folds
from preprocessing.folds import main


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "cells.csv"
    for name in range(12):
        (tmp_path / f"{name}.png").write_bytes(b"picture %d" % name)
    rows = [f"{n % 12}.png,{n},0,{n + 9},9,{'blast' if n % 3 else 'other'},{n % 2},p{n % 12 // 2}" for n in range(48)]
    path.write_text("image,x0,y0,x1,y1,label,rods,patient\n" + "\n".join(rows) + "\n")
    return path


def call(*arguments: str | Path) -> int:
    return main([str(argument) for argument in arguments])


def test_from_a_table_of_cells(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "folds.csv"
    given = ("--table", table, "--files", tmp_path, "--label_columns", "label", "rods")
    assert call(*given, "--folds", "3", "--inner", "2", "--out", out) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split() for line in lines] == [
        ["fold", str(fold), "16", "samples", "of", "2", "groups"] for fold in range(3)
    ]
    assert "blast;0" in lines[0]
    found = folds.read(out)
    assert "0.png 12 0 21 9" in found.fold
    assert call(*given, "--check", out) == 0
    capsys.readouterr()
    assert call(*given, "--folds", "3", "--out", out) == 2
    assert "exists: folds are made once" in capsys.readouterr().err


def test_the_same_picture_of_two_patients(table: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "2.png").write_bytes(b"picture 0")
    text = table.read_text().replace("2.png,2,0,11,9", "2.png,0,0,9,9")
    table.write_text(text)
    out = tmp_path / "folds.csv"
    assert call("--table", table, "--folds", "2", "--out", out) == 0
    capsys.readouterr()
    assert call("--table", table, "--files", tmp_path, "--folds", "2", "--out", tmp_path / "f.csv") == 2
    assert "are the same image, in two groups: p0 and p1" in capsys.readouterr().err


def test_patients_of_slides_are_in_their_names(tmp_path: Path) -> None:
    table, out = tmp_path / "slides.csv", tmp_path / "folds.csv"
    rows = [f"patient_{n // 5:03d}_node_{n % 5},{'tumor' if n % 2 else 'normal'}" for n in range(30)]
    table.write_text("slide_id,label\n" + "\n".join(rows) + "\n")
    assert call("--table", table, "--folds", "3", "--out", out) == 0
    found = folds.read(out)
    for patient in range(6):
        assert len({found.fold[f"patient_{patient:03d}_node_{node}"] for node in range(5)}) == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("name,label\na,b\n", "has none of the columns id, slide_id, path, image: give --id_column"),
        ("slide_id,class\na,b\n", "has no column label; it has slide_id, class"),
        ("slide_id,label\na,\n", "line 2: no label; fill it in"),
        ("slide_id,label\na,x\na,y\n", "sample a occurs twice"),
        ("slide_id,label\na,x\nb,x\n", "5 folds need as many patients or more; the samples are of 2 patients"),
    ],
)
def test_tables_that_cannot_be_used(
    text: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "table.csv"
    table.write_text(text)
    assert call("--table", table, "--out", tmp_path / "folds.csv") == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "folds.csv").exists()
