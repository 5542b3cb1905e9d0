"""Train a segmentation network on large fields of view of whole-slide images, on one or many ranks.

The story: options, ranks, data, model, resume, then step, log, validate, checkpoint. `train.py --help` starts.

Shapes: B patches per rank, H, W patch pixels, C = 3 channels, K classes.
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from options.choices import SIZE_MULTIPLE
from options.fields import as_json, free_options, stream_options
from options.train import TrainOptions, train_options
from parallel import job, preemption
from parallel.comm import together
from segmentation.inputs import Inputs, find_cases
from system.csv_tables import counted
from training import planner

if TYPE_CHECKING:
    from artifacts.checkpoints import Checkpoints, State
    from segmentation.pixel_counts import PixelCounts
    from segmentation.validation import Validator
    from training.log import Progress, RunLog
    from training.optimizer import Optimizer
    from training.precision import LossScale
    from training.step import TrainStep


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks. May be called again, and in a thread."""
    opts = train_options(argv)
    machine, network = opts.machine, opts.network
    step = planner.PlannedStep(
        network.networks[0], opts.sampling.img_size, opts.training.batch_size, network.recompute,
        network.mixed_precision, SIZE_MULTIPLE,
    )  # fmt: skip
    return job.run(
        lambda ranks: plan(opts, step, ranks) if opts.run.plan else Run(opts, step, ranks).go(),
        job.Settings(
            machine.horovod, machine.no_cuda, machine.stall_timeout, opts.run.elastic,
            give_back_memory=network.recompute == "fine",
        ),
        check=lambda: opts.run.plan or find_cases(opts.slides, opts.training.seed),
        out_of_memory=lambda comm: "Give a smaller --stream or --img_size (train.py --plan)" if network.stream
        else planner.out_of_memory_advice(step, *job.memory_of(comm)),
    )  # fmt: skip


def plan(opts: TrainOptions, step: planner.PlannedStep, ranks: job.Ranks) -> int:
    """In place of a run: memory and time of a step, and the sizes that fit this machine."""
    ranks.use_devices()
    if opts.network.stream is None:
        ranks.log(*planner.plan(step, *job.memory_of(ranks.comm)))
    else:
        from segmentation import stepping

        sharers, gpu = job.memory_of(ranks.comm)
        ranks.log(*together(ranks.comm, lambda: stepping.plan(opts, sharers, gpu)))
    return 0


class Run:
    """One training run; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they are passed no further as a whole.
        planned: a step, as the planner knows it.
        ranks: the ranks of the job.
    """

    def __init__(self, opts: TrainOptions, planned: planner.PlannedStep, ranks: job.Ranks) -> None:
        self.opts = opts
        self.planned = planned
        self.ranks = ranks
        self.comm = ranks.comm
        self.heartbeat = ranks.heartbeat
        self.preemption = ranks.preemption
        self.log = ranks.log
        self.joint_batch = opts.training.batch_size * opts.training.accumulate_batch * ranks.comm.size
        self.inputs = Inputs(
            opts.slides, opts.labels, opts.tissue, opts.sampling, opts.training, opts.machine, ranks.comm, ranks.log
        )
        self.images = 0  # over all ranks
        self.base_batch = opts.training.batch_size  # to which --base_lr belongs
        self.best_miou = -1.0
        self.validation_due = False
        self.scores: dict[str, float] = {}
        self.picture: Path | None = None
        self.speed = 0.0  # images/s of training
        self.devices = ""
        self.checkpoints: Checkpoints | None = None
        self.loss_scale: LossScale | None = None
        # Made by `build_model`, `resume_or_start` and `train`.
        self.model: Any
        self.optimizer: Optimizer
        self.counts: PixelCounts
        self.step: TrainStep
        self.validator: Validator
        self.run_log: RunLog
        self.progress: Progress

    def go(self) -> int:
        """The run in a folder of its own; returns the exit code."""
        self.ranks.listen()
        with self.ranks.holding(self.opts.run.log_dir, "--log_dir"):
            return self.story()

    def story(self) -> int:
        """The whole story; returns the exit code."""
        opts = self.opts
        if opts.run.elastic:
            self.comm.on_hosts_changed(self.preemption.hosts_changed)
        self.describe()
        self.heartbeat.start()
        # Ranks: nodes may differ; where the step does not fit one of them, all ranks exit.
        if opts.network.stream is None:
            self.log(*planner.require_memory(self.planned, self.comm, opts.run.memory_check, self.ranks.gpu()))
        # Before TensorFlow is imported, so that errors in the data show at once.
        self.inputs.open(stream_options(opts))
        self.devices = self.ranks.use_devices()
        self.log(f"devices     {self.devices}")
        self.build_model()
        self.inputs.build_sampler(self.joint_batch, opts.run.log_every)
        self.resume_or_start()
        requests = self.ranks.requests_at_start() or self.train()
        if not requests:
            self.finish()
        self.run_log.close()
        self.inputs.close()
        if requests == preemption.HOSTS_CHANGED:
            return job.RECONNECT
        return preemption.EXIT_CODE if requests else 0

    def describe(self) -> None:
        """The arithmetic of the run: images of a step, tissue seen, number of steps, CPUs of the ranks."""
        sampling, training = self.opts.sampling, self.opts.training
        size, um_px, batch = sampling.img_size, sampling.resolution, f"{training.batch_size}"
        if training.accumulate_batch > 1:
            batch += f" x {training.accumulate_batch} passes"
        steps = -(-training.num_steps // self.joint_batch)
        self.log(
            f"ranks       {self.comm.size} x batch {batch} = {counted(self.joint_batch, 'image')} a step",
            f"view        {size} px at {um_px:g} um/px = {sampling.patch_um:.0f} um of tissue",
            f"length      {counted(training.num_steps, 'image')} = {counted(steps, 'step')}",
            *job.pinning(self.comm),
        )

    def build_model(self) -> None:
        """Model, optimizer and step with all their variables; pre-trained weights if given."""
        import keras

        import models
        from models.layers import normalized_by
        from models.weights import build_with_weights
        from segmentation import stepping
        from segmentation.pixel_counts import PixelCounts
        from training import optimizer
        from training.precision import LossScale

        opts, network, training, rates = self.opts, self.opts.network, self.opts.training, self.opts.optimization
        classes, channels, img_size = self.inputs.classes, opts.sampling.channels, opts.sampling.img_size
        # Ranks: Horovod matches tensors by name, and Keras counts its layers: all ranks count from 1.
        keras.backend.clear_session()
        keras.utils.set_random_seed(training.seed)
        weights, precision = network.weights_path, network.mixed_precision
        with normalized_by(network.norm):
            if weights is None:
                self.model = models.build(network.networks[0], img_size, classes, channels, precision)
            else:
                names = network.networks
                self.model, report = together(
                    self.comm, lambda: build_with_weights(names, img_size, classes, weights, channels, precision)
                )
        if weights is not None:
            self.log(
                f"weights     {counted(len(report.loaded), 'layer')} from {weights}, {len(report.skipped)} skipped"
            )
            self.log(*(f"            {name}: {reason}" for name, reason in report.skipped))
        self.log(f"model       {self.model.name}, {self.model.count_params():,} parameters")
        if network.freeze_bn or network.freeze_backbone:
            frozen = models.freeze(self.model, network.freeze_bn, network.freeze_backbone)
            self.log(f"frozen      {frozen:,} parameters")
        if network.sync_bn and self.comm.size > 1:
            self.log(f"batch norm  {counted(models.synchronize(self.model, self.comm.sum), 'layer')} over all ranks")
        variables = self.model.trainable_variables
        self.optimizer = optimizer.build(rates.optimizer, variables, rates.momentum, rates.weight_decay)
        self.loss_scale = LossScale() if network.mixed_precision == "float16" else None
        self.counts = PixelCounts(classes)
        self.step, self.validator = stepping.build(
            opts, self.model, self.optimizer, self.comm, self.loss_scale, self.counts, self.log, self.ranks.gpu()
        )

    def resume_or_start(self) -> None:
        """Resume from a checkpoint, or start; all ranks hold rank 0's variables afterwards."""
        from artifacts.checkpoints import Checkpoints, named_variables
        from segmentation.resume import base_batch, resumed_state
        from training import environment
        from training.log import RunLog

        run, comm = self.opts.run, self.comm
        self.checkpoints = Checkpoints(run.log_dir / "checkpoints") if run.log_dir else None
        options, free, stream = as_json(self.opts), free_options(self.opts), self.inputs.stream
        state = resumed_state(run, options, free, comm, self.model, self.optimizer, stream, self.log)
        if state is not None:
            self.restore(state)
            self.base_batch = base_batch(state, options)
        # Ranks: initial weights and optimizer state from rank 0, also where nothing was loaded.
        comm.broadcast(list(named_variables(self.model, self.optimizer).values()))
        self.run_log = together(comm, lambda: RunLog(run.log_dir, comm.rank, state.seconds if state else 0.0))
        self.run_log.started(environment.describe(comm.size, self.devices, self.images))
        self.inputs.start_records(run.log_dir)

    def restore(self, state: State) -> None:
        """Take from a checkpoint what it holds besides variables."""
        self.images, self.best_miou, self.validation_due = state.images, state.best_score, state.validation_due
        arrays, pool = state.arrays, self.inputs.pool
        if pool is not None and "hard_pool" in arrays:
            together(self.comm, lambda: pool.restore(arrays["hard_pool"]))
        if self.loss_scale is not None and "loss_scale" in arrays:
            self.loss_scale.restore(arrays["loss_scale"])
        self.step.restore(arrays["losses"])
        if self.comm.rank == 0:
            # Checkpoints before 0.1.0 call it tally.
            self.counts.restore(arrays["pixel_counts" if "pixel_counts" in arrays else "tally"])

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> str:
        """Step until the image counter reaches --num_steps; log, validate and save when it passes their multiples.

        Returns:
            The requests, of all ranks, that stopped the run before its end; a checkpoint is written then.
        """
        from training import schedule
        from training.log import Progress
        from training.step import require_finite

        training, run, comm = self.opts.training, self.opts.run, self.comm
        rates = schedule.of_options(as_json(self.opts), self.joint_batch, self.base_batch)
        self.progress = Progress(training.num_steps, self.images, shown=comm.rank == 0)
        stop = self.validation_due and not self.validate()
        self.run_log.write()
        feed = self.inputs.train_feed(self.images) if self.images < training.num_steps and not stop else ()
        for image_BHWC, label_BHW, meta_BM in self.heartbeat.watched(self.progress.timed(feed)):
            rate = rates.rate(self.images)
            result = self.step(image_BHWC, label_BHW, rate, stop=bool(self.preemption.requested))
            require_finite(result, meta_BM[:, 0], self.images, comm)
            self.inputs.records.add(meta_BM, result.sample_loss_B)
            before, self.images = self.images, self.images + self.joint_batch
            self.progress.step(self.images, result.loss)
            last, stop = self.images >= training.num_steps, result.stop
            if last or schedule.passed(before, self.images, run.log_every):
                self.log_training(rate)
            self.validation_due = last or schedule.passed(before, self.images, run.validate_every)
            if self.validation_due and not stop:
                stop = not self.validate()
            if last or stop or schedule.passed(before, self.images, run.checkpoint_every):
                self.save(f"images-{self.images:09d}.npz")
            # After the checkpoint: a full disk must not cost what was trained.
            self.run_log.write()
            if last or stop:
                break
        self.speed = self.progress.close()
        if not stop or (self.images >= training.num_steps and not self.validation_due):
            return ""
        requests = self.ranks.requests()
        self.log(f"preempted   {requests} at image {self.images} of {training.num_steps}; --resume auto continues")
        return requests

    def log_training(self, rate: float) -> None:
        """One line and one row for the patches since the last one, over all ranks."""
        from segmentation.validation import numbers
        from training.log import speed

        self.inputs.records.flush(self.comm.gather, self.images)
        confusion_KK, histogram_2N = self.counts.totals(self.comm)
        loss = self.step.mean_loss()
        values = numbers(confusion_KK, histogram_2N, loss)
        values |= {"learning_rate": rate, "images_per_s": self.progress.lap(), "input_wait": self.progress.wait_share}
        self.run_log.numbers("train", self.images, values)
        skipped = self.loss_scale.report() if self.loss_scale else None
        self.log(*([skipped] if skipped else []))
        self.log(
            f"train {self.images:>8}  loss {loss:.4f}  mIoU {values['miou']:.4f}  AUC {values['auc']:.4f}  "
            f"{speed(values['images_per_s'])}  lr {rate:.2e}"
        )

    # ----------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> bool:
        """Score the grid on all ranks; keep the best checkpoint and a picture. False: stopped before its end."""
        start = time.perf_counter()
        self.heartbeat.doing = "validating"
        found = self.validator.run(self.inputs.val_feed(), self.comm, lambda: bool(self.preemption.requested))
        if found is None:
            return False
        self.scores, pictures = found
        self.validation_due = False
        self.inputs.check_left_out()
        self.run_log.numbers("val", self.images, self.scores)
        self.picture = self.run_log.pictures(self.images, pictures) or self.picture
        s = self.scores
        self.log(
            f"val   {self.images:>8}  loss {s['loss']:.4f}  mIoU {s['miou']:.4f}  AUC {s['auc']:.4f}  "
            f"Dice {s['dice']:.4f}  {counted(len(self.inputs.grid), 'patch')} in {time.perf_counter() - start:.1f} s"
        )
        if s["miou"] > self.best_miou:
            self.best_miou = s["miou"]
            self.save("best.npz")
        self.progress.exclude(time.perf_counter() - start)
        return True

    def save(self, name: str) -> None:
        """Write a checkpoint of this file name."""
        from artifacts.checkpoints import State

        self.heartbeat.doing = "writing a checkpoint"
        # sample log and pool must know every patch below the image counter of a checkpoint
        self.inputs.records.flush(self.comm.gather, self.images)
        arrays: dict[str, Any] = {"losses": self.step.state(), "pixel_counts": self.counts.state(self.comm)}
        arrays |= {"hard_pool": self.inputs.pool.state()} if self.inputs.pool else {}
        arrays |= {"loss_scale": self.loss_scale.state()} if self.loss_scale else {}
        options = as_json(self.opts) | self.inputs.stream | {"model_stain": self.inputs.stain.model_json()}
        state = State(
            self.images, self.best_miou, options, arrays, self.comm.size, self.run_log.seconds(), self.validation_due,
            self.base_batch,
        )  # fmt: skip
        if self.checkpoints is not None:
            # Ranks: all hold the same variables; one writes.
            files = self.checkpoints if self.comm.rank == 0 else None
            together(self.comm, lambda: files and files.save(name, self.model, self.optimizer, state))

    def finish(self) -> None:
        """Final model, sampling maps, summary."""
        import models
        from artifacts import metadata
        from artifacts.checkpoints import export, exported
        from samplers.maps import write_maps
        from samplers.records import read_samples
        from training.log import speed

        sampling = self.opts.sampling
        log_dir, num_steps, s = self.opts.run.log_dir, self.opts.training.num_steps, self.scores
        # Ranks: one looks, since file systems may lag. A run that was killed while it exported is finished.
        if not s and self.comm.gather(log_dir is None or exported(log_dir, self.images))[0]:
            self.log(f"done        nothing to do: the checkpoint is at image {self.images} of {num_steps}")
            return
        self.save("final.npz")

        def write() -> None:
            # Ranks: all have written their samples when `save` returned; one draws and exports.
            if self.comm.rank == 0 and log_dir is not None:
                rows = read_samples(log_dir)
                write_maps(log_dir / "sampling", self.inputs.train_set, rows, sampling.img_size, sampling.resolution)
                options = as_json(self.opts) | {"model_stain": self.inputs.stain.model_json()}
                info = metadata.of_run(options, self.model.name, self.images)
                export(models.in_float32(self.model), log_dir, info.as_json())

        together(self.comm, write)
        self.run_log.report()  # again, with the sampling maps
        rejected, best = self.inputs.rejected(), f"best {self.best_miou:.4f}"
        self.log(
            f"\ndone        {self.images} images, {speed(self.speed)} in training; draws not taken: {rejected}",
            f"val         mIoU {s['miou']:.4f} ({best})  Dice {s['dice']:.4f}  AUC {s['auc']:.4f}" if s else
            f"val         {best} mIoU; only the final model was missing, and is written now",
        )  # fmt: skip
        if log_dir is not None:
            self.log(
                f"model       {log_dir}/final.keras, final_savedmodel; checkpoints in {log_dir}/checkpoints",
                f"TensorBoard tensorboard --logdir {log_dir}",
                f"report      {log_dir}/report.html",
                f"pictures    {self.picture or log_dir / 'pictures'} (patch, truth, prediction); sampled places: "
                f"{log_dir}/sampling",
            )


if __name__ == "__main__":
    sys.exit(main())
