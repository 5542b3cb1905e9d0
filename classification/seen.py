"""What the network said of the images it was trained on since the last log line: training scores are made of it.

Shapes: B images, K outputs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from classification.inputs import Inputs
from classification.scores import scores
from parallel.comm import Comm


class Seen:
    """Logits by image counter, of this rank.

    Args:
        outputs: K.
    """

    def __init__(self, outputs: int) -> None:
        self._outputs = outputs
        self._logits: dict[int, NDArray[np.float32]] = {}

    def add(self, indices: Sequence[int], logits_BK: Any) -> None:
        """Add the images of a step."""
        self._logits |= dict(zip(indices, np.asarray(logits_BK, np.float32), strict=True))

    def totals(self, comm: Comm) -> tuple[list[int], NDArray[np.float32]]:
        """Image counters and logits_BK of all ranks, in order; every rank must call it."""
        parts = comm.gather(self._logits)
        # Ranks: those that share images have the same ones.
        together = {index: logits_K for part in parts for index, logits_K in part.items()}
        found = {index: together[index] for index in sorted(together)}
        return list(found), np.array(list(found.values()), np.float32).reshape(-1, self._outputs)

    def scored(self, inputs: Inputs, comm: Comm) -> dict[str, float]:
        """Scores of the images, by the names used in logs, and begin again; every rank must call it."""
        indices, logits_BK = self.totals(comm)
        self._logits = {}
        labeled = [inputs.draws.at(index)[0] for index in indices]
        return scores(inputs.targets, labeled, logits_BK, resamples=0).logged()

    def state(self, comm: Comm) -> dict[str, NDArray[Any]]:
        """What a checkpoint must keep; every rank must call it."""
        indices, logits_BK = self.totals(comm)
        return {"seen_index": np.array(indices, np.int64), "seen_logits": logits_BK}

    def restore(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Take what `state` returned; one rank for all."""
        self._logits = dict(zip(arrays["seen_index"].tolist(), arrays["seen_logits"], strict=True))
