"""Bad input, started as a user starts it: one clear message, exit code 2 on all ranks, nothing half-written."""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import tifffile

from cohorts.pairing import pair
from samplers import build
from samplers.dataset import SetOptions, open_set
from slides.synthetic.demo import write_levels, write_pyramid
from slides.truth.reading import Reading
from tests.support.tiny import (
    SMALL,
    THIN,
    TUMOR_XY,
    UM_PX,
    TinySet,
    environment,
    run_train,
    tissue,
    train,
    train_here,
    write_label,
)
from tests.support.warm import warm


@pytest.fixture
def tiny(tmp_path: Path) -> TinySet:
    return TinySet(tmp_path)


def message(done: subprocess.CompletedProcess[str], log_dir: Path | None) -> str:
    """The one error message, after all that holds for every bad input."""
    errors = re.findall(r"^(?:small_|thin_)?train\.py: error: (.*)$", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode == 2, done.returncode
    if log_dir is not None:
        assert not log_dir.exists(), sorted(log_dir.rglob("*"))
    return errors[0]


# ------------------------------------------------------------------------------------- what the folders hold


def missing_folder(tiny: TinySet) -> tuple[dict, list[str]]:
    gone = tiny.folder / "no such folder"
    return {"slide_path": gone}, [f"slide_path {gone} does not exist; give a folder of .tif"]


def empty_folder(tiny: TinySet) -> tuple[dict, list[str]]:
    empty = tiny.folder / "empty"
    empty.mkdir()
    return {"slide_path": empty}, [f"slide_path {empty} has no .tif", "it is empty", "slide_format"]


def missing_labels(tiny: TinySet) -> tuple[dict, list[str]]:
    gone = tiny.folder / "gone"
    return {"valid_label_path": gone}, [f"label_path {gone} does not exist; give a folder of .xml files"]


def orphan_label(tiny: TinySet) -> tuple[dict, list[str]]:
    write_label(tiny.label("tumor_009"))
    return {}, [f"labels without a slide: {tiny.label('tumor_009')}; a label is called <slide id>.xml"]


def two_labels(tiny: TinySet) -> tuple[dict, list[str]]:
    masks = tiny.folder / "train" / "masks"
    masks.mkdir()
    for name in ("tumor_001_Mask", "tumor_001_mask"):
        write_pyramid(masks / f"{name}.tif", np.ones((263, 311), np.uint8), UM_PX, lossless=True)
    return {"label_path": masks, "label_format": "tif", "valid_label_format": "xml"}, [
        f"more than one label for a slide: {masks / 'tumor_001_Mask.tif'}, {masks / 'tumor_001_mask.tif'}"
    ]


# ------------------------------------------------------------------------------------------------------ slides


def unreadable_slide(tiny: TinySet) -> tuple[dict, list[str]]:
    tiny.slide("tumor_002").write_text("an e-mail that was saved by a wrong name\n", encoding="utf-8")
    return {}, [f"slide {tiny.slide('tumor_002')} cannot be opened: neither a TIFF nor a format of OpenSlide"]


def empty_slide(tiny: TinySet) -> tuple[dict, list[str]]:
    tiny.slide("tumor_101", "val").write_bytes(b"")
    return {}, [f"slide {tiny.slide('tumor_101', 'val')} cannot be opened"]


def truncated_slide(tiny: TinySet) -> tuple[dict, list[str]]:
    whole = tiny.slide("tumor_001").read_bytes()
    # The directory of this writer stands before the pixels, so the file still opens.
    write_levels(tiny.slide("tumor_001"), [tissue((311, 263))], um_px=UM_PX)
    whole = tiny.slide("tumor_001").read_bytes()
    tiny.slide("tumor_001").write_bytes(whole[: len(whole) * 9 // 10])
    return {}, [f"slide {tiny.slide('tumor_001')} cannot be opened: the file is truncated", "copy it again"]


def unknown_spacing(tiny: TinySet) -> tuple[dict, list[str]]:
    write_levels(tiny.slide("tumor_001"), [tissue((311, 263))], um_px=None)
    return {}, [f"slide {tiny.slide('tumor_001')}: its spacing is unknown", "--mpp"]


# ------------------------------------------------------------------------------------------------------ labels


def unknown_group(tiny: TinySet) -> tuple[dict, list[str]]:
    write_label(tiny.label("tumor_002"), "Nekrose")
    return {}, [str(tiny.label("tumor_002")), "unknown group 'Nekrose'", "--label_map nekrose:CLASS", "--ignore_groups"]


def malformed_xml(tiny: TinySet) -> tuple[dict, list[str]]:
    text = tiny.label("tumor_001").read_text(encoding="utf-8")
    tiny.label("tumor_001").write_text(text[: len(text) // 2], encoding="utf-8")
    return {}, [f"{tiny.label('tumor_001')}: no well-formed XML"]


def hostile_xml(tiny: TinySet) -> tuple[dict, list[str]]:
    text = tiny.label("tumor_001").read_text(encoding="utf-8")
    bomb = '<!DOCTYPE a [<!ENTITY b "0"><!ENTITY c "&b;&b;"><!ENTITY d SYSTEM "file:///etc/hostname">]>'
    tiny.label("tumor_001").write_text(text.replace('<?xml version="1.0"?>', bomb), encoding="utf-8")
    return {}, [f"{tiny.label('tumor_001')}: has a DOCTYPE", "Remove it"]


def outside_xml(tiny: TinySet) -> tuple[dict, list[str]]:
    write_label(tiny.label("tumor_001"), shape_xy=TUMOR_XY + 10_000)
    return {}, [f"{tiny.label('tumor_001')}: every annotation lies outside slide {tiny.slide('tumor_001')}"]


def mask_of_another_size(tiny: TinySet) -> tuple[dict, list[str]]:
    masks = tiny.folder / "train" / "masks"
    masks.mkdir()
    for name, width, height in (("tumor_001", 311, 263), ("tumor_002", 301, 287)):  # the second one is turned
        write_pyramid(masks / f"{name}_mask.tif", np.ones((height, width), np.uint8), UM_PX, lossless=True)
    return {"label_path": masks, "label_format": "tif", "valid_label_format": "xml"}, [
        f"mask {masks / 'tumor_002_mask.tif'} has 301 x 287 px, its slide {tiny.slide('tumor_002')} 287 x 301"
    ]


def mask_with_an_unlisted_value(tiny: TinySet) -> tuple[dict, list[str]]:
    masks = tiny.folder / "train" / "masks"
    masks.mkdir()
    mask_HW = np.zeros((263, 311), np.uint8)
    mask_HW[40:90, 30:120] = 3
    write_pyramid(masks / "tumor_001_mask.tif", mask_HW, UM_PX, lossless=True)
    write_pyramid(masks / "tumor_002_mask.tif", np.ones((301, 287), np.uint8), UM_PX, lossless=True)
    given = {"label_path": masks, "label_format": "tif", "valid_label_format": "xml", "mask_values": ["0:0", "1:1"]}
    return given, [f"mask {masks / 'tumor_001_mask.tif'} holds values [3]", "--mask_values"]


def no_tumor_at_all(tiny: TinySet) -> tuple[dict, list[str]]:
    for name in ("tumor_001", "tumor_002"):
        write_label(tiny.label(name), "normal")
    return {}, ["none of the 3 training slides has class 1", "--label_map"]


# -------------------------------------------------------------------------------------------------- field of view


def view_larger_than_every_slide(tiny: TinySet) -> tuple[dict, list[str]]:
    # The longest side is 311 px of 2 um.
    return {"img_size": "384"}, [
        "--img_size 384 at --resolution 2 um/px sees 768 um, more than any of the 3 slides has (622 um)",
        "choose at most 256 px",
    ]


CASES = [
    missing_folder,
    empty_folder,
    missing_labels,
    orphan_label,
    two_labels,
    unreadable_slide,
    empty_slide,
    truncated_slide,
    unknown_spacing,
    unknown_group,
    malformed_xml,
    hostile_xml,
    outside_xml,
    mask_of_another_size,
    mask_with_an_unlisted_value,
    no_tumor_at_all,
    view_larger_than_every_slide,
]


# As a user starts it; the others call train.main, which is what a process does after its start.
IN_A_PROCESS = (missing_folder, truncated_slide)


@pytest.mark.parametrize("spoil", CASES, ids=lambda case: case.__name__)
def test_bad_data(spoil: Callable[[TinySet], tuple[dict, list[str]]], tiny: TinySet) -> None:
    changed, expected = spoil(tiny)
    start = train if spoil in IN_A_PROCESS else train_here
    said = message(start(tiny.arguments(**changed)), tiny.log_dir)
    missing = [text for text in expected if text not in said]
    assert missing == [], said


def test_img_size_no_multiple_of_128(tiny: TinySet) -> None:
    said = message(train_here(tiny.arguments(img_size="300")), tiny.log_dir)
    assert said == "--img_size 300: must be a multiple of 128, e.g. 256 or 384"


# ------------------------------------------------------------------------------------ what fails after the model


def test_unwritable_log_dir(tiny: TinySet) -> None:
    # A file in the folder's place stops even root, whom permissions do not.
    tiny.log_dir.write_text("a file", encoding="utf-8")
    said = message(warm.run(SMALL, tiny.arguments(), environment()), None)
    assert str(tiny.log_dir) in said
    assert tiny.log_dir.read_text(encoding="utf-8") == "a file"


def test_weights_that_do_not_fit(tiny: TinySet) -> None:
    weights = tiny.folder / "other network.h5"
    with h5py.File(weights, "w") as file:
        file.attrs["layer_names"] = [b"dense_77"]
        group = file.create_group("dense_77")
        group.attrs["weight_names"] = [b"dense_77/kernel:0"]
        group.create_dataset("dense_77/kernel:0", data=np.ones((3, 5), np.float32))
    words = tiny.arguments("--model", "effdetd0", weights_path=weights)
    said = message(warm.run(THIN, words, environment()), tiny.log_dir)
    assert str(weights) in said
    assert "dense_77" in said
    assert "--model" in said


def test_weights_that_are_damaged(tiny: TinySet) -> None:
    weights = tiny.folder / "cut short.h5"
    weights.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(500))
    words = tiny.arguments("--model", "effdetd0", weights_path=weights)
    said = message(warm.run(THIN, words, environment()), tiny.log_dir)
    assert f"weights {weights} cannot be read" in said


def test_resume_where_every_checkpoint_is_damaged(tiny: TinySet) -> None:
    folder = tiny.log_dir / "checkpoints"
    folder.mkdir(parents=True)
    damaged = folder / "images-000000004.npz"
    damaged.write_bytes(b"PK\x03\x04" + bytes(99))
    said = message(warm.run(SMALL, tiny.arguments("--resume"), environment()), None)
    assert f"--resume auto: no readable checkpoint. {damaged}: damaged checkpoint" in said
    # The run that was there is left as it was.
    assert [path for path in tiny.log_dir.rglob("*") if path.is_file()] == [damaged]


# ----------------------------------------------------------------------------------------------- several ranks


def ranks_message(done: subprocess.CompletedProcess[str], log_dir: Path | None) -> str:
    """As `message`; the launcher chooses the code and says that ranks ended, but only train.py names the cause."""
    errors = re.findall(r"^(?:small_|thin_)?train\.py: ((?:rank \d of 2: )?error: .*)$", done.stderr, re.MULTILINE)
    assert len(errors) == 1, done.stdout[-1000:] + done.stderr[-3000:]
    assert "Traceback" not in done.stdout + done.stderr
    assert done.returncode != 0
    if log_dir is not None:
        assert not log_dir.exists(), sorted(log_dir.rglob("*"))
    return errors[0]


def test_slide_that_only_one_rank_reads_is_damaged(tiny: TinySet) -> None:
    # Level 1 has 3 x 3 tiles; the first is whole, so the slide opens on both ranks. Only rank 1 searches the level,
    # since slides are dealt out: normal_001 to rank 0, tumor_001 to rank 1.
    slide = tiny.slide("tumor_001")
    fine = tissue((311, 263))
    write_levels(slide, [fine, fine[::2, ::2][:131, :155]], tile=64, um_px=UM_PX)
    damage_tile(slide, level=1, tile=5)
    said = ranks_message(run_train(*tiny.arguments(), "--max_unreadable", "0", NP="2", SCRIPT=SMALL), tiny.log_dir)
    assert said.startswith("error: tumor_001: in the tissue search, places that cannot be decoded are white")
    assert f"slide {slide} cannot be read in Window(" in said
    assert said.endswith("--max_unreadable is 0; copy the slide again, or allow more")


def test_only_rank_0_fails_with_more_ranks_than_slides(tmp_path: Path) -> None:
    # One slide for two ranks is legal: the only error is that of the log folder, at which rank 0 alone looks.
    tiny = TinySet(tmp_path, train={"tumor_001": (311, 263)})
    (tiny.log_dir / "options.json").mkdir(parents=True)
    done = run_train(*tiny.arguments(), NP="2", SCRIPT=SMALL)
    said = ranks_message(done, None)
    assert said.startswith("error: rank 0: ")
    assert str(tiny.log_dir) in said
    assert "validation on 6 patches" in done.stdout


def test_slide_that_goes_bad_in_mid_run_ends_every_rank(tmp_path: Path) -> None:
    # Rank 0 trains on index 0 and waits for rank 1, whose first patch (index 1) is of tumor: every draw of it lies on
    # the damaged slide, the only one with tumor.
    tiny = TinySet(tmp_path, train={"normal_001": (311, 263), "tumor_002": (287, 301)})
    slide = tiny.slide("tumor_002")
    fine = tissue((287, 301))
    write_levels(slide, [fine, fine[::2, ::2][:150, :143]], tile=64, um_px=UM_PX)
    seed = next(seed for seed in range(100) if drawn_first(tiny, seed) == [("normal_001", 0), ("tumor_002", 1)])
    for tile in range(25):
        damage_tile(slide, level=0, tile=tile)
    said = ranks_message(run_train(*tiny.arguments("--seed", str(seed), keep=False), NP="2", SCRIPT=SMALL), None)
    assert said.startswith(f"rank 1 of 2: error: slide {slide} cannot be read in Window(")


def damage_tile(slide: Path, level: int, tile: int) -> None:
    """Overwrite the compressed bytes of one tile; the directory stays whole."""
    with tifffile.TiffFile(slide) as tiff:
        page = tiff.pages[level]
        offset, count = page.dataoffsets[tile], page.databytecounts[tile]
    with slide.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xaa" * count)


def drawn_first(tiny: TinySet, seed: int) -> list[tuple[str, int]]:
    """Slide and class of the first two patches of the stream."""
    cases = pair(tiny.slide("x").parent, tiny.label("x").parent, "tif", "xml")
    options = SetOptions(Reading(ignore_groups=()), 7, 2)
    opened = open_set(cases, options, 0, 1, lambda mine: [mine()])
    sampler = build("radboud", opened.indexes, seed, 2, None)
    requests = [sampler.request(index) for index in range(2)]
    return [(cases[request.slide].slide_id, request.cls) for request in requests]
