"""Hold out a share of the slides for validation."""

import hashlib
from collections.abc import Mapping, Sequence

from cohorts.pairing import Case

NORMAL = "normal"
_HELP = "give validation slides of their own (valid_slide_path, valid_label_path), or more slides"


def split(cases: Sequence[Case], val_share: float, seed: int) -> tuple[list[Case], list[Case]]:
    """Hold out about `val_share` of the slides, never a part of a patient.

    Slides of one known patient stay together, any other slide stands for itself. Groups with a labelled slide and
    groups without are shared out apart, each as near to `val_share` as its groups allow; of two or more groups of a
    kind both sets get one. A single labelled group is trained on. The same slides give the same sets for a seed in any
    order and on any machine: places come from a hash of seed and name, so that further slides leave the order of the
    others as it is.

    Args:
        cases: slides, each id once.
        val_share: share of slides for validation, above 0 and below 1.
        seed: another seed is another split.

    Returns:
        Training cases and validation cases, both sorted by id, neither empty, no slide or patient in both.

    Raises:
        ValueError: `val_share` is out of range, an id occurs twice, or there are less than two groups.
    """
    if not 0 < val_share < 1:
        raise ValueError(
            f"val_split {val_share} must lie above 0 and below 1: it is the share of slides to validate on"
        )
    ids = [case.slide_id for case in cases]
    if len(set(ids)) < len(ids):
        twice = sorted({slide_id for slide_id in ids if ids.count(slide_id) > 1})
        raise ValueError(f"slides occur twice and could end up in both sets: {', '.join(twice[:10])}; keep one of each")
    groups: dict[tuple[str, str], list[Case]] = {}
    for case in cases:
        groups.setdefault(("patient", case.patient) if case.patient else ("slide", case.slide_id), []).append(case)
    if len(groups) < 2:
        given = f"{len(cases)} slides of one patient" if len(cases) > 1 else "fewer than two slides"
        raise ValueError(f"{given} cannot be split into training and validation; {_HELP}")
    # The digest alone would do; the key decides between equal digests.
    keys = sorted(groups, key=lambda key: (hashlib.sha256(f"{seed}/{key[0]}/{key[1]}".encode()).digest(), key))
    labelled = [groups[key] for key in keys if any(case.labelled for case in groups[key])]
    normal = [groups[key] for key in keys if not any(case.labelled for case in groups[key])]
    held = labelled[: _groups_held(labelled, val_share, range(1, len(labelled)) if len(labelled) > 1 else range(1))]
    # One normal group may go to either set as long as the other holds something.
    most = range(1, len(normal)) if len(normal) > 1 else range(0 if held else len(normal), len(normal) + 1)
    held = held + normal[: _groups_held(normal, val_share, most)]
    val = sorted((case for group in held for case in group), key=lambda case: case.slide_id)
    held_ids = {case.slide_id for case in val}
    train = sorted((case for case in cases if case.slide_id not in held_ids), key=lambda case: case.slide_id)
    assert train, "a split leaves something to train on"
    assert val, "a split leaves something to validate on"
    return train, val


def _groups_held(groups: Sequence[Sequence[Case]], val_share: float, allowed: range) -> int:
    """How many of the first groups hold a number of slides nearest to the share; of equals the fewest."""
    target = val_share * sum(len(group) for group in groups)
    return min(allowed, key=lambda count: abs(sum(len(group) for group in groups[:count]) - target))


def stratified(cases: Sequence[Case], class_of: Mapping[str, str], val_share: float, seed: int) -> frozenset[str]:
    """Ids of slides to validate on: about `val_share` of every class, spread over centres, never a part of a patient.

    Patients (slides without one stand for themselves) are ordered as in `split`. Centres of a class are gone through
    one by one, each holding out as many as bring the share of all so far nearest to `val_share`: small centres, of
    which no whole patient would be due, still share. Of two or more patients of a class both sets get one.

    Args:
        cases: slides, each id once.
        class_of: slide id -> class. A patient has the class of its first slide that is not `normal`.
        val_share: share of slides for validation, above 0 and below 1.
        seed: another seed is another split.

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
        centre = -1 if group[0].centre is None else group[0].centre
        strata.setdefault(classes[0], {}).setdefault(centre, []).append(group)
    held = [group for name in sorted(strata) for group in _spread(strata[name], val_share)]
    # Two patients of two classes: neither class had one to spare.
    if not held:
        held = [next(iter(strata[NORMAL if NORMAL in strata else min(strata)].values()))[0]]
    return frozenset(case.slide_id for group in held for case in group)


def _spread(by_centre: Mapping[int, Sequence[Sequence[Case]]], val_share: float) -> list[Sequence[Case]]:
    """Groups of one class to hold out; neither none nor all of two or more."""
    held: list[Sequence[Case]] = []
    slides = seen = 0
    for centre in sorted(by_centre):
        groups = by_centre[centre]
        seen += sum(len(group) for group in groups)
        sizes = [slides + sum(len(group) for group in groups[:count]) for count in range(len(groups) + 1)]
        off = [abs(size - val_share * seen) for size in sizes]
        count = off.index(min(off))
        held += groups[:count]
        slides = sizes[count]
    largest = max(sorted(by_centre), key=lambda centre: len(by_centre[centre]))
    total = sum(len(groups) for groups in by_centre.values())
    if not held and total > 1:
        return [by_centre[largest][0]]
    return held[:-1] if len(held) == total else held
