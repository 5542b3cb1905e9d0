"""CAMELYON17: classes of lymph nodes, stages of patients, and the agreement of stages.

Sources: Bandi et al. 2019, IEEE Transactions on Medical Imaging 38(2), and the challenge's rules: a simplified pN of
the TNM classification, 7th edition, from five nodes of a patient; its published evaluation program.
"""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

NODE_CLASSES = ("negative", "itc", "micro", "macro")
STAGES = ("pN0", "pN0(i+)", "pN1mi", "pN1", "pN2")
ITC_MM = 0.2
MICRO_MM = 2.0
HEADER = ("patient", "stage")

_PN1_NODES = 3
_NODE = re.compile(r"(patient_\d{3})_node_(\d+)(?:\.tif)?", re.IGNORECASE)
_PATIENT = re.compile(r"(patient_\d{3})\.zip", re.IGNORECASE)
_STAGE_OF = {stage.lower(): stage for stage in STAGES}
_NAMED = 10


@dataclass(frozen=True)
class Submission:
    """Stages of patients and classes of their nodes.

    Attributes:
        stages: `patient_NNN` -> stage, spelled as in `STAGES`.
        nodes: `patient_NNN_node_M` -> class, as in `NODE_CLASSES`; nodes may be missing.
    """

    stages: dict[str, str]
    nodes: dict[str, str] = field(default_factory=dict)


def patient_of(slide_id: str) -> tuple[str, int] | None:
    """Patient and number of the node by CAMELYON17's name `patient_NNN_node_M`; None for any other name."""
    found = _NODE.fullmatch(slide_id)
    return (found[1].lower(), int(found[2])) if found else None


def node_class(longest_diameter_mm: float) -> str:
    """Return the class of a lymph node from the longest diameter of its largest lesion.

    Args:
        longest_diameter_mm: 0 without any lesion; up to 0.2 mm isolated tumor cells, up to 2 mm (and more than 200
            cells, which a mask does not show) micrometastasis, longer ones macrometastasis. The limits belong to the
            smaller class, to the nearest nm, so that a sum of pixels' lengths is not called longer by rounding.

    Raises:
        ValueError: the number is negative or not finite.
    """
    if not 0 <= longest_diameter_mm < float("inf"):
        raise ValueError(f"longest diameter {longest_diameter_mm} mm: a number of at least 0 is needed")
    if longest_diameter_mm == 0:
        return "negative"
    rounded = round(longest_diameter_mm, 6)
    if rounded <= ITC_MM:
        return "itc"
    return "micro" if rounded <= MICRO_MM else "macro"


def patient_stage(node_classes: Sequence[str]) -> str:
    """Return the stage of a patient from the classes of the nodes.

    pN0: nothing. pN0(i+): isolated tumor cells only. pN1mi: micrometastases, no macrometastasis. pN1: 1 to 3 nodes
    with micro- or macrometastases, at least one macro. pN2: 4 to 9 such nodes, at least one macro. Nodes with isolated
    tumor cells do not count among them.

    Args:
        node_classes: of `NODE_CLASSES`, in any case.

    Raises:
        ValueError: no nodes, or an unknown class.
    """
    classes = [name.strip().lower() for name in node_classes]
    unknown = sorted(set(classes) - set(NODE_CLASSES))
    if unknown or not classes:
        raise ValueError(f"node classes {unknown or 'missing'}: one or more of {', '.join(NODE_CLASSES)} are needed")
    metastases = classes.count("micro") + classes.count("macro")
    if not metastases:
        return "pN0(i+)" if "itc" in classes else "pN0"
    if "macro" not in classes:
        return "pN1mi"
    return "pN1" if metastases <= _PN1_NODES else "pN2"


def stages_of_patients(nodes: Mapping[str, str]) -> dict[str, str]:
    """Return the stage of every patient from the classes of the nodes.

    Args:
        nodes: `patient_NNN_node_M` -> class.

    Raises:
        ValueError: a name has another form, or a class is unknown.
    """
    classes_of: dict[str, list[str]] = {}
    for name, cls in sorted(nodes.items()):
        found = patient_of(name)
        if found is None:
            raise ValueError(f"{name!r} is not called patient_NNN_node_M")
        classes_of.setdefault(found[0], []).append(cls)
    return {patient: patient_stage(classes) for patient, classes in classes_of.items()}


def stage_confusion(truth: Sequence[str], prediction: Sequence[str]) -> NDArray[np.int64]:
    """Count patients by true (rows) and predicted (columns) stage, (5, 5).

    Raises:
        ValueError: lengths differ, or an unknown stage.
    """
    if len(truth) != len(prediction):
        raise ValueError(f"{len(truth)} true and {len(prediction)} predicted stages")
    confusion_KK = np.zeros((len(STAGES),) * 2, np.int64)
    for true, predicted in zip(truth, prediction, strict=True):
        confusion_KK[STAGES.index(_stage(true)), STAGES.index(_stage(predicted))] += 1
    return confusion_KK


def quadratic_kappa(confusion_KK: NDArray[np.int64]) -> float:
    """Cohen's kappa of ordered classes, disagreements weighted by the square of their distance.

    Args:
        confusion_KK: counts, rows truth, columns prediction.

    Returns:
        1 - observed / expected disagreement; NaN without counts, and where all truth and all predictions are one
        class. Source: Cohen 1968, Psychological Bulletin 70(4).
    """
    rank_K = np.arange(len(confusion_KK))
    weight_KK = (rank_K[:, None] - rank_K[None, :]) ** 2
    observed = int((weight_KK * confusion_KK).sum()) * int(confusion_KK.sum())
    expected = int((weight_KK * np.outer(confusion_KK.sum(axis=1), confusion_KK.sum(axis=0))).sum())
    return 1 - observed / expected if expected else float("nan")


def score_submission(reference: Submission, submission: Submission) -> tuple[float, NDArray[np.int64]]:
    """Return the kappa of a submission, and its patients by true and predicted stage.

    Args:
        reference: the true stages.
        submission: must have every patient of `reference`; others are an error, too.

    Raises:
        ValueError: patients missing or unknown; the message names them.
    """
    missing = sorted(set(reference.stages) - set(submission.stages))
    if missing:
        raise ValueError(f"the submission lacks {_named(missing)}; give every patient of the reference a stage")
    unknown = sorted(set(submission.stages) - set(reference.stages))
    if unknown:
        raise ValueError(f"the submission has {_named(unknown)}, which the reference lacks; remove them")
    patients = sorted(reference.stages)
    confusion_KK = stage_confusion([reference.stages[p] for p in patients], [submission.stages[p] for p in patients])
    return quadratic_kappa(confusion_KK), confusion_KK


def submission_text(submission: Submission) -> str:
    """Format a submission as CSV as the challenge takes it: each patient, then its nodes."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(HEADER)
    for patient, stage in sorted(submission.stages.items()):
        writer.writerow((f"{patient}.zip", _stage(stage)))
        own = [(name, cls) for name, cls in submission.nodes.items() if (patient_of(name) or ("",))[0] == patient]
        writer.writerows((f"{name}.tif", cls) for name, cls in sorted(own))
    return buffer.getvalue()


def read_submission(path: Path) -> Submission:
    """Read and check a CSV of stages: a submission, or the challenge's table of stages.

    Args:
        path: header `patient,stage`; rows `patient_NNN.zip,STAGE` and `patient_NNN_node_M.tif,CLASS`, capitals or not.

    Raises:
        ValueError: the file is unreadable or has another header, a malformed row, an unknown stage or class, a
            duplicate name, a node without its patient, or no patient; the message names file and rows.
    """
    try:
        rows = list(csv.reader(path.read_text(encoding="utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    if not rows or tuple(cell.strip().lower() for cell in rows[0]) != HEADER:
        raise ValueError(
            f"{path} begins with {','.join(rows[0])[:80] if rows else 'nothing'}; the header is patient,stage"
        )
    stages: dict[str, str] = {}
    nodes: dict[str, str] = {}
    for number, row in enumerate(rows[1:], start=2):
        if row:
            try:
                _take(row, stages, nodes)
            except ValueError as error:
                raise ValueError(f"{path}, line {number}: {error}") from error
    orphans = sorted(name for name in nodes if name.split("_node_")[0] not in stages)
    if orphans:
        raise ValueError(f"{path}: nodes without their patient's stage: {_named(orphans)}; add patient_NNN.zip,STAGE")
    if not stages:
        raise ValueError(f"{path} has no patient: rows patient_NNN.zip,STAGE are needed")
    return Submission(stages, nodes)


def _take(row: Sequence[str], stages: dict[str, str], nodes: dict[str, str]) -> None:
    """Put one row into one of the two tables."""
    if len(row) != len(HEADER):
        raise ValueError(f"{len(row)} cells in {','.join(row)!r}; two are needed")
    name, value = row[0].strip(), row[1].strip()
    patient, node = _PATIENT.fullmatch(name), patient_of(name)
    if patient:
        table, key, read = stages, patient[1].lower(), _stage(value, name)
    elif node and name.lower().endswith(".tif"):
        table, key, read = nodes, f"{node[0]}_node_{node[1]}", value.lower()
        if read not in NODE_CLASSES:
            raise ValueError(f"{name}: class {value!r} is unknown; allowed are {', '.join(NODE_CLASSES)}")
    else:
        raise ValueError(f"{name!r} is neither patient_NNN.zip nor patient_NNN_node_M.tif")
    if key in table:
        raise ValueError(f"{name} occurs twice")
    table[key] = read


def _stage(text: str, name: str = "") -> str:
    """Return a stage as `STAGES` spells it."""
    found = _STAGE_OF.get(text.strip().lower())
    if found is None:
        where = f"{name}: " if name else ""
        raise ValueError(f"{where}stage {text!r} is unknown; allowed are {', '.join(STAGES)}")
    return found


def _named(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
