"""From requests to batches; the hard-mining pool; the sample log."""

import itertools
import threading
from fractions import Fraction

import numpy as np
import pytest
import tensorflow as tf

from samplers.hard_pool import Entry, HardPool
from samplers.patch import HARD, STREAM, UNREADABLE, NotYetError, Patch, PatchRequest, draw
from samplers.pipeline import Feed, grid_feed, joined
from samplers.records import META, Records, read_samples, trim_samples
from slides.geometry import Window
from slides.reader import SlideError
from tests.support.patches import Plain, load, pool
from tests.support.search_index import cells, index_of


@pytest.mark.parametrize("workers", [1, 3])
def test_order_does_not_depend_on_workers(workers):
    batches = list(Feed(load, list(range(10, 22)), 3, 4, workers))
    assert [list(meta_BM[:, 0]) for _, _, meta_BM in batches] == [
        [10, 11, 12],
        [13, 14, 15],
        [16, 17, 18],
        [19, 20, 21],
    ]
    image_BHWC, label_BHW, meta_BM = batches[1]
    assert image_BHWC.numpy()[:, 2, 1, 0].tolist() == [13, 14, 15]
    assert image_BHWC.dtype == "uint8"
    assert label_BHW.numpy()[:, 0, 3].tolist() == [1, 0, 1]
    assert dict(zip(META, meta_BM[0], strict=True)) == {
        "index": 13, "attempt": 0, "slide": 0, "cls": 1, "x_l0": 28.0, "y_l0": 7.0, "origin": 0,
    }  # fmt: skip


def test_workers_run_in_parallel():
    meeting = threading.Barrier(3, timeout=20)

    def wait(index):
        meeting.wait()
        return load(index)

    assert len(list(Feed(wait, list(range(6)), 2, 4, workers=3))) == 3


def test_last_batch_is_filled_with_ignored_patches():
    batches = list(Feed(load, [1, 2, 3], 2, 4, 1))
    assert batches[1][2][:, 0].tolist() == [3, -1]
    assert (batches[1][1].numpy()[1] == 255).all()
    assert list(Feed(load, [], 2, 4, 1)) == []


def test_a_bad_slide_comes_out_as_its_own_error():
    def bad(index):
        if index == 2:
            raise SlideError("tumor_001: broken tile at (3, 4)")
        return load(index)

    feed = iter(Feed(bad, [0, 1, 2, 3], 2, 4, 2))
    assert next(feed)[2][:, 0].tolist() == [0, 1]
    with pytest.raises(SlideError, match=r"^tumor_001: broken tile at \(3, 4\)$"):
        next(feed)


# ---------------------------------------------------------------------------------------------------------- hard mining


def entry(index, loss, x=50.0, y=40.0):
    return Entry(index, 0, index % 2, x, y, loss)


def test_pool_sends_a_fraction_to_the_hardest_places_of_an_earlier_interval():
    hard = pool()
    hard.feed([entry(0, 0.1), entry(1, 0.9, x=100.0), entry(2, 0.2), entry(3, 0.8, x=30.0)], 4)
    hard.feed([entry(4, 5.0)], 8)
    assert [hard.request(i).origin for i in range(8)] == [STREAM] * 8
    # indices 8 .. 11 see version 1 (indices below 4): the two hardest are of class 1, and every second draw may be hard
    drawn = [hard.request(i) for i in range(8, 12)]
    assert [(r.cls, r.origin) for r in drawn] == [(0, STREAM), (1, HARD), (0, STREAM), (1, HARD)]
    # 16 um at 0.5 um/px is 32 px: the jitter is at most 8 px
    near = [min(abs(r.center_xy_l0[0] - x) for x in (100.0, 30.0)) for r in drawn if r.origin == HARD]
    assert max(near) <= 8
    assert max(near) > 0


def test_pool_does_not_depend_on_who_delivers_first():
    entries = [entry(i, loss) for i, loss in enumerate((0.5, 0.5, 0.3, 0.7))]
    one, two = pool(), pool()
    one.feed(entries, 4)
    one.feed([entry(6, 0.1)], 8)
    two.feed(reversed(entries), 5)
    two.feed([entry(6, 0.1)], 9)
    assert [one.request(i) for i in range(12)] == [two.request(i) for i in range(12)]


def test_request_ahead_of_its_version_is_told_so():
    hard = pool()
    hard.feed([entry(1, 1.0)], 4)
    with pytest.raises(NotYetError, match="pool 2 is not published, 1 is the newest"):
        hard.request(13)
    hard.feed([], 8)
    assert hard.request(13).origin == HARD


def test_feed_waits_for_the_pool():
    hard = pool()

    def wanted(index):
        hard.request(index)
        return load(index)

    batches = iter(Feed(wanted, list(range(12)), 2, 4, 1))
    assert [next(batches)[2][:, 0].tolist() for _ in range(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    published = threading.Event()

    def publish():
        published.set()
        hard.feed([], 4)

    publisher = threading.Timer(0.2, publish)
    publisher.start()
    assert next(batches)[2][:, 0].tolist() == [8, 9]
    assert published.is_set()
    publisher.join()


def test_feed_ends_while_a_worker_waits_for_the_pool():
    hard = pool()

    def endless(first=0):
        yield from itertools.count(first)

    waits, rescued = threading.Event(), threading.Event()

    def wanted(index):
        try:
            hard.request(index)
        except NotYetError:
            waits.set()
            raise
        return load(index)

    def publish():
        rescued.set()
        hard.feed([], 10**6)

    rescue = threading.Timer(60, publish)
    rescue.start()
    batches = iter(Feed(wanted, endless, 2, 4, 2))
    for _ in range(4):
        next(batches)
    assert waits.wait(30)  # a worker has come to index 8 or 9, whose pool is never published
    del batches
    assert not rescued.is_set()
    rescue.cancel()


def test_old_entries_leave_the_pool():
    hard = pool()
    hard.feed([entry(1, 9.0)], 4)
    for counter in range(8, 4 * 18, 4):
        hard.feed([], counter)
    assert hard.request(4 * 17 + 1).origin == HARD  # version 16 holds indices 0 to 63
    assert hard.request(4 * 18 + 1).origin == STREAM  # version 17 holds indices 4 to 67


def test_a_pool_can_begin_with_places():
    start = [Entry(-2, 0, 1, 50.0, 40.0, 0.3), Entry(-1, 0, 1, 90.0, 40.0, 2.0)]
    hard = HardPool(Plain(), [index_of(cells((1, 1)))], 3, Fraction(1, 2), 1, 4, patch_um=16.0, start=start)
    assert [hard.request(i).origin for i in range(4)] == [STREAM, HARD, STREAM, HARD]
    # the one of the higher loss; 8 px of jitter
    assert abs(hard.request(1).center_xy_l0[0] - 90.0) <= 8
    hard.feed([Entry(1, 0, 1, 20.0, 40.0, 5.0)], 4)
    assert abs(hard.request(5).center_xy_l0[0] - 90.0) <= 8
    assert abs(hard.request(9).center_xy_l0[0] - 20.0) <= 8
    copy = HardPool(Plain(), [index_of(cells((1, 1)))], 3, Fraction(1, 2), 1, 4, patch_um=16.0)
    copy.restore(hard.state())
    assert [copy.request(i) for i in range(8, 12)] == [hard.request(i) for i in range(8, 12)]
    for counter in range(8, 4 * 18, 4):
        hard.feed([], counter)
    assert hard.request(4 * 18 + 1).origin == STREAM  # 16 intervals on, what it began with is forgotten


def test_pool_survives_a_checkpoint():
    hard = pool()
    hard.feed([entry(i, 1.0 + i % 3, x=10.0 * i) for i in range(10)], 10)
    copy = pool()
    copy.restore(hard.state())
    for p in (hard, copy):
        p.feed([entry(10, 7.0), entry(11, 8.0)], 12)
    assert [hard.request(i) for i in range(8, 16)] == [copy.request(i) for i in range(8, 16)]
    assert HARD in {hard.request(i).origin for i in range(8, 16)}
    with pytest.raises(ValueError, match="intervals of 4 images, this run 8"):
        pool(interval=8).restore(hard.state())


# ----------------------------------------------------------------------------------------------------------- sample log


def test_sample_log_keeps_and_trims_rows(tmp_path):
    for rank in (0, 1):
        records = Records(tmp_path, rank, ["tumor_001", "b"], [0.25, 0.25], None)
        meta_BM = np.array([[4 + rank, 1, rank, 1, 12.346, 7.0, 1], [6 + rank, 0, 0, 0, 1.0, 2.0, 0]])
        records.add(meta_BM, np.array([0.5, 0.25]))
        records.flush(lambda entries: [entries], 8)
        records.flush(lambda entries: [entries], 8)
    rows = read_samples(tmp_path)
    assert [int(r["index"]) for r in rows] == [4, 5, 6, 7]
    assert rows[0] == {
        "index": "4", "slide": "tumor_001", "x_l0": "12.346", "y_l0": "7.0", "um_px": "0.25",
        "cls": "1", "origin": "hard", "attempt": "1", "rejected": "", "loss": "0.5",
    }  # fmt: skip
    with (tmp_path / "samples" / "rank-1.csv").open("a") as file:
        file.write("8,b,1.0")  # cut short by a crash
    trim_samples(tmp_path, 6)
    assert [int(r["index"]) for r in read_samples(tmp_path)] == [4, 5]


# ------------------------------------------------------------------------------------------- draws that were not taken


class Elsewhere:
    """A sampler whose n-th attempt looks at x = n of slide n % 2."""

    max_redraws = 3

    def request(self, index, attempt=0):
        return PatchRequest(index, attempt, attempt % 2, 0, (float(attempt), 0.0))


class Broken:
    """A reader of texture that cannot read the first `failing` attempts."""

    um_px = 0.5

    def __init__(self, failing):
        self.failing = failing

    def read(self, request):
        if request.attempt < self.failing:
            raise SlideError(f"slide b.tif cannot be read in window {request.attempt}")
        purple = (80, 20, 70)
        image_HWC = (np.random.default_rng(0).integers(0, 120, (8, 8, 1)) + purple).astype(np.uint8)
        window = Window((0.0, 0.0), (8, 8), (1.0, 1.0))
        return Patch(request, window, image_HWC, np.zeros((8, 8), np.uint8))


def test_an_unreadable_place_is_replaced_by_rule():
    patch = draw(Elsewhere(), Broken(2), 5)
    assert patch.request == PatchRequest(5, 2, 0, 0, (2.0, 0.0))
    assert [(r.reason, r.request.attempt, r.request.slide) for r in patch.rejected] == [
        (UNREADABLE, 0, 0),
        (UNREADABLE, 1, 1),
    ]
    assert patch.rejected[1].message == "slide b.tif cannot be read in window 1"
    # It does not use up the draws that are allowed for what patches show.
    assert draw(Elsewhere(), Broken(8), 5).request.attempt == 8
    with pytest.raises(SlideError, match="window 10"):
        draw(Elsewhere(), Broken(99), 5)


def train(records, patch, loss=0.5):
    """As the loop does with one patch."""
    records.noticed(patch)
    r = patch.request
    records.add(np.array([[r.index, r.attempt, r.slide, r.cls, 1.0, 2.0, 0]]), np.array([loss]))


def test_unreadable_places_are_logged_and_counted(tmp_path):
    records = Records(tmp_path, 0, ["a", "b"], [0.5, 0.5], None, max_unreadable=0.5)
    train(records, draw(Elsewhere(), Broken(2), 5))
    train(records, draw(Elsewhere(), Broken(0), 6))
    for _ in range(2):
        records.flush(lambda entries: [entries], 7)
    assert records.rejected == {UNREADABLE: 2}
    assert [row["rejected"] for row in read_samples(tmp_path)] == ["unreadable:2", ""]
    lines = (tmp_path / "samples" / "unreadable-rank-0.csv").read_text(encoding="utf-8").splitlines()
    assert lines == [
        "index,attempt,slide,x_l0,y_l0,error",
        "5,0,a,0.0,0.0,slide b.tif cannot be read in window 0",
        "5,1,b,1.0,0.0,slide b.tif cannot be read in window 1",
    ]


def test_too_many_unreadable_places_stop_the_run():
    records = Records(None, 0, ["a", "b"], [0.5, 0.5], None, max_unreadable=0.1)
    for index in range(8):
        train(records, draw(Elsewhere(), Broken(1), index))  # 8 of 16: too few to judge
    with pytest.raises(
        ValueError, match=r"9 of 18 draws .* --max_unreadable 0\.1 allows: a 9 times\. The last: slide b"
    ):
        train(records, draw(Elsewhere(), Broken(1), 8))
    patient = Records(None, 0, ["a", "b"], [0.5, 0.5], None, max_unreadable=0.1)
    for index in range(300):
        train(patient, draw(Elsewhere(), Broken(index % 10 == 9), index))


def test_batches_are_joined_in_order():
    batches = [(tf.fill((2, 1, 1, 3), i), tf.fill((2, 1, 1), i), np.full((2, 3), i)) for i in range(5)]
    assert list(joined(batches, 1)) == batches
    found = list(joined(batches, 2))  # the fifth has no partner
    assert [[int(v) for v in label[:, 0, 0]] for _, label, _ in found] == [[0, 0, 1, 1], [2, 2, 3, 3]]
    assert found[1][2][:, 0].tolist() == [2, 2, 3, 3]


def test_an_unreadable_validation_window_is_left_out_and_said():
    requests = [PatchRequest(i, int(i != 1), 0, -1, (0.0, 0.0)) for i in range(3)]

    class Reader(Broken):
        img_size, channels = 8, 3

        def window(self, request):
            return Window((0.0, 0.0), (8, 8), (1.0, 1.0))

    left_out = []
    batches = list(grid_feed(Reader(1), requests, 0, 1, 1, 1, left_out.append))
    assert [bool((label_BHW.numpy() == 255).all()) for _, label_BHW, _ in batches] == [False, True, False]
    assert left_out == ["slide b.tif cannot be read in window 0"]
