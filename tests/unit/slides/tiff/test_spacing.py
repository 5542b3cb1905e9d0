"""Spacing from resolution tags and ImageJ's description; what messages suggest where there is none."""

import numpy as np
import pytest
import tifffile

from slides.reader import Slide, SlideError
from slides.tiff.spacing import suggestion, um_px_xy


def write(path, resolution, unit, description=None):
    tifffile.imwrite(
        path,
        np.full((40, 50, 3), 9, np.uint8),
        tile=(16, 16),
        photometric="rgb",
        metadata=None,
        resolution=resolution,
        resolutionunit=unit,
        description=description,
    )
    return path


@pytest.mark.parametrize(
    ("unit", "px", "um"),
    [("inch", 50800, 0.5), ("centimeter", 20000, 0.5), ("millimeter", 2000, 0.5), ("micrometer", 2, 0.5)],
)
def test_units_of_the_tags(tmp_path, unit, px, um):
    path = write(tmp_path / "a.tif", (px, px / 2), unit.upper())
    assert Slide(path).um_px_xy_l0 == pytest.approx((um, 2 * um), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "px"),
    [
        ("micron", 2.0),
        ("microns", 2.0),
        ("um", 2.0),
        ("\\u00B5m", 2.0),
        ("\\u00b5m", 2.0),
        ("nm", 0.002),
        ("mm", 2000.0),
        ("cm", 20000.0),
        ("inch", 50800.0),
        ("inches", 50800.0),
    ],
)
@pytest.mark.parametrize("unit", ["none", "inch"])
def test_units_of_imagej(tmp_path, name, px, unit):
    path = write(tmp_path / "a.tif", (px, px), unit, f"ImageJ=1.53t\nunit={name}\nmin=0.0\n")
    assert Slide(path).um_px_xy_l0 == pytest.approx((0.5, 0.5), rel=1e-4)


def test_one_micron_per_px_is_a_spacing():
    assert um_px_xy((1.0, 1.0), 1, "ImageJ=1.53t\nunit=micron\n") == (1.0, 1.0)
    assert um_px_xy((1.0, 1.0), 5, "") == (1.0, 1.0)
    assert um_px_xy((1.0, 1.0), 3, "") is None


def test_imagej_may_have_another_unit_along_y():
    assert um_px_xy((2.0, 1000.0), 1, "ImageJ=1.53t\nunit=micron\nyunit=mm\n") == (0.5, 1.0)


@pytest.mark.parametrize("micro", [b"\xb5", "\u00b5".encode(), "\u03bc".encode()])
def test_the_micro_sign_in_any_encoding(tmp_path, micro):
    path = write(tmp_path / "a.tif", (2, 2), "none", b"ImageJ=1.53t\nunit=" + micro + b"m\n")
    assert Slide(path).um_px_xy_l0 == (0.5, 0.5)


@pytest.mark.parametrize(
    ("unit", "description"),
    [
        ("none", "unit=micron"),  # not ImageJ's
        ("none", "ImageJ=1.53t\nunit=pixel"),
        ("none", "ImageJ=1.53t\nspacing=1"),
        ("none", "ImageJ=1.53t\nzunit=micron"),
    ],
)
def test_what_is_no_length_is_no_spacing(tmp_path, unit, description):
    with pytest.raises(SlideError, match="spacing is unknown"):
        Slide(write(tmp_path / "a.tif", (2, 2), unit, description))


def test_without_a_spacing_the_message_names_the_objective(tmp_path):
    path = write(tmp_path / "a.tif", (72, 72), "inch", "Scanner X|AppMag = 20|Left = 3")
    with pytest.raises(SlideError, match=r"a\.tif.*--mpp 0\.5, which its objective of 20x suggests"):
        Slide(path)
    path = write(tmp_path / "b.tif", (72, 72), "inch", "none")
    with pytest.raises(SlideError, match=r"e\.g\. --mpp 0\.25$"):
        Slide(path)


@pytest.mark.parametrize(
    ("description", "expected"),
    [
        ("Aperio|AppMag = 40|Date = 1", "0.25, which its objective of 40x"),
        ("a\nMPP = 0.2521\nAppMag = 40", "0.2521, which its description states"),
        ('<Objective NominalMagnification="20.0"/>', "0.5, which its objective of 20x"),
        ("objective power: 63", "0.159, which its objective of 63x"),
        ("Magnification=0", None),
        ("Magnification=9999", None),
        ("a slide", None),
    ],
)
def test_what_descriptions_suggest(description, expected):
    found = suggestion(description)
    assert found is None if expected is None else found.startswith(expected)


def test_the_power_that_a_reader_states_counts():
    assert suggestion("", "20").startswith("0.5, which its objective of 20x")
