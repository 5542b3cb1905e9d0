"""predict.py as a user starts it: on one and three ranks, again, stopped, on bad slides and a full disk."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import tifffile

from slides.reader import Slide
from tests.integration.faults.job import small_disk
from tests.support.paths import ROOT
from tests.support.tiny import SMALL, TinySet, environment, run_train, write_slide
from tests.support.warm import warm

pytestmark = pytest.mark.xdist_group("predict")
SCRIPT = str(ROOT / "tests" / "integration" / "small_predict.py")
WHOLE = {
    "probability.tif", "label.tif", "polygons.geojson", "polygons.xml", "detections.csv", "overlay.png", "summary.json",
}  # fmt: skip
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    """Slides, and a small network trained until it tells tumor from tissue."""
    tiny = TinySet(tmp_path_factory.mktemp("predict"))
    words = tiny.arguments(num_steps="160", batch_size="4", base_lr="0.02", lr_schedule="cosine", log_every="80")
    done = warm.run(SMALL, words, environment())
    assert done.returncode == 0, done.stderr[-3000:]
    return tiny


def predict(tiny: TinySet, out: Path, *more: str | Path, ranks: int = 1, slides: Path | None = None):
    words = ("--model", tiny.log_dir, "--slide_path", slides or tiny.folder / "train" / "images", "--out", out)
    given = [str(word) for word in (*words, "--no_cuda", *more)]
    if ranks == 1:
        return warm.run(SCRIPT, given, environment(OMP_NUM_THREADS="1"))
    return run_train(*given, NP=str(ranks), SCRIPT=SCRIPT, OMP_NUM_THREADS="1")


def maps(out: Path, name: str = "probability.tif") -> dict[str, np.ndarray]:
    return {path.parent.name: tifffile.imread(path, level=0) for path in sorted(out.glob(f"*/{name}"))}


def results(out: Path) -> list[str]:
    """Names of what is in a folder of results, but for the file that says who works in it."""
    return sorted(path.name for path in out.iterdir() if path.name != ".lock")


@pytest.fixture(scope="module")
def once(tiny: TinySet) -> Path:
    """The results of one rank."""
    out = tiny.folder / "once"
    done = predict(tiny, out)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


def test_every_slide_has_all_its_results(tiny: TinySet, once: Path) -> None:
    folders = results(once)
    assert folders == ["normal_001", "tumor_001", "tumor_002"]
    assert [{path.name for path in (once / name).iterdir()} for name in folders] == [WHOLE] * 3
    summary = json.loads((once / "tumor_001" / "summary.json").read_text(encoding="utf-8"))
    assert summary["size_xy_l0"] == [311, 263]
    assert summary["windows_unreadable"] == 0
    assert summary["tumor_probability"] > 0.5
    # The tumor's rectangle, 120 x 130 px of 4 um2, by a network that sees 5 px.
    assert summary["area_mm2"]["1"] == pytest.approx(120 * 130 * 4e-6, rel=0.15)
    spacing = Slide(once / "tumor_001" / "probability.tif").um_px_xy_l0
    assert spacing == pytest.approx((2.0, 2.0), rel=1e-6)


@pytest.mark.kind("prediction on ranks")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_share_the_windows(tiny: TinySet, once: Path, ranks: int) -> None:
    out = tiny.folder / f"ranks{ranks}"
    done = predict(tiny, out, ranks=ranks)
    assert done.returncode == 0, done.stderr[-3000:]
    alone, shared = maps(once), maps(out)
    assert list(shared) == list(alone) != []
    for name, map_HW in alone.items():
        assert np.abs(shared[name].astype(int) - map_HW).max() <= 1
    assert results(out) == results(once)
    # Every rank took part: three slides of some 12 windows are cut at thirds.
    assert len(re.findall(r"^done ", done.stdout, re.MULTILINE)) == 3


def test_another_spacing_is_warned_of(tiny: TinySet) -> None:
    out = tiny.folder / "coarse"
    done = predict(tiny, out, "--resolution", "4", slides=tiny.slide("tumor_001"))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "WARNING     the model was trained at 2 um/px, not at 4" in done.stdout
    # 311 x 263 px of 2 um
    assert maps(out)["tumor_001"].shape == (132, 156)


def test_stain_options_give_the_same_on_ranks_and_are_told(tiny: TinySet) -> None:
    words = ("--stain_norm", "reinhard", "--adapt_bn")
    alone, shared = tiny.folder / "stain1", tiny.folder / "stain2"
    for out, ranks in ((alone, 1), (shared, 2)):
        done = predict(tiny, out, *words, ranks=ranks)
        assert done.returncode == 0, done.stderr[-3000:]
    assert list(maps(alone)) == ["normal_001", "tumor_001", "tumor_002"]
    for name, map_HW in maps(alone).items():
        assert np.abs(maps(shared)[name].astype(int) - map_HW).max() <= 1
    summary = json.loads((shared / "tumor_001" / "summary.json").read_text(encoding="utf-8"))
    assert (summary["options"]["stain_norm"], summary["options"]["adapt_bn"]) == ("reinhard", True)
    assert (summary["stain"]["norm"], summary["stain"]["adapt_bn"]) == ("reinhard", True)
    # A slide it was trained on.
    assert summary["stain"]["distance_from_training"] < 3
    refused = predict(tiny, tiny.folder / "stain3", "--stain_norm", "vahadane")
    assert refused.returncode == 2
    assert "--stain_norm vahadane: the model has no target for it; it has reinhard" in refused.stderr


def test_what_is_done_stays_and_other_options_are_refused(tiny: TinySet, once: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in once.glob("*/*")}
    again = predict(tiny, once)
    assert again.returncode == 0, again.stderr[-2000:]
    assert "3, 3 of them done before" in again.stdout
    other = predict(tiny, once, "--overlap", "0.5")
    assert other.returncode == 2
    assert re.search(r"error: .*normal_001 was predicted with other options \(overlap\)", other.stderr)
    assert {path: path.stat().st_mtime_ns for path in once.glob("*/*")} == before


def started(tiny: TinySet, out: Path, ranks: str, output: int) -> subprocess.Popen[str]:
    """A slow prediction by run_train.sh that has finished its first slide.

    Args:
        tiny: the slides and the model.
        out: where to.
        ranks: NP.
        output: of `subprocess`, for standard output and errors.
    """
    words = ["--model", tiny.log_dir, "--slide_path", tiny.folder / "train" / "images", "--out", out, "--no_cuda"]
    process = subprocess.Popen(
        [str(ROOT / "run_train.sh"), *map(str, words)],
        env=environment(NP=ranks, SCRIPT=SCRIPT, OMP_NUM_THREADS="1", SLOWLY="0.5"),
        stdin=subprocess.DEVNULL, stdout=output, stderr=output, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        until = time.monotonic() + 200
        while not (out / "normal_001").exists():
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
    except BaseException:
        process.kill()
        raise
    return process


def test_a_killed_prediction_goes_on(tiny: TinySet, once: Path) -> None:
    """SIGKILL when the first slide is done: the second job keeps it, and its results are those of one job."""
    out = tiny.folder / "killed"
    process = started(tiny, out, "1", subprocess.DEVNULL)
    try:
        # So that it holds the folder however long the second takes to start; the rank has a session of its own.
        everyone = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
        for one in everyone:
            one.suspend()
        second = predict(tiny, out)
        assert second.returncode == 2
        assert re.search(r"error: --out \S+ is in use by process \d+", second.stderr)
    finally:
        for one in psutil.Process(process.pid).children(recursive=True):
            one.kill()
        process.kill()
        process.wait()
    kept = (out / "normal_001" / "summary.json").stat().st_mtime_ns
    done = predict(tiny, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (out / "normal_001" / "summary.json").stat().st_mtime_ns == kept
    assert results(out) == results(once)
    for name in ("probability.tif", "label.tif", "polygons.geojson", "detections.csv"):
        for path in sorted(once.glob(f"*/{name}")):
            assert (out / path.parent.name / name).read_bytes() == path.read_bytes(), path


@pytest.mark.kind("prediction stopped")
@pytest.mark.parametrize("ranks", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_a_prediction_that_is_asked_to_stop_goes_on_later(
    tiny: TinySet, once: Path, ranks: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(tiny, out, ranks, subprocess.PIPE)
    try:
        os.killpg(process.pid, signal.SIGTERM)
        said, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 75, err
    assert re.search(r"^preempted   SIGUSR1: [12] slides? left of 3; the same command continues$", said, re.MULTILINE)
    assert ".scratch" not in results(out)
    done = predict(tiny, out)
    assert done.returncode == 0, done.stderr[-2000:]
    assert results(out) == results(once)


def test_one_bad_slide_does_not_lose_the_others(tiny: TinySet, tmp_path: Path) -> None:
    folder = tmp_path / "slides"
    write_slide(folder / "a good one.tif", (300, 260))
    write_slide(folder / "cut.tif", (300, 260))
    cut = folder / "cut.tif"
    cut.write_bytes(cut.read_bytes()[:1000])
    (folder / "none.tif").write_bytes(b"no slide at all")
    done = predict(tiny, tmp_path / "out", slides=folder)
    assert done.returncode == 1, done.stderr[-2000:]
    failed = re.findall(r"^FAILED +(\w+):", done.stdout.split("finished ")[1], re.MULTILINE)
    assert failed == ["cut", "none"]
    assert results(tmp_path / "out") == ["a good one"]
    strict = predict(tiny, tmp_path / "strict", "--strict", slides=folder)
    assert strict.returncode == 2
    assert len(re.findall(r"error: .*cut\.tif", strict.stderr)) == 1
    assert "Traceback" not in strict.stderr + done.stderr


@ROOT_ONLY
def test_a_full_disk_leaves_nothing_half_written(tiny: TinySet, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with small_disk(out, "48k"):
        done = predict(tiny, out)
        left = [path for path in out.rglob("*") if path.is_file() and path.name != ".lock"]
        whole = [path.parent for path in out.glob("*/summary.json")]
    assert done.returncode == 2, done.stdout[-2000:]
    assert len(re.findall("error: .*No space left on device", done.stderr)) == 1
    assert "Traceback" not in done.stderr
    assert [path for path in left if path.parent not in whole and ".scratch" not in path.parts] == []


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--model", "/nowhere"], "no such file or folder"),
        (["--resolution", "0"], "above 0"),
        (["--min_probability", "0"], "above 0"),
        (["--context_spacing", "8"], "without a context view"),
        (["--overlap", "1"], "below 1"),
    ],
)
def test_what_cannot_be_done_is_said_at_once(tiny: TinySet, words: list[str], why: str, tmp_path: Path) -> None:
    done = predict(tiny, tmp_path / "out", *words)
    assert done.returncode == 2
    assert len(re.findall(rf"predict\.py: error: .*{why}", done.stderr)) == 1, done.stderr[-2000:]
    assert "Traceback" not in done.stderr
