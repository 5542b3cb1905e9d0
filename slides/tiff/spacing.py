"""How large a px of a TIFF is: by its resolution tags, by ImageJ's description; and what its objective suggests."""

from __future__ import annotations

import math
import re

INCH, CENTIMETER, MILLIMETER, MICROMETER = 2, 3, 4, 5  # ResolutionUnit; 1 is "none"
_UM_PER_UNIT = {INCH: 25400.0, CENTIMETER: 10000.0, MILLIMETER: 1000.0, MICROMETER: 1.0}
# Dots per inch that cameras, paper scanners and editors write when they know nothing: never a microscope's.
PRINT_DPI = (72, 96, 100, 120, 144, 150, 200, 240, 300, 360, 400, 600, 720, 1200, 2400)
# Micrometers per unit by name; both signs for micro are in use, and two for angstrom.
UM_PER_NAME = {"\u00b5m": 1.0, "\u03bcm": 1.0, "um": 1.0, "nm": 1e-3, "pm": 1e-6, "mm": 1e3, "cm": 1e4, "m": 1e6}
UM_PER_NAME |= {"\u00c5": 1e-4, "\u212b": 1e-4, "in": 25400.0}
_IMAGEJ_NAMES = {"micron": 1.0, "micrometer": 1.0, "micrometre": 1.0, "nanometer": 1e-3, "millimeter": 1e3}
_IMAGEJ_NAMES |= {"centimeter": 1e4, "inch": 25400.0, "inche": 25400.0}

_IMAGEJ = re.compile(r"^(x?unit|yunit)=(.*?)\s*$", re.MULTILINE)
_MPP = re.compile(r"\bMPP\s*[=:]\s*\"?(\d+(?:\.\d+)?)", re.IGNORECASE)
_OBJECTIVE = re.compile(
    r"\b(?:AppMag|NominalMagnification|SourceLens|Magnification|Objective(?:[ _-]?(?:Power|Magnification))?)"
    r"\s*[=:]\s*\"?(\d+(?:\.\d+)?)",
    re.IGNORECASE,
)
# Micrometers per px times the power of the objective: 0.25 at 40x, 0.5 at 20x.
_UM_PX_TIMES_POWER = 10.0
_POWERS = 1.0, 160.0

Pair = tuple[float, float]


def um_px_xy(px_per_unit: Pair | None, unit: int, description: str) -> Pair | None:
    """Micrometers per px along x and y.

    Args:
        px_per_unit: XResolution and YResolution.
        unit: ResolutionUnit.
        description: ImageDescription; where ImageJ wrote it, its unit takes precedence, as in ImageJ itself.

    Returns:
        None if the tags are missing, without a length as unit, not positive, or a print resolution.
    """
    if px_per_unit is None or not all(math.isfinite(value) and value > 0 for value in px_per_unit):
        return None
    named = _imagej(description)
    if named is not None:
        return named[0] / px_per_unit[0], named[1] / px_per_unit[1]
    if unit not in _UM_PER_UNIT:
        return None
    um_px_x, um_px_y = (_UM_PER_UNIT[unit] / value for value in px_per_unit)
    if unit == MICROMETER:
        return um_px_x, um_px_y
    if any(abs(25400 / um_px_x / dpi - 1) < 1e-3 for dpi in PRINT_DPI) or px_per_unit == (1.0, 1.0):
        return None
    return um_px_x, um_px_y


def _imagej(description: str) -> Pair | None:
    """Micrometers per unit along x and y; None where ImageJ did not write the description or knew no length."""
    if not description.startswith("ImageJ="):
        return None
    # Java's escape; text without a declared encoding, read as Latin-1.
    text = re.sub(r"\\u00b5", "\u00b5", description, flags=re.IGNORECASE).replace("\u00c2\u00b5", "\u00b5")
    units = {key.removeprefix("x"): _length(name) for key, name in _IMAGEJ.findall(text)}
    along_x = units.get("unit")
    along_y = units.get("yunit", along_x)
    return (along_x, along_y) if along_x and along_y else None


def _length(name: str) -> float | None:
    found = UM_PER_NAME.get(name)
    return _IMAGEJ_NAMES.get(name.lower().removesuffix("s")) if found is None else found


def suggestion(description: str, power: str = "") -> str | None:
    """What to give for `--mpp`, and why, by a description that has no certain spacing; None where it says nothing.

    Args:
        description: ImageDescription.
        power: Power of the objective, where something else states it.
    """
    mpp = _MPP.search(description)
    if mpp and float(mpp[1]) > 0:
        return f"{float(mpp[1]):g}, which its description states (MPP)"
    objective = _OBJECTIVE.search(f"Objective={power}" if power else description)
    if objective and _POWERS[0] <= float(objective[1]) <= _POWERS[1]:
        value = float(objective[1])
        return f"{_UM_PX_TIMES_POWER / value:.3g}, which its objective of {value:g}x suggests (about 10 / power)"
    return None
