"""Prints `refused` where a process may not copy another one's memory: process_vm_readv(2), denied by Docker's seccomp.

Open MPI copies messages within a host that way. Where it is refused it fails, with a warning for every message.
"""

from __future__ import annotations

import ctypes
import os
import sys


class _Vector(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def refused() -> bool:
    """Whether this process may not even copy its own memory that way."""
    source, target = ctypes.create_string_buffer(b"x"), ctypes.create_string_buffer(1)
    there, here = (_Vector(ctypes.addressof(buffer), 1) for buffer in (source, target))
    copied = ctypes.CDLL(None).process_vm_readv(
        os.getpid(), ctypes.byref(here), ctypes.c_ulong(1), ctypes.byref(there), ctypes.c_ulong(1), ctypes.c_ulong(0)
    )
    return bool(copied != 1)


if __name__ == "__main__" and refused():
    sys.stdout.write("refused\n")
