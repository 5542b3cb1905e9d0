"""launch/supervise.py between a request to stop and a launcher, which is a small program here."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.support.paths import ROOT

MARK = "widefov-1-2"
# Before the program: `say` writes a line at once; `get` notes a signal in the file `got`.
BEGIN = """
import os, signal, subprocess, sys, time
def say(line): os.write(1, f"{line}\\n".encode())
def get(number, _=None):
    with open("got", "a") as file: file.write(signal.Signals(number).name + " ")
def wait(seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end: time.sleep(0.02)
def catch(*names):
    for name in names: signal.signal(getattr(signal, name), get)
"""
LEAVES = """
def leave(number, _): get(number); say(f"{os.environ['WIDEFOV_MARK']} left"); sys.exit(0)
signal.signal(signal.SIGUSR1, leave)
"""
LISTENS = """
say(os.environ["WIDEFOV_MARK"] + " listening")
say("training")
wait()
"""
SUPERVISE = f"""
import sys
sys.path.insert(0, {str(ROOT / "launch")!r})
import supervise
supervise.KILL_S = 0.5
supervise.LEAVE_S = float(sys.argv[1])
sys.exit(supervise.Supervisor(sys.argv[2], [sys.executable, "-c", sys.argv[3]], {MARK!r}).run())
"""


@contextmanager
def supervised(
    folder: Path, program: str, launcher: str = "mpirun", leave_s: float = 600, **more: object
) -> Iterator[subprocess.Popen[str]]:
    """A supervisor with a program in place of the launcher."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISE, str(leave_s), launcher, BEGIN + program],
        cwd=folder, env=os.environ | {"WIDEFOV_MARK": MARK}, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **more,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


def line_of(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=30)
    return process.returncode, out, err


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"])
def test_every_request_is_one_usr1_and_the_code_is_75(name: str, tmp_path: Path) -> None:
    with supervised(tmp_path, "catch('SIGTERM', 'SIGINT', 'SIGHUP')" + LEAVES + LISTENS) as process:
        # What is meant for the supervisor is not shown.
        assert line_of(process) == "training"
        process.send_signal(signal.Signals[name])
        process.send_signal(signal.Signals[name])
        assert ended(process) == (75, "", "")
    assert (tmp_path / "got").read_text(encoding="ascii") == "SIGUSR1 "


def test_before_the_ranks_listen_the_launcher_is_ended_without_its_banner(tmp_path: Path) -> None:
    banner = "\ndef end(n, _): say('-' * 70); os.write(2, b'killed'); sys.exit(1)\nsignal.signal(signal.SIGTERM, end)"
    with supervised(tmp_path, banner + "\nsay('starting')\nwait()", "hydra") as process:
        assert line_of(process) == "starting"
        process.send_signal(signal.SIGUSR1)
        assert ended(process) == (75, "", "run_train.sh: SIGUSR1 before the first step: nothing was to be saved\n")


def test_a_second_signal_ends_all_processes_that_are_stuck(tmp_path: Path) -> None:
    stuck = """
catch("SIGUSR1", "SIGTERM")
deaf = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(60)"
rank = subprocess.Popen([sys.executable, "-c", deaf])
with open("rank", "w") as file: file.write(str(rank.pid))
"""
    with supervised(tmp_path, stuck + LISTENS, "hydra") as process:
        assert line_of(process) == "training"
        process.send_signal(signal.SIGINT)
        time.sleep(1.2)
        # The terminal is closed in the meantime.
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 128 + signal.SIGKILL
    got = (tmp_path / "got").read_text(encoding="ascii").split()
    assert got[0] == "SIGUSR1"
    assert set(got[1:]) == {"SIGTERM"}
    assert not alive(int((tmp_path / "rank").read_text(encoding="ascii")))


def alive(pid: int) -> bool:
    """Whether a process exists that is not only waited for."""
    with suppress(OSError):
        return ") Z " not in Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    return False


def test_ranks_that_never_leave_are_ended(tmp_path: Path) -> None:
    with supervised(tmp_path, "catch('SIGUSR1')" + LISTENS, "hydra", leave_s=0.3) as process:
        assert line_of(process) == "training"
        process.send_signal(signal.SIGTERM)
        code, _, err = ended(process)
    assert code == 128 + signal.SIGTERM
    assert err == "run_train.sh: the ranks have not left within 0 s: they are ended\n"


def test_nobody_to_read_ends_nothing(tmp_path: Path) -> None:
    many = "\nsay('first')\nfor _ in range(200): say('x' * 10000)\nos.write(2, b'y' * 100000)\nopen('end', 'w').close()"
    with supervised(tmp_path, many) as process:
        assert line_of(process) == "first"
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=30) == 0
    assert (tmp_path / "end").exists()


def test_mpirun_does_not_hear_what_is_sent_to_every_process(tmp_path: Path) -> None:
    told = "catch('SIGTERM', 'SIGINT', 'SIGHUP')" + LEAVES + "\nsay(os.getpid())" + LISTENS
    with supervised(tmp_path, told) as process:
        launcher = int(line_of(process))
        assert line_of(process) == "training"
        # Neither is in the group of run_train.sh, here of this test.
        assert os.getpgid(0) not in {os.getpgid(launcher), os.getpgid(process.pid)}
        for pid in (launcher, process.pid):
            os.kill(pid, signal.SIGTERM)
        assert ended(process)[0] == 75
    assert (tmp_path / "got").read_text(encoding="ascii") == "SIGUSR1 "


def test_horovodrun_forwards_nothing_so_what_is_below_it_is_asked(tmp_path: Path) -> None:
    below = BEGIN + LEAVES + LISTENS
    with supervised(tmp_path, f"sys.exit(subprocess.call([sys.executable, '-c', {below!r}]))", "horovodrun") as process:
        assert line_of(process) == "training"
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (75, "", "")


def test_ranks_that_left_are_believed_though_the_launcher_is_killed(tmp_path: Path) -> None:
    """horovodrun, when systemd signals every process."""
    dies = "def leave(*_): say('[1,0]<stdout>:preempted   SIGUSR1 at image 4'); os.kill(os.getpid(), 9)\n"
    with supervised(tmp_path, dies + "signal.signal(signal.SIGUSR1, leave)" + LISTENS, "horovodrun") as process:
        assert line_of(process) == "training"
        process.send_signal(signal.SIGTERM)
        assert ended(process) == (75, "[1,0]<stdout>:preempted   SIGUSR1 at image 4\n", "")


def test_an_end_by_itself_keeps_its_code_and_a_killed_launcher_is_named(tmp_path: Path) -> None:
    with supervised(tmp_path, "os.write(1, b'no end of line'); sys.exit(3)") as process:
        assert ended(process) == (3, "no end of line", "")
    with supervised(tmp_path, "os.kill(os.getpid(), 9)") as process:
        assert ended(process) == (137, "", "run_train.sh: mpirun was killed by SIGKILL.\n")


def test_under_nohup_a_closed_terminal_means_nothing(tmp_path: Path) -> None:
    ignore = {"preexec_fn": lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)}
    with supervised(tmp_path, LEAVES + LISTENS, **ignore) as process:
        assert line_of(process) == "training"
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 75


def test_suspended_and_resumed_with_the_script(tmp_path: Path) -> None:
    with supervised(tmp_path, LEAVES + "\nsay(os.getpid())" + LISTENS) as process:
        launcher = int(line_of(process))
        assert line_of(process) == "training"
        for number, state in ((signal.SIGTSTP, "T"), (signal.SIGCONT, "S")):
            process.send_signal(number)
            until = time.monotonic() + 10
            while f") {state} " not in Path(f"/proc/{launcher}/stat").read_text(encoding="ascii"):
                assert time.monotonic() < until
                time.sleep(0.02)
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 75
