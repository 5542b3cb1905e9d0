"""GPUs as nvidia-smi lists them, by a stand-in for it, and which of them a process may use."""

from collections.abc import Callable
from pathlib import Path

import pytest

from system import gpus
from system.gpus import Gpu

A, B, C = Gpu(0, "GPU-1aa", 80.0), Gpu(1, "GPU-1bb", 40.0), Gpu(2, "GPU-2cc", None)
PART = Gpu(2, "MIG-3dd", 10.0)


@pytest.fixture
def smi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Puts a shell script in nvidia-smi's place."""

    def write(script: str) -> None:
        program = tmp_path / "nvidia-smi"
        program.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
        program.chmod(0o755)

    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return write


LISTS = """
case "$*" in
-L) printf 'GPU 0: NVIDIA A100 (UUID: GPU-1aa)\\nGPU 1: NVIDIA A40 (UUID: GPU-1bb)\\nGPU 2: X (UUID: GPU-2cc)\\n'
    printf '  MIG 1g.10gb     Device  0: (UUID: MIG-3dd)\\n' ;;
*memory.total*) printf '81920\\n40960\\n[N/A]\\n' ;;
esac
"""


def test_gpus_and_their_memory(smi: Callable[[str], None]) -> None:
    smi(LISTS)
    assert gpus.listed() == ([A, B, C, PART], "")


@pytest.mark.parametrize(
    ("script", "problem"),
    [
        ("echo No devices were found; exit 6", ""),
        (
            "echo NVIDIA-SMI has failed because it couldnt; echo talk; exit 9",
            "NVIDIA-SMI has failed because it couldnt talk",
        ),
        ("exit 9", "exit code 9"),
    ],
)
def test_no_gpus(script: str, problem: str, smi: Callable[[str], None]) -> None:
    smi(script)
    assert gpus.listed() == ([], problem)


@pytest.mark.parametrize(
    ("variable", "expected"),
    [
        ("0,1", [A, B]),
        ("1, 0", [B, A]),
        ("2", [C]),
        ("GPU-2,GPU-1a", [C, A]),
        ("MIG-3dd", [PART]),
        ("GPU-1", []),  # two begin with it
        ("1,7,0", [B]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
    ],
)
def test_visible_are_those_that_cuda_shows(variable: str, expected: list[Gpu]) -> None:
    assert gpus.visible([A, B, C, PART], {"CUDA_VISIBLE_DEVICES": variable}) == expected


def test_without_the_variable_all_are_visible() -> None:
    assert gpus.visible([A, B, PART], {}) == [A, B]


@pytest.mark.parametrize(("variable", "expected"), [("1,0", [B, A, B]), ("-1", [None] * 3), ("", [None] * 3)])
def test_each_rank_of_a_node_has_its_own(
    variable: str, expected: list[Gpu | None], smi: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(LISTS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert [gpus.own(rank) for rank in range(3)] == expected
