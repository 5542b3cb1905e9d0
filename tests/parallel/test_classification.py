"""Whole images shared by ranks: one step of all equals that of one rank. See `test_equivalence` for how it is run."""

from pathlib import Path

import numpy as np
import pytest

from classification.extraction import Extraction, extract
from classification.features import Features, Settings
from classification.losses import Loss
from classification.step import StreamedStep
from parallel.comm import AgreedError, SoloComm, connect
from streaming import ArrayImage
from tests.support.classifiers import images, small_classifier, small_stream
from training.optimizer import build

LOSS = Loss("classes", (1.0, 2.0, 5.0))
# float32, see `test_equivalence`: sums of a few images in another order.
RTOL = 2e-5


@pytest.fixture(scope="module")
def comm():
    found = connect(horovod=True)
    assert found.size >= 2, "run me with mpirun -np 2"
    return found


def step(comm, **options):
    stream = small_stream(small_classifier())
    return stream, StreamedStep(stream, build("sgd", stream.variables, 0.9, None), comm, LOSS, **options)


class Broken:
    shape = (1, 150, 131, 3)

    def read(self, rows, columns):
        raise ValueError("tumor_009.tif: truncated")


def batch(comm):
    """A batch of unequal shares: rank 0 has two images, the others one, the last of three none."""
    counts = [2, 1, 0][: comm.size]
    arrays = images(sum(counts), hw=(150, 131))
    target_BK = np.eye(3, dtype=np.float32)[[2, 0, 1][: sum(counts)]]
    begin = sum(counts[: comm.rank])
    own = slice(begin, begin + counts[comm.rank])
    return [ArrayImage(array) for array in arrays], target_BK, own


def test_steps_of_all_ranks_are_those_of_one(comm):
    sources, target_BK, own = batch(comm)
    stream, many = step(comm)
    _, one = step(SoloComm())
    loss, grads = many.gradients(sources[own], target_BK[own])
    joint_loss, joint = one.gradients(sources, target_BK)
    assert loss == pytest.approx(joint_loss, rel=RTOL)
    for grad, expected in zip(grads, joint, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())
    for number in range(3):
        found = many(sources[own], target_BK[own], 1e-3, stop=number == 1 and comm.rank == comm.size - 1)
        expected = one(sources, target_BK, 1e-3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
        assert found.stop == (number == 1)
        np.testing.assert_allclose(found.logits_BK, expected.logits_BK[own], rtol=1e-3, atol=1e-3)
    contents = comm.gather([v.numpy().tobytes() for v in stream.variables])
    assert len(contents[0]) == 38
    assert all(other == contents[0] for other in contents[1:])
    rounded = comm.gather(
        [g.numpy().tobytes() for g in step(comm, fp16_allreduce=True)[1].gradients(sources[own], target_BK[own])[1]]
    )
    assert all(other == rounded[0] for other in rounded[1:])


def test_ranks_that_share_images_do_what_one_does(comm):
    sources, target_BK, _ = batch(comm)
    shared = small_stream(small_classifier(), sharing=comm)
    alone = small_stream(small_classifier())
    many, one = (
        StreamedStep(s, build("sgd", s.variables, 0.9, None), c, LOSS) for s, c in ((shared, comm), (alone, SoloComm()))
    )
    assert (shared.logits(sources[0]) == alone.logits(sources[0])).all()
    tiles = comm.gather(shared.early_counts.forward)
    assert sum(tiles) == alone.early_counts.forward
    assert min(tiles) > 0
    loss, grads = many.gradients(sources, target_BK)
    joint_loss, joint = one.gradients(sources, target_BK)
    assert loss == pytest.approx(joint_loss, rel=1e-6)
    for grad, expected in zip(grads, joint, strict=True):
        np.testing.assert_allclose(grad, expected, rtol=RTOL, atol=RTOL * np.abs(expected).max())
    for _ in range(2):
        found, expected = many(sources, target_BK, 1e-3), one(sources, target_BK, 1e-3)
        assert found.loss == pytest.approx(expected.loss, rel=1e-4)
    contents = comm.gather([v.numpy().tobytes() for v in shared.variables])
    assert all(other == contents[0] for other in contents[1:])


def test_an_image_that_one_rank_cannot_read_stops_all(comm):
    sources, target_BK, own = batch(comm)
    _, many = step(comm)
    mine = [Broken()] if comm.rank == 1 else sources[own]
    with pytest.raises(AgreedError, match=r"^rank 1: tumor_009\.tif: truncated$"):
        many(mine, target_BK[own], 1e-3)


def test_ranks_share_the_maps_of_an_archive(comm, tmp_path):
    """Each map is made once, by one rank; an image that one cannot read is an error of all, and the others are kept."""
    folder = Path(comm.gather(str(tmp_path))[0])
    classifier = small_classifier()
    classifier.train(early=False, norm=True)
    stream = small_stream(classifier)
    settings = Settings("small", "layer3", classifier.hash(), None, None, "", "float32", "float32")
    items = [(f"slide_{number}", 0) for number in range(5)]
    arrays = images(5, hw=(150, 131))
    asked = []

    def view(slide_id, copy):
        asked.append(slide_id)
        return Broken() if bad == slide_id else ArrayImage(arrays[int(slide_id[-1])])

    extraction = Extraction(folder / "features.tar", settings, items, view)
    bad = "slide_1"
    with pytest.raises(
        AgreedError, match=r"^1 of 5 maps could not be made: slide_1: tumor_009\.tif: truncated\. Repair"
    ):
        extract(extraction, stream, comm)
    assert sorted(name for part in comm.gather(asked) for name in part) == [name for name, _ in items]
    asked, bad = [], ""
    assert extract(extraction, stream, comm) is True
    assert [name for part in comm.gather(asked) for name in part] == ["slide_1"]
    found = Features(extraction.path)
    assert found.ids == [name for name, _ in items]
    for number, (name, _) in enumerate(items):
        assert (found.map(name).image_BHWC == stream.map(ArrayImage(arrays[number]))).all()
    asked = []
    extraction = Extraction(folder / "other.tar", settings, items, view)
    assert extract(extraction, stream, comm, stop=lambda: comm.rank == 1) is False
    assert sum(comm.gather(len(asked))) == 5 - len(range(1, 5, comm.size))
