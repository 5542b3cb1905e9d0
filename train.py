"""Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.

The story: options, communicator, data, model, resume, then step, log, validate, checkpoint. `train.py --help` starts.

Shapes: B patches per rank, H, W patch pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from options import train_options
from training.comm import abort, connect, launched_rank, together

CLASS_NAMES = {0: "normal", 1: "tumour"}
BEST, FINAL = "best.npz", "final.npz"  # beside the checkpoints by image counter


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks."""
    opts = train_options(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # real errors come as exceptions
    os.environ.setdefault(
        "VIPS_CONCURRENCY", "1"
    )  # the samplers are the parallelism; vips would add threads of its own
    if opts.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        comm = connect(opts.horovod)
    except ValueError as error:
        # Ranks: nobody is connected yet, so the launcher's word on who is rank 0 must do.
        if launched_rank() == 0:
            print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    try:
        Run(opts, comm).go()
    except ValueError as error:
        # Ranks: `together` made all ranks raise the same; one says it.
        if comm.rank == 0:
            print(f"train.py: error: {error}", file=sys.stderr, flush=True)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if comm.size == 1:
            raise
        # Ranks: this one alone is in trouble; the others must not wait for it in an allreduce.
        abort(comm, f"{type(error).__name__}: {error}")
    return 0


class Run:
    """One training run; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they go no further than this class.
        comm: the ranks.
    """

    def __init__(self, opts, comm) -> None:
        self.opts = opts
        self.comm = comm
        self.global_batch = opts.batch_size * comm.size
        self.images = 0  # over all ranks
        self.best_miou = -1.0
        self.scores: dict[str, float] = {}
        self.picture: Path | None = None

    def say(self, text: str) -> None:
        """Print on rank 0, above the progress bar."""
        if self.comm.rank == 0:
            from tqdm import tqdm

            tqdm.write(text)
            sys.stdout.flush()

    def go(self) -> None:
        """The whole story."""
        from training.devices import use_devices

        opts = self.opts
        side_um = opts.img_size * opts.resolution
        self.say(
            f"ranks       {self.comm.size} x batch {opts.batch_size} = {self.global_batch} images per step, "
            f"{use_devices(self.comm)}"
        )
        self.say(f"view        {opts.img_size} px at {opts.resolution:g} um/px = {side_um:.0f} um of tissue")
        self.say(f"length      {opts.num_steps} images = {-(-opts.num_steps // self.global_batch)} steps")
        self.open_slides()
        self.build_model()
        self.build_sampler()
        self.resume_or_start()
        self.train()
        self.finish()

    # ------------------------------------------------------------------------------------------------ slides and truth

    def open_slides(self) -> None:
        """Pair, split, open and index the slides, and say what was found."""
        from preprocessing.sets import Source, from_camelyon, from_folders
        from samplers.dataset import check_field_of_view, open_set
        from slides.annotation import DEFAULT_LABEL_MAP, describe
        from slides.label import IGNORE

        opts, comm = self.opts, self.comm
        label_map = opts.label_map or DEFAULT_LABEL_MAP
        values = [c for c in (*label_map.values(), *(opts.mask_values or {}).values()) if c != IGNORE]
        self.classes = max(2, *(value + 1 for value in values))
        centers = (opts.train_centers, opts.val_centers)

        def find():
            if opts.dataset:
                return from_camelyon(
                    opts.dataset, opts.data_root, opts.label_format, centers, opts.val_split, opts.seed
                )
            train = Source(opts.slide_path, opts.label_path, opts.slide_format, opts.label_format)
            val = None
            if opts.valid_slide_path is not None:
                val = Source(
                    opts.valid_slide_path, opts.valid_label_path, opts.valid_slide_format, opts.valid_label_format
                )
            return from_folders(train, val, centers, opts.val_split, opts.seed)

        train_cases, val_cases, notes = together(comm, find)
        truth_options = (label_map, opts.ignore_groups, opts.mask_values, opts.mpp, opts.bb_downsample, self.classes)
        self.train_set, self.val_set = (
            open_set(cases, *truth_options, comm.rank, comm.size, lambda action: comm.gather(together(comm, action)))
            for cases in (train_cases, val_cases)
        )
        together(comm, lambda: check_field_of_view(self.train_set, opts.img_size, opts.resolution))
        self.say(f"classes     {describe(label_map, CLASS_NAMES)}")
        for what, opened in (("training", self.train_set), ("validation", self.val_set)):
            tumour = sum(1 for truth in opened.truths if truth.classes - {0})
            names = [slide.id for slide in opened.slides]
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            self.say(f"{what:<11} {len(names)} slides, {tumour} of them with tumour: {shown}")
            notes += [note for index in opened.indexes for note in index.notes]
        for note in notes:
            self.say(f"note        {note}")

    # ------------------------------------------------------------------------------------------- model and optimizer

    def build_model(self) -> None:
        """Model and optimizer with all their variables; pre-trained weights where asked for."""
        import keras

        import models
        from models.weights import load_weights
        from training.optimizer import Adam
        from training.step import TrainStep
        from training.tally import Tally
        from training.validate import Validator

        opts = self.opts
        keras.utils.set_random_seed(opts.seed)
        self.model = models.build(opts.model, opts.img_size, self.classes)
        self.say(f"model       {opts.model}, {self.model.count_params():,} parameters")
        if opts.weights_path is not None:
            report = together(self.comm, lambda: load_weights(self.model, opts.weights_path))
            self.say(f"weights     {len(report.loaded)} layers from {opts.weights_path}, {len(report.skipped)} skipped")
            for name, reason in report.skipped:
                self.say(f"            {name}: {reason}")
        self.optimizer = Adam(self.model.trainable_variables)
        weights_K = [opts.neg_pixel_weight] + [opts.pos_pixel_weight] * (self.classes - 1)
        self.tally = Tally(self.classes)
        self.step = TrainStep(self.model, self.optimizer, self.comm, weights_K, opts.fp16_allreduce, self.tally)
        self.validator = Validator(self.model, self.classes, weights_K)

    # ------------------------------------------------------------------------------------------------------- sampling

    def build_sampler(self) -> None:
        """The training sampler, the hard-mining pool around it where asked for, and the validation grid."""
        import samplers
        from samplers.grid import requests
        from samplers.mining import HardPool

        opts, indexes = self.opts, self.train_set.indexes
        self.sampler = together(
            self.comm,
            lambda: samplers.build(opts.data_sampler, indexes, opts.seed, self.classes, opts.batch_tumor_ratio),
        )
        self.pool = None
        if opts.hard_mining:
            self.sampler = self.pool = HardPool(
                self.sampler, indexes, opts.seed, opts.hard_fraction, opts.hard_pool,
                interval=max(opts.log_every, self.global_batch), patch_um=opts.img_size * opts.resolution,
            )  # fmt: skip
        self.train_reader = self.train_set.reader(opts.img_size, opts.resolution)
        self.val_reader = self.val_set.reader(opts.img_size, opts.resolution)
        self.grid = requests(self.val_set.indexes, opts.img_size, opts.resolution, opts.val_patches)
        self.say(f"sampling    {opts.data_sampler}; validation on {len(self.grid)} patches of the grid over tissue")

    # --------------------------------------------------------------------------------------------------------- resume

    def resume_or_start(self) -> None:
        """Go on from a checkpoint, or start afresh; all ranks hold rank 0's variables afterwards."""
        from samplers.records import Records, trim_samples
        from training.checkpoint import Checkpoints, named_variables
        from training.log import RunLog, prepare_folder

        opts, comm = self.opts, self.comm
        self.checkpoints = Checkpoints(opts.log_dir / "checkpoints") if opts.log_dir else None
        if self.checkpoints is None:
            self.say("note        no --log_dir: nothing will be kept of this run")

        def restore():
            # Ranks: one reads, so all go on from the same file even where a shared file system lags.
            if comm.rank != 0:
                return None
            found = None
            if opts.resume:
                reader = self.checkpoints or Checkpoints(Path())
                found = reader.resume(opts.resume, self.model, self.optimizer, self.stream())
            if opts.log_dir is not None:
                self.say_all(prepare_folder(opts.log_dir, found is not None, public(opts)))
                trim_samples(opts.log_dir, found[0].images if found else 0)
            return found

        found = comm.gather(together(comm, restore))[0]
        if found is not None:
            state, path, notes = found
            self.say_all(f"resume      {note}" for note in notes)
            self.say(f"resume      {path} at image {state.images}, best val mIoU {state.best_miou:.4f}")
            self.images, self.best_miou = state.images, state.best_miou
            if self.pool is not None and "hard_pool" in state.arrays:
                together(comm, lambda: self.pool.restore(state.arrays["hard_pool"]))
        elif opts.resume:
            self.say(f"resume      no checkpoint in {opts.log_dir}: a fresh start")
        # Ranks: initial weights and optimizer state from rank 0, also where nothing was loaded.
        comm.broadcast(list(named_variables(self.model, self.optimizer).values()))
        self.log = together(comm, lambda: RunLog(opts.log_dir, comm.rank))
        slide_ids = [slide.id for slide in self.train_set.slides]
        self.records = together(comm, lambda: Records(opts.log_dir, comm.rank, slide_ids, opts.resolution, self.pool))

    def say_all(self, lines) -> None:
        """Print lines on rank 0."""
        for line in lines:
            self.say(line)

    def stream(self) -> dict[str, Any]:
        """Options that decide which patch an index is: a resumed run must agree on them."""
        names = ("seed", "data_sampler", "batch_tumor_ratio", "img_size", "resolution", "bb_downsample", "hard_mining")
        return {name: public(self.opts)[name] for name in names}

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> None:
        """Step until the image counter reaches --num_steps; log, validate and save when it passes their multiples."""
        from tqdm import tqdm

        from samplers.patch import draw
        from samplers.pipeline import Feed, rank_indices
        from training.schedule import learning_rate, passed

        opts, comm = self.opts, self.comm
        feed = Feed(
            load=lambda index: draw(self.sampler, self.train_reader, index),
            indices=lambda first=self.images: rank_indices(first, opts.batch_size, comm.rank, comm.size),
            batch_size=opts.batch_size,
            img_size=opts.img_size,
            workers=opts.sample_processes,
        )
        bar = tqdm(total=opts.num_steps, initial=self.images, unit="img", disable=comm.rank != 0, smoothing=0.1)
        self.start_images, self.start_time, self.validation_s = self.images, time.perf_counter(), 0.0
        self.log_start = (self.images, self.start_time)
        batches = iter(feed) if self.images < opts.num_steps else iter(())
        for image_BHWC, label_BHW, meta_BM in batches:
            rate = learning_rate(self.images, opts.base_lr, comm.size, opts.warmup, opts.num_steps, opts.lr_schedule)
            result = self.step(image_BHWC, label_BHW, rate)
            self.check_finite(result, meta_BM)
            before, self.images = self.images, self.images + self.global_batch
            self.records.add(meta_BM, result.patch_loss_B)
            last = self.images >= opts.num_steps
            bar.set_postfix(loss=f"{result.loss:.4f}", refresh=False)
            bar.update(min(self.global_batch, max(0, opts.num_steps - before)))
            if last or passed(before, self.images, opts.log_every):
                self.log_training(rate)
            elif self.pool is not None and passed(before, self.images, self.pool.interval):
                self.records.flush(self.comm.gather, self.images)
            if last or passed(before, self.images, opts.validate_every):
                self.validate()
            if last or passed(before, self.images, opts.checkpoint_every):
                self.save(None)
            if last:
                break
        bar.close()

    def check_finite(self, result, meta_BM) -> None:
        """Stop all ranks when the loss is no number; the weights of this step are never saved.

        Ranks: the loss is that of all ranks, so all of them come here in the same step.
        """
        import numpy as np

        if np.isfinite(result.loss):
            return
        bad = [int(i) for i, loss in zip(meta_BM[:, 0], result.patch_loss_B, strict=True) if not np.isfinite(loss)]
        indices = sorted(i for part in self.comm.gather(bad) for i in part)
        raise ValueError(
            f"the loss became {result.loss} in the step at image {self.images}; patches with a non-finite loss: "
            f"indices {indices or 'none: the weights were already bad'}. Try a smaller --base_lr or a longer --warmup"
        )

    def log_training(self, rate: float) -> None:
        """One line and one row for the patches since the last one, over all ranks."""
        from training.validate import numbers

        self.records.flush(self.comm.gather, self.images)
        confusion_KK, histogram_2N = self.tally.totals(self.comm)
        loss = self.step.mean_loss()
        (images, start), now = self.log_start, time.perf_counter()
        values = numbers(confusion_KK, histogram_2N, loss)
        values |= {"learning_rate": rate, "images_per_s": (self.images - images) / (now - start)}
        self.log.numbers("train", self.images, values)
        self.say(
            f"train {self.images:>8}  loss {loss:.4f}  mIoU {values['miou']:.4f}  AUC {values['auc']:.4f}  "
            f"{values['images_per_s']:.2f} images/s  lr {rate:.2e}"
        )
        self.log_start = (self.images, now)

    # ----------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> None:
        """Score the grid on all ranks; keep the best checkpoint and a picture."""
        from samplers.pipeline import grid_feed

        opts, comm = self.opts, self.comm
        feed = grid_feed(self.val_reader, self.grid, comm.rank, comm.size, opts.batch_size, opts.sample_processes)
        self.scores, pictures, seconds = self.validator.run(feed, comm)
        self.log.numbers("val", self.images, self.scores)
        self.picture = self.log.pictures(self.images, pictures) or self.picture
        s = self.scores
        self.say(
            f"val   {self.images:>8}  loss {s['loss']:.4f}  mIoU {s['miou']:.4f}  AUC {s['auc']:.4f}  "
            f"Dice {s['dice']:.4f}  {len(self.grid)} patches in {seconds:.1f} s"
        )
        if s["miou"] > self.best_miou:
            self.best_miou = s["miou"]
            self.save(BEST)
        self.validation_s += seconds
        images, start = self.log_start
        self.log_start = (images, start + seconds)  # images/s is that of training

    def save(self, name: str | None) -> None:
        """Write a checkpoint: by this name, or the latest one of this image counter."""
        if self.checkpoints is None:
            return
        from training.checkpoint import State

        if self.pool is not None:
            self.records.flush(
                self.comm.gather, self.images
            )  # the pool in the checkpoint must know every patch below its counter
        arrays = {} if self.pool is None else {"hard_pool": self.pool.state()}

        def write() -> None:
            # Ranks: all hold the same variables; one writes.
            if self.comm.rank != 0:
                return
            state = State(self.images, self.best_miou, public(self.opts), arrays)
            if name is None:
                self.checkpoints.save_latest(self.model, self.optimizer, state)
            else:
                self.checkpoints.save(name, self.model, self.optimizer, state)

        together(self.comm, write)

    # ------------------------------------------------------------------------------------------------------- the end

    def finish(self) -> None:
        """Final model, sampling maps, summary."""
        from samplers.maps import write_maps
        from training.checkpoint import export
        from samplers.records import read_samples

        log_dir, s = self.opts.log_dir, self.scores
        seconds = time.perf_counter() - self.start_time - self.validation_s
        rate = (self.images - self.start_images) / seconds if self.images > self.start_images else float("nan")
        if log_dir is not None and self.images > self.start_images:
            self.save(FINAL)

        def write() -> None:
            # Ranks: all have written their samples when `save` returned; one draws and exports.
            if self.comm.rank != 0 or log_dir is None or self.images == self.start_images:
                return
            rows = read_samples(log_dir)
            write_maps(log_dir / "sampling", self.train_set, rows, self.opts.img_size * self.opts.resolution)
            export(self.model, log_dir)

        together(self.comm, write)
        self.log.close()
        if not s:
            self.say(f"done        nothing to do: the checkpoint is at image {self.images} of {self.opts.num_steps}")
            return
        self.say(
            f"\ndone        {self.images} images, {rate:.2f} images/s in training, {self.validation_s:.0f} s of validation"
        )
        self.say(
            f"            val mIoU {s['miou']:.4f}   Dice {s['dice']:.4f}   AUC {s['auc']:.4f}   best mIoU {self.best_miou:.4f}"
        )
        if log_dir is not None:
            self.say(f"checkpoint  {log_dir / 'checkpoints'}: best.npz, final.npz; {log_dir / 'final.keras'}")
            self.say(f"TensorBoard tensorboard --logdir {log_dir}")
            self.say(f"picture     {self.picture} (patch, truth, prediction); sampling maps in {log_dir / 'sampling'}")


def public(opts) -> dict[str, Any]:
    """Options as JSON types."""
    plain = (bool, int, float, str, type(None), list, dict)
    return {
        k: v if isinstance(v, plain) else list(v) if isinstance(v, tuple) else str(v) for k, v in vars(opts).items()
    }


if __name__ == "__main__":
    sys.exit(main())
