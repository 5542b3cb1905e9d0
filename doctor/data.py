"""Check slides and labels: whether they pair, open, have a spacing, and can be read with their truth."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from cohorts.pairing import Case, named
from cohorts.sets import Chosen
from doctor.job import Task
from doctor.report import Finding, failed, passed, warned
from slides.truth.mask_truth import MaskTruth
from slides.truth.reading import Reading
from system.csv_tables import counted

MOST_SLIDES = 200
SECONDS = 60.0
WINDOW_PX = 512
# Masks up to this many px are searched for tumor; larger ones are assumed to contain some.
SEARCHED_PX = 64 * 2**20
WORKERS = 4
_NAMED = 3


@dataclass(frozen=True)
class Examined:
    """Result of opening one slide with its truth.

    Attributes:
        case: files of the slide.
        error: why the slide cannot be used; empty if it can.
        um_px: um per level-0 px, the coarser of both axes.
        side_um: longer side of the slide, um.
        tumor: whether the truth has a class other than 0.
        notes: notes of the truth, such as repaired outlines.
    """

    case: Case
    error: str = ""
    um_px: float = 0.0
    side_um: float = 0.0
    tumor: bool = False
    notes: tuple[str, ...] = ()


def pairing(find: Callable[[], Chosen]) -> tuple[list[Finding], list[Case], list[Case]]:
    """Pair slides with labels; returns findings, training and validation cases, which are empty on an error."""
    try:
        train, val, notes = find()
    except (ValueError, OSError) as error:
        message, _, fix = str(error).rpartition("; ")
        return [failed("pairing", message or str(error), fix or "see the message")], [], []
    found = [passed("pairing", f"training {_pairs(train)}; validation {_pairs(val)}")]
    found += [warned("pairing", note, "remove the slide if this is not intended") for note in notes]
    return found, train, val


def _pairs(cases: Sequence[Case]) -> str:
    count, labeled = len(cases), sum(case.labeled for case in cases)
    return f"{count} slide{'s' * (count != 1)} ({labeled} with a label, {count - labeled} without, treated as normal)"


def examine_all(cases: Sequence[Case], reading: Reading, task: Task) -> tuple[list[Examined], int]:
    """Open slides and truths and read a window of each; of more than `MOST_SLIDES` a fixed random choice.

    Returns:
        Results, and how many slides were chosen; there are fewer results if time ran out.
    """
    chosen = list(cases)
    if len(chosen) > MOST_SLIDES:
        chosen = random.Random(0).sample(chosen, MOST_SLIDES)  # noqa: S311  # no secret
    deadline = time.monotonic() + SECONDS

    def one(case: Case) -> Examined | None:
        return examine(case, reading, task) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(max_workers=WORKERS) as pool:
        return [examined for examined in pool.map(one, chosen) if examined is not None], len(chosen)


def examine(case: Case, reading: Reading, task: Task) -> Examined:
    """Open one slide with its truth, and read its middle."""
    try:
        slide = reading.open_slide(case.slide_path, case.um_px)
        truth = reading.open_truth(case.label_path, slide)
        width, height = slide.size_xy_l0
        side = min(task.img_size, WINDOW_PX)
        window = slide.window((width / 2, height / 2), (side, side), task.um_px)
        slide.read(window)
        truth.label(window)
        searched = not isinstance(truth, MaskTruth) or width * height <= SEARCHED_PX
        tumor = bool(set(truth.classes) - {0}) if searched else True
    except Exception as error:
        message = str(error) if isinstance(error, (ValueError, OSError)) else f"{case.slide_path}: {error!r}"
        return Examined(case, message)
    um_x, um_y = slide.um_px_xy_l0
    return Examined(case, "", max(um_x, um_y), max(width * um_x, height * um_y), tumor, truth.notes)


def opened(examined: Sequence[Examined], chosen: int, total: int) -> Iterator[Finding]:
    """Whether slides and labels can be used."""
    bad = [one for one in examined if one.error]
    why = f", time ran out after {SECONDS:.0f} s" if len(examined) < chosen else ""
    of = f"{len(examined)} of " if len(examined) < total else ""
    scope = f"{of}{counted(total, 'slide')} checked{why}"
    if bad:
        shown = "; ".join(one.error for one in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        yield failed(
            "slides", f"{len(bad)} cannot be used ({scope}): {shown}{more}", "repair or remove the files named"
        )
    else:
        yield passed("slides", f"can be read with their truth: {scope}")
    notes = Counter(note.split(": ", 1)[-1].split(":")[0] for one in examined for note in one.notes)
    if notes:
        first = next(note for one in examined for note in one.notes)
        yield warned(
            "labels", f"{sum(notes.values())} notes, first: {first}", "inspect these annotations in ASAP or QuPath"
        )


def spacing(examined: Sequence[Examined], task: Task) -> Iterator[Finding]:
    """Whether slides are at least as fine as the patches, and large enough for one."""
    good = [one for one in examined if not one.error]
    if not good:
        return
    coarse = [one for one in good if one.um_px > task.um_px * max(1.01, 1 + task.tolerance)]
    low, high = min(one.um_px for one in good), max(one.um_px for one in good)
    span = f"{low:.4g}" if high - low < 1e-4 * high else f"{low:.4g} to {high:.4g}"
    if coarse:
        yield warned(
            "spacing",
            f"{len(coarse)} of {len(good)} slides are coarser ({max(o.um_px for o in coarse):.4g} um/px) than "
            f"--resolution {task.um_px:g}, first {coarse[0].case.slide_path}: they would be upsampled",
            f"--resolution {high:.4g}, or --mpp if their spacing is wrong",
        )
    else:
        yield passed("spacing", f"{span} um/px, patches at {task.um_px:g}")
    side_um = task.img_size * task.um_px
    largest = max(one.side_um for one in good)
    small = [one for one in good if one.side_um < side_um]
    if len(small) == len(good):
        yield failed(
            "field", f"{side_um:.0f} um is larger than every slide ({largest:.0f} um)", "a smaller --img_size or "
            "a finer --resolution"
        )  # fmt: skip
    elif small:
        yield warned(
            "field",
            f"{side_um:.0f} um is larger than {len(small)} of {len(good)} slides, first {small[0].case.slide_path}: "
            "their patches are padded with white",
            "a smaller --img_size",
        )


def classes(train: Sequence[Examined], val: Sequence[Examined]) -> Iterator[Finding]:
    """Whether both tumor and normal slides occur, in training and in validation."""
    counts = {}
    for name, examined in (("training", train), ("validation", val)):
        good = [one for one in examined if not one.error]
        if not good:
            continue
        with_tumor = [one for one in good if one.tumor]
        counts[name] = f"{name} {len(with_tumor)} with tumor, {len(good) - len(with_tumor)} without"
        empty = [one.case.label_path for one in good if one.case.label_path is not None and not one.tumor]
        if empty:
            yield warned(
                "classes",
                f"{len(empty)} {name} labels contain no tumor: {named(empty[:_NAMED])}",
                "check --label_map (or --mask_values), and whether these labels should be empty",
            )
        if not with_tumor and name == "training":
            yield failed("classes", "no training slide has tumor", "add some, or check labels and --label_map")
        elif not with_tumor:
            yield warned(
                "classes", "no validation slide has tumor: scores are meaningless", "hold out a slide with tumor"
            )
        elif len(with_tumor) == len(good) and name == "training":
            yield warned(
                "classes",
                "all training slides have tumor: normal tissue is sampled only beside tumor",
                "add normal slides if you have any",
            )
    if counts:
        yield passed("classes", "; ".join(counts.values()))
