"""The doctor on software, launches, ranks, disk and memory: each check once where all is well and once where not."""

from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path

import pytest

from cohorts.pairing import Case
from doctor import launch, rank, ranks, resources, software
from doctor.job import Launch, read_launch
from doctor.launch import MARK, outcome
from doctor.report import FAIL, PASS, WARN, Finding, passed
from models import build
from parallel.comm import SoloComm
from tests.support.healthy import START, TASK, a_rank, levels, only

# -------------------------------------------------------------------------------------------------- software
from training.planner import Memory


def test_python() -> None:
    assert levels(software.python_version((3, 11))) == [PASS]
    assert levels(software.python_version((3, 9))) == [FAIL]
    assert levels(software.python_version((3, 13))) == [FAIL]


def test_packages_against_pins(tmp_path: Path) -> None:
    pins = tmp_path / "requirements.txt"
    pins.write_text(f'# a pin\nnumpy=={metadata.version("numpy")}\nold==1; python_version < "3.0"\n', encoding="utf-8")
    assert only(software.packages(pins)).found.startswith("all 1 as pinned: numpy ")
    pins.write_text("numpy==1.0\n", encoding="utf-8")
    finding = only(software.packages(pins))
    assert finding.level == WARN
    assert "(pinned ==1.0)" in finding.found
    pins.write_text("no-such-package-here==1.0\n", encoding="utf-8")
    assert only(software.packages(pins)) == Finding(
        FAIL, "packages", "not installed: no-such-package-here", software._SET_UP
    )


def test_horovod(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda _: "0.28.1")
    assert only(software.horovod(START)).found == "0.28.1, built for Open MPI"
    assert levels(software.horovod(replace(START, horovod="0.29.0"))) == [WARN]

    def absent(_: str) -> str:
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "version", absent)
    assert levels(software.horovod(START)) == [FAIL]
    assert levels(software.horovod(replace(START, ranks=1))) == [WARN]


@pytest.mark.parametrize(
    ("built_for", "started_by", "level"),
    [
        ("openmpi", "openmpi", PASS),
        ("mpich", "intel", PASS),
        ("openmpi", "mpich", FAIL),
        ("mpich", "openmpi", FAIL),
        ("unknown", "openmpi", WARN),
        ("openmpi", "", PASS),
    ],
)
def test_launcher_of_another_mpi(built_for: str, started_by: str, level: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: f"/opt/bin/{name}")
    found = software.launcher(replace(START, built_for=built_for, started_by=started_by))
    assert levels(found) == [level]


def test_launcher_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda _: None)
    assert only(software.launcher(START)).found == "mpirun is not on PATH"
    assert levels(software.launcher(replace(START, launcher="none"))) == [PASS]


def test_what_the_script_passes_on(tmp_path: Path) -> None:
    words = [
        "launcher=hydra", "program=mpiexec.hydra", "ranks=4", "hosts=a,b,", "built_for=mpich", "started_by=intel",
        "horovod=0.28.1", "", "env", "A=b c", "mpiexec.hydra", "", "line\nbreak",
    ]  # fmt: skip
    (tmp_path / "job").write_bytes(b"".join(word.encode() + b"\0" for word in words))
    command = ("env", "A=b c", "mpiexec.hydra", "", "line\nbreak")
    expected = Launch("hydra", "mpiexec.hydra", 4, ("a", "b"), "mpich", "intel", "0.28.1", command)
    assert read_launch(tmp_path / "job") == expected


# ---------------------------------------------------------------------------------------------------- launch


def test_output_of_a_launch_is_sorted() -> None:
    lines = [
        f'[1,0]<stdout>:{MARK}["hello", {{"rank": 0, "host": "a"}}]',
        "ssh: something",
        f'{MARK}["rank", {{"rank": 1}}]',
        f'{MARK}["rank", {{"rank": 0}}] trailing',
        f"{MARK}[damaged",
        *(f"line {n}" for n in range(9)),
    ]
    got = outcome(0, 1.0, lines, 2)
    assert got.hellos == [{"rank": 0, "host": "a"}]
    assert [report["rank"] for report in got.ranks] == [0, 1]
    assert got.tail == ["ssh: something", f"{MARK}[damaged", "line 5", "line 6", "line 7", "line 8"]
    assert outcome(0, 1.0, lines, 3).ranks == []  # one is missing


def test_a_launch_that_goes_well() -> None:
    hellos = [{"rank": 0, "host": "a"}, {"rank": 1, "host": "b"}]
    got = launch.Outcome(0, 2.0, hellos, [a_rank(0), a_rank(1, "b")], [], [])
    assert only(launch.judge(START, got, 60)) == passed(
        "ranks", "2 ranks started and found each other in 2.0 s (a: 1, b: 1)"
    )


def test_a_rank_with_an_error_and_ranks_that_never_meet() -> None:
    hellos = [{"rank": 0, "host": "a"}, {"rank": 1, "host": "b"}]
    got = launch.Outcome(2, 2.0, hellos, [], ["it was built for another MPI"], [])
    assert "it was built for another MPI" in only(launch.judge(START, got, 60)).found
    finding = only(launch.judge(START, replace(got, errors=[], code=None), 60))
    assert finding.level == FAIL
    assert "2 ranks started (a: 1, b: 1), but did not finish their report within 60 s" in finding.found


def test_a_machine_that_cannot_be_reached_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "_reason", lambda host: "ssh does not answer" if host == "node2" else "")
    start = replace(START, ranks=3, hosts=("node1", "node2", "node3"))
    got = launch.Outcome(255, 2.0, [{"rank": 0, "host": "node1.cluster"}], [], [], ["no route"])
    finding = only(launch.judge(start, got, 60))
    expected = "only 1 of 3 ranks started (exit code 255) (node1.cluster: 1); not reached: node2 (ssh does not answer)"
    assert finding.found == f"{expected}; output: no route"
    # nothing is found out about any: those that the launcher speaks of
    monkeypatch.setattr(launch, "_reason", lambda _: "")
    assert "not reached: node3;" in only(launch.judge(start, replace(got, tail=["lost node3"]), 60)).found
    # nor that: all that were not heard of; the one that was says its name in full
    assert "not reached: node2; node3" in only(launch.judge(start, replace(got, tail=[]), 60)).found


def test_reasons() -> None:
    assert launch._reason("no-such-host.invalid").startswith("unknown host name")
    assert launch._reason("localhost") == ""


def test_a_launch_that_hangs_is_ended() -> None:
    start = replace(START, command=("bash", "-c", "echo begun; sleep 60 & sleep 60"))
    got = launch.Trial(start, 2.0).wait()
    assert got.code is None
    assert got.seconds < 50
    assert got.tail == ["begun"]


# ----------------------------------------------------------------------------------------------------- ranks


def test_ranks_without_fault() -> None:
    two = [a_rank(0), a_rank(1, "b")]
    assert levels(ranks.own_errors(two)) == []
    assert levels(ranks.versions(two)) == [PASS]
    assert only(ranks.devices(two, True)).found == "4 CPU threads per rank"
    assert levels(ranks.placed(two)) == [PASS]
    assert only(ranks.paths(two)).found == "seen by all ranks: --slide_path 270 entries"
    assert levels(ranks.log_folder(two, TASK)) == [PASS]
    assert only(ranks.allreduce(two)).found == "correct; 20 us for one number, 1049 MB/s for 1 MB"


def test_ranks_with_faults() -> None:
    one = a_rank(0)
    other = {"numpy": "2.0.2", "code": "def"}
    assert only(ranks.own_errors([a_rank(errors=["memory: OSError: x"])])).found == "rank 0 on a: memory: OSError: x"
    finding = only(ranks.versions([one, a_rank(1, "b", versions=other)]))
    assert finding.found == "ranks differ in code: rank 0 (a) abc, rank 1 (b) def"
    unused = "TensorFlow can use none of 2 GPUs, so the CPU is used (a reason; and more); set up for GPUs"
    blind = {"words": "4 CPU threads per rank", "tensorflow": 0, "unused": unused}
    finding = only(ranks.devices([one, a_rank(1, "b", devices=blind)], True))
    assert finding.level == FAIL
    assert finding.found == "b: TensorFlow can use none of 2 GPUs, so the CPU is used (a reason; and more)"
    assert finding.fix == "set up for GPUs"
    assert levels(ranks.devices([a_rank(devices=blind)], False)) == [PASS]  # --no_cuda
    shared = {"words": "GPU 0 of 1 visible here", "tensorflow": 1, "unused": ""}
    assert levels(ranks.devices([a_rank(devices=shared, local_size=2)], True)) == [WARN]
    finding = only(ranks.paths([one, a_rank(1, "b", inputs={"slide_path": "missing"})]))
    assert finding.found == "nodes see different things: rank 0 (a) 270 entries, 0123, rank 1 (b) missing"
    assert levels(ranks.paths([a_rank(inputs={"slide_path": "missing"})])) == [FAIL]
    assert levels(ranks.log_folder([one, a_rank(1, "b", shared=False)], TASK)) == [WARN]
    full = {"there": "/runs", "free": 0, "error": "/runs: No space left on device"}
    assert levels(ranks.log_folder([one, a_rank(1, "b", log_dir=full)], TASK)) == [FAIL]
    assert levels(ranks.allreduce([one, a_rank(1, "b", sum_right=False)])) == [FAIL]
    assert levels(ranks.allreduce([one, a_rank(1, "b", large_s=1.0)])) == [WARN]


def test_ranks_on_one_core_each() -> None:
    one = a_rank(0, cpus=(0,))
    one["placement"]["threads"] = 1
    finding = only(ranks.placed([one]))
    assert finding.level == WARN
    assert (
        finding.found
        == "a: 1 rank is pinned to 1 of 4 CPUs, the rest is idle: by default mpirun binds a rank to one core"
    )
    assert "PE=CORES" in finding.fix


def test_what_one_rank_reports(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # TensorFlow's threads can only be chosen before its first use, which another test may have been.
    monkeypatch.setattr("parallel.devices.use_devices", lambda _: "1 CPU thread per rank")
    (tmp_path / "slides").mkdir()
    (tmp_path / "code.py").write_text("x", encoding="utf-8")
    task = replace(TASK, inputs={"slide_path": tmp_path / "slides"}, log_dir=tmp_path / "runs" / "new")
    rank.examine(SoloComm(), task, tmp_path)
    lines = capfd.readouterr().out.splitlines()
    (report,) = outcome(0, 0.0, lines, 1).ranks
    assert report["errors"] == []
    assert report["inputs"]["slide_path"].startswith("0 entries")
    assert report["log_dir"]["there"] == str(tmp_path)
    assert report["log_dir"]["error"] is None
    assert report["shared"] is True
    assert report["parameters"] == build("effdetd0", 128, 2).count_params()
    assert report["gflop_s"] > 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["code.py", "slides"]  # nothing is left behind


@pytest.mark.parametrize("name", ["train.py", "slides/reader.py", "slides/tiff/tags.py"])
def test_code_that_differs_has_another_version(name: str, tmp_path: Path) -> None:
    code = tmp_path / name
    code.parent.mkdir(parents=True, exist_ok=True)
    code.write_text("a = 1\n", encoding="utf-8")
    before = rank.versions(tmp_path)
    code.write_text("a = 2\n", encoding="utf-8")
    assert rank.versions(tmp_path)["code"] != before["code"]


def test_a_folder_that_cannot_be_written() -> None:
    assert rank.folder(Path("/proc/widefov/log"))["error"].startswith("/proc: ")  # type: ignore[index]
    assert rank.folder(None) is None
    assert rank.seen(Path("/no/such/place")) == "missing"


# ------------------------------------------------------------------------------------------------------ room


def test_disk() -> None:
    # 4 million parameters: 12 bytes x 6 checkpoints and 12 bytes of exports each, and 200 MB
    need = 4_000_000 * 84 + 200_000_000
    for free, level in ((2 * need, PASS), (2 * need - 1, WARN), (need - 1, FAIL)):
        there = {"there": "/runs", "free": free, "error": None}
        assert levels(resources.checkpoints([a_rank(log_dir=there)], TASK)) == [level]
    assert list(resources.checkpoints([a_rank()], replace(TASK, log_dir=None))) == []


def test_stage_dir(tmp_path: Path) -> None:
    (tmp_path / "a.tif").write_bytes(b"x" * 1000)
    cases = [Case("a", tmp_path / "a.tif", None)]
    task = replace(TASK, stage_dir=Path("/scratch"), stage_bytes=1000)
    there = {"there": "/scratch", "free": 10**6, "error": None}
    assert levels(resources.staged([a_rank(stage_dir=there)], task, cases)) == [PASS]
    assert levels(resources.staged([a_rank(stage_dir=there)], replace(task, stage_bytes=999), cases)) == [WARN]
    assert levels(resources.staged([a_rank(stage_dir=there | {"free": 1000})], task, cases)) == [WARN]
    assert levels(resources.staged([a_rank(stage_dir=there | {"error": "read-only"})], task, cases)) == [FAIL]


@pytest.mark.parametrize(("total", "free", "level"), [(64.0, 60.0, PASS), (64.0, 0.5, WARN), (0.5, 0.5, FAIL)])
def test_memory(total: float, free: float, level: str) -> None:
    here = asdict(Memory(total, free, "machine"))
    assert levels(resources.memory([a_rank(memory=here)], TASK)) == [level]


def test_memory_of_several_ranks_on_a_node() -> None:
    each = resources.costs("effdetd0")["none"].step_gib(128, 2)
    here = asdict(Memory(64.0, 3 * each, "machine"))
    assert levels(resources.memory([a_rank(memory=here, local_size=2)], TASK)) == [PASS]
    assert levels(resources.memory([a_rank(memory=here, local_size=4)], TASK)) == [WARN]


def test_memory_of_ranks_with_a_gpu_each() -> None:
    each = resources.costs("effdetd0")["none"].step_gib(128, 2)
    mine, others = (asdict(Memory(gib, gib, "GPU", uuid)) for gib, uuid in ((64.0, "a"), (1.2 * each, "b")))
    two = [a_rank(0, memory=mine, local_size=2), a_rank(1, memory=others, local_size=2)]
    assert levels(resources.memory(two, TASK)) == [PASS]
    assert "GPU 64.0 GiB" not in only(resources.memory(two, TASK)).found
    assert levels(resources.memory([a_rank(memory=others, local_size=2)] * 2, TASK)) == [FAIL]


def test_a_streamed_step_is_left_to_the_planner() -> None:
    streamed = replace(TASK, stream=1024)
    finding = only(resources.memory([a_rank()], streamed))
    assert (finding.level, finding.fix) == (WARN, "train.py --plan says it")
    assert list(resources.duration([a_rank()], streamed)) == []


def test_time_against_the_end_of_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    finding = only(resources.duration([a_rank(), a_rank(1, gflop_s=50.0)], TASK))
    assert finding.level == PASS
    assert "per step of 4 images" in finding.found
    assert "for 1000 steps" in finding.found
    assert "50 GFLOP/s per rank" in finding.found
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1000")
    assert levels(resources.duration([a_rank()], TASK)) == [WARN]
