import json

import numpy as np
import pytest

from inference.finish import claim
from inference.plan import plan_slide
from inference.scratch import run_path
from inference.slide_list import done_before, listed
from slides.reader import SlideError
from slides.synthetic.demo import position_coded, write_pyramid

VIEW = {"img_size": 128, "um_px": 2.0, "overlap": 0.25, "bb_downsample": 7, "classes": 2}


def stained(tmp_path, name="slide.tif", um_px=1.0):
    """A slide of glass with one square of tissue, x 600 to 1000, y 100 to 500 level-0 px."""
    image_HWC = np.full((900, 1400, 3), 245, np.uint8)
    image_HWC[100:500, 600:1000] = (190, 90, 160)
    write_pyramid(tmp_path / name, image_HWC, um_px)
    return tmp_path / name


def test_only_windows_with_tissue_are_planned(tmp_path):
    planned = plan_slide(stained(tmp_path), None, tissue_only=True, **VIEW)
    assert planned.grid.size_xy == (700, 450)
    # Windows of 128 px every 96: columns 2 to 5 reach into x 300 to 500, rows 0 to 2 into y 50 to 250 of the map.
    assert planned.windows == [(r, c) for r in range(3) for c in range(2, 6)]
    assert planned.tissue_mm2 == pytest.approx(0.16, rel=0.1)
    everywhere = plan_slide(stained(tmp_path), None, tissue_only=False, **VIEW)
    assert len(everywhere.windows) == 5 * 7


def test_a_slide_without_tissue_is_said(tmp_path):
    write_pyramid(tmp_path / "glass.tif", np.full((300, 400, 3), 245, np.uint8), 1.0)
    planned = plan_slide(tmp_path / "glass.tif", None, tissue_only=True, **VIEW)
    assert planned.windows == []
    assert "glass: no tissue found; its maps are empty" in planned.notes


def test_a_coarse_slide_is_said(tmp_path):
    planned = plan_slide(stained(tmp_path, um_px=4.0), None, tissue_only=True, **VIEW)
    assert any("enlarged to 2 um/px" in note for note in planned.notes)


def test_a_level_within_the_models_tolerance_is_taken_and_said(tmp_path):
    path = stained(tmp_path, um_px=0.97)  # levels of 0.97, 1.94 and coarser
    planned = plan_slide(path, None, tissue_only=True, tolerance=0.05, **VIEW)
    assert planned.grid.step_xy_l0 == (2.0, 2.0)
    assert planned.grid.size_xy == (700, 450)
    assert "slide: read at its own 1.94 um/px, not at 2, as in training (within 0.05 of it)" in planned.notes
    exact = plan_slide(path, None, tissue_only=True, **VIEW)
    assert exact.grid.step_xy_l0 == pytest.approx((2 / 0.97, 2 / 0.97), rel=1e-5)
    assert not any("its own" in note for note in exact.notes)


def test_unknown_spacing_names_the_slide_and_what_to_do(tmp_path):
    position_coded(tmp_path / "bare.tif", (300, 200), um_px=None)
    with pytest.raises(SlideError, match=r"bare\.tif.*--mpp"):
        plan_slide(tmp_path / "bare.tif", None, tissue_only=True, **VIEW)
    assert plan_slide(tmp_path / "bare.tif", 2.0, tissue_only=False, **VIEW).grid.size_xy == (300, 200)


def by_name(path):
    return [(one.stem, one) for one in (sorted(path.glob("*.tif")) if path.is_dir() else [path])]


def test_slides_from_files_folders_and_lists(tmp_path):
    for name in ("a.tif", "more/b.tif", "more/c.tif"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    text = tmp_path / "list.txt"
    text.write_text("# two\na.tif\n\nmore\n", encoding="utf-8")
    assert [name for name, _ in listed([text], by_name)] == ["a", "b", "c"]
    assert [name for name, _ in listed([tmp_path / "more", tmp_path / "more/b.tif"], by_name)] == ["b", "c"]
    (tmp_path / "more/a.tif").touch()
    with pytest.raises(ValueError, match="two slides have the id a"):
        listed([text], by_name)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(ValueError, match="no slides in"):
        listed([tmp_path / "empty.txt"], by_name)


def test_what_is_done_is_not_done_again(tmp_path):
    folder = tmp_path / "a"
    assert not done_before(folder, {"overlap": 0.5}, overwrite=False)
    folder.mkdir()
    with pytest.raises(ValueError, match="does not contain a prediction"):
        done_before(folder, {"overlap": 0.5}, overwrite=False)
    (folder / "summary.json").write_text(json.dumps({"options": {"overlap": 0.5, "mpp": None}}), encoding="utf-8")
    assert done_before(folder, {"overlap": 0.5, "mpp": None}, overwrite=False)
    with pytest.raises(ValueError, match=r"other options \(overlap\)"):
        done_before(folder, {"overlap": 0.25, "mpp": None}, overwrite=False)
    assert not done_before(folder, {"overlap": 0.25, "mpp": None}, overwrite=True)


def test_one_of_all_finishes_a_slide_when_all_runs_are_there(tmp_path):
    assert not claim(tmp_path, [0, 5])
    run_path(tmp_path, 0).touch()
    assert not claim(tmp_path, [0, 5])
    run_path(tmp_path, 5).touch()
    assert claim(tmp_path, [0, 5])
    assert not claim(tmp_path, [0, 5])
    assert not claim(tmp_path / "gone", [0])
