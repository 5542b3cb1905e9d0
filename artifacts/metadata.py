"""What a user of a trained model must know about it, and the JSON that carries it.

A network alone does not show at which um/px it was trained, what its classes are and how its images are scaled.
`train.py` writes this as `final.json` beside `final.keras`, and into `final_savedmodel/assets.extra`; `export.py`
writes it as `model.json`. docs/model_files.md lists the keys.

Shapes: B images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from options.choices import MODELS, NORMS, PRECISIONS, STAIN_NORMS
from slides.truth.annotation import DEFAULT_LABEL_MAP
from slides.truth.label import IGNORE
from system.version import __version__

FORMAT = "widefov model 1"
IN_SAVED_MODEL = Path("assets.extra", "model.json")  # the folder that the SavedModel format leaves to its users
OUTPUTS = ("logits", "probabilities")
DEFAULT_NAMES = {0: "normal", 1: "tumor"}
OLD_TUMOR = "tumour"  # old spelling
TRAINED_RANGE = (-1.0, 1.0)  # of the images of train.py's networks (`training.step.scaled`)
UINT8_RANGE = (0.0, 255.0)  # of a model that scales by itself
MAX_SIDE = 2**16  # px
_COLORS = ("middle", "spread")
MAX_JSON_BYTES = 2**20


@dataclass(frozen=True)
class ModelOverrides:
    """What the caller states about a model; None: not stated.

    Attributes:
        img_size: side of the square images, px.
        um_px: um per px of the image.
        context_um_px: um per px of the coarser second view.
        input_range: what 0 and 255 become before the model takes them.
        resample: the caller may use another `um_px` than that of the training, so a difference is not an error.
    """

    img_size: int | None = None
    um_px: float | None = None
    context_um_px: float | None = None
    input_range: tuple[float, float] | None = None
    resample: bool = False


@dataclass(frozen=True, kw_only=True)
class ModelInfo:
    """What a user of a model must know about it.

    Attributes:
        img_size: side of the square images that the model was trained with, or that it takes, px.
        size_multiple: the model takes images whose sides are any multiples of this, px; None: of `img_size` only.
        um_px: um per px of the image.
        context_um_px: um per px of a coarser second view around the same center, channels 4 to 6; None: no such view.
        classes: number of classes K.
        class_names: names of the K classes.
        input_range: what the uint8 values 0 and 255 become before the model takes them; (0, 255): unchanged.
        output: one of `OUTPUTS`.
        precision: one of `PRECISIONS`, used in training. Every model is stored in float32.
        network: one of `MODELS`; None: another.
        label_map: annotation group to class, as used in training; None: unknown.
        images: number of images that the model was trained with; None: unknown.
        stain: the colors of the training slides: `norm`, how they were normalized, one of `STAIN_NORMS`; `targets`,
            what `slides.stain` estimates for their median, by method; `colors`, their `slides.stain.known_stains`.
            None: unknown, not normalized.
        freeze_bn: batch normalization kept its pre-trained statistics in training.
        norm: one of `NORMS`.
        um_px_tolerance: share of `um_px` within which levels of slides were taken as they are.
    """

    img_size: int
    um_px: float
    classes: int
    class_names: tuple[str, ...]
    output: str
    input_range: tuple[float, float] = TRAINED_RANGE
    size_multiple: int | None = None
    context_um_px: float | None = None
    precision: str = "float32"
    network: str | None = None
    label_map: Mapping[str, int] | None = None
    images: int | None = None
    stain: Mapping[str, Any] | None = None
    freeze_bn: bool = False
    norm: str = "batch"
    um_px_tolerance: float = 0.0

    @property
    def stain_norm(self) -> str:
        """How stains were normalized in training, one of `STAIN_NORMS`."""
        return "none" if self.stain is None else str(self.stain["norm"])

    @property
    def channels(self) -> int:
        """Channels C of an image: RGB, and of a model with a context view RGB of that."""
        return 3 if self.context_um_px is None else 6

    def as_json(self) -> dict[str, Any]:
        """Return the information as JSON types."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        lists = {"class_names": list(self.class_names), "input_range": list(self.input_range)}
        return {"format": FORMAT, "widefov_version": __version__} | values | lists | {"channels": self.channels}


def of_run(options: Mapping[str, Any], network: str, images: int) -> ModelInfo:
    """Describe the network of a run of train.py, which gives logits.

    Args:
        options: options of the run, as JSON types (`State.options`, `options.json`).
        network: name of the network.
        images: number of images trained so far.

    Raises:
        ValueError: an option is missing or has a value that train.py does not write.
    """
    try:
        label_map = options["label_map"] or DEFAULT_LABEL_MAP
        classes = options["classes"] or class_count(label_map, options["mask_values"])
        if not _KEYS["classes"][1](classes):
            raise ValueError(f"classes is {str(classes)[:80]!r}; must be {_KEYS['classes'][0]}")
        raw = {
            "format": FORMAT, "img_size": options["img_size"], "um_px": options["resolution"],
            "context_um_px": options["context_spacing"], "classes": classes,
            "class_names": class_names(label_map, classes), "output": "logits", "input_range": list(TRAINED_RANGE),
            "size_multiple": None, "precision": options["mixed_precision"],
            "network": network if network in MODELS else None, "label_map": dict(label_map), "images": images,
            "stain": options.get("model_stain"), "freeze_bn": options.get("freeze_bn", False),
            "norm": options.get("norm", "batch"),
            "um_px_tolerance": options.get("resolution_tolerance", 0.0),
        }  # fmt: skip
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"not the options of a run of train.py: {error!r}") from error
    return from_json(raw)


def class_count(label_map: Mapping[str, int], mask_values: Mapping[Any, int] | None) -> int:
    """Return the number of classes in labels: one more than the largest class, and at least 2."""
    values = [cls for cls in (*label_map.values(), *(mask_values or {}).values()) if cls != IGNORE]
    return max(2, *(value + 1 for value in values)) if values else 2


def class_names(label_map: Mapping[str, int], classes: int) -> list[str]:
    """Name every class: after its annotation groups, or by what CAMELYON's groups stand for."""

    def name(cls: int) -> str:
        groups = [group for group, its_class in label_map.items() if its_class == cls]
        if groups and any(DEFAULT_LABEL_MAP.get(group) != cls for group in groups):
            return "+".join(groups)
        if cls == 0 and not groups:
            return "normal" if name(1) == DEFAULT_NAMES[1] else "background"
        return DEFAULT_NAMES[cls] if groups else f"class {cls}"

    return [name(cls) for cls in range(classes)]


def current_names(names: Sequence[str]) -> tuple[str, ...]:
    """Return class names in American spelling; the default name of class 1 was British in earlier versions."""
    return tuple(DEFAULT_NAMES[1] if (cls, name) == (1, OLD_TUMOR) else name for cls, name in enumerate(names))


def completed(found: ModelInfo | None, given: ModelOverrides, path: Path, taken: Mapping[str, Any]) -> ModelInfo:
    """Combine what is known about a model: what came with it, what its file shows, and what the caller states.

    Args:
        found: what came with the model, or None.
        given: what the caller states; it must not contradict `found`, except for the size.
        path: path of the model, for messages.
        taken: `img_size` (None: any), `classes` and `output` of the file itself, for a model without information.

    Raises:
        ValueError: something is missing or contradictory; the message names the option that provides it.
    """
    if found is not None:
        stated = {
            "--resolution": (None if given.resample else given.um_px, found.um_px),
            "--context_spacing": (given.context_um_px, found.context_um_px),
        }
        for option, (mine, its) in stated.items():
            if mine is not None and (its is None or not math.isclose(mine, its, rel_tol=1e-6)):
                was = "without a context view" if its is None else f"at {its:g} um/px"
                raise ValueError(f"{option} {mine:g}: {path} was trained {was}; omit the option")
        if given.input_range not in (None, tuple(found.input_range)):
            raise ValueError(f"--input_range {given.input_range}: {path} takes {found.input_range}; omit the option")
        return replace(found, img_size=given.img_size or found.img_size)
    img_size = given.img_size or taken["img_size"]
    missing = [
        option
        for option, value in (
            ("--resolution (um per px)", given.um_px),
            ("--img_size (px)", img_size),
            ("--input_range (-1 1, 0 1 or 0 255: what the values 0 and 255 become)", given.input_range),
        )
        if value is None
    ]
    if missing:
        raise ValueError(f"{path}: no file beside it describes how it was trained; give {', '.join(missing)}")
    classes = taken["classes"]
    return from_json(
        {
            "format": FORMAT, "img_size": img_size, "um_px": given.um_px, "context_um_px": given.context_um_px,
            "classes": classes, "class_names": [f"class {cls}" for cls in range(classes)], "output": taken["output"],
            "input_range": list(given.input_range or ()),
        }
    )  # fmt: skip


# ------------------------------------------------------------------------------------------------------------- JSON


def read(path: Path) -> ModelInfo:
    """Read what `write` wrote.

    Raises:
        ValueError: the file cannot be read, or does not describe a model.
    """
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise ValueError(f"larger than {MAX_JSON_BYTES} bytes")
        raw = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(raw, dict):
            raise ValueError("not a JSON object")
        return from_json(raw)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} does not describe a model: {error}") from error


def write(info: ModelInfo, path: Path) -> None:
    """Write what must be known about a model as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(info.as_json(), indent=1) + "\n", encoding="utf-8")


def _integer(least: int, most: float) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, int) and not isinstance(x, bool) and least <= x <= most


def _number(x: Any) -> bool:
    return isinstance(x, (int, float)) and not isinstance(x, bool) and math.isfinite(x)


def _length(x: Any) -> bool:
    return _number(x) and x > 0


def _named(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(k, str) and _integer(0, 255)(v) for k, v in x.items())


def _numbers(x: Any, shape: tuple[int, ...]) -> bool:
    """Whether x is a list of finite numbers, or a list of lists, of a shape."""
    if not isinstance(x, list) or len(x) != shape[0]:
        return False
    return all(_numbers(one, shape[1:]) if shape[1:] else _number(one) for one in x)


def _stain(x: Any) -> bool:
    """Whether x is what `segmentation.stain.RunStain.model_json` gives."""
    if not isinstance(x, dict) or not _in(STAIN_NORMS)(x.get("norm")) or not isinstance(x.get("targets"), dict):
        return False
    colors, targets = x.get("colors"), x["targets"]
    shapes = {"mean": (3,), "std": (3,), "stains": (2, 3), "most": (2,)}
    names = {"reinhard": {"mean", "std"}, "macenko": {"stains", "most"}, "vahadane": {"stains", "most"}}
    return (
        (x["norm"] == "none" or x["norm"] in targets)
        and all(isinstance(one, dict) and set(one) == names.get(method) for method, one in targets.items())
        and all(_numbers(values, shapes[name]) for one in targets.values() for name, values in one.items())
        and (colors is None or (isinstance(colors, dict) and all(_numbers(colors.get(k), (3,)) for k in _COLORS)))
    )


def _or_none(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda x: x is None or check(x)


def _in(allowed: Iterable[str]) -> Callable[[Any], bool]:
    return lambda x: isinstance(x, str) and x in tuple(allowed)


# What each key must be: a description and a check. Keys with a default may be missing.
_KEYS: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "img_size": ("a whole number of px", _integer(1, MAX_SIDE)),
    "um_px": ("a number above 0", _length),
    "classes": ("a whole number from 2 to 255", _integer(2, 255)),
    "class_names": ("a list of names", lambda x: isinstance(x, list) and all(isinstance(n, str) for n in x)),
    "output": ("logits or probabilities", _in(OUTPUTS)),
    "input_range": (
        "two numbers, the smaller first",
        lambda x: isinstance(x, list) and len(x) == 2 and all(map(_number, x)) and x[0] < x[1],
    ),
    "size_multiple": ("a whole number of px or null", _or_none(_integer(1, MAX_SIDE))),
    "context_um_px": ("a number above 0 or null", _or_none(_length)),
    "precision": (", ".join(PRECISIONS), _in(PRECISIONS)),
    "network": (f"{', '.join(MODELS)} or null", _or_none(_in(MODELS))),
    "label_map": ("groups with their classes, or null", _or_none(_named)),
    "images": ("a whole number or null", _or_none(_integer(0, math.inf))),
    "norm": (", ".join(NORMS), _in(NORMS)),
    "freeze_bn": ("true or false", lambda x: isinstance(x, bool)),
    "stain": ("norm, targets and colors, or null", _or_none(_stain)),
    "um_px_tolerance": ("a number from 0 to below 1", lambda x: _number(x) and 0 <= x < 1),
}
_NEEDED = ("img_size", "um_px", "classes", "class_names", "output", "input_range")


def from_json(raw: Mapping[str, Any]) -> ModelInfo:
    """Return the inverse of `ModelInfo.as_json`; unknown keys are ignored.

    Raises:
        ValueError: a key is missing or has a value that is not allowed.
    """
    if raw.get("format") != FORMAT:
        raise ValueError(f"format is {raw.get('format')!r}; must be {FORMAT!r}")
    missing = [name for name in _NEEDED if name not in raw]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing")
    known = {name: raw[name] for name in _KEYS if name in raw}
    for name, value in known.items():
        expected, allowed = _KEYS[name]
        if not allowed(value):
            raise ValueError(f"{name} is {str(value)[:80]!r}; must be {expected}")
    known |= {name: tuple(known[name]) for name in ("class_names", "input_range")}
    if OLD_TUMOR not in (known.get("label_map") or {}):
        known["class_names"] = current_names(known["class_names"])
    info = ModelInfo(**known)
    if len(info.class_names) != info.classes:
        raise ValueError(f"{len(info.class_names)} class_names for {info.classes} classes")
    if info.context_um_px is not None and info.context_um_px <= info.um_px:
        raise ValueError(f"context_um_px {info.context_um_px:g} must be coarser than um_px {info.um_px:g}")
    return info
