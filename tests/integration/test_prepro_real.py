"""All steps of preprocessing over real slides and published annotations."""

import shutil
from pathlib import Path

import pytest

from preprocessing import pack
from preprocessing.steps import NAMES
from slides.packed import PackedFiles
from slides.reader import Slide
from tests.integration.small_prepro import prepare, table
from tests.support.paths import SHARED
from tests.support.sparse import write_sparse

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason=f"real slides are not at {SHARED}")


@needs_data
@pytest.mark.parametrize("labels", ["annotations", "masks"])
def test_every_step_over_the_mosaics(labels: str, tmp_path: Path):
    base = SHARED / "c16mosaic"
    expected = {row["slide"]: row for row in table(base / "slides.csv")}
    (tmp_path / "labels.csv").write_text(
        "slide_id,label\n" + "".join(f"{name},{name.split('_')[0]}\n" for name in expected), encoding="utf-8"
    )
    words = [
        "--slide_path", str(base / "train/images"), "--label_path", str(base / "train" / labels), "--valid_slide_path",
        str(base / "val/images"), "--valid_label_path", str(base / "val" / labels), "--label_format",
        "xml" if labels == "annotations" else "tif", "--out", str(tmp_path), "--patch_size", "256", "--resolution",
        "0.5", "--save_neg", "--format", "jpeg", "--labels", str(tmp_path / "labels.csv"),
    ]  # fmt: skip
    done = prepare("--steps", *NAMES, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    check_manifest(tmp_path, expected, 2e-5 if labels == "masks" else 5e-3)
    check_patches(tmp_path)
    # The other kind of label shows the same tumor.
    made, suffix = ("masks", "tif") if labels == "annotations" else ("annotations", "xml")
    other = ["--slide_path", str(all_images(tmp_path)), "--label_path", str(tmp_path / made), "--label_format", suffix]
    done = prepare("--steps", "tissue", "manifest", *other, "--out", str(tmp_path / "other"))
    assert done.returncode == 0, done.stdout + done.stderr
    areas, again = (
        {row["slide"]: float(row["tumor_mm2"]) for row in table(out / "manifest.csv")}
        for out in (tmp_path, tmp_path / "other")
    )
    assert again == pytest.approx(areas, rel=1e-3)
    # Whole slides: squeezed, labeled, in one file.
    rows = table(tmp_path / "extract_tissue" / "manifest.csv")
    assert {row["slide_id"]: row["label"] for row in rows} == {name: name.split("_")[0] for name in expected}
    assert len(table(tmp_path / "trim_tissue" / "trim_tissue.csv")) == 8
    assert pack.main(["--files", str(tmp_path / "extract_tissue"), "--out", str(tmp_path)]) == 0
    packed = PackedFiles(tmp_path / "pack" / "extract_tissue.tar")
    for row in rows:
        with packed.as_file(row["image"]) as path:
            assert Slide(path).size_xy_l0 == (int(row["width"]), int(row["height"]))


def all_images(folder: Path) -> Path:
    """A folder with the slides of training and validation."""
    (folder / "all").mkdir()
    for path in (SHARED / "c16mosaic").glob("*/images/*.tif"):
        (folder / "all" / path.name).symlink_to(path)
    return folder / "all"


def check_manifest(out: Path, expected: dict[str, dict[str, str]], rel: float) -> None:
    rows = table(out / "manifest.csv")
    assert len(rows) == 8
    px_mm2 = 0.243**2 / 1e6
    for row in rows:
        wanted = expected[row["slide"]]
        assert row["split"] == wanted["split"]
        tumor_mm2 = int(wanted["tumour_px_level0"]) * px_mm2  # old spelling
        tissue_mm2 = int(wanted["tissue_px_level0"]) * px_mm2
        # Masks are exact; these also have the px on their outlines, of which the outlines hold a half.
        assert float(row["tumor_mm2"]) == pytest.approx(tumor_mm2, rel=rel, abs=1e-6)
        assert float(row["tissue_mm2"]) == pytest.approx(tissue_mm2, rel=0.03)


def check_patches(out: Path) -> None:
    patches = table(out / "patches" / "patches.csv")
    tumor = [row for row in patches if row["class"] == "tumor"]
    assert len(tumor) > 40
    assert len(patches) > 150
    # Tumor in the patches is tumor of the slides, but for the traces left out.
    area_mm2 = sum(float(row["tumor_share"]) for row in tumor) * (256 * 0.5e-3) ** 2
    slides = table(out / "manifest.csv")
    assert area_mm2 == pytest.approx(sum(float(row["tumor_mm2"]) for row in slides), rel=0.01)
    assert all((out / "patches" / row["slide"] / row["file"]).is_file() for row in patches)


@needs_data
def test_areas_of_the_published_annotations(tmp_path: Path):
    expected = table(SHARED / "annotations" / "expected_areas.csv")
    (tmp_path / "xml").mkdir()
    for row in expected:
        name = f"camelyon16_{row['slide'].lower()}"
        shutil.copy(SHARED / "annotations" / f"{name}.xml", tmp_path / "xml")
        write_sparse(tmp_path / "img" / f"{name}.tif", (int(row["maxx"]) + 513, int(row["maxy"]) + 1031))
    words = ["--slide_path", str(tmp_path / "img"), "--label_path", str(tmp_path / "xml"), "--label_format", "xml"]
    patches = ["--patch_size", "256", "--resolution", "8", "--tissue_um_px", "16"]
    done = prepare(*words, "--out", str(tmp_path / "out"), *patches)
    assert done.returncode == 0, done.stdout + done.stderr
    # All is glass.
    assert "under 1% tissue on 7 slides" in done.stdout
    rows = {row["slide"]: row for row in table(tmp_path / "out" / "manifest.csv")}
    assert len(rows) == 7
    for row in expected:
        found = rows[f"camelyon16_{row['slide'].lower()}"]
        area_l0 = float(found["tumor_mm2"]) * 1e6 / 0.243**2
        assert area_l0 == pytest.approx(float(row["positive_minus_negative_px2"]), rel=1e-3)
        groups = dict(part.split(":") for part in found["annotations"].split())
        # Of tumor_054's rings one has two points.
        assert int(groups["_0"]) == int(row["n_positive"]) - (row["slide"] == "Tumor_054")
        assert int(groups.get("_2", 0)) == int(row["n_negative"])
    assert sum(px_of_mask(tmp_path, row) is not None for row in expected) >= 4


def px_of_mask(folder: Path, row: dict[str, str]) -> int | None:
    """Compare the px of a mask with the area of its annotation; None where they are too many to be read in a test."""
    left, top, right, bottom = (int(row[name]) for name in ("minx", "miny", "maxx", "maxy"))
    if (right - left) * (bottom - top) > 2e8:
        return None
    name = f"camelyon16_{row['slide'].lower()}"
    mask = Slide(folder / "out" / "masks" / f"{name}_Mask.tif")
    assert mask.size_xy_l0 == Slide(folder / "img" / f"{name}.tif").size_xy_l0
    px = int((mask.read_level(0, (left, top), (bottom - top + 1, right - left + 1))[..., 0] == 1).sum())
    assert px == pytest.approx(float(row["positive_minus_negative_px2"]), rel=1e-3)
    return px


@needs_data
def test_formats_of_scanners(tmp_path: Path):
    for suffix, mpp in (("svs", ["--mpp", "0.5"]), ("ndpi", []), ("tif", ["--mpp", "0.5"])):
        folder = tmp_path / suffix
        folder.mkdir()
        for path in (SHARED / "slides").glob(f"*.{suffix}"):
            (folder / path.name).symlink_to(path)
        words = ["--slide_path", str(folder), "--slide_format", suffix, "--out", str(folder / "out")]
        done = prepare(*words, *mpp, "--patch_size", "256", "--resolution", "0.5", "--save_neg")
        assert "Traceback" not in done.stderr
        slides = {row["slide"]: row for row in table(folder / "out" / "manifest.csv")}
        assert len(slides) == {"svs": 2, "ndpi": 1, "tif": 2}[suffix], done.stdout
    # Read whole, though OpenSlide refuses it.
    assert (slides["kidney-48-5"]["width"], slides["kidney-48-5"]["height"]) == ("1493", "901")
    done = prepare("--slide_path", str(SHARED / "slides" / "kidney-48-5.tif"), "--out", str(tmp_path / "k"))
    assert done.returncode == 1
    assert "its spacing is unknown" in done.stdout
    assert "--mpp" in done.stdout
