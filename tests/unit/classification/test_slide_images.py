"""Images straight from slides: the same as extract_tissue writes, glass kept, no tissue, what cannot be used."""

from pathlib import Path

import numpy as np
import pytest

from classification import slide_images
from classification.augment import strength, view
from classification.images import in_folder
from classification.slide_images import Cutting, of_slides
from cohorts.pairing import Case, find_slides
from cohorts.staging import Place, Staging
from slides.reader import SlideError
from slides.synthetic.demo import write_pyramid
from slides.trimming import read_strips
from slides.truth.reading import Reading
from tests.support.paths import SHARED
from tests.support.steps import run_steps

PINK, GLASS = (215, 150, 190), (243, 243, 243)


def slide(path: Path, tissue: bool = True) -> Path:
    """900 x 700 px of 4 um; two pieces of tissue, far apart, with a pattern."""
    image_HWC = np.full((700, 900, 3), GLASS, np.uint8)
    if tissue:
        image_HWC[100:300, 150:300] = PINK
        image_HWC[500:650, 600:800] = PINK
        image_HWC[::7, ::5] = image_HWC[::7, ::5] // 2
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, image_HWC, 4.0, lossless=True)
    return path


def images(folder, **options):
    return of_slides(find_slides(folder), Reading(), Cutting(**({"um_px": 6.0} | options)))


def test_the_same_as_extract_tissue_writes(tmp_path):
    path = slide(tmp_path / "in" / "s.tif")
    (tmp_path / "labels.csv").write_text("slide_id,label\ns,1\n")
    words = ["--slide_path", str(path.parent), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    words += ["--labels", str(tmp_path / "labels.csv"), "--extract_um_px", "6", "--extract_gap", "20"]
    assert run_steps(["tissue", "extract_tissue"], words) == 0
    written = in_folder(tmp_path / "out").open("s")
    straight = images(path.parent, gap_px=20).open("s")
    assert straight.trim == written.trim
    assert len(straight.trim.runs_x) == 2
    assert straight.hw == written.hw
    np.testing.assert_array_equal(straight.mask_RS, written.mask_RS)
    assert straight.mask_step == written.mask_step == 16
    assert straight.um_px == written.um_px == 6.0
    assert straight.size_xy_l0 == written.size_xy_l0 == (900, 700)
    assert straight.um_px_xy_l0 == written.um_px_xy_l0 == (4.0, 4.0)
    height, width = straight.hw
    straight_HWC = straight.read((0, height), (0, width))[0]
    strips = list(read_strips(Reading().open_slide(path), straight.trim, 50))
    # Its strips begin on whole px of the slide, whose places are not rounded.
    assert np.abs(straight_HWC.astype(int) - np.concatenate(strips)).max() <= 2
    change = np.abs(straight_HWC.astype(int) - written.read((0, height), (0, width))[0])
    assert change.mean() < 6  # of JPEG
    # A window over the seams of both cuts.
    np.testing.assert_array_equal(straight.read((120, 160), (90, 140))[0], straight_HWC[120:160, 90:140])


def test_glass_is_kept(tmp_path):
    slide(tmp_path / "s.tif")
    slide(tmp_path / "t.tif", tissue=False)
    kept = images(tmp_path, gap_px=None)
    image = kept.open("s")
    assert image.hw == (467, 600)
    assert 0.05 < image.mask_RS.mean() < 0.3
    assert kept.open("t").mask_RS is None
    # Validation looks at the larger piece.
    x, y = view(image, (100, 130)).l0_from_view([65.0, 50.0])
    assert 600 < x < 800
    assert 500 < y < 650


def test_tissue_is_looked_for_once(tmp_path, monkeypatch):
    slide(tmp_path / "s.tif")
    found = images(tmp_path)
    first = found.open("s")
    monkeypatch.setattr(slide_images, "find_tissue", None)
    again = found.open("s")
    assert again.trim == first.trim
    np.testing.assert_array_equal(again.mask_RS, first.mask_RS)


def test_faults_are_known_before_the_run(tmp_path):
    slide(tmp_path / "s.tif")
    slide(tmp_path / "t.tif", tissue=False)
    (tmp_path / "u.tif").write_bytes(b"II*\0")
    fine = images(tmp_path, um_px=2.0)
    (finer,) = fine.faults(["s"])
    assert finer.startswith(f"slide {tmp_path}/s.tif has 4 um/px; a spacing of 2 um/px is finer than what was scanned")
    found = images(tmp_path)
    (broken,) = found.faults(["s", "t", "u"])
    assert broken.startswith(f"slide {tmp_path}/u.tif cannot be opened: ")
    with pytest.raises(SlideError, match=rf"slide {tmp_path}/t.tif: no tissue was found; .*--keep_glass"):
        found.open("t")
    with pytest.raises(ValueError, match="there are no slides"):
        of_slides([], Reading(), Cutting(1.0))


def test_spacing_of_a_single_slide(tmp_path):
    path = slide(tmp_path / "s.tif")
    found = of_slides([Case("s", path, None, um_px=(2.0, 2.0))], Reading(), Cutting(4.0, None))
    assert found.open("s").hw == (350, 450)


def test_copies_on_the_node(tmp_path):
    path = slide(tmp_path / "in" / "s.tif")
    found = images(tmp_path / "in")
    staging = Staging(tmp_path / "node", 10**9, Place(0, 1), lambda value: [value])
    moved, line = found.staged(staging)
    assert line.startswith("1 of 1 file")
    path.unlink()
    assert str(tmp_path / "node") in moved.open("s").where
    staging.close()


@pytest.mark.skipif(not (SHARED / "c16mosaic").is_dir(), reason="needs ../shared/data/c16mosaic")
def test_real_tissue(tmp_path):
    folder = SHARED / "c16mosaic" / "val" / "images"
    found = images(folder, um_px=1.0, mask_step=8)
    assert found.faults(found.ids) == []
    image = found.open(found.ids[0])
    seen = view(image, (512, 512))
    seen_HWC = seen.read((0, 512), (0, 512))[0]
    assert seen.mask(8).mean() > 0.5
    assert (seen_HWC.min(axis=2) < 200).mean() > 0.3


@pytest.mark.parametrize("um_px", [4.0, 4.4, 6.5])
def test_windows_of_a_view_of_a_slide_give_the_same_px_to_the_byte(tmp_path, um_px):
    """Px of a level, linear, and behind a low pass; over seams of the cut, turned, distorted and recolored."""
    slide(tmp_path / "s.tif")
    image = images(tmp_path, um_px=um_px, gap_px=20).open("s")
    assert len(image.trim.runs_x) == len(image.trim.runs_y) == 2
    for index in range(2):
        seen = view(image, (260, 300), strength("strong"), 5, index)
        whole = seen.read((0, 260), (0, 300))[0]
        assert (whole.min(axis=2) < 200).mean() > 0.2
        for size in (31, 64, 170):
            for top in range(0, 260, size):
                for left in range(0, 300, size):
                    rows, columns = (top, min(top + size, 260)), (left, min(left + size, 300))
                    np.testing.assert_array_equal(seen.read(rows, columns)[0], whole[slice(*rows), slice(*columns)])
