"""Archives of features: what they hold, when they are refused, and how an interrupted extraction is resumed."""

import json
import os
import shutil
import tarfile
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from classification.extraction import Extraction, extract
from classification.features import Features, FeaturesError, Settings
from classification.losses import Loss
from classification.step import StreamedStep
from parallel.comm import AgreedError, SoloComm
from slides.packed import PackedFiles
from streaming import ArrayImage
from tests.support.classifiers import images, small_classifier, small_stream
from training.optimizer import build

ITEMS = [("tumor_1", 0), ("tumor_1", 1), ("normal_2", 0), ("normal_2", 1)]
HW = (150, 131)


@cache
def frozen_stream(features=False):
    classifier = small_classifier()
    classifier.train(early=False, norm=True)
    return small_stream(classifier, features=features, tile=112)


def settings(**changes):
    weights = frozen_stream().classifier.hash()
    plain = Settings("small", "layer3", weights, 1.0, HW, "px / 127.5 - 1", "float32", "float32", 7, {"flips": True})
    return replace(plain, **changes)


class Views:
    """Different px for every item; counts reads by item, and fails or is killed for some of them."""

    def __init__(self, bad=(), killed=()):
        self.asked, self.bad, self.killed = [], bad, killed

    def __call__(self, slide_id, copy):
        self.asked.append((slide_id, copy))
        if (slide_id, copy) in self.bad:
            raise ValueError(f"{slide_id}.tif: truncated")
        if (slide_id, copy) in self.killed:
            raise KeyboardInterrupt
        return ArrayImage(images(1, seed=10 * len(slide_id) + copy, hw=HW)[0])


def extraction(folder, views, items=ITEMS, **changes):
    extra = {"labels.csv": b"slide_id,label\ntumor_1,1\n"}
    return Extraction(folder / "features.tar", settings(**changes), items, views, extra)


def run(folder, views=None, **options):
    stop = options.pop("stop", lambda: False)
    lines = options.pop("lines", [])
    return extract(extraction(folder, views or Views(), **options), frozen_stream(), SoloComm(), stop, lines.append)


def test_an_archive_gives_the_maps_that_were_made(tmp_path):
    views, lines = Views(), []
    assert run(tmp_path, views, lines=lines) is True
    assert views.asked == ITEMS
    assert sorted(path.name for path in tmp_path.iterdir()) == ["features.tar", "features.tar.json"]
    with tarfile.open(tmp_path / "features.tar") as tar:
        assert tar.getnames() == [
            "features.json", "labels.csv", "tumor_1/000.npy", "tumor_1/001.npy", "normal_2/000.npy", "normal_2/001.npy",
        ]  # fmt: skip
    found = Features(tmp_path / "features.tar")
    assert found.settings == settings()
    assert found.copies == {"tumor_1": 2, "normal_2": 2}
    assert found.file("labels.csv") == b"slide_id,label\ntumor_1,1\n"
    for epoch, copy in [(0, 0), (1, 1), (2, 0), (5, 1)]:
        source = found.map("normal_2", epoch)
        expected = frozen_stream().map(Views()("normal_2", copy))
        assert source.shape == (1, 10, 9, 12)
        assert isinstance(source.image_BHWC.base, np.memmap)
        assert (source.read((0, 10), (0, 9)) == expected).all()
    assert "4 maps in" in lines[-1]
    # Also without its index, like any tar.
    (tmp_path / "features.tar.json").unlink()
    assert Features(tmp_path / "features.tar").copies == found.copies


def test_training_on_an_archive_starts_from_the_logits_of_the_image(tmp_path):
    """To the bit in float32; float16 rounds."""
    run(tmp_path)
    (tmp_path / "half").mkdir()
    run(tmp_path / "half", dtype="float16")
    image = Views()("tumor_1", 1)
    expected = frozen_stream().logits(image)
    exact = frozen_stream(features=True).logits(Features(tmp_path / "features.tar").map("tumor_1", 1))
    assert (exact == expected).all()
    rounded_map = Features(tmp_path / "half" / "features.tar").map("tumor_1", 1)
    assert rounded_map.image_BHWC.dtype == np.float16
    rounded = frozen_stream(features=True).logits(rounded_map)
    assert 0 < np.abs(rounded - expected).max() < 1e-2 * np.abs(expected).max()
    losses = []
    for stream, source in (
        (frozen_stream(), image),
        (frozen_stream(features=True), ArrayImage(frozen_stream().map(image))),
    ):
        step = StreamedStep(stream, build("sgd", stream.variables, 0.9, None), SoloComm(), Loss("classes"))
        losses.append(step.gradients([source], np.eye(3, dtype=np.float32)[[1]])[0])
    assert losses[0] == losses[1]


def test_a_killed_extraction_repeats_nothing_that_is_finished(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Views(killed=[ITEMS[2]]))
    assert not (tmp_path / "features.tar").exists()
    left = tmp_path / "features.tar.maps" / "tumor_1" / ".001.npy.5.part"
    left.write_bytes(b"cut sh")
    views, lines = Views(), []
    assert run(tmp_path, views, lines=lines) is True
    assert views.asked == ITEMS[2:]
    assert lines[0] == "features    2 of 4 maps are there already"
    assert Features(tmp_path / "features.tar").copies == {"tumor_1": 2, "normal_2": 2}
    assert not (tmp_path / "features.tar.maps").exists()
    again = Views()
    assert run(tmp_path, again) is True
    assert again.asked == []


@pytest.mark.parametrize("cut", [0, 700, 5020])
def test_an_extraction_killed_while_it_packs_is_resumed(tmp_path, monkeypatch, cut):
    """The third map is in the archive in part, or even its header; two maps are nowhere else."""
    part, folder, saved = tmp_path / ".features.tar.part", tmp_path / "features.tar.maps", tmp_path / "saved"
    flush = os.fsync

    def killed(number):
        flush(number)
        if part.exists() and part.stat().st_size > 15000:
            shutil.copy(part, saved)  # as it is on the disk
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", killed)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    saved.replace(part)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.npy")) == [
        "normal_2/000.npy", "normal_2/001.npy",
    ]  # fmt: skip
    with part.open("r+b") as file:
        file.truncate(part.stat().st_size - cut)
    views = Views()
    assert run(tmp_path, views) is True
    assert views.asked == []
    found = Features(tmp_path / "features.tar")
    for slide_id, copy in ITEMS:
        expected = frozen_stream().map(Views()(slide_id, copy))
        assert (found.map(slide_id, copy).image_BHWC == expected).all()
    assert len(PackedFiles(tmp_path / "features.tar")) == 6


def test_a_request_to_stop_is_followed_between_maps(tmp_path):
    asked = iter([False, True])
    views = Views()
    assert run(tmp_path, views, stop=lambda: next(asked)) is False
    assert views.asked == ITEMS[:1]
    assert run(tmp_path) is True


def test_bad_images_are_named_when_all_others_are_done(tmp_path):
    views = Views(bad=[ITEMS[0], ITEMS[1]])
    message = r"^2 of 4 maps could not be made: tumor_1: tumor_1\.tif: truncated; .*\. Repair the images or leave out"
    with pytest.raises(AgreedError, match=message):
        run(tmp_path, views)
    assert views.asked == ITEMS
    repaired = Views()
    run(tmp_path, repaired)
    assert repaired.asked == ITEMS[:2]


def test_numbers_too_large_for_float16_are_refused(tmp_path):
    huge = ArrayImage(np.full((1, *HW, 3), 1e7, np.float32))
    with pytest.raises(
        AgreedError, match=r"tumor_1: its map has numbers up to .*, too large for float16; store float32"
    ):
        run(tmp_path, lambda *_: huge, items=ITEMS[:1], dtype="float16")


def test_other_settings_do_not_continue_an_extraction(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Views(killed=[ITEMS[2]]))
    with pytest.raises(
        AgreedError, match=r"features\.tar\.maps holds maps of an interrupted .*: seed: 7 there, 8 here; rep"
    ):
        run(tmp_path, seed=8)
    run(tmp_path)
    with pytest.raises(
        AgreedError, match=r"features\.tar already exist, dtype: float32 in the archive, float16 here; choose"
    ):
        run(tmp_path, dtype="float16")
    with pytest.raises(
        AgreedError, match="already exist, it has other slides or fewer copies; choose another --save_path"
    ):
        run(tmp_path, items=[*ITEMS, ("tumor_1", 2)])
    assert Features(tmp_path / "features.tar").settings == settings()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"weights": "0" * 64},
            r"weights: SHA-256 [0-9a-f]{12} in the archive, SHA-256 0{12} here\. Please start from",
        ),
        ({"cut": "layer2"}, r"cut: layer3 in the archive, layer2 here\. Please choose the cut"),
        ({"um_px": 0.5}, r"um px: 1.0 in the archive, 0.5 here\. Please train at the spacing"),
        ({"um_px": None}, "um px: 1.0 in the archive, not known here"),
        ({"image_size": (150, 130)}, "image size: 150 x 131 px in the archive, 150 x 130 px here"),
        ({"image_size": None}, "image size: 150 x 131 px in the archive, each its own here"),
        ({"normalization": "macenko"}, "normalization: px / 127.5 - 1 in the archive, macenko here"),
        (
            {"network": "resnet18", "cut": "x"},
            "network: small in the archive, resnet18 here; cut: layer3 in the archive",
        ),
    ],
)
def test_maps_of_something_else_are_refused(tmp_path, changes, message):
    run(tmp_path, items=ITEMS[:1])
    found = Features(tmp_path / "features.tar")
    found.check(settings(um_px=1.0004, seed=3, augmentation={}, dtype="float16"))
    with pytest.raises(FeaturesError, match=f"^features {tmp_path}/features.tar do not fit: {message}"):
        found.check(settings(**changes))


def broken(path, name, data):
    """A tar with one member replaced."""
    with tarfile.open(path) as tar:
        members = {info.name: tar.extractfile(info).read() for info in tar}
    members[name] = data
    other = path.with_name("other.tar")
    for part, content in members.items():
        (path.parent / "m" / part).parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "m" / part).write_bytes(content)
    with tarfile.open(other, "w") as tar:
        for part in members:
            tar.add(path.parent / "m" / part, part)
    return other


def test_damaged_archives_are_named(tmp_path):
    run(tmp_path, items=ITEMS[:1])
    path = tmp_path / "features.tar"
    whole = path.read_bytes()
    short = tmp_path / "short.tar"
    short.write_bytes(whole[:3000])
    with pytest.raises(FeaturesError, match=r"short\.tar ends inside|short\.tar cannot be read"):
        Features(short)
    with pytest.raises(FeaturesError, match=r"nothing\.tar cannot be read"):
        Features(tmp_path / "nothing.tar")
    plain = tmp_path / "plain.tar"
    with tarfile.open(plain, "w") as tar:
        tar.add(short, "a.jpg")
    with pytest.raises(FeaturesError, match=r"plain\.tar is not an archive of features: it holds no features\.json"):
        Features(plain)
    stored = json.loads(PackedFiles(path).read("features.json"))
    with pytest.raises(FeaturesError, match="has version 9; this release reads 1"):
        Features(broken(path, "features.json", json.dumps(stored | {"version": 9}).encode()))
    with pytest.raises(FeaturesError, match=r"features\.json is damaged"):
        Features(broken(path, "features.json", b"[]"))
    objects = broken(path, "tumor_1/000.npy", b"\x93NUMPY\x01\x00")
    with pytest.raises(FeaturesError, match=r"tumor_1/000\.npy"):
        Features(broken(objects, "features.json", json.dumps(stored).encode())).map("tumor_1")
    with pytest.raises(FeaturesError, match=r"hold no map of 'tumor_9'; they have 1 slides: tumor_1"):
        Features(path).map("tumor_9")


def test_items_count_from_0(tmp_path):
    with pytest.raises(ValueError, match=r"copies \[1\] of a: each is wanted once, counted from 0"):
        extraction(tmp_path, Views(), items=[("a", 1)])
