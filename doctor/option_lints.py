"""Valid options that are probably a mistake."""

from __future__ import annotations

from collections.abc import Iterator

from doctor.job import Task
from doctor.report import Finding, passed, warned
from system.csv_tables import counted


def lint(task: Task, ranks: int) -> Iterator[Finding]:
    """Apply all rules below; one line if none finds anything."""
    found = [finding for rule in (_lengths, _batches, _keeping) for finding in rule(task, ranks)]
    yield from found
    if not found:
        yield passed("options", "no contradictions")


def _lengths(task: Task, ranks: int) -> Iterator[Finding]:
    """Counters are images over all ranks, the most common misunderstanding."""
    joint = task.joint(ranks)
    if task.images < joint:
        yield warned(
            "options",
            f"--num_steps {task.images} is less than the {joint} images of one step: one step will be run",
            "--num_steps counts images over all ranks, not steps",
        )
    elif task.steps(ranks) < 100:
        yield warned(
            "options",
            f"--num_steps {task.images} is only {counted(task.steps(ranks), 'step')} of {counted(joint, 'image')}",
            f"--num_steps counts images over all ranks: {100 * joint} would be 100 steps",
        )
    if task.validate_every > task.images:
        yield warned(
            "options",
            f"--validate_every {task.validate_every} is more than --num_steps {task.images}: validated only at the end",
            f"--validate_every {max(1, task.images // 10)}",
        )
    if task.warmup >= task.images:
        yield warned(
            "options",
            f"--warmup {task.warmup} does not end before --num_steps {task.images}: the learning rate is never reached",
            f"--warmup {task.images // 20}, or omit it",
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
                f"--sync_bn normalizes over all {ranks} patches of a step; or --batch_size 2",
            )
        elif ranks == 1:
            yield warned(
                "options", "--batch_size 1: batch norm sees one patch at a time", "--batch_size 2, or more ranks"
            )


def _keeping(task: Task, ranks: int) -> Iterator[Finding]:
    if task.log_dir is None:
        yield warned("options", "no --log_dir: the run will not be saved", "--log_dir DIR")
    elif task.checkpoint_every > task.images and task.images > 100 * task.joint(ranks):
        yield warned(
            "options",
            f"--checkpoint_every {task.checkpoint_every} is more than --num_steps {task.images}: an interrupted run "
            "saves nothing",
            f"--checkpoint_every {max(1, task.images // 10)}",
        )
    if task.resumes and task.log_dir is None:
        yield warned("options", "--resume without --log_dir: further training is not saved", "--log_dir DIR")
