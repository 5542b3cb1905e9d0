"""Learning rate of a resumed run."""

from typing import Any

import pytest

from artifacts.checkpoints import State
from segmentation.resume import base_batch, rate_changed
from training.schedule import of_options

OPTIONS = {
    "base_lr": 0.25, "lr_scaling": "linear", "lr_schedule": "constant", "warmup": 0, "num_steps": 100, "lr_cycle": 10,
    "batch_size": 1, "accumulate_batch": 1,
}  # fmt: skip


def written(ranks: int = 2, first_batch: int = 1, **options: Any) -> State:
    return State(50, 0.5, OPTIONS | options, ranks=ranks, base_batch=first_batch)


@pytest.mark.parametrize(
    ("ranks", "batch_size", "accumulate_batch"), [(2, 1, 1), (1, 2, 1), (1, 1, 2)], ids=["same", "batch", "passes"]
)
def test_other_ranks_with_the_same_joint_batch_keep_the_rate(
    ranks: int, batch_size: int, accumulate_batch: int
) -> None:
    options = OPTIONS | {"batch_size": batch_size, "accumulate_batch": accumulate_batch}
    assert rate_changed(written(), options, ranks) == []
    assert of_options(options, 2, base_batch(written(), options)).rate(50) == 0.5


def test_a_run_resumed_twice_keeps_the_rate() -> None:
    # Begun as 2 x 1, went on as 1 x 2, and now as 2 x 1 again.
    between = written(ranks=1, batch_size=2)
    assert rate_changed(between, OPTIONS, ranks=2) == []
    assert base_batch(between, OPTIONS) == 1


def test_a_rate_that_follows_the_ranks_is_said() -> None:
    assert rate_changed(written(), OPTIONS, ranks=1) == ["the learning rate was 0.5, is 0.25"]
    assert rate_changed(written(), OPTIONS | {"lr_scaling": "none"}, ranks=2) == ["the learning rate was 0.5, is 0.25"]


def test_a_rate_that_changes_with_the_length_of_the_run_is_said() -> None:
    # Half of 100 images: 0.5 x (0.01 + 0.99 / 2); a quarter of 200: 0.5 x (0.01 + 0.99 x (1 + cos 45 degrees) / 2).
    was = written(lr_schedule="cosine")
    longer = OPTIONS | {"lr_schedule": "cosine", "num_steps": 200}
    assert rate_changed(was, longer, ranks=2) == ["the learning rate was 0.253, is 0.428"]


def test_a_new_base_lr_belongs_to_the_new_batch() -> None:
    options = OPTIONS | {"base_lr": 0.125, "batch_size": 2}
    assert base_batch(written(), options) == 2
    assert rate_changed(written(), options, ranks=1) == ["the learning rate was 0.5, is 0.125"]


def test_an_older_checkpoint_belongs_to_its_own_batch() -> None:
    was = written(first_batch=0, batch_size=3)
    assert base_batch(was, OPTIONS) == 3
    assert rate_changed(was, OPTIONS | {"batch_size": 3}, ranks=2) == []
