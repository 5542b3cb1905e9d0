"""Inputs of training: slides and labels, sampler and hard-mining pool, feeds of batches.

Shapes: B patches per rank, H, W patch pixels, C channels (3, or 6 with a context view), M numbers that
describe a patch.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artifacts import metadata
from options.classes import Classes
from options.groups import Machine, TissueSearch
from options.train import Sampling, Training, TrainSlides
from parallel.comm import AgreedError, Comm, together
from parallel.job import Log
from system.csv_tables import counted

if TYPE_CHECKING:
    from cohorts.pairing import Case
    from cohorts.sets import Chosen
    from cohorts.staging import Staging
    from samplers.dataset import SetOptions, SlideSet
    from samplers.hard_pool import Entry, HardPool
    from samplers.patch import PatchReader, PatchRequest, RequestSource
    from samplers.records import Records
    from segmentation.stain import RunStain

CLASS_NAMES = metadata.DEFAULT_NAMES


def find_cases(slides: TrainSlides, seed: int) -> Chosen:
    """Training cases, validation cases and notes: files paired and split, nothing opened.

    Args:
        slides: where they are.
        seed: of the split.

    Raises:
        ValueError: files do not pair, a set is empty, or the table of spacings cannot be used.
    """
    from cohorts.spacings import with_spacings

    train, val, notes = _paired(slides, seed)
    train, val = with_spacings(slides.mpp_table, train, val)
    given = sum(case.um_px is not None for case in (*train, *val))
    if given:
        notes.append(f"spacing from a table for {given} of {counted(len(train) + len(val), 'slide')}")
    return train, val, notes


def _paired(slides: TrainSlides, seed: int) -> Chosen:
    """See `find_cases`; without the spacings of --mpp_table."""
    from cohorts.sets import Source, from_camelyon, from_folders, from_manifest

    centers = (slides.train_centers, slides.val_centers)
    formats = (slides.slide_format, slides.label_format)
    if slides.manifest is not None:
        return from_manifest(slides.manifest, slides.slide_root, centers)
    if slides.dataset is not None and slides.data_root is not None:
        return from_camelyon(slides.dataset, slides.data_root, formats, centers, slides.val_split, seed)
    if slides.slide_path is None:
        raise ValueError("no training data: give --slide_path, --dataset or --manifest")
    train = Source(slides.slide_path, slides.label_path, *formats, slides.recursive)
    val = None
    if slides.valid_slide_path is not None:
        val_formats = (slides.valid_slide_format, slides.valid_label_format)
        val = Source(slides.valid_slide_path, slides.valid_label_path, *val_formats, slides.recursive)
    return from_folders(train, val, centers, slides.val_split, seed)


def set_options(
    labels: Classes, um_px_l0: float | None, bb_downsample: int, class_weights: Sequence[float] | None
) -> SetOptions:
    """How slides and labels are read and indexed.

    Args:
        labels: which class an annotation group or mask value is of.
        um_px_l0: spacing of level 0, um per px, in place of what slides say; None to believe them.
        bb_downsample: pyramid level of the search grid.
        class_weights: weight of each class, or None.

    Raises:
        AgreedError: --classes or --class_weights does not fit the labels.
    """
    from samplers.dataset import SetOptions

    reading = labels.reading(um_px_l0)
    try:
        classes = labels.count(metadata.class_count(reading.class_of_group, reading.class_of_value))
    except ValueError as error:
        raise AgreedError(str(error)) from error
    if class_weights and len(class_weights) != classes:
        raise AgreedError(f"--class_weights: {len(class_weights)} weights given for {classes} classes")
    return SetOptions(reading, bb_downsample, classes)


class Inputs:
    """Slides, samplers and feeds of one run; the methods stand in the order in which they are used.

    Args:
        slides: where slides and labels are, and how they are split and staged.
        labels: which class an annotation group or mask value is of.
        tissue: how tissue is searched for.
        sampling: which patches are drawn.
        training: batches, class weights and seed.
        machine: readers and cache of a rank.
        comm: the ranks.
        log: prints lines on rank 0.

    Attributes:
        classes: number of classes K.
        described: files and how they are read, JSON types, for `samplers.replay`.
        stream: options and slides that decide which patch an index is.
        train_set, val_set: opened slides.
        stain: their stains.
        sampler: places of the training patches.
        pool: the hard-mining pool, or None.
        train_reader, val_reader: readers of patches.
        grid: validation patches.
        records: sample log.
    """

    def __init__(
        self,
        slides: TrainSlides,
        labels: Classes,
        tissue: TissueSearch,
        sampling: Sampling,
        training: Training,
        machine: Machine,
        comm: Comm,
        log: Log,
    ) -> None:
        self._slides = slides
        self._labels = labels
        self._tissue = tissue
        self._sampling = sampling
        self._training = training
        self._machine = machine
        self._comm = comm
        self._log = log
        self._staging: Staging | None = None
        self._left_out: list[str] = []
        self.classes = 0
        self.described: dict[str, Any] = {}
        self.stream: dict[str, Any] = {}
        self.pool: HardPool | None = None
        self.grid: list[PatchRequest] = []
        # Made by `open`, `build_sampler` and `start_records`.
        self.train_set: SlideSet
        self.val_set: SlideSet
        self.stain: RunStain
        self.sampler: RequestSource
        self.train_reader: PatchReader
        self.val_reader: PatchReader
        self.records: Records

    def open(self, stream: Mapping[str, Any]) -> None:
        """Pair, split, stage, open and index the slides, and log what was found.

        Args:
            stream: options that decide which patch an index is, JSON types.
        """
        from samplers.dataset import check_field_of_view, open_set, taken_levels
        from segmentation.stain import run_stain
        from slides.tiff import tiled_tiff

        slides, sampling, training, comm = self._slides, self._sampling, self._training, self._comm
        tiled_tiff.tile_cache.resize(self._machine.tile_cache * 2**20)
        options = set_options(self._labels, slides.mpp, self._tissue.bb_downsample, training.class_weights)
        options = replace(options, tolerance=sampling.resolution_tolerance)
        self.classes = options.classes
        train_cases, val_cases, notes = together(comm, lambda: find_cases(slides, training.seed))
        options, classes = self._settled(options, [case.label_path for case in (*train_cases, *val_cases)])
        self.described = {"reading": options.as_json(), "cases": [case_json(case) for case in train_cases]}
        if slides.stage_dir is not None:
            train_cases, val_cases, note = self._stage(slides.stage_dir, train_cases, val_cases)
            notes.append(note)
        self.train_set, self.val_set = (
            open_set(cases, options, comm.rank, comm.size, lambda action: comm.gather(together(comm, action)))
            for cases in (train_cases, val_cases)
        )
        self.stream = {**stream, "slides": [slide.id for slide in self.train_set.slides], "mine_from": None}
        given = {case.slide_id: case.um_px for case in train_cases if case.um_px is not None}
        self.stream["mpp_table"] = (
            f"{counted(len(given), 'slide')}, CRC {zlib.crc32(repr(given).encode()):08x}" if given else None
        )
        together(comm, lambda: check_field_of_view(self.train_set, sampling.img_size, sampling.resolution))
        self.stain = run_stain(sampling.stain_norm, self.train_set, self.val_set, comm)
        self.described["stain"] = self.stain.replay_json()
        # By name only: last digits of an estimate may differ between processors.
        self.stream["stain"] = None if sampling.stain_norm == "none" else sampling.stain_norm
        damaged = [index.damage for part in (self.train_set, self.val_set) for index in part.indexes if index.damage]
        if damaged and not sampling.max_unreadable:
            raise AgreedError(f"{damaged[0]}. --max_unreadable is 0; copy the slide again, or allow more")
        self._log(*(f"classes     {line}" for line in classes))
        for what, opened in (("training", self.train_set), ("validation", self.val_set)):
            tumor = sum(1 for index in opened.indexes if set(index.places) - {0})
            names = [slide.id for slide in opened.slides]
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            self._log(f"{what:<11} {counted(len(names), 'slide')}, {tumor} of them with tumor: {shown}")
            notes += [note for index in opened.indexes for note in index.notes]
            notes += taken_levels(opened.slides, sampling.resolution)
        if sampling.stain_norm != "none":
            self._log(f"stain       {sampling.stain_norm}: all slides like the median of the training slides")
            notes += self.stain.notes
        self._log(*(f"note        {note}" for note in notes))

    def _settled(self, options: SetOptions, labels: list[Path | None]) -> tuple[SetOptions, list[str]]:
        """The options with the classes of mask values, decided over both sets, and lines that describe the classes."""
        from slides.truth.mask_values import count_all

        comm, threads = self._comm, self._machine.sample_processes

        def counts(masks: list[Path]) -> dict[Path, Counter[int]]:
            # Ranks: each reads every size-th mask.
            mine = masks[comm.rank :: comm.size]
            parts = comm.gather(together(comm, lambda: count_all(mine, threads)))
            found = {path: values for part in parts for path, values in part.items()}
            return {path: found[path] for path in masks}

        try:
            reading, lines = options.reading.settled(labels, counts, CLASS_NAMES)
        except ValueError as error:
            raise AgreedError(str(error)) from error
        return replace(options, reading=reading), lines

    def _stage(
        self, folder: Path, train_cases: list[Case], val_cases: list[Case]
    ) -> tuple[list[Case], list[Case], str]:
        """Copies on the node in place of the files; both sets share one bound."""
        from cohorts.staging import Place, Staging

        comm, max_bytes = self._comm, int(self._slides.stage_gb * 1e9)
        place = Place(comm.local_rank, comm.local_size)
        staging = together(comm, lambda: Staging(folder, max_bytes, place, comm.gather))
        self._staging = staging
        # Ranks: no rank opens a copy before all copies of the node are complete.
        cases, note = together(comm, lambda: staging.copy([*train_cases, *val_cases]))
        return cases[: len(train_cases)], cases[len(train_cases) :], f"--stage_dir: {note}"

    def build_sampler(self, joint_batch: int, log_every: int) -> None:
        """The training sampler, the hard-mining pool around it where asked for, and the validation grid.

        Args:
            joint_batch: images of a step, over all ranks.
            log_every: images between log lines; the pool learns at no shorter interval.
        """
        import samplers
        from samplers.grid import requests
        from samplers.hard_pool import HardPool

        sampling, seed, comm = self._sampling, self._training.seed, self._comm
        img_size, um_px, indexes = sampling.img_size, sampling.resolution, self.train_set.indexes

        def built() -> RequestSource:
            return samplers.build(sampling.data_sampler, indexes, seed, self.classes, sampling.batch_tumor_ratio)

        self.sampler = together(comm, built)
        if sampling.hard_mining:
            folder = sampling.mine_from
            start = [] if folder is None else together(comm, lambda: self._mined(folder))
            self.sampler = self.pool = HardPool(
                self.sampler, indexes, seed, sampling.hard_fraction, sampling.hard_pool,
                interval=max(log_every, joint_batch), patch_um=sampling.patch_um, start=start,
            )  # fmt: skip
        self.train_reader, self.val_reader = (
            part.reader(img_size, um_px, sampling.context_spacing, stains)
            for part, stains in ((self.train_set, self.stain.train), (self.val_set, self.stain.val))
        )
        steps_xy_l0 = [slide.step_xy_l0(um_px) for slide in self.val_set.slides]
        self.grid = together(comm, lambda: requests(self.val_set.indexes, img_size, steps_xy_l0, sampling.val_patches))
        self._log(
            f"sampling    {sampling.data_sampler}; validation on {counted(len(self.grid), 'patch')} of the grid "
            "over tissue"
        )

    def _mined(self, folder: Path) -> list[Entry]:
        """Places that the hard pool starts with; they are part of the stream."""
        from samplers.pool_seed import read_pool_seed

        entries, others = read_pool_seed(folder, [slide.id for slide in self.train_set.slides])
        self.stream["mine_from"] = f"{len(entries)} places, CRC {zlib.crc32(repr(entries).encode()):08x}"
        left_out = f", {others} on other slides left out" if others else ""
        self._log(f"mined       {counted(len(entries), 'place')} of {folder}{left_out}")
        return entries

    def start_records(self, log_dir: Path | None) -> None:
        """Open the sample log; rank 0 stores which files the run reads, for `samplers.replay`.

        Args:
            log_dir: log folder of the run; None to keep no log.
        """
        from samplers.records import Records, write_described

        sampling, comm = self._sampling, self._comm

        def start() -> Records:
            if comm.rank == 0 and log_dir is not None:
                write_described(log_dir, self.described)
            ids, share = self.stream["slides"], float(sampling.max_unreadable)
            um_px = [round(slide.spacing(sampling.resolution), 9) for slide in self.train_set.slides]
            return Records(log_dir, comm.rank, ids, um_px, self.pool, share)

        self.records = together(comm, start)

    def train_feed(self, first: int) -> Any:
        """Endless batches (image_BHWC, label_BHW, meta_BM) of this rank from an image counter on, augmented.

        Each holds the patches of all passes of a step.
        """
        from samplers.augment import Augment
        from samplers.patch import draw
        from samplers.pipeline import Feed, joined, rank_indices

        sampling, training, comm = self._sampling, self._training, self._comm
        passes = training.accumulate_batch
        feed = Feed(
            lambda index: self.records.noticed(draw(self.sampler, self.train_reader, index, sampling.qc)),
            lambda: rank_indices(first, training.batch_size * passes, comm.rank, comm.size),
            training.batch_size, sampling.img_size, workers=self._machine.sample_processes,
            channels=sampling.channels,
        )  # fmt: skip
        if sampling.augment == "none":
            return joined(feed, passes)
        augment = Augment(sampling.augment, training.seed)
        augmented = ((*augment(image, label, meta[:, 0]), meta) for image, label, meta in feed)
        return joined(augmented, passes)

    def val_feed(self) -> Any:
        """This rank's batches of the validation grid, each patch once over all ranks; unreadable ones are collected."""
        from samplers.pipeline import grid_feed

        self._left_out = []
        return grid_feed(
            self.val_reader, self.grid, self._comm.rank, self._comm.size, self._training.batch_size,
            self._machine.sample_processes, self._left_out.append,
        )  # fmt: skip

    def check_left_out(self) -> None:
        """Report which validation windows could not be read in the last `val_feed`; every rank must call it.

        Raises:
            ValueError: on every rank, when they are more than --max_unreadable of the grid.
        """
        bad = sorted(message for part in self._comm.gather(self._left_out) for message in part)
        if bad:
            line = f"{len(bad)} of {len(self.grid)} validation patches could not be read, first: {bad[0]}"
            if len(bad) > self._sampling.max_unreadable * len(self.grid):
                raise AgreedError(f"{line}. --max_unreadable is {float(self._sampling.max_unreadable):g}")
            self._log(f"note        {line}")

    def rejected(self) -> str:
        """Rejected draws since the start, by reason, over all ranks, as text; every rank must call it."""
        total = sum(self._comm.gather(self.records.rejected), Counter[str]())
        return ", ".join(f"{count} {reason}" for reason, count in sorted(total.items())) or "none"

    def close(self) -> None:
        """Remove staged copies; every rank must call it."""
        if self._staging is not None:
            self._staging.close()


def case_json(case: Case) -> dict[str, Any]:
    """Files of one slide as JSON types, absolute."""
    label = None if case.label_path is None else str(case.label_path.resolve())
    spacing = {} if case.um_px is None else {"um_px": list(case.um_px)}
    return {"slide_path": str(case.slide_path.resolve()), "label_path": label, **spacing}
