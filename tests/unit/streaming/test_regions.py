"""Intervals, and boxes that cover every map once."""

import itertools
from typing import Any

import keras
import numpy as np
import pytest

from streaming.regions import clipped, cut, same_padding
from streaming.stream import Streamed
from tests.support.streams import policy, randomized, small_resnet


def test_same_padding_depends_on_the_size_of_the_map() -> None:
    # kernel 3, stride 2: 5 cells -> 3 outputs need 7, one in front; 6 cells -> 3 outputs need 7, none in front
    assert (same_padding(5, 3, 2), same_padding(6, 3, 2)) == (1, 0)
    assert same_padding(7, 5, 1) == 2
    assert same_padding(4, 1, 2) == 0


def test_a_window_is_cut_and_padded() -> None:
    assert cut((3, 8), (2, 9), 20) == (1, 5, 0, 0)
    assert cut((-2, 4), (0, 6), 20) == (0, 4, 2, 0)
    assert cut((17, 23), (15, 20), 20) == (2, 3, 0, 3)
    assert cut((-1, 5), (0, 3), 3) == (0, 3, 1, 2)


def test_a_window_outside_the_map_is_all_padding() -> None:
    assert clipped((-6, -2), 10) == (0, 1)
    assert clipped((12, 15), 10) == (9, 10)
    assert cut((-6, -2), (0, 1), 10)[1:] == (0, 4, 0)
    assert cut((12, 15), (9, 10), 10)[1:] == (0, 0, 3)


def two_strides() -> Any:
    """Maps of strides 1, 2 and 6."""
    image = keras.Input((None, None, 3))
    a = keras.layers.Conv2D(2, 3, padding="same")(image)
    b = keras.layers.Conv2D(2, 5, strides=2)(a)
    c = keras.layers.MaxPooling2D(4, 3, padding="same")(b)
    return randomized(image, [a, b, c])


@pytest.mark.parametrize("build", [two_strides, small_resnet])
def test_boxes_cover_every_cell_once(build: Any) -> None:
    model = build()
    checked = 0
    for (height, width), tile in itertools.product([(97, 61), (200, 133), (331, 512)], [90, 131, 200]):
        if build is small_resnet and tile < 200:
            continue
        stream = Streamed(model, tile=tile)
        layout = stream.layout((height, width))
        (part,) = layout.parts
        for place, value in enumerate(part.segment.targets):
            seen = np.zeros((layout.sizes[0][value.index], layout.sizes[1][value.index]), int)
            for row, column in itertools.product(part.rows, part.columns):
                (top, bottom), (left, right) = row.boxes[place], column.boxes[place]
                assert top < bottom
                assert left < right
                seen[top:bottom, left:right] += 1
                assert row.held[0][1] - row.held[0][0] <= tile
                assert column.held[0][1] - column.held[0][0] <= tile
            assert np.array_equal(seen, np.ones_like(seen))
            checked += 1
    assert checked >= 3


def test_tiles_in_the_middle_are_alike() -> None:
    with policy("float64"):
        stream = Streamed(small_resnet(), tile=290)
    (part,) = stream.layout((1501, 1501)).parts
    assert len(part.rows) >= 5
    assert all(band.same(part.rows[1]) for band in part.rows[1:-1])
    assert not part.rows[0].same(part.rows[1])
