"""Checks in seconds what otherwise costs a queue slot: `./run_train.sh --doctor` with the arguments of a training.

The story: software of this machine, a trial launch by the launcher of the real run (which loads libraries while slides
are looked at here), what its ranks report, disk, memory and time, options. One line for each, PASS, WARN or FAIL, with
what to do. Without data it looks at the machine only.
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
    """Entry point; 0 when nothing failed, 1 when something did, 2 for a wrong option of the doctor's own."""
    parser = argparse.ArgumentParser(
        prog="run_train.sh --doctor", description=__doc__.split("\n\n")[0], allow_abbrev=False,
        epilog="All other arguments are those of the training to be checked: train.py --help",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="PATH", help="also write everything there, for machines")
    parser.add_argument(
        "--launch_limit", type=float, default=LIMIT_S, metavar="S", help="seconds that the trial launch may take"
    )
    parser.add_argument("--launch", type=Path, help=argparse.SUPPRESS)  # from run_train.sh
    parser.add_argument("--probe", action="store_true", help=argparse.SUPPRESS)  # a rank of the trial launch
    own, words = parser.parse_known_args(argv)
    return probe(words) if own.probe else Doctor(own, words).examine()


class Doctor:
    """One examination; the methods stand in the order in which they are used.

    Args:
        own: the doctor's own options.
        words: arguments of the training.
    """

    def __init__(self, own: argparse.Namespace, words: list[str]) -> None:
        self.own = own
        self.words = words
        self.report = Report(lambda line: print(line, flush=True))

    def examine(self) -> int:
        """The whole story."""
        begin = time.monotonic()
        report, limit = self.report, self.own.launch_limit
        alone = (sys.executable, str(ROOT / "doctor"), "--probe", *self.words)
        start = read_launch(self.own.launch) if self.own.launch else Launch("none", "", 1, (), "", "", "", alone)
        report.run("python", software.python_version)
        report.run("packages", software.packages, ROOT / "requirements.txt")
        report.run("horovod", software.horovod, start)
        report.run("launcher", software.launcher, start)
        opts, message = parsed(self.words)
        reports: list[dict] = []
        if opts is None:
            report.add([failed("options", message, "correct the command line: train.py --help")])
        else:
            reports = self.examine_run(opts, start, limit)
        counts = report.counts()
        print(
            f"\n{counts['PASS']} passed, {counts['WARN']} to look at, {counts['FAIL']} failed, in "
            f"{time.monotonic() - begin:.1f} s"
        )
        if self.own.json is not None:
            self.own.json.write_text(report.as_json(ranks=reports) + "\n", encoding="utf-8")
        return report.exit_code

    def examine_run(self, opts: argparse.Namespace, start: Launch, limit: float) -> list[dict]:
        """Everything that a parsed command line allows; returns what the ranks reported."""
        report, task = self.report, task_of(opts)
        trials: list[launch.Trial] = []
        if not start.program or shutil.which(start.program):
            # A finding where it cannot be started; it goes on while slides are looked at.
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
            report.run("options", option_lints.choices, task, start.ranks)
        return got

    def examine_data(self, opts: argparse.Namespace, task: Task) -> list:
        """Slides and labels; returns the cases."""
        report, files = self.report, Inputs(opts, SoloComm(), print)
        found, train, val = data.pairing(files.find)
        report.add(found)
        if not train:
            return []
        try:
            how = files.reading()
        except ValueError as error:
            report.add([failed("classes", str(error), "see the message")])
            return [*train, *val]
        looked_train, chosen_train = data.look_at(train, how, task)
        looked_val, chosen_val = data.look_at(val, how, task)
        both = [*looked_train, *looked_val]
        report.run("slides", data.opened, both, chosen_train + chosen_val, len(train) + len(val))
        report.run("spacing", data.spacing, both, task)
        report.run("classes", data.classes, looked_train, looked_val)
        return [*train, *val]


def probe(words: list[str]) -> int:
    """One rank of the trial launch."""
    rank.hello()
    opts, message = parsed(words)
    if opts is None:
        rank.tell("error", message)
        return 2
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    if opts.no_cuda:
        os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        comm = connect(opts.horovod)
    except ValueError as error:
        rank.tell("error", str(error))
        return 2
    rank.look(comm, task_of(opts), ROOT)
    return 0


def parsed(words: list[str]) -> tuple[argparse.Namespace | None, str]:
    """Validated options of a training, data or not; or None and the message."""
    told = io.StringIO()
    try:
        with contextlib.redirect_stderr(told):
            opts = train_options([*words, "--plan"])  # which needs no data
            if has_data(opts):
                opts = train_options(words)
    except SystemExit as end:
        if end.code in (0, None):  # --help
            raise
        return None, told.getvalue().split("\n", 1)[0].removeprefix("train.py: error: ")
    return opts, ""


def has_data(opts: argparse.Namespace) -> bool:
    """Whether the command line names slides or labels, rightly or not."""
    return any(getattr(opts, name) for name in DATA)


def task_of(opts: argparse.Namespace) -> Task:
    """Options as what checks take."""
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
