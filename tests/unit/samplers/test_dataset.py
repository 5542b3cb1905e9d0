"""A set of slides: opened by several ranks, and whether a field of view fits."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cohorts.pairing import Case
from samplers.dataset import SetOptions, SlideSet, check_field_of_view, open_set, taken_levels
from slides.synthetic.demo import position_coded, write_asap
from slides.truth.reading import Reading

OPTIONS = SetOptions(Reading((("_0", 1),), ()), bb_downsample=1, classes=2)


@pytest.fixture
def cases(tmp_path: Path) -> list[Case]:
    """Three slides of 0.5 um/px; `b` has tumor."""
    for name, size_xy in (("a", (150, 130)), ("b", (210, 170)), ("c", (130, 190))):
        position_coded(tmp_path / f"{name}.tif", size_xy, (1, 2), tile=64, um_px=0.5)
    write_asap(tmp_path / "b.xml", [("_0", np.array([(20, 28), (60, 28), (60, 48), (20, 48)]))])
    return [Case(name, tmp_path / f"{name}.tif", tmp_path / "b.xml" if name == "b" else None) for name in "abc"]


def opened(cases: list[Case], size: int) -> tuple[list[SlideSet], list[int]]:
    """What each of `size` ranks (threads here) holds, and how many slides each searched."""
    parts: list = [None] * size
    all_done = threading.Barrier(size, timeout=60)

    def run(rank: int) -> SlideSet:
        def exchange(mine):
            parts[rank] = mine()
            all_done.wait()
            return list(parts)

        return open_set(cases, OPTIONS, rank, size, exchange)

    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(run, range(size))), [len(part) for part in parts]


# Five ranks on three slides: two of them search nothing.
@pytest.mark.parametrize(("size", "searched"), [(1, [3]), (2, [2, 1]), (5, [1, 1, 1, 0, 0])])
def test_every_rank_has_every_slide_and_its_index(cases: list[Case], size: int, searched: list[int]):
    sets, counts = opened(cases, size)
    assert counts == searched
    assert [[slide.id for slide in one.slides] for one in sets] == [["a", "b", "c"]] * size
    assert [[index.slide_id for index in one.indexes] for one in sets] == [["a", "b", "c"]] * size
    # tumor of `b`: x 20 to 60, y 28 to 48 in cells of 2 um, which is 4 px: 10 x 5 of them
    assert [[len(index.places.get(1, ())) for index in one.indexes] for one in sets] == [[0, 50, 0]] * size


def test_field_of_view_must_fit_one_slide(cases: list[Case]):
    found = opened(cases, 1)[0][0]
    # the longest side is 210 px of 0.5 um: 105 um
    check_field_of_view(found, 128, 0.8203)
    with pytest.raises(ValueError, match=r"sees 128 um, more than any of the 3 slides has \(105 um\): choose "
                                         r"--resolution 0.82 or finer$"):  # fmt: skip
        check_field_of_view(found, 128, 1.0)
    check_field_of_view(found, 128, 0.82)
    with pytest.raises(ValueError, match=r"sees 128 um, .* choose at most 384 px, or a finer --resolution$"):
        check_field_of_view(found, 512, 0.25)
    check_field_of_view(found, 384, 0.25)


def test_options_of_a_set_are_stored_and_read_as_they_are():
    options = SetOptions(Reading((("b", 2), ("a", 1)), ("none",), ((0, 0), (7, 255)), 0.25), 6, 3, 0.05)
    stored = json.loads(json.dumps(options.as_json()))
    assert SetOptions.from_json(stored) == options
    # The format of samples/slides.json since the first runs, which had no tolerance.
    assert stored == {
        "label_map": {"b": 2, "a": 1},
        "ignore_groups": ["none"],
        "mask_values": {"0": 0, "7": 255},
        "um_px_l0": 0.25,
        "bb_downsample": 6,
        "classes": 3,
        "tolerance": 0.05,
    }
    assert SetOptions.from_json(stored | {"mask_values": {}, "um_px_l0": None}).reading.mask_values is None
    del stored["tolerance"]
    assert SetOptions.from_json(stored).tolerance == 0.0


def test_levels_within_the_tolerance_are_taken_and_said(tmp_path):
    cases = []
    for name, um_px in (("a", 0.243), ("b", 0.25), ("c", 0.3)):
        position_coded(tmp_path / f"{name}.tif", (300, 200), um_px=um_px)
        cases.append(Case(name, tmp_path / f"{name}.tif", None))
    options = replace(OPTIONS, tolerance=0.05)
    slides = open_set(cases, options, 0, 1, lambda action: [action()]).slides
    assert [slide.spacing(0.25) for slide in slides] == pytest.approx([0.243, 0.25, 0.25], rel=1e-5)
    assert taken_levels(slides, 0.25) == [
        "1 of 3 slides are read at a level's own spacing, 0.243 um/px, not at 0.25: within --resolution_tolerance"
    ]
    exact = open_set(cases, OPTIONS, 0, 1, lambda action: [action()]).slides
    assert taken_levels(exact, 0.25) == []
