"""One image shared by ranks: what each does, and that all get what one rank gets."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from streaming import Gradients, Streamed
from streaming.layout import Counts
from streaming.sharing import Alone, Sharing, added, completed, labels, owners
from tests.support.ranks import on_ranks
from tests.support.streams import as_list, difference, image_of, policy, randomized, small_resnet


@pytest.fixture(autouse=True)
def _double() -> Iterator[None]:
    with policy("float64"):
        yield


def both_passes(model: keras.Model, image: Any, sharing: Sharing | None, slope: Any = None, **options: Any) -> Any:
    """Maps, gradients, counts of a stream."""
    stream = Streamed(model, sharing=sharing, **options)
    found = as_list(stream.forward(image))
    rng = np.random.default_rng(5)
    given = [rng.normal(size=out.shape) for out in found] if slope is None else [slope]
    gradients = stream.backward(given if len(given) > 1 else given[0], image_gradient=True)
    return found, gradients, stream.counts


def assert_as_one_rank(model: keras.Model, image: Any, ranks: int, **options: Any) -> list[Counts]:
    """Maps are bit-equal, gradients to 1e-12 of their largest; bit-equal on all ranks. Counts of the ranks."""
    found, gradients, counts = both_passes(model, image, None, **options)
    shared = on_ranks(ranks, lambda rank: both_passes(model, image, rank, **options))
    for maps, slopes, _ in shared:
        assert [x.tobytes() for x in maps] == [x.tobytes() for x in found]
        assert len(slopes.variables) == len(gradients.variables) > 0
        for mine, one in zip([*slopes.variables, slopes.image], [*gradients.variables, gradients.image], strict=True):
            assert difference(mine, one, 1e-3) < 1e-12
        assert bits(slopes) == bits(shared[0][1])
    assert all(np.any(np.asarray(g)) for g in gradients.variables)
    of_ranks = [counts_of for _, _, counts_of in shared]
    assert [sum(vars(c)[name] for c in of_ranks) for name in vars(counts)] == list(vars(counts).values())
    return of_ranks


def bits(gradients: Gradients) -> list[bytes]:
    return [np.asarray(g).tobytes() for g in [*gradients.variables, gradients.image]]


@pytest.mark.parametrize("ranks", [2, 3])
def test_two_segments_shared_are_those_of_one_rank(ranks: int) -> None:
    counts = assert_as_one_rank(small_resnet(), image_of(231, 307, 3), ranks, tile=(70, 40), segments=["layer2"])
    assert min(c.forward for c in counts) >= 7
    assert min(c.backward for c in counts) >= 7


def test_means_and_a_maximum_over_the_image() -> None:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", name="stem")(image)
    gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.GlobalAveragePooling2D(keepdims=True)(x))
    x = layers.Conv2D(4, 3, activation="relu", name="map")(layers.Multiply()([x, gate]))
    pooled = layers.Concatenate()([layers.GlobalAveragePooling2D()(x), layers.GlobalMaxPooling2D()(x)])
    model = randomized(image, layers.Dense(2)(pooled))
    assert_as_one_rank(model, image_of(53, 41, 3), 2, tile=(17, 9))


def test_batch_statistics_of_an_image_that_ranks_share() -> None:
    image = keras.Input((None, None, 3))
    x = layers.BatchNormalization(name="bn1")(layers.Conv2D(4, 3, 2, use_bias=False, name="first")(image))
    model = randomized(image, layers.Conv2D(2, 3)(layers.ReLU()(x)))
    assert_as_one_rank(model, image_of(61, 45, 3), 2, tile=(17, 9), batch_statistics=True)

    def moved(rank: Sharing) -> bytes:
        other = keras.models.clone_model(model)
        other.set_weights(model.get_weights())
        stream = Streamed(other, tile=(17, 9), batch_statistics=True, sharing=rank)
        stream.forward(image_of(61, 45, 3))
        stream.update_statistics()
        return np.concatenate([v.numpy() for v in other.get_layer("bn1").non_trainable_variables]).tobytes()

    assert on_ranks(2, moved) == [moved(Alone())] * 2
    before = np.concatenate([v.numpy() for v in model.get_layer("bn1").non_trainable_variables])
    assert moved(Alone()) != before.tobytes()


def margin_image() -> Any:
    """White but for two places."""
    image = np.ones((1, 160, 200, 3))
    image[:, :40, :50] = image_of(40, 50, 3)
    image[:, 90:110, 120:150] = image_of(20, 30, 3)
    return image


def flat_network() -> keras.Model:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", activation="tanh")(image)
    return randomized(image, layers.Conv2D(2, 3, padding="same")(x))


def without_image_gradient(rank: Sharing | None) -> Any:
    stream = Streamed(flat_network(), tile=27, sharing=rank)
    late = stream.forward(margin_image())
    slope = np.random.default_rng(2).normal(size=late.shape)
    slope[:, :20] = 0
    return late.tobytes(), stream.backward(slope).variables, stream.counts


def test_white_tiles_are_computed_once_and_zero_gradients_not_at_all() -> None:
    late, gradients, counts = without_image_gradient(None)
    shared = on_ranks(2, without_image_gradient)
    assert counts.forward_reused > 10
    assert counts.backward_reused > 5
    assert counts.skipped > 5
    for maps, slopes, _ in shared:
        assert maps == late
        for mine, one in zip(slopes, gradients, strict=True):
            assert difference(mine, one) < 1e-12
    of_ranks = [found for _, _, found in shared]
    for name, one in vars(counts).items():
        assert sum(vars(c)[name] for c in of_ranks) == one
    # What is computed is shared out evenly, however the white tiles lie.
    assert abs(of_ranks[0].forward - of_ranks[1].forward) <= 1
    assert abs(of_ranks[0].backward - of_ranks[1].backward) <= 1


def test_white_tiles_are_read_by_one_rank_but_for_the_one_that_is_computed() -> None:
    class Read:
        shape = (1, 160, 200, 3)

        def __init__(self) -> None:
            self.px = 0

        def read(self, rows: tuple[int, int], columns: tuple[int, int]) -> Any:
            self.px += (rows[1] - rows[0]) * (columns[1] - columns[0])
            return margin_image()[:, rows[0] : rows[1], columns[0] : columns[1]]

    def px(rank: Sharing | None) -> int:
        image = Read()
        Streamed(flat_network(), tile=27, sharing=rank).forward(image)
        return image.px

    assert sum(on_ranks(2, px)) < 1.25 * px(None)


def test_the_gradient_of_the_image_is_added_to_an_array_once() -> None:
    image = image_of(61, 45, 3)

    def summed(rank: Sharing | None) -> Any:
        stream = Streamed(flat_network(), tile=27, sharing=rank)
        late = stream.forward(image)
        place = np.full((1, 61, 90, 3), 7.0)[:, :, ::2]
        found = stream.backward(np.ones(late.shape), image_gradient=place).image
        assert found is place
        return found

    for mine in on_ranks(2, summed):
        assert difference(mine, summed(None)) < 1e-12
    assert np.abs(summed(None) - 7).max() > 0.1


def test_gradients_of_several_types() -> None:
    def gradients(rank: Sharing | None) -> Any:
        image = keras.Input((None, None, 3))
        x = layers.Conv2D(2, 3, 2)(image)
        model = randomized(image, layers.Conv2D(2, 3, dtype="mixed_float16")(x))
        stream = Streamed(model, tile=17, sharing=rank)
        return stream.backward(np.ones(stream.forward(image_of(31, 45, 3)).shape)).variables

    expected = gradients(None)
    assert {g.dtype.name for g in expected} == {"float32", "float64"}
    for found in on_ranks(2, gradients):
        assert [g.dtype for g in found] == [g.dtype.name for g in expected]
        for mine, one in zip(found, expected, strict=True):
            assert difference(mine, one) < (1e-12 if mine.dtype == np.float64 else 1e-6)


def test_more_ranks_than_tiles() -> None:
    counts = assert_as_one_rank(flat_network(), image_of(17, 23, 3), 3, tile=64)
    assert sorted(c.forward for c in counts) == [0, 0, 1]


def test_rank_0_gives_the_gradient_of_the_late_map() -> None:
    image = image_of(61, 45, 3)

    def gradients(rank: Sharing | None) -> Any:
        stream = Streamed(flat_network(), tile=27, sharing=rank)
        slope = np.ones(stream.forward(image).shape)
        if rank is not None and rank.rank:
            slope[:, 3:] = 9.0
        slope.flags.writeable = False
        return stream.backward(slope).variables

    for mine in on_ranks(2, gradients):
        for a, b in zip(mine, gradients(None), strict=True):
            assert difference(a, b) < 1e-12


def test_a_rank_with_another_image_is_an_error_on_all() -> None:
    def forward(rank: Sharing) -> str:
        with pytest.raises(ValueError, match="ranks share one image") as error:
            Streamed(flat_network(), tile=27, sharing=rank).forward(image_of(61, 45 + rank.rank, 3))
        return str(error.value)

    expected = (
        "ranks share one image, but rank 0's has shape (1, 61, 45, 3) and another's (1, 61, 46, 3); give all ranks the "
        "same image"
    )
    assert on_ranks(2, forward) == [expected] * 2


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64", "uint8"])
def test_bits_of_a_map_travel_unchanged(dtype: str) -> None:
    import ml_dtypes

    kind = ml_dtypes.bfloat16 if dtype == "bfloat16" else np.dtype(dtype)
    numbers = np.array([[1.5, -0.0, 3], [65504.0, 1e-7, 7], [np.inf, 5, np.nan]] if dtype != "uint8" else [[1, 2, 255]])

    def complete(rank: Sharing) -> bytes:
        mine = numbers.astype(kind)
        mine[:, rank.rank :: 2] = 0
        return completed(rank, mine[:, ::-1]).tobytes()

    assert on_ranks(2, complete) == [numbers.astype(kind)[:, ::-1].tobytes()] * 2


def test_long_arrays_go_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streaming.sharing.PIECE", 3)
    whole = np.arange(1.0, 12.0)

    def both(rank: Sharing) -> Any:
        mine = np.where(np.arange(11) % 2 == rank.rank, whole, 0)
        return completed(rank, mine).tolist(), added(rank, whole * (rank.rank + 1)).tolist()

    assert on_ranks(2, both) == [(whole.tolist(), (3 * whole).tolist())] * 2


def test_the_most_expensive_tiles_first_each_to_the_rank_with_the_least() -> None:
    assert owners([4, 9, 2, 7, 3], [None] * 5, 2) == [1, 0, 1, 1, 0]
    # Tiles 1 and 3 are one: they cost 9.
    assert owners([4, 9, 2, 9, 3], [None, "w", None, "w", None], 2) == [1, 0, 1, 0, 1]
    assert owners([0, 0, 5], [None] * 3, 2) == [1, 1, 0]


def test_labels_are_equal_for_tiles_that_are_alike() -> None:
    kinds = [("a", b"1"), None, ("a", b"1"), ("b", b"1"), None]
    looked: list[int] = []

    def of(number: int) -> Any:
        looked.append(number)
        return kinds[number]

    found = on_ranks(2, lambda rank: labels(rank, of, 5))
    assert found[0] == found[1]
    assert [x is None for x in found[0]] == [False, True, False, False, True]
    assert found[0][0] == found[0][2] != found[0][3]
    assert sorted(looked) == [0, 1, 2, 3, 4]
