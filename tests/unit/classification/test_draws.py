"""The order of slides: epochs, balance, purity."""

from collections import Counter

import numpy as np
import pytest

from classification.draws import Draws
from classification.targets import Labeled


def slides(counts):
    names = [(text, number) for text, count in counts.items() for number in range(count)]
    return [Labeled(f"{text}{number}", np.zeros(2, np.float32), "", text) for text, number in names]


def test_an_epoch_is_a_shuffle_of_all():
    draws = Draws(slides({"a": 5, "b": 2}), seed=3)
    assert draws.epoch_images == 7
    seen = [draws.at(index) for index in range(21)]
    names = [item.slide_id for item, _ in seen]
    assert [epoch for _, epoch in seen] == [0] * 7 + [1] * 7 + [2] * 7
    for first in (0, 7, 14):
        assert sorted(names[first : first + 7]) == ["a0", "a1", "a2", "a3", "a4", "b0", "b1"]
    assert names[:7] != names[7:14]


def test_pure_in_seed_and_index():
    items = slides({"a": 5, "b": 2})
    for weighted in (False, True):
        forward = [Draws(items, 3, weighted).at(index)[0].slide_id for index in range(30)]
        draws = Draws(items, 3, weighted)
        assert [draws.at(index)[0].slide_id for index in reversed(range(30))] == forward[::-1]
        assert [Draws(items, 4, weighted).at(index)[0].slide_id for index in range(30)] != forward


def test_weighted_draws_are_balanced_and_use_every_slide():
    draws = Draws(slides({"a": 9, "b": 2, "c": 1}), 0, weighted=True)
    seen = [draws.at(index)[0] for index in range(54)]
    for first in range(0, 54, 3):
        assert sorted(item.text for item in seen[first : first + 3]) == ["a", "b", "c"]
    counts = Counter(item.slide_id for item in seen)
    assert counts["c0"] == 18
    assert counts["b0"] == counts["b1"] == 9
    assert all(counts[f"a{number}"] == 2 for number in range(9))
    assert [draws.at(index)[1] for index in (0, 11, 12)] == [0, 0, 1]


def test_no_slides():
    with pytest.raises(ValueError, match="there are no slides to train on"):
        Draws([], 0)
