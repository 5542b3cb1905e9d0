"""Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.

The story: options, communicator, data, model, resume, then step, log, validate, checkpoint. `train.py --help` starts.

Shapes: B patches per rank, H, W patch pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

from tqdm import tqdm

from inputs import Inputs
from options import SIZE_STEP, as_json, train_options
from training.comm import AgreedError, abort, connect, launched_rank, together


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks."""
    opts = train_options(argv)
    set_environment(opts)
    try:
        comm = connect(opts.horovod)
    except ValueError as error:
        # Ranks: nobody is connected yet, so the launcher's word on who is rank 0 must do.
        if launched_rank() == 0:
            print(f"train.py: error: {error}", file=sys.stderr)
        return 2
    try:
        run = Run(opts, comm)
        run.plan() if opts.plan else run.go()
    except (ValueError, OSError) as error:
        # Ranks: an AgreedError is everybody's, so all leave; any other is this rank's alone (a slide went bad in
        # mid-run), and the others must not wait for it in an allreduce.
        if comm.size > 1 and not isinstance(error, AgreedError):
            abort(comm, f"error: {error}", 2)
        if comm.rank == 0:
            tqdm.write(f"train.py: error: {error}", file=sys.stderr)
        return 2
    except Exception as error:
        if type(error).__name__ in ("ResourceExhaustedError", "MemoryError"):
            abort(comm, f"out of memory: {str(error).splitlines()[0]}. {out_of_memory(opts, comm)}", 2)
        if comm.size == 1:
            raise
        abort(comm, f"{type(error).__name__}: {error}")
    return 0


def set_environment(opts) -> None:
    """What libraries read when they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # real errors come as exceptions
    os.environ.setdefault(
        "VIPS_CONCURRENCY", "1"
    )  # the samplers are the parallelism; vips would add threads of its own
    if opts.recompute == "fine":
        from training.allocator import give_back_memory

        give_back_memory()
    if opts.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


def out_of_memory(opts, comm) -> str:
    """What to do about it."""
    from training.planner import advice, memory

    ways = advice(opts.networks[0], opts.batch_size, comm.local_size, SIZE_STEP, memory().total)
    return f"On this machine fit: {'; '.join(ways)} (train.py --plan)" if ways else "Try a smaller --img_size"


class Run:
    """One training run; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they go no further than this class.
        comm: the ranks.
    """

    def __init__(self, opts, comm) -> None:
        self.opts = opts
        self.comm = comm
        self.global_batch = opts.batch_size * opts.accumulate_batch * comm.size
        self.inputs = Inputs(opts, comm, self.say)
        self.images = 0  # over all ranks
        self.best_miou = -1.0
        self.scores: dict[str, float] = {}
        self.picture: Path | None = None

    def say(self, *lines: str) -> None:
        """Print on rank 0, above the progress bar."""
        if self.comm.rank == 0:
            for line in lines:
                tqdm.write(line)
            sys.stdout.flush()

    def go(self) -> None:
        """The whole story."""
        from training.devices import pinning, use_devices

        opts, joint = self.opts, self.global_batch
        batch = f"{opts.batch_size}" + (f" x {opts.accumulate_batch} passes" if opts.accumulate_batch > 1 else "")
        self.say(
            f"ranks       {self.comm.size} x batch {batch} = {joint} images a step, {use_devices(self.comm)}",
            f"view        {opts.img_size} px at {opts.resolution:g} um/px = {self.inputs.patch_um:.0f} um of tissue",
            f"length      {opts.num_steps} images = {-(-opts.num_steps // joint)} steps",
        )
        self.say(*pinning(self.comm))
        self.check_memory()
        self.inputs.open()
        self.build_model()
        self.inputs.build_sampler(joint)
        self.resume_or_start()
        self.train()
        self.finish()
        self.inputs.close()

    def plan(self) -> None:
        """In place of a run: what a step would need, and what fits."""
        from training.devices import use_devices
        from training.planner import plan

        opts, comm = self.opts, self.comm
        use_devices(comm)
        words = (opts.networks[0], opts.img_size, opts.batch_size, opts.mixed_precision, opts.recompute, SIZE_STEP)
        self.say(*plan(*words, ranks=comm.local_size))

    def check_memory(self) -> None:
        """What a step will need, said before it is taken; what cannot fit is refused."""
        from training.planner import MARGIN, costs, memory

        opts, comm = self.opts, self.comm
        cost = costs(opts.networks[0]).get(opts.recompute)
        if cost is None or opts.mixed_precision != "float32":
            return
        here, need = memory(), cost.step_gib(opts.img_size, opts.batch_size)
        self.say(
            f"memory      about {need:.1f} GiB per rank; {here.what} {here.total:.1f} GiB, {here.free:.1f} free, for "
            f"{comm.local_size} rank{'s' if comm.local_size > 1 else ''}"
        )
        # Ranks: nodes may differ; where one cannot hold it, all leave.
        least = min(comm.gather(here.total / comm.local_size))
        if opts.memory_check and need / (1 + MARGIN) > least:
            raise AgreedError(
                f"a step needs about {need:.1f} GiB per rank, there are {least:.1f}. {out_of_memory(opts, comm)}. "
                "--no-memory_check starts it all the same"
            )

    def build_model(self) -> None:
        """Model and optimizer with all their variables; pre-trained weights where asked for."""
        import keras

        import models
        from models.weights import build_with_weights
        from training.losses import Loss
        from training.optimizer import Adam
        from training.precision import LossScale
        from training.step import TrainStep
        from training.tally import Tally
        from training.validate import Validator

        opts, classes, channels = self.opts, self.inputs.classes, self.inputs.channels
        keras.utils.set_random_seed(opts.seed)
        if opts.weights_path is None:
            self.model = models.build(opts.networks[0], opts.img_size, classes, channels, opts.mixed_precision)
        else:
            wanted = (opts.networks, opts.img_size, classes, opts.weights_path, channels, opts.mixed_precision)
            self.model, report = together(self.comm, lambda: build_with_weights(*wanted))
            self.say(f"weights     {len(report.loaded)} layers from {opts.weights_path}, {len(report.skipped)} skipped")
            self.say(*(f"            {name}: {reason}" for name, reason in report.skipped))
        self.say(f"model       {self.model.name}, {self.model.count_params():,} parameters")
        if opts.freeze_bn or opts.freeze_backbone:
            frozen = models.freeze(self.model, opts.freeze_bn, opts.freeze_backbone)
            self.say(f"frozen      {frozen:,} parameters")
        if opts.sync_bn and self.comm.size > 1:
            self.say(f"batch norm  {models.synchronise(self.model, self.comm.sum)} layers over all ranks")
        self.optimizer = Adam(self.model.trainable_variables)
        weights_K = opts.class_weights or (opts.neg_pixel_weight, *[opts.pos_pixel_weight] * (classes - 1))
        loss = Loss(opts.loss, weights_K, opts.label_smoothing, opts.focal_gamma)
        self.loss_scale = LossScale() if opts.mixed_precision == "float16" else None
        self.tally = Tally(classes)
        self.step = TrainStep(
            self.model, self.optimizer, self.comm, loss, opts.fp16_allreduce, self.tally,
            warm_up=opts.weights_path is None, loss_scale=self.loss_scale,
            training_pass=models.training_pass(self.model, opts.recompute), parts=opts.accumulate_batch,
        )  # fmt: skip
        self.validator = Validator(self.model, classes, loss)

    def resume_or_start(self) -> None:
        """Go on from a checkpoint, or start afresh; all ranks hold rank 0's variables afterwards."""
        from samplers.records import trim_samples
        from training.checkpoint import Checkpoints, named_variables
        from training.log import RunLog, prepare_folder

        opts, comm = self.opts, self.comm
        self.checkpoints = Checkpoints(opts.log_dir / "checkpoints") if opts.log_dir else None

        def restore():
            # Ranks: one reads, so all go on from the same file even where a shared file system lags.
            if comm.rank != 0:
                return None
            found = None
            if opts.resume:
                reader = self.checkpoints or Checkpoints(Path())
                found = reader.resume(opts.resume, self.model, self.optimizer, self.inputs.stream)
            if opts.log_dir is not None:
                own = found is not None and found[1].is_relative_to(opts.log_dir)
                self.say(*prepare_folder(opts.log_dir, own, as_json(opts)))
                trim_samples(opts.log_dir, found[0].images if found else 0)
            return found

        found = comm.gather(together(comm, restore))[0]
        if found is not None:
            state, path, notes = found
            self.say(*(f"resume      {note}" for note in notes))
            self.say(f"resume      {path} at image {state.images}, best val mIoU {state.best_miou:.4f}")
            self.images, self.best_miou = state.images, state.best_miou
            if self.inputs.pool is not None and "hard_pool" in state.arrays:
                together(comm, lambda: self.inputs.pool.restore(state.arrays["hard_pool"]))
            if self.loss_scale is not None and "loss_scale" in state.arrays:
                self.loss_scale.restore(state.arrays["loss_scale"])
        elif opts.resume:
            self.say(f"resume      no checkpoint in {opts.log_dir}: a fresh start")
        elif opts.log_dir is None:
            self.say("note        no --log_dir: nothing will be kept of this run")
        # Ranks: initial weights and optimizer state from rank 0, also where nothing was loaded.
        comm.broadcast(list(named_variables(self.model, self.optimizer).values()))
        self.log = together(comm, lambda: RunLog(opts.log_dir, comm.rank))
        self.inputs.start_records()

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> None:
        """Step until the image counter reaches --num_steps; log, validate and save when it passes their multiples."""
        from training.log import Progress
        from training.schedule import learning_rate, passed
        from training.step import require_finite

        opts, comm = self.opts, self.comm
        feed = self.inputs.train_feed(self.images)
        self.progress = Progress(opts.num_steps, self.images, shown=comm.rank == 0)
        for image_BHWC, label_BHW, meta_BM in feed if self.images < opts.num_steps else ():
            rate = learning_rate(self.images, opts.base_lr, comm.size, opts.warmup, opts.num_steps, opts.lr_schedule)
            result = self.step(image_BHWC, label_BHW, rate)
            require_finite(result, meta_BM[:, 0], self.images, comm)
            self.inputs.records.add(meta_BM, result.patch_loss_B)
            before, self.images = self.images, self.images + self.global_batch
            self.progress.step(self.images, result.loss)
            last = self.images >= opts.num_steps
            if last or passed(before, self.images, opts.log_every):
                self.log_training(rate)
            if last or passed(before, self.images, opts.validate_every):
                self.validate()
            if last or passed(before, self.images, opts.checkpoint_every):
                self.save(f"images-{self.images:09d}.npz")
            if last:
                break
        self.speed = self.progress.close()

    def log_training(self, rate: float) -> None:
        """One line and one row for the patches since the last one, over all ranks."""
        from training.validate import numbers

        self.inputs.records.flush(self.comm.gather, self.images)
        confusion_KK, histogram_2N = self.tally.totals(self.comm)
        loss = self.step.mean_loss()
        values = numbers(confusion_KK, histogram_2N, loss)
        values |= {"learning_rate": rate, "images_per_s": self.progress.lap()}
        self.log.numbers("train", self.images, values)
        left_out = self.loss_scale and self.loss_scale.report()
        self.say(*([left_out] if left_out else []))
        self.say(
            f"train {self.images:>8}  loss {loss:.4f}  mIoU {values['miou']:.4f}  AUC {values['auc']:.4f}  "
            f"{values['images_per_s']:.2f} images/s  lr {rate:.2e}"
        )

    # ----------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> None:
        """Score the grid on all ranks; keep the best checkpoint and a picture."""
        start = time.perf_counter()
        self.scores, pictures = self.validator.run(self.inputs.val_feed(), self.comm)
        self.inputs.check_left_out()
        self.log.numbers("val", self.images, self.scores)
        self.picture = self.log.pictures(self.images, pictures) or self.picture
        s = self.scores
        self.say(
            f"val   {self.images:>8}  loss {s['loss']:.4f}  mIoU {s['miou']:.4f}  AUC {s['auc']:.4f}  "
            f"Dice {s['dice']:.4f}  {len(self.inputs.grid)} patches in {time.perf_counter() - start:.1f} s"
        )
        if s["miou"] > self.best_miou:
            self.best_miou = s["miou"]
            self.save("best.npz")
        self.progress.leave_out(time.perf_counter() - start)

    def save(self, name: str) -> None:
        """Write a checkpoint by this file name."""
        from training.checkpoint import State

        # sample log and pool must know every patch below the image counter of a checkpoint
        self.inputs.records.flush(self.comm.gather, self.images)
        arrays = {"hard_pool": self.inputs.pool.state()} if self.inputs.pool else {}
        arrays |= {"loss_scale": self.loss_scale.state()} if self.loss_scale else {}
        state = State(self.images, self.best_miou, as_json(self.opts) | self.inputs.stream, arrays)
        if self.checkpoints is not None:
            # Ranks: all hold the same variables; one writes.
            files = self.checkpoints if self.comm.rank == 0 else None
            together(self.comm, lambda: files and files.save(name, self.model, self.optimizer, state))

    def finish(self) -> None:
        """Final model, sampling maps, summary."""
        import models
        from samplers.maps import write_maps
        from samplers.records import read_samples
        from training.checkpoint import export

        opts, s = self.opts, self.scores
        if not s:
            self.say(f"done        nothing to do: the checkpoint is at image {self.images} of {opts.num_steps}")
            return
        self.save("final.npz")

        def write() -> None:
            # Ranks: all have written their samples when `save` returned; one draws and exports.
            if self.comm.rank == 0 and opts.log_dir is not None:
                rows = read_samples(opts.log_dir)
                write_maps(opts.log_dir / "sampling", self.inputs.train_set, rows, self.inputs.patch_um)
                export(models.in_float32(self.model), opts.log_dir)

        together(self.comm, write)
        self.log.close()
        rejected = self.inputs.rejected()
        self.say(
            f"\ndone        {self.images} images, {self.speed:.2f} images/s in training; draws not taken: {rejected}",
            f"val         mIoU {s['miou']:.4f} (best {self.best_miou:.4f})  Dice {s['dice']:.4f}  AUC {s['auc']:.4f}",
        )
        if opts.log_dir is not None:
            self.say(
                f"model       {opts.log_dir}/final.keras, final_savedmodel; checkpoints in {opts.log_dir}/checkpoints",
                f"TensorBoard tensorboard --logdir {opts.log_dir}",
                f"pictures    {self.picture} (patch, truth, prediction); where was sampled: {opts.log_dir}/sampling",
            )


if __name__ == "__main__":
    sys.exit(main())
