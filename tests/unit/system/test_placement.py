"""CPUs, threads and pinning of ranks: what is chosen, what is said, what is warned of."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from system import cgroups, placement
from system.placement import Placement, cpu_quota, describe, faults, job_cpus, numbers, ranges, threads_per_rank

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """Makes a machine of `cpus` CPUs, of which this process may use `allowed`, with control groups `files`."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)

    def make(cpus: int, allowed: int, lines: str = "0::/job/step\n", **files: str) -> None:
        monkeypatch.setattr(os, "cpu_count", lambda: cpus)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(allowed)))
        (tmp_path / "groups").write_text(lines, encoding="utf-8")
        monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "groups")
        monkeypatch.setattr(cgroups, "ROOT", tmp_path / "tree")
        for name, text in files.items():
            file = tmp_path / "tree" / name.replace("__", ".").replace("_in_", "/")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="ascii")

    return make


def test_threads_of_ranks_that_are_not_pinned(machine: Machine) -> None:
    machine(16, 16)
    assert threads_per_rank(1) == 16
    assert threads_per_rank(4) == 4
    assert threads_per_rank(32) == 1


def test_threads_of_a_pinned_rank(machine: Machine) -> None:
    machine(16, 3)
    assert threads_per_rank(4) == 3


def test_the_environment_has_the_last_word(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(16, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert threads_per_rank(4) == 7


def test_the_cpus_of_a_job_are_shared_though_the_node_has_more(machine: Machine) -> None:
    """A batch system's or container's part of the node is no pinning of a rank."""
    machine(64, 8, job_in_cpuset__cpus__effective="0-7\n")
    assert job_cpus() == 8
    assert threads_per_rank(2) == 4


def test_version_1_groups(machine: Machine) -> None:
    lines = "4:cpuset:/job\n3:cpu,cpuacct:/job\n"
    files = {"cpu_in_job_in_cpu__cfs_quota_us": "300000\n", "cpu_in_job_in_cpu__cfs_period_us": "100000\n"}
    machine(64, 8, lines, cpuset_in_job_in_cpuset__cpus="0-3,8-11\n", **files)
    assert job_cpus() == 8
    assert cpu_quota() == 3.0
    assert threads_per_rank(2) == 2  # a share of 1.5 CPUs


@pytest.mark.parametrize(
    ("text", "ranks", "threads"), [("250000 100000", 1, 3), ("400000 100000", 2, 2), ("max 100000", 2, 8)]
)
def test_a_quota_bounds_threads(machine: Machine, text: str, ranks: int, threads: int) -> None:
    # the group of the whole job, above that of the step
    machine(16, 16, job_in_cpu__max=text)
    assert threads_per_rank(ranks) == threads


def test_without_control_groups(machine: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine(6, 6)
    monkeypatch.setattr(cgroups, "GROUPS", tmp_path / "absent")
    assert (job_cpus(), cpu_quota()) == (6, float("inf"))


def test_lists_of_cpus() -> None:
    assert numbers("0-2,5,8-9") == (0, 1, 2, 5, 8, 9)
    assert ranges((9, 0, 1, 2, 5, 8)) == "0-2,5,8-9"


def node(host: str, first: int, *cpus: range, there: int = 48, threads: int | None = None) -> list[Placement]:
    """Ranks of a node with 24 CPUs on each of two sockets."""
    return [
        Placement(first + n, host, tuple(own), there, threads or len(own), tuple(sorted({cpu // 24 for cpu in own})))
        for n, own in enumerate(cpus)
    ]


def test_pinning_in_words() -> None:
    halves = range(24), range(24, 48)
    said = "rank 0: cpus 0-23 (socket 0), rank 1: cpus 24-47 (socket 1); 24 threads per rank"
    assert describe(node("a", 0, *halves)) == said
    two = [*node("a", 0, *halves), *node("b", 2, *halves)]
    each = "rank 0 of each node: cpus 0-23 (socket 0), rank 1 of each node: cpus 24-47 (socket 1); 24 threads per rank"
    assert describe(two) == each
    unlike = [*node("a", 0, range(24)), *node("b", 1, range(12, 36))]
    said = "rank 0 on a: cpus 0-23 (socket 0), rank 1 on b: cpus 12-35 (sockets 0-1); 24 threads per rank"
    assert describe(unlike) == said
    free = node("a", 0, range(48), range(48), threads=24)
    assert describe(free) == "none: a rank may use all 48 CPUs of its node; 24 threads per rank"
    eight = node("a", 0, *(range(6 * n, 6 * n + 6) for n in range(8)))
    assert "rank 3: cpus 18-23 (socket 0), ..., rank 7: cpus 42-47 (socket 1)" in describe(eight)


@pytest.mark.parametrize(
    "good",
    [
        node("a", 0, range(24), range(24, 48)),
        node("a", 0, range(48), range(48), threads=24),
        node("a", 0, range(48)),
        node("a", 0, range(24), there=24),
    ],
    ids=["sockets", "not pinned", "alone", "all of a small job"],
)
def test_good_placements(good: list[Placement]) -> None:
    assert faults(good) == []


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (node("a", 0, range(24), range(24)), "a: several ranks are pinned to the same CPUs 0-23 of 48;"),
        (node("a", 0, range(1), range(1, 2)), "a: 2 ranks are pinned to 2 of 48 CPUs, the rest is idle:"),
        (node("a", 0, range(48), range(48)), "a: 96 threads of 2 ranks for 48 CPUs; set OMP_NUM_THREADS=24"),
        (node("a", 0, range(24), range(24, 48), threads=25), "a: 50 threads of 2 ranks for 48 CPUs;"),
    ],
    ids=["the same", "a core each", "too many", "one too many"],
)
def test_bad_placements(bad: list[Placement], said: str) -> None:
    assert faults(bad)[0].startswith(said)


def test_more_threads_than_cpus_of_a_rank() -> None:
    found = faults(node("a", 0, range(1), range(1, 2), there=2, threads=4))
    assert found[-1].startswith("a: 4 threads per rank on 1 CPU; set OMP_NUM_THREADS=1")


def test_one_thread_that_the_site_set_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    alone = node("a", 0, range(24), range(24, 48), threads=1)
    assert faults(alone) == []
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert faults(alone) == [
        "a: 1 thread per rank for 24 CPUs: OMP_NUM_THREADS=1 is set, as some sites do for every job; unset "
        "OMP_NUM_THREADS, or set it to 24"
    ]
    # A CPU each: one thread is right.
    assert faults(node("a", 0, range(1), range(1, 2), there=2, threads=1)) == []


def test_nodes_with_the_same_fault_are_named_once() -> None:
    both = [*node("a", 0, range(1)), *node("b", 1, range(1))]
    assert len(faults(both)) == 1


def test_lines_at_the_start_of_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from parallel.comm import SoloComm
    from parallel.job import pinning  # loads TensorFlow

    monkeypatch.setattr(placement, "job_cpus", lambda: 2)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    assert pinning(SoloComm()) == ["pinning     none: a rank may use all 2 CPUs of its node; 2 threads per rank"]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert pinning(SoloComm())[1].startswith("WARNING     ")
