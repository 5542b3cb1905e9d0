"""Runs of scripts without the seconds that importing TensorFlow takes: forks of a process that has imported it.

For tests of what a run does. How programs are started is the subject of other tests, which start them.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from threading import Timer

from tests.support.paths import ROOT

SERVER = ROOT / "tests" / "support" / "warm_server.py"


class Warm:
    """The process that forks; it starts with the first run and ends with this one."""

    def __init__(self) -> None:
        self._server: subprocess.Popen[str] | None = None

    def run(
        self, script: str, argv: list[str], env: dict[str, str], cwd: Path = ROOT, timeout: float = 240
    ) -> subprocess.CompletedProcess[str]:
        """Like `subprocess.run([python, script, *argv])`, without check.

        Args:
            script: path of a Python program.
            argv: its arguments.
            env: its whole environment; what TensorFlow reads at its import is not taken from here.
            cwd: its working directory.
            timeout: s; then it is killed.
        """
        server = self._running()
        with tempfile.TemporaryDirectory() as folder:
            outputs = {name: str(Path(folder) / name) for name in ("stdout", "stderr")}
            request = {"script": script, "argv": argv, "env": env, "cwd": str(cwd)} | outputs
            assert server.stdin
            assert server.stdout
            server.stdin.write(json.dumps(request) + "\n")
            server.stdin.flush()
            timer = Timer(timeout, os.kill, (int(server.stdout.readline()), signal.SIGKILL))
            timer.start()
            status = int(server.stdout.readline())
            timer.cancel()
            said = [Path(path).read_text(encoding="utf-8") for path in outputs.values()]
        return subprocess.CompletedProcess([script, *argv], os.waitstatus_to_exitcode(status), *said)

    def _running(self) -> subprocess.Popen[str]:
        if self._server is None or self._server.poll() is not None:
            self._server = subprocess.Popen(
                [sys.executable, str(SERVER)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            atexit.register(self._server.communicate)
        return self._server


warm = Warm()
