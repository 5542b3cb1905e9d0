"""What prediction does about stain: methods and targets, warnings, records, windows for batch statistics."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from inference import appearance
from inference.appearance import Appearance
from slides.stain import SlideStain

TARGET = {"stains": [[0.55, 0.69, 0.47], [0.23, 0.87, 0.44]], "most": [2.0, 1.0]}
OTHER = {"stains": [[0.6, 0.74, 0.3], [0.21, 0.95, 0.23]], "most": [2.0, 1.0]}
KNOWN = {
    "norm": "macenko", "targets": {"macenko": TARGET},
    "colors": {"middle": [np.log(0.83), np.log(0.6), np.log(0.7)], "spread": [0.19, 0.065, 0.1]},
}  # fmt: skip
NEAR = SlideStain(9000, (0.5, 0.83, 0.58), {"macenko": TARGET})
FAR = SlideStain(9000, (0.5, 0.83, 0.4), {"macenko": OTHER})


def planned(stain: SlideStain, windows: int = 5) -> SimpleNamespace:
    grid = SimpleNamespace(window=lambda row, column: SimpleNamespace(hw_out=(256, 256), at=(row, column)))
    return SimpleNamespace(slide_id="a", stain=stain, grid=grid, windows=[(0, k) for k in range(windows)])


def test_the_method_of_the_training_is_used_unless_another_is_asked_for() -> None:
    assert Appearance.chosen(None, "macenko", KNOWN, False).norm == "macenko"
    assert Appearance.chosen("none", "macenko", KNOWN, False).methods == ()
    assert Appearance.chosen("macenko", "none", KNOWN, False).options() == {"stain_norm": "macenko"}
    # Results of earlier versions stay valid.
    assert Appearance.chosen(None, "none", None, False).options() == {}
    with pytest.raises(ValueError, match="--stain_norm vahadane: the model has no target for it; it has macenko"):
        Appearance.chosen("vahadane", "none", KNOWN, False)
    with pytest.raises(ValueError, match="it has none: it was trained by an earlier version, or elsewhere"):
        Appearance.chosen("macenko", "none", None, False)


def test_colors_far_from_the_training_are_warned_of_and_others_are_not() -> None:
    plain = Appearance("none", KNOWN)
    assert plain.warnings(planned(NEAR)) == []
    (warning,) = plain.warnings(planned(FAR))
    assert warning.startswith(
        "a: its colors are 3.7 standard deviations from those of the training slides (more than 3)"
    )
    assert "--adapt_bn or --stain_norm macenko may help" in warning
    assert "may help" not in Appearance("macenko", KNOWN).warnings(planned(FAR))[0]
    assert Appearance("none", None).warnings(planned(FAR)) == []


def test_a_slide_that_cannot_be_normalized_is_named_unless_nothing_is_predicted() -> None:
    macenko = Appearance("macenko", KNOWN)
    line = "a: only 12 stained px found, 2000 are needed: not normalized"
    assert macenko.warnings(planned(SlideStain(12))) == [line]
    assert macenko.warnings(planned(SlideStain(0), windows=0)) == []
    assert macenko.record(planned(SlideStain(12))) == {
        "norm": "none", "adapt_bn": False, "density_rgb": None, "distance_from_training": None,
    }  # fmt: skip
    assert macenko.record(planned(FAR))["norm"] == "macenko"


def test_the_network_sees_normalized_images() -> None:
    seen = []
    network = Appearance("macenko", KNOWN).normalized(seen.append, planned(FAR))
    eosin = (256 * np.exp(-np.array(OTHER["stains"][1])) - 1).astype(np.uint8)
    network(np.broadcast_to(eosin, (2, 4, 4, 3)))
    wanted = 256 * np.exp(-np.array(TARGET["stains"][1])) - 1
    assert seen[0].shape == (2, 4, 4, 3)
    np.testing.assert_allclose(seen[0][1, 2, 3], wanted, atol=2)


def test_windows_for_batch_statistics_are_spread_evenly_and_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(slide: Path, window: SimpleNamespace, context_um_px: float | None) -> tuple[np.ndarray, str]:
        del slide, context_um_px
        column = window.at[1]
        return np.full((256, 256, 3), column, np.uint8), "broken" if column == 7 else ""

    monkeypatch.setattr(appearance, "read_window", read)
    batches = list(Appearance("none", None).adaptation_batches(Path("slide"), planned(NEAR, 9), None))
    # Eight windows of 256 px are a batch; window 7 cannot be read.
    assert [batch[:, 0, 0, 0].tolist() for batch in batches] == [[0, 1, 2, 3, 4, 5, 6, 8]]
    many = list(Appearance("none", None).adaptation_batches(Path("slide"), planned(NEAR, 320), None))
    seen = [column for batch in many for column in batch[:, 0, 0, 0].tolist()]
    assert (len(seen), seen[:3]) == (32, [5, 15, 25])
