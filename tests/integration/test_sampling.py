"""Sampling of whole runs: every option at work, what is logged, and the replay of it. A network of two convolutions."""

import csv
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from samplers.patch import draw
from samplers.replay import Replay
from slides.truth.annotation import read_annotations
from tests.support.paths import ROOT
from tests.support.tiny import SMALL, UM_PX, TinySet, environment, run_train
from tests.support.warm import warm

pytestmark = pytest.mark.xdist_group("sampling")


def small_train(words: list[str], ranks: int = 1) -> subprocess.CompletedProcess[str]:
    if ranks == 1:
        return warm.run(SMALL, words, environment())
    return run_train(*words, NP=str(ranks), SCRIPT=SMALL)


def rows_of(log_dir: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = []
    for path in sorted((log_dir / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return sorted(rows, key=lambda row: int(row["index"]))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[TinySet, subprocess.CompletedProcess[str], Path]:
    """Sixty images on two ranks with everything switched on."""
    tiny = TinySet(tmp_path_factory.mktemp("sampling"))
    stage = tiny.folder / "node"
    words = tiny.arguments(num_steps="60", batch_size="2", resolution="1", log_every="8", validate_every="30")
    words += ["--augment", "strong", "--context_spacing", "4", "--hard_mining", "--hard_fraction", "0.5", "--seed", "4"]
    words += ["--stain_norm", "reinhard"]
    done = small_train([*words, "--stage_dir", str(stage)], ranks=2)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return tiny, done, stage


def test_everything_is_said_and_staged_copies_are_gone(
    run: tuple[TinySet, subprocess.CompletedProcess[str], Path],
) -> None:
    _, done, stage = run
    assert "4 of 4 files" in done.stdout
    assert "draws not taken: " in done.stdout
    assert list(stage.iterdir()) == []


def test_hard_places_are_drawn_after_the_second_interval(
    run: tuple[TinySet, subprocess.CompletedProcess[str], Path],
) -> None:
    rows = rows_of(run[0].log_dir)
    assert [int(row["index"]) for row in rows] == list(range(60))
    origins = [row["origin"] for row in rows]
    assert set(origins[:16]) == {"stream"}
    assert 16 <= origins.count("hard") <= 22  # half of the other 44
    hard = [row for row in rows if row["origin"] == "hard"]
    assert {row["cls"] for row in hard} == {"0", "1"}


def test_every_patch_can_be_drawn_again(run: tuple[TinySet, subprocess.CompletedProcess[str], Path]) -> None:
    tiny, _, _ = run
    replay = Replay(tiny.log_dir)
    normalized = 0
    for row in replay.rows:
        patch = replay.drawn_again(row)
        assert patch.window.center_xy_l0 == (float(row["x_l0"]), float(row["y_l0"]))
        assert patch.image_HWC.shape == (128, 128, 6)
        assert patch.scanned_HWC is not None
        normalized += not np.array_equal(patch.scanned_HWC, patch.image_HWC)
    # Normalized as in training; the slide that is the median stays as it is.
    assert normalized > 0
    # The sampler itself, with its redraws, comes to the same place.
    stream = [row for row in replay.rows if row["origin"] == "stream"]
    for row in stream[:10]:
        again = draw(replay._sampler(), replay.reader, int(row["index"]))
        assert again.request.attempt == int(row["attempt"])
        np.testing.assert_array_equal(again.image_HWC, replay.drawn_again(row).image_HWC)


def test_windows_for_pathologists(run: tuple[TinySet, subprocess.CompletedProcess[str], Path], tmp_path: Path) -> None:
    tiny, _, _ = run
    command = [sys.executable, "-m", "samplers.replay", str(tiny.log_dir), "--out", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    rows = rows_of(tiny.log_dir)
    slides = {row["slide"] for row in rows}
    assert {Path(line).name for line in done.stdout.split()} == {
        f"{slide}.{suffix}" for slide in slides for suffix in ("png", "xml", "geojson")
    }
    seen = 0
    for slide in slides:
        features = json.loads((tmp_path / f"{slide}.geojson").read_text(encoding="utf-8"))["features"]
        groups = {f"loss: {part} quarter": 1 for part in ("lowest", "second", "third", "highest")}
        annotations, _ = read_annotations(tmp_path / f"{slide}.xml", groups)
        assert len(features) == len(annotations) == sum(row["slide"] == slide for row in rows)
        seen += len(features)
        for item in annotations:
            assert item.polygons[0].area == pytest.approx((128 * 1.0 / UM_PX) ** 2, rel=0.01)
    assert seen == 60


def test_one_index_as_a_picture(run: tuple[TinySet, subprocess.CompletedProcess[str], Path], tmp_path: Path) -> None:
    tiny, _, _ = run
    command = [sys.executable, "-m", "samplers.replay", str(tiny.log_dir), "--out", str(tmp_path), "--index"]
    done = subprocess.run([*command, "7"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith("7: ")
    assert cv2.imread(str(tmp_path / "index-000000007.png")).shape == (128, 3 * 128, 3)
    done = subprocess.run([*command, "70"], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, "index 70 is not in the sample log" in done.stderr) == (2, True)


def test_a_slide_that_goes_bad_is_stepped_around(tmp_path: Path) -> None:
    from slides.tiff.tags import read_pages, tile_layout

    tiny = TinySet(tmp_path, train={"tumor_001": (1811, 1263), "tumor_002": (1287, 1301)})
    layout = tile_layout(tiny.slide("tumor_001"), read_pages(tiny.slide("tumor_001"))[0])
    # One tile near the tumor loses its second half; the thumbnail comes from other levels.
    with tiny.slide("tumor_001").open("r+b") as file:
        file.seek(int(layout.offsets[0]) + int(layout.counts[0]) // 2)
        file.write(bytes(int(layout.counts[0]) // 2))
    words = tiny.arguments(num_steps="40", resolution="1", bb_downsample="2", validate_every="40", seed="1")
    done = small_train([*words, "--max_unreadable", "0.9"])
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    assert "unreadable" in done.stdout
    with (tiny.log_dir / "samples" / "unreadable-rank-0.csv").open(newline="", encoding="utf-8") as file:
        bad = list(csv.DictReader(file))
    assert {row["slide"] for row in bad} == {"tumor_001"}
    assert "tile in row 0, column 0" in bad[0]["error"]
    assert [int(row["index"]) for row in rows_of(tiny.log_dir)] == list(range(40))
    stopped = small_train([*words, "--max_unreadable", "0", "--num_steps", "400"])
    assert stopped.returncode == 2
    assert "more than --max_unreadable 0 allows: tumor_001" in stopped.stderr
