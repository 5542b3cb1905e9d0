"""Several hosts on one machine: network namespaces with addresses, names and shared memory of their own on a bridge.

Everything lives in namespaces without a name, held by processes of one process namespace: nothing is made in the
machine's own network, and the kernel removes it all when `Hosts` is left or the process that made it dies.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import psutil

HERE = Path(__file__).resolve().parent
UNSHARE = ["unshare", "--pid", "--net", "--uts", "--ipc", "--mount", "--fork", "--kill-child", "--mount-proc"]


def why_not() -> str | None:
    """Why this machine cannot make hosts; None when it can."""
    for tool in ("unshare", "nsenter", "ip"):
        if shutil.which(tool) is None:
            return f"no program {tool} here (packages util-linux and iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    bridge = [*UNSHARE, "ip", "link", "add", "switch", "type", "bridge"]
    done = subprocess.run(bridge, capture_output=True, text=True, check=False)
    return None if done.returncode == 0 else f"no network namespaces or bridges here: {done.stderr.strip()}"


@dataclass(frozen=True)
class Cable:
    """What joins a host to the switch.

    Args:
        delay: seconds that every frame takes, in either direction.
        loss: share of frames that are lost.
    """

    delay: float = 0
    loss: float = 0


def clear_leftovers() -> None:
    """Remove Open MPI's folders of hosts whose test process was killed; nothing else of them can be left."""
    for folder in Path(tempfile.gettempdir()).glob(f"ompi.wf*n*.{os.geteuid()}"):
        pid = folder.name.removeprefix("ompi.wf").partition("n")[0]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(folder, ignore_errors=True)


class Hosts:
    """Hosts joined by a switch, from `with` to its end.

    Args:
        folder: an empty folder for the hosts' files.
        cables: one for each host.
    """

    def __init__(self, folder: Path, cables: list[Cable]) -> None:
        self.folder = folder
        self.cables = cables
        # Open MPI names its folder in /tmp by the host: two runs of the tests must not share it.
        self.names = [f"wf{os.getpid()}n{number + 1}" for number in range(len(cables))]
        self.addresses = [f"10.77.0.{number + 1}" for number in range(len(cables))]

    def __enter__(self) -> Hosts:
        clear_leftovers()
        (self.folder / "bin").mkdir(parents=True)
        (self.folder / "bin" / "ssh").symlink_to(HERE / "ssh.sh")
        lines = ["127.0.0.1 localhost", *map(" ".join, zip(self.addresses, self.names, strict=True))]
        (self.folder / "hosts").write_text("\n".join(lines) + "\n", encoding="utf-8")
        words: list[str] = []
        for name, address, cable in zip(self.names, self.addresses, self.cables, strict=True):
            words += [name, address, f"{cable.delay:g}", f"{cable.loss:g}"]
        self._errors = (self.folder / "errors").open("w+", encoding="utf-8")
        self._cluster = subprocess.Popen(
            [*UNSHARE, str(HERE / "cluster.sh"), str(self.folder), sys.executable, *words],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors, text=True,
        )  # fmt: skip
        try:
            self._wait_until_ready()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def _wait_until_ready(self) -> None:
        self._pids: dict[str, str] = {}
        assert self._cluster.stdout
        for line in self._cluster.stdout:
            words = line.split()
            if words == ["ready"]:
                break
            self._pids[words[1]] = words[2]
        else:
            raise AssertionError("no hosts: " + (self.folder / "errors").read_text(encoding="utf-8"))
        self._first = psutil.Process(self._cluster.pid).children()[0]
        self._namespace = os.readlink(f"/proc/{self._first.pid}/ns/pid")
        self._own = set(self._inhabitants())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # --kill-child: process 1 goes with it, and with that one everything.
        if self._cluster.poll() is not None:
            return
        self._cluster.kill()
        self._cluster.wait()
        for stream in (self._cluster.stdin, self._cluster.stdout, self._errors):
            assert stream
            stream.close()
        for name in self.names:
            shutil.rmtree(Path(tempfile.gettempdir()) / f"ompi.{name}.{os.geteuid()}", ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------------- use

    def inside(self, name: str, command: list[str]) -> list[str]:
        """The command line that runs a command on a host, from outside."""
        enter = ["nsenter", "-t", str(self._first.pid), "--pid", "--mount"]
        namespaces = ["--net", "--uts", "--ipc", "--mount", f"--wd={Path.cwd()}"]
        return [*enter, "nsenter", "-t", self._pids[name], *namespaces, *command]

    def start(self, name: str, command: list[str], env: dict[str, str], output: Path) -> subprocess.Popen[bytes]:
        """Start a command on a host as a user logged in there: `ssh` to the others is on PATH."""
        given = env | {"PATH": f"{self.folder / 'bin'}:{env['PATH']}", "WIDEFOV_TEST_PYTHON": sys.executable}
        with output.open("wb") as file:
            return subprocess.Popen(
                self.inside(name, command), env=given, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT
            )

    def output_of(self, name: str, *command: str) -> str:
        """What a short command on a host prints; it must succeed."""
        done = subprocess.run(self.inside(name, list(command)), capture_output=True, text=True, check=True, timeout=60)
        return done.stdout

    def _switch(self, *command: str) -> str:
        enter = ["nsenter", "-t", str(self._first.pid), "--net", *command]
        return subprocess.run(enter, capture_output=True, text=True, check=True, timeout=60).stdout

    def sent_bytes(self, name: str) -> int:
        """Bytes of frames that the switch has had from a host."""
        said = self._switch("ip", "-s", "-j", "link", "show", f"port{self.names.index(name) + 1}")
        return int(json.loads(said)[0]["stats64"]["rx"]["bytes"])

    def cut(self, name: str) -> None:
        """Pull the host's cable out of the switch."""
        self._switch("ip", "link", "set", f"port{self.names.index(name) + 1}", "down")

    def repair(self, name: str) -> None:
        """Plug it in again."""
        self._switch("ip", "link", "set", f"port{self.names.index(name) + 1}", "up")

    def lost_frames(self, name: str) -> int:
        """Frames that a slow cable dropped so far."""
        return int((self.folder / f"{name}.link").read_text(encoding="utf-8").split()[1])

    def _inhabitants(self) -> dict[int, str]:
        """Every process of the process namespace: number -> command line."""
        found = {}
        for process in psutil.process_iter(["cmdline", "status"]):
            with suppress(OSError):
                dead = process.info["status"] == psutil.STATUS_ZOMBIE
                if not dead and os.readlink(f"/proc/{process.pid}/ns/pid") == self._namespace:
                    found[process.pid] = " ".join(process.info["cmdline"] or [])
        return found

    def jobs(self) -> dict[int, str]:
        """Processes on all hosts that are not the hosts' own: number -> command line."""
        return {pid: line for pid, line in self._inhabitants().items() if pid not in self._own}
