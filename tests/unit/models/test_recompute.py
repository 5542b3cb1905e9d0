"""Recomputed segments: the numbers of the network itself, from less memory."""

import re
import subprocess
import sys

import keras
import numpy as np
import pytest

import models
from models.layers import BatchNormalization, FastFusion, RunningBatchNormalization
from models.recompute import Recomputed, naming
from tests.support.passes import Outcome, TrainingPass, distance

RNG = np.random.default_rng(4)


def branched() -> keras.Model:
    """Every layer of ours; segments with two inputs and two outputs; 4x6 pixels, two images."""
    keras.utils.set_random_seed(2)
    conv = lambda name: keras.layers.Conv2D(3, 3, padding="same", name=name)  # noqa: E731
    image = keras.Input((4, 6, 3))
    x = BatchNormalization("swish", name="a_norm")(conv("a_conv")(image))
    y = BatchNormalization("relu", name="a_side_norm")(conv("a_side_conv")(x))
    x = BatchNormalization(name="b_norm")(conv("b_conv")(FastFusion(name="b_fuse")([x, y])))
    pooled = keras.layers.GlobalAveragePooling2D(keepdims=True, name="c_mean")(y)
    pooled = RunningBatchNormalization(name="c_norm")(keras.layers.Conv2D(3, 1, name="c_conv")(pooled))
    x = keras.layers.Add(name="c_add")([x, keras.layers.UpSampling2D((4, 6), name="c_up")(pooled)])
    return keras.Model(image, keras.layers.Conv2D(2, 1, name="logits")(x), name="branched")


OUTER = naming({r"(\w)_": r"\1"})
INNER = naming({r"\w_side": "side", r"\w_(conv|norm)": "main"})


def passed(model: keras.Model, call, image_BHWC: np.ndarray) -> Outcome:
    """One training pass, in which `call` stands for the network."""
    label_BHW = np.random.default_rng(1).integers(0, 2, image_BHWC.shape[:3])
    return TrainingPass(model, call, image_BHWC, label_BHW)()


@pytest.mark.parametrize("levels", [(OUTER,), (OUTER, INNER)])
def test_numbers_are_those_of_the_network(levels: tuple) -> None:
    image_BHWC = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    plain, again = branched(), branched()
    training_pass = Recomputed(again, levels)
    assert training_pass.segments == 3
    for _ in range(2):  # the second pass starts from statistics that have moved
        expected = passed(plain, plain, image_BHWC)
        found = passed(again, training_pass, image_BHWC)
        assert found.loss == pytest.approx(expected.loss, rel=1e-6)
        assert len(expected.gradients) == 19
        assert distance(found.gradients, expected.gradients) < 1e-5
        # moved once, not once more when computed again
        assert distance(found.moved, expected.moved) < 1e-6


def test_frozen_layers_stay_frozen() -> None:
    image_BHWC = RNG.normal(size=(2, 4, 6, 3)).astype(np.float32)
    plain, again = branched(), branched()
    for model in (plain, again):
        for name in ("a_norm", "a_conv", "c_norm"):
            model.get_layer(name).trainable = False
    expected = passed(plain, plain, image_BHWC)
    found = passed(again, Recomputed(again, (OUTER,)), image_BHWC)
    assert len(found.gradients) == 13
    assert distance(found.gradients, expected.gradients) < 1e-5
    np.testing.assert_array_equal(again.get_layer("a_norm").moving_mean, np.zeros(3))


def test_segments_that_need_one_another_are_refused() -> None:
    with pytest.raises(ValueError, match="cycle"):
        Recomputed(branched(), (naming({"a_conv|a_side_conv": "convolutions", "a_norm|a_side_norm": "norms"}),))


@pytest.mark.parametrize(("name", "blocks"), [("effdetd0", 60), ("deeplab", 30)])
def test_segments_of_the_networks(name: str, blocks: int) -> None:
    model = models.build(name, 128, 2)
    assert models.training_pass(model, "none") is model
    assert models.training_pass(model, "blocks").segments == blocks
    outer = models.SEGMENTS[name][0]
    outside = [layer.name for layer in model.layers if layer.weights and outer(layer.name) is None]
    assert outside == (["logits"] if name == "deeplab" else [])
    # Random numbers would be others when computed again.
    assert [layer.name for layer in model.layers if "Dropout" in type(layer).__name__ and outer(layer.name)] == []


STEP = """
import sys
import keras, numpy as np, tensorflow as tf
import models
from benchmarks.report import peak_resident_bytes
from models.layers import BatchNormalization
from models.recompute import Recomputed, naming
from tests.support.passes import Outcome, TrainingPass, distance
x = image = keras.Input((256, 256, 16))
for block in range(6):
    for part in range(4):
        x = keras.layers.Conv2D(16, 1, use_bias=False, name=f"block{block:02}_conv{part}")(x)
        x = BatchNormalization("swish", name=f"block{block:02}_norm{part}")(x)
model = keras.Model(image, x)
f = Recomputed(model, [naming({r"(block\\\\d\\\\d)": r"\\\\1"})]) if sys.argv[1] == "blocks" else model
variables = [v.value for v in model.trainable_variables]
@tf.function
def step(x):
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(tf.square(f(x, training=True)))
    return sum(tf.reduce_sum(g) for g in tape.gradient(loss, variables))
x = tf.random.normal((4, 256, 256, 16))
before = peak_resident_bytes()
step(x)
print("MiB", (peak_resident_bytes() - before) // 2**20)
""".replace("\\\\", "\\")


def test_memory_is_saved(pytestconfig: pytest.Config) -> None:
    """24 maps of 16 MiB and their normalizations; graph optimization must neither merge nor move the second pass."""
    mib = {}
    for mode in ("none", "blocks"):
        words = [sys.executable, "-c", STEP, mode]
        done = subprocess.run(words, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
        mib[mode] = int(re.findall(r"MiB (\d+)", done.stdout)[0])
    assert 0 < mib["blocks"] < 0.6 * mib["none"]


GIVEN_BACK = """
import os
from system.allocator import give_back_memory
give_back_memory()
import tensorflow as tf
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 2**20
kept = [tf.zeros((2**20, 16)) for _ in range(4)]
full = resident()
del kept[::2]
print("MiB", full - resident())
"""


def test_memory_goes_back_to_the_system(pytestconfig: pytest.Config) -> None:
    """Two of four tensors of 64 MiB, those in the middle of what was taken too."""
    words = [sys.executable, "-c", GIVEN_BACK]
    done = subprocess.run(words, cwd=pytestconfig.rootpath, capture_output=True, text=True, check=True)
    assert int(re.findall(r"MiB (\d+)", done.stdout)[0]) == pytest.approx(128, abs=8)
