"""Resampling: places to a small fraction of a px, no aliasing, near an exact bicubic, the same in every window."""

import numpy as np
import pytest

from slides.geometry import Window
from slides.reader import Slide
from slides.resample import resampled
from slides.synthetic.demo import write_levels

SCALES = [0.7, 1.0288, 1.19, 1.53, 2.06, 3.3, 4.57, 9.7]


def fetch_from(level_HWC):
    """Reads px of an array, white outside."""

    def fetch(corner_xy, hw):
        (x, y), (height, width) = corner_xy, hw
        px = np.full((height, width, 3), 255, np.uint8)
        y0, y1, x0, x1 = max(y, 0), min(y + height, level_HWC.shape[0]), max(x, 0), min(x + width, level_HWC.shape[1])
        if y0 < y1 and x0 < x1:
            px[y0 - y : y1 - y, x0 - x : x1 - x] = level_HWC[y0:y1, x0:x1]
        return px, 0.0, 0.0

    return fetch


def exact(level_HWC, corner_xy, hw, scale):
    """Bicubic (Keys, a = -0.5), widened by a reduction, in doubles."""
    image = level_HWC.astype(np.float64)
    for axis, (corner, count) in enumerate(zip(reversed(corner_xy), hw, strict=True)):
        centers = corner + (np.arange(count) + 0.5) * scale - 0.5
        away = np.abs(np.arange(image.shape[axis]) - centers[:, None]) / max(scale, 1)
        near = 1.5 * away**3 - 2.5 * away**2 + 1
        weights = np.where(away < 1, near, np.where(away < 2, -0.5 * away**3 + 2.5 * away**2 - 4 * away + 2, 0))
        weights /= weights.sum(axis=1, keepdims=True)
        image = np.moveaxis(np.tensordot(weights, image, (1, axis)), 0, axis)
    return image.clip(0, 255)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("corner", [(20.0, 31.0), (20.37, 31.71)])
def test_a_steep_ramp_shows_its_place_to_a_fiftieth_of_a_px(scale, corner):
    x, y = np.arange(500), np.arange(430)[:, None]
    # Triangle waves of 60 px, 4 a px: steep, and inside 8 bits.
    wave = np.stack(np.broadcast_arrays(4 * np.abs(x % 120 - 60), 4 * np.abs(y % 120 - 60), 0), axis=2).astype(np.uint8)
    hw = int(370 / scale), int(430 / scale)
    image = resampled(fetch_from(wave), corner, hw, (scale, scale)).astype(float)
    checked = 0
    for channel, count, start in ((0, hw[1], corner[0]), (1, hw[0], corner[1])):
        place = start + (np.arange(count) + 0.5) * scale - 0.5
        line = image[:, :, 0].mean(axis=0) if channel == 0 else image[:, :, 1].mean(axis=1)
        # Away from the waves' crests, where a kernel rounds them off.
        straight = np.abs(place % 60 - 30) < 27 - 3 * scale if scale < 9 else np.abs(place % 60 - 30) < 9
        error_px = (line - 4 * np.abs(place % 120 - 60))[straight] / 4 * np.sign(place[straight] % 120 - 60)
        assert abs(error_px.mean()) < 0.02
        assert np.abs(error_px).max() < 0.26  # 1 of 255
        checked += error_px.size
    assert checked > 10


@pytest.mark.parametrize(("scale", "most"), [(2.0, 0.15), (2.06, 0.14), (3.3, 0.1), (4.5, 0.12), (7.0, 0.12)])
def test_a_zone_plate_leaves_no_false_rings_where_it_is_finer_than_the_output(scale, most):
    y, x = np.mgrid[:900, :900] - 450.0
    radius = np.hypot(x, y)
    # Frequency radius / 900 per px: up to the finest at the edge.
    rings = np.round(127.5 + 127.5 * np.cos(np.pi * radius**2 / 900)).astype(np.uint8)
    size = int(860 / scale)
    image = resampled(fetch_from(np.stack([rings] * 3, 2)), (20.3, 20.6), (size, size), (scale, scale))[..., 0]
    at_y, at_x = np.meshgrid(*(20.6 - 450 + (np.arange(size) + 0.5) * scale,) * 2, indexing="ij")
    frequency = np.hypot(at_x, at_y) / 900
    false = image[(frequency > 1.3 * 0.5 / scale) & (frequency < 0.47)]
    kept = image[frequency < 0.5 * 0.5 / scale]
    contrast = 127.5 / np.sqrt(2)
    assert false.size > 500
    assert false.std() / contrast < most  # single px of a level: 1
    assert kept.std() / contrast > 0.9


@pytest.mark.parametrize(("scale", "least_db"), [(1.0288, 43), (1.19, 43), (1.5, 43), (2.0, 46), (3.3, 44), (5.3, 38)])
def test_pixels_are_near_those_of_an_exact_bicubic(scale, least_db):
    rng = np.random.default_rng(3)
    spectrum = np.fft.rfft2(rng.normal(size=(600, 700)))
    frequency = np.hypot(np.fft.fftfreq(600)[:, None], np.fft.rfftfreq(700)) + 1e-3
    # Amplitudes as of photographs, 1 / frequency, up to a lens' limit.
    texture = np.fft.irfft2(spectrum / frequency * np.exp(-((frequency / 0.25) ** 2)), (600, 700))
    level = np.stack([(128 + 50 * texture / texture.std()).clip(0, 255).astype(np.uint8)] * 3, axis=2)
    size = int(500 / scale)
    image = resampled(fetch_from(level), (33.0, 41.0), (size, size), (scale, scale))
    difference = image - exact(level, (33.0, 41.0), (size, size), scale)
    assert 20 * np.log10(255 / np.sqrt((difference**2).mean())) > least_db


@pytest.mark.parametrize("scale", SCALES)
def test_windows_of_one_grid_agree_whatever_they_begin_with(tmp_path, scale):
    noise = np.random.default_rng(5).integers(0, 256, (331, 437, 3), dtype=np.uint8)
    write_levels(tmp_path / "noise.tif", [noise], tile=64)
    slide = Slide(tmp_path / "noise.tif")
    height, width = int(320 / scale), int(420 / scale)
    whole = slide.read(Window((-20.3, -9.7), (height, width), (scale, scale)))
    row, column = height // 4, width // 5
    corner = -20.3 + column * scale, -9.7 + row * scale
    cut = slide.read(Window(corner, (height // 2, width // 3), (scale, scale)))
    assert np.array_equal(whole[row : row + height // 2, column : column + width // 3], cut)


@pytest.mark.parametrize("scale", SCALES)
def test_parts_of_a_large_window_equal_one_read(scale, monkeypatch):
    noise = np.random.default_rng(6).integers(0, 256, (400, 500, 3), dtype=np.uint8)
    hw = int(380 / scale), int(480 / scale)
    at_once = resampled(fetch_from(noise), (3.3, 4.4), hw, (scale, scale))
    read = []

    def fetch(corner_xy, hw):
        read.append(corner_xy)
        return fetch_from(noise)(corner_xy, hw)

    monkeypatch.setattr("slides.resample.SIDE_PX", 300)
    monkeypatch.setattr("slides.resample.BAND_PX", 300 * 120)
    assert np.array_equal(resampled(fetch, (3.3, 4.4), hw, (scale, scale)), at_once)
    assert len(read) > 3


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("value", [0, 1, 254, 255])
def test_one_color_stays_itself(scale, value):
    level = np.full((300, 300, 3), value, np.uint8)
    for corner in ((60.0, 60.0), (60.4, 60.7)):
        image = resampled(fetch_from(level), corner, (int(150 / scale), int(170 / scale)), (scale, scale))
        assert (image == value).all()


def test_steps_may_differ_along_x_and_y():
    level = np.zeros((300, 400, 3), np.uint8)
    level[..., 0], level[..., 1] = np.arange(400) // 2, (np.arange(300) // 2)[:, None]
    image = resampled(fetch_from(level), (40.25, 30.5), (80, 50), (5.3, 2.1)).astype(float)
    # Mean of x // 2 is x / 2 - 1 / 4.
    assert np.abs(image[..., 0] - ((40.25 + (np.arange(50) + 0.5) * 5.3 - 0.5) / 2 - 0.25)).max() < 0.6
    assert np.abs(image[..., 1] - ((30.5 + (np.arange(80) + 0.5) * 2.1 - 0.5) / 2 - 0.25)[:, None]).max() < 0.6


def test_a_window_on_whole_px_equals_one_beside_it():
    y, x = np.mgrid[:400, :400]
    level = np.stack([128 + 60 * np.sin(x / 9) + 50 * np.cos(y / 7)] * 3, axis=2).astype(np.uint8)
    on = resampled(fetch_from(level), (33.0, 41.0), (300, 310), (1.0288, 1.0288)).astype(int)
    beside = resampled(fetch_from(level), (33.001, 41.001), (300, 310), (1.0288, 1.0288))
    assert np.abs(on - beside).max() <= 1


def test_a_window_read_before_is_not_overwritten(tmp_path):
    noise = np.random.default_rng(5).integers(0, 256, (331, 437, 3), dtype=np.uint8)
    write_levels(tmp_path / "noise.tif", [noise], tile=64)
    slide = Slide(tmp_path / "noise.tif")
    for window in (Window((7.0, 9.0), (90, 80), (1.03, 1.03)), Window((7.4, 9.1), (90, 80), (1.03, 1.03))):
        first = slide.read(window)
        kept = first.copy()
        slide.read(Window((100.0, 50.0), (90, 80), (1.03, 1.03)))
        assert np.array_equal(first, kept)
