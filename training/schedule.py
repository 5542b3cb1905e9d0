"""Learning rate and events, both functions of the image counter (images over all ranks)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from options.choices import LR_SCALINGS, SCHEDULES

LOWEST = 0.01  # of the target: where the half cosine ends
CYCLE_LOWEST = 0.1  # of the target: between two triangles
POWER = 0.9  # of `poly`


@dataclass(frozen=True)
class Schedule:
    """Learning rate by image counter.

    The target is `base_lr` x `scaling(joint batch / batch of a rank)`, of which the latter is that with which the run
    began: a run resumed on other ranks, with the same joint batch, keeps its rate. The target is reached linearly from
    0 over the first `warmup` images (Goyal et al. 2017, arXiv:1706.02677), and then, with p the share of the rest that
    is done,

    - constant: stays;
    - cosine: falls by half a cosine to 1 % of the target (Loshchilov and Hutter 2017, arXiv:1608.03983);
    - poly: falls as (1 - p)^0.9 (Chen et al. 2018, DeepLab, arXiv:1606.00915);
    - cyclic: triangles between 10 % of the target and the target, `cycle` images each, beginning at the target (Smith
      2017, arXiv:1506.01186).

    Attributes:
        name: constant, cosine, cyclic or poly.
        target: see above.
        warmup: images; 0 for none.
        total: length of the training, images.
        cycle: length of a triangle, images.
    """

    name: str
    target: float
    warmup: int
    total: int
    cycle: int

    def __post_init__(self) -> None:
        """Refuse unknown names, at the start and not after the warm-up."""
        if self.name not in SCHEDULES:
            raise ValueError(f"learning rate schedule {self.name!r} is unknown; choose one of {', '.join(SCHEDULES)}")

    def rate(self, images: int) -> float:
        """Learning rate of the step that starts at `images`."""
        if images < self.warmup:
            # images + 1: a first step at rate 0 would be a wasted one
            return self.target * (images + 1) / self.warmup
        done = images - self.warmup
        progress = min(1.0, done / max(1, self.total - self.warmup))
        if self.name == "cosine":
            return self.target * (LOWEST + (1 - LOWEST) * 0.5 * (1 + math.cos(math.pi * progress)))
        if self.name == "poly":
            # A step past the end, which a resumed run may have, still trains.
            return self.target * max(float((1 - progress) ** POWER), 1e-3)
        if self.name == "cyclic":
            height = abs(1 - 2 * ((done / self.cycle) % 1))
            return self.target * (CYCLE_LOWEST + (1 - CYCLE_LOWEST) * height)
        if self.name == "constant":
            return self.target
        raise ValueError(f"learning rate schedule {self.name!r} is unknown")


def of_options(options: Mapping[str, Any], joint_batch: int, base_batch: int) -> Schedule:
    """The schedule of a run.

    Args:
        options: of training, by name.
        joint_batch: patches of a step, over all ranks and passes.
        base_batch: patches to which `--base_lr` belongs.
    """
    target = options["base_lr"] * scaling(options["lr_scaling"], joint_batch / base_batch)
    return Schedule(options["lr_schedule"], target, options["warmup"], options["num_steps"], options["lr_cycle"])


def scaling(rule: str, batches: float) -> float:
    """Factor of the learning rate for a joint batch made of several batches: linear, sqrt or none.

    Linear: Goyal et al. 2017, for SGD. Square root: Krizhevsky 2014 (arXiv:1404.5997), and for Adam-like updates
    Malladi et al. 2022 (arXiv:2205.10287).

    Args:
        rule: linear, sqrt or none.
        batches: ranks x passes of a step; a fraction where a resumed run has another batch per rank.
    """
    if rule not in LR_SCALINGS:
        raise ValueError(f"learning rate scaling {rule!r} is unknown; choose one of {', '.join(LR_SCALINGS)}")
    return {"linear": float(batches), "sqrt": math.sqrt(batches), "none": 1.0}[rule]


def passed(before: int, after: int, every: int) -> bool:
    """True when the counter passed (or reached) a multiple of `every` on its way from `before` to `after`.

    The counter grows by the global batch, which rarely divides `every`: equality would fire late or never.
    """
    return after // every > before // every
