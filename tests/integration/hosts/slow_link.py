"""A cable with delay and loss between a host and the switch, for kernels with and without netem.

Two TAP devices joined by this process: one stays here as PORT, the other becomes eth0 of the host with the process
number PID. Frames of either direction wait DELAY seconds in order; of all frames a share LOSS is dropped, the same
ones in every run of the same traffic.

`slow_link.py PORT PID DELAY LOSS COUNTS`; COUNTS is a file that gets "passed dropped" once a second.
"""

from __future__ import annotations

import fcntl
import os
import random
import select
import struct
import subprocess
import sys
import time
from collections import deque
from contextlib import suppress
from pathlib import Path

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES = 65536


def open_tap(name: str) -> int:
    """A TAP device of this name in this network namespace; its file descriptor moves with nobody."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return device


def drain(device: int, queue: deque[tuple[float, bytes]], delay: float, loss: float) -> tuple[int, int]:
    """Take the frames that wait at the device; how many were queued and how many dropped."""
    passed = dropped = 0
    while True:
        try:
            frame = os.read(device, FRAME_BYTES)
        except BlockingIOError:
            return passed, dropped
        if random.random() < loss:
            dropped += 1
        else:
            passed += 1
            queue.append((time.monotonic() + delay, frame))


def run(devices: tuple[int, int], delay: float, loss: float, counts: Path) -> None:
    """Carry frames until killed."""
    # [i] holds what came out of device i and goes into the other.
    queues: tuple[deque[tuple[float, bytes]], deque[tuple[float, bytes]]] = (deque(), deque())
    total = [0, 0]
    written = 0.0
    while True:
        now = time.monotonic()
        due = [queue[0][0] for queue in queues if queue]
        ready = select.select(devices, [], [], max(0.0, min(due) - now) if due else 1.0)[0]
        for device in ready:
            passed, dropped = drain(device, queues[devices.index(device)], delay, loss)
            total = [total[0] + passed, total[1] + dropped]
        now = time.monotonic()
        for queue, other in zip(queues, reversed(devices), strict=True):
            while queue and queue[0][0] <= now:
                # A device that is down refuses: as a cable without a plug, the frame is lost.
                with suppress(OSError):
                    os.write(other, queue.popleft()[1])
        if now - written >= 1:
            counts.write_text(f"{total[0]} {total[1]}\n", encoding="utf-8")
            written = now


def main() -> None:
    port, pid, delay, loss, counts = sys.argv[1:]
    random.seed(7)
    near, far = open_tap(port), open_tap("far")
    subprocess.run(["ip", "link", "set", "far", "netns", pid, "name", "eth0"], check=True)
    print("joined", flush=True)
    run((near, far), float(delay), float(loss), Path(counts))


if __name__ == "__main__":
    main()
