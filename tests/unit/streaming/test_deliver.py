"""Output of a stream box by box, and tiles of all segments from one number."""

from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from models import deeplab
from streaming import Streamed
from streaming.sides import kept_bytes, sides
from tests.support.streams import image_of, randomized
from tests.support.thin import thin_networks


def three_strides() -> keras.Model:
    image = keras.Input((None, None, 3))
    x = layers.Conv2D(4, 3, 2, "same", name="half")(image)
    x = layers.Conv2D(8, 3, 2, "same", name="quarter")(x)
    return randomized(image, layers.UpSampling2D(4, name="up")(layers.Conv2D(2, 3, padding="same")(x)))


class Boxes:
    """Takes boxes into an array that begins as NaN."""

    def __init__(self, shape: tuple[int, ...], last_column: int = 10**9) -> None:
        self.out = np.full(shape, np.nan)
        self.last_column, self.refused = last_column, 0

    def wants(self, rows: Any, columns: Any) -> bool:
        wanted = bool(columns[0] < self.last_column)
        self.refused += not wanted
        return wanted

    def take(self, rows: Any, columns: Any, box_BHWC: Any) -> None:
        self.out[:, rows[0] : rows[1], columns[0] : columns[1]] = box_BHWC


def test_boxes_are_those_of_the_whole_map_and_every_tile_is_reported() -> None:
    stream = Streamed(three_strides(), tile=(40, 12), segments=["quarter"])
    image = image_of(96, 132, 3).astype(np.float32)
    whole = stream.forward(image)
    boxes, ticks = Boxes(whole.shape), []
    stream.deliver(image, boxes, lambda: ticks.append(1))
    np.testing.assert_array_equal(boxes.out, whole)
    parts = stream.layout((96, 132)).parts
    assert len(parts) == 2
    assert len(ticks) == sum(len(part.rows) * len(part.columns) for part in parts) > 12
    with pytest.raises(ValueError, match="backward needs a forward pass"):
        stream.backward(whole)


def test_boxes_that_nobody_wants_are_not_computed() -> None:
    stream = Streamed(three_strides(), tile=(40, 12), segments=["quarter"])
    image = image_of(96, 132, 3).astype(np.float32)
    whole = stream.forward(image)
    before = stream.counts.forward
    boxes = Boxes(whole.shape, last_column=64)
    stream.deliver(image, boxes)
    assert boxes.refused > 0
    assert stream.counts.forward == before - boxes.refused
    taken = ~np.isnan(boxes.out)
    assert taken[:, :, :64].all()
    assert not taken[:, :, 100:].any()
    np.testing.assert_array_equal(boxes.out[taken], whole[taken])


def test_several_maps_cannot_be_delivered_in_boxes() -> None:
    stream = Streamed(three_strides(), cut=["half", "quarter"], tile=40)
    with pytest.raises(ValueError, match="only a single map at the end of a network can be delivered in boxes"):
        stream.deliver(image_of(64, 64, 3), Boxes((1, 1)))


def test_tiles_follow_the_strides_of_what_segments_read() -> None:
    stream = Streamed(three_strides(), tile=999, segments=["half", "quarter"])
    assert sides(stream, (256, 384), 64) == [64, 32, 16]
    # A box of the last segment looks at three cells of stride 4; half of them would be two px of tile.
    assert sides(stream, (256, 384), 8) == [8, 4, 3]


def test_bytes_of_maps_between_segments() -> None:
    stream = Streamed(three_strides(), tile=999, segments=["half", "quarter"])
    # At most both are held: 128 x 192 cells of 4 channels, 64 x 96 of 8, of 4 bytes.
    assert kept_bytes(stream, (256, 384)) == 4 * (128 * 192 * 4 + 64 * 96 * 8)
    assert kept_bytes(Streamed(three_strides(), tile=999), (256, 384)) == 0


def test_deeplab_is_exact_on_a_rectangle_in_kept_parts() -> None:
    with thin_networks():
        model = deeplab.build((256, 384), 2)
    stream = Streamed(model, segments=["entry_flow_block3_add"], dropout="inactive")
    stream = stream.with_tile(sides(stream, (256, 384), 160))
    image = image_of(256, 384, 3).astype(np.float32)
    boxes = Boxes((1, 256, 384, 2))
    stream.deliver(image, boxes)
    assert len(stream.layout((256, 384)).parts[0].columns) > 2
    whole = model(image, training=False).numpy()
    assert np.abs(boxes.out - whole).max() < 1e-5 * np.abs(whole).max()
