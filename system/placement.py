"""Placement of a rank: the CPUs it may use, its number of threads, and conflicts with other ranks of the node.

Without TensorFlow, because the number of threads is chosen before it starts any.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from system import cgroups

CPUS = Path("/sys/devices/system/cpu")
# Lines about many ranks list this many and the last.
_SHOWN = 4


@dataclass(frozen=True)
class Placement:
    """One rank's share of its node.

    Attributes:
        rank: over all nodes.
        host: name of the node.
        cpus: CPUs (hardware threads) to which the launcher pinned the process.
        there: number of CPUs of the node that the job may use.
        threads: number of compute threads.
        sockets: sockets of the CPUs; empty if unknown.
    """

    rank: int
    host: str
    cpus: tuple[int, ...]
    there: int
    threads: int
    sockets: tuple[int, ...] = ()

    @property
    def pinned(self) -> bool:
        """Whether the rank may use only some of the job's CPUs."""
        return len(self.cpus) < self.there


def placement(rank: int, local_size: int) -> Placement:
    """Placement of this process, one of `local_size` ranks on its node."""
    cpus = tuple(sorted(os.sched_getaffinity(0)))
    return Placement(
        rank, socket.gethostname(), cpus, max(len(cpus), job_cpus()), threads_per_rank(local_size), sockets_of(cpus)
    )


def threads_per_rank(local_size: int) -> int:
    """Threads for one of `local_size` ranks on this node.

    `OMP_NUM_THREADS` if set. Otherwise the CPUs of the process: all of them if the launcher pinned it (they are then
    fewer than the job's), else an equal share. Never more than the share of a container's CPU quota: threads beyond it
    are paused in the middle of a kernel while the others wait.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit():
        return max(1, int(given))
    allowed = len(os.sched_getaffinity(0))
    share = allowed if allowed < job_cpus() else allowed // local_size
    # a quota of 1.5 CPUs is worth two threads
    quota = -(-cpu_quota() // local_size)
    return max(1, int(min(share, quota)))


def job_cpus() -> int:
    """Number of CPUs of this node that the job may use: those of its control group, else all."""
    for names in (["cpuset.cpus.effective"], ["cpuset.effective_cpus"], ["cpuset.cpus"]):
        for (text,) in cgroups.settings("cpuset", names):
            if text:
                return len(numbers(text))
    return os.cpu_count() or 1


def cpu_quota() -> float:
    """CPU quota of this process's control groups, in CPUs; infinite without a quota."""
    quotas = [float("inf")]
    for (text,) in cgroups.settings("cpu", ["cpu.max"]):
        quota, period = text.split()
        quotas += [int(quota) / int(period)] if quota != "max" else []
    for quota, period in cgroups.settings("cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]):
        quotas += [int(quota) / int(period)] if int(quota) > 0 else []
    return min(quotas)


def sockets_of(cpus: Iterable[int]) -> tuple[int, ...]:
    """Sockets of these CPUs, ascending; empty if unknown."""
    try:
        files = [CPUS / f"cpu{cpu}" / "topology" / "physical_package_id" for cpu in cpus]
        return tuple(sorted({int(file.read_text(encoding="ascii")) for file in files}))
    except (OSError, ValueError):
        return ()


def numbers(text: str) -> tuple[int, ...]:
    """Parse the kernel's list of CPUs: `0-2,5` is (0, 1, 2, 5)."""
    ends = [part.split("-") for part in text.split(",")]
    return tuple(cpu for end in ends for cpu in range(int(end[0]), int(end[-1]) + 1))


def ranges(cpus: Sequence[int]) -> str:
    """Inverse of `numbers`."""
    runs: list[list[int]] = []
    for cpu in sorted(cpus):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def describe(placements: Sequence[Placement]) -> str:
    """Describe pinning and threads of all ranks in one line; identical nodes are listed once."""
    nodes = _by_host(placements)
    if not any(p.pinned for p in placements):
        counts = sorted({p.there for p in placements})
        each = " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        return f"none: a rank may use all {each} CPUs of its node; {_threads(placements)}"
    patterns = {tuple((p.cpus, p.threads) for p in node) for node in nodes.values()}
    if len(nodes) > 1 and len(patterns) == 1:
        first = next(iter(nodes.values()))
        parts = [f"rank {number} of each node: {_cpus(p)}" for number, p in enumerate(first)]
    else:
        many = len(nodes) > 1
        parts = [f"rank {p.rank}{f' on {p.host}' if many else ''}: {_cpus(p)}" for p in placements]
    if len(parts) > _SHOWN + 2:
        parts = [*parts[:_SHOWN], "...", parts[-1]]
    return f"{', '.join(parts)}; {_threads(placements)}"


def faults(placements: Sequence[Placement]) -> list[str]:
    """Faults of the placement, each as `HOST: FAULT; FIX`; a fault that several nodes share is listed once."""
    found: list[str] = []
    for host, node in _by_host(placements).items():
        for fault in _node_faults(node):
            if not any(fault == other.split(": ", 1)[1] for other in found):
                found.append(f"{host}: {fault}")
    return found


def _node_faults(node: Sequence[Placement]) -> list[str]:
    ranks, there = len(node), node[0].there
    each = max(1, there // ranks)
    cure = f"mpirun -map-by ppr:{ranks}:node:PE=CORES --bind-to core with the cores of a rank (run_train.sh does that)"
    found = []
    used = Counter(cpu for p in node if p.pinned for cpu in p.cpus)
    shared = sorted(cpu for cpu, count in used.items() if count > 1)
    if shared and len(shared) < there:
        found.append(f"several ranks are pinned to the same CPUs {ranges(shared)} of {there}; {cure}")
    elif all(p.pinned for p in node) and 2 * len(used) <= there:
        found.append(
            f"{ranks} rank{'s are' if ranks > 1 else ' is'} pinned to {len(used)} of {there} CPUs, the rest is idle: "
            f"by default mpirun binds a rank to one core; {cure}, or --bind-to none"
        )
    elif (total := sum(p.threads for p in node)) > there:
        found.append(f"{total} threads of {ranks} ranks for {there} CPUs; set OMP_NUM_THREADS={each}")
    starved = [p for p in node if p.threads == 1 < (len(p.cpus) if p.pinned else each)]
    if starved and os.environ.get("OMP_NUM_THREADS") == "1":
        cpus = min(len(p.cpus) if p.pinned else each for p in starved)
        found.append(
            f"1 thread per rank for {cpus} CPUs: OMP_NUM_THREADS=1 is set, as some sites do for every job; unset "
            f"OMP_NUM_THREADS, or set it to {cpus}"
        )
    crowded = [p for p in node if p.pinned and p.threads > len(p.cpus)]
    if crowded:
        p = crowded[0]
        found.append(
            f"{p.threads} threads per rank on {len(p.cpus)} CPU{'s' if len(p.cpus) > 1 else ''}; set "
            f"OMP_NUM_THREADS={len(p.cpus)}, or give a rank more CPUs: {cure}"
        )
    return found


def _by_host(placements: Sequence[Placement]) -> dict[str, list[Placement]]:
    nodes: dict[str, list[Placement]] = {}
    for p in placements:
        nodes.setdefault(p.host, []).append(p)
    return nodes


def _cpus(p: Placement) -> str:
    sockets = f" (socket{'s' if len(p.sockets) > 1 else ''} {ranges(p.sockets)})" if p.sockets else ""
    return f"cpus {ranges(p.cpus)}{sockets}"


def _threads(placements: Sequence[Placement]) -> str:
    counts = sorted({p.threads for p in placements})
    if len(counts) > 1:
        return f"{counts[0]} to {counts[-1]} threads per rank"
    return f"{counts[0]} thread{'s' if counts[0] > 1 else ''} per rank"
