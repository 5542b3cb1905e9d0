"""Reading: where every pixel came from, spacing, and files that are not what they seem."""

import multiprocessing
import pickle
import threading
from pathlib import Path

import numpy as np
import pytest

from slides.geometry import Window
from slides.reader import Slide
from slides.synthetic.demo import decode, position_coded, write_levels
from slides.tiff import backends, tiled_tiff
from tests.support.paths import SHARED

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")


@pytest.fixture(scope="module")
def exact(tmp_path_factory):
    """613 x 437 px; levels at 1, 2.5 and 7.3."""
    path = tmp_path_factory.mktemp("exact") / "exact.tif"
    position_coded(path, (613, 437), (1.0, 2.5, 7.3), tile=64)
    return Slide(path)


@pytest.fixture(scope="module")
def smooth(tmp_path_factory):
    """2628 x 1460 px, whole numbers of 7.3; linear ramps: red x / 16, green y / 16, blue (x + y) / 32."""
    path = tmp_path_factory.mktemp("smooth") / "smooth.tif"
    position_coded(path, (2628, 1460), (1.0, 2.5, 7.3), tile=64, smooth=True)
    return Slide(path)


def test_levels_and_spacing(exact):
    assert exact.id == "exact"
    assert exact.size_xy_l0 == (613, 437)
    assert [level.size_xy for level in exact.levels] == [(613, 437), (245, 174), (83, 59)]
    assert exact.um_px_xy_l0 == pytest.approx((0.25, 0.25), rel=1e-6)
    assert exact.levels[1].downsample_xy == pytest.approx((2.5, 2.5), rel=5e-3)


def test_level_0_pixels_are_copied_from_their_place(exact):
    image = exact.read(exact.window((300.0, 200.0), (50, 70), 0.25))
    x, y = decode(image)
    assert x[0].tolist() == list(range(265, 335))
    assert y[:, 0].tolist() == list(range(175, 225))
    assert (x == x[:1]).all()
    assert (y == y[:, :1]).all()


def test_window_is_snapped_to_whole_pixels_within_half_a_pixel(exact):
    window = exact.window((300.3, 200.6), (50, 71), 0.25 * (1 + 5e-5))
    assert window.step_xy_l0 == (1.0, 1.0)
    assert window.corner_xy_l0 == (265.0, 176.0)
    resampled = exact.window((300.3, 200.6), (50, 71), 0.25 * (1 + 5e-4))
    assert resampled.step_xy_l0 == pytest.approx((1.0005, 1.0005), rel=1e-6)
    assert resampled.corner_xy_l0 == (265.0, 176.0)


def test_a_level_within_the_tolerance_is_taken_as_it_is(exact):
    # Levels of 0.25, 0.625 (approximately) and 1.83 um/px.
    slide = exact.taking_levels(0.05)
    assert slide.step_xy_l0(0.26) == (1.0, 1.0)
    assert slide.step_xy_l0(0.24) == (1.0, 1.0)
    assert slide.step_xy_l0(0.64) == exact.levels[1].downsample_xy
    assert slide.step_xy_l0(0.28) == pytest.approx((1.12, 1.12), rel=1e-6)
    assert slide.spacing(0.26) == pytest.approx(0.25, rel=1e-6)
    window = slide.window((300.0, 200.0), (50, 70), 0.26)
    assert np.array_equal(slide.read(window), exact.read(exact.window((300.0, 200.0), (50, 70), 0.25)))
    assert exact.step_xy_l0(0.26) == pytest.approx((1.04, 1.04), rel=1e-6)


def test_a_level_is_only_taken_where_both_axes_are_within_the_tolerance(tmp_path):
    write_levels(tmp_path / "a.tif", [np.zeros((60, 80, 3), np.uint8)], tile=64)
    slide = Slide(tmp_path / "a.tif", um_px=(0.25, 0.27)).taking_levels(0.05)
    assert slide.step_xy_l0(0.26) == (1.0, 1.0)
    assert slide.step_xy_l0(0.25) == pytest.approx((1.0, 0.25 / 0.27))


def test_a_resampled_window_begins_on_a_whole_pixel_of_the_level_it_is_read_from(smooth):
    center, step = (700.3, 600.6), 2.7
    window = smooth.window(center, (50, 71), 0.25 * step)
    assert smooth.level_for(window.step_xy_l0).index == 1
    on_level = [corner / down for corner, down in zip(window.corner_xy_l0, smooth.levels[1].downsample_xy, strict=True)]
    assert on_level == pytest.approx([242.0, 213.0], abs=1e-9)  # 604.45 and 533.1 by 2.5
    assert window.center_xy_l0 == pytest.approx(center, abs=1.25 + 1e-9)


def test_coarse_level_is_copied_when_the_window_lies_on_it(exact):
    down_x, down_y = exact.levels[1].downsample_xy
    image = exact.read(Window((40 * down_x, 30 * down_y), (20, 33), (down_x, down_y)))
    assert np.array_equal(image, exact.read_level(1, (40, 30), (20, 33)))
    x, y = decode(image)
    # The level was sampled at (i + 0.5) * 2.5.
    assert x[0, :4].tolist() == [101, 103, 106, 108]
    assert y[:4, 0].tolist() == [76, 78, 81, 83]


def test_window_over_the_corner_is_white_outside(exact):
    image = exact.read(Window((-3.0, 430.0), (10, 8), (1.0, 1.0)))
    assert (image[:, :3] == 255).all()
    assert (image[7:] == 255).all()
    x, y = decode(image[:7, 3:])
    assert x[0].tolist() == [0, 1, 2, 3, 4]
    assert y[:, 0].tolist() == [430, 431, 432, 433, 434, 435, 436]


def test_window_beyond_the_slide_is_white(exact):
    assert (exact.read(Window((5000.0, -9000.0), (5, 7), (1.0, 1.0))) == 255).all()
    assert (exact.read(Window((5000.0, -9000.0), (5, 7), (1.3, 1.3))) == 255).all()
    assert exact.read(Window((5000.0, -9000.0), (5, 7), (1.3, 1.3))).shape == (5, 7, 3)


@pytest.mark.parametrize("step", [0.6, 1.0288, 1.9, 2.7, 5.0, 9.5])
def test_resampled_pixels_show_the_code_of_their_own_center(smooth, step):
    window = Window((333.37, 211.83), (60, 90), (step, step))
    image = smooth.read(window).astype(float)
    x = 333.37 + (np.arange(90) + 0.5) * step
    y = 211.83 + (np.arange(60) + 0.5) * step
    # Stored ramps are rounded to 1 of 255, that is 16 level-0 px; means over a line average this out. A shift by half
    # an output pixel of 5 level-0 px would show as 0.16.
    assert (image[..., 0] - x / 16).mean() == pytest.approx(0, abs=0.05)
    assert (image[..., 1] - (y / 16)[:, None]).mean() == pytest.approx(0, abs=0.05)
    assert np.abs(image[..., 0] - x / 16).max() < 1.2
    assert np.abs(image[..., 1] - (y / 16)[:, None]).max() < 1.2


def test_nearest_finer_level_is_taken(exact):
    chosen = [exact.level_for((step, step)).index for step in (0.5, 1.0, 2.49, 2.52, 7.2, 7.5, 80.0)]
    assert chosen == [0, 0, 0, 1, 1, 2, 2]


def test_bands_of_coarse_windows_equal_one_read(exact, monkeypatch):
    window = Window((-30.5, 11.25), (40, 60), (9.7, 9.7))
    whole = exact.read(window)
    monkeypatch.setattr("slides.resample.BAND_PX", 2000)
    assert np.abs(whole.astype(int) - exact.read(window)).max() <= 1


def test_resampling_agrees_with_an_area_mean_on_smooth_tissue(tmp_path):
    y, x = np.mgrid[:240, :320]
    waves = np.uint8(128 + 60 * np.sin(x / 25) + 50 * np.cos(y / 31))
    write_levels(tmp_path / "waves.tif", [np.stack([waves] * 3, axis=2)], tile=64)
    image = Slide(tmp_path / "waves.tif").read(Window((40.0, 30.0), (40, 60), (4.0, 4.0)))
    mean = waves[30:190, 40:280].reshape(40, 4, 60, 4).mean(axis=(1, 3))
    assert np.abs(image[..., 0] - mean).max() < 1.6


def test_thumbnail_is_bounded(exact, monkeypatch):
    assert exact.thumbnail(2).shape == (59, 83, 3)
    monkeypatch.setattr("slides.reader.THUMBNAIL_PX", 83 * 59)
    assert exact.thumbnail(2).shape == (59, 83, 3)
    with pytest.raises(ValueError, match=r"levels that fit: \[2\]"):
        exact.thumbnail(1)


def _codes(slide):
    return decode(slide.read(Window((17.0, 23.0), (2, 3), (1.0, 1.0))))[0].tolist()


def test_slide_is_picklable_and_light(exact):
    data = pickle.dumps(exact)
    assert len(data) < 4000
    assert _codes(pickle.loads(data)) == [[17, 18, 19], [17, 18, 19]]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_forked_and_spawned_processes_read(exact, method):
    assert _codes(exact) == [[17, 18, 19], [17, 18, 19]]
    with multiprocessing.get_context(method).Pool(2) as pool:
        results = pool.map_async(_codes, [exact] * 6).get(timeout=120)
    assert results == [[[17, 18, 19], [17, 18, 19]]] * 6


def _opens_its_own(slide):
    inherited = backends._handles.open.get(slide._key)
    return inherited is not None and backends.handle(slide._key, slide._open) is not inherited


def test_forked_processes_leave_the_files_of_their_parent_alone(exact):
    exact.thumbnail(2)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        assert pool.apply_async(_opens_its_own, (exact,)).get(timeout=60) is True


def test_threads_read_the_same_pixels(exact):
    windows = [exact.window((60.0 + 40 * i, 70.0 + 25 * i), (64, 96), 0.41) for i in range(8)]
    expected = [exact.read(window) for window in windows]
    wrong = []

    def work():
        wrong.extend(
            i for _ in range(5) for i, window in enumerate(windows) if (exact.read(window) != expected[i]).any()
        )

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(expected) == 8


def test_open_files_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(backends, "MAX_HANDLES", 3)
    slides = []
    for number in range(6):
        position_coded(tmp_path / f"{number}.tif", (40 + number, 50), tile=16)
        slides.append(Slide(tmp_path / f"{number}.tif"))
    sizes = [slide.thumbnail(0).shape[1] for slide in slides + slides]
    assert sizes == [40, 41, 42, 43, 44, 45] * 2
    assert len(backends._handles.open) == 3
    links = [Path(link).resolve() for link in Path("/proc/self/fd").iterdir()]
    assert sum(link.parent == tmp_path for link in links) <= 3


def test_decoded_tiles_that_handles_keep_are_bounded(tmp_path, monkeypatch):
    tile = 64 * 64 * 3
    monkeypatch.setattr(tiled_tiff, "readable", lambda _: False)  # libvips, whose handles keep tiles
    monkeypatch.setattr(backends, "MAX_HELD_BYTES", 8 * tile)
    monkeypatch.setattr(backends, "MAX_HELD_BYTES_PER_HANDLE", 5 * tile)
    slides = []
    for number in range(3):
        position_coded(tmp_path / f"{number}.tif", (640, 320), tile=64)
        slides.append(Slide(tmp_path / f"{number}.tif"))
    window = Window((70.0, 70.0), (60, 130), (1.0, 1.0))
    assert _held(slides[0]) == tile
    slides[0].read(window)  # 3 x 2 tiles
    assert _held(slides[0]) == 7 * tile
    slides[0].read(window)
    assert _held(slides[0]) == 6 * tile
    slides[1].read(window)
    slides[2].read(window)
    assert len(backends._handles.open) <= 2
    assert decode(slides[0].read(window))[0][0, 0] == 70


def _held(slide):
    return backends.handle(slide._key, slide._open).held_bytes


def test_a_replaced_file_is_read_again(tmp_path):
    path = tmp_path / "a.tif"
    values = []
    for value in (11, 22):
        write_levels(path, [np.full((40 + value, 50, 3), value, np.uint8)], tile=16)
        values.append(int(Slide(path).thumbnail(0).max()))
    assert values == [11, 22]


@needs_data
@pytest.mark.parametrize(("left", "top"), [(3800, 2600), (2800, 2600)])
def test_level_1_of_a_svs_lies_on_level_0_far_from_the_origin(left, top):
    import cv2

    slide = Slide(SHARED / "slides" / "tcga-cr-7395-01a-01-ts1.svs", um_px=0.25)
    assert slide.levels[1].downsample_xy == (2.0, 2.0)
    # A factor of 2.0005 would move level 1 by 0.3 to 0.4 of its px here. OpenSlide's own offset, which `read` takes
    # back, is 0.15 along x (second place) and 0.17 along y.
    near = np.float32(slide.read(Window((float(left), float(top)), (256, 256), (2.0, 2.0))).mean(axis=2))
    fine = slide.read_level(0, (left, top), (512, 512)).mean(axis=2).reshape(256, 2, 256, 2)
    (x, y), peak = cv2.phaseCorrelate(near, np.float32(fine.mean(axis=(1, 3))), cv2.createHanningWindow((256, 256), 5))
    assert peak > 0.5
    assert abs(x) < 0.1
    assert abs(y) < 0.1


@needs_data
def test_libvips_and_openslide_show_the_same_pixels():
    import openslide

    path = SHARED / "c16mosaic" / "train" / "images" / "tumor_901.tif"
    ours = Slide(path).read_level(0, (2200, 1500), (300, 400))
    with openslide.OpenSlide(str(path)) as other:
        theirs = np.asarray(other.read_region((2200, 1500), 0, (400, 300)))[..., :3]
    assert ours.std() > 20
    assert np.abs(ours.astype(int) - theirs).max() <= 2
