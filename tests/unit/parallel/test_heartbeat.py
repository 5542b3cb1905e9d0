"""Heartbeat between ranks, and preemption; two ranks in one process, or a socket that plays one."""

import contextlib
import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator

import psutil
import pytest

from parallel import heartbeat as heartbeat_module
from parallel.heartbeat import READING, Heartbeat, Peer
from parallel.local_process import AT_WORK, IDLE, STOPPED, UNKNOWN, LocalProcess, describe, describe_this
from parallel.preemption import HOSTS_CHANGED, Preemption

TIMEOUT_S = 1.0


class Ranks:
    """`gather` for a Heartbeat of rank 0 and what it told the others."""

    def __init__(self, rank: int, shared: list) -> None:
        self.rank, self.size, self.local_rank, self.local_size = rank, 2, rank, 2
        self._shared = shared

    def gather(self, value):
        if self.rank == 0:
            self._shared.append(value)
        return [self._shared[0], None]


class Watched:
    """A Heartbeat of rank 0 that notes why it would end, and a socket that plays rank 1."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.shared: list = []
        self.heartbeat = Heartbeat(Ranks(0, self.shared), TIMEOUT_S, self.reasons.append)
        self.heartbeat.start()
        port, _, self.token, _ = self.shared[0]
        self.socket = socket.create_connection(("127.0.0.1", port))

    def report(self, **changes) -> None:
        line = {
            "token": self.token,
            "rank": 1,
            "host": "b",
            "doing": "in a step",
            "doing_s": 0.0,
            "process": [],
        } | changes
        self.socket.sendall(json.dumps(line).encode() + b"\n")

    def first_reason(self, wait_s: float = 60.0) -> str:
        until = time.monotonic() + wait_s
        while not self.reasons and time.monotonic() < until:
            time.sleep(0.02)
        return self.reasons[0] if self.reasons else ""


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watched]:
    monkeypatch.setattr(heartbeat_module, "GRACE_S", 0.1)
    made = Watched()
    with made.heartbeat:
        yield made
    made.socket.close()


def test_two_ranks_that_live_and_end_are_not_missed() -> None:
    reasons: list[str] = []
    shared: list = []
    with Heartbeat(Ranks(0, shared), TIMEOUT_S, reasons.append) as first:
        first.start()
        with Heartbeat(Ranks(1, shared), TIMEOUT_S, reasons.append) as second:
            second.start()
            time.sleep(2 * TIMEOUT_S)
        # Rank 1 is done; rank 0 continues for longer than it would wait for a silent rank.
        time.sleep(1.5 * TIMEOUT_S)
    assert reasons == []


def test_silence_is_named_with_rank_host_and_place(watched: Watched) -> None:
    watched.report(doing="validating")
    reason = watched.first_reason()
    assert reason == (
        "rank 1 of 2 (b) has not answered for 1 s (--stall_timeout) while it was validating: "
        "stopped, or its host or network is down"
    )


@contextlib.contextmanager
def python(source: str) -> Iterator[psutil.Process]:
    """A process that is busy with a line of Python."""
    with subprocess.Popen([sys.executable, "-c", source]) as process:
        try:
            yield psutil.Process(process.pid)
        finally:
            process.kill()


def test_a_silent_rank_of_this_host_is_looked_at() -> None:
    with python("import time; time.sleep(600)") as process:
        known = LocalProcess(describe(process.pid))
        until = time.monotonic() + 60
        while known.look() != IDLE and time.monotonic() < until:
            time.sleep(0.1)
        assert known.look() == IDLE
        process.suspend()
        while process.status() != psutil.STATUS_STOPPED:
            time.sleep(0.01)
        assert known.look() == STOPPED
        assert not known.gone()
    assert known.look() == UNKNOWN
    assert known.gone()
    ours = describe_this()
    elsewhere = LocalProcess(["elsewhere", *ours[1:]])
    assert elsewhere.look() == UNKNOWN
    assert not elsewhere.gone()
    assert not LocalProcess([]).gone()
    assert LocalProcess([*ours[:2], ours[2] - 5]).look() == UNKNOWN
    assert LocalProcess([]).look() == UNKNOWN


def test_a_rank_that_is_silent_at_work_gets_longer(watched: Watched) -> None:
    """As in native code that holds Python's lock, or in a library that is loaded from a slow disk."""
    with python("while True: pass") as process:
        watched.report(process=describe(process.pid))
        assert watched.first_reason(2.5 * TIMEOUT_S) == ""
        reason = watched.first_reason()
    assert reason.startswith("rank 1 of 2 (b) has not answered for 5 s (5 x --stall_timeout) while it was in a step: ")
    assert reason.endswith(AT_WORK)


def test_rank_0_tells_what_it_is_doing(watched: Watched) -> None:
    watched.heartbeat.doing = "validating"
    other = Heartbeat(Ranks(1, watched.shared), TIMEOUT_S, pytest.fail)
    with other:
        other.start()
        (key,) = other._selector.get_map().values()
        until = time.monotonic() + 60
        while key.data.doing != "validating" and time.monotonic() < until:
            time.sleep(0.02)
        assert key.data.doing == "validating"
        assert key.data.process.description == describe_this()


def test_an_end_without_goodbye_is_named(watched: Watched) -> None:
    watched.report()
    watched.socket.close()
    assert watched.first_reason() == "rank 1 of 2 (b) has ended while it was in a step: killed, or out of memory?"


def test_an_end_with_goodbye_is_not(watched: Watched) -> None:
    watched.report(goodbye=True)
    watched.socket.close()
    assert watched.first_reason(1.5 * TIMEOUT_S) == ""


def test_a_rank_without_patches_is_named(watched: Watched) -> None:
    for _ in range(3):
        watched.report(doing=READING, doing_s=4 * TIMEOUT_S)
        time.sleep(TIMEOUT_S / 4)
    assert watched.reasons == []
    watched.report(doing=READING, doing_s=6.4)
    reason = watched.first_reason()
    assert reason.startswith("rank 1 of 2 (b) has been waiting for patches for 6 s (--stall_timeout)")


def test_rank_0_itself_may_be_without_patches(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "READING_TIMES", 1.5)
    stuck = threading.Event()

    def batches() -> Iterator[int]:
        yield 1
        stuck.wait(60)

    taken = watched.heartbeat.watched(batches())
    assert next(taken) == 1
    thread = threading.Thread(target=lambda: next(taken, None))
    thread.start()
    reason = watched.first_reason()
    stuck.set()
    thread.join()
    assert re.match(r"this rank has been waiting for patches for [1-9]\d* s", reason)


@pytest.mark.parametrize(
    "words",
    [b"GET / HTTP/1.1\r\n\r\n", b"[1]\n", b'{"token": "guessed", "rank": 1}\n', b"x" * 70000, b"no\n" + b"x" * 65537],
)
def test_strangers_are_turned_away(words: bytes, watched: Watched) -> None:
    stranger = socket.create_connection(("127.0.0.1", watched.shared[0][0]))
    stranger.sendall(words)
    stranger.settimeout(5)
    # Closed; what was not read by then makes it a reset.
    with contextlib.suppress(ConnectionResetError):
        assert stranger.recv(100) == b""
    # Ranks are still answered.
    watched.report()
    watched.socket.settimeout(5)
    assert json.loads(watched.socket.recv(1000))["doing"] == "starting"
    assert watched.reasons == []


class Clock:
    """Stands for the module `time` of the heartbeat."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.mark.parametrize("pause_s", [1.1, 100.0])
def test_a_pause_of_the_whole_job_is_nobodys_silence(pause_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after SIGSTOP and SIGCONT to all of it, or on a machine that was busy with something else."""
    clock = Clock()
    monkeypatch.setattr(heartbeat_module, "time", clock)
    monkeypatch.setattr(heartbeat_module, "GRACE_S", 0.0)
    reasons: list[str] = []
    heartbeat = Heartbeat(Ranks(0, []), TIMEOUT_S, reasons.append)
    heartbeat.doing = READING
    ours, theirs = socket.socketpair()
    with ours, theirs:
        heartbeat._selector.register(ours, selectors.EVENT_READ, Peer("rank 1 of 2 (b)", clock.now))
        clock.now += pause_s
        heartbeat._check()
        assert reasons == []
        # Silence from then on is one: 1 s at 5 looks a second, and what two beats of the pause count for.
        looks = 0
        while not reasons and looks < 20:
            clock.now += 0.2
            looks += 1
            heartbeat._check()
    assert looks in (3, 4)
    assert reasons[0].startswith("rank 1 of 2 (b) has not answered for 1 s")


def test_silence_of_rank_0_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "GRACE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as server:
        reasons: list[str] = []
        shared = [(server.getsockname()[1], ["127.0.0.1"], "token", "a")]
        with Heartbeat(Ranks(1, shared), TIMEOUT_S, reasons.append) as second:
            second.start()
            until = time.monotonic() + 60
            while not reasons and time.monotonic() < until:
                time.sleep(0.02)
    assert reasons[0].startswith("rank 0 (a) has not answered for 1 s")


def test_a_launcher_that_is_gone_is_noticed(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getppid", lambda: 1)
    assert watched.first_reason() == "the launcher has ended"


def test_nothing_is_watched_at_timeout_0() -> None:
    with Heartbeat(Ranks(0, []), 0.0, pytest.fail) as idle:
        idle.start()
        assert idle._thread is None
        assert list(idle.watched([3, 4])) == [3, 4]


# ---------------------------------------------------------------------------------------------------------- preemption


@pytest.fixture
def handlers() -> Iterator[None]:
    """Puts the signals back to what they did."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_request(number: signal.Signals, handlers: None) -> None:
    preemption = Preemption()
    preemption.listen()
    assert preemption.requested == ""
    signal.raise_signal(number)
    # From the terminal and from the launcher: one request.
    signal.raise_signal(number)
    assert preemption.requested == number.name


def test_a_signal_after_a_change_of_hosts_is_the_first(handlers: None) -> None:
    preemption = Preemption()
    preemption.listen()
    preemption.hosts_changed()
    assert preemption.requested == HOSTS_CHANGED
    signal.raise_signal(signal.SIGTERM)
    assert preemption.requested == "SIGTERM"


def test_a_second_request_ends_at_once(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    preemption = Preemption()
    preemption.listen()
    signal.raise_signal(signal.SIGINT)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    default: Callable = signal.default_int_handler
    monkeypatch.setattr(signal, "SIG_DFL", default)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_closed_terminal_after_another_request_ends_nothing(handlers: None, monkeypatch: pytest.MonkeyPatch) -> None:
    preemption = Preemption()
    preemption.listen()
    signal.raise_signal(signal.SIGINT)
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 2)
    for number in (signal.SIGHUP, signal.SIGUSR1):
        signal.raise_signal(number)
    assert preemption.requested == "SIGINT"


def test_under_nohup_a_closed_terminal_is_no_request(handlers: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    preemption = Preemption()
    preemption.listen()
    signal.raise_signal(signal.SIGHUP)
    assert preemption.requested == ""
