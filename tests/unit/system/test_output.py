"""Standard output without a reader, and one that is slow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT

PROGRAM = """
import sys
import system.start
for number in range(1000):
    print(number, "x" * 200)
    print(number, "y" * 200, file=sys.stderr)
open(sys.argv[1], "w").close()
"""


def started(path: Path, *options: str, **streams: int) -> subprocess.Popen[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return subprocess.Popen(
        [sys.executable, *options, "-c", PROGRAM, str(path)], cwd=ROOT, env=env, text=True, **streams
    )


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_a_program_outlives_its_readers(options: tuple[str, ...], tmp_path: Path) -> None:
    with started(tmp_path / "end", *options, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith("0 xxx")
        process.stdout.close()
        process.stderr.close()
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").exists()


def test_a_full_disk_under_a_log_ends_nothing(tmp_path: Path) -> None:
    full = os.open("/dev/full", os.O_WRONLY)
    with started(tmp_path / "end", stdout=full, stderr=full) as process:
        os.close(full)
        assert process.wait(timeout=60) == 0
    assert (tmp_path / "end").exists()


def test_a_slow_reader_gets_everything_though_the_pipe_does_not_block(tmp_path: Path) -> None:
    reads, writes = os.pipe()
    os.set_blocking(writes, False)
    with started(tmp_path / "end", "-u", stdout=writes, stderr=subprocess.DEVNULL) as process:
        os.close(writes)
        with open(reads, encoding="ascii") as file:
            lines = file.read().splitlines()
        assert process.wait(timeout=60) == 0
    assert lines == [f"{number} {'x' * 200}" for number in range(1000)]


def test_the_slides_of_the_demo_are_made_though_nobody_reads_their_names() -> None:
    code = "from slides.synthetic.demo import command_line\ncommand_line(lambda out, seed: [out] * 20000, 'x')"
    process = subprocess.Popen([sys.executable, "-c", code, "--out", "x"], cwd=ROOT, stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0
