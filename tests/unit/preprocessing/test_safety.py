"""What a run of preprocessing must never do: lose a user's files, believe old results, lose one slide for another."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from cohorts.sets import from_manifest
from preprocessing import check
from preprocessing.__main__ import main
from preprocessing.steps import NAMES
from tests.support.paths import ROOT
from tests.support.tiny import write_label, write_slide

SHAPE_XY = (297, 271)


def make_set(folder: Path, *names: str) -> Path:
    for seed, name in enumerate(names):
        write_slide(folder / "img" / f"{name}.tif", SHAPE_XY, seed, tumor=name.startswith("tumor"))
        if name.startswith("tumor"):
            write_label(folder / "xml" / f"{name}.xml")
    return folder


def run(folder: Path, out: Path, *steps: str, labels: str = "xml", more: tuple[str, ...] = ()) -> int:
    words = ["--slide_path", str(folder / "img"), "--out", str(out), "--num_processes", "1"]
    if labels:
        words += ["--label_path", str(folder / labels), "--label_format", "xml" if "xml" in labels else "tif"]
    if "extract_patches" in steps:
        words += ["--patch_size", "64", "--resolution", "2", "--save_neg"]
    return main(["--steps", *steps, *words, *more])


def bytes_of(folder: Path) -> dict[str, bytes]:
    every = (
        path for path in folder.rglob("*") if path.is_file() and ".done" not in path.parts and path.name != ".lock"
    )
    return {str(path.relative_to(folder)): path.read_bytes() for path in every}


# --------------------------------------------------------------------------------------------------- a user's own files


def test_labels_that_a_step_would_remove_are_refused(tmp_path, capsys):
    data = make_set(tmp_path, "tumor_1", "normal_1")
    assert run(data, data / "out", "xml_to_mask") == 0
    before = bytes_of(data)
    # Masks that the step has made, as labels of the next run: its fingerprint differs, so it would remove them first.
    assert run(data, data / "out", "xml_to_mask", "tissue", labels="out/masks") == 2
    said = capsys.readouterr().err
    assert "is an input, but the step xml_to_mask writes to" in said
    assert "choose another --out" in said
    assert bytes_of(data) == before
    # Other steps may use them.
    assert run(data, data / "out", "tissue", labels="out/masks") == 0


@pytest.mark.parametrize("link", [False, True])
def test_slides_that_a_step_would_remove_are_refused(link, tmp_path, capsys):
    data = make_set(tmp_path, "normal_1")
    out = tmp_path / "out"
    out.mkdir()
    os.rename(data / "img", out / "trim_tissue")
    if link:
        (data / "img").mkdir()
        (data / "img" / "normal_1.tif").symlink_to(out / "trim_tissue" / "normal_1.tif")
    else:
        (data / "img").symlink_to(out / "trim_tissue")
    before = bytes_of(out)
    assert run(data, out, "tissue", "trim_tissue", labels="") == 2
    assert "normal_1.tif is an input, but" in capsys.readouterr().err
    assert bytes_of(out) == before


@pytest.mark.parametrize(("step", "name"), [("xml_to_mask", "masks/tumor_1_Mask.tif"), ("manifest", "manifest.csv")])
def test_what_was_there_before_is_not_overwritten(step, name, tmp_path, capsys):
    data = make_set(tmp_path, "tumor_1")
    (data / name).parent.mkdir(exist_ok=True)
    (data / name).write_bytes(b"mine")
    assert run(data, data, "tissue", step) == 2
    assert "already exists and was not written by the step" in capsys.readouterr().err
    assert (data / name).read_bytes() == b"mine"
    assert not (data / "tissue").exists()
    # An empty folder is nobody's.
    (data / name).unlink()
    assert run(data, data, "tissue", step) == 0
    assert (data / name).stat().st_size > 4


def one_file(step: str, *words: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"preprocessing.{step}", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_one_file_is_not_written_over_what_is_read_nor_elsewhere(tmp_path):
    data = make_set(tmp_path, "tumor_1")
    slide, xml = data / "img" / "tumor_1.tif", data / "xml" / "tumor_1.xml"
    (tmp_path / "link.tif").symlink_to(slide)
    os.mkfifo(tmp_path / "pipe.tif")
    for out, why in (
        (slide, "is the input file"), (tmp_path / "link.tif", "is the input file"),
        (tmp_path / "pipe.tif", "is not a regular file"),
        (tmp_path / "m.xml", "must end in .tif or .tiff"), (tmp_path / "gone" / "m.tif", "does not exist"),
    ):  # fmt: skip
        before = bytes_of(data)
        done = one_file("xml_to_mask", "--xml", xml, "--slide", slide, "--out", out)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert why in done.stderr
        assert bytes_of(data) == before
    (tmp_path / "words").write_text(f"--xml '{xml}' --slide '{slide}' --out '{tmp_path / 'm.tif'}'\n")
    assert one_file("xml_to_mask", f"@{tmp_path / 'words'}").returncode == 0
    (tmp_path / "m.xml").symlink_to(tmp_path / "m.tif")
    done = one_file("mask_to_xml", "--mask", tmp_path / "m.tif", "--out", tmp_path / "m.xml")
    assert "is the input file" in done.stderr
    assert one_file("mask_to_xml", "--mask", tmp_path / "m.tif", "--out", tmp_path / "n.xml").returncode == 0


# ---------------------------------------------------------------------------------------------------------- old results


def test_what_stood_against_a_slide_is_looked_at_again(tmp_path, monkeypatch):
    data = make_set(tmp_path, "normal_1", "normal_2")
    real = check.overview

    def away(slide, px):
        if slide.id == "normal_1":
            raise OSError(5, "Input/output error")
        return real(slide, px)

    monkeypatch.setattr(check, "overview", away)
    assert run(data, data / "out", "check", labels="") == 1
    monkeypatch.undo()
    steps = ("check", "tissue", "extract_patches")
    assert run(data, data / "out", *steps, labels="") == 0
    # Away again, seen by a check that is due: hours of work on the same file must not go with it.
    before = {name: data for name, data in bytes_of(data / "out").items() if "normal_1" in name and "check" not in name}
    monkeypatch.setattr(check, "overview", away)
    (data / "out" / ".done" / "check" / "normal_1.json").unlink()
    assert run(data, data / "out", *steps, labels="") == 1
    monkeypatch.undo()
    assert before
    assert before.items() <= bytes_of(data / "out").items()


def test_results_of_a_slide_that_went_bad_go(tmp_path, capsys):
    data = make_set(tmp_path, "normal_1", "tumor_1", "tumor_2")
    steps = ("check", "tissue", "xml_to_mask", "extract_patches", "manifest")
    assert run(data, data / "out", *steps) == 0
    slides = sorted((data / "img").iterdir())
    capsys.readouterr()
    slides[2].write_bytes(slides[2].read_bytes()[:3000])
    assert run(data, data / "out", *steps) == 1
    assert "earlier runs" not in capsys.readouterr().out
    left = {name for name in bytes_of(data / "out") if "tumor_2" in name}
    assert left == set()
    for table in ("manifest.csv", "patches/patches.csv"):
        assert b"tumor_2" not in (data / "out" / table).read_bytes()
    for slide in slides[:2]:
        slide.write_bytes(b"")
    assert run(data, data / "out", *steps) == 1
    assert not (data / "out" / "manifest.csv").exists()
    assert (data / "out" / "patches" / "patches.csv").read_bytes().count(b"\n") == 1
    assert {name.split("/")[0] for name in bytes_of(data / "out") if "_1" in name} == set()


def test_a_damaged_patch_is_made_again(tmp_path):
    data = make_set(tmp_path, "normal_1")
    assert run(data, data / "out", "tissue", "extract_patches", labels="") == 0
    before = bytes_of(data / "out")
    patch = next((data / "out" / "patches").rglob("*_x*.png"))
    patch.write_bytes(b"")
    assert run(data, data / "out", "tissue", "extract_patches", labels="") == 0
    assert bytes_of(data / "out") == before


# ---------------------------------------------------------------------------------------------------------------- names


def test_a_slide_called_like_another_ones_picture(tmp_path, capsys):
    data = make_set(tmp_path, "normal_1", "normal_1.png")
    assert run(data, data / "out", "tissue", "extract_patches", labels="") == 2
    assert "would be called patches/normal_1.png" in capsys.readouterr().err
    assert run(data, data / "out", "tissue", labels="") == 0


def test_a_name_that_is_no_text(tmp_path, capsys):
    data = make_set(tmp_path, "normal_1")
    os.rename(data / "img" / "normal_1.tif", os.fsencode(data / "img") + b"/caf\xe9.tif")
    assert run(data, data / "out", "check", labels="") == 2
    assert "not UTF-8: " in capsys.readouterr().err


def test_patches_closer_than_px_of_the_slide(tmp_path, capsys):
    data = make_set(tmp_path, "normal_1")
    more = ("--stride", "2", "--resolution", "0.1")
    assert run(data, data / "out", "tissue", "extract_patches", labels="", more=more) == 1
    assert "less than one px of the slide" in capsys.readouterr().out


def test_one_file_under_two_names_is_on_one_side_of_the_split(tmp_path):
    data = make_set(tmp_path, "normal_0", "normal_9")
    for number in range(1, 6):
        (data / "img" / f"normal_{number}.tif").symlink_to(data / "img" / "normal_0.tif")
    for more in ((), ("--no-checksums",)):
        assert run(data, data / "out", "tissue", "manifest", labels="", more=more) == 0
        with (data / "out" / "manifest.csv").open(newline="") as file:
            split_of = {row["slide"]: row["split"] for row in csv.DictReader(file)}
        assert len({split_of[f"normal_{number}"] for number in range(6)}) == 1
        assert set(split_of.values()) == {"train", "val"}
        from_manifest(data / "out" / "manifest.csv", None, ([-1], [-1]))


def test_a_name_with_blanks_around_it_comes_back_from_the_manifest(tmp_path):
    data = make_set(tmp_path, " normal 1 ", "normal_2")
    assert run(data, data / "out", "tissue", "manifest", labels="") == 0
    train, val, _ = from_manifest(data / "out" / "manifest.csv", None, ([-1], [-1]))
    assert {case.slide_id for case in (*train, *val)} == {" normal 1 ", "normal_2"}


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_outputs(closed, tmp_path):
    data = make_set(tmp_path, "normal_1")
    words = f"'{sys.executable}' -m preprocessing --steps tissue --slide_path '{data}/img' --out '{data}/out' {closed}"
    assert subprocess.run(["bash", "-c", words], cwd=ROOT, check=False).returncode == 0
    assert (data / "out" / "tissue" / "normal_1.tif").is_file()


def test_every_step_writes_in_a_place_of_its_own(tmp_path, capsys):
    """No step's output is another's: `reserve` would refuse or miss it."""
    data = make_set(tmp_path, "tumor_1", "normal_1")
    (data / "labels.csv").write_text("slide_id,label\ntumor_1,a\nnormal_1,b\n")
    assert run(data, data / "out", *NAMES, more=("--labels", str(data / "labels.csv"), "--trim_um_px", "4",
                                                "--extract_um_px", "4")) == 0  # fmt: skip
    assert "FAILED" not in capsys.readouterr().out
    assert np.all([(data / "out" / ".done" / step).is_dir() for step in NAMES])
