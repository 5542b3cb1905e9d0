"""Spacings of single slides, from a table or a manifest, in every program."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from cohorts.sets import from_manifest
from cohorts.spacings import read_spacings, spacing_of, with_spacings
from options.train import train_options
from samplers.dataset import SetOptions, open_set
from segmentation.inputs import case_json, find_cases
from slides.synthetic.demo import write_asap
from slides.truth.reading import Reading
from tests.support.broken import write_noise
from tests.support.steps import run_steps


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_ids_and_file_names_with_one_number_or_two(tmp_path: Path):
    table = write(tmp_path / "t.csv", "\ufeffslide,who,mpp,mpp_x,mpp_y\na.1,x,0.25,,\nb.svs,y,,0.5,0.51\nc,z,,,\n")
    assert read_spacings(table) == {"a.1": (0.25, 0.25), "b": (0.5, 0.51)}
    assert read_spacings(write(tmp_path / "u.csv", "mpp,slide_id\n2,x.ome.tif\n2,x.ome\n")) == {"x.ome": (2.0, 2.0)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,mpp\na,1\n", r"t\.csv has the columns name, mpp; needed are slide and mpp"),
        ("slide,mpp_x\na,1\n", r"has the columns slide, mpp_x; needed are"),
        ("", r"has the columns none"),
        ("slide,mpp\na,1\nb,wide\n", r"line 3: spacing 'wide' x 'wide'; give um per level-0 px, 0\.05 to 100"),
        ("slide,mpp\na,0\n", r"line 2: spacing '0' x '0'"),
        ("slide,mpp\na,nan\n", r"line 2: spacing 'nan'"),
        ("slide,mpp\na,250\n", r"line 2: spacing '250'"),
        ("slide,mpp_x,mpp_y\na,1,\n", r"line 2: spacing '1' x ''"),
        ("slide,mpp\na,1\na.tif,2\n", r"line 3: slide a occurs twice with different spacings"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        read_spacings(write(tmp_path / "t.csv", text))


def test_a_missing_table_and_one_of_other_slides(tmp_path: Path):
    with pytest.raises(ValueError, match=r"--mpp_table .*t\.csv cannot be read"):
        read_spacings(tmp_path / "t.csv")
    table = write(tmp_path / "t.csv", "slide,mpp\nb,1\n")
    case = Case("a", Path("a.tif"), None)
    with pytest.raises(ValueError, match=r"a spacing of none of the slides: it names b; the slides are a"):
        with_spacings(table, [case])
    assert with_spacings(None, [case], []) == [[case], []]
    assert spacing_of("x", {"mpp": None}) is None


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_noise(tmp_path / "in" / f"{name}.tif")
    return tmp_path / "in"


def test_training_reads_slides_by_the_table_and_its_record_keeps_the_spacings(slides: Path, tmp_path: Path):
    table = write(tmp_path / "t.csv", "slide,mpp\na,0.25\nb,2\n")
    words = [
        "--slide_path",
        str(slides),
        "--mpp_table",
        str(table),
        "--mpp",
        "1",
        "--val_split",
        "0.4",
        "--num_steps",
        "8",
    ]
    write_asap(tmp_path / "a.xml", [("_0", np.array([(20, 28), (60, 28), (60, 48), (20, 48)]))])
    labels = ["--label_path", str(tmp_path / "a.xml"), "--label_format", "xml"]
    train, val, notes = find_cases(train_options([*words, *labels]).slides, 0)
    cases = sorted([*train, *val], key=lambda case: case.slide_id)
    assert notes == ["spacing from a table for 2 of 3 slides"]
    options = SetOptions(Reading(um_px=1.0), bb_downsample=0, classes=2)
    opened = open_set(cases, options, 0, 1, lambda action: [action()])
    assert [slide.um_px_xy_l0 for slide in opened.slides] == [(0.25, 0.25), (2.0, 2.0), (1.0, 1.0)]
    assert [json.loads(json.dumps(case_json(case))).get("um_px") for case in cases] == [[0.25, 0.25], [2.0, 2.0], None]


def test_preprocessing_and_the_manifest_pass_them_on(slides: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    table = write(tmp_path / "t.csv", "slide,mpp_x,mpp_y\nb,1,1.25\n")
    out = tmp_path / "out"
    words = ["--slide_path", str(slides), "--out", str(out), "--num_processes", "1", "--mpp_table", str(table)]
    assert run_steps(["tissue", "manifest"], words) == 0
    with (out / "manifest.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["um_px_x"], row["um_px_y"], row["mpp_x"], row["mpp_y"]) for row in rows] == [
        ("0.5", "0.5", "", ""), ("1.0", "1.25", "1.0", "1.25"), ("0.5", "0.5", "", ""),
    ]  # fmt: skip
    # The three files are equal, so none is held out.
    text = (out / "manifest.csv").read_text(encoding="utf-8")
    write(out / "manifest.csv", text.replace(",train,", ",val,", 1))
    train, val, _ = from_manifest(out / "manifest.csv", None, ((-1,), (-1,)))
    assert {case.slide_id: case.um_px for case in (*train, *val)} == {"a": None, "b": (1.0, 1.25), "c": None}
    # Only the slide whose spacing changes is due again.
    capsys.readouterr()
    write(table, "slide,mpp_x,mpp_y\nb,1,1\n")
    assert run_steps(["tissue"], words) == 0
    assert "1 done; 2 unchanged" in capsys.readouterr().out
