"""GPUs of this machine as the driver lists them: which this process may use, and their memory. Without TensorFlow."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

# So that CUDA counts GPUs as nvidia-smi does, and not by their speed; used where the user has set nothing.
ORDER = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID"}
TIMEOUT_S = 30
HIDDEN = ("", "-1")


@dataclass(frozen=True)
class Gpu:
    """A GPU or, where one is divided, a part of it.

    Attributes:
        index: its number in nvidia-smi, that of the whole GPU for a part.
        uuid: as nvidia-smi prints it, `GPU-...` or `MIG-...`.
        gib: memory, GiB; None if the driver does not say.
    """

    index: int
    uuid: str
    gib: float | None


def listed() -> tuple[list[Gpu], str]:
    """All GPUs of this machine in the order of nvidia-smi, and why there are none where that program failed.

    A divided GPU (MIG) is followed by its parts. Both are empty on a machine without the program, or without a GPU.
    """
    program = shutil.which("nvidia-smi")
    if program is None:
        return [], ""
    lines, problem = _asked(program, "-L")
    if problem:
        return [], "" if "no devices" in problem.lower() else problem
    sizes = [_mib(line) for line in _asked(program, "--query-gpu=memory.total", "--format=csv,noheader,nounits")[0]]
    gpus: list[Gpu] = []
    for line in lines:
        if whole := re.match(r"GPU (\d+):.*\(UUID: ([^)]+)\)", line):
            index = int(whole[1])
            number = sum(not gpu.uuid.startswith("MIG-") for gpu in gpus)
            gpus.append(Gpu(index, whole[2], sizes[number] if number < len(sizes) else None))
        elif part := re.match(r"\s+MIG .*?(\d+)gb.*\(UUID: ([^)]+)\)", line):
            gpus.append(Gpu(gpus[-1].index, part[2], float(part[1])))
    return gpus, ""


def _asked(program: str, *words: str) -> tuple[list[str], str]:
    """Lines that a program prints, or why it failed, in a line."""
    try:
        done = subprocess.run([program, *words], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired) as error:
        return [], str(error)
    lines = [line for line in done.stdout.splitlines() if line.strip()]
    if done.returncode == 0:
        return lines, ""
    return [], " ".join((done.stdout + done.stderr).split())[:200] or f"exit code {done.returncode}"


def _mib(line: str) -> float | None:
    """GiB from a line that ends with MiB; None for `[N/A]`, as on machines whose GPU has no memory of its own."""
    last = line.replace(",", " ").split()[-1]
    return float(last) / 1024 if last.isdigit() else None


def visible(gpus: Sequence[Gpu], environment: Mapping[str, str] = os.environ) -> list[Gpu]:
    """The GPUs that CUDA shows this process, in its order: those of `CUDA_VISIBLE_DEVICES`, else all.

    As CUDA reads it: numbers, or UUIDs that may be cut short, up to the first that is not there.

    Args:
        gpus: of this machine.
        environment: of this process.
    """
    whole = [gpu for gpu in gpus if not gpu.uuid.startswith("MIG-")]
    if "CUDA_VISIBLE_DEVICES" not in environment:
        return whole
    found: list[Gpu] = []
    for name in (text.strip() for text in environment["CUDA_VISIBLE_DEVICES"].split(",")):
        if name.isdigit():
            named = [gpu for gpu in whole if gpu.index == int(name)]
        else:
            named = [gpu for gpu in gpus if name.startswith(("GPU-", "MIG-")) and gpu.uuid.startswith(name)]
        if len(named) != 1:
            break
        found += named
    return found


def wanted(environment: Mapping[str, str] = os.environ) -> bool:
    """Whether this process may use GPUs at all: they are not hidden by `CUDA_VISIBLE_DEVICES`, or `--no_cuda`."""
    return environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0].strip() not in HIDDEN


def own(local_rank: int) -> Gpu | None:
    """The GPU of a rank, by its number within the node, among those it may use; None without one."""
    gpus = visible(listed()[0]) if wanted() else []
    return gpus[local_rank % len(gpus)] if gpus else None
