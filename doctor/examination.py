"""Check in seconds whether a run would succeed: `./run_train.sh --doctor` with the arguments of a training run.

In order: the software on this host; a trial launch with the launcher of the real run, which loads libraries while
slides are examined here; the reports of its ranks; disk, memory and time; options. Each finding is one line, PASS, WARN
or FAIL, with a fix. Without data only the machine is checked.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import shutil
import sys
import time
from pathlib import Path

from doctor import data, launch, option_lints, rank, ranks, resources, software
from doctor.job import Launch, Task, read_launch
from doctor.report import Report, failed
from options.train import train_options
from parallel.comm import SoloComm, connect
from segmentation.inputs import Inputs

ROOT = Path(__file__).resolve().parents[1]
DATA = ("slide_path", "label_path", "valid_slide_path", "valid_label_path", "dataset", "manifest")
LIMIT_S = 60.0


def main(argv: list[str] | None = None) -> int:
    """Entry point; exit code 0 if no check failed, 1 if one did, 2 for an invalid option of the doctor itself."""
    parser = argparse.ArgumentParser(
        prog="run_train.sh --doctor", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        epilog="All other arguments are those of the training run to check: train.py --help",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write all findings to this JSON file")
    parser.add_argument(
        "--launch_limit", type=float, default=LIMIT_S, metavar="S", help="time limit of the trial launch, seconds"
    )
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)  # from run_train.sh
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)  # a rank of the trial launch
    own, arguments = parser.parse_known_args(argv)
    return probe(arguments) if own.probe else Doctor(own, arguments).examine()


class Doctor:
    """One examination; methods are in the order of their use.

    Args:
        own: the doctor's own options.
        arguments: command line of the training run.
    """

    def __init__(self, own: argparse.Namespace, arguments: list[str]) -> None:
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
        opts, message = parsed(self.arguments)
        reports: list[dict] = []
        if opts is None:
            report.add([failed("options", message, "correct the command line: train.py --help")])
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

    def examine_run(self, opts: argparse.Namespace, start: Launch, limit: float) -> list[dict]:
        """All checks that need a valid command line; returns the reports of the ranks."""
        report, task = self.report, task_of(opts)
        trials: list[launch.Trial] = []
        if not start.program or shutil.which(start.program):
            # Reported if it cannot start; it runs while slides are examined.
            report.run("ranks", lambda: trials.append(launch.Trial(start, limit)) or ())
        cases = self.examine_data(opts, task) if has_data(opts) else []
        got: list[dict] = []
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
        if got and has_data(opts):
            report.run("disk", resources.checkpoints, got, task)
            report.run("--stage_dir", resources.staged, got, task, cases)
            report.run("memory", resources.memory, got, task)
            report.run("time", resources.duration, got, task)
        if has_data(opts):
            report.run("options", option_lints.lint, task, start.ranks)
        return got

    def examine_data(self, opts: argparse.Namespace, task: Task) -> list:
        """Slides and labels; returns the cases."""
        report, files = self.report, Inputs(opts, SoloComm(), print)
        found, train, val = data.pairing(files.find)
        report.add(found)
        if not train:
            return []
        try:
            reading = files.set_options().reading
        except ValueError as error:
            report.add([failed("classes", str(error), "see the message")])
            return [*train, *val]
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
    opts, message = parsed(arguments)
    if opts is None:
        rank.send("error", message)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if opts.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        comm = connect(opts.horovod)
    except ValueError as error:
        rank.send("error", str(error))
        return 2
    rank.examine(comm, task_of(opts), ROOT)
    return 0


def parsed(arguments: list[str]) -> tuple[argparse.Namespace | None, str]:
    """Validated options of a training run, with or without data; or None and the error message."""
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed):
            opts = train_options([*arguments, "--plan"])  # which needs no data
            if has_data(opts):
                opts = train_options(arguments)
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        return None, printed.getvalue().split("\n", 1)[0].removeprefix("train.py: error: ")
    return opts, ""


def has_data(opts: argparse.Namespace) -> bool:
    """Whether the command line names slides or labels."""
    return any(getattr(opts, name) for name in DATA)


def task_of(opts: argparse.Namespace) -> Task:
    """The options that the checks use."""
    named = {name: getattr(opts, name) for name in DATA if name != "dataset"}
    named |= {"data_root": opts.data_root if opts.dataset else None, "weights_path": opts.weights_path}
    named |= {"resume": Path(opts.resume) if opts.resume not in (None, "auto") else None}
    return Task(
        network=opts.networks[0], img_size=opts.img_size, um_px=opts.resolution,
        channels=3 if opts.context_spacing is None else 6, precision=opts.mixed_precision, recompute=opts.recompute,
        batch=opts.batch_size, passes=opts.accumulate_batch, images=opts.num_steps, log_every=opts.log_every,
        validate_every=opts.validate_every, checkpoint_every=opts.checkpoint_every, warmup=opts.warmup,
        sync_bn=opts.sync_bn, frozen_bn=opts.freeze_bn, gpus=not opts.no_cuda,
        sample_processes=opts.sample_processes, tile_cache_mb=opts.tile_cache, memory_check=opts.memory_check,
        log_dir=opts.log_dir, stage_dir=opts.stage_dir, stage_bytes=int(opts.stage_gb * 1e9),
        inputs={name: path for name, path in named.items() if path is not None}, resumes=bool(opts.resume),
    )  # fmt: skip
