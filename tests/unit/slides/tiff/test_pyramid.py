"""Pyramids written tile by tile: px of every level, what readers see, memory, and what is left after a failure."""

import errno
import itertools
import re
import subprocess
import sys

import numpy as np
import openslide
import pytest
import pyvips
import tifffile

from slides.reader import Slide
from slides.synthetic.demo import position_coded
from slides.tiff import pyramid
from slides.tiff.pyramid import halved_sizes, write_mask_pyramid
from slides.truth.mask_truth import MaskTruth
from tests.support.paths import ROOT


def tiles_of(image, tile=16):
    return lambda row, column: image[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile]


def write(path, image, tile=16, **options):
    write_mask_pyramid(path, image.shape[::-1], (0.25, 0.5), tiles_of(image, tile), tile=tile, **options)
    return levels_of(path)


def levels_of(path):
    with tifffile.TiffFile(path) as tiff:
        return [page.asarray() for page in tiff.pages]


def some(hw, seed=0):
    """Noise with plain areas of several tiles, and 255 at the right."""
    image = np.random.default_rng(seed).integers(0, 256, hw).astype(np.uint8)
    image[: hw[0] // 2, : hw[1] // 2] = 3
    image[hw[0] // 4 :, hw[1] * 3 // 4 :] = 255
    return image


def by_groups(image, rows, columns, rule):
    """Every px from the px above that `rows` and `columns` (one index each) send there."""
    out = np.empty((max(rows) + 1, max(columns) + 1), np.uint8)
    for row in range(out.shape[0]):
        for column in range(out.shape[1]):
            out[row, column] = rule(image[np.asarray(rows) == row][:, np.asarray(columns) == column].ravel())
    return out


def highest(values):
    return max((v for v in values.tolist() if v < 255), default=255)


def mean(values):
    return (2 * int(values.sum()) + values.size) // (2 * values.size)


@pytest.mark.parametrize(("shrink", "rule"), [("max", highest), ("mean", mean)])
@pytest.mark.parametrize("hw", [(71, 133), (64, 96), (17, 100), (33, 16)])
def test_levels_are_halves_of_the_one_above(tmp_path, hw, shrink, rule):
    image = some(hw)
    levels = write(tmp_path / "a.tif", image, shrink=shrink)
    np.testing.assert_array_equal(levels[0], image)
    assert len(levels) > 2
    for finer, coarser in itertools.pairwise(levels):
        rows, columns = (np.arange(side) // 2 for side in finer.shape)
        np.testing.assert_array_equal(coarser, by_groups(finer, rows, columns, rule))


def test_the_rules_on_paper(tmp_path):
    image = np.array(
        [
            [0, 1, 255, 255, 255, 254, 9, 9],
            [2, 255, 255, 255, 255, 255, 9, 8],
            [0, 0, 0, 0, 1, 1, 1, 255],
            [0, 1, 0, 2, 1, 2, 3, 255],
        ],
        np.uint8,
    )
    sizes = [(8, 4), (4, 2)]
    assert write(tmp_path / "a.tif", image, sizes_lv=sizes)[1].tolist() == [[2, 255, 254, 9], [1, 2, 2, 3]]
    # (0 + 1 + 2 + 255) / 4 = 64.5; 1 / 4; 2 / 4; 5 / 4 and 514 / 4 = 128.5: halves go up.
    means = [[65, 255, 255, 9], [0, 1, 1, 129]]
    assert write(tmp_path / "a.tif", image, sizes_lv=sizes, shrink="mean")[1].tolist() == means


@pytest.mark.parametrize(("shrink", "rule"), [("max", highest), ("mean", mean)])
def test_levels_of_a_slide_whose_factor_is_2_001(tmp_path, shrink, rule):
    """4443 x 3567 px with a level of 2220 x 1782 px: no whole factor gives that."""
    image = some((131, 1003))
    levels = write(tmp_path / "a.tif", image, sizes_lv=[(1003, 131), (499, 65)], shrink=shrink)
    # Px of level 1 are 1003 / 499 px wide, and each px goes where its center is; 65 rows are 131 / 2, rounded down.
    columns = [int((c + 0.5) * 499 / 1003) for c in range(1003)]
    rows = [min(r // 2, 64) for r in range(131)]
    assert max(np.bincount(columns)) == 3
    np.testing.assert_array_equal(levels[1], by_groups(image, rows, columns, rule))


def test_sizes_that_were_rounded_down_keep_what_they_cut_off(tmp_path):
    image = np.zeros((5, 67), np.uint8)
    image[4, 66] = 1
    levels = write(tmp_path / "a.tif", image, sizes_lv=[(67, 5), (33, 2), (16, 1)])
    assert [level.shape for level in levels] == [(5, 67), (2, 33), (1, 16)]
    assert np.argwhere(levels[1]).tolist() == [[1, 32]]
    assert np.argwhere(levels[2]).tolist() == [[0, 15]]


@pytest.mark.parametrize(("shrink", "rule"), [("max", highest), ("mean", mean)])
@pytest.mark.parametrize("factor", [3, 4, 16])
def test_levels_may_skip(tmp_path, factor, shrink, rule):
    image = some((150, 333))
    lower = -(-333 // factor), -(-150 // factor)
    levels = write(tmp_path / "a.tif", image, sizes_lv=[(333, 150), lower], shrink=shrink)
    rows, columns = np.arange(150) // factor, np.arange(333) // factor
    np.testing.assert_array_equal(levels[1], by_groups(image, rows, columns, rule))


def test_sizes_rounded_in_different_directions_still_fill_every_px(tmp_path):
    levels = write(tmp_path / "a.tif", np.full((2, 5), 6, np.uint8), sizes_lv=[(5, 2), (2, 1), (2, 1)])
    assert [level.tolist() for level in levels[1:]] == [[[6, 6]], [[6, 6]]]


@pytest.mark.parametrize("size_xy", [(1, 1), (1, 100), (100, 1), (16, 16), (17, 1)])
def test_smallest_sizes(tmp_path, size_xy):
    image = some(size_xy[::-1], seed=3)
    levels = write(tmp_path / "a.tif", image)
    np.testing.assert_array_equal(levels[0], image)
    assert len(levels) == 1
    assert openslide.OpenSlide(tmp_path / "a.tif").dimensions == size_xy


def test_halving_ends_when_one_tile_holds_a_level():
    assert halved_sizes((1025, 300), 512) == [(1025, 300), (513, 150), (257, 75)]
    assert halved_sizes((512, 512), 512) == [(512, 512)]
    assert halved_sizes((100_000, 200_000), 512)[-1] == (196, 391)


def test_one_value_of_a_tile_is_as_good_as_its_px(tmp_path):
    image = np.zeros((70, 90), np.uint8)
    image[16:32, 32:48] = 5
    image[64:, 80:] = 255  # a border tile
    image[3, 3] = 1

    def tile_of(row, column):
        if (row, column) == (0, 0):
            return tiles_of(image)(row, column)
        return {(1, 2): 5, (4, 5): np.uint8(255)}.get((row, column), 0)

    write_mask_pyramid(tmp_path / "a.tif", (90, 70), (0.25, 0.5), tile_of, tile=16)
    write(tmp_path / "b.tif", image)
    assert (tmp_path / "a.tif").read_bytes() == (tmp_path / "b.tif").read_bytes()
    np.testing.assert_array_equal(levels_of(tmp_path / "a.tif")[0], image)


def test_tiles_come_row_by_row_and_may_reuse_an_array_or_reach_beyond_the_border(tmp_path):
    image, asked = some((40, 50)), []
    padded = np.pad(image, ((0, 24), (0, 14)), constant_values=99)
    again = np.empty((16, 16), np.uint8)

    def tile_of(row, column):
        asked.append((row, column))
        again[:] = tiles_of(padded)(row, column)
        return again

    rows = []
    write_mask_pyramid(
        tmp_path / "a.tif", (50, 40), (0.25, 0.5), tile_of, tile=16, progress=lambda *done: rows.append(done)
    )
    assert asked == [(row, column) for row in range(3) for column in range(4)]
    assert rows == [(1, 3), (2, 3), (3, 3)]
    np.testing.assert_array_equal(levels_of(tmp_path / "a.tif")[0], image)
    np.testing.assert_array_equal(levels_of(tmp_path / "a.tif")[2], write(tmp_path / "b.tif", image)[2])


# What readers see


def test_readers_agree(tmp_path):
    position_coded(tmp_path / "slide.tif", (301, 203), tile=16)
    slide = Slide(tmp_path / "slide.tif", um_px=(0.25, 0.5))
    image = some((203, 301))
    image[image > 3] = 1
    path = tmp_path / "ä 'b' \"c\".tif"
    levels = write(path, image, tile=64)
    assert [level.shape for level in levels] == [(203, 301), (102, 151), (51, 76), (26, 38)]
    with openslide.OpenSlide(path) as seen:
        assert seen.level_dimensions == ((301, 203), (151, 102), (76, 51), (38, 26))
        assert float(seen.properties["openslide.mpp-x"]) == 0.25
        assert float(seen.properties["openslide.mpp-y"]) == 0.5
        for level, px in enumerate(levels):
            rgba = np.asarray(seen.read_region((0, 0), level, px.shape[::-1]))
            np.testing.assert_array_equal(rgba[..., :3], np.repeat(px[..., None], 3, axis=2))
            assert (rgba[..., 3] == 255).all()
    ours = Slide(path)
    assert ours.um_px_xy_l0 == (0.25, 0.5)
    assert [level.downsample_xy for level in ours.levels] == [(1, 1), (2, 2), (4, 4), (8, 8)]
    truth = MaskTruth(path, slide, {0: 0, 1: 1, 2: 2, 3: 3})
    for level, px in enumerate(levels):
        np.testing.assert_array_equal(ours.thumbnail(level)[..., 0], px)
        np.testing.assert_array_equal(truth._read(truth._levels[level], (0, 0), px.shape), px)
        vips = pyvips.Image.new_from_file(str(path), page=level)
        np.testing.assert_array_equal(vips.numpy(), px)
    with tifffile.TiffFile(path) as tiff:
        assert [page.subfiletype for page in tiff.pages] == [0, 1, 1, 1]
        assert not tiff.is_bigtiff


@pytest.mark.parametrize("um_px_xy", [(0.243, 0.25), (0.2282, 0.2281), (8 * 0.243, 7.0), (1e-3, 9999.0), (1 / 3, 0.7)])
def test_the_spacing_is_exact_on_every_level(tmp_path, um_px_xy):
    write_mask_pyramid(tmp_path / "a.tif", (100, 51), um_px_xy, lambda *_: 0, tile=16)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        for level, page in enumerate(tiff.pages):
            assert page.tags["ResolutionUnit"].value == 3
            for tag, um in zip(("XResolution", "YResolution"), um_px_xy, strict=True):
                px, cm = page.tags[tag].value
                assert 10000 * cm / px == pytest.approx(um * 2**level, rel=2e-9)
    write_mask_pyramid(tmp_path / "a.tif", (100, 51), (0.243, 0.25), lambda *_: 0, tile=16)
    with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
        assert tiff.pages[0].tags["XResolution"].value == (10_000_000, 243)
        assert tiff.pages[0].tags["YResolution"].value == (40_000, 1)


def test_images_that_could_pass_4_gb_are_bigtiff(tmp_path):
    # A 1 : 64 image has few tiles: 1.1 Gpx with its levels; BigTIFF only beyond 4 GB, also when plain tiles take 10 MB.
    for side, big in ((40_000, False), (60_000, True)):
        write_mask_pyramid(tmp_path / "a.tif", (side, side + 1), (0.25, 0.25), lambda *_: 7, tile=1024)
        with tifffile.TiffFile(tmp_path / "a.tif") as tiff:
            assert tiff.is_bigtiff == big
            assert tiff.pages[0].shape == (side + 1, side)
        assert (Slide(tmp_path / "a.tif").read_level(0, (side - 3, side - 3), (2, 2)) == 7).all()


# Memory

LARGE = """
import numpy as np
from benchmarks.report import peak_resident_bytes
from slides.tiff.pyramid import write_mask_pyramid
noise = np.random.default_rng(0).integers(0, 200, (512, 512)).astype(np.uint8)
before = peak_resident_bytes()
def tile_of(row, column):
    return noise if (row * 7 + column) % 12 == 0 else 3
write_mask_pyramid({path!r}, (60_000, 60_000), (0.25, 0.25), tile_of)
print(before, peak_resident_bytes())
"""


def test_memory_stays_small_for_3_6_gigapixels(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", LARGE.format(path=str(tmp_path / "a.tif"))],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    before, peak = map(int, done.stdout.split())
    assert peak < 500 * 2**20
    # 60 tiles of level 1 of 256 KiB, half of that on each further one, and what waits to be encoded.
    assert peak - before < 150 * 2**20


# Failures


def test_nothing_is_left_when_a_tile_cannot_be_made(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"old")

    def tile_of(row, column):
        if (row, column) == (3, 2):
            raise RuntimeError("no such tile")
        return some((16, 16))

    with pytest.raises(RuntimeError, match="no such tile"):
        write_mask_pyramid(tmp_path / "a.tif", (100, 90), (0.25, 0.25), tile_of, tile=16)
    assert [path.name for path in tmp_path.iterdir()] == ["a.tif"]
    assert (tmp_path / "a.tif").read_bytes() == b"old"


@pytest.mark.parametrize("size", [(100, 90), (20, 20)])
def test_nothing_is_left_on_a_full_disk(tmp_path, monkeypatch, size):
    class Full:
        def __init__(self, file):
            self._file = file

        def __getattr__(self, name):
            return getattr(self._file, name)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self._file.close()

        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    real = pyramid.tempfile.TemporaryFile
    monkeypatch.setattr(pyramid.tempfile, "TemporaryFile", lambda **options: Full(real(**options)))
    with pytest.raises(OSError, match="No space left"):
        write_mask_pyramid(tmp_path / "a.tif", size, (0.25, 0.25), lambda *_: some((16, 16)), tile=16)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_when_the_file_itself_does_not_fit(tmp_path):
    """A limit on the size of files stands for the full disk: the kernel refuses the write."""
    code = (
        "import resource, signal, numpy as np\n"
        "from slides.tiff.pyramid import write_mask_pyramid\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))\n"
        "noise = np.random.default_rng(0).integers(0, 256, (64, 64)).astype(np.uint8)\n"
        f"write_mask_pyramid({str(tmp_path / 'a.tif')!r}, (640, 600), (0.25, 0.25), lambda *_: noise, tile=64)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert "OSError: [Errno 27] File too large" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (256, r"tile (row, column) (0, 0): value 256; allowed are 0 to 255"),
        (-1, "value -1"),
        (np.zeros((16, 15), np.uint8), "uint8 of shape (16, 15); wanted an int or uint8 of shape (16, 16)"),
        (np.zeros((16, 16), np.int32), "int32 of shape (16, 16)"),
        (None, "NoneType"),
    ],
)
def test_tiles_that_do_not_fit_are_refused(tmp_path, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        write_mask_pyramid(tmp_path / "a.tif", (100, 90), (0.25, 0.25), lambda *_: given, tile=16)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size_xy", "options", "message"),
    [
        ((0, 5), {}, "size (0, 5)"),
        ((9, 5), {"tile": 20}, "tile 20: TIFF wants a multiple of 16"),
        ((9, 5), {"um_px_xy": (0.25, 0.0)}, "spacing (0.25, 0.0)"),
        ((9, 5), {"um_px_xy": (float("nan"), 1.0)}, "spacing (nan, 1.0)"),
        ((9, 5), {"sizes_lv": [(8, 5)]}, "the first must be that of level 0, (9, 5)"),
        ((9, 5), {"sizes_lv": [(9, 5), (10, 2)]}, "larger than the one before"),
        ((9, 5), {"sizes_lv": [(9, 5), (4, 0)]}, "none may be empty"),
        ((99, 5), {"shrink": "median"}, "shrink 'median'"),
    ],
)
def test_impossible_pyramids_are_refused(tmp_path, size_xy, options, message):
    arguments = {"um_px_xy": (0.25, 0.25), "tile": 16} | options
    with pytest.raises(ValueError, match=re.escape(message)):
        write_mask_pyramid(tmp_path / "a.tif", size_xy, tile_of=lambda *_: 0, **arguments)
    assert list(tmp_path.iterdir()) == []
