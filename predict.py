"""Predict whole slides with a trained network, on one or many ranks.

The story: options, communicator, model, slides and their tissue, windows shared out, then predict and finish slide by
slide. `predict.py --help` starts.
"""

from __future__ import annotations

import shutil
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from artifacts.paths import require_model
from options.predict import PredictOptions, predict_options
from parallel import job
from parallel.comm import together


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks."""
    opts = predict_options(argv)
    settings = job.Settings(
        opts.machine.horovod, opts.machine.no_cuda, opts.machine.stall_timeout,
        # Ranks: they meet at the end only, and not at the same time; the heartbeat notices dead ones.
        environment={"HOROVOD_STALL_CHECK_DISABLE": "1"},
    )  # fmt: skip
    return job.run(
        lambda ranks: Prediction(opts, ranks).go(),
        settings,
        check=lambda: check_paths(opts),
        out_of_memory=lambda _: "Try a smaller --img_size or --batch_size",
    )


def check_paths(opts: PredictOptions) -> None:
    """Find wrong paths without opening anything.

    Raises:
        ValueError: the model or the slides do not exist.
    """
    require_model(opts.model.model)
    listed_slides(opts)


def listed_slides(opts: PredictOptions) -> list[tuple[str, Path]]:
    """Slides of the command line, id and path; nothing opened."""
    from cohorts.pairing import SLIDE_SUFFIXES, find_slides
    from inference.slide_list import listed

    def find(path: Path) -> list[tuple[str, Path]]:
        suffix = path.suffix.lower().lstrip(".")
        single = path.is_file() and suffix in SLIDE_SUFFIXES
        cases = find_slides(path, suffix if single else opts.slides.slide_format)
        return [(case.slide_id, case.slide_path.resolve()) for case in cases]

    return listed(opts.slides.slide_path, find)


class Prediction:
    """One prediction; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they are passed no further as a whole.
        ranks: the ranks of the job.
    """

    def __init__(self, opts: PredictOptions, ranks: job.Ranks) -> None:
        self.opts = opts
        self.ranks = ranks
        self.comm = ranks.comm
        self.heartbeat = ranks.heartbeat
        self.log = ranks.log
        self.failures: list[tuple[str, str]] = []
        self.scratch: Path = opts.slides.out / ".scratch"

    def go(self) -> int:
        """The whole story; returns the exit code."""
        from system.folder_lock import FolderLock

        start = time.perf_counter()
        self.heartbeat.start()
        with ExitStack() as held:
            # Ranks: one holds the folder for all.
            lock = FolderLock(self.opts.slides.out) if self.comm.rank == 0 else nullcontext()
            together(self.comm, lambda: held.enter_context(lock))
            # Before TensorFlow is imported, so that wrong paths show at once.
            together(self.comm, lambda: require_model(self.opts.model.model))
            found = together(self.comm, lambda: listed_slides(self.opts))
            self.open_model(self.ranks.use_devices())
            self.find_slides(found)
            self.plan()
            self.predict()
            return self.conclude(time.perf_counter() - start)

    def open_model(self, devices: str) -> None:
        """The network and what it was trained for; `devices` is what this rank computes on, for the log."""
        from artifacts.loading import open_model
        from artifacts.metadata import ModelOverrides
        from inference.detections import DetectionOptions
        from inference.finish import Job
        from inference.outputs import OutputOptions
        from inference.slide_list import checksum

        opts, comm, given = self.opts, self.comm, self.opts.model
        windows, results, out = opts.windows, opts.results, opts.slides.out
        overrides = ModelOverrides(
            given.img_size, given.resolution, given.context_spacing, given.input_range, resample=True
        )
        self.network = network = together(comm, lambda: open_model(given.model, overrides))
        self.model = model = replace(network.info, um_px=given.resolution or network.info.um_px)
        self.said = {
            "model": checksum(network.path), "img_size": model.img_size, "um_px": model.um_px,
            "overlap": windows.overlap, "tissue_only": windows.tissue_only, "eightfold": windows.eightfold,
            "mpp": opts.slides.mpp, "bb_downsample": opts.tissue.bb_downsample,
            "min_probability": results.min_probability, "nms_um": results.nms_um,
            "simplify_um": results.simplify_um, "min_area_um2": results.min_area_um2,
        }  # fmt: skip
        detections = DetectionOptions(min_probability=results.min_probability, radius_um=results.nms_um)
        outputs = OutputOptions(results.simplify_um, results.min_area_um2, detections)
        names = dict(enumerate(model.class_names))
        self.job = Job(out, names, str(network.path.resolve()), self.said, outputs)
        self.log(
            f"model       {network.path}, {model.classes} classes",
            f"ranks       {comm.size}, {devices}",
            f"view        {model.img_size} px at {model.um_px:g} um/px = {model.img_size * model.um_px:.0f} um",
        )
        self.log(*(f"note        {note}" for note in network.notes))
        if model.um_px != network.info.um_px:
            self.log(f"WARNING     the model was trained at {network.info.um_px:g} um/px, not at {model.um_px:g}")

    def find_slides(self, found: list[tuple[str, Path]]) -> None:
        """Slides to predict: those found that are not done already."""
        from inference.slide_list import done_before
        from slides.tiff import tiled_tiff

        slides, comm = self.opts.slides, self.comm
        tiled_tiff.tile_cache.resize(self.opts.machine.tile_cache * 2**20)

        def left() -> list[tuple[str, Path]]:
            ours = [one for one in found if not done_before(slides.out / one[0], self.said, slides.overwrite)]
            if ours:
                self.prepare_folders()
            return ours

        # Ranks: one looks, so that all agree while files appear.
        self.slides = comm.gather(together(comm, lambda: left() if comm.rank == 0 else None))[0]
        before = len(found) - len(self.slides)
        self.log(f"slides      {len(found)}" + (f", {before} of them done before" if before else ""))

    def prepare_folders(self) -> None:
        """Remove what a killed run left. Rank 0 only."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for left in self.opts.slides.out.glob(".*.part"):
            shutil.rmtree(left, ignore_errors=True)
        self.scratch.mkdir()

    def plan(self) -> None:
        """Tissue and windows of all slides, and which rank computes which."""
        from inference.plan import plan_slide
        from inference.windows import share_out
        from slides.reader import SlideError

        opts, comm, model = self.opts, self.comm, self.model

        def planned_or_why(slide_id: str, path: Path) -> Any:
            try:
                return plan_slide(
                    path, opts.slides.mpp, model.img_size, model.um_px, opts.windows.overlap,
                    opts.tissue.bb_downsample, opts.windows.tissue_only, model.classes,
                )  # fmt: skip
            except SlideError as error:
                if opts.slides.strict:
                    raise
                return slide_id, str(error)

        def mine() -> list[Any]:
            # Ranks: reading thumbnails takes a second or so per slide, so each rank does every size-th.
            return [planned_or_why(*one) for one in self.slides[comm.rank :: comm.size]]

        parts = comm.gather(together(comm, mine))
        planned = [parts[i % comm.size][i // comm.size] for i in range(len(self.slides))]
        self.failures = [one for one in planned if isinstance(one, tuple)]
        self.planned = [one for one in planned if not isinstance(one, tuple)]
        counts = [len(one.windows) for one in self.planned]
        self.shares = share_out([one.begins for one in self.planned], counts, comm.size)
        self.log(*(f"note        {note}" for one in self.planned for note in one.notes))
        self.log(*(f"FAILED      {slide_id}: {why}" for slide_id, why in self.failures))
        total, area = sum(len(one.windows) for one in self.planned), sum(one.tissue_mm2 for one in self.planned)
        self.log(f"windows     {total} over {area:.1f} mm2 of tissue on {len(self.planned)} slides")

    def predict(self) -> None:
        """This rank's windows; slides are finished as soon as all of their windows are there."""
        from inference.blending import Weights
        from inference.predict import WindowOptions, predict_run
        from slides.reader import Slide

        opts, comm, model = self.opts, self.comm, self.model
        how = WindowOptions(
            opts.windows.batch_size, model.classes, model.context_um_px, opts.machine.sample_processes,
            opts.slides.strict, opts.windows.eightfold,
        )  # fmt: skip
        mine = self.shares[comm.rank]
        bar = tqdm(
            total=sum(run.last - run.first for run in mine), unit="window", disable=comm.rank != 0, smoothing=0.1,
            desc="rank 0" if comm.size > 1 else None, mininterval=1.0,
        )  # fmt: skip
        finishing: list[Future[None]] = []

        def progress(count: int) -> None:
            self.heartbeat.doing = "predicting"
            bar.update(count)

        # A slide is finished while the next is predicted.
        with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool:
            for number, run in enumerate(mine, start=1):
                planned = self.planned[run.slide]
                bar.set_postfix_str(f"slide {number} of {len(mine)}, {planned.slide_id}", refresh=False)
                slide = Slide(planned.path, um_px=opts.slides.mpp)
                weights = Weights(planned.grid, planned.windows)
                folder = self.scratch / planned.slide_id
                predict_run(slide, weights, planned.windows, run, self.network.probabilities, how, folder, progress)
                # What went wrong with a slide before is known now, not at the end.
                finishing = [future for future in finishing if not (future.done() and future.result() is None)]
                finishing.append(pool.submit(self.finish_if_whole, run.slide))
            self.heartbeat.doing = "writing results"
            for future in finishing:
                future.result()
        bar.close()
        # Ranks: the file system of another node may show a run late; now all are there.
        comm.gather(None)
        self.heartbeat.doing = "writing results"
        for number in range(comm.rank, len(self.planned), comm.size):
            self.finish_if_whole(number)

    def finish_if_whole(self, number: int) -> None:
        """Write a slide's results if the scratch files of all its runs are there and nobody else does it."""
        from inference.finish import claim, finish_slide
        from slides.reader import Slide, SlideError

        planned, opts = self.planned[number], self.opts
        runs = sorted(run.first for share in self.shares for run in share if run.slide == number)
        folder = self.scratch / planned.slide_id
        if not claim(folder, runs):
            return
        try:
            notes = finish_slide(Slide(planned.path, um_px=opts.slides.mpp), planned, runs, folder, self.job)
        except SlideError as error:
            self.failures.append((planned.slide_id, str(error)))
            tqdm.write(f"FAILED      {planned.slide_id}: {error}")
        else:
            tqdm.write(f"done        {planned.slide_id}, {len(planned.windows)} windows")
            for note in notes:
                tqdm.write(f"note        {planned.slide_id}: {note}")
        shutil.rmtree(folder, ignore_errors=True)

    def conclude(self, seconds: float) -> int:
        """The failures of all ranks, and the exit code."""
        failures = sorted({failure for part in self.comm.gather(self.failures) for failure in part})
        if self.comm.rank == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)
        windows = sum(len(one.windows) for one in self.planned)
        self.log(f"finished    {windows} windows in {seconds:.0f} s; results in {self.opts.slides.out}")
        self.log(*(f"FAILED      {slide_id}: {why}" for slide_id, why in failures))
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
