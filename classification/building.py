"""The network of a run, with the weights that it starts from."""

from __future__ import annotations

import keras

from artifacts.checkpoints import named_variables
from classification import network
from classification.inputs import Inputs
from classification.planning import network_lines
from classification.resume import Trained, take_weights
from options.train_classifier import Network
from parallel.comm import Comm, together
from parallel.job import Log


def build_network(
    given: Network, seed: int, inputs: Inputs, trained: Trained | None, comm: Comm, log: Log
) -> network.Classifier:
    """The network of a run; all ranks hold rank 0's weights afterwards. Every rank must call it.

    Args:
        given: which network.
        seed: of its weights where they are not loaded.
        inputs: what its outputs stand for.
        trained: a trained network to take weights from.
        comm: the ranks.
        log: prints lines on rank 0.

    Raises:
        AgreedError: weights cannot be read, or are of another network.
    """
    # Ranks: Horovod matches tensors by name, and Keras counts its layers: all ranks count from 1.
    keras.backend.clear_session()
    keras.utils.set_random_seed(seed)
    outputs = inputs.targets.outputs
    found, report = together(
        comm,
        lambda: network.build(
            given.model, outputs, given.pool, given.cut, given.mixed_precision, given.weights_path, given.width
        ),
    )
    log(*network_lines(found, given.weights_path, report))
    if trained is not None:
        log(*take_weights(trained, found.model, trained.outputs == inputs.stream["outputs"], comm))
    comm.broadcast(list(named_variables(found.model, None).values()))
    return found
