"""The stain of a slide: densities on its tissue, normalization to another stain, and how far it is from known ones.

All of it is in optical density, -ln((v + 1) / 256) of a gray level v, where stains add up (Lambert and Beer). A
normalization is an affine map of densities, so that a patch costs two table look-ups and one matrix product. Every
estimate is a function of the slide and its tissue alone: the same on all ranks and in every run.

Shapes: H, W rows and columns; C = 3 channels (RGB, uint8); N px; S = 2 stains, haematoxylin first.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from slides.artefacts import pen_px
from slides.reader import Slide, SlideError

Floats = NDArray[np.float64]
Estimate = dict[str, list[Any]]  # by name, JSON types

# Where a slide is looked at: windows on its tissue, evenly spaced among its cells; coarse, so that reading is quick.
UM_PX, SIDE_PX, WINDOWS = 2.0, 128, 24
MOST_PX = 40_000  # of all windows, evenly spaced
# A px is stained from this mean density on; darker than the other is ink, a fold or a border.
LEAST_OD, MOST_OD = 0.15, 2.5
LEAST_PX = 2_000  # fewer stained px (0.008 mm2) tell nothing
# Directions of two stains are at least so far apart. Those of H&E are 20 to 40 degrees by Macenko's extremes, and half
# of that in a sparse dictionary.
LEAST_ANGLE = {"macenko": math.radians(8), "vahadane": math.radians(3)}
MOST_SCALE = 3.0  # a normalization never changes a density by more: noise would grow, too
PERCENTILES = 1.0, 99.0  # of angles and densities, as Macenko et al.
# Optical density of haematoxylin, eosin and DAB in red, green, blue (Ruifrok and Johnston 2001).
HED_RGB = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]], np.float64)
HED_RGB /= np.linalg.norm(HED_RGB, axis=1, keepdims=True)
SPARSITY = 0.1  # as Vahadane et al.
DICTIONARY_PX = 5_000

# Axes of Reinhard et al.: all channels alike, blue against the others, red against green.
AXES = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])

# Least standard deviations between slides of one laboratory of (ln green, ln red / green, ln blue / green), of the mean
# densities: those of 20 slides each of two laboratories (docs/results/2026-11-30-stain.md).
LEAST_SPREAD = np.array([0.19, 0.065, 0.10])
FAR = 3.0  # standard deviations; no slide of the same laboratory was that far


@dataclass(frozen=True)
class SlideStain:
    """What is known of a slide's stain.

    Attributes:
        px: stained px it was estimated from.
        density: mean optical density of red, green and blue; None where there is too little tissue.
        estimates: what each method found, by its name; missing where it found nothing.
    """

    px: int
    density: tuple[float, float, float] | None = None
    estimates: Mapping[str, Estimate] = field(default_factory=dict)

    @property
    def features(self) -> Floats | None:
        """(ln green, ln red / green, ln blue / green) of the mean densities."""
        if self.density is None:
            return None
        red, green, blue = np.log(self.density)
        return np.array([green, red - green, blue - green])


# ---------------------------------------------------------------------------------------------------- a slide's stain


def slide_stain(slide: Slide, tissue_HW: NDArray[np.bool_], cell_l0: int, methods: Sequence[str]) -> SlideStain:
    """Estimate the stain of a slide on its tissue; a quarter of a second.

    Windows that cannot be read, glass, ink and the colors of pens are left out.

    Args:
        slide: the slide.
        tissue_HW: its tissue, in cells.
        cell_l0: side of a cell, level-0 px.
        methods: names of `METHODS` to estimate by.
    """
    rows, columns = np.nonzero(tissue_HW)
    found = [np.empty((0, 3))]
    for k in range(min(WINDOWS, len(rows))):
        cell = (2 * k + 1) * len(rows) // (2 * min(WINDOWS, len(rows)))
        center_xy_l0 = ((columns[cell] + 0.5) * cell_l0, (rows[cell] + 0.5) * cell_l0)
        try:
            rgb_HWC = slide.read(slide.window(center_xy_l0, (SIDE_PX, SIDE_PX), UM_PX))
        except SlideError:
            continue
        found.append(stained_density(rgb_HWC))
    return of_density(np.concatenate(found), methods)


def density_of(rgb: NDArray[np.uint8]) -> Floats:
    """Return optical densities of gray levels, any shape."""
    density: Floats = -np.log((rgb.astype(np.float64) + 1) / 256)
    return density


def stained_density(rgb_HWC: NDArray[np.uint8]) -> Floats:
    """Return densities (N, 3) of the stained px of an image."""
    density_N3 = density_of(rgb_HWC).reshape(-1, 3)
    mean_N = density_N3.mean(1)
    kept_N = (mean_N > LEAST_OD) & (mean_N < MOST_OD) & ~pen_px(rgb_HWC).ravel()
    stained_N3: Floats = density_N3[kept_N]
    return stained_N3


def of_density(density_N3: Floats, methods: Sequence[str]) -> SlideStain:
    """Estimate a stain from densities of stained px."""
    if len(density_N3) < LEAST_PX:
        return SlideStain(len(density_N3))
    seen_N3 = density_N3[:: -(-len(density_N3) // MOST_PX)]
    estimates = {method: METHODS[method](seen_N3) for method in methods}
    red, green, blue = seen_N3.mean(0).tolist()
    known = {method: estimate for method, estimate in estimates.items() if estimate is not None}
    return SlideStain(len(density_N3), (red, green, blue), known)


def reinhard(density_N3: Floats) -> Estimate | None:
    """Mean and standard deviation along `AXES`: Reinhard et al., Color transfer between images, 2001.

    They match the logarithms of cone responses; here it is the densities themselves, which are logarithms, too.
    """
    along_N3 = density_N3 @ AXES.T
    return {"mean": along_N3.mean(0).tolist(), "std": along_N3.std(0).tolist()}


def macenko(density_N3: Floats) -> Estimate | None:
    """Directions and strengths of two stains: Macenko et al., A method for normalizing histology slides, 2009.

    The stains are the extreme directions in the plane that holds most of the densities; None for one stain only.
    """
    _, directions_33 = np.linalg.eigh(np.cov(density_N3.T))
    plane_32 = directions_33[:, :0:-1]
    plane_32 = plane_32 * np.where(plane_32.sum(0) < 0, -1, 1)
    along_N2 = density_N3 @ plane_32
    angle_N = np.arctan2(along_N2[:, 1], along_N2[:, 0])
    extremes = [np.array([math.cos(a), math.sin(a)]) for a in np.percentile(angle_N, PERCENTILES)]
    return _two_stains(np.array([plane_32 @ extreme for extreme in extremes]), density_N3, "macenko")


def vahadane(density_N3: Floats) -> Estimate | None:
    """Directions and strengths of two stains: Vahadane et al., Structure-preserving color normalization, 2016.

    A sparse dictionary of two non-negative stains, started from Macenko's; None for one stain only.
    """
    start = macenko(density_N3)
    if start is None:
        return None
    from sklearn.decomposition import MiniBatchDictionaryLearning

    seen_N3 = density_N3[:: -(-len(density_N3) // DICTIONARY_PX)]
    learned = MiniBatchDictionaryLearning(
        2, alpha=SPARSITY, fit_algorithm="cd", transform_algorithm="lasso_cd", positive_code=True, positive_dict=True,
        dict_init=np.array(start["stains"]), batch_size=500, max_iter=20, shuffle=False, random_state=0,
    ).fit(seen_N3)  # fmt: skip
    return _two_stains(np.asarray(learned.components_), density_N3, "vahadane")


METHODS = {"reinhard": reinhard, "macenko": macenko, "vahadane": vahadane}


def _two_stains(stains_S3: Floats, density_N3: Floats, method: str) -> Estimate | None:
    """Unit vectors, haematoxylin (more red) first, and the strength that 99 % of the px stay below."""
    stains_S3 = np.clip(stains_S3, 0, None)
    length_S = np.linalg.norm(stains_S3, axis=1)
    if length_S.min() == 0:
        return None
    stains_S3 = stains_S3 / length_S[:, None]
    stains_S3 = stains_S3[np.argsort(-stains_S3[:, 0])]
    if math.acos(min(1.0, float(stains_S3[0] @ stains_S3[1]))) < LEAST_ANGLE[method]:
        return None
    strength_NS = density_N3 @ np.linalg.pinv(stains_S3)
    most_S = np.percentile(strength_NS, PERCENTILES[1], axis=0)
    return None if most_S.min() <= 0 else {"stains": stains_S3.tolist(), "most": most_S.tolist()}


# ------------------------------------------------------------------------------------------------------- normalization


def middle(estimates: Sequence[Estimate]) -> Estimate:
    """Return the median of several estimates of one method: the stain of a set of slides."""
    names = estimates[0].keys()
    found = {name: np.median([np.array(one[name]) for one in estimates], axis=0) for name in names}
    if "stains" in found:
        found["stains"] /= np.linalg.norm(found["stains"], axis=1, keepdims=True)
    return {name: values.tolist() for name, values in found.items()}


# Densities as integers: levels to density, and back; the largest density of 8 bits is 5.55.
_STEPS = 4096
_FORTH = np.round(_STEPS * density_of(np.arange(256, dtype=np.uint8))).astype(np.uint16)
_BACK = np.clip(256 * np.exp(-np.arange(2**16) / _STEPS) - 0.5, 0, 255).astype(np.uint8)


class Normalization:
    """Maps a slide's densities to those of a target.

    Args:
        method: name of `METHODS`.
        source: estimate of the slide.
        target: estimate of what it shall look like.
    """

    def __init__(self, method: str, source: Estimate, target: Estimate) -> None:
        was, wanted = ({name: np.array(values) for name, values in one.items()} for one in (source, target))
        self._glass: Floats | None = None
        if method == "reinhard":
            scale_3 = _bounded(wanted["std"] / np.maximum(was["std"], 1e-6))
            matrix_33 = AXES.T @ np.diag(scale_3) @ AXES
            shift_3 = AXES.T @ (wanted["mean"] - scale_3 * was["mean"])
            # Glass has no density to shift: the least of the shifted map and a steep one through 0.
            self._glass = np.diag(np.full(3, MOST_SCALE))
        else:
            # The third direction, which neither stain explains, keeps its strength.
            mixes = [np.vstack([one["stains"], _across(one["stains"])]) for one in (was, wanted)]
            scale_3 = np.append(_bounded(wanted["most"] / was["most"]), 1.0)
            matrix_33 = mixes[1].T @ np.diag(scale_3) @ np.linalg.inv(mixes[0].T)
            shift_3 = np.zeros(3)
        self._map_34 = np.column_stack([matrix_33, _STEPS * shift_3])

    def __call__(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Return an image, or several views in groups of three channels, with the target's colors; glass stays."""
        views = [self._view(image_HWC[..., first : first + 3]) for first in range(0, image_HWC.shape[-1], 3)]
        return views[0] if len(views) == 1 else np.concatenate(views, axis=-1)

    def _view(self, rgb_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        # Densities below 0 become 0, white, by saturation.
        density_HWC = cv2.LUT(np.ascontiguousarray(rgb_HWC), _FORTH)
        mapped_HWC = cv2.transform(density_HWC, self._map_34)
        if self._glass is not None:
            mapped_HWC = np.minimum(mapped_HWC, cv2.transform(density_HWC, self._glass))
        return np.asarray(cv2.LUT(mapped_HWC, _BACK), np.uint8)


def normalization(method: str, stain: SlideStain, targets: Mapping[str, Estimate]) -> Normalization | None:
    """Return the map of a slide to the target of a method; None where its stain is not known: it stays as it is."""
    source = stain.estimates.get(method)
    return None if source is None else Normalization(method, source, targets[method])


def why_not(method: str, stain: SlideStain) -> str:
    """Say why a slide cannot be normalized; empty if it can."""
    if method in stain.estimates:
        return ""
    if stain.density is None:
        return f"only {stain.px} stained px found, {LEAST_PX} are needed: not normalized"
    return f"its densities show one stain, not two, which {method} needs: not normalized"


def _bounded(scale: Floats) -> Floats:
    bounded: Floats = np.clip(scale, 1 / MOST_SCALE, MOST_SCALE)
    return bounded


def _across(stains_S3: Floats) -> Floats:
    across_3 = np.cross(*stains_S3)
    unit_3: Floats = across_3 / np.linalg.norm(across_3)
    return unit_3


# ----------------------------------------------------------------------------------------------------- known stains


def known_stains(stains: Sequence[SlideStain]) -> dict[str, list[float]] | None:
    """Describe the colors of a set of slides, JSON types: median and spread of their features; None without any."""
    features_NF = np.array([stain.features for stain in stains if stain.features is not None])
    if not len(features_NF):
        return None
    return {
        "middle": np.median(features_NF, axis=0).tolist(),
        "spread": np.maximum(features_NF.std(0), LEAST_SPREAD).tolist(),
    }


def distance(stain: SlideStain, known: Mapping[str, Sequence[float]]) -> float | None:
    """Return how far the colors of a slide are from those of a set, in standard deviations of the worst feature."""
    if stain.features is None:
        return None
    return float(np.max(np.abs(stain.features - known["middle"]) / known["spread"]))
