"""Prediction of runs of windows of a slide into scratch files.

A network is a function from image_BHWC, uint8, to p_BHWK, float32 probabilities.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from inference.blending import Blend, Floats, Weights
from inference.reading import Read, batches, read_ahead, read_window
from inference.scratch import RunWriter
from inference.windows import Run
from slides.reader import Slide, SlideError

Network = Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class WindowOptions:
    """Parameters of the prediction of windows.

    Attributes:
        batch_size: windows per call of the network.
        classes: number of classes K.
        context_um_px: spacing of the network's second view; None: no such view.
        workers: number of threads that read.
        strict: whether a window that cannot be read completely is an error.
        eightfold: predict every window in its eight orientations and average.
    """

    batch_size: int
    classes: int
    context_um_px: float | None = None
    workers: int = 1
    strict: bool = False
    eightfold: bool = False


def predict_run(
    slide: Slide,
    weights: Weights,
    windows: Sequence[tuple[int, int]],
    run: Run,
    network: Network,
    options: WindowOptions,
    folder: Path,
    progress: Callable[[int], object],
) -> None:
    """Predict one run of windows and write its cells to the slide's scratch folder.

    Reading, computing and blending overlap: some threads read, this one calls the network, another blends.

    Args:
        slide: the slide.
        weights: weights of its windows.
        windows: all its windows, in row-major order.
        run: the run to predict.
        network: the network.
        options: parameters.
        folder: scratch folder of the slide.
        progress: called with the number of windows done.

    Raises:
        SlideError: with `options.strict`, a window cannot be read.
        OSError: the scratch folder cannot be written.
    """
    start = time.perf_counter()

    def read(row: int, column: int) -> Read:
        image_HWC, fault = read_window(slide, weights.grid.window(row, column), options.context_um_px)
        if fault and options.strict:
            raise SlideError(fault)
        return Read(row, column, image_HWC, fault)

    call = eightfold(network) if options.eightfold else network
    writer = RunWriter(folder, run.first, weights)
    blending = _Blending(Blend(weights, options.classes - 1, run.first, run.last), writer)
    faults: list[str] = []
    reads = read_ahead(windows[run.first : run.last], read, options.workers, options.workers + 2 * options.batch_size)
    try:
        with ThreadPoolExecutor(1, thread_name_prefix="blend") as pool:
            pending: Future[None] | None = None
            for batch in batches(reads, options.batch_size):
                p_BHWK = call(np.stack([one.image_HWC for one in batch]))
                faults += [one.fault for one in batch if one.fault]
                # One batch is blended while the next is computed; no more, since each occupies memory.
                if pending is not None:
                    pending.result()
                pending = pool.submit(blending.add, batch, p_BHWK)
                progress(len(batch))
            if pending is not None:
                pending.result()
            blending.write(None)
        seconds = time.perf_counter() - start
        writer.finish({"windows": run.last - run.first, "faults": faults, "seconds": round(seconds, 2)})
    except BaseException:
        writer.discard()
        raise


class _Blending:
    """Adds windows, and writes each cell once no later window of the run covers it."""

    def __init__(self, blend: Blend, writer: RunWriter) -> None:
        self._blend = blend
        self._writer = writer
        self._row = -1

    def add(self, batch: Sequence[Read], p_BHWK: Floats) -> None:
        for one, p_HWK in zip(batch, p_BHWK, strict=True):
            if one.row > self._row:
                self.write(one.row)
                self._row = one.row
            self._blend.add(one.row, one.column, np.moveaxis(p_HWK[..., 1:], 2, 0))

    def write(self, before_row: int | None) -> None:
        for cell in self._blend.done(before_row):
            self._writer.add(cell)


def eightfold(network: Network) -> Network:
    """The mean of a network's answers for the eight orientations of a square: test-time augmentation."""

    def call(image_BHWC: NDArray[np.uint8]) -> Floats:
        total: Floats | None = None
        for turns in range(4):
            for flipped in (False, True):
                seen = np.rot90(image_BHWC, turns, axes=(1, 2))
                seen = seen[:, :, ::-1] if flipped else seen
                p_BHWK = network(np.ascontiguousarray(seen))
                p_BHWK = p_BHWK[:, :, ::-1] if flipped else p_BHWK
                p_BHWK = np.rot90(p_BHWK, -turns, axes=(1, 2))
                total = p_BHWK.copy() if total is None else total + p_BHWK
        assert total is not None
        return total / np.float32(8)

    return call
