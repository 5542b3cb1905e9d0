"""The doctor on data, options and command lines: each check once where all is well and once where it is not."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from doctor import data, option_lints
from doctor import examination as doctor
from doctor.report import FAIL, PASS, WARN, Finding, Report, passed
from options.parser import OptionError
from slides.synthetic.demo import write_pyramid
from slides.truth.reading import Reading
from tests.support.healthy import TASK, levels, only
from tests.support.tiny import TinySet, write_label, write_slide

# --------------------------------------------------------------------------------------------------- report


def test_report_lines_counts_and_a_check_that_raises() -> None:
    said: list[str] = []
    report = Report(said.append)
    report.run("good", lambda: [passed("good", "all\n of it")])
    assert report.exit_code == 0
    report.run("bad", lambda: {}["gone"])
    assert said[0] == "PASS  good         all; of it"
    assert said[1].startswith("FAIL  bad          KeyError: 'gone'")
    assert said[2].strip().startswith("fix: ")
    assert report.exit_code == 1
    assert report.counts() == {"PASS": 1, "WARN": 0, "FAIL": 1}
    stored = json.loads(report.as_json(ranks=[]))
    assert stored["checks"][0] == {"level": "PASS", "what": "good", "found": "all\n of it", "fix": ""}


# ------------------------------------------------------------------------------------------------------ data


def looked_at(tiny: TinySet, *more: str) -> list[Finding]:
    """All findings about a set's data."""
    opts = doctor.parsed(tiny.arguments(*more))
    kept = Report(lambda _: None)
    examined = doctor.Doctor(None, [])  # type: ignore[arg-type]
    examined.report = kept
    examined.examine_data(opts, doctor.task_of(opts))
    return kept.findings


def of(found: list[Finding], what: str) -> list[Finding]:
    return [finding for finding in found if finding.what == what]


@pytest.fixture
def tiny(tmp_path: Path) -> TinySet:
    return TinySet(tmp_path)


def test_good_data(tiny: TinySet) -> None:
    found = looked_at(tiny)
    assert {finding.level for finding in found} == {PASS}
    assert [finding.what for finding in found] == ["pairing", "slides", "spacing", "classes"]
    assert found[0].found.startswith("training 3 slides (2 with a label, 1 without")
    assert found[1].found == "can be read with their truth: 4 slides checked"


def test_a_label_without_a_slide(tiny: TinySet) -> None:
    write_label(tiny.label("tumor_009"))
    finding = only(looked_at(tiny))
    assert finding.level == FAIL
    assert "labels without a slide" in finding.found


def test_slides_that_cannot_be_used(tiny: TinySet) -> None:
    tiny.slide("tumor_001").write_bytes(b"II*\0")
    write_pyramid(tiny.slide("normal_001"), np.full((256, 300, 3), 200, np.uint8), 352.78)  # 72 dpi
    finding = only(of(looked_at(tiny), "slides"))
    assert finding.level == FAIL
    assert finding.found.startswith("2 cannot be used (4 slides checked): slide ")
    assert "its spacing is unknown" in finding.found
    assert "tumor_001.tif" in finding.found


def test_a_mask_of_another_size(tiny: TinySet) -> None:
    for name, part in (("tumor_001", "train"), ("tumor_002", "train"), ("tumor_101", "val")):
        label = tiny.label(name, part)
        label.unlink()
        write_pyramid(label.with_name(f"{name}_mask.tif"), np.ones((50, 60), np.uint8), 2.0, lossless=True)
    finding = only(of(looked_at(tiny, "--label_format", "tif"), "slides"))
    assert finding.level == FAIL
    assert finding.found.startswith("3 cannot be used")
    assert "which is no level and no whole ratio of it" in finding.found


def test_slides_coarser_than_the_patches(tiny: TinySet) -> None:
    finding = only(of(looked_at(tiny, "--resolution", "1"), "spacing"))
    assert finding.level == WARN
    assert finding.found.startswith("4 of 4 slides are coarser (2 um/px) than --resolution 1")
    assert finding.fix.startswith("--resolution 2")


def test_a_field_of_view_larger_than_slides(tiny: TinySet) -> None:
    assert levels(of(looked_at(tiny, "--img_size", "384"), "field")) == [FAIL]
    write_slide(tiny.slide("normal_001"), (500, 400), tumor=False)
    finding = only(of(looked_at(tiny, "--img_size", "384"), "field"))
    assert finding.level == WARN
    assert finding.found.startswith("768 um is larger than 3 of 4 slides")


def test_labels_of_which_none_is_tumor(tiny: TinySet) -> None:
    for name, part in (("tumor_001", "train"), ("tumor_002", "train"), ("tumor_101", "val")):
        write_label(tiny.label(name, part), group="_2")
    found = of(looked_at(tiny), "classes")
    assert levels(found) == [WARN, FAIL, WARN, WARN, PASS]
    assert found[1].found == "no training slide has tumor"


def test_many_slides_are_sampled(tiny: TinySet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "MOST_SLIDES", 2)
    finding = only(of(looked_at(tiny), "slides"))
    assert finding.found == "can be read with their truth: 3 of 4 slides checked"  # 2 of 3, and 1 of 1
    monkeypatch.setattr(data, "SECONDS", 0.0)
    assert "0 of 4 slides checked, time ran out" in only(of(looked_at(tiny), "slides")).found


def test_a_slide_that_crashes_its_reader_is_a_finding(tiny: TinySet, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Reading, "open_slide", crash)
    finding = only(of(looked_at(tiny), "slides"))
    assert finding.level == FAIL
    assert "ZeroDivisionError()" in finding.found


# --------------------------------------------------------------------------------------------------- options


def test_sensible_options() -> None:
    assert levels(option_lints.lint(TASK, 2)) == [PASS]


@pytest.mark.parametrize(
    ("changed", "count", "found"),
    [
        ({"images": 3}, 2, "--num_steps 3 is less than the 4 images of one"),
        ({"images": 396}, 2, "--num_steps 396 is only 99 steps of 4 images"),
        ({"validate_every": 4001}, 2, "--validate_every 4001 is more than --num_steps 4000"),
        ({"warmup": 4000}, 2, "--warmup 4000 does not end before --num_steps 4000"),
        ({"log_every": 4001}, 2, "--log_every 4001 is more than --num_steps 4000"),
        ({"batch": 1}, 2, "--batch_size 1: batch norm sees one patch at a time"),
        ({"batch": 1}, 1, "--batch_size 1: batch norm sees one patch at a time"),
        ({"log_dir": None}, 2, "no --log_dir: the run will not be saved"),
        ({"checkpoint_every": 4001}, 2, "--checkpoint_every 4001 is more than --num_steps 4000"),
    ],
)
def test_options_hardly_meant(changed: dict[str, Any], count: int, found: str) -> None:
    got = list(option_lints.lint(replace(TASK, **changed), count))
    assert found in [finding.found[: len(found)] for finding in got]
    assert {finding.level for finding in got} == {WARN}


def test_batch_1_is_fine_with_sync_bn() -> None:
    assert levels(option_lints.lint(replace(TASK, batch=1, sync_bn=True), 2)) == [PASS]


def test_command_lines(tiny: TinySet) -> None:
    opts = doctor.parsed([])
    assert not doctor.has_data(opts.slides)
    opts = doctor.parsed(tiny.arguments())
    assert doctor.has_data(opts.slides)
    with pytest.raises(OptionError, match=r"^--img_size 200: must be a multiple of 128"):
        doctor.parsed(["--img_size", "200"])
    with pytest.raises(OptionError, match=r"^no training data: give --slide_path and --label_path"):
        doctor.parsed(["--slide_path", "x"])
    # An option that only a run with data has a use for is checked without data, too.
    with pytest.raises(OptionError, match=r"^argument --batch_size: 0 given"):
        doctor.parsed(["--batch_size", "0"])


def test_paths_that_every_rank_must_see(tiny: TinySet) -> None:
    opts = doctor.parsed(tiny.arguments("--weights_path", "w.h5", "--resume", "old"))
    assert {name: str(path) for name, path in doctor.task_of(opts).inputs.items()} == {
        "slide_path": str(tiny.folder / "train" / "images"),
        "label_path": str(tiny.folder / "train" / "annotations"),
        "valid_slide_path": str(tiny.folder / "val" / "images"),
        "valid_label_path": str(tiny.folder / "val" / "annotations"),
        "weights_path": "w.h5",
        "resume": "old",
    }
    opts = doctor.parsed(["--dataset", "16", "--data_root", "/data", "--log_dir", "/runs", "--resume", "auto"])
    assert doctor.task_of(opts).inputs == {"data_root": Path("/data")}
