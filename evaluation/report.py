"""An evaluation as one HTML file: no network, no scripts, no further files.

It is made from plain data: metrics.json, rows of slides, two curves, pictures as data URIs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from evaluation import pictures as drawn
from evaluation.words import froc_note
from metrics.froc import Froc
from metrics.ranking import Roc
from pages.charts import SHARE_TICKS, Axis, chart, matrix
from pages.frame import card, counted, image, named, number, options, page

_MANY_SLIDES = 400
_LEGEND = (
    ("left, truth:", None),
    ("lesion that was found", drawn.FOUND),
    ("lesion that was missed, in a ring", drawn.MISSED),
    ("isolated tumor cells, not scored", drawn.ITC),
    ("not known, not scored", drawn.IGNORED),
    ("right, prediction:", None),
    ("predicted tumor", drawn.PREDICTED),
    ("dot: detection on a lesion", drawn.FOUND),
    ("dot: false positive", drawn.FALSE),
)


def html(
    metrics: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    froc: Froc,
    roc: Roc,
    pictures: Mapping[str, tuple[str, str]],
    title: str = "Evaluation",
) -> str:
    """Return the report as HTML.

    Args:
        metrics: as in metrics.json; None for an undefined score.
        rows: one per slide, worst first.
        froc: the curve of the lesions.
        roc: the curve of the slides.
        pictures: slide id -> `data:image/...` URIs of truth and prediction.
        title: heading.

    Raises:
        ValueError: a picture is not a data URI of an image.
    """
    slides = [_slide(row, pictures.get(row["slide_id"])) for row in rows[:_MANY_SLIDES]]
    return page(
        title,
        [
            f"<h1>{escape(title)}</h1>",
            _about(metrics),
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
            '<p class="soft">By lesions missed, then by how far the class of the node is off, then by the area of a '
            f"wrong class.{_more(rows)}</p>",
            _legend(),
            f'<div class="slides">{"".join(slides)}</div>',
            "<h2>Options</h2>",
            options("options of evaluate.py", metrics.get("options", {})),
            *(options(_of_model(one), one["options"]) for one in metrics.get("models", []) if one["options"]),
        ],
    )


def _about(metrics: Mapping[str, Any]) -> str:
    given = metrics.get("options", {})
    over = {"tissue": "px of tissue and annotations; beside them, all px", "all": "all px"}
    models = metrics.get("models", [])
    rows = [("model", _model(one, metrics["slides"])) for one in models]
    rows += [
        ("classes", ", ".join(metrics["pixels"]["classes"])),
        ("predictions", f"{counted(metrics['slides'], 'slide')} of {given.get('predictions', '')}"),
        ("slides", ", ".join(metrics.get("slide_folders", []))),
        ("labels", " ".join(str(given[name]) for name in ("label_path", "label_format") if given.get(name))),
        ("pixel scores over", over.get(str(given.get("pixels")), "")),
    ]
    return named(rows)


def _model(one: Mapping[str, Any], slides: int) -> str:
    stated = one["options"]
    view = f", {stated['img_size']} px at {stated['um_px']:g} um/px" if {"img_size", "um_px"} <= set(stated) else ""
    of = "" if one["slides"] == slides else f", {counted(one['slides'], 'slide')}"
    return f"{one['model'] or 'not named in summary.json'}{view}{of}"


def _of_model(one: Mapping[str, Any]) -> str:
    return f"options of the prediction by {one['model'] or 'a model that summary.json does not name'}"


def _warnings(metrics: Mapping[str, Any]) -> str:
    found = ""
    left_out = metrics.get("left_out", {})
    if left_out:
        items = "".join(f"<li><b>{escape(slide)}</b>: {escape(why)}</li>" for slide, why in left_out.items())
        found += f'<div class="warning"><b>{counted(len(left_out), "slide")} not evaluated</b><ul>{items}</ul></div>'
    models = len(metrics.get("models", []))
    if models > 1:
        found += f'<div class="warning">The predictions are of {models} models or settings: scores mix them.</div>'
    note = froc_note(metrics["lesions"])
    if note:
        found += f'<div class="warning">{escape(note)}</div>'
    if metrics.get("notes"):
        items = "".join(f"<li>{escape(one)}</li>" for one in metrics["notes"])
        count = counted(len(metrics["notes"]), "note")
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
    whole = metrics["pixels_all"]
    found = f"{lesions['found']} of {counted(lesions['lesions'], 'lesion')} hit"
    positive = f"{metrics['slide_auc']['with_tumor']} of {metrics['slides']} with tumor"
    cards = [
        _card("Lesion FROC", lesions["froc"], found if lesions["lesions"] else "no lesion in the truth"),
        _card("Slide AUC", metrics["slide_auc"], positive),
        _card("mIoU", pixels["miou"], "over classes", whole["miou"]),
        _card("Pixel AUC", pixels["auc"], "tumor probability", whole["auc"]),
    ]
    cards += [
        _card(f"Dice, {name}", pixels["dice"][name], "pixels", whole["dice"][name]) for name in pixels["classes"][1:]
    ]
    cards.append(_card("Node class", metrics["nodes"]["accuracy"], "share of slides correct"))
    if patients:
        one_stage = ", all of one stage" if patients["kappa"]["value"] is None else ""
        what = counted(len(patients["stages"]), "patient") + one_stage
        cards.append(_card("Patient kappa", patients["kappa"], what))
    return cards


def _card(name: str, score: Mapping[str, Any], what: str, whole: Mapping[str, Any] | None = None) -> str:
    beside = "" if whole is None or whole == score else f"<br>all px: {number(whole['value'])}"
    lines = f"{_interval(score)}{'<br>' if _interval(score) else ''}{escape(what)}{beside}"
    return card(name, number(score["value"]), lines, defined=score["value"] is not None)


def _interval(score: Mapping[str, Any]) -> str:
    return "" if score["low"] is None else f"({number(score['low'])} to {number(score['high'])})"


def _froc_figure(metrics: Mapping[str, Any], froc: Froc) -> str:
    at = {float(key): value for key, value in metrics["lesions"]["sensitivity_at"].items()}
    ticks = tuple(sorted(at))
    marks = [(false, value) for false, value in at.items() if value is not None]
    x = Axis("false positives per slide (mean)", ticks[0] / 2, ticks[-1] * 2, ticks, log=True)
    y = Axis("lesions found", 0, 1, SHARE_TICKS)
    points = list(zip(froc.false_per_slide_T.tolist(), froc.sensitivity_T.tolist(), strict=True))
    if points and marks:
        points.insert(0, (x.high, points[0][1]))  # as the score reads it: nothing changes beyond the last point
    curve = chart(points if marks else [], x, y, "FROC curve", marks)
    values = ", ".join(f"{false:g}:\u00a0{value:.3f}" for false, value in marks)
    below = f"Sensitivity at false positives per slide {values}" if marks else "No lesion in the truth: not defined."
    return f'<figure><figcaption>FROC of lesions</figcaption>{curve}<p class="soft">{below}</p></figure>'


def _roc_figure(metrics: Mapping[str, Any], roc: Roc) -> str:
    axes = Axis("slides without tumor called positive", 0, 1, SHARE_TICKS), Axis("with tumor", 0, 1, SHARE_TICKS)
    points = list(zip(roc.false_rate_T.tolist(), roc.true_rate_T.tolist(), strict=True))
    curve = chart(points, *axes, "ROC curve of slides", diagonal=True)
    area = metrics["slide_auc"]["value"]
    below = (
        "All slides with or all without tumor: not defined."
        if area is None
        else f"Area {number(area)}; dashed: chance."
    )
    return f'<figure><figcaption>ROC of slides</figcaption>{curve}<p class="soft">{below}</p></figure>'


def _matrices(metrics: Mapping[str, Any]) -> list[str]:
    found = [("Pixels", "px", metrics["pixels"])]
    if metrics["pixels_all"] != metrics["pixels"]:
        found = [("Pixels of tissue", "px", metrics["pixels"]), ("All pixels", "px", metrics["pixels_all"])]
    found.append(("Lymph nodes", "slides", metrics["nodes"]))
    if metrics["patients"]:
        found.append(("Patients", "patients", metrics["patients"]))
    return [matrix(part["confusion"], part["classes"], caption, unit) for caption, unit, part in found]


def _classes(metrics: Mapping[str, Any]) -> str:
    pixels, whole = metrics["pixels"], metrics["pixels_all"]
    columns = [(kind, part) for part in ([pixels] if whole == pixels else [pixels, whole]) for kind in ("iou", "dice")]
    head = ["IoU", "Dice"] + (["IoU, all px", "Dice, all px"] if len(columns) > 2 else [])
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(
            f"<td>{number(part[kind][name]['value'])} <small>{_interval(part[kind][name])}</small></td>"
            for kind, part in columns
        )
        + "</tr>"
        for name in pixels["classes"]
    )
    top = "".join(f'<th scope="col">{cell}</th>' for cell in head)
    return (
        f'<h2>Classes</h2><div class="scroll"><table><thead><tr><th scope="row">class</th>{top}</tr>'
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


def _legend() -> str:
    keys = "".join(
        f"<b>{escape(text)}</b>"
        if color is None
        else f'<span class="key" style="--key:rgb({color[0]},{color[1]},{color[2]})">{escape(text)}</span>'
        for text, color in _LEGEND
    )
    return f'<p class="legend">{keys}</p>'


def _slide(row: Mapping[str, Any], pictures: tuple[str, str] | None) -> str:
    name = row["slide_id"]
    shown = '<div class="none">no picture</div>'
    nothing = "" if row["finding"] else ": no finding"
    if pictures:
        captions = (f"truth{'' if row['has_tumor'] else ': no tumor'}", f"prediction{nothing}")
        shown = "".join(
            f"<figure>{image(uri, f'{what} of {name}')}<figcaption>{caption}</figcaption></figure>"
            for uri, what, caption in zip(pictures, ("truth", "prediction"), captions, strict=True)
        )
        shown = f'<div class="beside">{shown}</div>'
    lesions = f"{row['lesions']}"
    if row["missed"]:
        lesions = f'<span class="bad">{row["missed"]} missed</span> of {row["lesions"]}'
    node = escape(row["node_prediction"])
    if row["node_prediction"] != row["node_truth"]:
        node = f'<span class="bad">{node}</span>, truth {escape(row["node_truth"])}'
    dice = number(row["tumor_dice"])
    if row["tumor_dice_all"] != row["tumor_dice"]:
        dice += f" (all px {number(row['tumor_dice_all'])})"
    lines = [
        *([] if row["finding"] else [("finding", "none: no tumor predicted, no detection")]),
        ("tumor Dice", dice),
        ("lesions", lesions),
        ("false positives", str(row["false_positives"])),
        ("area of a wrong class", f"{row['wrong_mm2']:.2g} of {row['evaluated_mm2']:.3g} mm²"),
        ("tumor probability", f"{number(row['tumor_probability'])} ({'tumor' if row['has_tumor'] else 'normal'})"),
        ("node", node),
        ("longest, true / predicted", f"{number(row['truth_mm'], 2)} / {number(row['predicted_mm'], 2)} mm"),
    ]
    listed = "".join(f"<dt>{what}</dt><dd>{value}</dd>" for what, value in lines)
    return f'<article class="slide"><h3>{escape(name)}</h3>{shown}<dl>{listed}</dl></article>'


def _more(rows: Sequence[Mapping[str, Any]]) -> str:
    return f" The first {_MANY_SLIDES} of {len(rows)}; all are in slides.csv." if len(rows) > _MANY_SLIDES else ""
