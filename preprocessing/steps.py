"""All steps of preprocessing, in the order in which they run."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from preprocessing import (
    check,
    extract_patches,
    extract_tissue,
    manifest,
    mask_to_xml,
    tissue,
    trim_tissue,
    xml_to_mask,
)
from preprocessing.command import StepProgram

STEPS: tuple[StepProgram[Any], ...] = (
    check.PROGRAM, tissue.PROGRAM, xml_to_mask.PROGRAM, mask_to_xml.PROGRAM, extract_patches.PROGRAM, manifest.PROGRAM,
    trim_tissue.PROGRAM, extract_tissue.PROGRAM,
)  # fmt: skip
NAMES = tuple(step.name for step in STEPS)
FULL_RUN = ("check", "tissue", "xml_to_mask", "extract_patches", "manifest")


def steps_named(names: Collection[str]) -> list[StepProgram[Any]]:
    """The steps of these names, in the order in which they run."""
    return [step for step in STEPS if step.name in names]
