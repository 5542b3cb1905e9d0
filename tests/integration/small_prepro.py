"""Small slides for runs of run_prepro.sh, and what such a run leaves."""

import csv
import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.tiny import environment, write_label, write_slide

PATCHES = ["--patch_size", "64", "--resolution", "2", "--save_neg"]


def make_set(folder: Path, names: list[str]) -> Path:
    """Slides of a few hundred px, 2 um/px; those called tumor* with annotation."""
    for seed, name in enumerate(names):
        write_slide(folder / "img" / f"{name}.tif", (297 + seed, 271), seed, tumor=name.startswith("tumor"))
        if name.startswith("tumor"):
            write_label(folder / "xml" / f"{name}.xml")
    return folder


def words_of(data: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    words = ["--slide_path", str(data / "img"), "--label_path", str(data / "xml"), "--label_format", "xml"]
    return [*words, "--out", str(out), "--num_processes", str(processes), *PATCHES, *more]


def prepare(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "launch" / "run_module.py"), "preprocessing", *words],
        cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def written(out: Path) -> dict[str, bytes]:
    """All files but locks and marks."""
    every = (path for path in out.rglob("*") if path.is_file() and ".done" not in path.parts and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in every}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))
