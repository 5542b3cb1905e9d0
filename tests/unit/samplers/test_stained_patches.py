"""Patches of a normalized slide have the target's stain, draws are judged by the scan, and replay repeats it."""

from types import SimpleNamespace

import numpy as np

from samplers import patch as patches
from samplers.patch import PatchReader, PatchRequest, draw
from samplers.replay import _normalization
from slides.geometry import window_centered
from slides.stain import Normalization

SOURCE = {"stains": [[0.6, 0.74, 0.3], [0.21, 0.95, 0.23]], "most": [2.0, 1.0]}
TARGET = {"stains": [[0.55, 0.69, 0.47], [0.23, 0.87, 0.44]], "most": [2.0, 1.0]}
EOSIN, TO_BE = ((256 * np.exp(-np.array(one["stains"][1])) - 1) for one in (SOURCE, TARGET))


class Stained:
    """A slide of eosin."""

    size_xy_l0 = (4000, 3000)
    um_px_xy_l0 = (0.5, 0.5)

    def window(self, center_xy_l0, hw_out, um_px):
        return window_centered(center_xy_l0, hw_out, (um_px / 0.5, um_px / 0.5))

    def read(self, window):
        return np.broadcast_to(EOSIN.astype(np.uint8), (*window.hw_out, 3)).copy()


TRUTH = SimpleNamespace(label=lambda window: np.zeros(window.hw_out, np.uint8))
REQUEST = PatchRequest(0, 0, 0, 0, (2000.0, 1500.0))


def reader(stains, context_um_px=None):
    return PatchReader([Stained()], [TRUTH], 64, 0.5, context_um_px, stains)


def test_all_views_have_the_targets_stain_and_the_scan_is_kept():
    patch = reader([Normalization("macenko", SOURCE, TARGET)], context_um_px=2.0).read(REQUEST)
    assert patch.image_HWC.shape == (64, 64, 6)
    np.testing.assert_allclose(patch.image_HWC[5, 7], [*TO_BE, *TO_BE], atol=2)
    np.testing.assert_array_equal(patch.scanned_HWC[5, 7, :3], EOSIN.astype(np.uint8))


def test_a_slide_without_normalization_stays():
    for given in (None, [None]):
        patch = reader(given).read(REQUEST)
        assert patch.scanned_HWC is None
        np.testing.assert_array_equal(patch.image_HWC[5, 7], EOSIN.astype(np.uint8))


def test_draws_are_judged_by_the_colors_of_the_scan(monkeypatch):
    judged = []
    monkeypatch.setattr(patches.quality, "fault", lambda image_HWC, *_: judged.append(image_HWC[5, 7].tolist()))
    source = SimpleNamespace(max_redraws=2, request=lambda *_: REQUEST)
    drawn = draw(source, reader([Normalization("macenko", SOURCE, TARGET)]), 0)
    assert judged == [EOSIN.astype(np.uint8).tolist()]
    np.testing.assert_allclose(drawn.image_HWC[5, 7], TO_BE, atol=2)
    assert drawn.scanned_HWC is None  # not carried on


def test_replay_normalizes_as_the_run_did():
    stored = {"norm": "macenko", "target": TARGET, "slides": [SOURCE, None]}
    assert _normalization(stored, None) is None
    again = _normalization(stored, SOURCE)
    image_HWC = np.broadcast_to(EOSIN.astype(np.uint8), (4, 4, 3))
    np.testing.assert_array_equal(again(image_HWC), Normalization("macenko", SOURCE, TARGET)(image_HWC))
