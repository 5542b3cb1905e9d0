"""A streamed training step of one image on two ranks that share its tiles, against one rank.

    python -m benchmarks.share_slide --size 2048 --tile 640,112 --keep layer2_3 --json FILE

Every process is pinned to processors of its own and has as many threads. All live through the whole run, and those that
are not measured are stopped, so that a round sees one state of the machine. In every round, in turn:

    alone         one rank, the whole image
    shared        two ranks, the tiles of one image; joined by Horovod
    independent   two processes, an image each: the most that two processes can do here

    speed-up = seconds alone / seconds shared
    efficiency = seconds independent / (2 x seconds shared)

CPU seconds are those of a process in a step, waiting for the other rank included: Open MPI waits by asking.
The image is random, the network one of `models.resnet` with frozen statistics and a head of a maximum.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.ranks import Group, launcher, pin, python, serve
from benchmarks.streaming import built, late_layer, streamed_step
from models.resnet import VARIANTS

LEGS = ("alone", "shared", "independent")
Step = dict[str, Any]


class Worker:
    """One process: its steps."""

    def __init__(self, opts: argparse.Namespace, joined: bool) -> None:
        import keras

        from parallel.comm import connect
        from parallel.devices import use_devices
        from streaming import Streamed

        comm = connect(joined)
        use_devices(comm)
        model = built(opts.network)
        late = late_layer(opts.network)
        shape = model.get_layer(late).output.shape[1:]
        head = keras.Sequential([keras.Input(shape), model.get_layer("pool"), model.get_layer("fc")])
        image = np.random.default_rng(0).uniform(-1, 1, (opts.size, opts.size, 3)).astype(np.float32)
        # A share of white, as around tissue: its tiles are computed once.
        image[: int(opts.white * opts.size)] = 1.0
        tiles = [int(side) for side in opts.tile.split(",")]
        self._stream = Streamed(model, late, tiles, opts.keep[: len(tiles) - 1], sharing=comm if joined else None)
        self._step = streamed_step(self._stream, head, image)

    def step(self) -> Step:
        """Wall and CPU seconds of a step, the norm of its gradients, and the tiles done."""
        start, cpu = time.monotonic(), time.process_time()
        gradients = self._step()
        found = {"wall_s": time.monotonic() - start, "cpu_s": time.process_time() - cpu}
        norm = float(np.sqrt(sum(np.sum(np.asarray(g, np.float64) ** 2) for g in gradients)))
        return found | {"norm": norm, "counts": vars(self._stream.counts)}


def work(opts: argparse.Namespace) -> None:
    """Be a measured process."""
    from parallel.launchers import launched_rank

    joined = opts.place is None
    pin(launched_rank() if joined else opts.place, opts.processors)
    serve({"step": Worker(opts, joined).step})


class Groups:
    """Two processes of their own and two joined ranks."""

    def __init__(self, opts: argparse.Namespace) -> None:
        base = ["--worker", "--network", opts.network, "--size", str(opts.size), "--tile", opts.tile]
        base += ["--white", str(opts.white), "--processors", str(opts.processors), "--keep", *opts.keep]
        self._groups: list[Group] = []
        try:
            for place in ("0", "1"):
                self._groups.append(
                    Group(python("benchmarks.share_slide", *base, "--place", place), 1, opts.processors)
                )
            words = [*launcher(2), *python("benchmarks.share_slide", *base)]
            self._groups.append(Group(words, 2, opts.processors))
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        """End all processes."""
        for group in self._groups:
            group.end()

    def measure(self, leg: str) -> list[Step]:
        """One step of every process of a leg."""
        running = {"alone": self._groups[:1], "shared": self._groups[2:], "independent": self._groups[:2]}[leg]
        for group in self._groups:
            group.pause(group not in running)
        for group in running:
            group.send(do="step")
        return [answer for group in running for answer in group.answers()]


def summary(rounds: list[dict[str, list[Step]]]) -> dict[str, Any]:
    """Medians over rounds: seconds of the slower process, CPU seconds of the busier one."""
    found: dict[str, Any] = {}
    for leg in LEGS:
        for name in ("wall_s", "cpu_s"):
            found[f"{leg}_{name}"] = float(np.median([max(step[name] for step in r[leg]) for r in rounds]))
    ups = [r["alone"][0]["wall_s"] / max(step["wall_s"] for step in r["shared"]) for r in rounds]
    found |= {"speed_up": float(np.median(ups)), "speed_up_min": min(ups), "speed_up_max": max(ups)}
    found["cpu_speed_up"] = found["alone_cpu_s"] / found["shared_cpu_s"]
    found["efficiency"] = found["independent_wall_s"] / (2 * found["shared_wall_s"])
    norms = [step["norm"] for r in rounds for steps in r.values() for step in steps]
    found["norm_difference"] = (max(norms) - min(norms)) / max(norms)
    found["counts"] = {leg: [step["counts"] for step in rounds[-1][leg]] for leg in LEGS[:2]}
    return found


def main() -> None:
    """Print every round and the medians; write them as JSON."""
    parser = argparse.ArgumentParser(description="one image on two ranks against one")
    parser.add_argument("--network", choices=sorted(VARIANTS), default="resnet34")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the image, px")
    parser.add_argument("--tile", default="640,112", help="tiles of the segments")
    parser.add_argument("--keep", nargs="+", default=["layer2_3"], help="maps between segments")
    parser.add_argument("--white", type=float, default=0.0, help="share of the image that is white")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processors", type=int, default=1, help="of each process, and its threads")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--place", type=int, help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.worker:
        work(opts)
        return
    groups = Groups(opts)
    rounds = []
    try:
        for leg in LEGS:  # compiles
            groups.measure(leg)
        for number in range(opts.rounds):
            rounds.append({leg: groups.measure(leg) for leg in (LEGS if number % 2 == 0 else LEGS[::-1])})
            line = summary(rounds[-1:])
            print(
                f"round {number}: alone {line['alone_wall_s']:.2f} s, shared {line['shared_wall_s']:.2f} s, "
                f"independent {line['independent_wall_s']:.2f} s: speed-up {line['speed_up']:.3f}, by CPU time "
                f"{line['cpu_speed_up']:.3f}, efficiency {line['efficiency']:.3f}",
                flush=True,
            )
    finally:
        groups.end()
    found = summary(rounds)
    print(f"median speed-up {found['speed_up']:.3f}, by CPU time {found['cpu_speed_up']:.3f}; {found['counts']}")
    if opts.json:
        given = {name: getattr(opts, name) for name in ("network", "size", "tile", "keep", "white", "processors")}
        report.write(opts.json, given | found | {"rounds": rounds})


if __name__ == "__main__":
    main()
