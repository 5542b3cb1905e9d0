"""Devices of a rank: in a process where TensorFlow has started before, and where it cannot use a GPU."""

import subprocess

import keras
import pytest
import tensorflow as tf

from parallel import devices
from parallel.comm import SoloComm
from parallel.devices import use_devices
from system import gpus
from system.gpus import Gpu


@pytest.mark.parametrize(
    ("started_with", "variable", "expected"),
    [(1, "3", "1 CPU thread"), (2, "3", "2 CPU threads"), (0, "3", "3 CPU threads"), (0, "", "7 CPU threads")],
)
def test_threads_stay_as_they_are_once_tensorflow_has_started(
    started_with: int, variable: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is TensorFlow's own choice: its variable, or all cores that this process may use."""
    monkeypatch.setenv("TF_NUM_INTRAOP_THREADS", variable or "0")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(7))
    tf.constant(1.0)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: started_with)
    # More than any process of the tests has: setting it fails.
    monkeypatch.setattr("parallel.devices.threads_per_rank", lambda _: 500)
    assert use_devices(SoloComm()) == f"{expected} per rank"


def test_settings_of_a_notebook_are_replaced_and_another_backend_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    keras.config.set_floatx("float64")
    keras.config.set_image_data_format("channels_first")
    use_devices(SoloComm())
    assert (keras.config.floatx(), keras.config.image_data_format()) == ("float32", "channels_last")
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ValueError, match="Keras runs on jax in this process, but TensorFlow is needed"):
        use_devices(SoloComm())


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver lists two; `usable` of them are TensorFlow's."""
    monkeypatch.setattr(gpus, "listed", lambda: ([Gpu(0, "GPU-a", 40.0), Gpu(1, "GPU-b", 80.0)], ""))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def tensorflow_uses(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: ["a GPU"] * count)


class Rank(SoloComm):
    def __init__(self, local_rank: int) -> None:
        self.local_rank, self.local_size = local_rank, 3


STDERR = """2026-11-30 23:23:39.97: I tensorflow/core/util/port.cc:153] oneDNN custom operations are on.
E0000 00:00:1796081019.999278    8016 cuda_dnn.cc:8310] Unable to register cuDNN factory: one is registered
W0000 00:00:1 2 gpu_device.cc:2344] Cannot dlopen some GPU libraries. Please make sure
W0000 00:00:1 2 gpu_device.cc:2344] Cannot dlopen some GPU libraries. Please make sure
2026-11-30 23:23:42.14: E external/xla/cuda_driver.cc:152] failed call to cuInit: UNKNOWN ERROR (303)
"""


@pytest.mark.usefixtures("two_gpus")
def test_gpus_that_tensorflow_cannot_use_are_said_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    done = subprocess.CompletedProcess([], 0, "", STDERR)
    monkeypatch.setattr(devices.subprocess, "run", lambda *_, **__: done)
    tensorflow_uses(0, monkeypatch)
    assert devices.unused_gpus(Rank(0)) == (
        "TensorFlow can use none of 2 GPUs, so the CPU is used (TensorFlow: Cannot dlopen some GPU libraries. Please "
        "make sure | failed call to cuInit: UNKNOWN ERROR (303)); set up for GPUs by WIDEFOV_GPU=1 ./setup_env.sh (the "
        "driver must know CUDA 12), or give --no_cuda"
    )
    assert devices.own_gpu(Rank(0)) is None
    # One rank speaks for its node.
    assert devices.unused_gpus(Rank(1)) == ""
    tensorflow_uses(1, monkeypatch)
    assert devices.unused_gpus(Rank(0)).startswith("TensorFlow can use 1 of 2 GPUs (TensorFlow: Cannot")
    tensorflow_uses(2, monkeypatch)
    assert devices.unused_gpus(Rank(0)) == ""
    assert [devices.own_gpu(Rank(rank)) for rank in range(3)] == [
        Gpu(0, "GPU-a", 40.0), Gpu(1, "GPU-b", 80.0), Gpu(0, "GPU-a", 40.0)
    ]  # fmt: skip
    assert [devices.sharers(Rank(rank)) for rank in range(3)] == [2, 1, 2]


@pytest.mark.usefixtures("two_gpus")
@pytest.mark.parametrize("hidden", ["-1", ""])
def test_hidden_gpus_are_not_missed(hidden: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensorflow_uses(0, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert devices.unused_gpus(Rank(0)) == ""


@pytest.mark.usefixtures("two_gpus")
def test_a_gpu_that_is_not_there_and_a_driver_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    tensorflow_uses(0, monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    assert devices.unused_gpus(Rank(0)).startswith(
        "CUDA_VISIBLE_DEVICES=5 names no GPU of this machine, which has 0, 1"
    )
    monkeypatch.setattr(gpus, "listed", lambda: ([], "no driver"))
    assert devices.unused_gpus(Rank(0)).startswith("nvidia-smi fails, so the CPU is used (no driver); ")
