"""Preprocessing as users start it: run_prepro.sh, killed and resumed runs, full disks, MPI ranks, real slides."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tifffile

from preprocessing.command import STEPS
from preprocessing.store import Held
from tests.integration.bench import ROOT, Bench
from tests.integration.test_launcher import shell_words
from tests.integration.tiny import environment, tissue, write_label, write_slide
from tests.single.sparse import write_sparse

DATA = ROOT.parent / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"real slides are not at {DATA}")
PATCHES = ["--patch_size", "64", "--resolution", "2", "--save_neg"]


def make_set(folder: Path, names: list[str]) -> Path:
    """Slides of a few hundred px, 2 um/px; those called tumor* with annotation."""
    for seed, name in enumerate(names):
        write_slide(folder / "img" / f"{name}.tif", (297 + seed, 271), seed, tumour=name.startswith("tumor"))
        if name.startswith("tumor"):
            write_label(folder / "xml" / f"{name}.xml")
    return folder


def words_of(data: Path, out: Path, *more: str, processes: int = 1) -> list[str]:
    words = ["--slide_path", str(data / "img"), "--label_path", str(data / "xml"), "--label_format", "xml"]
    return [*words, "--out", str(out), "--num_processes", str(processes), *PATCHES, *more]


def prepare(*words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "prepro.py"), *words],
        cwd=cwd, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def written(out: Path) -> dict[str, bytes]:
    """All files but locks and marks."""
    every = (path for path in out.rglob("*") if path.is_file() and ".done" not in path.parts and path.name != ".lock")
    return {str(path.relative_to(out)): path.read_bytes() for path in every}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


# ------------------------------------------------------------------------------------------------------- run_prepro.sh


def test_the_script_passes_words_on_as_they_are(bench: Bench):
    python = str(bench.bin / "python")
    given = {"WIDEFOV_ENV": "active", "DRY_RUN": "1"}
    done = bench.run(ROOT / "run_prepro.sh", "--out", "a 'b' $(touch x)", **given)
    assert shell_words(done.stdout) == [python, "-u", str(ROOT / "prepro.py"), "--out", "a 'b' $(touch x)"]
    done = bench.run(ROOT / "run_prepro.sh", **given)
    assert "--slide_path runs/demo/slides/train/images" in done.stdout
    done = bench.run(ROOT / "run_prepro.sh", "--help", STEP="check", **given)
    assert shell_words(done.stdout) == [python, "-u", "-m", "preprocessing.check", "--help"]
    for wrong in ("runner", "no_such", "../train"):
        done = bench.run(ROOT / "run_prepro.sh", STEP=wrong, **given)
        assert (done.returncode, done.stderr.startswith(f"run_prepro.sh: STEP={wrong} is no step")) == (2, True)


@pytest.mark.parametrize("step", STEPS)
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
    assert again.stdout.count("nothing to do, all 5 slides are finished") == len(STEPS)


def test_mpi_ranks_of_the_script(tmp_path: Path):
    mpirun = Path(sys.executable).with_name("mpirun")
    if not mpirun.exists():
        pytest.skip("no mpirun beside this python")
    data = make_set(tmp_path, ["tumor_1", "normal_1", "normal_2"])
    (data / "img" / "bad.tif").write_bytes(b"no slide")
    root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", "OPAL_PREFIX": str(mpirun.parents[1])}
    words = words_of(data, tmp_path / "out")
    del words[words.index("--num_processes") :][:2]
    words = [word for word in words if word not in ("--num_processes", "1")]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    launch = [str(mpirun), "--oversubscribe", "--bind-to", "none", "-np", "3", str(ROOT / "run_prepro.sh")]
    env = environment(**root, WIDEFOV_ENV="active", PATH=path)
    done = subprocess.run(
        [*launch, *words], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
    )
    assert "on 3 MPI ranks (2 work, one gives out slides)" in done.stdout, done.stderr
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


@pytest.fixture(scope="module")
def eight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    """Eight slides, and what an uninterrupted run makes of them."""
    folder = tmp_path_factory.mktemp("eight")
    data = make_set(folder / "data", [*(f"tumor_{n}" for n in range(4)), *(f"normal_{n}" for n in range(4))])
    done = prepare(*words_of(data, folder / "out"))
    assert done.returncode == 0, done.stdout + done.stderr
    return data, written(folder / "out")


def ended_in(step: str, data: Path, out: Path, by: signal.Signals, processes: int) -> int:
    """Start a run and end it when `step` has finished its first slide; returns its exit code."""
    command = [sys.executable, str(ROOT / "prepro.py"), *words_of(data, out, processes=processes)]
    run = subprocess.Popen(
        command, env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    marks = out / ".done" / step
    deadline = time.monotonic() + 120
    while run.poll() is None and time.monotonic() < deadline:
        if marks.is_dir() and any(path.suffix == ".json" for path in marks.iterdir()):
            run.send_signal(by)
            break
        time.sleep(0.001)
    run.communicate(timeout=60)
    return run.returncode


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_every_step_and_resumed(
    step: str, processes: int, tmp_path: Path, eight: tuple[Path, dict[str, bytes]]
):
    data, expected = eight
    for attempt in range(5):
        out = tmp_path / f"out{attempt}"
        code = ended_in(step, data, out, signal.SIGKILL, processes)
        marks = [path for path in (out / ".done" / step).iterdir() if path.suffix == ".json"]
        if code == -signal.SIGKILL and len(marks) < 8:
            break
    else:
        pytest.fail("every run had finished the step before it was killed")
    done = prepare(*words_of(data, out, processes=processes))
    assert done.returncode == 0, done.stdout + done.stderr
    assert written(out) == expected
    assert not [path for path in out.rglob(".*.part") if ".done" not in path.parts]


@pytest.mark.parametrize(("by", "processes"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_asked_to_end(by: signal.Signals, processes: int, tmp_path: Path, eight: tuple[Path, dict[str, bytes]]):
    data, expected = eight
    assert ended_in("tissue", data, tmp_path / "out", by, processes) == 128 + by
    assert prepare(*words_of(data, tmp_path / "out", processes=processes)).returncode == 0
    assert written(tmp_path / "out") == expected


def test_two_runs_on_one_folder(tmp_path: Path):
    data = make_set(tmp_path, ["normal_1"])
    (data / "xml").mkdir()
    words = [word for word in words_of(data, tmp_path / "out") if word != str(data / "xml")]
    words.remove("--label_path")
    with Held(tmp_path / "out"):
        done = prepare(*words)
    assert done.returncode == 2
    assert done.stderr.startswith(f"prepro.py: error: --out {tmp_path}/out is in use by process {os.getpid()} on ")
    assert prepare(*words).returncode == 0


def test_a_full_disk(tmp_path: Path, eight: tuple[Path, dict[str, bytes]]):
    data, expected = eight
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = ["mount", "-t", "tmpfs", "-o", "size=700k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mounted, capture_output=True, check=False).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        done = prepare(*words_of(data, disk / "out"))
        assert done.returncode == 2
        assert f"prepro.py: error: the disk of --out {disk}/out is full" in done.stderr
        assert "make room and run the same command again" in done.stderr
        assert "Traceback" not in done.stderr
        subprocess.run(["mount", "-o", "remount,size=20m", str(disk)], check=True)
        assert prepare(*words_of(data, disk / "out")).returncode == 0
        assert written(disk / "out") == expected
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
    image_HWC = tissue((311, 263), tumour=False)
    about = {"axes": "YXS", "PhysicalSizeX": 0.5, "PhysicalSizeXUnit": "µm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(
        tmp_path / "img" / "rgb.ome.tif", image_HWC, ome=True, photometric="rgb", tile=(128, 128), metadata=about,
        resolution=(20_000, 20_000), resolutionunit="centimeter",
    )  # fmt: skip
    tifffile.imwrite(
        tmp_path / "img" / "planes.ome.tif", np.moveaxis(image_HWC, 2, 0).copy(), ome=True, photometric="minisblack",
        tile=(128, 128), resolution=(20_000, 20_000), resolutionunit="centimeter",
    )  # fmt: skip
    done = prepare("--slide_path", str(tmp_path / "img"), "--out", str(tmp_path / "out"), *PATCHES)
    assert done.returncode == 1
    assert "planes.ome slide " in done.stdout
    assert "several one-channel images of one size" in done.stdout
    (row,) = table(tmp_path / "out" / "manifest.csv")
    assert (row["slide"], row["um_px_x"], row["width"]) == ("rgb.ome", "0.5", "311")


# --------------------------------------------------------------------------------------------------------- real slides


@needs_data
@pytest.mark.parametrize("labels", ["annotations", "masks"])
def test_mosaics(labels: str, tmp_path: Path):
    base = DATA / "c16mosaic"
    words = [
        "--slide_path", str(base / "train/images"), "--label_path", str(base / "train" / labels), "--valid_slide_path",
        str(base / "val/images"), "--valid_label_path", str(base / "val" / labels), "--label_format",
        "xml" if labels == "annotations" else "tif", "--out", str(tmp_path), "--patch_size", "256", "--resolution",
        "0.5", "--save_neg", "--format", "jpeg",
    ]  # fmt: skip
    done = prepare(*words)
    assert done.returncode == 0, done.stdout + done.stderr
    expected = {row["slide"]: row for row in table(base / "slides.csv")}
    rows = table(tmp_path / "manifest.csv")
    assert len(rows) == 8
    px_mm2 = 0.243**2 / 1e6
    for row in rows:
        wanted = expected[row["slide"]]
        assert row["split"] == wanted["split"]
        tumour_mm2, tissue_mm2 = int(wanted["tumour_px_level0"]) * px_mm2, int(wanted["tissue_px_level0"]) * px_mm2
        # Masks are exact; these also have the px on their outlines, of which the outlines hold a half.
        assert float(row["tumor_mm2"]) == pytest.approx(tumour_mm2, rel=2e-5 if labels == "masks" else 5e-3, abs=1e-6)
        assert float(row["tissue_mm2"]) == pytest.approx(tissue_mm2, rel=0.03)
    patches = table(tmp_path / "patches" / "patches.csv")
    tumor = [row for row in patches if row["class"] == "tumor"]
    assert len(tumor) > 40
    assert len(patches) > 150
    # Tumour in the patches is tumour of the slides, but for the traces left out.
    area_mm2 = sum(float(row["tumor_share"]) for row in tumor) * (256 * 0.5e-3) ** 2
    assert area_mm2 == pytest.approx(sum(float(row["tumor_mm2"]) for row in rows), rel=0.01)
    assert all((tmp_path / "patches" / row["slide"] / row["file"]).is_file() for row in patches)


@needs_data
def test_areas_of_the_published_annotations(tmp_path: Path):
    expected = table(DATA / "annotations" / "expected_areas.csv")
    (tmp_path / "xml").mkdir()
    for row in expected:
        name = f"camelyon16_{row['slide'].lower()}"
        shutil.copy(DATA / "annotations" / f"{name}.xml", tmp_path / "xml")
        write_sparse(tmp_path / "img" / f"{name}.tif", (int(row["maxx"]) + 513, int(row["maxy"]) + 1031))
    words = ["--slide_path", str(tmp_path / "img"), "--label_path", str(tmp_path / "xml"), "--label_format", "xml"]
    patches = ["--patch_size", "256", "--resolution", "8", "--tissue_um_px", "16"]
    done = prepare(*words, "--out", str(tmp_path / "out"), *patches)
    assert done.returncode == 0, done.stdout + done.stderr
    # All is glass.
    assert "7 slides have under 1% tissue" in done.stdout
    rows = {row["slide"]: row for row in table(tmp_path / "out" / "manifest.csv")}
    assert len(rows) == 7
    for row in expected:
        found = rows[f"camelyon16_{row['slide'].lower()}"]
        area_l0 = float(found["tumor_mm2"]) * 1e6 / 0.243**2
        assert area_l0 == pytest.approx(float(row["positive_minus_negative_px2"]), rel=1e-3)
        groups = dict(part.split(":") for part in found["annotations"].split())
        # Of tumor_054's rings one has two points.
        assert int(groups["_0"]) == int(row["n_positive"]) - (row["slide"] == "Tumor_054")
        assert int(groups.get("_2", 0)) == int(row["n_negative"])


@needs_data
def test_formats_of_scanners(tmp_path: Path):
    for suffix, mpp in (("svs", ["--mpp", "0.5"]), ("ndpi", []), ("tif", ["--mpp", "0.5"])):
        folder = tmp_path / suffix
        folder.mkdir()
        for path in (DATA / "slides").glob(f"*.{suffix}"):
            (folder / path.name).symlink_to(path)
        words = ["--slide_path", str(folder), "--slide_format", suffix, "--out", str(folder / "out")]
        done = prepare(*words, *mpp, "--patch_size", "256", "--resolution", "0.5", "--save_neg")
        assert "Traceback" not in done.stderr
        slides = {row["slide"]: row for row in table(folder / "out" / "manifest.csv")}
        assert len(slides) == {"svs": 2, "ndpi": 1, "tif": 2}[suffix], done.stdout
    # Read whole, though OpenSlide refuses it.
    assert (slides["kidney-48-5"]["width"], slides["kidney-48-5"]["height"]) == ("1493", "901")
    done = prepare("--slide_path", str(DATA / "slides" / "kidney-48-5.tif"), "--out", str(tmp_path / "k"))
    assert done.returncode == 1
    assert "its spacing is unknown" in done.stdout
    assert "--mpp" in done.stdout
