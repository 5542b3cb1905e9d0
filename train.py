"""Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.

The story: options, communicator, data, model, resume, then step, log, validate, checkpoint. `train.py --help` starts.

Shapes: B patches per rank, H, W patch pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from pathlib import Path

from options.choices import SIZE_MULTIPLE
from options.fields import as_json, free_options, stream_options
from options.train import TrainOptions, train_options
from parallel import preemption
from parallel.comm import together
from parallel.heartbeat import Pulse
from parallel.job import COME_TOGETHER, connected, guarded, speaker
from segmentation.inputs import Inputs
from training.planner import out_of_memory_advice


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks."""
    opts = train_options(argv)
    set_environment(opts)
    comm = connected(opts.machine.horovod)
    if comm is None:
        return 2
    from parallel.devices import use_devices

    devices = use_devices(comm)  # once: TensorFlow's threads cannot be changed later
    while True:
        # Ranks: an elastic job notices by itself who is missing, and goes on without.
        with Pulse(comm, 0 if opts.run.elastic else opts.machine.stall_timeout) as pulse:
            run = Run(opts, comm, pulse, devices)
            advice = partial(
                out_of_memory_advice, opts.network.networks[0], opts.training.batch_size, comm.local_size, SIZE_MULTIPLE
            )
            code = guarded(run.plan if opts.run.plan else run.go, comm, advice, opts.run.elastic)
        if code != COME_TOGETHER:
            return code
        comm = comm.reconnect()


def set_environment(opts: TrainOptions) -> None:
    """What libraries read when they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # real errors come as exceptions
    # The samplers are the parallelism; vips would add threads of its own.
    os.environ.setdefault("VIPS_CONCURRENCY", "1")
    if opts.network.recompute == "fine":
        from system.allocator import give_back_memory

        give_back_memory()
    if opts.machine.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"


class Run:
    """One training run; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they go no further than this class.
        comm: the ranks.
        pulse: their signs of life.
        devices: what this rank computes on, in words.
    """

    def __init__(self, opts: TrainOptions, comm, pulse, devices) -> None:
        self.opts = opts
        self.comm = comm
        self.pulse = pulse
        self.devices = devices
        self.joint_batch = opts.training.batch_size * opts.training.accumulate_batch * comm.size
        self.leaving = preemption.Leaving()
        self.say = speaker(comm)
        self.inputs = Inputs(
            opts.slides, opts.labels, opts.tissue, opts.sampling, opts.training, opts.machine, comm, self.say
        )
        self.images = 0  # over all ranks
        self.best_miou = -1.0
        self.validation_due = False
        self.scores: dict[str, float] = {}
        self.picture: Path | None = None

    def go(self) -> int:
        """The whole story; returns the exit code."""
        from parallel.devices import pinning
        from training.planner import require_memory

        opts, joint = self.opts, self.joint_batch
        sampling, training, batch = opts.sampling, opts.training, f"{opts.training.batch_size}"
        self.leaving.listen(self.say)
        if opts.run.elastic:
            self.comm.on_hosts_changed(self.leaving.hosts_changed)
        if training.accumulate_batch > 1:
            batch += f" x {training.accumulate_batch} passes"
        size, um_px = sampling.img_size, sampling.resolution
        self.say(
            f"ranks       {self.comm.size} x batch {batch} = {joint} images a step, {self.devices}",
            f"view        {size} px at {um_px:g} um/px = {sampling.patch_um:.0f} um of tissue",
            f"length      {training.num_steps} images = {-(-training.num_steps // joint)} steps",
        )
        self.say(*pinning(self.comm))
        self.pulse.start()
        if opts.network.mixed_precision == "float32":
            # Ranks: nodes may differ; where one cannot hold it, all leave.
            notes = require_memory(
                opts.network.networks[0], sampling.img_size, training.batch_size, opts.network.recompute,
                SIZE_MULTIPLE, self.comm, opts.run.memory_check,
            )  # fmt: skip
            self.say(*notes)
        self.inputs.open(stream_options(opts))
        self.build_model()
        self.inputs.build_sampler(joint, opts.run.log_every)
        self.resume_or_start()
        asked = self.train()
        if not asked:
            self.finish()
        self.inputs.close()
        if asked == {preemption.HOSTS_CHANGED}:
            return COME_TOGETHER
        return preemption.EXIT_CODE if asked else 0

    def plan(self) -> int:
        """In place of a run: what a step would need, and what fits."""
        from training.planner import plan

        opts, network = self.opts, self.opts.network
        lines = plan(
            network.networks[0], opts.sampling.img_size, opts.training.batch_size, network.mixed_precision,
            network.recompute, SIZE_MULTIPLE, ranks=self.comm.local_size,
        )  # fmt: skip
        self.say(*lines)
        return 0

    def build_model(self) -> None:
        """Model and optimizer with all their variables; pre-trained weights where asked for."""
        import keras

        import models
        from models.weights import build_with_weights
        from segmentation.losses import Loss
        from segmentation.pixel_counts import PixelCounts
        from segmentation.validation import Validator
        from training import optimizer
        from training.precision import LossScale
        from training.step import TrainStep

        opts, network, training = self.opts, self.opts.network, self.opts.training
        classes, channels, img_size = self.inputs.classes, opts.sampling.channels, opts.sampling.img_size
        # Ranks: Horovod matches tensors by name, and Keras counts its layers: one that came later counts from 1.
        keras.backend.clear_session()
        keras.utils.set_random_seed(training.seed)
        if network.weights_path is None:
            self.model = models.build(network.networks[0], img_size, classes, channels, network.mixed_precision)
        else:
            weights = network.weights_path

            def built() -> tuple:
                return build_with_weights(
                    network.networks, img_size, classes, weights, channels, network.mixed_precision
                )

            self.model, report = together(self.comm, built)
            self.say(
                f"weights     {len(report.loaded)} layers from {network.weights_path}, {len(report.skipped)} skipped"
            )
            self.say(*(f"            {name}: {reason}" for name, reason in report.skipped))
        self.say(f"model       {self.model.name}, {self.model.count_params():,} parameters")
        if network.freeze_bn or network.freeze_backbone:
            frozen = models.freeze(self.model, network.freeze_bn, network.freeze_backbone)
            self.say(f"frozen      {frozen:,} parameters")
        if network.sync_bn and self.comm.size > 1:
            self.say(f"batch norm  {models.synchronise(self.model, self.comm.sum)} layers over all ranks")
        self.optimizer = optimizer.build(
            opts.optimization.optimizer,
            self.model.trainable_variables,
            opts.optimization.momentum,
            opts.optimization.weight_decay,
        )
        loss = Loss(training.loss, training.weights_of(classes), training.label_smoothing, training.focal_gamma)
        self.loss_scale = LossScale() if network.mixed_precision == "float16" else None
        self.counts = PixelCounts(classes)
        self.step = TrainStep(
            self.model, self.optimizer, self.comm, loss, training.fp16_allreduce, self.counts,
            warm_up=network.weights_path is None, loss_scale=self.loss_scale,
            training_pass=models.training_pass(self.model, network.recompute), parts=training.accumulate_batch,
        )  # fmt: skip
        self.validator = Validator(self.model, classes, loss)

    def resume_or_start(self) -> None:
        """Go on from a checkpoint, or start afresh; all ranks hold rank 0's variables afterwards."""
        from artifacts.checkpoints import Checkpoints, named_variables
        from segmentation.resume import checkpoint_to_go_on_from
        from training.log import RunLog

        run, comm = self.opts.run, self.comm
        self.checkpoints = Checkpoints(run.log_dir / "checkpoints") if run.log_dir else None
        network = (self.model, self.optimizer)
        state = checkpoint_to_go_on_from(
            run, as_json(self.opts), free_options(self.opts), comm, network, self.inputs.stream, self.say
        )
        if state is not None:
            self.restore(state)
        # Ranks: initial weights and optimizer state from rank 0, also where nothing was loaded.
        comm.broadcast(list(named_variables(*network).values()))
        self.log = together(comm, lambda: RunLog(run.log_dir, comm.rank, state.seconds if state else 0.0))
        self.inputs.start_records(run.log_dir)

    def restore(self, state) -> None:
        """Take over what a checkpoint holds besides variables."""
        self.images, self.best_miou, self.validation_due = state.images, state.best_miou, state.validation_due
        arrays = state.arrays
        if self.inputs.pool is not None and "hard_pool" in arrays:
            together(self.comm, lambda: self.inputs.pool.restore(arrays["hard_pool"]))
        if self.loss_scale is not None and "loss_scale" in arrays:
            self.loss_scale.restore(arrays["loss_scale"])
        self.step.restore(arrays["losses"])
        if self.comm.rank == 0:
            # Checkpoints before 0.1.0 call it tally.
            self.counts.restore(arrays["pixel_counts" if "pixel_counts" in arrays else "tally"])

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> set[str]:
        """Step until the image counter reaches --num_steps; log, validate and save when it passes their multiples.

        Returns:
            By what the run was asked to leave before its end, if it was; a checkpoint is written then.
        """
        from training.log import Progress
        from training.schedule import Schedule, passed, scaling
        from training.step import require_finite

        training, rates, run, comm = self.opts.training, self.opts.optimization, self.opts.run, self.comm
        target = rates.base_lr * scaling(rates.lr_scaling, comm.size * training.accumulate_batch)
        schedule = Schedule(rates.lr_schedule, target, rates.warmup, training.num_steps, rates.lr_cycle)
        self.progress = Progress(training.num_steps, self.images, shown=comm.rank == 0)
        leave = self.validation_due and not self.validate()
        going_on = self.images < training.num_steps and not leave
        for image_BHWC, label_BHW, meta_BM in self.pulse.watched(
            self.inputs.train_feed(self.images) if going_on else ()
        ):
            rate = schedule.rate(self.images)
            result = self.step(image_BHWC, label_BHW, rate, stop=bool(self.leaving.asked))
            require_finite(result, meta_BM[:, 0], self.images, comm)
            self.inputs.records.add(meta_BM, result.sample_loss_B)
            before, self.images = self.images, self.images + self.joint_batch
            self.progress.step(self.images, result.loss)
            last, leave = self.images >= training.num_steps, result.stop
            if last or passed(before, self.images, run.log_every):
                self.log_training(rate)
            self.validation_due = last or passed(before, self.images, run.validate_every)
            if self.validation_due and not leave:
                leave = not self.validate()
            if last or leave or passed(before, self.images, run.checkpoint_every):
                self.save(f"images-{self.images:09d}.npz")
            if last or leave:
                break
        self.speed = self.progress.close()
        if not leave or (self.images >= training.num_steps and not self.validation_due):
            return set()
        asked = set(comm.gather(self.leaving.asked)) - {""}
        at = f"at image {self.images} of {training.num_steps}"
        self.say(f"left        {', '.join(sorted(asked))} {at}; --resume auto goes on")
        return asked

    def log_training(self, rate: float) -> None:
        """One line and one row for the patches since the last one, over all ranks."""
        from segmentation.validation import numbers

        self.inputs.records.flush(self.comm.gather, self.images)
        confusion_KK, histogram_2N = self.counts.totals(self.comm)
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

    def validate(self) -> bool:
        """Score the grid on all ranks; keep the best checkpoint and a picture. False: asked to leave in the middle."""
        start = time.perf_counter()
        self.pulse.doing = "validating"
        found = self.validator.run(self.inputs.val_feed(), self.comm, lambda: bool(self.leaving.asked))
        if found is None:
            return False
        self.scores, pictures = found
        self.validation_due = False
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
        self.progress.exclude(time.perf_counter() - start)
        return True

    def save(self, name: str) -> None:
        """Write a checkpoint by this file name."""
        from artifacts.checkpoints import State

        self.pulse.doing = "writing a checkpoint"
        # sample log and pool must know every patch below the image counter of a checkpoint
        self.inputs.records.flush(self.comm.gather, self.images)
        arrays = {"losses": self.step.state(), "pixel_counts": self.counts.state(self.comm)}
        arrays |= {"hard_pool": self.inputs.pool.state()} if self.inputs.pool else {}
        arrays |= {"loss_scale": self.loss_scale.state()} if self.loss_scale else {}
        options = as_json(self.opts) | self.inputs.stream
        run = (self.comm.size, self.log.seconds(), self.validation_due)
        state = State(self.images, self.best_miou, options, arrays, *run)
        if self.checkpoints is not None:
            # Ranks: all hold the same variables; one writes.
            files = self.checkpoints if self.comm.rank == 0 else None
            together(self.comm, lambda: files and files.save(name, self.model, self.optimizer, state))

    def finish(self) -> None:
        """Final model, sampling maps, summary."""
        import models
        from artifacts import metadata
        from artifacts.checkpoints import export
        from samplers.maps import write_maps
        from samplers.records import read_samples

        log_dir, num_steps, s = self.opts.run.log_dir, self.opts.training.num_steps, self.scores
        if not s:
            self.say(f"done        nothing to do: the checkpoint is at image {self.images} of {num_steps}")
            return
        self.save("final.npz")

        def write() -> None:
            # Ranks: all have written their samples when `save` returned; one draws and exports.
            if self.comm.rank == 0 and log_dir is not None:
                rows = read_samples(log_dir)
                write_maps(log_dir / "sampling", self.inputs.train_set, rows, self.opts.sampling.patch_um)
                facts = metadata.of_run(as_json(self.opts), self.model.name, self.images)
                export(models.in_float32(self.model), log_dir, facts.as_json())

        together(self.comm, write)
        self.log.close()
        rejected = self.inputs.rejected()
        self.say(
            f"\ndone        {self.images} images, {self.speed:.2f} images/s in training; draws not taken: {rejected}",
            f"val         mIoU {s['miou']:.4f} (best {self.best_miou:.4f})  Dice {s['dice']:.4f}  AUC {s['auc']:.4f}",
        )
        if log_dir is not None:
            self.say(
                f"model       {log_dir}/final.keras, final_savedmodel; checkpoints in {log_dir}/checkpoints",
                f"TensorBoard tensorboard --logdir {log_dir}",
                f"pictures    {self.picture} (patch, truth, prediction); where was sampled: {log_dir}/sampling",
            )


if __name__ == "__main__":
    sys.exit(main())
