"""From requests to batches: the only TensorFlow among the samplers.

Shapes: B patches per batch, H, W patch rows and columns, C channels (3, or 6 with a context view),
M = len(META) numbers that describe a patch.
Images stay uint8 until they are in the graph: a quarter of the memory traffic of float32.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from samplers.patch import ORIGINS, NotYetError, Patch, PatchReader, PatchRequest
from samplers.records import META
from slides.truth.label import IGNORE

PREFETCH = 2  # batches; more only cost memory once reading is faster than training
RETRY_S = 0.01  # between two attempts of a request that waits for training

Batch = tuple[Any, Any, NDArray[np.float64]]  # image_BHWC uint8, label_BHW uint8, meta_BM


def rank_indices(first: int, batch_size: int, rank: int, size: int) -> Iterator[int]:
    """Yield the stream indices of one rank without end: disjoint over ranks and complete, whatever their number.

    Step t of all ranks takes the indices first + t*G ... first + (t+1)*G - 1 with G = batch_size * size, in blocks of
    `batch_size` consecutive indices, so a rank's batch keeps the samplers' exact class ratio. The blocks rotate over
    the ranks from step to step: with batch_size 1 and ratio 0.5, one rank would otherwise see tumor only.

    Args:
        first: images trained before (0, or the counter of the checkpoint resumed from). Blocks also rotate by it, so
            that after a resume every rank gets the blocks it would have had.
        batch_size: patches per rank and step.
        rank: this rank.
        size: number of ranks.
    """
    before = first // (batch_size * size)
    for step in itertools.count():
        # Ranks: block (rank + step) mod size of this step's global batch.
        start = first + (step * size + (rank + before + step) % size) * batch_size
        yield from range(start, start + batch_size)


class Feed:
    """Batches from a tf.data pipeline; an error in a worker is raised unchanged.

    Args:
        load: index -> Patch, called from `workers` threads at once; called again if it raises `NotYetError`.
        indices: indices of the patches, in order; the order of batches never depends on `workers`.
        batch_size: patches per batch; a last short batch is filled with ignored white patches of index -1.
        img_size: side of the patches, px.
        workers: threads that read patches in parallel.
        channels: channels C of the images.
    """

    def __init__(
        self,
        load: Callable[[int], Patch],
        indices: Callable[[], Iterator[int]] | Sequence[int],
        batch_size: int,
        img_size: int,
        workers: int,
        channels: int = 3,
    ) -> None:
        self._load = load
        self._channels = channels
        self._failure: BaseException | None = None
        self._ended = threading.Event()
        self._img_size = img_size
        if callable(indices):
            dataset = tf.data.Dataset.from_generator(indices, output_signature=tf.TensorSpec((), tf.int64))
        else:
            padded = [*indices, *[-1] * (-len(indices) % batch_size)]
            dataset = tf.data.Dataset.from_tensor_slices(tf.constant(padded, tf.int64, shape=(len(padded),)))
        options = tf.data.Options()
        # Separate threads: the libraries release the GIL, and a busy training step must not delay reading.
        options.threading.private_threadpool_size = workers + 1
        options.autotune.enabled = False
        self._dataset = (
            dataset.map(self._read, num_parallel_calls=workers, deterministic=True)
            .batch(batch_size, drop_remainder=True)
            .prefetch(PREFETCH)
            .with_options(options)
        )

    def _read(self, index: Any) -> tuple[Any, Any, Any]:
        image, label, meta = tf.numpy_function(self._arrays, [index], (tf.uint8, tf.uint8, tf.float64))
        side = self._img_size
        return tf.ensure_shape(image, (side, side, self._channels)), tf.ensure_shape(label, (side, side)), meta

    def _arrays(self, index: Any) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
        side = self._img_size
        if index < 0:
            white_HWC = np.full((side, side, self._channels), 255, np.uint8)
            return white_HWC, np.full((side, side), IGNORE, np.uint8), np.full(len(META), -1.0)
        try:
            patch = self._patch(int(index))
        except BaseException as error:
            self._failure = error  # TensorFlow would pass on a string with its own traceback
            raise
        r = patch.request
        meta = (r.index, r.attempt, r.slide, r.cls, *patch.window.center_xy_l0, ORIGINS.index(r.origin))
        return patch.image_HWC, patch.label_HW, np.array(meta, np.float64)

    def _patch(self, index: int) -> Patch:
        """Load the patch of an index, waiting for training if necessary."""
        while True:
            try:
                return self._load(index)
            except NotYetError:  # noqa: PERF203  # waiting, not speed
                if self._ended.wait(RETRY_S):
                    raise

    def __iter__(self) -> Iterator[Batch]:
        """Yield batches (image_BHWC, label_BHW: uint8 tensors; meta_BM: float64 array); one iteration at a time."""
        self._ended.clear()
        batches = iter(self._dataset)
        try:
            for image_BHWC, label_BHW, meta_BM in batches:
                yield image_BHWC, label_BHW, meta_BM.numpy()
        except tf.errors.OpError:
            if self._failure is None:
                raise
            raise self._failure from None
        finally:
            # Before TensorFlow joins its threads: one of them may wait for training that will never happen.
            self._ended.set()


def joined(batches: Iterable[Batch], count: int) -> Iterator[Batch]:
    """Join every `count` batches into one; an incomplete rest is dropped."""
    waiting = iter(batches)
    while len(group := list(itertools.islice(waiting, count))) == count:
        images, labels, metas = zip(*group, strict=True)
        yield (tf.concat(images, 0), tf.concat(labels, 0), np.concatenate(metas)) if count > 1 else group[0]


def grid_feed(
    reader: PatchReader,
    requests: Sequence[PatchRequest],
    rank: int,
    size: int,
    batch_size: int,
    workers: int,
    left_out: Callable[[str], None],
) -> Feed:
    """Feed this rank's share of a fixed list of requests: every size-th one, each exactly once over all ranks.

    A window that cannot be read becomes an ignored patch, and `left_out` is called with the reason (from a worker).
    """
    mine = range(rank, len(requests), size)  # Ranks: dealt like cards, so every rank has some of every slide

    def load(number: int) -> Patch:
        request = requests[number]
        try:
            return reader.read(request)
        except ValueError as error:
            left_out(str(error))
            side = reader.img_size
            white_HWC = np.full((side, side, reader.channels), 255, np.uint8)
            return Patch(request, reader.window(request), white_HWC, np.full((side, side), IGNORE, np.uint8))

    return Feed(load, list(mine), batch_size, reader.img_size, workers, reader.channels)
