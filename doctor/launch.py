"""A trial launch: the launcher, ranks and hosts of the run, with a program that only reports."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from doctor.job import Launch
from doctor.report import Finding, failed, passed

# Precedes the reports of ranks: launchers prefix lines with marks of their own, and libraries write in between.
MARK = "widefov-doctor:"
_HEAD, _TAIL, _LINE_CHARACTERS = 2, 4, 200
_SSH = ("ssh", "-o", "BatchMode=yes", "-o", "ConnectTimeout=5")


@dataclass(frozen=True)
class Outcome:
    """Result of a trial launch.

    Attributes:
        code: exit code of the launcher; None if it was ended at the limit.
        seconds: duration.
        hellos: one entry for each rank that started, even if it did not find the others.
        ranks: reports of all ranks in rank order; empty unless complete.
        errors: error messages of ranks.
        tail: first and last lines of all other output; the cause is usually at either end.
    """

    code: int | None
    seconds: float
    hellos: list[dict[str, Any]]
    ranks: list[dict[str, Any]]
    errors: list[str]
    tail: list[str]


class Trial:
    """A launch in progress; it starts when constructed, so that other checks can run while libraries load.

    Args:
        launch: how to start.
        limit: seconds after which all of it is ended.
    """

    def __init__(self, launch: Launch, limit: float) -> None:
        self._launch = launch
        self._begin, self._limit = time.monotonic(), limit
        # A file, not pipes, so that ranks never block on a full pipe. Both streams in one keep the order of lines.
        self._printed = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `wait`
        self._process = subprocess.Popen(
            launch.command,
            stdin=subprocess.DEVNULL,
            stdout=self._printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def wait(self) -> Outcome:
        """Wait for the end, or end the launch at the limit."""
        code: int | None = None
        try:
            code = self._process.wait(max(0.0, self._begin + self._limit - time.monotonic()))
        except subprocess.TimeoutExpired:
            self._end()
        seconds = time.monotonic() - self._begin
        self._printed.seek(0)
        lines = self._printed.read().decode("utf-8", "replace").splitlines()
        self._printed.close()
        return outcome(code, seconds, lines, self._launch.ranks)

    def _end(self) -> None:
        """Send SIGTERM, on which a launcher ends its ranks, then SIGKILL."""
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            os.killpg(self._process.pid, signal.SIGTERM)
            self._process.wait(10)
        # Even if the launcher has exited, its children may still run.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def outcome(code: int | None, seconds: float, lines: Sequence[str], size: int) -> Outcome:
    """Parse the output of a trial launch of `size` ranks."""
    reported: dict[str, list[Any]] = {"hello": [], "rank": [], "error": []}
    rest = []
    for line in lines:
        _, mark, text = line.partition(MARK)
        try:
            kind, value = json.JSONDecoder().raw_decode(text)[0] if mark else ("", None)
        except ValueError:
            kind, value = "", None
        if kind in reported:
            reported[kind].append(value)
        elif line.strip():
            rest.append(line.strip()[:_LINE_CHARACTERS])
    ranks = sorted(reported["rank"], key=lambda report: report["rank"])
    whole = [report["rank"] for report in ranks] == list(range(size))
    ends = [*rest[:_HEAD], *rest[max(_HEAD, len(rest) - _TAIL) :]]
    return Outcome(code, seconds, reported["hello"], ranks if whole else [], reported["error"], ends)


def judge(launch: Launch, got: Outcome, limit: float) -> Iterator[Finding]:
    """Whether all ranks started, on all hosts, and found each other."""
    started = Counter(hello["host"] for hello in got.hellos)
    where = ", ".join(f"{host}: {count}" for host, count in sorted(started.items()))
    ranks = f"{launch.ranks} rank{'s' if launch.ranks > 1 else ''}"
    if got.ranks:
        yield passed("ranks", f"{ranks} started and found each other in {got.seconds:.1f} s ({where})")
        return
    tail = f"; output: {' | '.join(got.tail)}" if got.tail else ""
    if got.errors:
        yield failed("ranks", f"{ranks}, {got.errors[0]}", "see the message; versions and launcher are checked above")
    elif len(got.hellos) >= launch.ranks:
        yield failed(
            "ranks",
            f"{ranks} started ({where}), but did not finish their report "
            + (f"within {limit:.0f} s" if got.code is None else f"(exit code {got.code})")
            + tail,
            "the hosts must reach each other over the network, not only by ssh: choose the interface with IFACE=eth0; "
            "on a slow file system raise --launch_limit",
        )
    else:
        silent = unreachable(launch, started, got.tail)
        named = f"; not reached: {'; '.join(silent)}" if silent else ""
        how = f"in {limit:.0f} s" if got.code is None else f"(exit code {got.code})"
        yield failed(
            "ranks",
            f"only {len(got.hellos)} of {ranks} started {how}{f' ({where})' if where else ''}{named}{tail}",
            "each host must be reachable by ssh without a password (try: ssh HOST true), with this folder "
            "and its environment at the same path"
            if launch.hosts
            else f"test the launcher alone: {launch.program} -np {launch.ranks} hostname",
        )


def unreachable(launch: Launch, started: Counter[str], tail: Sequence[str]) -> list[str]:
    """Requested hosts that did not answer, each with the reason if it can be determined."""
    heard = {host.split(".")[0] for host in started}
    silent = [host for host in dict.fromkeys(launch.hosts) if host.split(".")[0] not in heard]
    with ThreadPoolExecutor(max_workers=16) as pool:
        reasons = list(pool.map(_reason, silent))
    found = [f"{host} ({reason})" for host, reason in zip(silent, reasons, strict=True) if reason]
    if found:
        return found
    accused = [host for host in silent if any(host in line for line in tail)]
    return accused or silent


def _reason(host: str) -> str:
    """Why this host cannot be used; empty if it answers."""
    try:
        addresses = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        return f"unknown host name: {error.strerror or error}"
    if shutil.which("ssh") is None or any(_is_here(family, address) for family, _, _, _, address in addresses):
        return ""
    try:
        done = subprocess.run(
            [*_SSH, "--", host, "true"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=10,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return "ssh does not answer"
    lines = done.stderr.strip().splitlines()
    return (lines[-1] if lines else f"ssh exited with code {done.returncode}") if done.returncode else ""


def _is_here(family: int, address: Any) -> bool:
    """Whether an address belongs to this host, which launchers reach without ssh."""
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.bind((address[0], 0, *address[2:]))
    except OSError:
        return False
    return True
