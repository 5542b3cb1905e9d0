"""Archives of features: maps of a classifier's cut, made once and trained on many times.

An archive is an uncompressed tar, as `preprocessing.pack` writes them, read in place and mapped into memory:

    features.json           what the maps depend on (`Settings`)
    SLIDE/000.npy           (H', W', C) float16 or float32, the first of a slide's augmented copies
    SLIDE/001.npy           the second, and so on
    labels.csv              and other files that the writer adds

`classification.extraction` writes it.

Shapes: H', W' rows and columns of the cut's map, C channels.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from slides.packed import PackedFiles, PackError
from streaming.images import ArrayImage

VERSION = 1
DESCRIPTION = "features.json"
SUFFIX = ".npy"
DTYPES = ("float16", "float32")

# What maps must have in common with the run that trains on them, and what to do where they have not.
MUST_AGREE = {
    "network": "choose the network they were made with",
    "cut": "choose the cut they were made with",
    "weights": "start from the weights they were made with, or extract features of these",
    "um_px": "train at the spacing they were made at",
    "image_size": "choose the image size they were made with",
    "normalization": "prepare images as they were",
}


class FeaturesError(ValueError):
    """An archive of features that cannot be used; the message names it, what was found, and what to do."""


@dataclass(frozen=True)
class Settings:
    """What maps depend on.

    Attributes:
        network: name of the classifier.
        cut: layer whose output the maps are.
        weights: `Classifier.hash` of the early part.
        um_px: spacing of the images, um per px; None if not known.
        image_size: rows and columns of the images, px; None if every image has its own size.
        normalization: how 8-bit px were prepared, a description.
        precision: of the early part's arithmetic.
        dtype: of the maps, one of `DTYPES`.
        seed: of the augmentation.
        augmentation: JSON types: how copies were made.
    """

    network: str
    cut: str
    weights: str
    um_px: float | None
    image_size: tuple[int, int] | None
    normalization: str
    precision: str
    dtype: str = "float16"
    seed: int = 0
    augmentation: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse types that are not stored."""
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} of features is unknown; choose one of {', '.join(DTYPES)}")

    def text(self) -> str:
        """As JSON."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=1, ensure_ascii=False) + "\n"

    def misfits(self, other: Settings, names: Sequence[str] = tuple(MUST_AGREE)) -> list[str]:
        """Fields of these names in which the other differs, each as "what is here, what there"."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{name.replace('_', ' ')}: {_shown(name, mine[name])} in the archive, {_shown(name, theirs[name])} here"
            for name in names
            if not _equal(mine[name], theirs[name])
        ]


ALL_FIELDS = tuple(each.name for each in fields(Settings))


def parsed(text: str | bytes, where: str) -> Settings:
    """Settings from JSON.

    Args:
        text: what `Settings.text` gave.
        where: the file, for messages.

    Raises:
        FeaturesError: it is something else.
    """
    try:
        stored = json.loads(text)
        version = stored.pop("version")
        if version != VERSION:
            raise FeaturesError(f"{where} has version {version}; this release reads {VERSION}: extract features again")
        size = stored["image_size"]
        return Settings(**stored | {"image_size": None if size is None else (int(size[0]), int(size[1]))})
    except FeaturesError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise FeaturesError(f"{where} is damaged: {error!r}; extract features again") from error


def member_name(slide_id: str, copy: int) -> str:
    """Name of a map in an archive."""
    return f"{slide_id}/{copy:03d}{SUFFIX}"


class Features:
    """An archive of features, opened.

    Args:
        path: the tar.

    Attributes:
        path: see above.
        settings: what the maps depend on.
        copies: id of each slide -> number of its copies, in the archive's order.

    Raises:
        FeaturesError: it is missing, cut short, damaged, or no archive of features.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._files = PackedFiles(self.path)
            if DESCRIPTION not in self._files:
                raise FeaturesError(
                    f"{self.path} is not an archive of features: it holds no {DESCRIPTION}; give what "
                    "--extract_features wrote"
                )
            self.settings = parsed(self._files.read(DESCRIPTION), f"{self.path}: {DESCRIPTION}")
        except PackError as error:
            raise FeaturesError(f"features: {error}") from error
        self.copies: dict[str, int] = {}
        for name in self._files:
            slide_id, _, rest = name.rpartition("/")
            if slide_id and rest.endswith(SUFFIX):
                self.copies[slide_id] = self.copies.get(slide_id, 0) + 1
        if not self.copies:
            raise FeaturesError(f"features {self.path} hold no maps; extract features again")
        self._places: dict[str, tuple[int, tuple[int, ...]]] = {}

    @property
    def ids(self) -> list[str]:
        """Ids of the slides."""
        return list(self.copies)

    def check(self, wanted: Settings) -> None:
        """Refuse maps that are not those of this run's network and images.

        Args:
            wanted: of the run.

        Raises:
            FeaturesError: with everything that differs, and what to do about the first.
        """
        for name, advice in MUST_AGREE.items():
            if self.settings.misfits(wanted, [name]):
                found = "; ".join(self.settings.misfits(wanted))
                raise FeaturesError(f"features {self.path} do not fit: {found}. Please {advice}")

    def file(self, name: str) -> bytes:
        """A further file of the archive, such as labels.csv.

        Raises:
            FeaturesError: there is none.
        """
        try:
            return self._files.read(name)
        except PackError as error:
            raise FeaturesError(f"features: {error}") from error

    def map(self, slide_id: str, epoch: int = 0) -> ArrayImage:
        """A slide's map as a source (1, H', W', C), mapped into memory: windows are read when they are needed.

        Args:
            slide_id: the slide.
            epoch: epochs take the copies in turn.

        Raises:
            FeaturesError: the archive has no such slide, or its map is damaged.
        """
        if slide_id not in self.copies:
            first = ", ".join(self.ids[:3])
            raise FeaturesError(
                f"features {self.path} hold no map of {slide_id!r}; they have {len(self.copies)} slides: {first} ..."
            )
        name = member_name(slide_id, epoch % self.copies[slide_id])
        try:
            offset, shape = self._place(name)
            mapped = np.memmap(self.path, self.settings.dtype, "r", offset, shape)
        except (PackError, ValueError, OSError) as error:
            raise FeaturesError(
                f"features {self.path}: {name} cannot be read: {error}; extract features again"
            ) from error
        return ArrayImage(mapped[None])

    def _place(self, name: str) -> tuple[int, tuple[int, ...]]:
        """First byte of a map's numbers, and its shape; from the header that `numpy.save` writes."""
        if name not in self._places:
            with self._files.open(name) as file:
                np.lib.format.read_magic(file)  # type: ignore[no-untyped-call]
                shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)  # type: ignore[no-untyped-call]
                start = file.tell()
            member = self._files.members[name]
            if dtype != np.dtype(self.settings.dtype) or by_columns or len(shape) != 3 or 0 in shape:
                raise ValueError(f"it holds {dtype} of shape {shape}, not a map of {self.settings.dtype}")
            if start + math.prod(shape) * dtype.itemsize != member.size:
                raise ValueError(f"it has {member.size} bytes, not those of shape {shape}")
            self._places[name] = member.offset + start, shape
        return self._places[name]


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=1e-3)
    return bool(a == b)


def _shown(name: str, value: Any) -> str:
    if name == "weights":
        return f"SHA-256 {value[:12]}"
    if name == "image_size":
        return "each its own" if value is None else f"{value[0]} x {value[1]} px"
    return "not known" if value is None else str(value)
