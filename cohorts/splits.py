"""Hold out a share of the slides for validation."""

import hashlib
from collections.abc import Mapping, Sequence

from cohorts.pairing import Case

NORMAL = "normal"
_HELP = "give separate validation slides (valid_slide_path, valid_label_path), or more slides"


def split(cases: Sequence[Case], val_share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Hold out about `val_share` of the slides, without dividing a patient.

    Slides of a known patient form a group; any other slide is a group of its own. Groups with a labeled slide and
    groups without are split separately, each as close to `val_share` as the groups allow; of two or more groups of a
    kind, both sets get at least one. A single labeled group is trained on. For a seed, the same slides give the same
    sets in any order and on any machine: the order of groups is a hash of seed and name, so additional slides do not
    change the order of the others.

    Args:
        cases: slides, each id once.
        val_share: share of slides for validation, above 0 and below 1.
        seed: seed of the split.

    Returns:
        Training cases and validation cases, both sorted by id, neither empty, no slide or patient in both.

    Raises:
        ValueError: `val_share` is out of range, an id occurs twice, or there are fewer than two groups.
    """
    if not 0 < val_share < 1:
        raise ValueError(f"val_split {val_share} must be above 0 and below 1: it is the share of slides to validate on")
    ids = [case.slide_id for case in cases]
    if len(set(ids)) < len(ids):
        twice = sorted({slide_id for slide_id in ids if ids.count(slide_id) > 1})
        raise ValueError(f"slides occur twice and could be in both sets: {', '.join(twice[:10])}; keep one of each")
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault(("patient", case.patient) if case.patient else ("slide", case.slide_id), []).append(case)
    if len(groups) < 2:
        given = f"{len(cases)} slides of one patient" if len(cases) > 1 else "fewer than two slides"
        raise ValueError(f"{given} cannot be split into training and validation; {_HELP}")
    # The key only breaks ties between equal digests.
    keys = sorted(groups, key=lambda key: (hashlib.sha256(f"{seed}/{key[0]}/{key[1]}".encode()).digest(), key))
    labeled = [groups[key] for key in keys if any(case.labeled for case in groups[key])]
    normal = [groups[key] for key in keys if not any(case.labeled for case in groups[key])]
    held = labeled[: _groups_held(labeled, val_share, range(1, len(labeled)) if len(labeled) > 1 else range(1))]
    # A single normal group may go to either set as long as the other is not empty.
    most = range(1, len(normal)) if len(normal) > 1 else range(0 if held else len(normal), len(normal) + 1)
    held = held + normal[: _groups_held(normal, val_share, most)]
    val = sorted((case for group in held for case in group), key=lambda case: case.slide_id)
    held_ids = {case.slide_id for case in val}
    train = sorted((case for case in cases if case.slide_id not in held_ids), key=lambda case: case.slide_id)
    assert train, "a split leaves slides to train on"
    assert val, "a split leaves slides to validate on"
    return train, val


def _groups_held(groups: Sequence[Sequence[Case]], val_share: float, allowed: range) -> int:
    """Number of first groups whose slides come closest to the share; the smallest of equals."""
    target = val_share * sum(len(group) for group in groups)
    return min(allowed, key=lambda count: abs(sum(len(group) for group in groups[:count]) - target))


def stratified(cases: Sequence[Case], class_of: Mapping[str, str], val_share: float, seed: int) -> frozenset[str]:
    """Ids of validation slides: about `val_share` of every class, spread over centers, without dividing a patient.

    Patients (a slide without a patient is its own) are ordered as in `split`. The centers of a class are visited one by
    one, and each holds out as many patients as bring the share of all slides so far closest to `val_share`: small
    centers, which would not contribute a whole patient alone, contribute together. Of two or more patients of a class,
    both sets get at least one.

    Args:
        cases: slides, each id once.
        class_of: slide id -> class. The class of a patient is that of its first slide that is not `normal`.
        val_share: share of slides for validation, above 0 and below 1.
        seed: seed of the split.

    Returns:
        Empty for fewer than two patients.
    """
    groups: dict[str, list[Case]] = {}
    for case in sorted(cases, key=lambda case: case.slide_id):
        groups.setdefault(f"patient/{case.patient}" if case.patient else f"slide/{case.slide_id}", []).append(case)
    if len(groups) < 2:
        return frozenset()
    strata: dict[str, dict[int, list[list[Case]]]] = {}
    for key in sorted(groups, key=lambda key: (hashlib.sha256(f"{seed}/{key}".encode()).digest(), key)):
        group = groups[key]
        classes = sorted({class_of[case.slide_id] for case in group}, key=lambda name: (name == NORMAL, name))
        center = -1 if group[0].center is None else group[0].center
        strata.setdefault(classes[0], {}).setdefault(center, []).append(group)
    held = [group for name in sorted(strata) for group in _spread(strata[name], val_share)]
    # Two patients of two classes: neither class could spare one.
    if not held:
        held = [next(iter(strata[NORMAL if NORMAL in strata else min(strata)].values()))[0]]
    return frozenset(case.slide_id for group in held for case in group)


def _spread(by_center: Mapping[int, Sequence[Sequence[Case]]], val_share: float) -> list[Sequence[Case]]:
    """Groups of one class to hold out; of two or more groups at least one, but not all."""
    held: list[Sequence[Case]] = []
    slides = seen = 0
    for center in sorted(by_center):
        groups = by_center[center]
        seen += sum(len(group) for group in groups)
        sizes = [slides + sum(len(group) for group in groups[:count]) for count in range(len(groups) + 1)]
        off = [abs(size - val_share * seen) for size in sizes]
        count = off.index(min(off))
        held += groups[:count]
        slides = sizes[count]
    largest = max(sorted(by_center), key=lambda center: len(by_center[center]))
    total = sum(len(groups) for groups in by_center.values())
    if not held and total > 1:
        return [by_center[largest][0]]
    return held[:-1] if len(held) == total else held
