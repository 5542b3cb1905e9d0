import numpy as np
import pytest

from inference.blending import Blend, Weights, hann
from inference.predict import WindowOptions, eightfold, predict_run
from inference.reading import read_window
from inference.scratch import Cells, RunWriter, plane_names, planes_of
from inference.windows import MapGrid, Run, TissueCells, in_stripes, map_grid, share_out, with_tissue
from slides.reader import Slide, SlideError
from slides.synthetic.demo import position_coded, write_levels

# --- windows ----------------------------------------------------------------------------------------------------------


def slide_of(tmp_path, size_xy=(300, 200), um_px=0.5, **how):
    path = tmp_path / "slide.tif"
    position_coded(path, size_xy, um_px=um_px, **how)
    return Slide(path)


def test_map_grid_of_a_slide(tmp_path):
    grid = map_grid(slide_of(tmp_path), img_size=64, um_px=1.0, overlap=0.25)
    assert grid == MapGrid((150, 100), (2.0, 2.0), 64, 48)
    # 64 px and two strides of 48 reach px 160 of 150; 64 and one reach 112 of 100.
    assert grid.hw == (2, 3)
    assert grid.cells_hw == (3, 4)
    assert grid.reach == 2
    window = grid.window(1, 2)
    assert (window.corner_xy_l0, window.hw_out, window.step_xy_l0) == ((192.0, 96.0), (64, 64), (2.0, 2.0))
    assert grid.cell_hw(2, 3) == (4, 6)


def test_windows_begin_at_multiples_of_the_coarsest_stride(tmp_path):
    slide = slide_of(tmp_path, (3000, 2000))
    assert map_grid(slide, 512, 0.5, 0.25).stride == 384
    assert map_grid(slide, 352, 0.5, 0.25).stride == 256
    assert map_grid(slide, 512, 0.5, 0.0).stride == 512


def test_a_map_lies_on_the_px_of_the_level_that_has_its_spacing(tmp_path):
    slide = slide_of(tmp_path, (301, 199), um_px=0.25, downsamples=(1.0, 2.0))
    grid = map_grid(slide, 64, 0.50001, 0.5)
    assert grid.step_xy_l0 == (2.0, 2.0)
    assert grid.size_xy == (151, 100)


def test_windows_with_tissue_cover_every_cell_of_it():
    grid = MapGrid((150, 100), (2.0, 2.0), 64, 48)
    tissue_HW = np.zeros((20, 30), bool)  # 10 level-0 px a cell, 5 map px
    tissue_HW[13, 12] = True  # x 60 to 65, y 65 to 70 of the map: beyond the first window's 64 px in both, in x in part
    assert with_tissue(grid, TissueCells(tissue_HW, 10)) == [(1, 0), (1, 1)]
    assert with_tissue(grid, TissueCells(np.zeros((20, 30), bool), 10)) == []
    assert len(with_tissue(grid, None)) == 6


def test_windows_are_shared_out_evenly_and_in_order():
    assert share_out([[0], [], [0], [0]], [5, 0, 3, 4], 3) == [
        [Run(0, 0, 4)],
        [Run(0, 4, 5), Run(1, 0, 0), Run(2, 0, 3)],
        [Run(3, 0, 4)],
    ]
    assert share_out([[0]], [2], 4) == [[], [Run(0, 0, 1)], [], [Run(0, 1, 2)]]
    assert share_out([[]], [0], 2) == [[Run(0, 0, 0)], []]
    assert share_out([[0, 4]], [6], 2) == [[Run(0, 0, 3)], [Run(0, 3, 4), Run(0, 4, 6)]]


def test_a_wide_map_is_done_in_stripes(monkeypatch):
    grid = MapGrid((400, 100), (1.0, 1.0), 64, 48)
    monkeypatch.setattr("inference.windows.LIVE_BYTES", 4 * 64 * 150)  # three strides of 48 px
    windows, begins = in_stripes([(0, 0), (0, 2), (0, 3), (0, 7), (1, 1), (1, 3)], grid, 1)
    assert windows == [(0, 0), (0, 2), (1, 1), (0, 3), (1, 3), (0, 7)]
    assert begins == [0, 3, 5]
    assert in_stripes([], grid, 1) == ([], [])


# --- blending ---------------------------------------------------------------------------------------------------------


def test_hann_of_half_overlap_sums_to_one():
    weights = hann(8)
    np.testing.assert_allclose(weights[:4] + weights[4:], 1, atol=1e-7)
    assert weights[0] > 0


def test_two_windows_are_weighted_by_their_distance_from_the_border():
    grid = MapGrid((6, 4), (1.0, 1.0), 4, 2)
    weights = Weights(grid, [(0, 0), (0, 1)])
    blend = Blend(weights, 1, 0, 2)
    blend.add(0, 0, np.full((1, 4, 4), 0.2, np.float32))
    blend.add(0, 1, np.full((1, 4, 4), 0.8, np.float32))
    p = {(s.row, s.column): weights.probabilities(s.row, s.column, s.sums_PHW) for s in blend.done()}
    # sin^2 of 22.5 and 67.5 degrees: 0.1464 and 0.8536
    np.testing.assert_allclose(p[0, 1][0, 0], [0.8536 * 0.2 + 0.1464 * 0.8, 0.1464 * 0.2 + 0.8536 * 0.8], atol=1e-4)
    np.testing.assert_allclose(p[0, 0][0], 0.2, atol=1e-6)
    np.testing.assert_allclose(p[1, 2][0], 0.8, atol=1e-6)


def test_a_cell_is_complete_when_the_run_has_all_windows_over_it():
    grid = MapGrid((8, 8), (1.0, 1.0), 4, 2)
    windows = [(r, c) for r in range(3) for c in range(3)]
    blend = Blend(Weights(grid, windows), 1, 0, 4)  # the first row and one window of the second
    for row, column in windows[:3]:
        blend.add(row, column, np.ones((1, 4, 4), np.float32))
    done = {(s.row, s.column): s.complete for s in blend.done(before_row=1)}
    assert done == {(0, 0): True, (0, 1): True, (0, 2): True, (0, 3): True}
    blend.add(1, 0, np.ones((1, 4, 4), np.float32))
    rest = {(s.row, s.column): s.complete for s in blend.done()}
    assert rest == {(1, 0): True, (1, 1): False, (1, 2): False, (1, 3): False, (2, 0): False, (2, 1): False}


def test_maps_as_bytes():
    p_PHW = np.array([[[0.5, 0.2]], [[0.2, 0.5]]], np.float32)
    planes = planes_of(p_PHW)
    assert plane_names(3) == ["probability", "probability_1", "probability_2", "label"]
    assert plane_names(2) == ["probability", "label"]
    assert planes["probability"].tolist() == [[179, 179]]  # 178.5 up
    assert planes["probability_2"].tolist() == [[51, 128]]
    assert planes["label"].tolist() == [[1, 2]]
    assert planes_of(np.full((1, 1, 1), 0.5, np.float32))["label"].tolist() == [[0]]


# --- whole slides -----------------------------------------------------------------------------------------------------


def red(image_BHWC):
    """The network that answers with a px' own red."""
    p_BHW = image_BHWC[..., 0].astype(np.float32) / 255
    return np.stack([1 - p_BHW, p_BHW], axis=3)


def blurred(radius):
    """A network that sees `radius` px around, and black beyond its window: the mean of a square."""

    def call(image_BHWC):
        p_BHW = np.pad(image_BHWC[..., 0].astype(np.float64) / 255, ((0, 0), (radius, radius), (radius, radius)))
        size = 2 * radius + 1
        for axis in (1, 2):
            p_BHW = np.lib.stride_tricks.sliding_window_view(p_BHW, size, axis).mean(axis=-1)
        return np.stack([1 - p_BHW, p_BHW], axis=3).astype(np.float32)

    return call


def predicted(slide, folder, network, img_size, overlap, ranks=1, how=None, tissue=None, um_px=None):
    """The maps of a slide, by name, predicted by this many ranks."""
    grid = map_grid(slide, img_size, um_px or slide.um_px_xy_l0[0], overlap)
    how = how or WindowOptions(batch_size=2, classes=2)
    windows, begins = in_stripes(with_tissue(grid, tissue), grid, how.classes - 1)
    weights = Weights(grid, windows)
    shares = share_out([begins], [len(windows)], ranks)
    counted = []
    for run in [run for share in shares for run in share]:
        predict_run(slide, weights, windows, run, network, how, folder, counted.append)
    assert sum(counted) == len(windows)
    cells = Cells(folder, [run.first for share in shares for run in share], weights, how.classes - 1)
    width, height = grid.size_xy
    maps = {}
    for plane in plane_names(how.classes):
        maps[plane] = np.zeros((height, width), np.uint8)
        for row in range(-(-height // 50)):
            for column in range(-(-width // 50)):
                part = cells.tile(row, column, 50, plane)
                maps[plane][row * 50 : row * 50 + 50, column * 50 : column * 50 + 50] = part
    cells.close()
    return maps, cells.infos


@pytest.mark.parametrize(
    ("img_size", "overlap", "ranks"), [(64, 0.25, 1), (64, 0.5, 3), (96, 0.0, 2), (48, 0.7, 5), (400, 0.25, 1)]
)
def test_every_px_is_at_its_place(img_size, overlap, ranks, tmp_path):
    """A network that copies gives back the slide, px by px, however windows lie and whichever rank computes them."""
    slide = slide_of(tmp_path, (301, 199))
    maps, _ = predicted(slide, tmp_path / "s", red, img_size, overlap, ranks)
    truth_HW = slide.read_level(0, (0, 0), (199, 301))[..., 0]
    np.testing.assert_array_equal(maps["probability"], truth_HW)
    np.testing.assert_array_equal(maps["label"], truth_HW > 127)


@pytest.mark.parametrize("ranks", [1, 3])
def test_stripes_change_nothing(ranks, tmp_path, monkeypatch):
    slide = slide_of(tmp_path, (301, 199))
    monkeypatch.setattr("inference.windows.LIVE_BYTES", 4 * 64 * 100)
    maps, infos = predicted(slide, tmp_path / "s", red, 64, 0.25, ranks)
    assert len(infos) >= 3
    np.testing.assert_array_equal(maps["probability"], slide.read_level(0, (0, 0), (199, 301))[..., 0])


@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_the_number_of_ranks_changes_nothing_but_the_order_of_sums(ranks, tmp_path):
    """Cells of two ranks are summed in another order: an error of some 1e-7, one step of 1/255 where it rounds."""
    slide = slide_of(tmp_path, (301, 199), smooth=True)
    alone, _ = predicted(slide, tmp_path / "one", blurred(5), 64, 0.5)
    shared, _ = predicted(slide, tmp_path / "more", blurred(5), 64, 0.5, ranks)
    off = np.abs(alone["probability"].astype(int) - shared["probability"])
    assert off.max() <= 1
    assert np.count_nonzero(off) <= 10


@pytest.mark.parametrize(("img_size", "overlap"), [(64, 0.5), (100, 0.25)])
def test_window_size_matters_only_within_the_weights_of_the_borders(img_size, overlap, tmp_path):
    """Where a window sees all that the network looks at, its answer is that of a window of any size.

    So the blended answer differs from that of one window over everything by at most the share of the others' weights.
    """
    radius = 4
    slide = slide_of(tmp_path, (301, 199), smooth=True)
    grid = map_grid(slide, img_size, 0.5, overlap)
    whole, _ = predicted(slide, tmp_path / "whole", blurred(radius), 512, 0.0)
    parts, _ = predicted(slide, tmp_path / "parts", blurred(radius), img_size, overlap)
    weight = hann(img_size)
    inner = weight.copy()
    inner[:radius] = inner[-radius:] = 0
    every, inside = np.zeros((199, 301)), np.zeros((199, 301))
    for row, column in with_tissue(grid, None):
        y, x = row * grid.stride, column * grid.stride
        part = every[y : y + img_size, x : x + img_size]
        part += np.outer(weight, weight)[: part.shape[0], : part.shape[1]]
        part = inside[y : y + img_size, x : x + img_size]
        part += np.outer(inner, inner)[: part.shape[0], : part.shape[1]]
    bound_HW = 1 - inside / every
    away = np.s_[radius:-radius, radius:-radius]  # the slide's own border: white outside it for small windows
    off_HW = np.abs(whole["probability"].astype(int) - parts["probability"])[away] / 255
    assert bound_HW[away].max() < 0.2
    assert (off_HW <= bound_HW[away] + 1 / 255).all()
    assert np.median(bound_HW[away]) < 0.03


def test_only_tissue_is_predicted(tmp_path):
    slide = slide_of(tmp_path, (301, 199))
    tissue_HW = np.zeros((20, 31), bool)
    tissue_HW[12, 22] = True  # x 220 to 230, y 120 to 130
    maps, infos = predicted(slide, tmp_path / "s", red, 64, 0.25, tissue=TissueCells(tissue_HW, 10))
    grid = map_grid(slide, 64, 0.5, 0.25)
    windows = with_tissue(grid, TissueCells(tissue_HW, 10))
    expected_HW = np.zeros((199, 301), np.uint8)
    image_HW = slide.read_level(0, (0, 0), (199, 301))[..., 0]
    for row, column in windows:
        y, x = row * 48, column * 48
        expected_HW[y : y + 64, x : x + 64] = image_HW[y : y + 64, x : x + 64]
    assert windows == [(2, 4)]
    assert infos[0]["windows"] == 1
    np.testing.assert_array_equal(maps["probability"], expected_HW)
    assert maps["probability"].any()


def test_a_slide_without_tissue(tmp_path):
    slide = slide_of(tmp_path, (301, 199))
    maps, infos = predicted(slide, tmp_path / "s", red, 64, 0.25, tissue=TissueCells(np.zeros((20, 31), bool), 10))
    assert not maps["probability"].any()
    assert infos[0]["windows"] == 0


def test_three_classes(tmp_path):
    slide = slide_of(tmp_path, (301, 199))

    def network(image_BHWC):
        p = image_BHWC[..., :2].astype(np.float32) / 510
        return np.stack([1 - p.sum(axis=3), p[..., 0], p[..., 1]], axis=3)

    maps, _ = predicted(slide, tmp_path / "s", network, 64, 0.25, 2, WindowOptions(3, 3))
    image_HWC = slide.read_level(0, (0, 0), (199, 301)).astype(int)
    assert np.abs(maps["probability_2"] - image_HWC[..., 1] / 2).max() <= 0.501
    assert np.abs(maps["probability"] - image_HWC[..., :2].sum(axis=2) / 2).max() <= 0.501
    p_KHW = np.stack([510 - image_HWC[..., 0] - image_HWC[..., 1], image_HWC[..., 0], image_HWC[..., 1]])
    clear = np.sort(p_KHW, axis=0)[-1] > np.sort(p_KHW, axis=0)[-2]
    np.testing.assert_array_equal(maps["label"][clear], p_KHW.argmax(axis=0)[clear])


def test_the_mean_over_eight_orientations(tmp_path):
    """A network that shifts its answer by one px is unsymmetric: the mean is that of the shifts in all directions."""

    def shifted(image_BHWC):
        p = np.roll(image_BHWC[..., 0], 1, axis=2).astype(np.float32) / 255
        return np.stack([1 - p, p], axis=3)

    image_BHWC = np.zeros((1, 5, 5, 3), np.uint8)
    image_BHWC[0, 2, 1] = 255
    p_HW = eightfold(shifted)(image_BHWC)[0, ..., 1]
    expected_HW = np.zeros((5, 5))
    expected_HW[2, 2] = expected_HW[2, 0] = expected_HW[1, 1] = expected_HW[3, 1] = 0.25
    np.testing.assert_allclose(p_HW, expected_HW, atol=1e-6)


def test_a_context_view_has_the_same_center(tmp_path):
    slide = slide_of(tmp_path, (400, 300), smooth=True)
    grid = map_grid(slide, 64, 0.5, 0.25)
    image_HWC, fault = read_window(slide, grid.window(1, 1), 1.0)
    assert image_HWC.shape == (64, 64, 6)
    assert fault == ""
    # Red is x / 16: linear, so both views have one mean.
    assert image_HWC[..., 0].mean() == pytest.approx(image_HWC[..., 3].mean(), abs=0.3)


# --- what goes wrong --------------------------------------------------------------------------------------------------


def with_a_damaged_tile(tmp_path):
    """A slide of one value whose tile at (128, 0) is damaged."""
    path = tmp_path / "slide.tif"
    rng = np.random.default_rng(0)
    write_levels(path, [rng.integers(100, 110, (256, 384, 3)).astype(np.uint8)], um_px=0.5)
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        offset = tiff.pages[0].dataoffsets[1]
    with path.open("r+b") as file:
        file.seek(offset + 20)
        file.write(b"\0" * 500)
    return Slide(path)


def test_a_damaged_tile_is_filled_and_counted(tmp_path):
    slide = with_a_damaged_tile(tmp_path)
    maps, infos = predicted(slide, tmp_path / "s", red, 128, 0.0)
    assert [info["windows"] for info in infos] == [6]
    assert len(infos[0]["faults"]) == 1
    assert "slide.tif" in infos[0]["faults"][0]
    assert (maps["probability"][:128, 128:256] == 255).all()
    assert maps["probability"][:128, :128].max() < 110
    assert maps["probability"][128:].max() < 110


def test_a_damaged_tile_is_an_error_when_asked_for(tmp_path):
    slide = with_a_damaged_tile(tmp_path)
    with pytest.raises(SlideError, match=r"slide\.tif"):
        predicted(slide, tmp_path / "s", red, 128, 0.0, how=WindowOptions(2, 2, strict=True))
    assert list((tmp_path / "s").iterdir()) == []


def test_only_what_is_damaged_of_a_window_is_filled(tmp_path):
    slide = with_a_damaged_tile(tmp_path)
    image_HWC, fault = read_window(slide, map_grid(slide, 256, 0.5, 0.0).window(0, 0), None)
    assert fault
    assert (image_HWC[:128, 128:256] == 255).all()
    assert image_HWC[:128, :128].max() < 110
    assert image_HWC[128:].max() < 110


def test_a_full_disk_leaves_nothing(tmp_path, monkeypatch):
    slide = slide_of(tmp_path)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RunWriter, "add", full)
    with pytest.raises(OSError, match="No space left"):
        predicted(slide, tmp_path / "s", red, 64, 0.25)
    assert list((tmp_path / "s").iterdir()) == []


def test_a_run_that_is_cut_short_is_noticed(tmp_path):
    slide = slide_of(tmp_path)
    predicted(slide, tmp_path / "s", red, 64, 0.25)
    path = next((tmp_path / "s").iterdir())
    path.write_bytes(path.read_bytes()[:-30])
    grid = map_grid(slide, 64, 0.5, 0.25)
    with pytest.raises(OSError, match=r"run-000000000\.zip"):
        Cells(tmp_path / "s", [0], Weights(grid, with_tissue(grid, None)), 1)
