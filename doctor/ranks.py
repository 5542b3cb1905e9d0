"""Judge the reports of the trial launch's ranks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from doctor.job import Task
from doctor.rank import MESSAGE_BYTES
from doctor.report import Finding, failed, passed, warned
from system.csv_tables import counted
from system.placement import Placement, describe, faults

Reports = Sequence[dict[str, Any]]
# Slower than this, an allreduce of EfficientDet-D0's 16 MB alone takes longer than half a second.
SLOW_BYTES_S = 30e6
_SAME_ENVIRONMENT = "use one environment and one copy of this folder on a file system shared by all nodes"


def own_errors(ranks: Reports) -> Iterator[Finding]:
    """Errors of checks on the ranks."""
    for report in ranks:
        for error in report["errors"]:
            yield failed("rank", f"rank {report['rank']} on {report['host']}: {error}", "see the error")


def versions(ranks: Reports) -> Iterator[Finding]:
    """Whether all nodes have the same packages and the same code."""
    different = [f"{name}: {_who(ranks, lambda r, n=name: r['versions'][n])}" for name in _differing(ranks)]
    if different:
        yield failed("versions", f"ranks differ in {'; '.join(different)}", _SAME_ENVIRONMENT)
    elif len(ranks) > 1:
        yield passed("versions", "the same packages and the same code on all ranks")


def devices(ranks: Reports, gpus: bool) -> Iterator[Finding]:
    """Devices of the ranks; GPUs that TensorFlow cannot use, or that ranks share."""
    found = [report["devices"] for report in ranks]
    words = found[0]["words"] if len({d["words"] for d in found}) == 1 else "; ".join(d["words"] for d in found[:4])
    blind = [r for r in ranks if gpus and r["devices"]["unused"]]
    crowded = [r for r in ranks if 0 < r["devices"]["tensorflow"] < r["local_size"]]
    if blind:
        first = blind[0]
        found, _, fix = first["devices"]["unused"].rpartition("; ")
        yield failed("devices", f"{first['host']}: {found}", fix)
    elif crowded:
        first = crowded[0]
        yield warned(
            "devices",
            f"{first['local_size']} ranks on {first['host']} share {counted(first['devices']['tensorflow'], 'GPU')}",
            "one rank per GPU: set NP, or the tasks per node",
        )
    else:
        yield passed("devices", words)


def placed(ranks: Reports) -> Iterator[Finding]:
    """CPUs and threads of the ranks."""
    placements = [_placement(report["placement"]) for report in ranks]
    wrong = faults(placements)
    for fault in wrong:
        found, _, fix = fault.partition("; ")
        yield warned("pinning", found, fix)
    if not wrong:
        yield passed("pinning", describe(placements))


def paths(ranks: Reports) -> Iterator[Finding]:
    """Whether all ranks see the same at the paths of the options."""
    options = list(ranks[0]["inputs"])
    good = []
    for option in options:
        found = [report["inputs"][option] for report in ranks]
        if len(set(found)) > 1:
            who = _who(ranks, lambda r, o=option: r["inputs"][o])
            yield failed(
                f"--{option}", f"nodes see different things: {who}", "use a path on a file system shared by all nodes"
            )
        elif found[0] == "missing":
            yield failed(f"--{option}", "no such file or folder", f"correct --{option}")
        else:
            good.append(f"--{option} {found[0].split(',')[0]}")
    if good:
        yield passed("paths", f"seen by all ranks: {'; '.join(good)}")


def log_folder(ranks: Reports, task: Task) -> Iterator[Finding]:
    """Whether every rank can write to `--log_dir`, and whether it is the same folder for all."""
    if task.log_dir is None:
        return
    cannot = [f"rank {r['rank']} on {r['host']}: {r['log_dir']['error']}" for r in ranks if r["log_dir"]["error"]]
    apart = sorted({r["host"] for r in ranks if r["shared"] is False})
    if cannot:
        yield failed(
            "--log_dir", f"cannot be written by {cannot[0]}", "choose another --log_dir, or correct its permissions"
        )
    elif apart:
        yield warned(
            "--log_dir",
            f"{', '.join(apart[:4])} {'do' if len(apart) > 1 else 'does'} not see a file that rank 0 wrote there",
            "choose a --log_dir on a file system shared by all nodes; otherwise maps lack the samples of other nodes",
        )
    else:
        yield passed("--log_dir", f"{task.log_dir} can be written by all ranks")


def allreduce(ranks: Reports) -> Iterator[Finding]:
    """Whether sums are correct, and how fast they are."""
    if len(ranks) == 1:
        return
    if not all(report["sum_right"] for report in ranks):
        wrong = [report["rank"] for report in ranks if not report["sum_right"]]
        yield failed(
            "allreduce", f"wrong sum on ranks {wrong}", "Horovod or its MPI is broken: rebuild it (./setup_env.sh)"
        )
        return
    small, large = (max(report[name] for report in ranks) for name in ("small_s", "large_s"))
    found = f"correct; {small * 1e6:.0f} us for one number, {MESSAGE_BYTES / large / 1e6:.0f} MB/s for 1 MB"
    if MESSAGE_BYTES / large < SLOW_BYTES_S:
        yield warned(
            "allreduce",
            found,
            "check that the fast network is used (IFACE=ib0, or UCX); --fp16_allreduce halves the bytes, "
            "--accumulate_batch makes updates less frequent",
        )
    else:
        yield passed("allreduce", found)


def _placement(stored: dict[str, Any]) -> Placement:
    """Restore a placement from JSON, which stores tuples as lists."""
    plain: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in stored.items()}
    return Placement(**plain)


def _differing(ranks: Reports) -> list[str]:
    return [name for name in ranks[0]["versions"] if len({report["versions"].get(name) for report in ranks}) > 1]


def _who(ranks: Reports, value: Any) -> str:
    """The distinct values, each with the first rank that has it."""
    first: dict[Any, str] = {}
    for report in ranks:
        first.setdefault(value(report), f"rank {report['rank']} ({report['host']})")
    return ", ".join(f"{who} {what}" for what, who in first.items())
