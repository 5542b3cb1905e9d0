"""Whether `.keras` files of one version of Keras open in another, with equal outputs; in two steps, one per version.

pip download --no-deps --python-version 3.10 --only-binary=:all: -d /tmp/keras keras==3.12.4
(cd /tmp/keras && python -m zipfile -e keras-3.12.4-py3-none-any.whl .)
python -m benchmarks.keras_versions write /tmp/new
PYTHONPATH=/tmp/keras python -m benchmarks.keras_versions compare /tmp/new
PYTHONPATH=/tmp/keras python -m benchmarks.keras_versions write /tmp/old
python -m benchmarks.keras_versions compare /tmp/old
"""

import argparse
import sys
from pathlib import Path

import keras
import numpy as np

import models
from artifacts import keras_files
from models.layers import normalized_by
from options.choices import MODELS, NORMS

SIDE = 128


def write(folder: Path) -> None:
    """Every network with either normalization, and one as export.py writes it; beside each an image and its output."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in MODELS:
        for norm in NORMS:
            keras.utils.set_random_seed(1)
            with normalized_by(norm):
                network = models.build(name, SIDE, 2)
            draw = np.random.default_rng(0)
            for variable in network.weights:
                if variable.path.endswith("moving_mean"):
                    variable.assign(draw.normal(0, 0.1, variable.shape))
            image_BHWC = draw.uniform(-1, 1, (1, SIDE, SIDE, 3)).astype(np.float32)
            _save(network, image_BHWC, folder / f"{name}-{norm}.keras")
    exported = keras_files.wrapped(network, 2 / 255, -1.0, "image", "probabilities")
    _save(exported, (image_BHWC * 127 + 128).astype(np.uint8), folder / f"exported-{name}-{norm}.keras")
    (folder / "version").write_text(keras.__version__, encoding="utf-8")


def _save(model: keras.Model, image_BHWC: np.ndarray, path: Path) -> None:
    model.save(path)
    np.savez(path.with_suffix(".npz"), image=image_BHWC, out=np.asarray(model(image_BHWC, training=False)))


def compare(folder: Path) -> bool:
    """Print the largest difference of every model's output; whether all were opened and equal."""
    print(f"written by Keras {(folder / 'version').read_text(encoding='utf-8')}, opened by {keras.__version__}")
    equal = True
    for path in sorted(folder.glob("*.keras")):
        stored = np.load(path.with_suffix(".npz"))
        try:
            opened = keras_files.load(path)
        except ValueError as error:
            print(f"{path.name:32} {error}")
            equal = False
            continue
        difference = np.abs(np.asarray(opened(stored["image"], training=False)) - stored["out"]).max()
        equal &= bool(difference == 0)
        print(f"{path.name:32} {difference:g}")
    return equal


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    given = parser.parse_args()
    if given.action == "write":
        write(given.folder)
    else:
        sys.exit(not compare(given.folder))


if __name__ == "__main__":
    main()
