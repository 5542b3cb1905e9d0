"""Heartbeat: every rank reports to rank 0 every few seconds, and rank 0 answers.

An allreduce waits forever for a rank that was stopped, or whose host or network is down; launchers only notice
processes that end. So every rank has its own connection to rank 0 (TCP, lines of JSON), served by threads that run
while the rank computes. A rank that hears nothing from the other end for `timeout_s` names it and ends its own process;
the launcher ends the others. A rank of the same host whose process is at work, in native code that lets no thread run,
gets `WORK_TIMES` as long.

Horovod's HOROVOD_STALL_SHUTDOWN_TIME_SECONDS does not replace it: rank 0 looks for stalled tensors between two rounds
of messages from all ranks, so a rank that was stopped stalls the look itself (set to 8 s, it still waited after 77 s).
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import psutil

from parallel.comm import Comm, abort
from parallel.launchers import program
from parallel.local_process import AT_WORK, LocalProcess, describe_this
from parallel.stranded_daemon import end_daemon_later

Batch = TypeVar("Batch")

CONNECT_S = 20.0
# How long the launcher has to end this process after another one ended, or after another rank of this host reported it.
GRACE_S = 5.0
READING = "waiting for patches"
READING_TIMES = 5  # times the timeout: a busy file system may well be silent for a while
WORK_TIMES = 5  # times the timeout, of a process that is seen to be at work
LONGEST_LINE = 65536


@dataclass
class Peer:
    """The other end of a connection, and its last report."""

    name: str
    heard: float  # time.monotonic()
    doing: str = "starting"
    doing_s: float = 0.0
    closed: bool = False  # ended in good order
    rest: bytes = b""
    process: LocalProcess = field(default_factory=lambda: LocalProcess([]))

    def reported(self, line: dict[str, Any]) -> None:
        """Take what a line says of the other end."""
        self.doing, self.doing_s = str(line["doing"]), float(line["doing_s"])
        self.process.description = list(line["process"])


class Heartbeat:
    """The heartbeat of this rank.

    Args:
        comm: the ranks.
        timeout_s: silence after which a rank counts as dead, s; 0: nothing is watched.
        end: called in a thread with the reason when this rank must end; does not return.

    Attributes:
        doing: current activity of the program, quoted in messages of the other ranks.
    """

    def __init__(self, comm: Comm, timeout_s: float, end: Callable[[str], Any] | None = None) -> None:
        self._comm = comm
        self._timeout_s = timeout_s
        self._beat_s = min(5.0, timeout_s / 5)
        self._checked = time.monotonic()
        self._end = end or self._abort
        self._since = time.monotonic()
        self._doing = "starting"
        self._closed = threading.Event()
        self._parent = os.getppid()
        self._token = ""
        self._process = describe_this()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()

    def _abort(self, reason: str) -> None:
        # Ranks: on a host that lost its network, the launcher's daemon would outlive the job.
        end_daemon_later()
        abort(self._comm, reason)

    def start(self) -> None:
        """Connect the ranks; every rank must call it."""
        comm = self._comm
        if comm.size == 1 or not self._timeout_s:
            return
        server = socket.create_server(("", 0), backlog=comm.size) if comm.rank == 0 else None
        mine = server and (server.getsockname()[1], _addresses(), secrets.token_hex(16), socket.gethostname())
        # Ranks: where rank 0 listens; the token keeps out anything else that finds the port.
        port, addresses, self._token, host = comm.gather(mine)[0]
        if server is not None:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._serve, name="heartbeat", daemon=True)
        else:
            connection = _connected(["127.0.0.1"] if comm.local_size == comm.size else addresses, port)
            if connection is None:
                print(  # noqa: T201
                    f"{program()}: rank {comm.rank} cannot reach rank 0 ({host}, port {port}): --stall_timeout does "
                    "not watch it", file=sys.stderr, flush=True,
                )  # fmt: skip
                return
            connection.setblocking(False)
            peer = Peer(f"rank 0 ({host})", time.monotonic())
            self._selector.register(connection, selectors.EVENT_READ, peer)
            self._thread = threading.Thread(target=self._report, args=(connection, peer), name="heartbeat", daemon=True)
        self._checked = time.monotonic()
        self._thread.start()

    @property
    def doing(self) -> str:
        """See the class."""
        return self._doing

    @doing.setter
    def doing(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; a rank that waits for one for `READING_TIMES` times the timeout ends the job."""
        waiting = iter(batches)
        while True:
            self.doing = READING
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self.doing = "in a step"
            yield batch

    def __enter__(self) -> Heartbeat:
        return self

    def __exit__(self, *_: object) -> None:
        """The run ended in good order: silence no longer means anything."""
        self._closed.set()
        if self._thread is not None:
            # Connections stay open until the process ends: closing them could drop a goodbye on its way.
            self._thread.join(timeout=2 * self._beat_s)
        else:
            self._selector.close()

    # ------------------------------------------------------------------------------------------------------- rank 0

    def _serve(self) -> None:
        """Thread of rank 0: accept connections, answer, and check for silent ranks."""
        while not self._closed.is_set():
            for key, _ in self._selector.select(self._beat_s):
                self._accept(key) if key.data is None else self._receive(key.fileobj, key.data, self._answer)
            self._check()
        for key in self._selector.get_map().values():
            if key.data is not None:
                self._send(key.fileobj, {"goodbye": True})

    def _accept(self, key: selectors.SelectorKey) -> None:
        connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, Peer("", time.monotonic()))

    def _answer(self, connection: socket.socket, peer: Peer, line: dict[str, Any]) -> None:
        if not secrets.compare_digest(str(line["token"]), self._token):
            raise ValueError("wrong token")
        peer.name = f"rank {int(line['rank'])} of {self._comm.size} ({line['host']})"
        peer.reported(line)
        self._send(connection, self._activity())

    # -------------------------------------------------------------------------------------------------- other ranks

    def _report(self, connection: socket.socket, peer: Peer) -> None:
        """Thread of the other ranks: report what this one is doing, and check that rank 0 answers."""
        me = {"token": self._token, "rank": self._comm.rank, "host": socket.gethostname()}
        while not self._closed.is_set():
            self._send(connection, me | self._activity())
            until = time.monotonic() + self._beat_s
            while (left := until - time.monotonic()) > 0 and not self._closed.is_set():
                for _ in self._selector.select(left):
                    self._receive(connection, peer, self._answered)
            self._check()
        self._send(connection, me | self._activity() | {"goodbye": True, "doing": "done"})

    @staticmethod
    def _answered(_: Any, peer: Peer, line: dict[str, Any]) -> None:
        if not line.get("goodbye"):
            peer.reported(line)

    def _activity(self) -> dict[str, Any]:
        """What a line says of this rank."""
        return {"doing": self._doing, "doing_s": time.monotonic() - self._since, "process": self._process}

    @staticmethod
    def _send(connection: Any, line: dict[str, Any]) -> None:
        # A full buffer or a closed end: the answers, or their absence, decide what it means.
        with contextlib.suppress(OSError):
            connection.send(json.dumps(line).encode() + b"\n")

    # --------------------------------------------------------------------------------------------------------- both

    def _receive(self, connection: Any, peer: Peer, answer: Callable[..., None]) -> None:
        try:
            received = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._lost(connection, peer)
            return
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + received).split(b"\n")
        try:
            for line in lines:
                report = json.loads(line)
                answer(connection, peer, report)
                peer.closed |= bool(report.get("goodbye"))
            stranger = len(peer.rest) > LONGEST_LINE
        except (ValueError, KeyError, TypeError, AttributeError):
            stranger = True
        if stranger:
            # No message: such a peer has no name.
            self._forget(connection)

    def _forget(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _lost(self, connection: Any, peer: Peer) -> None:
        self._forget(connection)
        if peer.name and not peer.closed and not self._closed.wait(GRACE_S):
            self._end(f"{peer.name} has ended while it was {peer.doing}: killed, or out of memory?")

    def _check(self) -> None:
        """End the job if a rank has been silent, or waiting for patches, too long, or if the launcher is gone."""
        now = time.monotonic()
        if now < self._checked + self._beat_s:
            return
        # What this process lost itself (a suspended job, a busy machine) is not the silence of others; two beats are
        # normal. Otherwise a pause of little more than the timeout would end jobs in which all ranks are alive.
        lost_s = max(0.0, now - self._checked - 2 * self._beat_s)
        self._checked = now
        self._since = min(now, self._since + lost_s)
        peers = [key.data for key in self._selector.get_map().values() if key.data is not None and key.data.name]
        for peer in peers:
            peer.heard = min(now, peer.heard + lost_s)
        if os.getppid() != self._parent:
            self._end("the launcher has ended")
        for peer in peers:
            self._check_silence(peer, now - peer.heard)
        waits = [Peer("this rank", now, self._doing, now - self._since), *peers] if self._comm.rank == 0 else []
        for peer in waits:
            if peer.doing == READING and peer.doing_s > READING_TIMES * self._timeout_s:
                self._end(
                    f"{peer.name} has been {READING} for {peer.doing_s:.0f} s (--stall_timeout): slides unreachable?"
                )

    def _check_silence(self, peer: Peer, silent_s: float) -> None:
        found = peer.process.look()
        limit_s = self._timeout_s * (WORK_TIMES if found == AT_WORK else 1)
        if silent_s <= limit_s or peer.closed:
            return
        if self._comm.local_rank:
            # Ranks: one of each host reports.
            self._closed.wait(GRACE_S)
        times = f"{WORK_TIMES} x " if found == AT_WORK else ""
        self._end(
            f"{peer.name} has not answered for {limit_s:g} s ({times}--stall_timeout) while it was {peer.doing}: "
            f"{found}"
        )


def _addresses() -> list[str]:
    """IPv4 addresses of this host, those of the loopback device last."""
    found = [a.address for device in psutil.net_if_addrs().values() for a in device if a.family == socket.AF_INET]
    return sorted(found, key=lambda address: address.startswith("127."))


def _connected(addresses: list[str], port: int) -> socket.socket | None:
    """A connection to the first of the addresses that accepts it; None if none does in time."""
    until = time.monotonic() + CONNECT_S
    while time.monotonic() < until:
        for address in addresses:
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), timeout=2.0)
        time.sleep(0.5)
    return None
