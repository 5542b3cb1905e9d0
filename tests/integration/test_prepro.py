"""Preprocessing as users start it: run_prepro.sh, killed and resumed runs, full disks, MPI ranks."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.steps import FULL_RUN, NAMES
from system.folder_lock import FolderLock
from system.version import __version__
from tests.integration.small_prepro import PATCHES, make_set, prepare, table, words_of, written
from tests.support.bench import Bench
from tests.support.paths import ROOT
from tests.support.stub_launchers import shell_words
from tests.support.tiny import environment, tissue, write_label

# ------------------------------------------------------------------------------------------------------- run_prepro.sh


def test_the_script_passes_words_on_as_they_are(bench: Bench):
    python = [str(bench.bin / "python"), "-u", str(ROOT / "launch" / "run_module.py")]
    given = {"WIDEFOV_ENV": "active", "DRY_RUN": "1"}
    done = bench.run(ROOT / "run_prepro.sh", "--out", "a 'b' $(touch x)", **given)
    assert shell_words(done.stdout) == [*python, "preprocessing", "--out", "a 'b' $(touch x)"]
    done = bench.run(ROOT / "run_prepro.sh", **given)
    assert "--slide_path runs/demo/slides/train/images" in done.stdout
    done = bench.run(ROOT / "run_prepro.sh", "--help", STEP="check", **given)
    assert shell_words(done.stdout) == [*python, "preprocessing.check", "--help"]
    for wrong in ("runner", "no_such", "../train"):
        done = bench.run(ROOT / "run_prepro.sh", STEP=wrong, **given)
        assert (done.returncode, done.stderr.startswith(f"run_prepro.sh: STEP={wrong} is not a step")) == (2, True)
        assert done.stderr.endswith(f": {', '.join(NAMES)} and pack\n")


@pytest.mark.parametrize("module", ["preprocessing", "preprocessing.check"])
def test_modules_of_the_user_are_not_taken_for_ours(module: str, tmp_path: Path):
    for name in ("options.py", "cohorts.py", "check.py", "numpy.py"):
        (tmp_path / name).write_text("raise SystemExit(9)\n", encoding="utf-8")
    command = [sys.executable, "-u", str(ROOT / "launch" / "run_module.py"), module, "--version"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, f"widefov {__version__}\n")


@pytest.mark.parametrize("step", NAMES)
def test_every_step_has_help(step: str):
    command = [sys.executable, "-m", f"preprocessing.{step}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert f"python -m preprocessing.{step} --slide_path" in done.stdout


def test_relative_paths_and_names_that_break_quoting(tmp_path: Path):
    names = ['tumor "1" é', "normal $(touch p)", "normal;&|", "normal\n2", "-x"]
    make_set(tmp_path / "my 'set'", names)
    done = prepare(*words_of(Path("my 'set'"), Path("out é"), processes=2), cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row["slide"] for row in table(tmp_path / "out é" / "manifest.csv")] == sorted(names)
    assert {row["slide"] for row in table(tmp_path / "out é" / "patches" / "patches.csv")} == set(names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["my 'set'", "out é"]
    again = prepare(*words_of(Path("my 'set'"), Path("out é"), processes=2), cwd=tmp_path)
    assert again.stdout.count("nothing to do, finished before: 5 slides") == len(FULL_RUN)


def test_mpi_ranks_of_the_script(tmp_path: Path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python")
    data = make_set(tmp_path, ["tumor_1", "normal_1", "normal_2"])
    (data / "img" / "bad.tif").write_bytes(b"no slide")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OPAL_PREFIX": str(mpirun.parents[1])}
    words = words_of(data, tmp_path / "out")
    at = words.index("--num_processes")
    del words[at : at + 2]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    launch = [str(mpirun), "--oversubscribe", "--bind-to", "none", "-np", "3", str(ROOT / "run_prepro.sh")]
    env = environment(**root, WIDEFOV_ENV="active", PATH=path)
    done = subprocess.run(
        [*launch, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert "on 3 MPI ranks (2 work, one assigns slides)" in done.stdout, done.stderr
    assert done.stdout.count("1 failed:") == 1
    assert done.returncode == 1
    one = prepare(*words_of(data, tmp_path / "alone"))
    assert one.returncode == 1
    assert written(tmp_path / "out") == written(tmp_path / "alone")
    # A number of processes beside ranks is a mistake, said once.
    done = subprocess.run(
        [*launch, *words_of(data, tmp_path / "out")], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.stderr.count("--num_processes 1 under MPI: its 3 ranks are the processes") == 1
    assert done.returncode == 2


# -------------------------------------------------------------------------------------------- ended in the middle of it


class Eight:
    """Eight slides, and what uninterrupted runs with all steps make of them.

    Args:
        folder: an empty folder.
    """

    def __init__(self, folder: Path) -> None:
        names = [*(f"tumor_{n}" for n in range(4)), *(f"normal_{n}" for n in range(4))]
        self.data = make_set(folder / "data", names)
        (self.data / "labels.csv").write_text("slide_id,label\n" + "".join(f"{name},{name[:-2]}\n" for name in names))
        self.made = {"": self._made("", folder / "xml")}
        # From here on there are masks, too.
        shutil.copytree(folder / "xml" / "masks", self.data / "masks")
        self.made["mask_to_xml"] = self._made("mask_to_xml", folder / "tif")

    def words(self, step: str, out: Path, processes: int = 1) -> list[str]:
        """A run that has this step: that of masks alone, or of all others."""
        if step == "mask_to_xml":
            words = [
                "--slide_path",
                str(self.data / "img"),
                "--label_path",
                str(self.data / "masks"),
                "--out",
                str(out),
            ]
            return [*words, "--steps", step, "--num_processes", str(processes)]
        steps = [name for name in NAMES if name != "mask_to_xml"]
        whole = ["--labels", str(self.data / "labels.csv"), "--trim_um_px", "4", "--extract_um_px", "4"]
        return words_of(self.data, out, "--steps", *steps, *whole, processes=processes)

    def expected(self, step: str) -> dict[str, bytes]:
        """What `words` makes."""
        return self.made[step if step in self.made else ""]

    def _made(self, step: str, out: Path) -> dict[str, bytes]:
        done = prepare(*self.words(step, out))
        assert done.returncode == 0, done.stdout + done.stderr
        return written(out)


# One process: what `eight` holds is made once.
EIGHT = pytest.mark.xdist_group("eight")


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> Eight:
    return Eight(tmp_path_factory.mktemp("eight"))


@EIGHT
def test_every_step_has_left_something(eight: Eight):
    folders = {name.split("/")[0] for name in [*eight.expected(""), *eight.expected("mask_to_xml")]}
    whole = {"trim_tissue", "extract_tissue"}
    assert folders == {"check", "tissue", "masks", "annotations", "patches", "manifest.csv"} | whole


def ended_in(step: str, eight: Eight, out: Path, by: signal.Signals, processes: int) -> int:
    """A run that ends in `step` when its first slide is finished; returns its exit code."""
    script = str(ROOT / "tests" / "integration" / "ended_prepro.py")
    command = [sys.executable, script, step, str(int(by)), *eight.words(step, out, processes)]
    return subprocess.run(
        command, cwd=ROOT, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, timeout=120, check=False
    ).returncode


IN_PROCESSES = ("tissue", "extract_patches")


@EIGHT
@pytest.mark.kind("step killed")
@pytest.mark.parametrize(
    ("step", "processes"),
    [
        *((step, 1) for step in NAMES),
        *((step, 2) for step in IN_PROCESSES),
        # A pool of processes for each of eight steps takes ten seconds.
        *(pytest.param(step, 2, marks=pytest.mark.slow) for step in NAMES if step not in IN_PROCESSES),
    ],
)
def test_killed_in_every_step_and_resumed(step: str, processes: int, tmp_path: Path, eight: Eight):
    out = tmp_path / "out"
    assert ended_in(step, eight, out, signal.SIGKILL, processes) == -signal.SIGKILL
    marks = [path for path in (out / ".done" / step).iterdir() if path.suffix == ".json"]
    assert 0 < len(marks) < 8
    done = prepare(*eight.words(step, out, processes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(out) == eight.expected(step)
    assert not [path for path in out.rglob(".*.part") if ".done" not in path.parts]


@EIGHT
@pytest.mark.parametrize(("by", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1), (signal.SIGHUP, 1)])
def test_asked_to_end(by: signal.Signals, processes: int, tmp_path: Path, eight: Eight):
    assert ended_in("tissue", eight, tmp_path / "out", by, processes) == 128 + by
    assert prepare(*eight.words("tissue", tmp_path / "out", processes)).returncode == 0
    assert written(tmp_path / "out") == eight.expected("tissue")


def test_two_runs_on_one_folder(tmp_path: Path):
    data = make_set(tmp_path, ["normal_1"])
    (data / "xml").mkdir()
    words = [word for word in words_of(data, tmp_path / "out") if word != str(data / "xml")]
    words.remove("--label_path")
    with FolderLock(tmp_path / "out"):
        done = prepare(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"run_prepro.sh: error: --out {tmp_path}/out is in use by process {os.getpid()} on ")
    assert prepare(*words).returncode == 0


@EIGHT
def test_a_full_disk(tmp_path: Path, eight: Eight):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = prepare(*eight.words("", disk / "out"))
        assert done.returncode == 2
        assert f"run_prepro.sh: error: the disk of --out {disk}/out is full" in done.stderr
        assert "free some space and run the same command again" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert prepare(*eight.words("", disk / "out")).returncode == 0
        assert written(disk / "out") == eight.expected("")
    finally:
        subprocess.run(["umount", str(disk)], check=True)


# ----------------------------------------------------------------------------------------------------------- bad input


def test_bad_slides_and_wrong_pairs_are_one_line_each(tmp_path: Path):
    data = make_set(tmp_path, ["tumor_1", "tumor_2", "normal_1", "normal_2"])
    (data / "img" / "normal_2.tif").write_bytes((data / "img" / "normal_2.tif").read_bytes()[:2000])
    (data / "img" / "normal_3.tif").touch()
    write_label(data / "xml" / "tumor_2.xml", shape_xy=np.array([(9000, 9000), (9100, 9000), (9100, 9100)], float))
    done = prepare(*words_of(data, tmp_path / "out"))
    assert done.returncode == 1
    rows = done.stdout.split("3 failed:\n")[1].splitlines()[1:]
    assert [row.split()[:2] for row in rows] == [["check", "normal_2"], ["check", "normal_3"], ["check", "tumor_2"]]
    assert "every annotation lies outside slide" in rows[2]
    assert [row["slide"] for row in table(tmp_path / "out" / "manifest.csv")] == ["normal_1", "tumor_1"]
    (data / "img" / "tumor_1.tif").rename(data / "img" / "Tumor_1.tif")
    done = prepare(*words_of(data, tmp_path / "out"))
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "labels without a slide" in done.stderr


def test_ome_tiff_is_read_or_refused_clearly(tmp_path: Path):
    (tmp_path / "img").mkdir()
    image_HWC = tissue((311, 263), tumor=False)
    about = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(
        tmp_path / "img" / "rgb.ome.tif", image_HWC, ome=True, photometric="rgb", tile=(128, 128), metadata=about,
        resolution=(20_000, 20_000), resolutionunit="centimeter",
    )  # fmt: skip
    planes_CHW = np.moveaxis(image_HWC, 2, 0).copy()
    for name, channels in (("planes", None), ("stained", {"Name": ["DAPI", "FITC", "TRITC"]})):
        about = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5} | (
            {"Channel": channels} if channels else {}
        )
        tifffile.imwrite(
            tmp_path / "img" / f"{name}.ome.tif", planes_CHW, ome=True, photometric="minisblack", tile=(128, 128),
            metadata=about,
        )  # fmt: skip
    done = prepare("--slide_path", str(tmp_path / "img"), "--out", str(tmp_path / "out"), *PATCHES)
    assert done.returncode == 1
    assert "stained.ome slide " in done.stdout
    assert "'DAPI', 'FITC', 'TRITC'" in done.stdout
    assert "fluorescence is not read" in done.stdout
    rows = table(tmp_path / "out" / "manifest.csv")
    assert [(row["slide"], row["um_px_x"], row["width"]) for row in rows] == [
        ("planes.ome", "0.5", "311"), ("rgb.ome", "0.5", "311"),
    ]  # fmt: skip
    # The same image in two layouts.
    one, other = (sorted((tmp_path / "out" / "patches" / name).rglob("*.png")) for name in ("planes.ome", "rgb.ome"))
    assert [path.read_bytes() for path in one] == [path.read_bytes() for path in other] != []
