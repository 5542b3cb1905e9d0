"""An evaluation as one HTML file: no network, no scripts, no further files.

It is made from plain data: metrics.json, rows of slides, two curves, pictures as data URIs. Every name is escaped, and
the page's content security policy forbids loading or running anything.
"""

import json
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from evaluation.charts import SHARE_TICKS, Axis, chart, matrix
from metrics.froc import Froc
from metrics.ranking import Roc

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_MANY_SLIDES = 400
_STYLE = Path(__file__).with_name("report.css")


def html(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    froc: Froc,
    roc: Roc,
    pictures: Mapping[str, str],
    title: str = "Evaluation",
) -> str:
    """Return the report as HTML.

    Args:
        metrics: as in metrics.json; None for an undefined score.
        rows: one per slide, worst first.
        froc: the curve of the lesions.
        roc: the curve of the slides.
        pictures: slide id -> `data:image/...` URI, or empty.
        title: heading.

    Raises:
        ValueError: a picture is not a data URI of an image.
    """
    slides = [_slide(row, pictures.get(row["slide_id"], "")) for row in rows[:_MANY_SLIDES]]
    parts = [
        f"<h1>{escape(title)}</h1>",
        f'<p class="soft">{escape(_about(metrics))}</p>',
        _warnings(metrics),
        f'<div class="numbers">{"".join(_numbers(metrics))}</div>',
        _small_set(metrics),
        "<h2>Curves</h2>",
        f'<div class="pair">{_froc_figure(metrics, froc)}{_roc_figure(metrics, roc)}</div>',
        "<h2>Confusion</h2>",
        f'<div class="pair">{"".join(_matrices(metrics))}</div>',
        _classes(metrics),
        _patients(metrics),
        "<h2>Slides, worst first</h2>",
        '<p class="soft">By lesions missed, then by how far the class of the node is off, then by the area of a wrong '
        f"class.{_more(rows)}</p>",
        f'<div class="slides">{"".join(slides)}</div>',
        _details(metrics),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE.read_text(encoding='utf-8')}</style></head>"
        f"<body>{''.join(parts)}</body></html>\n"
    )


def number(value: float | None, digits: int = 3) -> str:
    """Format a number; None is shown as not defined."""
    return "not defined" if value is None else f"{value:.{digits}f}"


def _about(metrics: Mapping[str, Any]) -> str:
    options = metrics.get("options", {})
    over = {"tissue": "px of tissue and annotations", "all": "all px"}.get(str(options.get("pixels")), "")
    return f"{_counted(metrics['slides'], 'slide')} of {options.get('predictions', '')}; {over}"


def _counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"


def _warnings(metrics: Mapping[str, Any]) -> str:
    found = ""
    left_out = metrics.get("left_out", {})
    if left_out:
        items = "".join(f"<li><b>{escape(slide)}</b>: {escape(why)}</li>" for slide, why in left_out.items())
        found += f'<div class="warning"><b>{_counted(len(left_out), "slide")} not evaluated</b><ul>{items}</ul></div>'
    lesions = metrics["lesions"]
    every, score = lesions["froc_every_threshold"], lesions["froc"]["value"]
    if every is not None and abs(every - score) > 1e-9:
        found += (
            '<div class="warning">Every lesion was found. The organizers\' program then omits the lowest '
            f"probability, which gives a FROC score of {number(score)}; with it the score is <b>{number(every)}</b>."
            "</div>"
        )
    if metrics.get("notes"):
        items = "".join(f"<li>{escape(note)}</li>" for note in metrics["notes"])
        count = _counted(len(metrics["notes"]), "note")
        found += f'<details class="warning"><summary>{count} on slides and labels</summary><ul>{items}</ul></details>'
    return found


def _small_set(metrics: Mapping[str, Any]) -> str:
    if metrics["slides"] < 2:
        return '<p class="soft">No intervals: they need at least two slides.</p>'
    if not metrics.get("options", {}).get("bootstrap", 1):
        return ""
    few = " With so few slides they are unreliable." if metrics["slides"] < 20 else ""
    return f'<p class="soft">In brackets: 95% bootstrap intervals over {metrics["slides"]} slides.{few}</p>'


def _numbers(metrics: Mapping[str, Any]) -> list[str]:
    pixels, lesions, patients = metrics["pixels"], metrics["lesions"], metrics["patients"]
    found = f"{lesions['found']} of {_counted(lesions['lesions'], 'lesion')} hit"
    cards = [
        _card("Lesion FROC", lesions["froc"], found if lesions["lesions"] else "no lesion in the truth"),
        _card(
            "Slide AUC",
            metrics["slide_auc"],
            f"{metrics['slide_auc']['with_tumor']} of {metrics['slides']} with tumor",
        ),
        _card("mIoU", pixels["miou"], "over classes"),
        _card("Pixel AUC", pixels["auc"], "tumor probability"),
    ]
    cards += [_card(f"Dice, {name}", pixels["dice"][name], "pixels") for name in pixels["classes"][1:]]
    cards.append(_card("Node class", metrics["nodes"]["accuracy"], "share of slides correct"))
    if patients:
        one_stage = ", all of one stage" if patients["kappa"]["value"] is None else ""
        what = _counted(len(patients["stages"]), "patient") + one_stage
        cards.append(_card("Patient kappa", patients["kappa"], what))
    return cards


def _card(name: str, score: Mapping[str, Any], what: str) -> str:
    no = ' class="no"'
    return (
        f'<div class="number"><span>{escape(name)}</span>'
        f"<b{'' if score['value'] is not None else no}>{number(score['value'])}</b>"
        f"<small>{_interval(score)}{escape(what)}</small></div>"
    )


def _interval(score: Mapping[str, Any]) -> str:
    return "" if score["low"] is None else f"({number(score['low'])} to {number(score['high'])})<br>"


def _froc_figure(metrics: Mapping[str, Any], froc: Froc) -> str:
    at = {float(key): value for key, value in metrics["lesions"]["sensitivity_at"].items()}
    ticks = tuple(sorted(at))
    marks = [(false, value) for false, value in at.items() if value is not None]
    x = Axis("false positives per slide (mean)", ticks[0] / 2, ticks[-1] * 2, ticks, log=True)
    y = Axis("lesions found", 0, 1, SHARE_TICKS)
    points = list(zip(froc.false_per_slide_T.tolist(), froc.sensitivity_T.tolist(), strict=True))
    if points and marks:
        points.insert(0, (x.high, points[0][1]))  # as the score reads it: nothing changes beyond the last point
    drawn = chart(points if marks else [], x, y, "FROC curve", marks)
    values = ", ".join(f"{false:g}:\u00a0{value:.3f}" for false, value in marks)
    below = f"Sensitivity at false positives per slide {values}" if marks else "No lesion in the truth: not defined."
    return f'<figure><figcaption>FROC of lesions</figcaption>{drawn}<p class="soft">{below}</p></figure>'


def _roc_figure(metrics: Mapping[str, Any], roc: Roc) -> str:
    axes = Axis("slides without tumor called positive", 0, 1, SHARE_TICKS), Axis("with tumor", 0, 1, SHARE_TICKS)
    points = list(zip(roc.false_rate_T.tolist(), roc.true_rate_T.tolist(), strict=True))
    drawn = chart(points, *axes, "ROC curve of slides", diagonal=True)
    area = metrics["slide_auc"]["value"]
    below = (
        "All slides with or all without tumor: not defined."
        if area is None
        else f"Area {number(area)}; dashed: chance."
    )
    return f'<figure><figcaption>ROC of slides</figcaption>{drawn}<p class="soft">{below}</p></figure>'


def _matrices(metrics: Mapping[str, Any]) -> list[str]:
    found = [("Pixels", "px", metrics["pixels"]), ("Lymph nodes", "slides", metrics["nodes"])]
    if metrics["patients"]:
        found.append(("Patients", "patients", metrics["patients"]))
    return [matrix(part["confusion"], part["classes"], caption, unit) for caption, unit, part in found]


def _classes(metrics: Mapping[str, Any]) -> str:
    pixels = metrics["pixels"]
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{number(pixels["iou"][name]["value"])} '
        f"<small>{_interval(pixels['iou'][name])}</small></td>"
        f"<td>{number(pixels['dice'][name]['value'])} <small>{_interval(pixels['dice'][name])}</small></td></tr>"
        for name in pixels["classes"]
    )
    return (
        '<h2>Classes</h2><div class="scroll"><table><thead><tr><th scope="row">class</th><th>IoU</th><th>Dice</th></tr>'
        f"</thead><tbody>{rows}</tbody></table></div>"
    )


def _patients(metrics: Mapping[str, Any]) -> str:
    patients = metrics["patients"]
    if not patients:
        return ""
    rows = "".join(
        f'<tr><th scope="row">{escape(patient)}</th><td>{one["nodes"]}</td><td>{escape(one["truth"])}</td>'
        f'<td class="{"" if one["truth"] == one["prediction"] else "bad"}">{escape(one["prediction"])}</td></tr>'
        for patient, one in patients["stages"].items()
    )
    return (
        '<h2>Patients</h2><div class="scroll"><table><thead><tr><th scope="row">patient</th><th>nodes</th>'
        f"<th>truth</th><th>prediction</th></tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _slide(row: Mapping[str, Any], picture: str) -> str:
    if picture and not picture.startswith("data:image/"):
        raise ValueError(f"picture of {row['slide_id']} is not a data URI of an image")
    name = escape(row["slide_id"])
    shown = '<div class="none">no picture</div>'
    if picture:
        shown = f'<img alt="prediction over {name}" src="{escape(picture)}">'
    lesions = f"{row['lesions']}"
    if row["missed"]:
        lesions = f'<span class="bad">{row["missed"]} missed</span> of {row["lesions"]}'
    node = escape(row["node_prediction"])
    if row["node_prediction"] != row["node_truth"]:
        node = f'<span class="bad">{node}</span>, truth {escape(row["node_truth"])}'
    lines = [
        ("tumor Dice", number(row["tumor_dice"])),
        ("lesions", lesions),
        ("false positives", str(row["false_positives"])),
        ("area of a wrong class", f"{row['wrong_mm2']:.2g} of {row['evaluated_mm2']:.3g} mm²"),
        ("tumor probability", f"{number(row['tumor_probability'])} ({'tumor' if row['has_tumor'] else 'normal'})"),
        ("node", node),
        ("longest, true / predicted", f"{number(row['truth_mm'], 2)} / {number(row['predicted_mm'], 2)} mm"),
    ]
    listed = "".join(f"<dt>{what}</dt><dd>{value}</dd>" for what, value in lines)
    return f'<article class="slide"><h3>{name}</h3>{shown}<dl>{listed}</dl></article>'


def _more(rows: Sequence[Mapping[str, Any]]) -> str:
    return f" The first {_MANY_SLIDES} of {len(rows)}; all are in slides.csv." if len(rows) > _MANY_SLIDES else ""


def _details(metrics: Mapping[str, Any]) -> str:
    options = escape(json.dumps(metrics.get("options", {}), indent=1, ensure_ascii=False))
    return f"<h2>Options</h2><details><summary>options of evaluate.py</summary><pre>{options}</pre></details>"
