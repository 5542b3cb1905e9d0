"""Runs a command that is sent SIGTERM when the process that started it ends, even by SIGKILL (Linux only).

python launch/die_with_parent.py COMMAND ...: so run_train.sh leaves no launcher behind, whatever happens to it.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # of prctl(2); kept by exec


def main() -> None:
    """Ask for the signal, then become the command."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        # It ended before we asked.
        sys.exit(128 + signal.SIGTERM)
    # A shell without job control lets its background commands ignore these.
    for number in (signal.SIGINT, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    os.execvp(sys.argv[1], sys.argv[1:])  # noqa: S606  # no shell is what is wanted


if __name__ == "__main__":
    main()
