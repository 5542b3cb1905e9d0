"""Weak scaling from one rank to two on this machine: what joining them costs, apart from sharing the machine.

python -m benchmarks.scaling --json FILE [--model effdetd0] [--size 256] [--rounds 5] [--steps 8] [--processors N]

In every round, one after the other, with the real training step (`training.step.TrainStep`, Adam, noise for a batch):

    alone         one job of one rank
    independent   two jobs of one rank each, at the same time
    fp32, fp16    two ranks joined by Horovod

Every process has processors of its own (half of those there are), and as many threads. All processes live through the
whole run, and those that are not measured are stopped (SIGSTOP), so a round takes seconds and all of it sees the same
state of the machine. Every other round goes the other way round.

    efficiency = images/s of two joined ranks / images/s of two independent jobs
    exposed    = step of the joined ranks - step of the independent jobs
    total      = the step's three allreduces alone, one after the other, in the same processes
    overlapped = 1 - exposed / total, within 0 and 1

Two independent jobs share caches, memory and, here, often one core, as two ranks do; so what is left is communication
and waiting for the slower rank.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.ranks import Group, launcher, pin, python, serve

CLASSES = 2
WIRES = ("fp32", "fp16")
SUMS = 3
Spans = list[tuple[float, float]]


# --- In a measured process --------------------------------------------------------------------------------------------


class Worker:
    """One rank: its training steps, and their allreduces alone."""

    def __init__(self, model_name: str, img_size: int, joined: bool) -> None:
        import keras
        import tensorflow as tf

        import models
        from parallel.comm import connect
        from parallel.devices import use_devices
        from segmentation.losses import Loss
        from training.optimizer import Adam
        from training.step import TrainStep

        self._comm = connect(joined)
        use_devices(self._comm)
        keras.utils.set_random_seed(0)
        model = models.build(model_name, img_size, CLASSES)
        optimizer = Adam(model.trainable_variables)
        self._steps = {
            wire: TrainStep(model, optimizer, self._comm, Loss("ce", [1.0] * CLASSES), wire == "fp16", None)
            for wire in (WIRES if joined else WIRES[:1])
        }
        rng = np.random.default_rng(self._comm.rank)
        shape = (1, img_size, img_size)
        self._image_BHWC = tf.constant(rng.integers(0, 256, (*shape, 3), dtype=np.uint8))
        self._label_BHW = tf.constant(rng.integers(0, CLASSES, shape, dtype=np.uint8))
        moving = [v for v in model.non_trainable_variables if v.dtype == "float32"]
        sent = {"gradients": [tf.zeros(v.shape) for v in model.trainable_variables]}
        sent |= {"sums": [tf.zeros(SUMS)], "statistics": [tf.zeros(v.shape) for v in moving]}
        self._allreduces = {
            (part, wire): tf.function(lambda t=tensors, fp16=wire == "fp16": self._comm.mean(t, fp16=fp16))
            for part, tensors in sent.items()
            for wire in WIRES
        }

    def steps(self, wire: str, steps: int) -> Spans:
        """Start and end of every step, by the clock that all processes of a machine share (CLOCK_MONOTONIC)."""
        spans = []
        for _ in range(steps):
            start = time.monotonic()
            self._steps[wire](self._image_BHWC, self._label_BHW, 1e-4)
            spans.append((start, time.monotonic()))
        return spans

    def allreduces(self, wire: str, repeats: int) -> dict[str, float]:
        """Median seconds of each of the step's allreduces alone; only gradients are ever sent as fp16."""
        found = {}
        for part in ("gradients", "sums", "statistics"):
            call = self._allreduces[part, wire if part == "gradients" else "fp32"]
            taken = []
            for _ in range(repeats):
                start = time.monotonic()
                call()[0].numpy()
                taken.append(time.monotonic() - start)
            found[part] = float(np.median(taken))
        return found


def work(opts: argparse.Namespace) -> None:
    """Be a measured process."""
    from parallel.launchers import launched_rank

    joined = opts.place is None
    pin(launched_rank() if joined else opts.place, opts.processors)
    worker = Worker(opts.model, opts.size, joined)
    serve({"steps": worker.steps, "allreduces": worker.allreduces})


# --- What is made of it -----------------------------------------------------------------------------------------------


def common_steps(jobs: list[Spans]) -> list[list[float]]:
    """Seconds of the steps of each job that lie within the time in which all jobs ran.

    Raises:
        ValueError: a job has no such step: they did not run at the same time.
    """
    first, last = max(spans[0][0] for spans in jobs), min(spans[-1][1] for spans in jobs)
    found = [[end - start for start, end in spans if start >= first and end <= last] for spans in jobs]
    if not all(found):
        raise ValueError("the jobs did not run at the same time: take more --steps")
    return found


def rate(jobs: list[list[float]]) -> float:
    """Steps per second of all jobs together."""
    return sum(len(taken) / sum(taken) for taken in jobs)


def variation(jobs: list[list[float]]) -> float:
    """Standard deviation of a job's step times over their mean, the mean of all jobs."""
    return float(np.mean([np.std(taken) / np.mean(taken) for taken in jobs]))


def compared(independent: list[list[float]], joined: list[list[float]], total_s: float) -> dict[str, float]:
    """Efficiency and shares of communication of one round.

    Args:
        independent: seconds of the steps of two jobs.
        joined: the same of two ranks.
        total_s: of a step's allreduces alone.
    """
    step_s = {name: len(jobs) / rate(jobs) for name, jobs in (("independent", independent), ("joined", joined))}
    exposed_s = step_s["joined"] - step_s["independent"]
    return {
        "efficiency": rate(joined) / rate(independent),
        "step_s": step_s["joined"],
        "exposed_s": exposed_s,
        "total_s": total_s,
        "overlapped": float(np.clip(1 - exposed_s / total_s, 0, 1)),
    }


def summary(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; of the efficiency also the smallest and the largest."""
    found: dict[str, Any] = {
        name: float(np.median([r[name] for r in rounds])) for name in ("alone_s", "independent_s", "variation")
    }
    for wire in WIRES:
        rows = [r[wire] for r in rounds]
        found[wire] = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
        efficiencies = [row["efficiency"] for row in rows]
        found[wire] |= {"efficiency_min": min(efficiencies), "efficiency_max": max(efficiencies)}
        # Of the medians: a round's own share is mostly its noise.
        share = 1 - found[wire]["exposed_s"] / found[wire]["total_s"]
        found[wire]["overlapped"] = float(np.clip(share, 0, 1))
    return found


# --- The run ----------------------------------------------------------------------------------------------------------


class Pairs:
    """The three groups of processes: two jobs of their own, and two joined ranks."""

    def __init__(self, opts: argparse.Namespace) -> None:
        base = ["--worker", "--model", opts.model, "--size", str(opts.size), "--processors", str(opts.processors)]
        self._groups: list[Group] = []
        try:
            for place in ("0", "1"):
                words = python("benchmarks.scaling", *base, "--place", place)
                self._groups.append(Group(words, 1, opts.processors))
            words = [*launcher(2), *python("benchmarks.scaling", *base)]
            self._groups.append(Group(words, 2, opts.processors))
        except BaseException:
            self.end()
            raise
        self._jobs, self._joined = self._groups[:2], self._groups[2]

    def end(self) -> None:
        """End all processes."""
        for group in self._groups:
            group.end()

    def warm_up(self) -> None:
        """Compile everything, each kind of process by itself, and take some steps."""
        for wire in WIRES:
            self.joined(wire, 3)
            self.allreduces(wire, 3)
        self.alone(1)
        self.independent(3)

    def _only(self, *running: Group) -> None:
        for group in self._groups:
            group.pause(group not in running)

    def alone(self, steps: int) -> list[Spans]:
        """One job."""
        self._only(self._jobs[0])
        return self._jobs[0].ask(do="steps", wire="fp32", steps=steps)

    def independent(self, steps: int) -> list[Spans]:
        """Two jobs at the same time."""
        self._only(*self._jobs)
        for job in self._jobs:
            job.send(do="steps", wire="fp32", steps=steps)
        return [answer for job in self._jobs for answer in job.answers()]

    def joined(self, wire: str, steps: int) -> list[Spans]:
        """Two ranks."""
        self._only(self._joined)
        return self._joined.ask(do="steps", wire=wire, steps=steps)

    def allreduces(self, wire: str, repeats: int) -> dict[str, float]:
        """Of each of a step's allreduces alone, seconds on the slower rank."""
        self._only(self._joined)
        answers = self._joined.ask(do="allreduces", wire=wire, repeats=repeats)
        return {part: max(answer[part] for answer in answers) for part in answers[0]}


def measure(pairs: Pairs, steps: int, backwards: bool) -> dict[str, Any]:
    """One round."""
    spans: dict[str, list[Spans]] = {}
    allreduces: dict[str, dict[str, float]] = {}
    legs = ["alone", *WIRES, "independent"]
    for leg in reversed(legs) if backwards else legs:
        if leg in WIRES:
            spans[leg] = pairs.joined(leg, steps)
            allreduces[leg] = pairs.allreduces(leg, steps)
        else:
            spans[leg] = pairs.alone(steps) if leg == "alone" else pairs.independent(steps)
    # The first step of a leg meets caches that another process has filled.
    taken = {leg: common_steps([job[1:] for job in jobs]) for leg, jobs in spans.items()}
    found: dict[str, Any] = {
        "alone_s": 1 / rate(taken["alone"]),
        "independent_s": 2 / rate(taken["independent"]),
        "variation": variation(taken["independent"]),
        "steps": taken,
        "allreduces": allreduces,
    }
    for wire in WIRES:
        found[wire] = compared(taken["independent"], taken[wire], sum(allreduces[wire].values()))
    return found


def line(name: str, r: dict[str, Any], wire: str) -> str:
    """A row of the table."""
    w = r[wire]
    return (
        f"{name:<7} {wire}  {r['alone_s']:>7.3f} {r['independent_s']:>13.3f} {w['step_s']:>8.3f} "
        f"{w['efficiency']:>11.3f} {w['exposed_s'] * 1e3:>11.1f} {w['total_s'] * 1e3:>9.1f} {w['overlapped']:>11.2f}"
    )


def main() -> None:
    """Measure, print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description="measure weak scaling from one rank to two on this machine")
    parser.add_argument("--model", default="effdetd0")
    parser.add_argument("--size", type=int, default=256, help="px")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8, help="of every part of a round; the first is not counted")
    parser.add_argument(
        "--processors", type=int, default=max(1, len(os.sched_getaffinity(0)) // 2), help="and threads of a process"
    )
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)  # a measured process
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)  # of a job of its own
    opts = parser.parse_args()
    if opts.steps < 3 or opts.rounds < 1:
        parser.error("--steps is at least 3, --rounds at least 1")
    if opts.worker:
        work(opts)
        return
    # On SIGTERM the paused processes must not stay behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    print("starting and compiling, some minutes ...", flush=True)
    pairs = Pairs(opts)
    try:
        pairs.warm_up()
        print("round   wire  alone s  independent s joined s  efficiency  exposed ms  total ms  overlapped", flush=True)
        rounds = []
        for number in range(opts.rounds):
            rounds.append(measure(pairs, opts.steps, backwards=number % 2 == 1))
            for wire in WIRES:
                print(line(str(number + 1), rounds[-1], wire), flush=True)
    finally:
        pairs.end()
    found = summary(rounds)
    for wire in WIRES:
        print(line("median", found, wire))
        print(f"        efficiency {found[wire]['efficiency_min']:.3f} to {found[wire]['efficiency_max']:.3f}")
    if opts.json:
        case = {"model": opts.model, "img_size": opts.size, "batch": 1, "processors": opts.processors}
        report.write(opts.json, case | {"summary": found, "rounds": rounds})


if __name__ == "__main__":
    main()
