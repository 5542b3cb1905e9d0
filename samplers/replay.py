"""The training data of a run, to look at: patches drawn again, maps, and windows for ASAP and QuPath.

python -m samplers.replay LOG_DIR                    per slide: map (PNG), windows as ASAP XML and GeoJSON
python -m samplers.replay LOG_DIR --index 17 480     patch and truth of these indices, drawn again

Reads `samples/` and `options.json` of the run, and its slides at their recorded paths.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from options.choices import GEOJSON_FRAMES, GeojsonFrame, SamplerName
from samplers import build
from samplers.dataset import SetOptions, SlideSet, open_set
from samplers.maps import write_maps
from samplers.patch import HARD, Patch, PatchRequest, RequestSource
from samplers.records import Row, read_described, read_samples
from slides.geometry import Pair, bounds_from_l0, geojson_corner
from slides.stain import Normalization
from slides.truth.asap import Outline, write_outlines
from system.output import endure

BANDS = ("loss: lowest quarter", "loss: second quarter", "loss: third quarter", "loss: highest quarter")
BAND_RGB = ((49, 54, 149), (116, 173, 209), (253, 174, 97), (165, 0, 38))


@dataclass(frozen=True)
class _Case:
    slide_path: Path
    label_path: Path | None
    um_px: Pair | None


@dataclass(frozen=True)
class _Stream:
    """What decided the patches of a run.

    Attributes:
        sampler: value of --data_sampler.
        seed: seed of the stream.
        tumor_ratio: share of draws aimed at classes >= 1; None: the sampler's default.
        img_size: side of a patch, px.
        um_px: spacing, um per px.
        context_um_px: spacing of the second view; None: no such view.
    """

    sampler: SamplerName
    seed: int
    tumor_ratio: Fraction | None
    img_size: int
    um_px: float
    context_um_px: float | None

    @staticmethod
    def from_options(options: Mapping[str, Any]) -> _Stream:
        """Take it from the options of a run, as JSON types."""
        ratio, context_um_px = options["batch_tumor_ratio"], options.get("context_spacing")
        return _Stream(
            sampler=options["data_sampler"],
            seed=int(options["seed"]),
            tumor_ratio=None if ratio is None else Fraction(ratio),
            img_size=int(options["img_size"]),
            um_px=float(options["resolution"]),
            context_um_px=None if context_um_px is None else float(context_um_px),
        )


class Replay:
    """A run's samples and the slides they came from.

    Args:
        log_dir: the run's `--log_dir`.

    Raises:
        ValueError: the folder is not a run, or a slide or label is missing or unreadable.
    """

    def __init__(self, log_dir: Path) -> None:
        self.log_dir = log_dir
        try:
            self._stream = _Stream.from_options(json.loads((log_dir / "options.json").read_text(encoding="utf-8")))
            described = read_described(log_dir)
        except (OSError, KeyError) as error:
            raise ValueError(f"{log_dir} does not contain a run to replay: {error}") from error
        self.rows = read_samples(log_dir)
        options = SetOptions.from_json(described["reading"])
        self._classes = options.classes
        cases = [
            _Case(
                Path(case["slide_path"]),
                Path(case["label_path"]) if case["label_path"] else None,
                tuple(case["um_px"]) if case.get("um_px") else None,
            )
            for case in described["cases"]
        ]
        self.slide_set: SlideSet = open_set(cases, options, 0, 1, lambda action: [action()])
        self._position = {slide.id: number for number, slide in enumerate(self.slide_set.slides)}
        stain = described.get("stain")
        stains = None if stain is None else [_normalization(stain, source) for source in stain["slides"]]
        self.reader = self.slide_set.reader(
            self._stream.img_size, self._stream.um_px, self._stream.context_um_px, stains
        )

    @property
    def img_size(self) -> int:
        """Side of a patch, px."""
        return self._stream.img_size

    @property
    def um_px(self) -> float:
        """Spacing asked for, um per px."""
        return self._stream.um_px

    def drawn_again(self, row: Row) -> Patch:
        """Draw the patch of a row of the sample log again.

        A draw of the sampler is requested by its index, and must lead to the same place; one of the hard-mining pool,
        which no longer exists, is read at the logged place.

        Raises:
            ValueError: the sampler now draws another place: slides, labels or the program have changed.
        """
        index, attempt = int(row["index"]), int(row["attempt"])
        center_xy_l0 = (float(row["x_l0"]), float(row["y_l0"]))
        if row["origin"] == HARD:
            slide = self._position[row["slide"]]
            return self.reader.read(PatchRequest(index, attempt, slide, int(row["cls"]), center_xy_l0, HARD))
        patch = self.reader.read(self._sampler().request(index, attempt))
        found = self.slide_set.slides[patch.request.slide].id
        if found != row["slide"] or patch.window.center_xy_l0 != center_xy_l0:
            raise ValueError(
                f"index {index} was at {center_xy_l0} of {row['slide']} and is now drawn at "
                f"{patch.window.center_xy_l0} of {found}: slides, labels or widefov have changed since"
            )
        return patch

    def _sampler(self) -> RequestSource:
        stream = self._stream
        return build(stream.sampler, self.slide_set.indexes, stream.seed, self._classes, stream.tumor_ratio)

    def geojson_corner(self, slide_id: str, frame: GeojsonFrame) -> Pair:
        """Level-0 px of (0, 0) in the GeoJSON of a slide; see `slides.geometry.geojson_corner`."""
        return geojson_corner(self.slide_set.slides[self._position[slide_id]].bounds_xy_l0, frame)

    def corners_l0(self, row: Row) -> list[Pair]:
        """Return the corners of a row's window, level-0 px, clockwise from the upper left."""
        slide = self.slide_set.slides[self._position[row["slide"]]]
        half_x, half_y = (self.img_size * step / 2 for step in slide.step_xy_l0(self.um_px))
        x, y = float(row["x_l0"]), float(row["y_l0"])
        return [(x + sx * half_x, y + sy * half_y) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]


def _normalization(stain: Mapping[str, Any], source: Mapping[str, Any] | None) -> Normalization | None:
    """Return the normalization of a slide as the run had it; None if it had none."""
    return None if source is None else Normalization(stain["norm"], dict(source), stain["target"])


def bands_of(rows: Sequence[Row]) -> list[int]:
    """Return the quarter of the losses that each row is in, 0 (lowest) to 3."""
    losses = np.array([float(row["loss"]) for row in rows])
    edges = np.quantile(losses, (0.25, 0.5, 0.75)) if len(losses) else np.zeros(3)
    return [int(band) for band in np.searchsorted(edges, losses, side="left")]


def write_asap(path: Path, windows: Iterable[tuple[Row, int, list[Pair]]]) -> None:
    """Write windows as ASAP annotations, one group per quarter of the loss.

    Args:
        path: file to write.
        windows: row, quarter, corners (level-0 px).
    """
    write_outlines(
        path,
        (
            Outline(f"{row['index']} class {row['cls']} loss {row['loss']}", BANDS[band], corners, hex_color(band))
            for row, band, corners in windows
        ),
    )


def hex_color(band: int) -> str:
    """Return the color of a quarter of the losses, as #RRGGBB."""
    return "#{:02X}{:02X}{:02X}".format(*BAND_RGB[band])


def write_geojson(path: Path, windows: Iterable[tuple[Row, int, list[Pair]]], corner_xy_l0: Pair = (0.0, 0.0)) -> None:
    """Write windows as GeoJSON that QuPath opens as annotations; see `write_asap`.

    Args:
        path: file to write.
        windows: row, quarter, corners (level-0 px).
        corner_xy_l0: what becomes (0, 0): see `slides.geometry.geojson_corner`.
    """
    rings = [(row, band, bounds_from_l0([*ring, ring[0]], corner_xy_l0).tolist()) for row, band, ring in windows]
    features = [
        {
            "type": "Feature",
            "id": f"widefov-{row['index']}",
            "geometry": {"type": "Polygon", "coordinates": [ring]},
            "properties": {
                "objectType": "annotation",
                "name": f"index {row['index']}",
                "classification": {"name": BANDS[band], "color": list(BAND_RGB[band])},
                "measurements": {"loss": float(row["loss"]), "class": int(row["cls"]), "index": int(row["index"])},
            },
        }
        for row, band, ring in rings
    ]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}) + "\n", encoding="utf-8")


def write_windows(replay: Replay, out: Path, frame: GeojsonFrame) -> list[Path]:
    """Write map, ASAP XML and GeoJSON of every slide that was sampled; returns the files."""
    written = write_maps(out, replay.slide_set, replay.rows, replay.img_size, replay.um_px)
    by_slide: dict[str, list[tuple[Row, int, list[Pair]]]] = {}
    for row, band in zip(replay.rows, bands_of(replay.rows), strict=True):
        by_slide.setdefault(row["slide"], []).append((row, band, replay.corners_l0(row)))
    for slide_id, windows in by_slide.items():
        xml, geojson = out / f"{slide_id}.xml", out / f"{slide_id}.geojson"
        write_asap(xml, windows)
        write_geojson(geojson, windows, replay.geojson_corner(slide_id, frame))
        written += [xml, geojson]
    return written


def write_patch(patch: Patch, path: Path) -> None:
    """Write patch (a second view beside it) and truth: classes as gray levels 0, 120, 240; ignored px are white."""
    views = [patch.image_HWC[..., first : first + 3][..., ::-1] for first in range(0, patch.image_HWC.shape[2], 3)]
    truth_HW: NDArray[np.uint8] = np.where(patch.label_HW == 255, 255, patch.label_HW * np.uint8(120)).astype(np.uint8)
    if not cv2.imwrite(str(path), np.concatenate([*views, np.repeat(truth_HW[..., None], 3, axis=2)], axis=1)):
        raise OSError(f"cannot write {path}")


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(prog="samplers.replay", description="Show the patches that a run was trained on.")
    parser.add_argument("log_dir", type=Path, help="--log_dir of the run")
    parser.add_argument("--index", type=int, nargs="+", help="draw these patches of the stream again")
    parser.add_argument("--out", type=Path, help="folder to write to (default: LOG_DIR/replay)")
    parser.add_argument(
        "--geojson_frame", choices=GEOJSON_FRAMES, default=GEOJSON_FRAMES[0],
        help="where GeoJSON counts level-0 px from, in slides that have bounds (MRXS, SCN, BIF): the corner of what "
        "QuPath shows, or of the whole slide (default: %(default)s)",
    )  # fmt: skip
    opts = parser.parse_args(argv)
    endure()
    out = opts.out or opts.log_dir / "replay"
    try:
        replay = Replay(opts.log_dir)
        out.mkdir(parents=True, exist_ok=True)
        if opts.index is None:
            written = write_windows(replay, out, opts.geojson_frame)
        else:
            written = [_write_index(replay, index, out) for index in opts.index]
    except (ValueError, OSError) as error:
        print(f"samplers.replay: error: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(path)
    return 0


def _write_index(replay: Replay, index: int, out: Path) -> Path:
    rows = [row for row in replay.rows if int(row["index"]) == index]
    if not rows:
        raise ValueError(f"index {index} is not in the sample log of {replay.log_dir} ({len(replay.rows)} patches)")
    path = out / f"index-{index:09d}.png"
    write_patch(replay.drawn_again(rows[-1]), path)
    row = rows[-1]
    print(f"{index}: {row['slide']} at {row['x_l0']}, {row['y_l0']} (level 0), class {row['cls']}, loss {row['loss']}")
    return path


if __name__ == "__main__":
    sys.exit(main())
