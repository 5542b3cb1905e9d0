"""Slides that cost milliseconds, and train.py started on them as a user starts it.

A slide is 300 x 260 px or so at 2 um/px: pink tissue all over with a darker rectangle of tumor.
"""

import io
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import numpy as np

from slides.synthetic.demo import write_asap, write_pyramid
from tests.support.paths import ROOT

UM_PX = 2.0
# Tumor of every slide with tumor, level-0 px: x 60 to 180, y 70 to 200.
TUMOR_XY = np.array([(60, 70), (180, 70), (180, 200), (60, 200)], float)

# What a launcher, or pytest under one, left in the environment must not decide.
TRAIN = str(ROOT / "train.py")
THIN = str(ROOT / "tests" / "integration" / "thin_train.py")
SMALL = str(ROOT / "tests" / "integration" / "small_train.py")
CHOSEN = ("NP", "HOSTS", "HOSTFILE", "LAUNCHER", "LAUNCHER_ARGS", "DRY_RUN", "OMP_NUM_THREADS", "OPAL_PREFIX")


def tissue(size_xy: tuple[int, int], seed: int = 0, tumor: bool = True) -> np.ndarray:
    """Pink noise (H, W, 3) that every tissue search finds, darker and bluer where tumor is."""
    width, height = size_xy
    rng = np.random.default_rng(seed)
    mean_HWC = np.full((height, width, 3), (215, 150, 190), float)
    if tumor:
        (x0, y0), (x1, y1) = TUMOR_XY[0].astype(int), TUMOR_XY[2].astype(int)
        mean_HWC[y0:y1, x0:x1] = (130, 80, 160)
    noise_HW1 = rng.normal(0, 25, (height, width, 1))
    return np.clip(mean_HWC + noise_HW1, 0, 255).astype(np.uint8)


def write_slide(path: Path, size_xy: tuple[int, int], seed: int = 0, tumor: bool = True, um_px: float = UM_PX) -> None:
    """Write one slide; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_pyramid(path, tissue(size_xy, seed, tumor), um_px)


def write_label(path: Path, group: str = "_0", shape_xy: np.ndarray = TUMOR_XY) -> None:
    """Write one annotation; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_asap(path, [(group, shape_xy)])


class TinySet:
    """Training and validation slides under `folder`, in `{train,val}/{images,annotations}`.

    Args:
        folder: an empty folder.
        train: name -> size (x, y) of the training slides; those called `normal_*` have neither tumor nor annotation.
        val: the same for validation.
    """

    def __init__(
        self,
        folder: Path,
        train: dict[str, tuple[int, int]] | None = None,
        val: dict[str, tuple[int, int]] | None = None,
    ) -> None:
        self.folder = folder
        self.log_dir = folder / "log"
        parts = {
            "train": train or {"normal_001": (297, 271), "tumor_001": (311, 263), "tumor_002": (287, 301)},
            "val": val or {"tumor_101": (323, 259)},
        }
        for part, sizes in parts.items():
            for seed, (name, size_xy) in enumerate(sizes.items()):
                tumor = not name.startswith("normal")
                write_slide(self.slide(name, part), size_xy, seed, tumor)
                if tumor:
                    write_label(self.label(name, part))

    def slide(self, name: str, part: str = "train") -> Path:
        return self.folder / part / "images" / f"{name}.tif"

    def label(self, name: str, part: str = "train") -> Path:
        return self.folder / part / "annotations" / f"{name}.xml"

    def arguments(self, *more: str | Path, keep: bool = True, **changed: str | Path | list[str]) -> list[str]:
        """A command line for this set.

        Args:
            more: words to append.
            keep: whether there is a --log_dir.
            changed: option -> another word, or words.
        """
        options: dict[str, str | Path | list[str]] = {
            "slide_path": self.folder / "train" / "images",
            "label_path": self.folder / "train" / "annotations",
            "valid_slide_path": self.folder / "val" / "images",
            "valid_label_path": self.folder / "val" / "annotations",
            "label_format": "xml",
            "img_size": "128",
            "resolution": "2",
            "batch_size": "1",
            "num_steps": "4",
        }
        options |= {"log_dir": self.log_dir} if keep else {}
        words: list[str] = []
        for name, value in (options | changed).items():
            words += [f"--{name}", *(value if isinstance(value, list) else [str(value)])]
        return [*words, "--no_cuda", *map(str, more)]


def environment(**given: str) -> dict[str, str]:
    """This process' environment without what decides how ranks are started."""
    return {name: value for name, value in os.environ.items() if name not in CHOSEN} | given


def train(
    words: list[str], timeout: float = 240, cwd: Path = ROOT, script: str = TRAIN
) -> subprocess.CompletedProcess[str]:
    """Run train.py, or another script, with these arguments in one process without a launcher."""
    command = [sys.executable, script, *words]
    return subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def train_here(words: list[str]) -> subprocess.CompletedProcess[str]:
    """Call train.main with these arguments in this process: no start of Python, for runs that end early."""
    import train as program

    out, err = io.StringIO(), io.StringIO()
    with patch.object(sys, "argv", [TRAIN]), redirect_stdout(out), redirect_stderr(err):
        try:
            code = program.main(words)
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def run_train(
    *words: str | Path, cwd: Path = ROOT, timeout: float = 300, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ./run_train.sh with these words.

    Args:
        words: of the command line.
        cwd: folder that it is called from.
        timeout: s.
        env: for its environment: NP, LAUNCHER, SCRIPT ...
    """
    return subprocess.run(
        [str(ROOT / "run_train.sh"), *map(str, words)],
        cwd=cwd,
        env=environment(**env),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
