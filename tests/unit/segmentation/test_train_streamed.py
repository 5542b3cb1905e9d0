"""train.py --stream: the run of whole patches, tile by tile."""

import json
from pathlib import Path

import numpy as np
import pytest

import models
import train
from segmentation import streamed_network
from segmentation.streamed_network import StreamedCost
from tests.integration.small_train import small
from tests.support.tiny import TinySet
from training import planner
from training.planner import Memory


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinySet:
    monkeypatch.setattr(models, "build", small)
    return TinySet(tmp_path / "data")


def rows(log_dir: Path) -> list[dict[str, float]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    found = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{k: v for k, v in row.items() if k not in ("seconds", "images_per_s", "input_wait")} for row in found]


def run(data: TinySet, name: str, *more: str, steps: str = "12") -> list[dict[str, float]]:
    """A run of six patches a log line; its metrics."""
    log_dir = data.folder / name
    words = ("--log_every", "6", "--validate_every", "6", "--checkpoint_every", "6", "--val_patches", "3", *more)
    assert train.main(data.arguments(*words, log_dir=log_dir, num_steps=steps, batch_size="3")) == 0
    return rows(log_dir)


@pytest.mark.parametrize(
    "more", [(), ("--loss", "ce+dice", "--accumulate_batch", "2"), ("--mixed_precision", "float16")]
)
def test_a_streamed_run_is_the_run_of_whole_patches(data: TinySet, more: tuple[str, ...]) -> None:
    """With statistics of the batch, which its normalization takes."""
    found, expected = run(data, "streamed", "--stream", "48", *more), run(data, "whole", *more)
    assert [(row["kind"], row["images"]) for row in found] == [(row["kind"], row["images"]) for row in expected]
    assert len(found) == 4
    rtol = 2e-2 if "float16" in more else 2e-3
    for mine, other in zip(found, expected, strict=True):
        # Counts of pixels next to a decision may tip.
        names = [name for name, value in mine.items() if isinstance(value, float)]
        np.testing.assert_allclose([mine[n] for n in names], [other[n] for n in names], rtol=rtol, err_msg=str(names))


def test_a_resumed_run_is_the_uninterrupted_one(data: TinySet) -> None:
    whole = run(data, "whole", "--stream", "48")
    run(data, "part", "--stream", "48", steps="6")
    assert run(data, "part", "--stream", "48", "--resume", "auto") == whole


def test_a_tile_too_small(data: TinySet, capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(data.arguments("--stream", "2")) == 2
    assert (
        "error: --stream 2: tile 2 is too small: a cell of first needs 3 cells of the image along rows; the smallest "
        "tile that works is 3\n" in capsys.readouterr().err
    )


COST = StreamedCost("deeplab", 8192, 1, ((9, 9), (5, 5)), 2 * 2**30, 8 * 2**30, 2.0)


def test_cost_by_hand() -> None:
    known = planner.costs("deeplab")["none"]
    ahead = 8192**2 * 12 / 2**30
    assert COST.gib() == pytest.approx(known.gib.fixed + 0.4 + 2 + 8 + ahead)
    assert COST.gib(4096) == pytest.approx(known.gib.fixed + 0.4 + 2 + 2 + ahead / 4)
    assert COST.seconds(100.0) == pytest.approx(2 * known.step_s(8192, 1, 100.0))
    size = COST.largest_size(24.0, 128)
    assert size % 128 == 0
    assert COST.gib(size) <= 24 < COST.gib(size + 128)


def test_a_step_that_cannot_fit_is_refused(
    data: TinySet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(planner, "memory", lambda _=None: Memory(1.0, 1.0, "machine"))
    assert train.main(data.arguments("--stream", "48")) == 2
    said = capsys.readouterr().err
    assert "error: a streamed step needs about 1.9 GiB per rank, 1.0 are available. Give a smaller --stream" in said
    assert train.main(data.arguments("--stream", "48", "--no-memory_check")) == 0


def test_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "memory", lambda _=None: Memory(20.0, 19.0, "machine"))
    monkeypatch.setattr(planner, "product_rate", lambda: 100.0)
    lines = [" ".join(line.split()) for line in streamed_network.plan(COST, 1024, 128)]
    assert lines[2].startswith("tiles 9 x 9 + 5 x 5; 2.00 times the")
    seconds, largest = COST.seconds(100.0), COST.largest_size(20.0, 128)
    assert lines[5] == f"1024 {COST.gib():.1f} GiB {seconds:.0f} s {1 / seconds:.4f} yes {largest}"
