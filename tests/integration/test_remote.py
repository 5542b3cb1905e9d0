"""launch/remote.sh: ssh for the launchers, which ends a launcher that would wait forever for a lost host."""

import time

import pytest

from tests.support.bench import Bench
from tests.support.paths import ROOT

REMOTE = ROOT / "launch" / "remote.sh"


def launcher(bench: Bench, seconds: int) -> list[str]:
    """A launcher that starts the agent and then sleeps, whatever the agent returns."""
    bench.stub(
        "launcher",
        f'"{REMOTE}" -x node7 hostname -f & wait; echo alive; sleep {seconds} >/dev/null 2>&1; echo ended by itself',
    )
    return ["launcher"]


def test_arguments_input_and_exit_code_pass(bench: Bench) -> None:
    bench.stub("ssh", 'printf "%s|" "$@"; cat; exit 3')
    done = bench.run("bash", "-c", f'printf typed | "{REMOTE}" node7 echo "a b"')
    assert done.stdout == "-x|-o|ServerAliveInterval=10|-o|ServerAliveCountMax=3|node7|echo|a b|typed"
    assert done.returncode == 3
    assert done.stderr == ""


def test_a_lost_connection_is_reported_and_ends_the_launcher(bench: Bench) -> None:
    bench.stub("ssh", "exit 255")
    begin = time.monotonic()
    done = bench.run(*launcher(bench, 30))
    assert done.returncode == -9
    assert time.monotonic() - begin < 15
    assert done.stderr == "run_train.sh: lost the connection to node7; the job ends\n"
    assert done.stdout == "alive\n"


@pytest.mark.parametrize("code", [0, 1], ids=["fine", "failed"])
def test_what_a_command_returns_does_not_end_the_launcher(bench: Bench, code: int) -> None:
    bench.stub("ssh", f"exit {code}")
    done = bench.run(*launcher(bench, 6))
    assert done.returncode == 0
    assert done.stdout == "alive\nended by itself\n"


def test_a_connection_ended_by_the_launcher_is_not_lost(bench: Bench) -> None:
    # ssh returns 255 when it is ended by a signal.
    bench.stub("ssh", "trap 'exit 255' TERM; sleep 20 & wait")
    bench.stub("launcher", f'"{REMOTE}" node7 true & sleep 1; kill $!; wait $!; sleep 6; echo ended by itself')
    done = bench.run("launcher")
    assert done.stdout == "ended by itself\n"
    assert done.stderr == ""


@pytest.mark.parametrize(("arguments", "code"), [(["--help"], 0), ([], 2)], ids=["help", "none"])
def test_help_and_a_missing_host_start_no_ssh(bench: Bench, arguments: list[str], code: int) -> None:
    bench.stub("ssh", "echo stub ran")
    done = bench.run("bash", REMOTE, *arguments)
    assert done.returncode == code
    assert "HOST" in done.stdout + done.stderr
    assert "stub ran" not in done.stdout
