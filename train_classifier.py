"""Train a network on whole slides, each one image with one label, on one or many ranks.

The story: options, ranks, labels and images, network, resume, then step, log, validate, checkpoint; or one of the
shorter ones: features, evaluation. `train_classifier.py --help` starts.

Shapes: B images of this rank in a step, N slides, K outputs.
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classification.inputs import Inputs
from options.fields import as_json, free_options, stream_options
from options.train_classifier import ClassifierOptions, classifier_options
from parallel import job, preemption
from parallel.comm import together
from system.csv_tables import counted

if TYPE_CHECKING:
    from artifacts.checkpoints import Checkpoints, State
    from classification.network import Classifier
    from classification.resume import Trained
    from classification.scores import Scores
    from classification.seen import Seen
    from classification.step import StreamedStep
    from classification.stream import Stream
    from training.averaging import Average
    from training.log import Progress, RunLog
    from training.optimizer import Optimizer
    from training.precision import LossScale


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code, the same on all ranks. May be called again, and in a thread."""
    opts = classifier_options(argv)
    machine = opts.machine
    return job.run(
        lambda ranks: Run(opts, ranks).go(),
        job.Settings(machine.horovod, machine.no_cuda, machine.stall_timeout),
        out_of_memory=lambda _: "Try a smaller --tile_size; --plan says what fits",
    )


class Run:
    """One run; the methods stand in the order in which they are used.

    Args:
        opts: validated options; they are passed no further as a whole.
        ranks: the ranks of the job.
    """

    def __init__(self, opts: ClassifierOptions, ranks: job.Ranks) -> None:
        self.opts = opts
        self.ranks = ranks
        self.comm = ranks.comm
        self.heartbeat = ranks.heartbeat
        self.preemption = ranks.preemption
        self.log = ranks.log
        self.joint_batch = opts.training.joint_batch
        share, features = opts.machine.share_slide, opts.phases.train_with_features
        self.inputs = Inputs(opts.labels, opts.images, opts.training.seed, ranks.comm, share, features, ranks.log)
        self.images = 0  # over all ranks
        self.total = 0  # length of the training, images
        self.epoch_images = 0
        self.best_score = float("-inf")
        self.validation_due = False
        self.scores: Scores | None = None  # of the last validation
        self.logits_NK: Any = None  # of the slides validated, in the order of their table
        self.speed = 0.0  # images/s of training
        self.devices = ""
        self.checkpoints: Checkpoints | None = None
        self.loss_scale: LossScale | None = None
        self.average: Average | None = None
        # Made by `build`, `resume_or_start` and `train`.
        self.classifier: Classifier
        self.stream: Stream
        self.optimizer: Optimizer
        self.step: StreamedStep
        self.seen: Seen
        self.run_log: RunLog
        self.progress: Progress

    def go(self) -> int:
        """The run in a folder of its own; returns the exit code."""
        self.ranks.listen()
        with self.ranks.holding(self.opts.run.log_dir, "--log_dir"):
            return self.story()

    def story(self) -> int:
        """The whole story; returns the exit code."""
        from classification.planning import memory

        self.heartbeat.start()
        # Before TensorFlow is imported, so that errors in the data show at once.
        phases = self.opts.phases
        self.inputs.open(stream_options(self.opts), self.opts.run.validation, only_val=phases.only_eval)
        self.describe()
        self.devices = self.ranks.use_devices()
        self.log(f"devices     {self.devices}")
        trained = self.read_trained()
        self.build(trained)
        if (hw := self.inputs.size_hw) and not phases.train_with_features:
            self.log(*memory(self.stream, hw, self.comm, self.opts.run.memory_check, self.ranks.gpu()))
        if self.opts.run.plan:
            return 0
        if phases.only_eval or phases.extract_features:
            return self.evaluate() if phases.only_eval else self.extract()
        random = trained is None and self.opts.network.weights_path is None and self.inputs.features is None
        self.resume_or_start(untrained=random)
        requests = self.ranks.requests_at_start() or self.train()
        if not requests:
            self.finish()
        self.run_log.close()
        return preemption.EXIT_CODE if requests else 0

    def describe(self) -> None:
        """The arithmetic of the run: images of an update, number of steps, what the network sees."""
        from classification.planning import arithmetic

        training = self.opts.training
        self.epoch_images = self.inputs.draws.epoch_images if self.inputs.train else 0
        self.total = training.num_steps or (training.epochs or 0) * self.epoch_images
        self.log(*arithmetic(self.opts, self.epoch_images, self.total, self.comm.size), *job.pinning(self.comm))

    def read_trained(self) -> Trained | None:
        """The network to start from or to evaluate, if any, and its outputs."""
        from classification.resume import read_trained

        source = self.opts.phases.transfer_from(self.opts.run.resume, self.opts.run.log_dir)
        if source is None:
            return None
        trained = read_trained(source, self.comm)
        if self.opts.phases.only_eval:
            together(self.comm, lambda: self.inputs.as_trained(trained.outputs, trained.path))
        return trained

    def build(self, trained: Trained | None) -> None:
        """Network, optimizer and step with all their variables; trained or pre-trained weights if given."""
        from classification.building import build_network
        from classification.losses import Loss
        from classification.seen import Seen
        from classification.step import StreamedStep
        from classification.stream import Stream
        from training import optimizer
        from training.averaging import Average
        from training.precision import LossScale

        given, training, outputs = self.opts.network, self.opts.training, self.inputs.targets.outputs
        self.classifier = build_network(given, training.seed, self.inputs, trained, self.comm, self.log)
        self.classifier.train(self.opts.trains_early, norm=not given.freeze_bn)
        # Ranks: those that share slides compute the tiles of one together.
        sharing, features = self.comm if self.inputs.share else None, self.inputs.features is not None
        self.stream = together(
            self.comm, lambda: Stream(self.classifier, given.tile_size, features=features, sharing=sharing)
        )
        together(self.comm, lambda: self.inputs.check_fit(self.classifier, self.stream))
        variables = self.stream.variables
        self.optimizer = optimizer.build(training.optimizer, variables, training.momentum, training.weight_decay)
        self.average = Average(variables, training.weight_averaging) if training.weight_averaging else None
        self.loss_scale = LossScale() if given.mixed_precision == "float16" else None
        loss = together(
            self.comm,
            lambda: Loss(self.inputs.targets.kind, training.weights_of(outputs), training.label_smoothing),
        )
        self.step = StreamedStep(
            self.stream, self.optimizer, self.comm, loss, training.fp16_allreduce, loss_scale=self.loss_scale
        )
        self.seen = Seen(outputs)

    def resume_or_start(self, untrained: bool) -> None:
        """Resume from a checkpoint, or start, `untrained` from random weights; all ranks hold rank 0's variables."""
        from artifacts.checkpoints import Checkpoints, named_variables
        from classification import report
        from classification.calibration import first_statistics
        from classification.resume import resumed_state
        from training import environment
        from training.log import RunLog

        run, comm, model = self.opts.run, self.comm, self.classifier.model
        self.checkpoints = Checkpoints(run.log_dir / "checkpoints") if run.log_dir else None
        options, free = as_json(self.opts), free_options(self.opts)
        stream, epoch = self.inputs.stream, self.epoch_images
        state = resumed_state(run, options, free, comm, model, self.optimizer, stream, self.log, epoch_images=epoch)
        if state is None and untrained:
            self.log(first_statistics(model, self.inputs.first_views, comm))
        # Ranks: initial weights and optimizer state from rank 0, also where nothing was loaded.
        comm.broadcast(list(named_variables(model, self.optimizer).values()))
        if self.average is not None:
            self.average.start()
        if state is not None:
            self.restore(state)
        seconds = state.seconds if state else 0.0
        self.run_log = together(comm, lambda: RunLog(run.log_dir, comm.rank, seconds, report.attempt))
        self.run_log.started(environment.describe(comm.size, self.devices, self.images))

    def restore(self, state: State) -> None:
        """Take from a checkpoint what it holds besides variables."""
        self.images, self.best_score, self.validation_due = state.images, state.best_score, state.validation_due
        arrays = state.arrays
        if self.loss_scale is not None and "loss_scale" in arrays:
            self.loss_scale.restore(arrays["loss_scale"])
        if self.average is not None and not self.average.restore(arrays):
            self.log("resume      the checkpoint has no average of weights: it starts from the weights")
        self.step.restore(arrays["losses"])
        if self.comm.rank == 0:
            self.seen.restore(arrays)

    # ------------------------------------------------------------------------------------------------------- the loop

    def train(self) -> str:
        """Step until the image counter reaches the length; log, validate and save when it passes their multiples.

        Returns:
            The requests, of all ranks, that stopped the run before its end; a checkpoint is written then.
        """
        from classification.step import require_finite
        from training.log import Progress
        from training.schedule import Schedule, passed

        training, run, comm = self.opts.training, self.opts.run, self.comm
        cycle = training.lr_cycle or max(1, self.total // 10)
        rates = Schedule(training.lr_schedule, training.lr, training.warmup, self.total, cycle)
        self.progress = Progress(self.total, self.images, shown=comm.rank == 0)
        every = run.validate_every or run.validation_interval * self.epoch_images
        stop = self.validation_due and not self.validate()
        self.run_log.write()
        feed = self.inputs.train_feed(self.images, self.total, self.joint_batch) if not stop else ()
        for step in self.heartbeat.watched(self.progress.timed(feed)):
            rate = rates.rate(self.images)
            target_BK = self.inputs.target_BK(step.labeled)
            result = self.step(step.sources, target_BK, rate, stop=bool(self.preemption.requested))
            require_finite(result, [item.slide_id for item in step.labeled], self.images, comm)
            if self.average is not None:
                self.average.update(self.optimizer.steps)
            self.seen.add(step.indices, result.logits_BK)
            before, self.images = self.images, self.images + step.images
            self.progress.step(self.images, result.loss)
            last, stop = self.images >= self.total, result.stop
            if last or passed(before, self.images, run.log_every):
                self.log_training(rate)
            self.validation_due = bool(self.inputs.val) and (last or passed(before, self.images, every))
            if self.validation_due and not stop:
                stop = not self.validate()
            epoch = self.images // self.epoch_images if passed(before, self.images, self.epoch_images) else 0
            if last or stop or epoch or (run.checkpoint_every and passed(before, self.images, run.checkpoint_every)):
                self.save(f"images-{self.images:09d}.npz", epoch)
            # After the checkpoint: a full disk must not cost what was trained.
            self.run_log.write()
            if last or stop:
                break
        self.speed = self.progress.close()
        if not stop or (self.images >= self.total and not self.validation_due):
            return ""
        requests = self.ranks.requests()
        self.log(f"preempted   {requests} at image {self.images} of {self.total}; --resume auto continues")
        return requests

    def log_training(self, rate: float) -> None:
        """One line and one row for the images since the last one, over all ranks."""
        from classification.validation import shown
        from training.log import speed

        values = self.seen.scored(self.inputs, self.comm)
        # The loss that was minimized: with class weights and smoothing.
        values |= {"loss": self.step.mean_loss(), "learning_rate": rate}
        values |= {"images_per_s": self.progress.lap(), "input_wait": self.progress.wait_share}
        self.run_log.numbers("train", self.images, values)
        skipped = self.loss_scale.report() if self.loss_scale else None
        self.log(*([skipped] if skipped else []))
        self.log(f"train {self.images:>8}  {shown(values)}  {speed(values['images_per_s'])}  lr {rate:.2e}")

    # ----------------------------------------------------------------------------------- validation and checkpoints

    def validate(self) -> bool:
        """Score the slides on all ranks; keep the best checkpoint. False: stopped before the end."""
        from classification.validation import quality, shown, validated_with_average, write_found

        start, inputs, comm = time.perf_counter(), self.inputs, self.comm
        self.heartbeat.doing = "validating"
        found = validated_with_average(inputs, self.stream.logits, self.average, comm, self.asked)
        if found is None:
            return False
        self.scores, self.logits_NK, own = found
        values, self.validation_due = self.scores.logged(), False
        if quality(values) > self.best_score:
            self.best_score = quality(values)
            with self.weights_to_use():
                self.save("best.npz")
        self.run_log.numbers("val", self.images, values | own)
        write_found(self.opts.run.log_dir, self.scores, inputs, self.logits_NK, comm)
        seconds = time.perf_counter() - start
        plain = f"  own weights: loss {own['own_loss']:.4f}" if own else ""
        self.log(
            f"val   {self.images:>8}  {shown(values)}  {counted(len(inputs.val), 'slide')} in {seconds:.1f} s{plain}"
        )
        self.progress.exclude(seconds)
        return True

    def asked(self) -> bool:
        """Whether this rank was asked to stop."""
        return bool(self.preemption.requested)

    def weights_to_use(self) -> AbstractContextManager[None]:
        """Inside, the network has the weights that are scored, chosen and exported: the average, where there is one."""
        return self.average.in_place() if self.average else nullcontext()

    def save(self, name: str, epoch: int = 0) -> None:
        """Write a checkpoint of this file name; that at the end of an epoch (from 1) is kept."""
        from artifacts.checkpoints import State

        self.heartbeat.doing = "writing a checkpoint"
        arrays: dict[str, Any] = {"losses": self.step.state(), **self.seen.state(self.comm)}
        arrays |= {"loss_scale": self.loss_scale.state()} if self.loss_scale else {}
        arrays |= self.average.state() if self.average else {}
        options = as_json(self.opts) | self.inputs.stream
        state = State(
            self.images, self.best_score, options, arrays, self.comm.size, self.run_log.seconds(), self.validation_due
        )

        def write() -> None:
            # Ranks: all hold the same variables; one writes.
            if self.checkpoints is not None and self.comm.rank == 0:
                path = self.checkpoints.save(name, self.classifier.model, self.optimizer, state)
                if epoch:
                    self.checkpoints.keep(path, f"epoch-{epoch:04d}.npz")

        together(self.comm, write)

    def finish(self) -> None:
        """Final model, pictures, summary."""
        from artifacts.checkpoints import exported
        from classification import metadata
        from classification.planning import written
        from training.log import speed

        log_dir, comm, inputs = self.opts.run.log_dir, self.comm, self.inputs
        # Ranks: one looks, since file systems may lag. A run that was killed while it exported is finished.
        if not self.scores and comm.gather(log_dir is None or exported(log_dir, self.images))[0]:
            self.log(f"done        nothing to do: the checkpoint is at image {self.images} of {self.total}")
            return
        with self.weights_to_use():
            self.save("final.npz")
            info = metadata.of_run(as_json(self.opts), inputs.targets, inputs.um_px(), self.images)
            metadata.export_final(self.classifier, self.opts.network.width, log_dir, info, comm)
            self.draw(log_dir, self.logits_NK)
        self.run_log.report()  # again, with the pictures
        found = (*self.scores.lines(), *self.scores.notes) if self.scores else ()
        self.log(
            f"\ndone        {self.images} images, {speed(self.speed)} in training",
            *(f"val         {line}" for line in found),
            *(written(log_dir) if log_dir else ()),
        )

    def draw(self, folder: Path | None, logits_NK: Any) -> None:
        """Thumbnails of the validated slides for the report, and saliency maps where asked for."""
        from classification.drawing import draw, mapped

        self.heartbeat.doing = "drawing"
        # Features have no pictures.
        if folder is not None and logits_NK is not None and self.inputs.features is None:
            saliency = mapped(self.opts.run.saliency, self.stream, self.inputs.targets)
            notes = draw(folder, self.inputs, logits_NK, saliency, self.comm)
            self.log(*(f"WARNING     {note}" for note in notes))

    # --------------------------------------------------------------------------------------------------- other stories

    def evaluate(self) -> int:
        """Only validate."""
        from classification.evaluation import evaluate

        self.heartbeat.doing = "validating"
        folder, options = self.opts.run.log_dir, as_json(self.opts)
        done = evaluate(folder, options, self.inputs, self.stream.logits, self.draw, self.comm, self.asked, self.log)
        return 0 if done else preemption.EXIT_CODE

    def extract(self) -> int:
        """Only write features."""
        from classification.extraction import extract

        self.heartbeat.doing = "extracting features"
        extraction = self.inputs.extraction(self.opts.phases, self.opts.training.epochs, self.classifier)
        done = extract(extraction, self.stream, self.comm, self.asked, self.log)
        return 0 if done else preemption.EXIT_CODE


if __name__ == "__main__":
    sys.exit(main())
