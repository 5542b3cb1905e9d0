"""A Leica SCN, whose scanned part does not begin at the corner of the slide, as OpenSlide opens it."""

from pathlib import Path

import numpy as np
import tifffile

BOUNDS_XY = (200, 130)  # level-0 px
SIZE_XY = (700, 500)  # of the whole slide
UM_PX = 0.5
_XML = (
    '<?xml version="1.0"?><scn xmlns="http://www.leica-microsystems.com/scn/2010/10/01"><collection name="c" uuid="u" '
    'sizeX="{whole[0]}" sizeY="{whole[1]}"><image name="i" uuid="j"><creationDate>2026-01-01T00:00:00Z</creationDate>'
    '<device model="SCN400" version="1"/><pixels sizeX="{size[0]}" sizeY="{size[1]}">'
    '<dimension sizeX="{size[0]}" sizeY="{size[1]}" r="0" ifd="0"/></pixels>'
    '<view sizeX="{part[0]}" sizeY="{part[1]}" offsetX="{corner[0]}" offsetY="{corner[1]}"/><scanSettings>'
    "<objectiveSettings><objective>20</objective></objectiveSettings><illuminationSettings><numericalAperture>0.4"
    "</numericalAperture><illuminationSource>brightfield</illuminationSource></illuminationSettings></scanSettings>"
    "</image></collection></scn>"
)


def write_scn(path: Path) -> None:
    """Purple tissue of 300 x 250 px at `BOUNDS_XY` of a slide of `SIZE_XY`, 0.5 um/px."""
    noise = np.random.default_rng(0).integers(-30, 31, (250, 300, 1))
    image_HWC = np.clip(np.array((170, 90, 160)) + noise, 0, 255).astype(np.uint8)
    nm = round(UM_PX * 1000)
    whole, part, corner = (tuple(value * nm for value in xy) for xy in (SIZE_XY, (300, 250), BOUNDS_XY))
    tifffile.imwrite(
        path, image_HWC, photometric="rgb", tile=(64, 64), compression="jpeg", metadata=None, bigtiff=True,
        description=_XML.format(whole=whole, size=(300, 250), part=part, corner=corner),
        resolution=(10_000 / UM_PX,) * 2, resolutionunit="centimeter",
    )  # fmt: skip
