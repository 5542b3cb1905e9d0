"""Options that are allowed and yet hardly meant."""

from __future__ import annotations

from collections.abc import Iterator

from doctor.job import Task
from doctor.report import Finding, passed, warned


def choices(task: Task, ranks: int) -> Iterator[Finding]:
    """Every rule below; one line when none finds anything."""
    found = [finding for rule in (_lengths, _batches, _keeping) for finding in rule(task, ranks)]
    yield from found
    if not found:
        yield passed("options", "nothing that contradicts itself")


def _lengths(task: Task, ranks: int) -> Iterator[Finding]:
    """Counters are images over all ranks, which is what is most often misread."""
    joint = task.joint(ranks)
    if task.images < joint:
        yield warned(
            "options",
            f"--num_steps {task.images} is less than one step's {joint} images: one step will be made",
            "--num_steps counts images over all ranks, not steps",
        )
    elif task.steps(ranks) < 100:
        yield warned(
            "options",
            f"--num_steps {task.images} are only {task.steps(ranks)} steps of {joint} images",
            f"--num_steps counts images over all ranks: {100 * joint} would be 100 steps",
        )
    if task.validate_every > task.images:
        yield warned(
            "options",
            f"--validate_every {task.validate_every} is more than --num_steps {task.images}: validated at the end only",
            f"--validate_every {max(1, task.images // 10)}",
        )
    if task.warmup >= task.images:
        yield warned(
            "options",
            f"--warmup {task.warmup} is not over before --num_steps {task.images}: the learning rate is never reached",
            f"--warmup {task.images // 20}, or leave it out",
        )
    if task.log_every > task.images:
        yield warned(
            "options",
            f"--log_every {task.log_every} is more than --num_steps {task.images}: one log line at the end",
            f"--log_every {max(1, task.images // 50)}",
        )


def _batches(task: Task, ranks: int) -> Iterator[Finding]:
    if task.batch == 1 and not task.frozen_bn:
        if ranks > 1 and not task.sync_bn:
            yield warned(
                "options",
                "--batch_size 1: batch norm sees one patch at a time",
                f"--sync_bn normalises over all {ranks} patches of a step; or --batch_size 2",
            )
        elif ranks == 1:
            yield warned(
                "options", "--batch_size 1: batch norm sees one patch at a time", "--batch_size 2, or more ranks"
            )


def _keeping(task: Task, ranks: int) -> Iterator[Finding]:
    if task.log_dir is None:
        yield warned("options", "no --log_dir: nothing of the run will be kept", "--log_dir DIR")
    elif task.checkpoint_every > task.images and task.images > 100 * task.joint(ranks):
        yield warned(
            "options",
            f"--checkpoint_every {task.checkpoint_every} is more than --num_steps {task.images}: a run that is ended "
            "keeps nothing",
            f"--checkpoint_every {max(1, task.images // 10)}",
        )
    if task.resumes and task.log_dir is None:
        yield warned("options", "--resume without --log_dir: what is trained further is not kept", "--log_dir DIR")
