"""Run a command that receives SIGTERM when its parent process ends, even by SIGKILL (Linux only).

`python launch/die_with_parent.py COMMAND ...`: benchmarks start launchers with it, so that none outlives its benchmark.
run_train.sh uses launch/supervise.py.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2); survives exec


def main() -> None:
    """Ask for the signal, then become the command."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # The parent ended before the call.
        sys.exit(128 + signal.SIGTERM)
    # Background commands of a shell without job control ignore these signals.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # deliberately without a shell


if __name__ == "__main__":
    main()
