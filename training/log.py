"""The log of a run: TensorBoard events, metrics.jsonl and pictures, all written by rank 0."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from parallel import job
from system import progress
from training import environment, report

Batch = TypeVar("Batch")

# BGR for OpenCV: class 0 green (normal), 1 red (tumor), further classes in turn; ignored pixels gray
COLORS_BGR = np.array([(80, 170, 60), (60, 60, 220), (220, 120, 40), (40, 200, 230), (190, 60, 170)], np.uint8)
GREY_BGR = np.array((128, 128, 128), np.uint8)


@dataclass(frozen=True)
class Picture:
    """One validation patch to look at: image_HWC uint8, label_HW and predicted_HW uint8 (label 255 = ignore)."""

    image_HWC: npt.NDArray[np.uint8]
    label_HW: npt.NDArray[np.uint8]
    predicted_HW: npt.NDArray[np.uint8]


class RunLog:
    """Log of one run; on ranks other than 0, and without a folder, it keeps nothing.

    What it gets is on disk after `write`, before which a checkpoint comes: a disk without space for a picture costs no
    training.

    Args:
        folder: the run's `--log_dir`, or None.
        rank: this rank.
        seconds: how long the run took before it was resumed.
        page: writes the run's `report.html` from its folder after every validation; returns a warning, or "".
    """

    def __init__(
        self, folder: Path | None, rank: int, seconds: float = 0.0, page: Callable[[Path], str] = report.attempt
    ) -> None:
        self._page = page
        self._folder = folder if rank == 0 else None
        self._writer = tf.summary.create_file_writer(str(folder)) if folder and rank == 0 else None
        self._start = time.monotonic() - seconds
        self._pending: list[Callable[[], None]] = []
        self._validated = False

    def seconds(self) -> float:
        """How long the run has taken, with what it took before it was resumed."""
        return time.monotonic() - self._start

    def numbers(self, kind: str, images: int, values: Mapping[str, float]) -> None:
        """Scalars to append, e.g. kind `train` or `val`, at an image counter."""
        row: dict[str, Any] = {"kind": kind, "images": images, "seconds": round(self.seconds(), 3)}
        # JSON has no NaN: an undefined score is null
        row |= {name: (value if math.isfinite(value) else None) for name, value in values.items()}

        def write(folder: Path) -> None:
            with self._events(images):
                for name, value in values.items():
                    tf.summary.scalar(f"{kind}/{name}", value)
            with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

        self._later(write)
        self._validated |= kind == "val"

    def pictures(self, images: int, pictures: Sequence[Picture]) -> Path | None:
        """Patch | truth | prediction to write side by side, one row per picture, to TensorBoard too; returns where."""
        if self._folder is None or not pictures:
            return None
        path = self._folder / "pictures" / f"val-{images:09d}.png"

        def write(_: Path) -> None:
            sheet_HWC = np.concatenate([side_by_side(p) for p in pictures])
            path.parent.mkdir(exist_ok=True)
            if not cv2.imwrite(str(path), sheet_HWC):
                raise OSError(f"cannot write {path}")
            with self._events(images):
                tf.summary.image("val/patch_truth_prediction", sheet_HWC[None, :, :, ::-1])

        self._later(write)
        return path

    def _later(self, write: Callable[[Path], None]) -> None:
        if (folder := self._folder) is not None:
            self._pending.append(lambda: write(folder))

    def write(self) -> None:
        """Write everything that has come since the last call.

        Raises:
            OSError: the disk is full or fails.
        """
        while self._pending:
            self._pending.pop(0)()
        if self._validated:
            self.report()

    def report(self) -> None:
        """Write `report.html` from what is in the folder; a failure is a warning, since the run is worth more."""
        self._validated = False
        if self._folder is not None and (warning := self._page(self._folder)):
            job.write(warning)

    def started(self, start: dict[str, Any]) -> None:
        """Add a start of the run to `environment.json`; a failure is a warning."""
        if self._folder is not None:
            try:
                environment.add_start(self._folder, start)
            except OSError as error:
                job.write(f"WARNING     {self._folder / environment.NAME} cannot be written: {error.strerror or error}")

    @contextmanager
    def _events(self, images: int) -> Iterator[None]:
        """TensorBoard events at an image counter, on disk afterwards."""
        assert self._writer is not None
        try:
            with self._writer.as_default(step=images):
                yield
            self._writer.flush()
        except tf.errors.OpError as error:
            raise OSError(f"cannot write TensorBoard's events in {self._folder}: {error.message}") from error

    def close(self) -> None:
        """Write and flush everything."""
        self.write()
        if self._writer is not None:
            self._writer.close()


class Progress:
    """Progress and speed. The speed excludes validations and the first step, which builds the graph.

    Args:
        total: length of the run, images.
        images: images trained before.
        shown: whether to show it.

    Attributes:
        images: images trained.
        wait_share: share of the time before the last call of `lap` that this rank waited for patches; NaN where no
            image was timed.
    """

    def __init__(self, total: int, images: int, shown: bool) -> None:
        self._bar = progress.Progress(total, "images", initial=images, name="training", shown=shown)
        self._total = total
        self.images = images
        self._overall: tuple[int, float] | None = None
        self._since: tuple[int, float] = (images, time.perf_counter())
        self._waited = 0.0
        self.wait_share = float("nan")

    def timed(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; the time that each takes to come counts as waiting for input."""
        waiting = iter(batches)
        while True:
            start = time.perf_counter()
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self._waited += time.perf_counter() - start
            yield batch

    def step(self, images: int, loss: float) -> None:
        """The counter is now `images`."""
        self._bar.update(min(images, self._total) - min(self.images, self._total), f"loss {loss:.4f}")
        self.images = images
        if self._overall is None:
            self._overall = self._since = (images, time.perf_counter())
            self._waited = 0.0

    def exclude(self, seconds: float) -> None:
        """Seconds that were not training."""
        self._since = (self._since[0], self._since[1] + seconds)
        if self._overall:
            self._overall = (self._overall[0], self._overall[1] + seconds)

    def lap(self) -> float:
        """Images/s since the last call; NaN where no image was timed. `wait_share` is that of the same time."""
        rate = self._rate(self._since)
        seconds = time.perf_counter() - self._since[1]
        self.wait_share = min(1.0, self._waited / seconds) if math.isfinite(rate) else float("nan")
        self._waited = 0.0
        self._since = (self.images, time.perf_counter())
        return rate

    def close(self) -> float:
        """End the bar; images/s of the whole run."""
        self._bar.close()
        return self._rate(self._overall or self._since)

    def _rate(self, start: tuple[int, float]) -> float:
        images, seconds = self.images - start[0], time.perf_counter() - start[1]
        return images / seconds if images and seconds > 0 else float("nan")


def speed(images_per_s: float) -> str:
    """As text; the first step, which builds the graph, is not timed."""
    return "not timed" if math.isnan(images_per_s) else f"{images_per_s:.2f} images/s"


def colored(label_HW: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """Classes as BGR colors, ignored pixels gray; (H, W, 3)."""
    colors: npt.NDArray[np.uint8] = np.concatenate([np.resize(COLORS_BGR, (255, 3)), GREY_BGR[None]])
    return colors[label_HW]


def side_by_side(picture: Picture, side: int = 320) -> npt.NDArray[np.uint8]:
    """Patch, truth and prediction next to each other, uint8 BGR; classes tint the tissue, borders stay visible."""
    patch_HWC = np.ascontiguousarray(picture.image_HWC[..., ::-1])
    labels = (picture.label_HW, np.where(picture.label_HW == 255, 255, picture.predicted_HW))
    tinted = (cv2.addWeighted(patch_HWC, 0.5, colored(label_HW), 0.5, 0) for label_HW in labels)
    panels: list[Any] = [cv2.resize(p, (side, side), interpolation=cv2.INTER_AREA) for p in (patch_HWC, *tinted)]
    for panel, text in zip(panels, ("patch", "truth", "prediction"), strict=True):
        cv2.putText(panel, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 4, cv2.LINE_AA)
        cv2.putText(panel, text, (8, 24), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (0, 0, 0), 1, cv2.LINE_AA)
    row_HWC = np.concatenate(panels, axis=1)
    framed_HWC: npt.NDArray[np.uint8] = cv2.copyMakeBorder(
        row_HWC, 2, 2, 2, 2, cv2.BORDER_CONSTANT, value=(255, 255, 255)
    )
    return framed_HWC
