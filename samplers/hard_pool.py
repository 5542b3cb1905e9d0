"""Hard mining: some draws return to places where the network's loss was high.

The stream is cut into intervals of I images. Index i of interval q = i // I may use the pool of version q - 1, which
contains only patches with an index below (q - 1) * I. So the draw of an index depends neither on how far the input
pipeline has run ahead nor on the number of ranks, at the cost of a lag of one interval.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from samplers.draw import HARD as HARD_DRAWS
from samplers.draw import generator, share
from samplers.index import SlideIndex
from samplers.patch import HARD, NotYetError, PatchRequest, RequestSource

MAX_AGE_INTERVALS = 16  # older entries are dropped: the network has changed since


@dataclass(frozen=True, order=True)
class Entry:
    """A trained patch and its loss (mean over its valid pixels)."""

    index: int
    slide: int
    cls: int
    x_l0: float
    y_l0: float
    loss: float


class HardPool:
    """A sampler that redirects a fraction of another sampler's draws to the hardest recent places.

    A hard draw keeps the class that the sampler had scheduled for the index, so class ratios stay exact; if the pool
    has no entry of that class, the sampler's own draw is kept. Its center is an entry's, jittered by up to a quarter of
    the patch along each axis.

    Args:
        source: sampler of all other draws.
        indexes: search index of each slide (for the jitter's units).
        seed: seed of the stream.
        fraction: share of draws that come from the pool, exact over time.
        capacity: number of entries kept: those with the highest loss.
        interval: images per interval, I; at least the global batch.
        patch_um: side of the patch, um.
        start: initial entries, of indexes below 0, such as `samplers.pool_seed` reads; they age like all others.
    """

    def __init__(
        self,
        source: RequestSource,
        indexes: list[SlideIndex],
        seed: int,
        fraction: Fraction,
        capacity: int,
        interval: int,
        patch_um: float,
        start: Iterable[Entry] = (),
    ) -> None:
        self.max_redraws = source.max_redraws
        self.interval = interval
        self._source = source
        self._seed = seed
        self._fraction = fraction
        self._capacity = capacity
        self._jitter_l0 = [(patch_um / 4 / s.um_px_xy_l0[0], patch_um / 4 / s.um_px_xy_l0[1]) for s in indexes]
        self._sizes_l0 = [s.size_xy_l0 for s in indexes]
        self._start = sorted(start)
        self._seen = list(self._start)
        self._versions = {0: self._hardest(self._start)}
        self._newest = 0
        self._lock = threading.Lock()  # the training loop publishes, input workers read

    def request(self, index: int, attempt: int = 0) -> PatchRequest:
        """Place to look at for (index, attempt).

        Raises:
            NotYetError: the pool version of this index is not published yet; the training loop does that one interval
                earlier, so only an input pipeline that runs ahead sees this.
        """
        own = self._source.request(index, attempt)
        if attempt or not share(index, self._fraction):
            return own
        entries = [e for e in self._version(max(0, index // self.interval - 1)) if e.cls == own.cls]
        if not entries:
            return own
        rng = generator(self._seed, index, purpose=HARD_DRAWS)
        entry = entries[int(rng.integers(len(entries)))]
        jitter = rng.uniform(-1, 1, 2)
        (jx, jy), (width, height) = self._jitter_l0[entry.slide], self._sizes_l0[entry.slide]
        x = float(np.clip(entry.x_l0 + jitter[0] * jx, 0, width))
        y = float(np.clip(entry.y_l0 + jitter[1] * jy, 0, height))
        return PatchRequest(index, attempt, entry.slide, own.cls, (x, y), HARD)

    def feed(self, entries: Iterable[Entry], counter: int) -> None:
        """Add the losses of all ranks and publish every version that is complete.

        Args:
            entries: trained patches since the last call, of ALL ranks.
            counter: images trained so far; all indices below it have been fed.
        """
        # Ranks: sorted, because ranks deliver in any order and the pool must be equal on all of them.
        self._seen = sorted([*self._seen, *entries])
        with self._lock:
            for version in range(self._newest + 1, counter // self.interval + 1):
                known = [
                    e
                    for e in self._seen
                    if (version - MAX_AGE_INTERVALS) * self.interval <= e.index < version * self.interval
                ]
                self._versions[version] = self._hardest(known)
                self._newest = version
            # Requests trail the newest version by at most one, plus one for what is already in flight.
            self._versions = {v: e for v, e in self._versions.items() if v >= self._newest - 3}
        oldest = (self._newest - MAX_AGE_INTERVALS - 1) * self.interval  # the version before may be rebuilt on resume
        self._seen = [e for e in self._seen if e.index >= oldest]

    def _hardest(self, entries: Iterable[Entry]) -> list[Entry]:
        return sorted(entries, key=lambda e: (-e.loss, e.index))[: self._capacity]

    def _version(self, version: int) -> list[Entry]:
        with self._lock:
            if version > self._newest:
                raise NotYetError(f"hard-mining pool {version} is not published, {self._newest} is the newest")
            return self._versions[version]

    def state(self) -> NDArray[np.float64]:
        """Return what a checkpoint must keep: entries seen, shape (n, 6) in `Entry`'s order, after the version number.

        Row 0 is (newest version, interval, 0, 0, 0, 0).
        """
        head = (self._newest, self.interval, 0, 0, 0, 0)
        return np.array([head, *((e.index, e.slide, e.cls, e.x_l0, e.y_l0, e.loss) for e in self._seen)], np.float64)

    def restore(self, state: NDArray[np.float64]) -> None:
        """Resume from a checkpoint's `state`.

        Raises:
            ValueError: the interval changed (it depends on --log_every and the global batch).
        """
        newest, interval = int(state[0, 0]), int(state[0, 1])
        if interval != self.interval:
            raise ValueError(
                f"the hard-mining pool of the checkpoint has intervals of {interval} images, this run {self.interval}: "
                "resume with the same --log_every and batch_size x ranks, or without --hard_mining"
            )
        entries = [Entry(int(r[0]), int(r[1]), int(r[2]), *map(float, r[3:])) for r in state[1:]]
        self._seen = []
        self._versions, self._newest = {0: self._hardest(self._start)}, 0
        for version in range(max(1, newest - 2), newest + 1):
            self._newest = version - 1
            self._seen = [e for e in entries if e.index < version * self.interval]
            self.feed([], version * self.interval)
        self._seen = entries
