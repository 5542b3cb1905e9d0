"""Ranks that share the tiles of one image get what one rank gets; run like test_equivalence.py.

Maps are equal to the bit, since every number of them is one rank's. Gradients are sums over tiles in another order.
"""

import numpy as np
import pytest

from models import resnet
from parallel.comm import connect
from streaming import Streamed
from tests.support.streams import difference, image_of, policy, randomize


@pytest.fixture(scope="module")
def comm():
    found = connect(horovod=True)
    assert found.size >= 2, "run me with mpirun -np 2"
    return found


@pytest.mark.parametrize(("dtype", "limit"), [("float64", 1e-12), ("float32", 1e-5)])
def test_one_image_on_all_ranks_is_that_of_one_rank(comm, dtype, limit):
    with policy(dtype):
        network = resnet.build("resnet18", 2, width=4)
        randomize(network)
        image = image_of(321, 387, 3).astype(dtype)
        image[:, 200:] = 1.0
        solo = Streamed(network, tile=(150, 47), segments=["layer2_1"])
        late = solo.forward(image)
        slope = np.random.default_rng(5).normal(size=late.shape)
        expected = solo.backward(slope, image_gradient=True)

        shared = Streamed(network, tile=(150, 47), segments=["layer2_1"], sharing=comm)
        found = shared.forward(image)
        assert found.tobytes() == late.tobytes()
        gradients = shared.backward(slope, image_gradient=True)
        assert len(gradients.variables) == len(expected.variables) > 60
        for mine, one in zip(
            [*gradients.variables, gradients.image], [*expected.variables, expected.image], strict=True
        ):
            assert difference(mine, one) < limit
        same = comm.gather([np.asarray(g).tobytes() for g in [*gradients.variables, gradients.image]])
        assert all(other == same[0] for other in same[1:])

        counts = comm.gather(vars(shared.counts))
        assert {name: sum(c[name] for c in counts) for name in counts[0]} == vars(solo.counts)
        assert all(c["forward"] and c["backward"] for c in counts)
