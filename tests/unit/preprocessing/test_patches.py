"""Patches: the grid, what is taken and what is left out, files and shards that others read."""

import csv
import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest

from cohorts.pairing import Case
from preprocessing import tfrecord
from preprocessing.extract_patches import FATES, Options, make
from preprocessing.overview import write_cells
from preprocessing.patch_grid import Grid
from preprocessing.patch_writers import png
from slides.reader import Slide
from slides.synthetic.demo import position_coded, write_asap, write_levels
from slides.truth.reading import Reading
from tests.support.steps import run_steps

UM_PX = 2.0


def textured(size_xy: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Pink noise (H, W, 3) that no test takes for glass."""
    noise = np.random.default_rng(seed).normal(0, 25, (size_xy[1], size_xy[0], 1))
    return np.clip(np.array((200, 140, 180)) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def slide_path(tmp_path: Path) -> Path:
    """300 x 200 px at 2 um/px in 100 px squares: tissue, pen, glass / black, tissue, tissue."""
    image_HWC = textured((300, 200))
    image_HWC[:100, 100:200] = np.where(np.indices((100, 100))[0] % 4 == 0, 30, 60)[..., None] * np.array((0, 2, 1))
    image_HWC[:100, 200:] = 243
    image_HWC[100:, :100] = np.random.default_rng(1).integers(0, 12, (100, 100, 3))
    image_HWC[150:, 60:100] = 190
    path = tmp_path / "in" / "a slide.v1.tif"
    path.parent.mkdir()
    write_levels(path, [image_HWC], um_px=UM_PX)
    return path


def extract(
    slide_path: Path, out: Path, label_path: Path | None = None, tissue=None, **options
) -> tuple[dict[str, int], list[dict[str, str]]]:
    """Counts and rows of a slide whose tissue is `tissue`, (rows, columns) of 20 px cells; default: everywhere."""
    slide = Slide(slide_path)
    width, height = slide.size_xy_l0
    cells_HW = np.ones((-(-height // 20), -(-width // 20)), np.bool_) if tissue is None else tissue
    write_cells(out / "tissue" / f"{slide.id}.tif", cells_HW, 20 * UM_PX)
    usual = {"side_px": 100, "stride_px": 100, "um_px": UM_PX, "save_neg": True}
    made = make(Case(slide.id, slide_path, label_path), out, Options(Reading(), **(usual | options)))
    with (out / "patches" / slide.id / "patches.csv").open(encoding="utf-8", newline="") as file:
        return made.values, list(csv.DictReader(file))


def tumor(path: Path, *corners: float) -> Path:
    x0, y0, x1, y1 = corners
    write_asap(path, [("_0", np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], float))])
    return path


def test_what_is_taken_and_what_is_left_out(slide_path: Path, tmp_path: Path):
    counts, rows = extract(slide_path, tmp_path)
    assert counts == {
        "places": 6, "tried": 6, "tumor": 0, "normal": 3, "normal_not_saved": 0, "little_tumor": 0,
        "blank": 1, "black": 1, "pen": 1, "unreadable": 0,
    }  # fmt: skip
    assert [(row["name"], row["x_l0"], row["y_l0"]) for row in rows] == [
        ("a slide.v1_x0_y0", "0", "0"), ("a slide.v1_x100_y100", "100", "100"), ("a slide.v1_x200_y100", "200", "100"),
    ]  # fmt: skip
    kept, _ = extract(slide_path, tmp_path, keep_pen=True)
    assert (kept["normal"], kept["pen"]) == (4, 0)


def test_files_are_the_slides_px_at_the_place_in_their_name(slide_path: Path, tmp_path: Path):
    label_path = tumor(tmp_path / "a slide.v1.xml", 110, 120, 130, 125)
    _, rows = extract(slide_path, tmp_path, label_path)
    assert [row["class"] for row in rows] == ["normal", "tumor", "normal"]
    row = rows[1]
    # 20 x 5 px of 100 x 100.
    assert (row["file"], row["tumor_share"]) == ("tumor/a slide.v1_x100_y100.png", "0.01")
    folder = tmp_path / "patches" / "a slide.v1"
    image_HWC = cv2.imread(str(folder / row["file"]))[..., ::-1]
    np.testing.assert_array_equal(image_HWC, Slide(slide_path).read_level(0, (100, 100), (100, 100)))
    mask_HW = cv2.imread(str(folder / "tumor" / "a slide.v1_x100_y100_mask.png"), cv2.IMREAD_UNCHANGED)
    assert mask_HW.shape == (100, 100)
    assert mask_HW.sum() == 100
    assert mask_HW[20:25, 10:30].all()


def test_a_level_within_the_tolerance_is_copied_and_its_spacing_stands_in_the_table(tmp_path: Path):
    (tmp_path / "in").mkdir()
    image_HWC = textured((140, 230))
    write_levels(tmp_path / "in" / "a.tif", [image_HWC], um_px=0.97 * UM_PX)
    write_cells(tmp_path / "tissue" / "a.tif", np.ones((12, 7), np.bool_), 20 * 0.97 * UM_PX)
    options = Options(Reading(), 100, UM_PX, 100, save_neg=True, tolerance=0.05)
    made = make(Case("a", tmp_path / "in" / "a.tif", None), tmp_path, options)
    assert made.notes == (
        f"patches at the slide's own {0.97 * UM_PX:.4g} um/px, not at {UM_PX:g}: within --resolution_tolerance",
    )
    with (tmp_path / "patches/a/patches.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["x_l0"], row["y_l0"]) for row in rows[:2]] == [("0", "0"), ("100", "0")]
    assert float(rows[0]["um_px"]) == pytest.approx(0.97 * UM_PX, rel=1e-5)
    patch = cv2.imread(str(tmp_path / "patches/a" / rows[0]["file"]))[..., ::-1]
    assert np.array_equal(patch, image_HWC[:100, :100])


def test_every_class_is_tumor_and_what_is_ignored_counts_as_px(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_levels(tmp_path / "in" / "a.tif", [textured((140, 100))], um_px=UM_PX)
    corners = {"a": (100, 0), "b": (110, 20), "x": (120, 50)}
    square = np.array([(0, 0), (10, 0), (10, 10), (0, 10)], float)
    write_asap(tmp_path / "a.xml", [(group, square + np.array(corner)) for group, corner in corners.items()])
    reading = Reading((("a", 1), ("b", 254), ("x", 255)))
    write_cells(tmp_path / "tissue" / "a.tif", np.ones((5, 7), np.bool_), 20 * UM_PX)
    make(Case("a", tmp_path / "in" / "a.tif", tmp_path / "a.xml"), tmp_path, Options(reading, 100, UM_PX, 100))
    with (tmp_path / "patches/a/patches.csv").open(encoding="utf-8", newline="") as file:
        (row,) = csv.DictReader(file)
    # 100 px each of classes 1 and 254; 100 px to ignore, and 60 columns beyond the slide, are none.
    assert (row["x_l0"], row["tumor_share"]) == ("100", "0.02")
    mask_HW = cv2.imread(str(tmp_path / "patches/a" / row["mask"]), cv2.IMREAD_UNCHANGED)
    assert [np.count_nonzero(mask_HW == cls) for cls in (1, 254, 255)] == [100, 100, 100 + 60 * 100]


@pytest.mark.parametrize(("right", "expected"), [(130, "tumor"), (128, "little_tumor")])
def test_a_tumor_patch_has_one_per_cent(slide_path: Path, tmp_path: Path, right: float, expected: str):
    label_path = tumor(tmp_path / "l.xml", 110, 120, right, 125)
    counts, _ = extract(slide_path, tmp_path, label_path, save_neg=False)
    assert (counts[expected], counts["tumor"] + counts["little_tumor"]) == (1, 1)
    assert counts["normal_not_saved"] == 5


def test_tumor_is_tried_where_no_tissue_was_found_and_kept_under_a_pen(slide_path: Path, tmp_path: Path):
    label_path = tumor(tmp_path / "l.xml", 120, 20, 180, 80)
    counts, rows = extract(slide_path, tmp_path, label_path, tissue=np.zeros((10, 15), np.bool_))
    assert (counts["tried"], counts["tumor"]) == (1, 1)
    assert [row["name"] for row in rows] == ["a slide.v1_x100_y0"]
    # On glass there is nothing to keep, whatever is drawn there.
    label_path = tumor(tmp_path / "l.xml", 220, 20, 280, 80)
    counts, _ = extract(slide_path, tmp_path, label_path, tissue=np.zeros((10, 15), np.bool_))
    assert (counts["tumor"], counts["blank"]) == (0, 1)


def test_a_slide_without_tissue_or_only_glass_is_said(slide_path: Path, tmp_path: Path):
    slide = Slide(slide_path)
    write_cells(tmp_path / "tissue" / f"{slide.id}.tif", np.zeros((10, 15), np.bool_), 40.0)
    case, options = Case(slide.id, slide_path, None), Options(Reading(), 100, UM_PX, 100)
    assert make(case, tmp_path, options).notes == ("no place of the grid shows tissue or tumor: no patches",)
    glass_HW = np.zeros((10, 15), np.bool_)
    glass_HW[:5, 10:] = True
    write_cells(tmp_path / "tissue" / f"{slide.id}.tif", glass_HW, 40.0)
    note = make(case, tmp_path, Options(Reading(), 100, UM_PX, 100, save_neg=True)).notes[0]
    assert note.startswith("none of 1 place was written: look at patches/a slide.v1.png")
    finer = make(case, tmp_path, Options(Reading(), 100, 0.5, 100)).notes[0]
    assert finer.startswith("--resolution 0.5 is finer than the slide (2 um/px)")


def test_the_grid_covers_the_slide(tmp_path: Path):
    write_levels(tmp_path / "a.tif", [textured((250, 130))], um_px=UM_PX)
    slide = Slide(tmp_path / "a.tif")
    cells_HW = np.ones((7, 13), np.bool_)
    tumor_HW = np.zeros_like(cells_HW)
    found, count = Grid(100, 50, UM_PX, 0.05).places(slide, cells_HW, tumor_HW, 20)
    assert count == 8
    assert [place.corner_xy_l0 for place in found] == [(x, y) for y in (0, 50) for x in (0, 50, 100, 150)]
    assert found[-1].tissue == 1.0
    found, count = Grid(100, 100, UM_PX, 0.0).places(slide, cells_HW, tumor_HW, 20)
    assert [place.corner_xy_l0 for place in found] == [(0, 0), (100, 0), (200, 0), (0, 100), (100, 100), (200, 100)]
    # 2 of its 5 rows and 3 of its 5 columns of cells are on the slide.
    assert found[-1].tissue == pytest.approx(0.24)
    # A patch smaller than a cell has the cell under it.
    few_HW = np.zeros_like(cells_HW)
    few_HW[2, 3] = True
    found, count = Grid(5, 5, UM_PX, 0.5).places(slide, few_HW, tumor_HW, 20)
    assert count == 50 * 26
    assert {place.corner_xy_l0 for place in found} == {(x, y) for x in (60, 65, 70, 75) for y in (40, 45, 50, 55)}


def test_masks_are_255_beyond_the_slide(tmp_path: Path):
    (tmp_path / "in").mkdir()
    write_levels(tmp_path / "in" / "a.tif", [textured((130, 60))], um_px=UM_PX)
    _, rows = extract(tmp_path / "in" / "a.tif", tmp_path)
    assert [row["x_l0"] for row in rows] == ["0", "100"]
    mask_HW = cv2.imread(str(tmp_path / "patches/a/normal/a_x100_y0_mask.png"), cv2.IMREAD_UNCHANGED)
    assert (mask_HW[:60, :30] == 0).all()
    assert (mask_HW[60:] == 255).all()
    assert (mask_HW[:, 30:] == 255).all()


def test_patches_lie_on_the_px_of_a_level_of_their_spacing(tmp_path: Path):
    (tmp_path / "in").mkdir()
    position_coded(tmp_path / "in" / "a.tif", (1000, 801), (1.0, 4.0), um_px=UM_PX / 4)
    slide = Slide(tmp_path / "in" / "a.tif")
    found, _ = Grid(64, 64, UM_PX, 0.0).places(slide, np.ones((11, 13), np.bool_), np.zeros((11, 13), np.bool_), 80)
    place = next(place for place in found if place.corner_xy_l0 == (256, 512))
    np.testing.assert_array_equal(slide.read(place.window), slide.read_level(1, (64, 128), (64, 64)))


def test_strips_of_the_grid_have_every_place_once(tmp_path: Path):
    write_levels(tmp_path / "a.tif", [textured((400, 60))], um_px=UM_PX)
    cells_HW = np.ones((3, 20), np.bool_)
    found, count = Grid(20, 20, UM_PX, 0.0).places(Slide(tmp_path / "a.tif"), cells_HW, ~cells_HW, 20)
    corners = [place.corner_xy_l0 for place in found]
    assert count == 60
    assert sorted(corners) == [(x, y) for x in range(0, 400, 20) for y in range(0, 60, 20)]
    # 16 columns of all rows come before the 17th.
    assert corners.index((320, 0)) == 48


# -------------------------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("shape", [(7, 5), (7, 5, 3), (1, 1), (300, 211, 3)])
def test_png_is_read_back(shape: tuple[int, ...]):
    picture = np.random.default_rng(0).integers(0, 255, shape).astype(np.uint8)
    decoded = cv2.imdecode(np.frombuffer(png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(decoded if picture.ndim == 2 else decoded[..., ::-1], picture)


def test_jpeg_is_near(slide_path: Path, tmp_path: Path):
    _, rows = extract(slide_path, tmp_path, format="jpeg", quality=95)
    file = tmp_path / "patches" / "a slide.v1" / rows[0]["file"]
    assert file.suffix == ".jpg"
    wanted = Slide(slide_path).read_level(0, (0, 0), (100, 100)).astype(int)
    assert np.abs(cv2.imread(str(file))[..., ::-1].astype(int) - wanted).mean() < 3


def test_webdataset_shards(slide_path: Path, tmp_path: Path):
    _, rows = extract(slide_path, tmp_path, format="webdataset", codec="png", shard_patches=2)
    folder = tmp_path / "patches" / "a slide.v1"
    assert [row["file"] for row in rows] == ["a slide.v1-00000.tar"] * 2 + ["a slide.v1-00001.tar"]
    with tarfile.open(folder / "a slide.v1-00000.tar") as shard:
        names = shard.getnames()
        # A reader takes what stands before the first dot for the key.
        assert names[:3] == [f"a slide_v1_x0_y0.{suffix}" for suffix in ("png", "json", "mask.png")]
        assert rows[0]["key"] == "a slide_v1_x0_y0"
        about = json.load(shard.extractfile(names[1]))
        image = shard.extractfile(names[0]).read()
    assert about == {
        "slide": "a slide.v1", "x_l0": 0, "y_l0": 0, "side_px": 100, "um_px": 2.0, "tissue_share": 1.0,
        "tumor_share": 0.0, "class": "normal",
    }  # fmt: skip
    decoded = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    np.testing.assert_array_equal(decoded, Slide(slide_path).read_level(0, (0, 0), (100, 100)))
    first = (folder / "a slide.v1-00000.tar").read_bytes()
    extract(slide_path, tmp_path / "again", format="webdataset", codec="png", shard_patches=2)
    assert (tmp_path / "again/patches/a slide.v1/a slide.v1-00000.tar").read_bytes() == first


def test_tensorflow_reads_the_records(slide_path: Path, tmp_path: Path):
    import tensorflow as tf

    label_path = tumor(tmp_path / "l.xml", 110, 120, 130, 125)
    _, rows = extract(slide_path, tmp_path, label_path, format="tfrecord", codec="png")
    file = tmp_path / "patches" / "a slide.v1" / rows[0]["file"]
    # TensorFlow checks the CRCs.
    records = [tf.train.Example.FromString(data.numpy()) for data in tf.data.TFRecordDataset(str(file))]
    assert len(records) == 3
    features = records[1].features.feature
    assert features["slide"].bytes_list.value[0].decode() == "a slide.v1"
    assert (features["x_l0"].int64_list.value[0], features["class"].bytes_list.value[0]) == (100, b"tumor")
    assert features["tumor_share"].float_list.value[0] == pytest.approx(0.01)
    image_HWC = tf.io.decode_png(features["image"].bytes_list.value[0]).numpy()
    np.testing.assert_array_equal(image_HWC, Slide(slide_path).read_level(0, (100, 100), (100, 100)))
    assert tf.io.decode_png(features["mask"].bytes_list.value[0]).numpy().sum() == 100


def crc32c(data: bytes) -> int:
    """The checksum of a record's data, unmasked."""
    masked = int.from_bytes(tfrecord.record(data)[-4:], "little")
    rotated = (masked - 0xA282EAD8) & 0xFFFFFFFF
    return (rotated >> 17 | rotated << 15) & 0xFFFFFFFF


def test_checksums_and_numbers_of_records():
    # RFC 3720, B.4, and the usual check value.
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(bytes(range(32))) == 0x46DD794E
    data = np.random.default_rng(0).integers(0, 256, 3000).astype(np.uint8).tobytes()
    for length in (1, 127, 256, 3000):
        register = 0xFFFFFFFF
        for byte in data[:length]:
            register ^= byte
            for _ in range(8):
                register = register >> 1 ^ (0x82F63B78 if register & 1 else 0)
        assert crc32c(data[:length]) == register ^ 0xFFFFFFFF
    # A negative number takes ten bytes.
    assert tfrecord.example({"x": -1})[-10:] == b"\xff" * 9 + b"\x01"


# ------------------------------------------------------------------------------------------------------ the step as run


def test_the_picture_and_the_joined_table(slide_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    words = ["--slide_path", str(slide_path.parent), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    patches = ["--patch_size", "100", "--resolution", "2", "--save_neg", "--tissue_um_px", "40", "--keep_pen"]
    assert run_steps(["tissue", "extract_patches"], [*words, *patches]) == 0
    said = capsys.readouterr().out
    assert "extract_patches 0 tumor, 4 normal; skipped: 0 little tumor, " in said
    picture_HWC = cv2.imread(str(tmp_path / "out/patches/a slide.v1.png"))[..., ::-1]
    # The box of the first place, 2 px inside it, at one px of the picture per level-0 px.
    assert tuple(picture_HWC[50, 2].tolist()) == FATES["normal"]
    table = (tmp_path / "out/patches/patches.csv").read_text(encoding="utf-8")
    assert table == (tmp_path / "out/patches/a slide.v1/patches.csv").read_text(encoding="utf-8")
    assert len(list(csv.reader(io.StringIO(table)))) == 5
    # Other options: other files in place of these.
    assert (
        run_steps(["tissue", "extract_patches"], [*words, *patches, "--format", "tfrecord", "--save_png", "False"]) == 0
    )
    assert sorted(path.name for path in (tmp_path / "out/patches").rglob("*") if path.is_file()) == [
        "a slide.v1-00000.tfrecord", "patches.csv", "patches.csv",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--stride", "64", "--overlap", "0.5"], "--overlap is not allowed with --stride"),
        (["--overlap", "1"], "1 given, must be at least 0 and below 1"),
        (["--save_neg", "maybe"], "'maybe' is neither True nor False"),
        (["--patch_size", "8"], "8 given, must be at least 16 and at most 16384"),
        (["--format", "gif"], "invalid choice: 'gif'"),
    ],
)
def test_bad_options(words: list[str], expected: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        run_steps(["extract_patches"], ["--slide_path", "S", "--out", "O", *words])
    assert expected in capsys.readouterr().err
