"""What an allreduce of `parallel.comm` costs: latency, bandwidth, tensor fusion, bytes on the wire.

python -m benchmarks.allreduce --json FILE                          starts two ranks here, once per setting of Horovod
mpirun -np 4 ... python -m benchmarks.allreduce --json FILE         measures the ranks and the setting it runs with

- link: MPI alone (ping-pong), a message of b bytes takes alpha + b beta
- sizes: `Comm.mean` of one tensor, 1 KB to 256 MB, float32 and fp16; fitted: alpha + (bytes on the wire) beta
- groups: `Comm.mean` of a network's real list of gradients, in one grouped call as `training.step` does, and in one
  call per tensor, for settings of HOROVOD_FUSION_THRESHOLD and HOROVOD_CYCLE_TIME
- wire: bytes that a rank sends per call over TCP, counted by the loopback device of a network namespace that contains
  only the two ranks (needs Open MPI and `unshare`; otherwise skipped with a message)

Seconds are medians over repeats, of the slowest rank. Every mean is checked to be one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import report
from benchmarks.ranks import ROOT, environment, launcher, pin, python

MODELS = ("effdetd0", "deeplab")
SIZES = tuple(2**k for k in range(10, 29, 2))
PING_SIZES = tuple(2**k for k in range(3, 27, 4))
# HOROVOD_FUSION_THRESHOLD in MiB, HOROVOD_CYCLE_TIME in ms; the first is Horovod's default.
SETTINGS = ((128, 1.0), (0, 1.0), (8, 1.0), (128, 0.1), (128, 5.0))
WIRES = ("fp32", "fp16")
# Over TCP on loopback alone, with the plain transport.
TCP = {"OMPI_MCA_btl": "tcp,self", "OMPI_MCA_pml": "ob1", "OMPI_MCA_btl_tcp_if_include": "lo",
       "OMPI_MCA_oob_tcp_if_include": "lo"}  # fmt: skip
NAMESPACE = ["unshare", "--map-root-user", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "namespace"]
Shapes = dict[str, list[list[int]]]


def fitted(nbytes: Sequence[float], seconds: Sequence[float]) -> dict[str, float]:
    """alpha_s + beta_s x bytes, with the least relative errors."""
    rows = np.stack([np.ones(len(nbytes)), np.asarray(nbytes, float)], 1) / np.asarray(seconds, float)[:, None]
    scale = rows.max(0)
    alpha_s, beta_s = np.linalg.lstsq(rows / scale, np.ones(len(nbytes)), rcond=None)[0] / scale
    return {"alpha_s": float(alpha_s), "beta_s": float(beta_s)}


def gradient_shapes() -> Shapes:
    """Shapes of the trainable variables of the networks, in the order of the gradients."""
    import models

    return {name: [list(v.shape) for v in models.build(name, 128, 2).trainable_variables] for name in MODELS}


# --- On a rank --------------------------------------------------------------------------------------------------------


class Ranks:
    """What is measured on joined ranks; every method is called by all of them."""

    def __init__(self) -> None:
        from parallel.comm import connect
        from parallel.devices import use_devices

        self.comm = connect(True)
        if self.comm.size == 1:
            raise ValueError("one rank has nothing to send: start two or more")
        use_devices(self.comm)

    def seconds(self, call: Callable[[], Any], repeats: int) -> float:
        """Median of some calls, after two that are not counted; of the slowest rank."""
        taken = []
        for _ in range(repeats + 2):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
        return max(self.comm.gather(float(np.median(taken[2:]))))

    def mean(self, shapes: Sequence[Sequence[int]], wire: str, grouped: bool = True) -> Callable[[], Any]:
        """A call of `Comm.mean` for tensors of these shapes."""
        import tensorflow as tf

        # Rank r sends r + 1: exact in fp16.
        tensors = [tf.fill(shape, float(self.comm.rank + 1)) for shape in shapes]

        # As an argument: Horovod wants tensors of the graph.
        @tf.function
        def average(tensors: Any) -> Any:
            if grouped:
                return self.comm.mean(tensors, fp16=wire == "fp16")
            return [self.comm.mean([tensor], fp16=wire == "fp16")[0] for tensor in tensors]

        expected = (self.comm.size + 1) / 2
        wrong = [i for i, found in enumerate(average(tensors)) if not np.allclose(found, expected, rtol=2e-3)]
        if wrong:
            raise RuntimeError(f"the mean of tensors {wrong[:5]} over ranks is not {expected}")

        def call() -> None:
            average(tensors)[0].numpy()

        return call

    def link(self) -> dict[str, Any]:
        """Half of a ping-pong between ranks 0 and 1, by MPI alone."""
        from mpi4py import MPI

        world, rows = MPI.COMM_WORLD, []
        for size in PING_SIZES:
            data = np.zeros(size, np.uint8)

            def exchange(data: np.ndarray = data) -> None:
                if self.comm.rank == 0:
                    world.Send(data, 1)
                    world.Recv(data, 1)
                elif self.comm.rank == 1:
                    world.Recv(data, 0)
                    world.Send(data, 0)

            rows.append({"bytes": size, "seconds": self.seconds(exchange, 50) / 2})
        return fitted([r["bytes"] for r in rows], [r["seconds"] for r in rows]) | {"rows": rows}

    def sizes(self) -> list[dict[str, Any]]:
        """`Comm.mean` of one tensor of many sizes."""
        found = []
        for wire in WIRES:
            for size in SIZES:
                call = self.mean([[size // 4]], wire)
                sent = size // (2 if wire == "fp16" else 1)
                repeats = int(np.clip(2**28 // size, 3, 40))
                found.append({"wire": wire, "float32_bytes": size, "wire_bytes": sent,
                              "seconds": self.seconds(call, repeats)})  # fmt: skip
        return found

    def groups(self, shapes: Shapes) -> list[dict[str, Any]]:
        """`Comm.mean` of each network's gradients."""
        kinds = [("fp32", True), ("fp16", True), ("fp32", False)]
        return [
            {"model": model, "wire": wire, "grouped": grouped, "tensors": len(listed),
             "wire_bytes": sum(int(np.prod(s)) for s in listed) * (2 if wire == "fp16" else 4),
             "seconds": self.seconds(self.mean(listed, wire, grouped), 7)}
            for model, listed in shapes.items() for wire, grouped in kinds
        ]  # fmt: skip

    def wire(self, shapes: Shapes, calls: int = 5) -> list[dict[str, Any]]:
        """Bytes that a rank sends in one `Comm.mean` of each network's gradients; in a namespace of their own."""
        found = []
        for model, listed in shapes.items():
            for wire in WIRES:
                call = self.mean(listed, wire)
                self.comm.gather(None)
                before = loopback_bytes()
                # No rank may begin before all have read.
                self.comm.gather(None)
                for _ in range(calls):
                    call()
                self.comm.gather(None)
                sent = (loopback_bytes() - before) / calls / self.comm.size
                numbers = sum(int(np.prod(s)) for s in listed) * (2 if wire == "fp16" else 4)
                formula = 2 * (self.comm.size - 1) / self.comm.size * numbers
                found.append({"model": model, "wire": wire, "counted": sent, "formula": formula})
        return found


def loopback_bytes() -> int:
    """Bytes, with headers, that this network namespace has sent over its loopback device."""
    lines = Path("/proc/self/net/dev").read_text(encoding="ascii").splitlines()
    fields = next(line.split(":")[1].split() for line in lines if line.strip().startswith("lo:"))
    return int(fields[8])


def work(what: str, shapes: Shapes, output: Path) -> None:
    """Be a rank: measure, and have rank 0 write it."""
    ranks = Ranks()
    found: dict[str, Any] = {"ranks": ranks.comm.size}
    if what == "all":
        found |= {"link": ranks.link(), "sizes": ranks.sizes()}
    if what in ("all", "groups"):
        found["groups"] = ranks.groups(shapes)
    if what == "wire":
        found["wire"] = ranks.wire(shapes)
    if ranks.comm.rank == 0:
        output.write_text(json.dumps(found), encoding="utf-8")
    # Nobody leaves while another still measures.
    ranks.comm.gather(None)


# --- The run ----------------------------------------------------------------------------------------------------------


def started(what: str, shapes: Path, processors: int, settings: dict[str, str], prefix: Sequence[str] = ()) -> Any:
    """What two ranks found that were started here.

    Raises:
        RuntimeError: they failed; with the end of what they said.
    """
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "found.json")
        words = ["--worker", what, "--shapes", str(shapes), "--processors", str(processors), "--json", str(output)]
        # The ranks must not outlive this process.
        command = [sys.executable, str(ROOT / "launch" / "die_with_parent.py"), *prefix, *launcher(2)]
        command += python("benchmarks.allreduce", *words)
        done = subprocess.run(
            command, cwd=ROOT, env=environment(processors) | settings, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, check=False, timeout=900,
        )  # fmt: skip
        if done.returncode or not output.exists():
            raise RuntimeError(f"two ranks ended with code {done.returncode}: {_cause(done.stderr + done.stdout)}")
        return json.loads(output.read_text(encoding="utf-8"))


def _cause(text: str) -> str:
    """What a rank said last of errors; the launcher's own words come after it."""
    errors = [line for line in text.splitlines() if "Error" in line]
    return "; ".join(errors[-3:]) or text[-2000:]


def counted(shapes: Path, processors: int) -> tuple[list[dict[str, Any]], str]:
    """Bytes on the wire, and why there are none."""
    try:
        return started("wire", shapes, processors, TCP, NAMESPACE)["wire"], ""
    except (RuntimeError, OSError, subprocess.TimeoutExpired) as error:
        return [], f"no namespace with two ranks over TCP: {str(error)[-500:]}"


def measured(processors: int, settings_of_horovod: Sequence[tuple[int, float]]) -> dict[str, Any]:
    """Everything, with two ranks on this machine; sizes and link with the first setting."""
    with tempfile.TemporaryDirectory() as folder:
        shapes = Path(folder, "shapes.json")
        shapes.write_text(json.dumps(gradient_shapes()), encoding="utf-8")
        found: dict[str, Any] = {"groups": []}
        for fusion_mib, cycle_ms in settings_of_horovod:
            settings = {"HOROVOD_FUSION_THRESHOLD": str(fusion_mib * 2**20), "HOROVOD_CYCLE_TIME": str(cycle_ms)}
            first = not found["groups"]
            part = started("all" if first else "groups", shapes, processors, settings)
            names = {"fusion_mib": fusion_mib, "cycle_ms": cycle_ms}
            rows = [names | row for row in part.pop("groups")]
            print(*(group_line(row) for row in rows), sep="\n", flush=True)
            found["groups"] += rows
            found |= part
        found["wire"], found["wire_missing"] = counted(shapes, processors)
    return found


def add_fits(found: dict[str, Any]) -> None:
    """Lines through the sizes of either type, by bytes on the wire."""
    rows = {wire: [r for r in found["sizes"] if r["wire"] == wire] for wire in WIRES}
    found["fits"] = {w: fitted([r["wire_bytes"] for r in s], [r["seconds"] for r in s]) for w, s in rows.items()}


def group_line(r: dict[str, Any]) -> str:
    """A row of the table of groups."""
    setting = f"{r['fusion_mib']:>4} MiB {r['cycle_ms']:>4g} ms" if "fusion_mib" in r else "as it was started"
    how = "one group" if r["grouped"] else f"{r['tensors']} calls"
    sent = f"{r['wire_bytes'] / 1e6:>7.1f} MB {r['seconds'] * 1e3:>9.1f} ms"
    return f"{setting}  {r['model']:<9} {r['wire']} {how:<10} {sent}"


def show(found: dict[str, Any]) -> None:
    """Print what was found, but for the groups."""
    for wire in WIRES:
        for r in (r for r in found["sizes"] if r["wire"] == wire):
            rate = r["wire_bytes"] / r["seconds"] / 1e9
            print(f"{wire} {r['wire_bytes'] / 1e6:>10.3f} MB {r['seconds'] * 1e3:>9.2f} ms {rate:>6.2f} GB/s")
    for name, fit in {"MPI alone": found["link"], **found["fits"]}.items():
        print(f"{name:<9} {fit['alpha_s'] * 1e6:>8.1f} us + bytes x {fit['beta_s'] * 1e9:.3f} ns")
    for r in found.get("wire", []):
        print(
            f"{r['model']:<9} {r['wire']} sent by a rank: {r['counted'] / 1e6:.2f} MB, formula {r['formula'] / 1e6:.2f}"
        )
    if found.get("wire_missing"):
        print("bytes on the wire not counted:", found["wire_missing"])


def main() -> None:
    """Measure, print the tables and write them as JSON."""
    from parallel.launchers import launched_rank, launched_size

    parser = argparse.ArgumentParser(description="measure the allreduce: latency, bandwidth, fusion, bytes on the wire")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    processors = max(1, len(os.sched_getaffinity(0)) // 2)
    parser.add_argument("--processors", type=int, default=processors, help="and threads of a rank that is started here")
    parser.add_argument("--settings", type=int, default=len(SETTINGS), help="of Horovod, how many of those tried")
    parser.add_argument("--worker", choices=("all", "groups", "wire"), help=argparse.SUPPRESS)  # a rank started here
    parser.add_argument("--shapes", type=Path, help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.worker:
        pin(launched_rank(), opts.processors)
        work(opts.worker, json.loads(opts.shapes.read_text(encoding="utf-8")), opts.json)
        return
    if launched_size() == 1:
        found = measured(opts.processors, SETTINGS[: opts.settings])
    else:
        with tempfile.TemporaryDirectory() as folder:
            output = Path(folder, "found.json")
            work("all", gradient_shapes(), output)
            if launched_rank() != 0:
                return
            found = json.loads(output.read_text(encoding="utf-8"))
        print(*(group_line(row) for row in found["groups"]), sep="\n")
    add_fits(found)
    show(found)
    if opts.json:
        report.write(opts.json, found)


if __name__ == "__main__":
    main()
