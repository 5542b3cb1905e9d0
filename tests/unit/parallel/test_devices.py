"""Devices of a rank in a process where TensorFlow has started before."""

import pytest
import tensorflow as tf

from parallel.comm import SoloComm
from parallel.devices import use_devices


@pytest.mark.parametrize(
    ("started_with", "expected"), [(1, "1 CPU thread"), (2, "2 CPU threads"), (0, "500 CPU threads")]
)
def test_threads_stay_as_they_are_once_tensorflow_has_started(
    started_with: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 is TensorFlow's own choice: all cores that this process may use."""
    tf.constant(1.0)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda _: [])
    monkeypatch.setattr(tf.config.threading, "get_intra_op_parallelism_threads", lambda: started_with)
    # More than any process of the tests has: setting it fails.
    monkeypatch.setattr("parallel.devices.threads_per_rank", lambda _: 500)
    assert use_devices(SoloComm()) == f"{expected} per rank"
