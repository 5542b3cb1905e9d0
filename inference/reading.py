"""Windows read ahead of the network, by threads, in order; undecodable px are filled and counted."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from slides.filled import read_or_fill
from slides.geometry import Window, window_centered
from slides.reader import Slide


@dataclass(frozen=True)
class Read:
    """One window's pixels.

    Attributes:
        row, column: the window.
        image_HWC: uint8, C is 3, with a context view 6.
        fault: what could not be read; empty if everything was.
    """

    row: int
    column: int
    image_HWC: NDArray[np.uint8]
    fault: str = ""


def read_window(slide: Slide, window: Window, context_um_px: float | None) -> tuple[NDArray[np.uint8], str]:
    """Read a window; px that cannot be decoded are white, and a message about them is returned.

    Args:
        slide: the slide.
        window: the window.
        context_um_px: spacing of a second, coarser view around the same center, channels 3 to 5; None: no such view.
    """
    image_HWC, fault, _ = read_or_fill(slide.read, window)
    if context_um_px is None:
        return image_HWC, fault
    # As in `samplers.patch.PatchReader`: not aligned to the px of a level, so that both views have one center.
    step_xy_l0 = (context_um_px / slide.um_px_xy_l0[0], context_um_px / slide.um_px_xy_l0[1])
    around = window_centered(window.center_xy_l0, window.hw_out, step_xy_l0)
    context_HWC, context_fault, _ = read_or_fill(slide.read, around)
    return np.concatenate([image_HWC, context_HWC], axis=2), fault or context_fault


def read_ahead(
    windows: Iterable[tuple[int, int]], read: Callable[[int, int], Read], workers: int, ahead: int
) -> Iterator[Read]:
    """Yield the windows in order, read by `workers` threads up to `ahead` windows in advance."""
    with ThreadPoolExecutor(workers, thread_name_prefix="read") as pool:
        waiting: deque[Future[Read]] = deque()
        try:
            for row, column in windows:
                waiting.append(pool.submit(read, row, column))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def batches(reads: Iterable[Read], size: int) -> Iterator[list[Read]]:
    """Yield groups of `size`; the last may be smaller."""
    batch: list[Read] = []
    for one in reads:
        batch.append(one)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
