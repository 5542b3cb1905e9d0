"""Devices of a rank in a process where TensorFlow has started before."""

import keras
import pytest
import tensorflow as tf

from parallel.comm import SoloComm
from parallel.devices import use_devices


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
