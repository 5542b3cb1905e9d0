"""From options to what training reads: slides and truth, sampler and pool, feeds of batches.

Shapes: B patches per rank, H, W patch pixels, C channels (3, or 6 with a context view), M numbers that
describe a patch.
"""

from __future__ import annotations

import argparse
import zlib
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from artifacts import metadata
from parallel.comm import AgreedError, Comm, together

if TYPE_CHECKING:
    from samplers.dataset import SetOptions

CLASS_NAMES = metadata.DEFAULT_NAMES


def _classes(opts: argparse.Namespace, mapped: int) -> int:
    """Number of classes: as asked for, if the labels have no more.

    Raises:
        AgreedError: --classes or --class_weights does not fit.
    """
    classes = mapped if opts.classes is None else int(opts.classes)
    if classes < mapped:
        raise AgreedError(f"--classes {classes}: --label_map and --mask_values have class {mapped - 1}; give {mapped}")
    if opts.class_weights and len(opts.class_weights) != classes:
        raise AgreedError(f"--class_weights: {len(opts.class_weights)} weights given for {classes} classes")
    return classes


class Inputs:
    """Slides, samplers and feeds of one run; the methods stand in the order in which they are used.

    Args:
        opts: validated options.
        comm: the ranks.
        say: prints lines on rank 0.

    Attributes:
        classes: number of classes K.
        channels: channels C of the images.
        stream: options and slides that decide which patch an index is.
        train_set, val_set: opened slides.
        pool: the hard-mining pool, or None.
        grid: validation patches.
    """

    def __init__(self, opts: argparse.Namespace, comm: Comm, say: Callable[..., None]) -> None:
        self._opts = opts
        self._comm = comm
        self._say = say
        self._staging: Any = None
        self.channels = 3 if opts.context_spacing is None else 6
        self.patch_um = opts.img_size * opts.resolution

    def open(self) -> None:
        """Pair, split, stage, open and index the slides, and say what was found."""
        from options.train import stream_options
        from samplers.dataset import check_field_of_view, open_set
        from slides.tiff import tiled_tiff
        from slides.truth.annotation import describe

        opts, comm = self._opts, self._comm
        tiled_tiff.tile_cache.resize(opts.tile_cache * 2**20)
        options = self.set_options()
        self.classes = options.classes
        train_cases, val_cases, notes = together(comm, self.find)
        self.described = {"reading": options.as_json(), "cases": [case_json(case) for case in train_cases]}
        if opts.stage_dir is not None:
            train_cases, val_cases, note = self._stage(train_cases, val_cases)
            notes.append(note)
        self.train_set, self.val_set = (
            open_set(cases, options, comm.rank, comm.size, lambda action: comm.gather(together(comm, action)))
            for cases in (train_cases, val_cases)
        )
        self.stream = stream_options(opts) | {
            "slides": [slide.id for slide in self.train_set.slides],
            "mine_from": None,
        }
        together(comm, lambda: check_field_of_view(self.train_set, opts.img_size, opts.resolution))
        self._say(f"classes     {describe(options.reading.class_of_group, CLASS_NAMES)}")
        for what, opened in (("training", self.train_set), ("validation", self.val_set)):
            tumor = sum(1 for index in opened.indexes if set(index.places) - {0})
            names = [slide.id for slide in opened.slides]
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            self._say(f"{what:<11} {len(names)} slides, {tumor} of them with tumor: {shown}")
            notes += [note for index in opened.indexes for note in index.notes]
        self._say(*(f"note        {note}" for note in notes))

    def set_options(self) -> SetOptions:
        """Return how slides and labels are read and indexed."""
        from samplers.dataset import SetOptions
        from slides.truth.annotation import DEFAULT_LABEL_MAP
        from slides.truth.reading import Reading

        opts = self._opts
        label_map = opts.label_map or DEFAULT_LABEL_MAP
        classes = _classes(opts, metadata.class_count(label_map, opts.mask_values))
        values = None if opts.mask_values is None else tuple(opts.mask_values.items())
        reading = Reading(tuple(label_map.items()), tuple(opts.ignore_groups), values, opts.mpp)
        return SetOptions(reading, opts.bb_downsample, classes)

    def facts(self, network: str, images: int) -> dict[str, Any]:
        """What must be known of the model besides its network, JSON types.

        Args:
            network: its name.
            images: images trained so far.
        """
        from options.train import as_json

        return metadata.of_run(as_json(self._opts), network, images).as_json()

    def find(self) -> Any:
        """Training cases, validation cases and notes: files paired and split, nothing opened."""
        from cohorts.sets import Source, from_camelyon, from_folders, from_manifest

        opts = self._opts
        if opts.manifest:
            return from_manifest(opts.manifest, opts.slide_root, (opts.train_centers, opts.val_centers))
        rest = ((opts.train_centers, opts.val_centers), opts.val_split, opts.seed)
        if opts.dataset:
            return from_camelyon(opts.dataset, opts.data_root, (opts.slide_format, opts.label_format), *rest)
        train = Source(opts.slide_path, opts.label_path, opts.slide_format, opts.label_format)
        val = Source(opts.valid_slide_path, opts.valid_label_path, opts.valid_slide_format, opts.valid_label_format)
        return from_folders(train, val if opts.valid_slide_path else None, *rest)

    def _stage(self, train_cases: list[Any], val_cases: list[Any]) -> tuple[list[Any], list[Any], str]:
        """Copies on the node in place of the files; both sets share one bound."""
        from cohorts.staging import Place, Staging

        opts, comm = self._opts, self._comm
        place = Place(comm.local_rank, comm.local_size)
        staging = together(comm, lambda: Staging(opts.stage_dir, int(opts.stage_gb * 1e9), place, comm.gather))
        self._staging = staging
        # Ranks: nobody opens a copy before all of the node's are there.
        cases, note = together(comm, lambda: staging.copy([*train_cases, *val_cases]))
        return cases[: len(train_cases)], cases[len(train_cases) :], f"--stage_dir: {note}"

    def build_sampler(self, global_batch: int) -> None:
        """The training sampler, the hard-mining pool around it where asked for, and the validation grid."""
        import samplers
        from samplers.grid import requests
        from samplers.hard_pool import HardPool

        opts, indexes = self._opts, self.train_set.indexes
        plan = (opts.data_sampler, indexes, opts.seed, self.classes, opts.batch_tumor_ratio)
        self.sampler = together(self._comm, lambda: samplers.build(*plan))
        self.pool = None
        if opts.hard_mining:
            start = together(self._comm, self._mined) if opts.mine_from else []
            self.sampler = self.pool = HardPool(
                self.sampler, indexes, opts.seed, opts.hard_fraction, opts.hard_pool,
                interval=max(opts.log_every, global_batch), patch_um=self.patch_um, start=start,
            )  # fmt: skip
        view = (opts.img_size, opts.resolution, opts.context_spacing)
        self.train_reader, self.val_reader = (part.reader(*view) for part in (self.train_set, self.val_set))
        grid_of = (self.val_set.indexes, opts.img_size, opts.resolution, opts.val_patches)
        self.grid = together(self._comm, lambda: requests(*grid_of))
        self._say(f"sampling    {opts.data_sampler}; validation on {len(self.grid)} patches of the grid over tissue")

    def _mined(self) -> Any:
        """Places that the hard pool begins with; they are part of the stream."""
        from samplers.pool_seed import read_pool_seed

        entries, others = read_pool_seed(self._opts.mine_from, [slide.id for slide in self.train_set.slides])
        self.stream["mine_from"] = f"{len(entries)} places, CRC {zlib.crc32(repr(entries).encode()):08x}"
        left_out = f", {others} on other slides left out" if others else ""
        self._say(f"mined       {len(entries)} places of {self._opts.mine_from}{left_out}")
        return entries

    def start_records(self) -> None:
        """Open the sample log; rank 0 writes down which files the run reads, for `samplers.replay`."""
        from samplers.records import Records, write_described

        opts, comm = self._opts, self._comm

        def start() -> Records:
            if comm.rank == 0 and opts.log_dir is not None:
                write_described(opts.log_dir, self.described)
            ids = self.stream["slides"]
            return Records(opts.log_dir, comm.rank, ids, opts.resolution, self.pool, float(opts.max_unreadable))

        self.records = together(comm, start)

    def train_feed(self, first: int) -> Any:
        """Endless batches (image_BHWC, label_BHW, meta_BM) of this rank from an image counter on, augmented.

        Each holds the patches of all passes of a step.
        """
        from samplers.augment import Augment
        from samplers.patch import draw
        from samplers.pipeline import Feed, joined, rank_indices

        opts, comm = self._opts, self._comm
        feed = Feed(
            lambda index: self.records.noticed(draw(self.sampler, self.train_reader, index, opts.qc)),
            lambda: rank_indices(first, opts.batch_size * opts.accumulate_batch, comm.rank, comm.size),
            opts.batch_size, opts.img_size, workers=opts.sample_processes, channels=self.channels,
        )  # fmt: skip
        if opts.augment == "none":
            return joined(feed, opts.accumulate_batch)
        augment = Augment(opts.augment, opts.seed)
        augmented = ((*augment(image, label, meta[:, 0]), meta) for image, label, meta in feed)
        return joined(augmented, opts.accumulate_batch)

    def val_feed(self) -> Any:
        """This rank's batches of the validation grid, each patch once over all ranks; `left_out` collects the bad."""
        from samplers.pipeline import grid_feed

        opts, comm = self._opts, self._comm
        self._left_out: list[str] = []
        split = (comm.rank, comm.size, opts.batch_size, opts.sample_processes)
        return grid_feed(self.val_reader, self.grid, *split, self._left_out.append)

    def check_left_out(self) -> None:
        """Say which validation windows could not be read in the last `val_feed`; every rank must call it.

        Raises:
            ValueError: on every rank, when they are more than --max_unreadable of the grid.
        """
        bad = sorted(message for part in self._comm.gather(self._left_out) for message in part)
        if bad:
            line = f"{len(bad)} of {len(self.grid)} validation patches could not be read, first: {bad[0]}"
            if len(bad) > self._opts.max_unreadable * len(self.grid):
                raise AgreedError(f"{line}. --max_unreadable is {float(self._opts.max_unreadable):g}")
            self._say(f"note        {line}")

    def rejected(self) -> str:
        """Which draws were not taken since the start, over all ranks, in words; every rank must call it."""
        total = sum(self._comm.gather(self.records.rejected), Counter())
        return ", ".join(f"{count} {reason}" for reason, count in sorted(total.items())) or "none"

    def close(self) -> None:
        """Remove staged copies; every rank must call it."""
        if self._staging is not None:
            self._staging.close()


def case_json(case: Any) -> dict[str, str | None]:
    """Files of one slide as JSON types, absolute."""
    label = None if case.label_path is None else str(case.label_path.resolve())
    return {"slide_path": str(case.slide_path.resolve()), "label_path": label}
