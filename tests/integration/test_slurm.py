"""run_train.sh as a batch job: where it finds itself, ranks and machines, signals, and the way back into the queue.

srun, scontrol and sinfo are stubs; each call of scontrol is written down.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.bench import Bench
from tests.support.paths import ROOT
from tests.support.stub_launchers import dry_run, heed_interrupts, open_mpi, without_exports

JOB = {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "n[1-2]", "SLURM_CPUS_ON_NODE": "8"}


@pytest.fixture
def slurm(bench: Bench) -> Bench:
    """A node of a job on n1 and n2, with 2 sockets each as SLURM says; submitted from the repository."""
    bench.stub("nproc", "echo 8")
    bench.stub("lscpu", "exit 1")
    bench.stub("sinfo", "printf '2\\n2\\n'")
    bench.stub("srun", "exit 1")
    bench.stub(
        "scontrol",
        f"""echo "$*" >> {bench.folder}/scontrol
case $* in
    "show hostnames n[1-2]") printf 'n1\\nn2\\n' ;;
    "show job 7") printf 'JobId=7 JobName=widefov\\n   JobState=%s Reason=None\\n   Command={ROOT}/run_train.sh\\n' \\
        "$(cat {bench.folder}/state)" ;;
esac""",
    )
    (bench.folder / "state").write_text("RUNNING", encoding="ascii")
    open_mpi(bench)
    return bench


def test_sockets_give_the_ranks_where_nothing_else_does(slurm: Bench) -> None:
    settings, command = dry_run(slurm, "--debug", **JOB)
    tasks = ["--export=ALL", "--kill-on-bad-exit=1", "--ntasks=4", "--cpus-per-task=4", "--cpu-bind=cores"]
    assert command[:8] == ["srun", "--mpi=pmix", *tasks, "--ntasks-per-node=2"]
    assert settings["OMP_NUM_THREADS"] == "4"


def test_gpus_of_the_node_give_the_ranks(slurm: Bench) -> None:
    _, command = dry_run(slurm, "--debug", SLURM_GPUS_ON_NODE="4", **JOB)
    assert command[4] == "--ntasks=8"
    assert command[7] == "--ntasks-per-node=4"


def test_other_launchers_get_the_machines_of_the_job(slurm: Bench) -> None:
    _, command = dry_run(slurm, "--debug", SLURM_NTASKS="4", LAUNCHER="mpirun", **JOB)
    assert without_exports(command)[:5] == ["mpirun", "-np", "4", "--host", "n1:2,n2:2"]


def test_a_copy_finds_where_it_was_submitted(slurm: Bench) -> None:
    spool = slurm.folder / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(ROOT / "run_train.sh", spool)
    slurm.stub("python", f'exec "{sys.executable}" -S "$@"')
    done = slurm.run("bash", spool, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", **JOB)
    assert f" {ROOT}/train.py --debug" in done.stdout, done.stderr
    # What was submitted is gone: the folder it was submitted from.
    slurm.stub("scontrol", "exit 1")
    done = slurm.run("bash", spool, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", SLURM_SUBMIT_DIR=str(ROOT), **JOB)
    assert f" {ROOT}/train.py --debug" in done.stdout, done.stderr
    done = slurm.run("bash", spool, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", **JOB)
    assert done.returncode == 2
    assert "Submit it from its folder" in done.stderr


def ended(slurm: Bench, *arguments: str, code: int = 75, state: str = "RUNNING", **env: str) -> list[str]:
    """What scontrol was asked for by a job whose ranks end with this code."""
    slurm.stub("python", f'if [[ $2 == "1" || $2 == "0" ]]; then exit 0; fi; exec "{sys.executable}" -S "$@"')
    slurm.stub("srun", f"exit {code}")
    (slurm.folder / "state").write_text(state, encoding="ascii")
    (slurm.folder / "scontrol").write_text("", encoding="ascii")
    done = slurm.run(ROOT / "run_train.sh", *arguments, WIDEFOV_ENV="active", **JOB, **env)
    assert done.returncode == code, done.stderr
    calls = (slurm.folder / "scontrol").read_text(encoding="ascii").splitlines()
    return [call for call in calls if call.startswith("requeue")]


def test_a_job_that_was_asked_to_leave_is_requeued(slurm: Bench) -> None:
    assert ended(slurm, "--resume", "auto") == ["requeue 7"]
    assert ended(slurm, "--log_dir", "x", "--resume") == ["requeue 7"]


def test_other_jobs_are_not_requeued(slurm: Bench) -> None:
    assert ended(slurm, "--resume", "auto", code=0) == []
    assert ended(slurm, "--resume", "auto", code=2) == []
    assert ended(slurm, "--resume", "auto", state="CANCELLED") == []
    assert ended(slurm, "--resume", "auto", REQUEUE="0") == []
    # It would start from the beginning, for ever.
    assert ended(slurm, "--log_dir", "x") == []


@pytest.mark.parametrize(
    ("sent", "launcher", "received"),
    [
        (signal.SIGUSR1, "srun", "USR1"),
        (signal.SIGTERM, "srun", "USR1"),
        (signal.SIGTERM, "mpirun", "USR1"),
        (signal.SIGINT, "mpirun", "USR1"),
        (signal.SIGHUP, "hydra", "USR1"),
    ],
)
def test_signals_reach_the_launcher(slurm: Bench, sent: signal.Signals, launcher: str, received: str) -> None:
    """The stub launcher takes a second to end after a signal; its exit code is the script's."""
    marks = slurm.folder / "marks"
    program = f"""trap 'echo USR1 >> {marks}; exit 75' USR1; trap 'echo TERM >> {marks}; exit 75' TERM
trap 'echo INT >> {marks}; exit 75' INT
echo "$WIDEFOV_MARK listening"; echo ready >> {marks}; while :; do sleep 0.1; done"""
    for name in ("srun", "mpirun", "mpiexec.hydra"):
        slurm.stub(name, f"if [[ $1 == --version ]]; then echo 'Open MPI'; exit; fi; {program}")
    slurm.stub("python", f'if [[ $2 == "1" || $2 == "0" ]]; then exit 0; fi; exec "{sys.executable}" -S "$@"')
    env = slurm.env | {"WIDEFOV_ENV": "active", "LAUNCHER": launcher, "REQUEUE": "0", "NP": "2"}
    env |= JOB if launcher == "srun" else {}
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), "--resume", "auto"],
        cwd=slurm.folder, env=env, stdin=subprocess.DEVNULL, preexec_fn=heed_interrupts,  # noqa: PLW1509
    )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while not marks.exists():
            assert time.monotonic() < until
            assert process.poll() is None
            time.sleep(0.05)
        time.sleep(0.2)  # what it printed has arrived
        process.send_signal(sent)
        assert process.wait(timeout=30) == 75
    finally:
        process.kill()
    assert marks.read_text(encoding="ascii").split() == ["ready", received]


def test_a_killed_script_leaves_no_launcher(slurm: Bench) -> None:
    marks = slurm.folder / "marks"
    slurm.stub("python", f'if [[ $2 == "1" || $2 == "0" ]]; then exit 0; fi; exec "{sys.executable}" -S "$@"')
    slurm.stub("srun", f"trap 'echo TERM >> {marks}; exit' TERM; echo $$ > {marks}; while :; do sleep 0.1; done")
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), "--debug"],
        cwd=slurm.folder, env=slurm.env | JOB | {"WIDEFOV_ENV": "active", "NP": "2"},
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    until = time.monotonic() + 30
    while not marks.exists() or not marks.read_text(encoding="ascii"):
        assert time.monotonic() < until
        time.sleep(0.05)
    launcher = int(marks.read_text(encoding="ascii"))
    process.kill()
    process.wait()
    while Path(f"/proc/{launcher}").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    assert marks.read_text(encoding="ascii").split() == [str(launcher), "TERM"]


@pytest.mark.parametrize("whole_group", [False, True], ids=["script", "group"])
def test_usr1_before_the_start_is_a_request_too(slurm: Bench, whole_group: bool) -> None:
    """While the script looks at the machine; the stub of nproc is that moment, and says that it has come."""
    slurm.stub("python", f'if [[ $2 == "1" || $2 == "0" ]]; then exit 0; fi; exec "{sys.executable}" -S "$@"')
    slurm.stub("srun", f"touch {slurm.folder}/started")
    moment = slurm.folder / "moment"
    slurm.stub("nproc", f"touch {moment}; sleep 0.5; echo 4")
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), "--resume", "auto"],
        cwd=slurm.folder, env=slurm.env | JOB | {"WIDEFOV_ENV": "active"}, stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 30
        while not moment.exists():
            assert time.monotonic() < until
            time.sleep(0.02)
        (os.killpg if whole_group else os.kill)(process.pid, signal.SIGUSR1)
        _, err = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert "run_train.sh: SIGUSR1 before the start: nothing was to be saved" in err
    assert not (slurm.folder / "started").exists()
    assert "requeue 7" in (slurm.folder / "scontrol").read_text(encoding="ascii")
