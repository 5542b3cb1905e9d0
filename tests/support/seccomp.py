"""Runs a command as in a container whose seccomp filter refuses process_vm_readv: python seccomp.py COMMAND ...

Source: seccomp(2); the filter is the smallest with that effect, on x86-64.
"""

import ctypes
import errno
import os
import struct
import sys

PROCESS_VM_READV = 310
PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP, SECCOMP_MODE_FILTER = 38, 22, 2
LOAD_NUMBER = (0x20, 0, 0, 0)  # the number of the system call
SKIP_UNLESS = (0x15, 0, 1, PROCESS_VM_READV)
REFUSE, ALLOW = (0x06, 0, 0, 0x00050000 | errno.EPERM), (0x06, 0, 0, 0x7FFF0000)


class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def refuse() -> None:
    """Set the filter for this process and what it starts."""
    code = b"".join(struct.pack("HBBI", *step) for step in (LOAD_NUMBER, SKIP_UNLESS, REFUSE, ALLOW))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0),
        (PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.byref(Program(4, code)), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


if __name__ == "__main__":
    refuse()
    os.execvp(sys.argv[1], sys.argv[1:])
