"""Whole images from folders and tars: the px, masks, maps to level 0, what cannot be read."""

import json
import tarfile

import cv2
import numpy as np
import pytest
import simplejpeg
import tifffile

from classification import image_files
from classification.augment import Strength, view
from classification.images import in_folder, in_tar
from cohorts.staging import Place, Staging
from preprocessing import pack
from slides.geometry import Trim
from slides.packed import PackedFiles
from slides.reader import Slide, SlideError
from slides.synthetic.demo import write_pyramid
from slides.tiff.pyramid import write_jpeg_pyramid, write_mask_pyramid
from slides.trimming import trim_text
from tests.support.broken import SIDE, damage, write_noise
from tests.support.steps import run_steps


def noise(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3), np.uint8)


def png(path, image_HWC):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), image_HWC[..., ::-1])
    return path


def made_by_us(folder, name="a", hw=(310, 523), step=16):
    """As extract_tissue writes: image, mask, map, manifest."""
    image_HWC = cv2.GaussianBlur(noise(hw), (0, 0), 3)
    for one in ("images", "masks"):
        (folder / one).mkdir(parents=True, exist_ok=True)
    path = folder / "images" / f"{name}.tif"
    write_jpeg_pyramid(path, hw[::-1], (1.0, 1.0), (image_HWC[top : top + 256] for top in range(0, hw[0], 256)), 90)
    trim = Trim((4.0, 4.0), ((10, 10 + hw[1] - 100), (2000, 2100)), ((20, 20 + hw[0]),))
    path.with_suffix(".json").write_text(trim_text(Slide(path), trim))
    rows, columns = (-(-size // step) for size in hw)
    mask = np.zeros((256, 256), np.uint8)
    mask[3:6, 7:12] = 1
    write_mask_pyramid(
        folder / "masks" / f"{name}.tif", (columns, rows), (16.0, 16.0), lambda _r, _c: mask[:rows, :columns]
    )
    (folder / "manifest.csv").write_text(f"slide_id,label,mask_step\n{name},1,{step}\n")
    return Slide(path).thumbnail(0), trim


def check(image, expected_HWC, trim):
    assert image.shape == (1, 310, 523, 3)
    np.testing.assert_array_equal(image.read((0, 310), (0, 523))[0], expected_HWC)
    np.testing.assert_array_equal(image.read((250, 300), (500, 520))[0], expected_HWC[250:300, 500:520])
    beyond = image.read((300, 320), (-4, 5))[0]
    np.testing.assert_array_equal(beyond[:10, 4:], expected_HWC[300:, :5])
    assert beyond[10:].min() == beyond[:, :4].min() == 255
    assert image.read((400, 403), (0, 2)).tolist() == np.full((1, 3, 2, 3), 255).tolist()
    assert image.mask_RS.shape == (20, 33)
    assert image.mask_RS.dtype == np.float32
    assert image.mask_RS.sum() == image.mask_RS[3:6, 7:12].sum() == 15
    assert image.mask_step == 16
    assert image.trim == trim
    assert image.l0_from_image([[1.0, 2.0], [424.0, 0.0]]).tolist() == [[44.0, 88.0], [8004.0, 80.0]]
    # Of the map: the slide of this test is the image itself, taken as level 0 of 1 um/px.
    assert image.um_px == pytest.approx(4.0)
    assert image.um_px_xy_l0 == pytest.approx((1.0, 1.0))
    assert image.size_xy_l0 == (523, 310)


def test_a_folder_of_ours(tmp_path):
    expected_HWC, trim = made_by_us(tmp_path / "extract_tissue")
    for folder in (tmp_path, tmp_path / "extract_tissue", tmp_path / "extract_tissue" / "images"):
        images = in_folder(folder)
        assert images.ids == ["a"]
        check(images.open("a"), expected_HWC, trim)


@pytest.mark.parametrize("indexed", [True, False])
def test_a_tar_of_pack_read_in_place(tmp_path, indexed):
    expected_HWC, trim = made_by_us(tmp_path / "extract_tissue")
    assert pack.main(["--files", str(tmp_path / "extract_tissue"), "--out", str(tmp_path / "out")]) == 0
    path = tmp_path / "out" / "pack" / "extract_tissue.tar"
    if not indexed:
        (path.parent / "extract_tissue.tar.json").unlink()
    for given in (path, path.parent):
        images = in_tar(given)
        assert images.ids == ["a"]
        check(images.open("a"), expected_HWC, trim)


def test_a_tar_of_the_command_tar(tmp_path):
    expected_HWC, trim = made_by_us(tmp_path / "in")
    png(tmp_path / "in" / "b.png", noise((4, 5)))
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(tmp_path / "in", ".")
    images = in_tar(tmp_path / "x.tar")
    assert images.ids == ["a", "b"]
    check(images.open("a"), expected_HWC, trim)
    np.testing.assert_array_equal(images.open("b").read((0, 4), (0, 5))[0], noise((4, 5)))


@pytest.mark.parametrize("most", [0, 2**20])
def test_jpeg_and_png_are_decoded_once(tmp_path, most, monkeypatch):
    monkeypatch.setattr(image_files, "IN_MEMORY_BYTES", most)
    expected_HWC = noise((37, 53))
    png(tmp_path / "in" / "a.png", expected_HWC)
    (tmp_path / "in" / "b.JPG").write_bytes(simplejpeg.encode_jpeg(expected_HWC, 90, colorsubsampling="444"))
    gray = expected_HWC[..., 0]
    cv2.imwrite(str(tmp_path / "in" / "c.png"), gray)
    cv2.imwrite(str(tmp_path / "in" / "d.png"), np.dstack([expected_HWC[..., ::-1], np.zeros_like(gray)]))
    (tmp_path / "scratch").mkdir()
    images = in_folder(tmp_path / "in", tmp_path / "scratch")
    assert images.ids == ["a", "b", "c", "d"]
    a = images.open("a")
    np.testing.assert_array_equal(a.read((30, 37), (1, 53))[0], expected_HWC[30:37, 1:53])
    (tmp_path / "in" / "a.png").unlink()
    np.testing.assert_array_equal(a.read((0, 37), (0, 53))[0], expected_HWC)
    assert not list((tmp_path / "scratch").iterdir())
    decoded = simplejpeg.decode_jpeg((tmp_path / "in" / "b.JPG").read_bytes())
    np.testing.assert_array_equal(images.open("b").read((0, 37), (0, 53))[0], decoded)
    np.testing.assert_array_equal(images.open("c").read((0, 37), (0, 53))[0], gray[..., None].repeat(3, 2))
    assert images.open("d").read((0, 37), (0, 53)).min() == 255
    assert a.mask_RS is None
    assert a.um_px is None


def test_masks_of_truth_are_not_where_to_look(tmp_path):
    """The folders of CAMELYON."""
    png(tmp_path / "images" / "a.png", noise((40, 50)))
    png(tmp_path / "images" / "b_mask.png", noise((40, 50)))
    png(tmp_path / "masks" / "a_Mask.png", noise((40, 50)))
    assert in_folder(tmp_path).ids == ["a"]
    assert in_folder(tmp_path / "images").open("a").mask_RS is None
    png(tmp_path / "masks" / "a.png", noise((5, 7)))
    assert in_folder(tmp_path / "images").open("a").mask_step == 8


def test_a_mask_that_is_no_sampling_mask(tmp_path, monkeypatch):
    png(tmp_path / "a.png", noise((40, 50)))
    path = png(tmp_path / "masks" / "a.png", np.zeros((5, 7, 3), np.uint8))
    assert said(lambda: in_folder(tmp_path).open("a")) == (
        f"mask {path} is 0 everywhere: there is nothing to look at; correct or remove it"
    )
    monkeypatch.setattr(image_files, "MOST_CELLS", 30)
    assert said(lambda: in_folder(tmp_path).open("a")) == (
        f"mask {path} cannot be read: 7 x 5 cells; a sampling mask has a cell per 16 px or so"
    )


def test_a_tiff_without_spacing(tmp_path):
    write_pyramid(tmp_path / "a.tif", noise((300, 200)), 0.5, lossless=True)
    assert in_folder(tmp_path).open("a").um_px == pytest.approx(0.5)
    cv2.imwrite(str(tmp_path / "b.tif"), noise((30, 20))[..., ::-1])
    image = in_folder(tmp_path).open("b")
    assert image.um_px is None
    assert image.size_xy_l0 == (20, 30)
    np.testing.assert_array_equal(image.read((0, 30), (0, 20))[0], noise((30, 20)))


def test_a_window_of_a_tiled_file_decodes_its_tiles_only(tmp_path, monkeypatch):
    made_by_us(tmp_path, hw=(1100, 1300))
    image = in_folder(tmp_path).open("a")
    read = []
    monkeypatch.setattr(Slide, "read_level", lambda _, *given: read.append(given) or np.zeros((*given[2], 3), np.uint8))
    image.read((10, 20), (1000, 1040))
    assert read == [(0, (1000, 10), (10, 40))]


# -------------------------------------------------------------------------------------------------------------- faults


def said(call):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_folders_without_images(tmp_path):
    assert said(lambda: in_folder(tmp_path / "no")) == (
        f"--data_dir {tmp_path}/no is not a folder; give the folder that extract_tissue wrote, or images"
    )
    assert said(lambda: in_folder(tmp_path)).startswith(f"--data_dir {tmp_path} has no image (.tif, .tiff, .jpg")
    png(tmp_path / "a.png", noise((3, 4)))
    png(tmp_path / "a.jpg", noise((3, 4)))
    assert said(lambda: in_folder(tmp_path)) == (
        f"--data_dir {tmp_path} has two files of one name: {tmp_path}/a.jpg, {tmp_path}/a.png; keep one"
    )


def test_a_tar_cut_short(tmp_path):
    made_by_us(tmp_path / "in")
    pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)])
    path = tmp_path / "pack" / "in.tar"
    path.write_bytes(path.read_bytes()[:-30000])
    assert said(lambda: in_tar(path)) == (f"archive {path} ends inside 'images/a.tif': it is incomplete: pack it again")
    assert (
        said(lambda: in_tar(tmp_path))
        == f"--data_tar {tmp_path} has no .tar file; give a tar, or the folder of its shards"
    )
    assert "cannot be read: No such file or directory; give an uncompressed tar" in said(
        lambda: in_tar(tmp_path / "no.tar")
    )


@pytest.mark.parametrize("name", ["a.tif", "a.png", "a.jpg"])
def test_an_image_cut_short(tmp_path, name):
    image_HWC = noise((600, 700))
    if name == "a.tif":
        write_pyramid(tmp_path / name, image_HWC, 1.0)
    else:
        png(tmp_path / name, image_HWC)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: len(data) // 2])

    def read():
        in_folder(tmp_path).open("a").read((590, 600), (0, 10))

    with pytest.raises(SlideError, match=rf"(slide|image) {tmp_path}/{name} cannot be (opened|decoded): "):
        read()
    assert "\n" not in said(read)


@pytest.mark.parametrize("packed", [False, True])
def test_an_image_that_breaks_in_the_middle_of_a_run(tmp_path, packed, capfd):
    """Opened whole, a tile damaged since: the tile is an error that names the file, the others are read."""
    path = tmp_path / "in" / "a.tif"
    write_noise(path)
    place = f"slide {path}"
    if packed:
        assert pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
        place = f"image {tmp_path}/pack/in.tar: a.tif"
    image = (in_tar(tmp_path / "pack" / "in.tar") if packed else in_folder(tmp_path / "in")).open("a")
    damage(path, 63)
    if packed:
        archive = tmp_path / "pack" / "in.tar"
        offset = PackedFiles(archive).members["a.tif"].offset
        with archive.open("r+b") as file:
            file.seek(offset)
            file.write(path.read_bytes())
    seen = view(image, None, Strength(rotation=False, elastic_px=300.0), 0, 1)
    with pytest.raises(SlideError, match=f"{place} cannot be read in "):
        seen.read((0, SIDE), (0, SIDE))
    with pytest.raises(SlideError, match=f"{place} cannot be read in "):
        image.read((SIDE - 9, SIDE), (SIDE - 9, SIDE))
    assert 100 < image.read((0, 9), (0, 9)).mean() < 220
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("compression", ["lzw", "zlib", None])
@pytest.mark.parametrize("tile", [(64, 48), None])
def test_other_tiffs_in_a_tar(tmp_path, compression, tile):
    expected_HWC, gray_HW = noise((150, 170)), noise((40, 50))[..., 0]
    (tmp_path / "in").mkdir()
    tifffile.imwrite(tmp_path / "in" / "a.tif", expected_HWC, photometric="rgb", tile=tile, compression=compression)
    tifffile.imwrite(tmp_path / "in" / "b.tif", gray_HW, tile=tile, compression=compression)
    assert pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
    images = in_tar(tmp_path / "pack" / "in.tar")
    a, b = images.open("a"), images.open("b")
    np.testing.assert_array_equal(a.read((0, 150), (0, 170))[0], expected_HWC)
    np.testing.assert_array_equal(a.read((60, 150), (5, 170))[0], expected_HWC[60:, 5:])
    np.testing.assert_array_equal(b.read((0, 40), (0, 50))[0], gray_HW[..., None].repeat(3, 2))


def test_a_format_that_is_not_read_in_a_tar(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.ndpi").write_bytes(b"MM")
    assert pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
    path = tmp_path / "pack" / "in.tar"
    assert said(lambda: in_tar(path).open("a")) == (
        f"image {path}: a.ndpi cannot be opened: in a tar .tif, .tiff, .svs, .jpg, .jpeg, .png are read; unpack it"
    )


def test_a_tar_cut_in_the_middle_of_a_run(tmp_path, capfd):
    write_noise(tmp_path / "in" / "a.tif")
    assert pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
    path = tmp_path / "pack" / "in.tar"
    image = in_tar(path).open("a")
    path.open("r+b").truncate(path.stat().st_size // 3)
    with pytest.raises(SlideError, match=f"image {path}: a.tif cannot be read in rows "):
        image.read((SIDE - 9, SIDE), (SIDE - 9, SIDE))
    assert capfd.readouterr().err == ""


def test_what_does_not_belong_together(tmp_path):
    made_by_us(tmp_path)
    path = tmp_path / "images" / "a.json"
    stored = json.loads(path.read_text())
    path.write_text(json.dumps(stored | {"runs_y_grid": [[0, 5]]}))
    assert said(lambda: in_folder(tmp_path).open("a")) == (
        f"{path} is of an image of (523, 5) px (x, y), but {tmp_path}/images/a.tif has (523, 310): write both again"
    )
    path.unlink()
    (tmp_path / "manifest.csv").write_text("slide_id,mask_step\na,8\n")
    assert said(lambda: in_folder(tmp_path).open("a")) == (
        f"mask {tmp_path}/masks/a.tif of {tmp_path}/images/a.tif: (20, 33) cells with 8 px per cell do not fit "
        "(310, 523) px (rows, columns); write the mask again"
    )
    (tmp_path / "manifest.csv").unlink()
    assert in_folder(tmp_path).open("a").mask_step == 16


def test_images_of_the_real_step(tmp_path):
    """From a slide through tissue, extract_tissue and pack: the tar shows what the folder shows."""
    image_HWC = np.full((700, 900, 3), 243, np.uint8)
    image_HWC[100:400, 200:600] = (215, 150, 190)
    (tmp_path / "in").mkdir()
    write_pyramid(tmp_path / "in" / "s.tif", image_HWC, 4.0, lossless=True)
    (tmp_path / "labels.csv").write_text("slide_id,label\ns,1\n")
    words = ["--slide_path", str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--num_processes", "1"]
    words += ["--labels", str(tmp_path / "labels.csv"), "--extract_um_px", "8", "--mask_step", "10"]
    assert run_steps(["tissue", "trim_tissue"], [*words[:6], "--trim_um_px", "8"]) == 0
    trimmed = in_folder(tmp_path / "out").open("s")
    assert run_steps(["tissue", "extract_tissue"], words) == 0
    assert pack.main(["--files", str(tmp_path / "out" / "extract_tissue"), "--out", str(tmp_path / "out")]) == 0
    folder = in_folder(tmp_path / "out").open("s")
    packed = in_tar(tmp_path / "out" / "pack" / "extract_tissue.tar").open("s")
    assert 150 <= folder.hw[0] <= 170
    assert 200 <= folder.hw[1] <= 220
    everything = (0, folder.hw[0]), (0, folder.hw[1])
    np.testing.assert_array_equal(folder.read(*everything), packed.read(*everything))
    np.testing.assert_array_equal(folder.mask_RS, packed.mask_RS)
    assert folder.mask_RS.mean() > 0.8
    assert folder.trim == packed.trim == trimmed.trim
    assert trimmed.mask_RS is None
    x, y = folder.l0_from_image([0.0, 0.0])
    assert (folder.size_xy_l0, folder.um_px_xy_l0, folder.um_px) == ((900, 700), (4.0, 4.0), 8.0)
    assert 180 <= x <= 200
    assert 80 <= y <= 100


def test_copies_on_the_node(tmp_path):
    expected_HWC, trim = made_by_us(tmp_path / "in")
    assert pack.main(["--files", str(tmp_path / "in"), "--out", str(tmp_path)]) == 0
    packed = tmp_path / "pack" / "in.tar"
    for number, images in enumerate((in_folder(tmp_path / "in"), in_tar(packed))):
        staging = Staging(tmp_path / f"node{number}", 10**9, Place(0, 1), lambda value: [value])
        moved, line = images.staged(staging)
        assert line.startswith(("2 of 2 files", "1 of 1 file")[number])
        # Only the map, which is small, is read where it was.
        for path in (tmp_path / "in" / "images" / "a.tif", tmp_path / "in" / "masks" / "a.tif", packed)[2 * number :][
            :2
        ]:
            path.rename(path.with_suffix(".gone"))
        image = moved.open("a")
        assert image.where.startswith(str(tmp_path / f"node{number}"))
        check(image, expected_HWC, trim)
        staging.close()


def test_faults_before_a_run(tmp_path):
    made_by_us(tmp_path)
    (tmp_path / "images" / "b.tif").write_bytes(b"II*\0")
    images = in_folder(tmp_path)
    (fault,) = images.faults(["a", "b"])
    assert fault.startswith(f"slide {tmp_path}/images/b.tif cannot be opened: ")
