"""Inputs of the whole-slide classifier: labels, images, the order of training, feeds of views.

Shapes: B images of this rank in a step, K outputs.
"""

from __future__ import annotations

import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from classification import targets as tables
from classification.draws import Draws, generator
from classification.features import Features
from classification.kept import BLOCK_PX, Kept
from classification.targets import Labeled, Targets
from options.train_classifier import Labels, Phases, WholeImages
from parallel.comm import AgreedError, Comm, together
from parallel.job import Log
from streaming.images import Source
from system.csv_tables import counted

if TYPE_CHECKING:
    from classification.augment import View
    from classification.extraction import Extraction
    from classification.features import Settings
    from classification.images import Images
    from classification.network import Classifier
    from classification.stream import Stream

Item = TypeVar("Item")
Made = TypeVar("Made")

NORMALIZATION = "8 bit to [-1, 1]"
SUBSET = 106  # what a generator is for, see `classification.draws`


@dataclass(frozen=True, eq=False)
class Step:
    """One rank's share of an update.

    Attributes:
        indices: image counters of its images.
        labeled: their slides.
        sources: their views, made when they are asked for; to be used once.
        images: images of the update over all ranks.
    """

    indices: Sequence[int]
    labeled: Sequence[Labeled]
    sources: Iterator[Source]
    images: int


class Inputs:
    """Labels, images and feeds of one run; the methods stand in the order in which they are used.

    Args:
        labels: tables, and how slides are chosen from them.
        images: where images are, and what the network sees of them.
        seed: of split, order and augmentation.
        comm: the ranks.
        share: all ranks work on the same image.
        features: images are maps in an archive of features.
        log: prints lines on rank 0.

    Attributes:
        targets: what the outputs of the network stand for.
        train, val: slides to train on and to validate on.
        draws: the order of training.
        stream: options, slides and outputs that decide which view an index is, JSON types.
        share: see above.
    """

    def __init__(
        self, labels: Labels, images: WholeImages, seed: int, comm: Comm, share: bool, features: bool, log: Log
    ) -> None:
        self._labels = labels
        self._options = images
        self._seed = seed
        self._comm = comm
        self._log = log
        # Ranks: of every `size` images of a step this rank takes that at `rank`; all of them where slides are shared.
        self.share = share
        self._rank, self._size = (0, 1) if share else (comm.rank, comm.size)
        # Ranks: of a shared image a rank reads only the tiles that it computes.
        self._ahead = 0 if share or features else images.read_ahead
        self._from_features = features
        self.features: Features | None = None
        self.train: list[Labeled] = []
        self.val: list[Labeled] = []
        self.stream: dict[str, Any] = {}
        # Made by `open`.
        self.targets: Targets
        self.draws: Draws
        self.images: Images

    def open(self, stream: Mapping[str, Any], validation: bool, only_val: bool = False) -> None:
        """Read the tables, find and open the images, and log what was found.

        Args:
            stream: options that decide which view an index is, JSON types.
            validation: whether slides are held out where no table of them is given.
            only_val: whether nothing is trained on.

        Raises:
            AgreedError: a table, label or image cannot be used.
        """
        comm, notes = self._comm, []
        if self._from_features:
            assert self._options.data_tar is not None
            archive = self._options.data_tar
            self.features = together(comm, lambda: Features(archive))
        else:
            self.images = together(comm, self._find_images)
        if self._options.stage_dir is not None:
            self.images, note = self._staged()
            notes.append(f"--stage_dir: {note}")
        notes += together(comm, lambda: self._read_labels(validation, only_val))
        self._refuse_faults()
        if self.train:
            self.draws = Draws(self.train, self._seed, self._labels.weighted_sampler)
        described = repr([(item.slide_id, item.text) for item in self.train]).encode()
        self.stream = {
            **stream,
            "slides": f"{counted(len(self.train), 'slide')}, CRC {zlib.crc32(described):08x}",
            "outputs": {"kind": self.targets.kind, "names": list(self.targets.names)},
        }
        self._log(
            f"outputs     {counted(self.targets.outputs, 'output')} ({self.targets.kind}): "
            f"{', '.join(self.targets.names)}",
            *(f"labels      {line}" for line in tables.remarks(self.targets, self.train, self.val)),
            *(f"note        {note}" for note in notes),
        )

    def _refuse_faults(self) -> None:
        """Look at every image before the run starts."""
        if self.features is not None:
            return
        ids = [item.slide_id for item in (*self.train, *self.val)][self._comm.rank :: self._comm.size]
        faults = [fault for part in self._comm.gather(self.images.faults(ids)) for fault in part]
        if faults:
            more = f" (and {counted(len(faults) - 1, 'other image')})" if len(faults) > 1 else ""
            raise AgreedError(f"{faults[0]}{more}; repair it, or remove its label")

    def _find_images(self) -> Images:
        from classification.images import in_folder, in_tar
        from classification.slide_images import Cutting, of_slides
        from cohorts.pairing import find_slides
        from cohorts.spacings import with_spacings
        from slides.trimming import GAP_PX
        from slides.truth.reading import Reading

        given = self._options
        if given.data_dir is not None:
            return in_folder(given.data_dir)
        if given.data_tar is not None:
            return in_tar(given.data_tar)
        assert given.slide_path is not None
        assert given.resolution is not None
        slides = find_slides(given.slide_path, given.slide_format, given.recursive)
        (cases,) = with_spacings(given.mpp_table, slides)
        gap = None if given.keep_glass else GAP_PX
        cutting = Cutting(given.resolution, gap, tissue_method=given.tissue_method, keep_pen=given.keep_pen)
        return of_slides(cases, Reading(um_px=given.mpp), cutting)

    def _staged(self) -> tuple[Images, str]:
        from cohorts.staging import Place, Staging

        comm, folder = self._comm, self._options.stage_dir
        assert folder is not None
        place, most = Place(comm.local_rank, comm.local_size), int(self._options.stage_gb * 1e9)
        staging = together(comm, lambda: Staging(folder, most, place, comm.gather))
        # Ranks: no rank opens a copy before all copies of the node are complete.
        return together(comm, lambda: self.images.staged(staging))

    def _read_labels(self, validation: bool, only_val: bool) -> list[str]:
        """Tables, their images and the split; returns lines on what was left out."""
        labels, found = self._labels, self.features
        where, ids = (self.images.where, self.images.ids) if found is None else (str(found.path), found.ids)
        first, second = labels.train_csv or labels.val_csv, labels.val_csv if labels.train_csv else None
        assert first is not None
        self.targets, train, val = tables.read_tables(first, second, labels.target_kind, labels.num_classes)
        train, notes = tables.matched(train, ids, first, where)
        if second is not None:
            val, more = tables.matched(val, ids, second, where)
            notes += more
        elif labels.train_csv is None:
            train, val = [], train
        elif validation:
            train, val = tables.hold_out(self.targets, train, labels.val_split, self._seed)
        notes += tables.unused(ids, train, val)
        if labels.train_set_size is not None and labels.train_set_size < len(train):
            kept = sorted(generator(SUBSET, self._seed).permutation(len(train))[: labels.train_set_size].tolist())
            train = [train[at] for at in kept]
        self.train, self.val = [] if only_val else train, val if validation else []
        return notes

    def as_trained(self, stored: Mapping[str, Any] | None, path: object) -> None:
        """Give the labels the outputs of a trained network, which may know more classes than a table of validation has.

        Args:
            stored: `stream["outputs"]` of the run; None: unknown, the outputs stay.
            path: the network, for messages.

        Raises:
            ValueError: the labels are of another kind, or of classes that the network does not know.
        """
        if stored is None:
            return
        known = Targets(stored["kind"], tuple(stored["names"]))
        mine = self.targets
        unknown = [name for name in mine.names if name not in known.names] if mine.kind == "classes" else []
        if known.kind != mine.kind or unknown or (mine.kind != "classes" and known.names != mine.names):
            raise ValueError(
                f"{path} was trained for {known.kind} {', '.join(known.names)}; the labels are {mine.kind} "
                f"{', '.join(mine.names)}: give the labels it was trained for"
            )
        if mine.kind == "classes":
            eye = np.eye(known.outputs, dtype=np.float32)
            self.train, self.val = (
                [
                    replace(item, target_K=eye[known.names.index(mine.names[int(item.target_K.argmax())])])
                    for item in part
                ]
                for part in (self.train, self.val)
            )
        self.targets = known
        self.stream["outputs"] = {"kind": known.kind, "names": list(known.names)}

    # ----------------------------------------------------------------------------------------------------------- feeds

    def train_feed(self, images: int, total: int, joint_batch: int) -> Iterator[Step]:
        """Steps from an image counter on; the last one has what is left.

        Args:
            images: image counter of the first step.
            total: length of the training, images.
            joint_batch: images of a step over all ranks.
        """
        starts = range(images, total, joint_batch)
        shares = [self._share(start, min(start + joint_batch, total)) for start in starts]
        views = ahead(self._training_source, (index for share in shares for index in share), self._ahead)
        for start, share in zip(starts, shares, strict=True):
            labeled = [self.draws.at(index)[0] for index in share]
            yield Step(share, labeled, islice(views, len(share)), min(joint_batch, total - start))

    def first_views(self, count: int) -> Iterator[Source]:
        """The first views that the training will see, at most one for each of its slides."""
        yield from (self._training_source(index) for index in range(min(count, self.draws.epoch_images)))

    def _share(self, start: int, end: int) -> Sequence[int]:
        """Image counters of this rank in a step."""
        return range(start, end)[self._rank :: self._size]

    def _training_source(self, index: int) -> Source:
        item, epoch = self.draws.at(index)
        if self.features is not None:
            return self.features.map(item.slide_id, epoch)
        return self._kept(self._augmented(item.slide_id, index))

    def _augmented(self, slide_id: str, index: int) -> View:
        from classification.augment import strength, view

        given = self._options
        much = strength(given.augment, given.color)
        return view(self.images.open(slide_id), self.size_hw, much, self._seed, index)

    def validation_view(self, item: Labeled) -> View:
        """What validation sees of a slide: a crop where its mask has most, or all of it; never augmented."""
        from classification.augment import view

        given = self._options
        whole = given.variable_input_shapes or given.validation_whole_input
        return view(self.images.open(item.slide_id), None if whole else (given.image_size, given.image_size))

    def val_feed(self) -> Iterator[tuple[int, Source]]:
        """This rank's slides of the validation: place among all of them, and view."""
        mine = range(len(self.val))[self._rank :: self._size]
        views = ahead(self._validation_source, mine, self._ahead)
        yield from zip(mine, views, strict=True)

    def _validation_source(self, place: int) -> Source:
        item = self.val[place]
        if self.features is not None:
            return self.features.map(item.slide_id)
        return self._kept(self.validation_view(item))

    @property
    def size_hw(self) -> tuple[int, int] | None:
        """Rows and columns of what the network sees in training, px; None where every image has its own."""
        given = self._options
        return None if given.variable_input_shapes else (given.image_size, given.image_size)

    def settings(self, classifier: Classifier, dtype: str = "float16") -> Settings:
        """What maps of these images depend on.

        Args:
            classifier: the network.
            dtype: of the maps.
        """
        from classification.features import Settings

        given = self._options
        augmentation = {"augment": given.augment, "color": given.color}
        return Settings(
            classifier.name, classifier.cut, classifier.hash(), self.um_px(), self.size_hw, NORMALIZATION,
            classifier.precision, dtype, self._seed, augmentation,
        )  # fmt: skip

    def check_fit(self, classifier: Classifier, stream: Stream) -> None:
        """Refuse features of another network, and tiles that are too small for the images.

        Raises:
            ValueError: says what does not fit.
        """
        if self.features is not None:
            self.features.check(self.settings(classifier))
        elif self.size_hw is not None:
            stream.check(self.size_hw)

    def extraction(self, phases: Phases, copies: int | None, classifier: Classifier) -> Extraction:
        """Features to make: augmented copies of every slide to train on, one of those to validate on as they are.

        Args:
            phases: file and type.
            copies: of every slide to train on.
            classifier: makes the maps.
        """
        from classification.extraction import Extraction

        assert phases.save_path is not None
        places = {item.slide_id: place for place, item in enumerate(self.train)}

        validated = {item.slide_id: item for item in self.val}

        def made(slide_id: str, copy: int) -> Source:
            if slide_id in validated:
                return Kept(self.validation_view(validated[slide_id]))
            return Kept(self._augmented(slide_id, copy * len(places) + places[slide_id]))

        items = [(name, copy) for name in places for copy in range(copies or 1)]
        items += [(item.slide_id, 0) for item in self.val]
        tables = {"train.csv": self._labels.train_csv, "val.csv": self._labels.val_csv}
        extra = {name: table.read_bytes() for name, table in tables.items() if table is not None}
        return Extraction(phases.save_path, self.settings(classifier, phases.features_dtype), items, made, extra)

    def _kept(self, source: Any) -> Source:
        """A view whose px are made once; now, where images are read ahead, else when tiles ask for them."""
        kept = Kept(source)
        _, height, width, _ = kept.shape
        if self._ahead:
            for row in range(0, height, BLOCK_PX):
                kept.read((row, min(row + BLOCK_PX, height)), (0, width))
        return kept

    def um_px(self) -> float | None:
        """Um per px of the images as far as known: of the first one."""
        if self.features is not None:
            return self.features.settings.um_px
        if self._options.resolution is not None:
            return self._options.resolution
        items = [*self.train, *self.val]
        return self.images.open(items[0].slide_id).um_px

    def target_BK(self, labeled: Sequence[Labeled]) -> NDArray[np.float32]:  # noqa: N802
        """What is to be learned of slides; (0, K) for none."""
        return np.array([item.target_K for item in labeled], np.float32).reshape(-1, self.targets.outputs)


def ahead(make: Callable[[Item], Made], items: Iterable[Item], count: int) -> Iterator[Made]:
    """What is made of items, in order; up to `count` more are made in a thread while one is used.

    Args:
        make: of an item.
        items: the items.
        count: 0: nothing is made before it is asked for.
    """
    if count == 0:
        yield from map(make, items)
        return
    with ThreadPoolExecutor(1, "reading") as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > count:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
