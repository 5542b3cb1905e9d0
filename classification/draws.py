"""Which slide is seen at which image counter: a pure function of seed and index, so that resuming is exact."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from classification.targets import Labeled

# What a generator is for, see `generator`.
EPOCHS, ROUNDS, MEMBERS, PLACES, ELASTIC = 101, 102, 103, 104, 105


def generator(purpose: int, seed: int, *index: int) -> np.random.Generator:
    """Random numbers of one draw, independent of every other purpose, seed and index."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((purpose, seed, *index))))


class Draws:
    """The order in which slides are trained on.

    Every epoch is a shuffle of all slides. Weighted, it is as long, but its slides come in rounds of one slide of every
    label, so that any run of rounds has equally many of each; the slides of a label are shuffled one round after the
    other, and none is drawn again before all others of its label were.

    Args:
        labeled: slides, at least one.
        seed: of the order.
        weighted: balance the labels.

    Raises:
        ValueError: there are no slides.
    """

    def __init__(self, labeled: Sequence[Labeled], seed: int, weighted: bool = False) -> None:
        if not labeled:
            raise ValueError("there are no slides to train on")
        self._labeled = list(labeled)
        self._seed = seed
        texts = sorted({item.text for item in labeled}) if weighted else []
        self._members = [[at for at, item in enumerate(labeled) if item.text == text] for text in texts]

    @property
    def epoch_images(self) -> int:
        """Images of an epoch."""
        return len(self._labeled)

    def at(self, index: int) -> tuple[Labeled, int]:
        """The slide at an image counter, counted from 0, and the epoch it is part of."""
        epoch, position = divmod(index, len(self._labeled))
        if not self._members:
            return self._labeled[int(_shuffle(len(self._labeled), EPOCHS, self._seed, epoch)[position])], epoch
        number, place = divmod(index, len(self._members))
        chosen = int(_shuffle(len(self._members), ROUNDS, self._seed, number)[place])
        members = self._members[chosen]
        # Each round takes one slide of every label.
        turn, place = divmod(number, len(members))
        return self._labeled[members[int(_shuffle(len(members), MEMBERS, self._seed, chosen, turn)[place])]], epoch


@lru_cache(maxsize=256)
def _shuffle(size: int, purpose: int, *seed: int) -> NDArray[np.int64]:
    return generator(purpose, *seed).permutation(size)
