"""Stain: densities mixed from known stains are taken apart, mapped to another slide's, told from those of others."""

from pathlib import Path

import numpy as np
import pytest

from slides.reader import Slide
from slides.stain import (
    LEAST_PX,
    METHODS,
    Normalization,
    SlideStain,
    distance,
    known_stains,
    middle,
    normalization,
    of_density,
    slide_stain,
    stained_density,
    why_not,
)
from slides.tiff.pyramid import write_jpeg_pyramid

# Unit densities of haematoxylin and eosin in two laboratories.
STAINS = {
    "deep": np.array([[0.55, 0.69, 0.47], [0.23, 0.87, 0.44]]),
    "pale": np.array([[0.60, 0.74, 0.30], [0.21, 0.95, 0.23]]),
}
STRENGTH = {"deep": np.array([2.2, 1.4]), "pale": np.array([1.5, 2.0])}
ALL = tuple(METHODS)


def shares(count: int = 20_000, seed: int = 0) -> np.ndarray:
    """Shares of each stain's strength: nuclei of one, cytoplasm of the other, and mixtures."""
    rng = np.random.default_rng(seed)
    kind_N = rng.integers(0, 3, count)
    pure_N2 = np.array([[1, 0], [0, 1], [1, 1]])[kind_N]
    return pure_N2 * rng.uniform(0.15, 1, (count, 2)) + rng.uniform(0, 0.01, (count, 2))


def density(name: str, seed: int = 0) -> np.ndarray:
    return (shares(seed=seed) * STRENGTH[name]) @ STAINS[name]


def rgb(density_N3: np.ndarray) -> np.ndarray:
    return np.clip(256 * np.exp(-density_N3) - 0.5, 0, 255).astype(np.uint8)


def test_macenko_finds_the_two_stains_and_their_strengths() -> None:
    found = of_density(density("pale"), ("macenko",)).estimates["macenko"]
    np.testing.assert_allclose(
        found["stains"], STAINS["pale"] / np.linalg.norm(STAINS["pale"], axis=1)[:, None], atol=0.03
    )
    assert found["most"] == pytest.approx([1.5 * 0.98, 2.0 * 0.98], rel=0.05)


def test_vahadane_is_between_macenkos_extremes_and_repeatable() -> None:
    first, second = (of_density(density("deep"), ("vahadane",)).estimates["vahadane"] for _ in range(2))
    assert first == second
    haematoxylin, eosin = np.array(first["stains"])
    np.testing.assert_allclose(haematoxylin, STAINS["deep"][0], atol=0.08)
    np.testing.assert_allclose(eosin, STAINS["deep"][1], atol=0.12)


@pytest.mark.parametrize("method", ALL)
def test_a_normalized_slide_looks_like_the_target(method: str) -> None:
    source, target = (of_density(density(name), ALL) for name in ("pale", "deep"))
    change = Normalization(method, source.estimates[method], target.estimates[method])
    image_HWC = rgb(density("pale", seed=1)).reshape(100, 200, 3)
    wanted_N3 = rgb((shares(seed=1) * STRENGTH["deep"]) @ STAINS["deep"])
    before = np.abs(image_HWC.reshape(-1, 3).astype(int) - wanted_N3).mean()
    got_N3 = change(image_HWC).reshape(-1, 3)
    after = np.abs(got_N3.astype(int) - wanted_N3).mean()
    # Px by px the colors of the same tissue in the other stain; Reinhard matches mean and spread, not single stains.
    assert before > 20
    assert after < {"macenko": 6, "vahadane": 12, "reinhard": before}[method]
    mean_3, wanted_3 = (-np.log((levels.astype(float) + 1) / 256).mean(0) for levels in (got_N3, wanted_N3))
    np.testing.assert_allclose(mean_3, wanted_3, rtol=0.05)
    assert change(np.full((2, 3, 3), 255, np.uint8)).min() == 255


def test_a_slide_mapped_to_itself_stays() -> None:
    stain = of_density(density("deep"), ALL)
    image_HWC = rgb(density("deep")).reshape(100, 200, 3)
    for method in ALL:
        change = Normalization(method, stain.estimates[method], stain.estimates[method])
        # Density is kept in steps of 1/4096: a gray level at most.
        assert np.abs(change(image_HWC).astype(int) - image_HWC).max() <= 1


def test_both_views_are_normalized_alike() -> None:
    source, target = (of_density(density(name), ("macenko",)).estimates["macenko"] for name in ("pale", "deep"))
    change = Normalization("macenko", source, target)
    one_HWC = rgb(density("pale")).reshape(100, 200, 3)
    both_HWC = change(np.concatenate([one_HWC, one_HWC[::-1]], axis=2))
    np.testing.assert_array_equal(both_HWC[..., :3], change(one_HWC))
    np.testing.assert_array_equal(both_HWC[..., 3:], change(one_HWC[::-1]))


def test_too_little_tissue_and_one_stain_stay_as_they_are_and_say_why() -> None:
    little = of_density(density("deep")[: LEAST_PX - 1], ALL)
    assert little == SlideStain(1999)
    assert why_not("macenko", little) == "only 1999 stained px found, 2000 are needed: not normalized"
    one = of_density(np.outer(np.random.default_rng(0).uniform(0.3, 1.5, 9000), STAINS["deep"][0]), ALL)
    assert set(one.estimates) == {"reinhard"}
    assert why_not("macenko", one) == "its densities show one stain, not two, which macenko needs: not normalized"
    target = middle([of_density(density("deep"), ("macenko",)).estimates["macenko"]])
    assert normalization("macenko", one, {"macenko": target}) is None


def test_glass_ink_and_pen_are_not_stained() -> None:
    colors = [(255, 255, 255), (240, 238, 242), (5, 5, 5), (20, 130, 50), (150, 90, 160)]
    image_HWC = np.array([colors], np.uint8)
    np.testing.assert_allclose(stained_density(image_HWC), -np.log((np.array([colors[-1]]) + 1) / 256))


def test_the_middle_of_slides_is_their_median_of_unit_length() -> None:
    ones = [
        {"stains": [[1.0, 0.0, 0.0], [0.0, y, 0.0]], "most": [most, 1.0]} for y, most in ((1, 1.0), (1, 2.0), (1, 9.0))
    ]
    assert middle(ones) == {"stains": [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]], "most": [2.0, 1.0]}


def test_colors_of_another_laboratory_are_far_and_others_are_not() -> None:
    training = [SlideStain(9999, (0.5 * k, 0.83 * k, 0.6 * k)) for k in (0.9, 1.0, 1.1)]
    known = known_stains(training)
    assert known is not None
    assert known["spread"] == [0.19, 0.065, 0.1]
    assert distance(SlideStain(9999, (0.53, 0.83, 0.57)), known) == pytest.approx(np.log(0.53 / 0.5) / 0.065)
    # Two thirds of the blue: ln(2/3) is 4 times 0.1.
    assert distance(SlideStain(9999, (0.5, 0.83, 0.4)), known) == pytest.approx(4.05, abs=0.01)
    assert distance(SlideStain(12), known) is None
    assert known_stains([SlideStain(0)]) is None


def test_a_slide_is_estimated_on_its_tissue_alone(tmp_path: Path) -> None:
    image_HWC = np.full((512, 768, 3), 255, np.uint8)
    image_HWC[:, 256:512] = rgb(density("pale")[np.random.default_rng(3).integers(0, 20_000, 512 * 256)]).reshape(
        512, 256, 3
    )
    image_HWC[:, 512:] = (20, 130, 50)
    strips = (image_HWC[top : top + 256] for top in (0, 256))
    write_jpeg_pyramid(tmp_path / "slide.tif", (768, 512), (2.0, 2.0), strips, 100)
    tissue_HW = np.zeros((8, 12), bool)
    tissue_HW[:, 5:10] = True
    found = slide_stain(Slide(tmp_path / "slide.tif"), tissue_HW, 64, ("macenko",))
    again = slide_stain(Slide(tmp_path / "slide.tif"), tissue_HW, 64, ("macenko",))
    assert found == again
    red, green, blue = found.density
    wanted = density("pale").mean(0)
    np.testing.assert_allclose([red / green, blue / green], [wanted[0] / wanted[1], wanted[2] / wanted[1]], rtol=0.08)
    assert slide_stain(Slide(tmp_path / "slide.tif"), np.zeros((8, 12), bool), 64, ALL) == SlideStain(0)
