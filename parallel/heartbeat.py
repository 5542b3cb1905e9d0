"""Signs of life: every rank tells rank 0 every few seconds that it is alive, and rank 0 answers.

An allreduce waits for ever for a rank that was stopped, or whose host or network is gone; launchers only notice
processes that end. So every rank has a connection of its own to rank 0 (TCP, lines of JSON), served by threads that
run while the rank computes. Who hears nothing from the other end for `timeout_s` names it and ends its process; the
launcher ends the others.
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
from dataclasses import dataclass
from typing import Any, TypeVar

import psutil

from parallel.comm import Comm, abort
from parallel.launchers import program
from parallel.stranded_daemon import end_daemon_later

Batch = TypeVar("Batch")

CONNECT_S = 20.0
# After the end of a process, or where another rank of this host speaks first: how long the launcher has to end us.
GRACE_S = 5.0
READING = "waiting for patches"
READING_TIMES = 5  # the timeout: a busy file system may well be silent for a while
LONGEST_LINE = 65536


@dataclass
class Peer:
    """The other end of a connection, as it was last heard of."""

    name: str
    heard: float  # time.monotonic()
    doing: str = "starting"
    doing_s: float = 0.0
    said_goodbye: bool = False
    rest: bytes = b""


class Pulse:
    """The signs of life of this rank.

    Args:
        comm: the ranks.
        timeout_s: silence that is taken for death, s; 0: nothing is watched.
        end: called in a thread with the reason when this rank must end; does not return.

    Attributes:
        doing: what the training loop is at, for the others' messages.
    """

    def __init__(self, comm: Comm, timeout_s: float, end: Callable[[str], Any] | None = None) -> None:
        self._comm = comm
        self._timeout_s = timeout_s
        self._beat_s = min(5.0, timeout_s / 5)
        self._looked = time.monotonic()
        self._end = end or self._leave
        self._since = time.monotonic()
        self._doing = "starting"
        self._closed = threading.Event()
        self._parent = os.getppid()
        self._thread: threading.Thread | None = None
        self._selector = selectors.DefaultSelector()

    def _leave(self, reason: str) -> None:
        # Ranks: on a host that was cut off, the launcher's daemon would outlive the job.
        end_daemon_later()
        abort(self._comm, reason)

    def start(self) -> None:
        """Connect the ranks; every rank must call it."""
        comm = self._comm
        if comm.size == 1 or not self._timeout_s:
            return
        server = socket.create_server(("", 0), backlog=comm.size) if comm.rank == 0 else None
        mine = server and (server.getsockname()[1], _addresses(), secrets.token_hex(16), socket.gethostname())
        # Ranks: where rank 0 listens; the token keeps out what else may find the port.
        port, addresses, self._token, host = comm.gather(mine)[0]
        if server is not None:
            server.setblocking(False)
            self._selector.register(server, selectors.EVENT_READ)
            self._thread = threading.Thread(target=self._serve, name="pulse", daemon=True)
        else:
            connection = _connected(["127.0.0.1"] if comm.local_size == comm.size else addresses, port)
            if connection is None:
                print(  # noqa: T201
                    f"{program()}: rank {comm.rank} cannot reach rank 0 ({host}, port {port}): --stall_timeout will "
                    "not notice it", file=sys.stderr, flush=True,
                )  # fmt: skip
                return
            connection.setblocking(False)
            peer = Peer(f"rank 0 ({host})", time.monotonic())
            self._selector.register(connection, selectors.EVENT_READ, peer)
            self._thread = threading.Thread(target=self._report, args=(connection, peer), name="pulse", daemon=True)
        self._looked = time.monotonic()
        self._thread.start()

    @property
    def doing(self) -> str:
        """See the class."""
        return self._doing

    @doing.setter
    def doing(self, what: str) -> None:
        self._doing, self._since = what, time.monotonic()

    def watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """The same batches; a rank that waits for one for `READING_TIMES` the timeout ends the job."""
        waiting = iter(batches)
        while True:
            self.doing = READING
            try:
                batch = next(waiting)
            except StopIteration:
                return
            self.doing = "in a step"
            yield batch

    def __enter__(self) -> Pulse:
        return self

    def __exit__(self, *_: object) -> None:
        """The run ended in good order: nobody is missed any more."""
        self._closed.set()
        if self._thread is not None:
            self._thread.join(timeout=2 * self._beat_s)

    # ------------------------------------------------------------------------------------------------------- rank 0

    def _serve(self) -> None:
        """Thread of rank 0: take connections, answer, and look who has been silent."""
        while not self._closed.is_set():
            for key, _ in self._selector.select(self._beat_s):
                self._listen(key) if key.data is None else self._hear(key.fileobj, key.data, self._answer)
            self._look()
        for key in self._selector.get_map().values():
            if key.data is not None:
                self._send(key.fileobj, {"goodbye": True})

    def _listen(self, key: selectors.SelectorKey) -> None:
        connection, _ = key.fileobj.accept()  # type: ignore[union-attr]
        connection.setblocking(False)
        self._selector.register(connection, selectors.EVENT_READ, Peer("", time.monotonic()))

    def _answer(self, connection: socket.socket, peer: Peer, line: dict[str, Any]) -> None:
        if not secrets.compare_digest(str(line["token"]), self._token):
            raise ValueError("not one of us")
        peer.name = f"rank {int(line['rank'])} of {self._comm.size} ({line['host']})"
        peer.doing, peer.doing_s = str(line["doing"]), float(line["doing_s"])
        self._send(connection, {})

    # -------------------------------------------------------------------------------------------------- other ranks

    def _report(self, connection: socket.socket, peer: Peer) -> None:
        """Thread of the other ranks: say what this one is doing, and look whether rank 0 answers."""
        me = {"token": self._token, "rank": self._comm.rank, "host": socket.gethostname()}
        while not self._closed.is_set():
            self._send(connection, me | {"doing": self._doing, "doing_s": time.monotonic() - self._since})
            until = time.monotonic() + self._beat_s
            while (left := until - time.monotonic()) > 0 and not self._closed.is_set():
                for _ in self._selector.select(left):
                    self._hear(connection, peer, lambda *_: None)
            self._look()
        self._send(connection, me | {"goodbye": True, "doing": "done", "doing_s": 0.0})

    @staticmethod
    def _send(connection: socket.socket, line: dict[str, Any]) -> None:
        # A full buffer or a closed end: what it means is decided by what is heard.
        with contextlib.suppress(OSError):
            connection.send(json.dumps(line).encode() + b"\n")

    # --------------------------------------------------------------------------------------------------------- both

    def _hear(self, connection: Any, peer: Peer, answer: Callable[..., None]) -> None:
        try:
            found = connection.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            found = b""
        if not found:
            self._lost(connection, peer)
            return
        peer.heard = time.monotonic()
        *lines, peer.rest = (peer.rest + found).split(b"\n")
        try:
            for line in lines:
                words = json.loads(line)
                answer(connection, peer, words)
                peer.said_goodbye |= bool(words.get("goodbye"))
            stranger = len(peer.rest) > LONGEST_LINE
        except (ValueError, KeyError, TypeError, AttributeError):
            stranger = True
        if stranger:
            # Not a word to such a peer, which has no name.
            self._forget(connection)

    def _forget(self, connection: Any) -> None:
        self._selector.unregister(connection)
        connection.close()

    def _lost(self, connection: Any, peer: Peer) -> None:
        self._forget(connection)
        if peer.name and not peer.said_goodbye and not self._closed.wait(GRACE_S):
            self._end(f"{peer.name} has ended while it was {peer.doing}: killed, or out of memory?")

    def _look(self) -> None:
        """End the job if somebody has been silent, or waiting for patches, too long, or if the launcher is gone."""
        now = time.monotonic()
        if now < self._looked + self._beat_s:
            return
        # What this process lost itself (a suspended job, a busy machine) is not the silence of others; two beats are
        # normal. Without this, a pause of little more than the timeout ended jobs in which all ranks were well.
        lost_s = max(0.0, now - self._looked - 2 * self._beat_s)
        self._looked = now
        self._since = min(now, self._since + lost_s)
        peers = [key.data for key in self._selector.get_map().values() if key.data is not None and key.data.name]
        for peer in peers:
            peer.heard = min(now, peer.heard + lost_s)
        if os.getppid() != self._parent:
            self._end("the launcher has ended")
        for peer in peers:
            if now - peer.heard > self._timeout_s and not peer.said_goodbye:
                if self._comm.local_rank:
                    # Ranks: one of each host speaks.
                    self._closed.wait(GRACE_S)
                self._end(
                    f"{peer.name} has not answered for {self._timeout_s:g} s (--stall_timeout) while it was "
                    f"{peer.doing}: stopped, or its host or network is down"
                )
        waits = [Peer("this rank", now, self._doing, now - self._since), *peers] if self._comm.rank == 0 else []
        for peer in waits:
            if peer.doing == READING and peer.doing_s > READING_TIMES * self._timeout_s:
                self._end(
                    f"{peer.name} has been {READING} for {peer.doing_s:.0f} s (--stall_timeout): slides unreachable?"
                )


def _addresses() -> list[str]:
    """IPv4 addresses of this host, those of the loopback device last."""
    found = [a.address for device in psutil.net_if_addrs().values() for a in device if a.family == socket.AF_INET]
    return sorted(found, key=lambda address: address.startswith("127."))


def _connected(addresses: list[str], port: int) -> socket.socket | None:
    """A connection to the first of the addresses that takes it; None if none does in time."""
    until = time.monotonic() + CONNECT_S
    while time.monotonic() < until:
        for address in addresses:
            with contextlib.suppress(OSError):
                return socket.create_connection((address, port), timeout=2.0)
        time.sleep(0.5)
    return None
