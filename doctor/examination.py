"""Check in seconds whether a run would succeed: `./run_train.sh --doctor` with the arguments of a training run.

In order: the software on this host; a trial launch with the launcher of the real run, which loads libraries while
slides are examined here; the reports of its ranks; disk, memory and time; options. Each finding is one line, PASS, WARN
or FAIL, with a fix. Without data only the machine is checked.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cohorts.pairing import Case
from doctor import data, launch, option_lints, rank, ranks, resources, software
from doctor.job import Launch, Task, read_launch
from doctor.report import Report, failed, passed
from options.fields import Group, add_options, collect, option
from options.parser import OptionError
from options.train import TrainOptions, TrainSlides, train_options
from parallel.comm import connect
from segmentation.inputs import find_cases, set_options
from slides.truth.mask_values import count_all
from system import gpus
from system.version import __version__

ROOT = Path(__file__).resolve().parents[1]
LIMIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class DoctorOptions(Group):
    """The doctor itself."""

    json: Path | None = option(help="also write all findings to this JSON file")
    launch_limit: float = option(LIMIT_S, unit="s", help="time limit of the trial launch, seconds")
    launch: Path | None = option(help=argparse.SUPPRESS)  # from run_train.sh
    probe: bool = option(False, help=argparse.SUPPRESS)  # a rank of the trial launch


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit code 0 if no check failed, 1 if one did, 2 for an invalid option of the doctor itself."""
    parser = argparse.ArgumentParser(
        prog="run_train.sh --doctor", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        epilog="All other arguments are those of the training run to check: train.py --help",
    )  # fmt: skip
    parser.add_argument("--version", action="version", version=f"widefov {__version__}")
    add_options(parser, DoctorOptions)
    given, arguments = parser.parse_known_args(argv)
    own = collect(DoctorOptions, given)
    return probe(arguments) if own.probe else Doctor(own, arguments).examine()


class Doctor:
    """One examination; methods are in the order of their use.

    Args:
        own: the doctor's own options.
        arguments: command line of the training run.
    """

    def __init__(self, own: DoctorOptions, arguments: list[str]) -> None:
        self.own = own
        self.arguments = arguments
        self.report = Report(lambda line: print(line, flush=True))

    def examine(self) -> int:
        """All checks; returns the exit code."""
        begin = time.monotonic()
        report, limit = self.report, self.own.launch_limit
        alone = (sys.executable, str(ROOT / "doctor"), "--probe", *self.arguments)
        start = read_launch(self.own.launch) if self.own.launch else Launch("none", "", 1, (), "", "", "", alone)
        report.run("python", software.python_version)
        report.run("packages", software.packages, ROOT / "requirements.txt")
        report.run("horovod", software.horovod, start)
        report.run("launcher", software.launcher, start)
        reports: list[dict[str, Any]] = []
        try:
            opts = parsed(self.arguments)
        except OptionError as error:
            report.add([failed("options", str(error), "correct the command line: train.py --help")])
        else:
            reports = self.examine_run(opts, start, limit)
        counts = report.counts()
        print(
            f"\n{counts['PASS']} passed, {counts['WARN']} warnings, {counts['FAIL']} failed, in "
            f"{time.monotonic() - begin:.1f} s"
        )
        if self.own.json is not None:
            self.own.json.write_text(report.as_json(ranks=reports) + "\n", encoding="utf-8")
        return report.exit_code

    def examine_run(self, opts: TrainOptions, start: Launch, limit: float) -> list[dict[str, Any]]:
        """All checks that need a valid command line; returns the reports of the ranks."""
        report, task = self.report, task_of(opts)
        trials: list[launch.Trial] = []

        def start_trial() -> tuple[()]:
            trials.append(launch.Trial(start, limit))
            return ()

        if not start.program or shutil.which(start.program):
            # Reported if it cannot start; it runs while slides are examined.
            report.run("ranks", start_trial)
        with_data = has_data(opts.slides)
        cases = self.examine_data(opts, task) if with_data else []
        got: list[dict[str, Any]] = []
        for trial in trials:
            outcome = trial.wait()
            report.run("ranks", launch.judge, start, outcome, limit)
            got = outcome.ranks
        if got:
            report.run("rank", ranks.own_errors, got)
            report.run("versions", ranks.versions, got)
            report.run("devices", ranks.devices, got, task.gpus)
            report.run("pinning", ranks.placed, got)
            report.run("allreduce", ranks.allreduce, got)
            report.run("paths", ranks.paths, got)
            report.run("--log_dir", ranks.log_folder, got, task)
        if got and with_data:
            report.run("disk", resources.checkpoints, got, task)
            report.run("--stage_dir", resources.staged, got, task, cases)
            report.run("memory", resources.memory, got, task)
            report.run("time", resources.duration, got, task)
        if with_data:
            report.run("options", option_lints.lint, task, start.ranks)
        return got

    def examine_data(self, opts: TrainOptions, task: Task) -> list[Case]:
        """Slides and labels; returns the cases."""
        report, training = self.report, opts.training
        found, train, val = data.pairing(lambda: find_cases(opts.slides, training.seed))
        report.add(found)
        if not train:
            return []
        try:
            options = set_options(opts.labels, opts.slides.mpp, opts.tissue.bb_downsample, training.class_weights)
        except ValueError as error:
            report.add([failed("classes", str(error), "see the message")])
            return [*train, *val]
        try:
            count = partial(count_all, threads=data.WORKERS, lenient=True)
            reading, lines = options.reading.settled([case.label_path for case in (*train, *val)], count)
        except ValueError as error:
            message, _, fix = str(error).rpartition("; ")
            report.add([failed("masks", message or str(error), fix)])
            return [*train, *val]
        report.add([passed("masks", line.removeprefix("masks: ")) for line in lines if line.startswith("masks: ")])
        examined_train, chosen_train = data.examine_all(train, reading, task)
        examined_val, chosen_val = data.examine_all(val, reading, task)
        both = [*examined_train, *examined_val]
        report.run("slides", data.opened, both, chosen_train + chosen_val, len(train) + len(val))
        report.run("spacing", data.spacing, both, task)
        report.run("classes", data.classes, examined_train, examined_val)
        return [*train, *val]


def probe(arguments: list[str]) -> int:
    """One rank of the trial launch."""
    rank.hello()
    try:
        opts = parsed(arguments)
    except OptionError as error:
        rank.send("error", str(error))
        return 2
    for name, value in {"TF_CPP_MIN_LOG_LEVEL": "3", **gpus.ORDER}.items():
        os.environ.setdefault(name, value)
    if opts.machine.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        comm = connect(opts.machine.horovod)
    except ValueError as error:
        rank.send("error", str(error))
        return 2
    rank.examine(comm, task_of(opts), ROOT)
    return 0


def parsed(arguments: list[str]) -> TrainOptions:
    """Options of a training run, with or without data.

    Raises:
        OptionError: the command line is wrong.
    """
    opts = train_options([*arguments, "--plan"], raises=True)  # which needs no data
    return train_options(arguments, raises=True) if has_data(opts.slides) else opts


def has_data(slides: TrainSlides) -> bool:
    """Whether the command line names slides or labels."""
    return any((*slides.folders, slides.dataset, slides.manifest))


def task_of(opts: TrainOptions) -> Task:
    """The options that the checks use."""
    slides, sampling, network, training, run = opts.slides, opts.sampling, opts.network, opts.training, opts.run
    named = {
        "slide_path": slides.slide_path, "label_path": slides.label_path, "valid_slide_path": slides.valid_slide_path,
        "valid_label_path": slides.valid_label_path, "manifest": slides.manifest,
        "data_root": slides.data_root if slides.dataset else None, "weights_path": network.weights_path,
        "resume": None if run.resume in (None, "auto") else Path(run.resume),
    }  # fmt: skip
    return Task(
        network=network.networks[0], img_size=sampling.img_size, um_px=sampling.resolution,
        tolerance=sampling.resolution_tolerance,
        channels=sampling.channels, precision=network.mixed_precision, recompute=network.recompute,
        stream=network.stream,
        batch=training.batch_size, passes=training.accumulate_batch, images=training.num_steps,
        log_every=run.log_every, validate_every=run.validate_every, checkpoint_every=run.checkpoint_every,
        warmup=opts.optimization.warmup, sync_bn=network.sync_bn, frozen_bn=network.freeze_bn,
        gpus=not opts.machine.no_cuda, sample_processes=opts.machine.sample_processes,
        tile_cache_mb=opts.machine.tile_cache, memory_check=run.memory_check, log_dir=run.log_dir,
        stage_dir=slides.stage_dir, stage_bytes=int(slides.stage_gb * 1e9),
        inputs={name: path for name, path in named.items() if path is not None}, resumes=run.resume is not None,
    )  # fmt: skip
