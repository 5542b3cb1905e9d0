"""Scores as text, the same on the terminal and in the report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from metrics.summary import SlideScores

# Two scores that differ by less are the same but for rounding.
SAME = 1e-9


def slide_line(slide: SlideScores) -> str:
    """Describe the scores of a slide in one line."""
    lesions = f"{len(slide.hits.lesion_L) - slide.missed} of {len(slide.hits.lesion_L)} lesions found"
    nothing = "" if slide.finding else ", no finding"
    dice = "not defined" if slide.tumor_dice != slide.tumor_dice else f"{slide.tumor_dice:.3f}"
    return f"{slide.slide_id}: tumor Dice {dice}, {lesions}, {len(slide.hits.false)} false positives{nothing}"


def headline(metrics: Mapping[str, Any]) -> str:
    """List the scores of the set, one per line, and explain the FROC score where it needs it.

    Args:
        metrics: as in metrics.json.
    """
    pixels, whole, lesions, patients = (metrics[name] for name in ("pixels", "pixels_all", "lesions", "patients"))
    beside = whole["miou"] != pixels["miou"] or whole["auc"] != pixels["auc"]
    listed = [
        ("mIoU", score_text(pixels["miou"])),
        *([("  all px", score_text(whole["miou"]))] if beside else []),
        ("pixel AUC", score_text(pixels["auc"])),
        *([("  all px", score_text(whole["auc"]))] if beside else []),
        ("lesion FROC", score_text(lesions["froc"])),
        (
            "  lesions",
            f"{lesions['found']} of {lesions['lesions']} found, {lesions['false_positives']} false positives",
        ),
        ("slide AUC", score_text(metrics["slide_auc"])),
        ("node accuracy", score_text(metrics["nodes"]["accuracy"])),
        *([("patient kappa", score_text(patients["kappa"]))] if patients else []),
    ]
    note = froc_note(lesions)
    return "\n".join([*(f"{name:<14}{text}" for name, text in listed), *([f"note        {note}"] if note else [])])


def score_text(score: Mapping[str, Any]) -> str:
    """Format a score with its interval."""
    if score["value"] is None:
        return "not defined"
    interval = "" if score["low"] is None else f"  (95% {score['low']:.4f} to {score['high']:.4f})"
    return f"{score['value']:.4f}{interval}"


def froc_note(lesions: Mapping[str, Any]) -> str:
    """Explain a FROC score that is lower than the lesions found suggest; empty where it is not.

    Args:
        lesions: as in metrics.json.
    """
    every, score = lesions["froc_every_threshold"], lesions["froc"]["value"]
    if every is None or score is None or abs(every - score) <= SAME:
        return ""
    return (
        "Every lesion was found. The organizers' program then omits the lowest probability, which gives a FROC score "
        f"of {score:.4f}; with it the score is {every:.4f}."
    )
