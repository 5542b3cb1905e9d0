"""Command lines of predict.py, evaluate.py and export.py: defaults, errors, and that help needs no slow import."""

import subprocess
import sys
from pathlib import Path

import pytest

from options.evaluate import evaluate_options
from options.export import export_options
from options.fields import as_json
from options.predict import predict_options
from tests.support.paths import ROOT

EVALUATE = ("--predictions", "P", "--label_path", "L", "--out", "o")


def refused(capsys: pytest.CaptureFixture[str], read, *words: str) -> str:
    with pytest.raises(SystemExit) as stopped:
        read(words)
    assert stopped.value.code == 2
    return capsys.readouterr().err.splitlines()[0].partition(" error: ")[2]


def test_defaults_of_predict(tmp_path: Path):
    assert as_json(predict_options(["--model", "m", "--slide_path", str(tmp_path), "--out", "o"])) == {
        "model": "m", "img_size": None, "resolution": None, "context_spacing": None, "input_range": None,
        "slide_format": "tif", "recursive": False,
        "mpp": None, "mpp_table": None, "slide_path": [str(tmp_path)], "out": "o", "overwrite": False,
        "strict": False, "bb_downsample": 7, "overlap": 0.25, "batch_size": 1, "tissue_only": True,
        "eightfold": False, "stream": None,
        "min_probability": 0.1, "nms_um": 75.0, "simplify_um": None, "min_area_um2": 100.0,
        "geojson_frame": "qupath", "overlay": "auto", "adapt_bn": False, "stain_norm": None,
        "sample_processes": 1, "tile_cache": 128, "no_cuda": False, "horovod": True, "stall_timeout": 60.0,
    }  # fmt: skip


def test_defaults_of_evaluate():
    assert as_json(evaluate_options(EVALUATE)) == {
        "slide_path": None, "label_path": "L", "label_format": "tif", "slide_format": "tif", "recursive": False,
        "mpp": None, "mpp_table": None,
        "predictions": "P", "out": "o", "label_map": None, "ignore_groups": ["none"], "mask_values": None,
        "classes": None, "pixels": "tissue", "bootstrap": 1000, "seed": 0,
        "froc": "double", "froc_threshold": [0.25, 0.5, 1.0, 2.0, 4.0, 8.0], "submission": None, "reference": None,
    }  # fmt: skip


def test_defaults_of_export():
    assert as_json(export_options(["--model", "m", "--out", "o"])) == {
        "model": "m", "img_size": None, "resolution": None, "context_spacing": None, "input_range": None,
        "out": "o", "formats": ["savedmodel", "onnx"], "opset": 17,
    }  # fmt: skip
    files = export_options(["--model", "m", "--out", "o", "--format", "keras", "savedmodel", "keras"]).files
    assert files.formats == ("savedmodel", "keras")


def test_two_tables_need_nothing_else(capsys):
    tables = evaluate_options(["--submission", "s.csv", "--reference", "r.csv"]).tables
    assert (tables.submission, tables.reference) == (Path("s.csv"), Path("r.csv"))
    assert refused(capsys, evaluate_options, "--submission", "s").startswith(
        "--submission and --reference must be given together"
    )
    words = ("--submission", "s", "--reference", "r", "--label_path", "L")
    assert refused(capsys, evaluate_options, *words).startswith("--submission and --reference compare two tables only")


@pytest.mark.parametrize("left_out", [0, 2, 4])
def test_evaluate_names_the_path_that_is_missing(left_out, capsys):
    words = EVALUATE[:left_out] + EVALUATE[left_out + 2 :]
    assert refused(capsys, evaluate_options, *words).startswith(f"{EVALUATE[left_out]} is missing: --predictions, ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--froc_threshold", "2", "1"), "--froc_threshold: must be in rising order without repeats"),
        (("--froc_threshold", "1", "1"), "--froc_threshold: must be in rising order"),
        (("--pixels", "some"), "argument --pixels: invalid choice: 'some' (choose from 'tissue', 'all')"),
        (("--bootstrap", "-1"), "argument --bootstrap: -1 given, must be at least 0 and at most 100000"),
    ],
)
def test_evaluate_refuses(words, message, capsys):
    assert refused(capsys, evaluate_options, *EVALUATE, *words).startswith(message)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--slide_path", "nowhere"), "--slide_path nowhere: no such file or folder"),
        (("--min_probability", "0"), "--min_probability 0: must be above 0"),
        (("--overlap", "1"), "argument --overlap: 1 given, must be at least 0 and below 1"),
        (("--input_range", "1", "-1"), "--input_range 1 -1: the smaller number first"),
        (("--resolution", "1", "--context_spacing", "1"), "--context_spacing 1: the second view is coarser than"),
        (("--out", __file__), f"--out {__file__} exists but is not a folder; choose another path"),
    ],
)
def test_predict_refuses(words, message, capsys, tmp_path):
    base = ("--model", "m", "--slide_path", str(tmp_path), "--out", "o")
    assert refused(capsys, predict_options, *base, *words).startswith(message)


@pytest.mark.parametrize("program", ["train", "predict", "evaluate", "export"])
def test_help_loads_no_library(program):
    code = (
        f"import sys, options.{program} as o\n"
        f"try: o.{program}_options(['--help'])\n"
        "finally: assert not {'numpy', 'tensorflow', 'cv2', 'shapely'} & set(sys.modules), sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"usage: {program}.py" in done.stdout
