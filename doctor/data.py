"""Slides and labels: whether they pair, open, tell their spacing, and can be read with their truth."""

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
from samplers.dataset import Reading
from slides.reader import Slide
from slides.truth.interface import MaskTruth, open_truth

MOST_SLIDES = 200
SECONDS = 60.0
WINDOW_PX = 512
# Masks up to this size are searched for tumour; of larger ones a window is read, and tumour is taken for granted.
SEARCHED_PX = 64 * 2**20
_WORKERS = 4
_NAMED = 3


@dataclass(frozen=True)
class Looked:
    """What one slide gave.

    Attributes:
        case: its files.
        error: why it cannot be used; empty when it can.
        um_px: um per level-0 px.
        side_um: its longer side, um.
        tumour: whether its truth has a class other than 0.
        notes: what its truth noted.
    """

    case: Case
    error: str = ""
    um_px: float = 0.0
    side_um: float = 0.0
    tumour: bool = False
    notes: tuple[str, ...] = ()


def pairing(find: Callable[[], Chosen]) -> tuple[list[Finding], list[Case], list[Case]]:
    """Slides with their labels; no cases where they do not pair."""
    try:
        train, val, notes = find()
    except (ValueError, OSError) as error:
        message, _, fix = str(error).rpartition("; ")
        return [failed("pairing", message or str(error), fix or "see the message")], [], []
    found = [passed("pairing", f"training {_pairs(train)}; validation {_pairs(val)}")]
    found += [warned("pairing", note, "take it out if that is not wanted") for note in notes]
    return found, train, val


def _pairs(cases: Sequence[Case]) -> str:
    count, labelled = len(cases), sum(case.labeled for case in cases)
    return f"{count} slide{'s' * (count != 1)} ({labelled} with a label, {count - labelled} without, taken as normal)"


def look_at(cases: Sequence[Case], how: Reading, task: Task) -> tuple[list[Looked], int]:
    """Open slides and truths and read a window of each; a fixed choice of them where they are many.

    Returns:
        What was found, and how many were chosen. Fewer are found than chosen when time ran out.
    """
    chosen = list(cases)
    if len(chosen) > MOST_SLIDES:
        chosen = random.Random(0).sample(chosen, MOST_SLIDES)  # noqa: S311  # no secret
    deadline = time.monotonic() + SECONDS

    def one(case: Case) -> Looked | None:
        return look(case, how, task) if time.monotonic() < deadline else None

    with ThreadPoolExecutor(max_workers=_WORKERS) as pool:
        return [looked for looked in pool.map(one, chosen) if looked is not None], len(chosen)


def look(case: Case, how: Reading, task: Task) -> Looked:
    """Open one slide with its truth, and read its middle."""
    try:
        slide = Slide(case.slide_path, um_px=how.um_px_l0)
        truth = open_truth(case.label_path, slide, how.label_map, how.ignore_groups, how.mask_values)
        width, height = slide.size_xy_l0
        side = min(task.img_size, WINDOW_PX)
        window = slide.window((width / 2, height / 2), (side, side), task.um_px)
        slide.read(window)
        truth.label(window)
        searched = not isinstance(truth, MaskTruth) or width * height <= SEARCHED_PX
        tumour = bool(set(truth.classes) - {0}) if searched else True
    except Exception as error:
        return Looked(case, str(error) if isinstance(error, (ValueError, OSError)) else f"{case.slide_path}: {error!r}")
    um_x, um_y = slide.um_px_xy_l0
    return Looked(case, "", max(um_x, um_y), max(width * um_x, height * um_y), tumour, truth.notes)


def opened(looked: Sequence[Looked], chosen: int, total: int) -> Iterator[Finding]:
    """Whether slides and labels can be used."""
    bad = [one for one in looked if one.error]
    of = f" of {total}" if len(looked) < total else ""
    why = f", time ran out after {SECONDS:.0f} s" if len(looked) < chosen else ""
    scope = f"{len(looked)}{of} slides looked at{why}"
    if bad:
        shown = "; ".join(one.error for one in bad[:_NAMED])
        more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        yield failed(
            "slides", f"{len(bad)} cannot be used ({scope}): {shown}{more}", "mend or remove what each message names"
        )
    else:
        yield passed("slides", f"open, read and have their truth: {scope}")
    notes = Counter(note.split(": ", 1)[-1].split(":")[0] for one in looked for note in one.notes)
    if notes:
        first = next(note for one in looked for note in one.notes)
        yield warned(
            "labels", f"{sum(notes.values())} notes, first: {first}", "look at these annotations in ASAP or QuPath"
        )


def spacing(looked: Sequence[Looked], task: Task) -> Iterator[Finding]:
    """Whether slides are at least as fine as the patches, and large enough for one."""
    good = [one for one in looked if not one.error]
    if not good:
        return
    coarse = [one for one in good if one.um_px > task.um_px * 1.01]
    low, high = min(one.um_px for one in good), max(one.um_px for one in good)
    span = f"{low:.4g}" if high - low < 1e-4 * high else f"{low:.4g} to {high:.4g}"
    if coarse:
        yield warned(
            "spacing",
            f"{len(coarse)} of {len(good)} slides are coarser ({max(o.um_px for o in coarse):.4g} um/px) than "
            f"--resolution {task.um_px:g}, first {coarse[0].case.slide_path}: their pixels would be enlarged",
            f"--resolution {high:.4g}, or --mpp if their spacing is wrong",
        )
    else:
        yield passed("spacing", f"{span} um/px, patches at {task.um_px:g}")
    side_um = task.img_size * task.um_px
    largest = max(one.side_um for one in good)
    small = [one for one in good if one.side_um < side_um]
    if len(small) == len(good):
        yield failed(
            "field", f"{side_um:.0f} um is more than any slide has ({largest:.0f} um)", "a smaller --img_size or "
            "a finer --resolution"
        )  # fmt: skip
    elif small:
        yield warned(
            "field",
            f"{side_um:.0f} um is more than {len(small)} of {len(good)} slides have, first {small[0].case.slide_path}",
            "patches of these are padded with white; a smaller --img_size",
        )


def classes(train: Sequence[Looked], val: Sequence[Looked]) -> Iterator[Finding]:
    """Whether there is something to find, and something to tell it from."""
    counts = {}
    for name, looked in (("training", train), ("validation", val)):
        good = [one for one in looked if not one.error]
        if not good:
            continue
        with_tumour = [one for one in good if one.tumour]
        counts[name] = f"{name} {len(with_tumour)} with tumour, {len(good) - len(with_tumour)} without"
        empty = [one.case.label_path for one in good if one.case.label_path is not None and not one.tumour]
        if empty:
            yield warned(
                "classes",
                f"{len(empty)} labels of {name} hold no tumour: {named(empty[:_NAMED])}",
                "check --label_map (or --mask_values), and whether these labels are meant to be empty",
            )
        if not with_tumour and name == "training":
            yield failed("classes", "no training slide has tumour", "add some, or check labels and --label_map")
        elif not with_tumour:
            yield warned(
                "classes", "no validation slide has tumour: scores say nothing", "hold out a slide with tumour"
            )
        elif len(with_tumour) == len(good) and name == "training":
            yield warned(
                "classes",
                "no training slide is without tumour: normal tissue comes from beside tumour only",
                "add normal slides, if there are any",
            )
    if counts:
        yield passed("classes", "; ".join(counts.values()))
