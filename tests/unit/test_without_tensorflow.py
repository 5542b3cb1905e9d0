"""Tests of what works without TensorFlow do not load it: 5 s for each worker and each file run alone."""

import subprocess
import sys

from tests.support.paths import ROOT

# Folders and files below tests/unit that need it.
USES_TENSORFLOW = (
    "models/", "streaming/", "training/", "segmentation/", "artifacts/", "samplers/test_pipeline.py",
    "samplers/test_augment.py", "parallel/test_devices.py", "doctor/test_ranks.py", "benchmarks/test_scaling_model.py",
    "benchmarks/test_share_slide.py",
    "test_security.py", "classification/test_calibration.py", "classification/test_drawing.py",
    "classification/test_features.py", "classification/test_losses.py", "classification/test_network.py",
    "classification/test_saliency.py", "classification/test_step.py", "classification/test_streaming_tutorial.py",
)  # fmt: skip
IMPORT = """
import importlib, sys
for name in sys.argv[1:]:
    importlib.import_module(name)
    loaded = {"tensorflow", "keras", "horovod"} & set(sys.modules)
    assert not loaded, f"{name} loads {loaded}"
"""


def test_files_load_no_tensorflow() -> None:
    unit = ROOT / "tests" / "unit"
    names = sorted(path.relative_to(unit).as_posix() for path in unit.rglob("test_*.py"))
    light = [name for name in names if not name.startswith(USES_TENSORFLOW)]
    assert len(light) > 40
    modules = ["tests.unit." + name.removesuffix(".py").replace("/", ".") for name in light]
    command = [sys.executable, "-c", IMPORT, *modules]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
