"""The moving average of weights."""

import keras
import numpy as np
import tensorflow as tf

from training.averaging import Average


def variable(value: list[float]) -> keras.Variable:
    return keras.Variable(np.array(value, np.float32))


def test_the_average_follows_the_weights_by_hand():
    weight = variable([1.0, -1.0])
    average = Average([weight], 0.5)
    steps = tf.Variable(1, dtype=tf.int64)
    weight.assign([2.0, -1.0])
    average.update(steps)  # decay (1 + 1) / (10 + 1), less than 0.5
    np.testing.assert_allclose(average.state()["average/00000"], [2 - 2 / 11, -1], rtol=1e-6)
    steps.assign(100)
    weight.assign([0.0, 1.0])
    before = average.state()["average/00000"]
    average.update(steps)
    np.testing.assert_allclose(average.state()["average/00000"], 0.5 * before + 0.5 * np.float32([0, 1]), rtol=1e-6)


def test_weights_are_their_own_again_outside_also_after_an_error():
    weight = variable([1.0])
    average = Average([weight], 0.9)
    weight.assign([3.0])
    try:
        with average.in_place():
            assert weight.numpy().tolist() == [1.0]
            raise KeyError
    except KeyError:
        pass
    assert weight.numpy().tolist() == [3.0]


def test_a_checkpoint_restores_it_and_one_without_starts_it_at_the_weights():
    weight = variable([1.0])
    average = Average([weight], 0.9)
    weight.assign([5.0])
    state = average.state()
    other = Average([weight], 0.9)
    assert other.state()["average/00000"].tolist() == [5.0]
    assert other.restore(state)
    assert other.state()["average/00000"].tolist() == [1.0]
    assert not other.restore({})
    assert other.state()["average/00000"].tolist() == [5.0]
