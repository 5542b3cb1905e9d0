"""Segmentation networks, streamed: outputs and all gradients of the whole image."""

from collections.abc import Callable, Sequence

import keras

from models import deeplab, efficientdet
from streaming import Streamed
from tests.support.streams import Compared, assert_exact, compared, image_of, in_type, randomize
from tests.support.thin import thin_networks

KEPT = ("entry_flow_block3_add",)  # DeepLab's map of stride 16 in front of its middle flow


def network(build: Callable[[], keras.Model], dtype: str = "float64") -> keras.Model:
    """A thin network whose every layer computes in a type, with random numbers in all variables."""
    with thin_networks():
        model = in_type(build(), dtype)
    randomize(model)
    return model


def deeplab_for(hw: tuple[int, int], classes: int = 2) -> keras.Model:
    """DeepLabV3+, whose resizes are made for one size, for images of any sides."""
    image = keras.Input((*hw, 3))
    fine, coarse = deeplab._xception65(image)
    x = keras.layers.Conv2D(classes, 1, name="logits")(deeplab._decoder(deeplab._aspp(coarse), fine))
    return keras.Model(image, deeplab.AlignCornersResize(hw, name="logits_resize")(x), name="deeplab")


def streamed(model: keras.Model, hw: tuple[int, int], tiles: int | Sequence[int], keep: Sequence[str] = ()) -> Compared:
    """The comparison of a stream, dropout as at inference."""
    return compared(Streamed(model, tile=tiles, segments=keep, dropout="inactive"), model, image_of(*hw, 3))


def test_deeplab_of_an_odd_size() -> None:
    """171 x 235 px: the backbone, the middle and the rest behind image pooling in tiles of their own."""
    hw = (171, 235)
    result = streamed(network(lambda: deeplab_for(hw)), hw, (96, 16, 40), KEPT)
    assert min(result.bands[0]) >= 3
    assert_exact(result, result.bands)


def test_efficientdet_of_a_rectangle() -> None:
    """Its gates are exact; levels of stride 128 look at 640 px."""
    hw = (768, 896)
    tiles = [320] * 6 + [383]
    result = streamed(network(lambda: efficientdet.build("effdetd0", (None, None), 3)), hw, tiles)
    assert min(result.bands[0]) >= 3
    assert_exact(result, result.bands)
