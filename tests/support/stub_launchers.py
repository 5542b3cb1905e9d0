"""Stubs of launchers, and the command that run_train.sh makes for them."""

import shutil
import signal
import subprocess
import sys

from tests.support.bench import Bench
from tests.support.paths import ROOT

RUN_TRAIN = ROOT / "run_train.sh"


def open_mpi(bench: Bench) -> None:
    bench.stub("mpirun", "echo 'mpirun (Open MPI) 4.1.8'")


def mpich(bench: Bench) -> None:
    bench.stub("mpirun", "echo 'HYDRA build details:'")
    bench.stub("mpiexec.hydra", "echo 'HYDRA build details:'")


def intel(bench: Bench) -> None:
    bench.stub("mpirun", "echo 'Intel(R) MPI Library for Linux* OS, Version 2021.14'")
    bench.stub("mpiexec.hydra", "echo 'Intel(R) MPI Library for Linux* OS, Version 2021.14'")


def shell_words(line: str) -> list[str]:
    """The arguments that bash makes of a line."""
    bash = shutil.which("bash")
    assert bash is not None
    script = 'eval "command=($1)"; printf "%s\\0" "${command[@]}"'
    done = subprocess.run([bash, "-c", script, "bash", line], capture_output=True, text=True, check=True)
    return done.stdout.split("\0")[:-1]


def dry_run(bench: Bench, *arguments: str, **env: str) -> tuple[dict[str, str], list[str]]:
    """The settings and the command, as the shell would read them; no Horovod is installed."""
    # -S: no site-packages, so that the real Horovod of this environment does not decide which launcher is right.
    python = bench.stub("python", f'exec "{sys.executable}" -S "$@"')
    done = bench.run(RUN_TRAIN, *arguments, WIDEFOV_ENV="active", DRY_RUN="1", **env)
    assert done.returncode == 0, done.stderr
    command = shell_words(done.stdout)
    assert command[0] == "env"
    settings = {}
    for word in command[1:]:
        name, equals, value = word.partition("=")
        if not equals or not name.isidentifier():
            break
        settings[name] = value
    return settings, ["PY" if word == str(python) else word for word in command[1 + len(settings) :]]


def without_exports(command: list[str]) -> list[str]:
    """The command without Open MPI's `-x NAME` pairs."""
    kept = list(command)
    while "-x" in kept:
        at = kept.index("-x")
        del kept[at : at + 2]
    return kept


def heed_interrupts() -> None:
    """In a new process: what a job in the background ignores, and bash then cannot trap, is as in a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
