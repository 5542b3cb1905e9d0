"""Two and three ranks train what one rank trains with the joint batch: train.py, from the slides to metrics.jsonl."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest

from tests.support.tiny import SMALL, TinySet, run_train

pytestmark = pytest.mark.xdist_group("equivalence")
JOINT, IMAGES = 6, 30


def run(tiny: TinySet, ranks: int, name: str, *more: str, images: int = IMAGES) -> Path:
    """A run whose ranks share batches of 6; its log folder."""
    log_dir = tiny.folder / name
    counts = {"log_every": "6", "validate_every": "12", "checkpoint_every": "6", "num_steps": str(images)}
    words = tiny.arguments(
        *more, "--sync_bn", "--hard_mining", "--hard_fraction", "1/2", "--warmup", "12", "--lr_schedule", "cosine",
        "--lr_scaling", "none", "--augment", "flips", "--seed", "7", "--val_patches", "5",
        **counts, batch_size=str(JOINT // ranks), log_dir=str(log_dir),
    )  # fmt: skip
    done = run_train(*words, NP=str(ranks), OMP_NUM_THREADS="1", SCRIPT=SMALL)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    return log_dir


def metrics(log_dir: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = ("seconds", "images_per_s", "input_wait")
    return [{key: value for key, value in row.items() if key not in timed} for row in rows]


def samples(log_dir: Path) -> list[dict[str, str]]:
    """What all ranks were trained on, by index."""
    rows = []
    for path in sorted((log_dir / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            rows += list(csv.DictReader(file))
    return sorted(rows, key=lambda row: int(row["index"]))


def same_run(found: Path, expected: Path) -> None:
    """Equal streams; losses, scores and rates that differ by the order of sums alone."""
    own, theirs = samples(found), samples(expected)
    assert [int(row["index"]) for row in own] == list(range(IMAGES))
    assert {row["origin"] for row in own} == {"stream", "hard"}
    losses = [[float(row.pop("loss")) for row in rows] for rows in (own, theirs)]
    assert own == theirs
    np.testing.assert_allclose(*losses, rtol=1e-3)
    rows, other = metrics(found), metrics(expected)
    assert [(row["kind"], row["images"]) for row in rows] == [(row["kind"], row["images"]) for row in other]
    assert len(rows) == 5 + 3
    for row, one in zip(rows, other, strict=True):
        # Counts of pixels next to a decision may tip: five patches of 128 px have 82,000.
        np.testing.assert_allclose([v for v in row.values() if isinstance(v, float)],
                                   [v for v in one.values() if isinstance(v, float)], rtol=2e-3)  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinySet:
    """Three slides; validation of five patches, which no number of ranks divides."""
    return TinySet(tmp_path_factory.mktemp("joint"))


@pytest.fixture(scope="module")
def one_rank(tiny: TinySet) -> Path:
    """The run of one rank."""
    return run(tiny, 1, "one")


@pytest.mark.kind("joint batch")
@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_equal_one(ranks: int, tiny: TinySet, one_rank: Path) -> None:
    same_run(run(tiny, ranks, f"ranks{ranks}"), one_rank)


@pytest.mark.slow
@pytest.mark.kind("joint batch")
def test_resuming_with_other_ranks_keeps_the_run(tiny: TinySet, one_rank: Path) -> None:
    """Stopped after 12 images on 3 ranks, resumed on 2: still the run of one."""
    # The schedule follows --num_steps, so the first part is stopped by taking later checkpoints away.
    log_dir = run(tiny, 3, "changing")
    for path in (log_dir / "checkpoints").iterdir():
        if path.name not in ("images-000000018.npz",):
            path.unlink()
    run(tiny, 2, "changing", "--resume", "auto")
    same_run(log_dir, one_rank)
