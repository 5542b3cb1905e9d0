"""Predict whole slides with a trained network, on one or many ranks.

The story: options, ranks, model, slides and their tissue, windows divided among ranks; then predict and finish slide by
slide. `predict.py --help` lists the options.
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts.paths import require_model
from options.predict import PredictOptions, predict_options
from parallel import job
from parallel.comm import together
from parallel.preemption import EXIT_CODE, StopError
from system.csv_tables import counted
from system.progress import Progress

if TYPE_CHECKING:
    from artifacts.loading import LoadedModel
    from inference.plan import PlannedSlide
    from inference.windows import Run
    from segmentation.streamed_prediction import StreamedNetwork
    from slides.geometry import Pair


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks."""
    opts = predict_options(argv)
    settings = job.Settings(
        opts.machine.horovod, opts.machine.no_cuda, opts.machine.stall_timeout,
        # Ranks: they meet at the end only, and not at the same time; the heartbeat notices dead ones.
        environment={"HOROVOD_STALL_CHECK_DISABLE": "1"},
    )  # fmt: skip
    return job.run(
        lambda ranks: predict(opts, ranks),
        settings,
        check=lambda: check_paths(opts),
        out_of_memory=lambda _: "Try a smaller --img_size or --batch_size",
    )


def check_paths(opts: PredictOptions) -> None:
    """Find wrong paths without opening a file.

    Raises:
        ValueError: the model or the slides do not exist.
    """
    require_model(opts.model.model)
    table_of_spacings(opts, listed_slides(opts))


def table_of_spacings(opts: PredictOptions, found: list[tuple[str, Path]]) -> dict[str, Pair]:
    """Return the spacings of --mpp_table by slide id."""
    from cohorts.spacings import check_used, read_spacings

    table = opts.slides.mpp_table
    if table is None:
        return {}
    spacings = read_spacings(table)
    check_used(table, spacings, [slide_id for slide_id, _ in found])
    return spacings


def listed_slides(opts: PredictOptions) -> list[tuple[str, Path]]:
    """Return ids and paths of the requested slides, without opening them."""
    from cohorts.pairing import SLIDE_SUFFIXES, find_slides
    from inference.slide_list import listed

    def slides_of(path: Path) -> list[tuple[str, Path]]:
        suffix = path.suffix.lower().lstrip(".")
        single = path.is_file() and suffix in SLIDE_SUFFIXES
        cases = find_slides(path, suffix if single else opts.slides.slide_format, opts.slides.recursive)
        return [(case.slide_id, case.slide_path.resolve()) for case in cases]

    return listed(opts.slides.slide_path, slides_of)


def predict(opts: PredictOptions, ranks: job.Ranks) -> int:
    """Tell the whole story; returns the exit code.

    Args:
        opts: validated options; they are not passed on as a whole.
        ranks: the ranks of the job.
    """
    start = time.perf_counter()
    comm = ranks.comm
    ranks.listen()
    ranks.heartbeat.start()
    with ranks.holding(opts.slides.out, "--out"):
        # Before TensorFlow is imported, so that wrong paths show at once.
        together(comm, lambda: require_model(opts.model.model))
        found = together(comm, lambda: listed_slides(opts))
        spacings = together(comm, lambda: table_of_spacings(opts, found))
        prediction = Prediction(opts, ranks, open_network(opts, ranks), spacings)
        prediction.find_slides(found)
        prediction.plan()
        prediction.predict_slides()
        return prediction.conclude(time.perf_counter() - start)


def open_network(opts: PredictOptions, ranks: job.Ranks) -> LoadedModel:
    """Open the network; its `info.um_px` is the spacing to predict at."""
    # Imports TensorFlow with its messages about missing GPUs silenced, so before `artifacts.loading`.
    devices = ranks.use_devices()
    from artifacts.loading import open_model
    from artifacts.metadata import ModelOverrides

    given = opts.model
    overrides = ModelOverrides(
        given.img_size, given.resolution, given.context_spacing, given.input_range, resample=True
    )
    loaded = together(ranks.comm, lambda: open_model(given.model, overrides))
    trained_um_px = loaded.info.um_px
    info = replace(loaded.info, um_px=given.resolution or trained_um_px)
    ranks.log(
        f"model       {loaded.path}, {info.classes} classes",
        f"ranks       {ranks.comm.size}, {devices}",
        f"view        {info.img_size} px at {info.um_px:g} um/px = {info.img_size * info.um_px:.0f} um",
    )
    ranks.log(*(f"note        {note}" for note in loaded.notes))
    if info.um_px != trained_um_px:
        ranks.log(f"WARNING     the model was trained at {trained_um_px:g} um/px, not at {info.um_px:g}")
    return replace(loaded, info=info)


class Prediction:
    """The slides of one prediction; the methods stand in the order of their use.

    Args:
        opts: validated options.
        ranks: the ranks of the job.
        network: the network.
        spacings: spacing of single slides by id, um per level-0 px along x and y.

    Attributes:
        slides: ids and files of the slides to predict.
        planned: slides that can be read, with their windows.
        shares: runs of windows of each rank.
        failures: ids of failed slides, with the reason.
    """

    def __init__(
        self, opts: PredictOptions, ranks: job.Ranks, network: LoadedModel, spacings: Mapping[str, Pair]
    ) -> None:
        from inference.appearance import Appearance
        from inference.detections import DetectionOptions
        from inference.finish import PredictionInfo
        from inference.outputs import OutputOptions
        from segmentation.prediction_options import result_options

        results, out = opts.results, opts.slides.out
        self.opts = opts
        self.ranks, self.comm = ranks, ranks.comm
        self.heartbeat = ranks.heartbeat
        self.log = ranks.log
        self.network = network
        self.spacings = spacings
        self.scratch = out / ".scratch"
        detections = DetectionOptions(min_probability=results.min_probability, radius_um=results.nms_um)
        info = network.info
        # Ranks: all find the same fault of the options.
        self.appearance = together(
            self.comm,
            lambda: Appearance.chosen(opts.stain.stain_norm, info.stain_norm, info.stain, opts.stain.adapt_bn),
        )
        self.adapt = together(self.comm, network.adaptation) if opts.stain.adapt_bn else None
        self.streamed = together(self.comm, self.streamed_network)
        self.common = PredictionInfo(
            out=out,
            classes=dict(enumerate(network.info.class_names)),
            model=str(network.path.resolve()),
            options=result_options(opts, network) | self.appearance.options(),
            appearance=self.appearance,
            outputs=OutputOptions(
                results.simplify_um, results.min_area_um2, detections, results.geojson_frame, results.overlay
            ),
        )
        self.slides: list[tuple[str, Path]] = []
        self.planned: list[PlannedSlide] = []
        self.shares: list[list[Run]] = []
        self.failures: list[tuple[str, str]] = []
        self.requests = ""  # to stop, of all ranks

    def streamed_network(self) -> StreamedNetwork | None:
        """The network for whole slides, with --stream."""
        from segmentation.streamed_prediction import StreamedNetwork, StreamOptions

        windows, workers = self.opts.windows, self.opts.machine.sample_processes
        if windows.stream is None:
            return None
        options = StreamOptions(windows.stream, workers, self.opts.slides.strict, windows.eightfold)
        return StreamedNetwork(self.network, options)

    def um_px_of(self, slide_id: str) -> float | Pair | None:
        """The spacing given for a slide, um per level-0 px; None to use its own."""
        return self.spacings.get(slide_id, self.opts.slides.mpp)

    def options_of(self, slide_id: str) -> dict[str, Any]:
        """What determines the result of a slide; see `result_options`."""
        given = self.spacings.get(slide_id)
        return {**self.common.options, **({} if given is None else {"mpp": list(given)})}

    def find_slides(self, found: list[tuple[str, Path]]) -> None:
        """Choose the slides to predict: those that are not done yet."""
        from inference.slide_list import done_before
        from slides.tiff import tiled_tiff

        slides, comm = self.opts.slides, self.comm
        tiled_tiff.tile_cache.resize(self.opts.machine.tile_cache * 2**20)

        def remaining() -> list[tuple[str, Path]]:
            chosen = [
                (slide_id, path)
                for slide_id, path in found
                if not done_before(slides.out / slide_id, self.options_of(slide_id), slides.overwrite)
            ]
            if chosen:
                self.prepare_folders()
            return chosen

        # Ranks: one looks, so that all agree while files appear.
        self.slides = comm.gather(together(comm, lambda: remaining() if comm.rank == 0 else []))[0]
        before = len(found) - len(self.slides)
        self.log(f"slides      {len(found)}" + (f", {before} of them done before" if before else ""))

    def prepare_folders(self) -> None:
        """Remove what an interrupted run left behind. Rank 0 only."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        for partial in self.opts.slides.out.glob(".*.part"):
            shutil.rmtree(partial, ignore_errors=True)
        self.scratch.mkdir()

    def plan(self) -> None:
        """Find tissue and windows of all slides, and divide the windows among ranks."""
        from inference.plan import plan_slide
        from inference.whole import share_slides
        from inference.windows import share_out
        from slides.reader import SlideError

        opts, comm, model = self.opts, self.comm, self.network.info

        def planned_or_why(slide_id: str, path: Path) -> PlannedSlide | tuple[str, str]:
            try:
                planned = plan_slide(
                    path, self.um_px_of(slide_id), model.img_size, model.um_px, opts.windows.overlap,
                    opts.tissue.bb_downsample, opts.windows.tissue_only, model.classes,
                    stain_methods=self.appearance.methods,
                    tolerance=model.um_px_tolerance,
                )  # fmt: skip
                if opts.slides.strict and planned.damage:
                    raise SlideError(f"{planned.damage}; omit --strict to predict the rest of the slide")
                return planned
            except SlideError as error:
                if opts.slides.strict:
                    raise
                return slide_id, str(error)

        def mine() -> list[PlannedSlide | tuple[str, str]]:
            # Ranks: reading a thumbnail takes about a second, so each rank reads every size-th slide.
            return [planned_or_why(*one) for one in self.slides[comm.rank :: comm.size]]

        parts = comm.gather(together(comm, mine))
        planned = [parts[i % comm.size][i // comm.size] for i in range(len(self.slides))]
        self.failures = [one for one in planned if isinstance(one, tuple)]
        self.planned = [one for one in planned if not isinstance(one, tuple)]
        if self.streamed is None:
            counts = [len(one.windows) for one in self.planned]
            self.shares = share_out([one.begins for one in self.planned], counts, comm.size)
        else:
            counts = [self.streamed.mpx(one) for one in self.planned]
            self.shares = share_slides(counts, comm.size)
        self.log(*(f"note        {note}" for one in self.planned for note in one.notes))
        self.log(*(f"WARNING     {line}" for one in self.planned for line in self.appearance.warnings(one)))
        self.log(*(f"FAILED      {slide_id}: {why}" for slide_id, why in self.failures))
        area, slides = sum(one.tissue_mm2 for one in self.planned), counted(len(self.planned), "slide")
        what = "windows     {}" if self.streamed is None else "streaming   {} Mpx in tiles of {} px,"
        self.log(f"{what.format(sum(counts), opts.windows.stream)} over {area:.1f} mm2 of tissue on {slides}")

    def predict_slides(self) -> None:
        """Predict this rank's share; a slide is finished as soon as all of it is done."""
        comm, mine = self.comm, self.shares[self.comm.rank]
        bar = Progress(
            sum(run.last - run.first for run in mine), "windows" if self.streamed is None else "Mpx",
            name="rank 0" if comm.size > 1 else "predicting", shown=comm.rank == 0,
        )  # fmt: skip
        finishing: list[Future[None]] = []

        def progress(count: int) -> None:
            self.heartbeat.doing = "predicting"
            bar.update(count)
            if self.ranks.preemption.requested:
                raise StopError

        # A slide is finished while the next is predicted. A request to stop drops the slide that is being predicted.
        with ThreadPoolExecutor(1, thread_name_prefix="finish") as pool, suppress(StopError):
            for number, run in enumerate(mine, start=1):
                bar.update(0, f"slide {number} of {len(mine)}, {self.planned[run.slide].slide_id}")
                self.predict_run(run, progress)
                # An error of an earlier slide is raised now, not at the end.
                finishing = [future for future in finishing if not (future.done() and future.result() is None)]
                finishing.append(pool.submit(self.finish_if_whole, run.slide))
        self.heartbeat.doing = "writing results"
        for future in finishing:
            future.result()
        bar.close()
        # Ranks: another node's file system may show a run late; now all runs are visible.
        self.requests = self.ranks.requests()
        self.heartbeat.doing = "writing results"
        for number in range(comm.rank, len(self.planned), comm.size):
            self.finish_if_whole(number)

    def predict_run(self, run: Run, progress: Callable[[int], None]) -> None:
        """Predict some windows of a slide, or with --stream all of it, into its scratch folder."""
        from inference.predict import WindowOptions, predict_run
        from slides.reader import Slide, SlideError

        opts, model, planned = self.opts, self.network.info, self.planned[run.slide]
        slide, folder = Slide(planned.path, um_px=self.um_px_of(planned.slide_id)), self.scratch / planned.slide_id
        if self.adapt is not None:
            self.adapt(self.appearance.adaptation_batches(slide, planned, model.context_um_px))
        if self.streamed is not None:
            try:
                self.streamed.predict(slide, planned, folder, self.appearance.change(planned), progress)
            except SlideError as error:
                if opts.slides.strict:
                    raise
                self.failed(planned, error)
            return
        options = WindowOptions(
            batch_size=opts.windows.batch_size,
            classes=model.classes,
            context_um_px=model.context_um_px,
            workers=opts.machine.sample_processes,
            strict=opts.slides.strict,
            eightfold=opts.windows.eightfold,
        )
        network = self.appearance.normalized(self.network.probabilities, planned)
        predict_run(slide, planned.weights(), planned.windows, run, network, options, folder, progress)

    def failed(self, planned: PlannedSlide, error: Exception) -> None:
        """Note that a slide has no result."""
        self.failures.append((planned.slide_id, str(error)))
        job.write(f"FAILED      {planned.slide_id}: {error}")

    def finish_if_whole(self, number: int) -> None:
        """Write a slide's results if all its runs are complete and no other rank has claimed it."""
        from inference.finish import claim, finish_slide
        from slides.reader import Slide, SlideError

        planned = self.planned[number]
        runs = sorted(run.first for share in self.shares for run in share if run.slide == number)
        folder = self.scratch / planned.slide_id
        if not claim(folder, runs):
            return
        try:
            slide = Slide(planned.path, um_px=self.um_px_of(planned.slide_id))
            common = replace(self.common, options=self.options_of(planned.slide_id))
            notes = finish_slide(slide, planned, runs, folder, common)
        except SlideError as error:
            self.failed(planned, error)
        else:
            windows = counted(len(planned.windows), "window")
            job.write(f"done        {planned.slide_id}, {windows if self.streamed is None else 'as one image'}")
            for note in notes:
                job.write(f"note        {planned.slide_id}: {note}")
        shutil.rmtree(folder, ignore_errors=True)

    def conclude(self, seconds: float) -> int:
        """Report the failures of all ranks; returns the exit code."""
        failures = sorted({failure for part in self.comm.gather(self.failures) for failure in part})
        if self.comm.rank == 0:
            shutil.rmtree(self.scratch, ignore_errors=True)
        left = [one for one in self.planned if not (self.opts.slides.out / one.slide_id / "summary.json").exists()]
        # Ranks: one looks, since file systems may lag.
        if self.requests and self.comm.gather(len(left))[0]:
            slides = counted(len(left), "slide")
            self.log(f"preempted   {self.requests}: {slides} left of {len(self.slides)}; the same command continues")
            return EXIT_CODE
        windows = counted(sum(len(one.windows) for one in self.planned), "window")
        what = windows if self.streamed is None else counted(len(self.planned), "slide")
        self.log(f"finished    {what} in {seconds:.0f} s; results in {self.opts.slides.out}")
        self.log(*(f"FAILED      {slide_id}: {why}" for slide_id, why in failures))
        return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
