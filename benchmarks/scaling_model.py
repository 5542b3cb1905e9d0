"""How a step scales to n ranks: an alpha-beta model of its allreduces, from measured step times and links.

python -m benchmarks.scaling_model [--allreduce FILE] [--scaling FILE] [--png FILE] [--json FILE] [--sync_bn]

An allreduce of b bytes on n ranks over a link with latency alpha and beta seconds per byte takes

    ring            2 (n - 1) alpha        + 2 (n - 1) / n b beta
    tree            2 ceil(log2 n) alpha   + 2 (n - 1) / n b beta       (recursive halving, then doubling)

(Thakur, Rabenseifner, Gropp 2005, "Optimization of Collective Communication Operations in MPICH"). With several ranks
on a node: an allreduce within each node, and one between the nodes, whose ranks share one adapter. Around it, every
call of Horovod costs a fixed time (waiting for the cycle, negotiation, the operation in TensorFlow) and a time per byte
(copies to and from the fusion buffer, casts, additions); both are measured by `benchmarks.allreduce`. A step ends when
the slowest rank is done: n step times with a normal spread have a largest one.

What it leaves out, and where it breaks: docs/scaling.md.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass, replace
from math import ceil, log2
from pathlib import Path
from statistics import NormalDist
from typing import Any

RESULTS = Path(__file__).parent / "results"
COSTS = Path(__file__).parents[1] / "training" / "costs.json"
RANKS = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Ranks as fast as the measured machine (one core), and as a socket of some 20 to 30 such cores.
SPEEDS = (1.0, 16.0)
# Field of view, px -> how its step is made so that it fits into the memory of a rank (docs/performance.md).
FIELDS = {1024: "none", 2048: "blocks"}
ALGORITHMS = ("ring", "tree")
WIRE_BYTES = {"fp32": 4, "fp16": 2}
# One call's negotiation: a vector of bits, one for every tensor that is known (Horovod's response cache), to all ranks.
NEGOTIATION_BYTES = 128


@dataclass(frozen=True)
class Link:
    """A message of b bytes takes alpha_s + b x beta_s seconds."""

    name: str
    alpha_s: float
    beta_s: float


# 10 Gb/s is 1.25 GB/s, of which TCP with 1500-byte frames leaves 1448 of 1538 bytes. Latency: MPI over the kernel's TCP
# on such adapters is usually said to be 20 to 50 us; not measured here.
ETHERNET_10 = Link("10 GbE", 30e-6, 1 / (1.25e9 * 1448 / 1538))
# 100 Gb/s is 12.5 GB/s; the OSU micro-benchmarks on EDR adapters are usually quoted with 1 to 1.5 us and 12 GB/s; not
# measured here. The latency is between two nodes behind one switch.
INFINIBAND_100 = Link("100 Gb InfiniBand", 1.5e-6, 1 / 12e9)


@dataclass(frozen=True)
class Network:
    """Ranks that share nodes.

    Attributes:
        intra: between ranks of a node.
        inter: between nodes; one adapter per node.
        per_node: ranks of a node.
        algorithm: of the allreduce, one of `ALGORITHMS`.
    """

    intra: Link
    inter: Link
    per_node: int = 2
    algorithm: str = "ring"

    def allreduce_s(self, ranks: int, nbytes: float) -> float:
        """Seconds of one allreduce; `ranks` beyond one node must fill their nodes."""
        if ranks <= self.per_node:
            return allreduce_s(self.algorithm, self.intra, ranks, nbytes)
        if ranks % self.per_node:
            raise ValueError(f"{ranks} ranks do not fill nodes of {self.per_node}")
        within = allreduce_s(self.algorithm, self.intra, self.per_node, nbytes)
        return within + allreduce_s(self.algorithm, self.inter, ranks // self.per_node, nbytes)


def allreduce_s(algorithm: str, link: Link, ranks: int, nbytes: float) -> float:
    """Seconds of one allreduce between ranks that all have a link of their own."""
    if ranks == 1:
        return 0.0
    rounds = {"ring": ranks - 1, "tree": ceil(log2(ranks))}[algorithm]
    return 2 * rounds * link.alpha_s + 2 * (ranks - 1) / ranks * nbytes * link.beta_s


@dataclass(frozen=True)
class Host:
    """What a call of Horovod costs besides the network.

    Attributes:
        call_s: fixed, of one call.
        byte_s: type on the wire -> per byte on the wire.
        fusion_bytes: largest message; a group that is larger goes in several.
    """

    call_s: float
    byte_s: dict[str, float]
    fusion_bytes: float = 128 * 2**20

    def mean_s(self, network: Network, ranks: int, nbytes: float, wire: str = "fp32") -> float:
        """Seconds of one `Comm.mean` or `Comm.sum`; `nbytes` are those on the wire."""
        messages = max(1, ceil(nbytes / self.fusion_bytes))
        negotiation = replace(network, algorithm="tree").allreduce_s(ranks, NEGOTIATION_BYTES)
        reduced = messages * network.allreduce_s(ranks, nbytes / messages)
        return self.call_s + nbytes * self.byte_s[wire] + negotiation + reduced


@dataclass(frozen=True)
class Workload:
    """What a network sends in a step (`docs/distributed.md`; counted in `tests/unit/benchmarks/test_scaling_model.py`).

    Attributes:
        name: of the network.
        gradients: trainable numbers.
        moving: moving statistics.
        norms: layers that SyncBN joins.
        norm_channels: their channels, all together.
    """

    name: str
    gradients: int
    moving: int
    norms: int
    norm_channels: int


WORKLOADS = (
    Workload("effdetd0", 4_039_509, 46_112, 100, 23_056),
    Workload("deeplab", 41_050_530, 202_800, 145, 101_144),
)
# The loss's sums (loss and weight) and the number of ranks asked to stop.
SUMS_BYTES = 12


@dataclass(frozen=True)
class Setting:
    """One curve.

    Attributes:
        workload: the network.
        compute_s: a step of one rank alone.
        network: the links.
        host: Horovod's own cost.
        wire: type of the gradients on the wire, `fp32` or `fp16`.
        overlap: share of the gradients' allreduce that is hidden behind computing.
        variation: standard deviation of a rank's step times over their mean.
        sync_bn: whether batch norm is over all ranks.
    """

    workload: Workload
    compute_s: float
    network: Network
    host: Host
    wire: str = "fp32"
    overlap: float = 0.0
    variation: float = 0.0
    sync_bn: bool = False

    def communication_s(self, ranks: int) -> float:
        """Seconds of a step in which communication is not hidden."""
        if ranks == 1:
            return 0.0

        def mean_s(nbytes: float, wire: str = "fp32") -> float:
            return self.host.mean_s(self.network, ranks, nbytes, wire)

        load = self.workload
        gradients = (1 - self.overlap) * mean_s(load.gradients * WIRE_BYTES[self.wire], self.wire)
        total = gradients + mean_s(SUMS_BYTES) + mean_s(load.moving * 4)
        if self.sync_bn:
            # Forward: sum and sum of squares per channel, and a count; backward: two sums per channel.
            channels = load.norm_channels / load.norms
            total += load.norms * (mean_s(2 * channels * 4 + 4) + mean_s(2 * channels * 4))
        return total

    def step_s(self, ranks: int) -> float:
        """Seconds of a step."""
        return self.compute_s * (1 + self.variation * largest(ranks)) + self.communication_s(ranks)

    def efficiency(self, ranks: int) -> float:
        """Images per second and rank, over those of one rank alone."""
        return self.compute_s / self.step_s(ranks)

    def shortest_step_s(self, ranks: int, target: float) -> float:
        """The compute time from which on the efficiency is at least `target`; infinite when stragglers forbid it."""
        room = 1 / target - 1 - self.variation * largest(ranks)
        return self.communication_s(ranks) / room if room > 0 else float("inf")


def largest(ranks: int) -> float:
    """Expected largest of n standard normal numbers (Blom 1958, Statistical Estimates and Transformed Beta-Variables).

    Up to 0.05 off: 0.59 for two, where it is 0.56.
    """
    return NormalDist().inv_cdf((ranks - 0.375) / (ranks + 0.25))


def compute_s(model: str, img_size: int, recompute: str, speed: float) -> float:
    """Seconds of a step with batch 1 on one rank, from the costs that the planner uses.

    Args:
        model: network.
        img_size: px.
        recompute: as the option.
        speed: of a rank, as a multiple of the measured machine's.
    """
    rows = json.loads(COSTS.read_text(encoding="utf-8"))["costs"]
    fixed, slope = next(r["seconds"] for r in rows if (r["model"], r["recompute"]) == (model, recompute))
    return float(fixed + slope * img_size**2 / 1e6) / speed


def measured_host(found: dict[str, Any]) -> tuple[Link, Host]:
    """The link between the ranks of a node and Horovod's own cost, from the result of `benchmarks.allreduce`.

    Between two ranks an allreduce moves each byte once, so what `mean` takes per byte beyond the bare link is the
    host's; and so is what a call takes beyond the latencies of negotiation and message, there and back.
    """
    link = Link("shared memory", found["link"]["alpha_s"], found["link"]["beta_s"])
    fits = {wire: found["fits"][wire] for wire in WIRE_BYTES}
    byte_s = {wire: max(0.0, fit["beta_s"] - link.beta_s) for wire, fit in fits.items()}
    return link, Host(max(0.0, fits["fp32"]["alpha_s"] - 4 * link.alpha_s), byte_s)


def settings(
    allreduce: dict[str, Any], scaling: dict[str, Any], per_node: int, sync_bn: bool, overlap: float | None = None
) -> list[dict[str, Any]]:
    """Every curve: its names and its `Setting`; without `overlap`, that which was measured."""
    local, host = measured_host(allreduce)
    summary = scaling["summary"]
    hidden = {wire: summary[wire]["overlapped"] if overlap is None else overlap for wire in WIRE_BYTES}
    return [
        {"model": load.name, "img_size": size, "link": link.name, "algorithm": algorithm, "wire": wire, "speed": speed,
         "setting": Setting(load, compute_s(load.name, size, recompute, speed),
                            Network(local, link, per_node, algorithm), host, wire,
                            hidden[wire], summary["variation"], sync_bn)}
        for load in WORKLOADS for size, recompute in FIELDS.items() for speed in SPEEDS
        for link in (ETHERNET_10, INFINIBAND_100) for algorithm in ALGORITHMS for wire in WIRE_BYTES
    ]  # fmt: skip


def table(curves: list[dict[str, Any]], ranks: tuple[int, ...] = (4, 16, 64, 256, 1024)) -> str:
    """Efficiency as Markdown; and the step at which 1024 ranks are still 0.9 without stragglers."""
    head = ["model", "px", "step s", "link", "allreduce", "wire", *map(str, ranks), "0.9 of 1024 from a step of"]
    rows = [head, ["---"] * len(head)]
    for curve in curves:
        s: Setting = curve["setting"]
        shortest = replace(s, variation=0.0).shortest_step_s(1024, 0.9)
        names = [
            curve["model"],
            str(curve["img_size"]),
            f"{s.compute_s:.2f}",
            curve["link"],
            curve["algorithm"],
            s.wire,
        ]
        rows.append([*names, *(f"{s.efficiency(n):.3f}" for n in ranks), f"{shortest:.2f} s"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def draw(curves: list[dict[str, Any]], path: Path) -> None:
    """One panel per field of view and speed; the ring, since it is the worse of the two."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(
        len(SPEEDS), len(FIELDS), figsize=(10, 7), sharex=True, sharey=True, layout="constrained"
    )
    colors, styles = {"effdetd0": "tab:blue", "deeplab": "tab:red"}, {"fp32": "-", "fp16": "--"}
    markers = {ETHERNET_10.name: "o", INFINIBAND_100.name: "s"}
    for curve in (c for c in curves if c["algorithm"] == "ring"):
        axis = axes[SPEEDS.index(curve["speed"])][list(FIELDS).index(curve["img_size"])]
        s: Setting = curve["setting"]
        axis.plot(
            RANKS, [s.efficiency(n) for n in RANKS], styles[s.wire], marker=markers[curve["link"]], markersize=4,
            color=colors[curve["model"]], label=f"{curve['model']}, {curve['link']}, {s.wire}",
        )  # fmt: skip
        axis.set_title(f"{curve['img_size']} px, ranks {curve['speed']:g} x as fast as measured", fontsize=10)
    stragglers = curves[0]["setting"].variation
    for axis in axes.flat:
        axis.plot(
            RANKS, [1 / (1 + stragglers * largest(n)) for n in RANKS], ":", color="black", label="stragglers alone"
        )
        axis.set(xscale="log", xticks=RANKS, ylim=(0, 1.02))
        axis.set_xticks(RANKS, map(str, RANKS), fontsize=7)
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0][0].legend(fontsize=6.5, loc="lower left")
    figure.supxlabel("ranks")
    figure.supylabel("weak-scaling efficiency, predicted")
    figure.savefig(path, dpi=80)


def main() -> None:
    """Predict, print the table, draw."""
    parser = argparse.ArgumentParser(description="predict the scaling of a step from measured parts")
    parser.add_argument("--allreduce", type=Path, default=RESULTS / "2026-11-22-allreduce.json")
    parser.add_argument("--scaling", type=Path, default=RESULTS / "2026-11-22-scaling.json")
    parser.add_argument("--per_node", type=int, default=2, help="ranks of a node")
    parser.add_argument("--overlap", type=float, help="hidden share of the gradients' allreduce (default: as measured)")
    parser.add_argument("--sync_bn", action="store_true")
    parser.add_argument("--png", type=Path, help="where to draw the curves")
    parser.add_argument("--json", type=Path, help="where to write the numbers")
    opts = parser.parse_args()
    allreduce, scaling = (json.loads(path.read_text(encoding="utf-8")) for path in (opts.allreduce, opts.scaling))
    curves = settings(allreduce, scaling, opts.per_node, opts.sync_bn, opts.overlap)
    print(table(curves))
    if opts.png:
        draw(curves, opts.png)
    if opts.json:
        from benchmarks import report

        numbers = [
            {k: v for k, v in c.items() if k != "setting"}
            | {"efficiency": {n: c["setting"].efficiency(n) for n in RANKS}}
            for c in curves
        ]
        report.write(opts.json, {"sync_bn": opts.sync_bn, "per_node": opts.per_node, "curves": numbers})


if __name__ == "__main__":
    main()
