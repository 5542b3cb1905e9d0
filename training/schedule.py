"""Learning rate and events, both functions of the image counter (images over all ranks)."""

from __future__ import annotations

import math

SCHEDULES = ("constant", "cosine")


def learning_rate(images: int, base: float, ranks: int, warmup: int, total: int, schedule: str) -> float:
    """Learning rate of the step that starts at `images`.

    Linear scaling with warm-up (Goyal et al. 2017, arXiv:1706.02677): the target is base x ranks, reached linearly from
    0 over the first `warmup` images; then constant, or a half cosine down to 1 % of the target at `total`.

    Args:
        images: images trained so far, over all ranks.
        base: learning rate for one rank.
        ranks: number of ranks.
        warmup: length of the warm-up, images; 0 for none.
        total: length of the training, images.
        schedule: one of `SCHEDULES`.
    """
    target = base * ranks
    if images < warmup:
        # images + 1: a first step at rate 0 would be a wasted one
        return target * (images + 1) / warmup
    if schedule == "constant":
        return target
    progress = min(1.0, (images - warmup) / max(1, total - warmup))
    return target * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def passed(before: int, after: int, every: int) -> bool:
    """True when the counter passed (or reached) a multiple of `every` on its way from `before` to `after`.

    The counter grows by the global batch, which rarely divides `every`: equality would fire late or never.
    """
    return after // every > before // every
