"""Steps that use no labels take slides of any name, and folders of slides as archives deliver them."""

from pathlib import Path

import pytest

from tests.support.broken import write_noise
from tests.support.steps import run_steps


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("f1/tumor_001.tif", "f2/b.tif"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        write_noise(tmp_path / "in" / name)
    (tmp_path / "in" / "f2" / "b_mask.tif").touch()
    return tmp_path / "in"


def test_tissue_and_images_need_no_labels(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--slide_path", str(root), "--recursive", "--num_processes", "1", "--out", str(tmp_path / "out")]
    assert run_steps(["tissue", "trim_tissue"], words) == 0
    assert (tmp_path / "out" / "tissue" / "tumor_001.tif").is_file()
    assert (tmp_path / "out" / "trim_tissue" / "b.tif").is_file()
    # Patches would be called normal.
    assert run_steps(["tissue", "extract_patches"], words) == 2
    assert "masks beside the slides, but no label path" in capsys.readouterr().err


def test_a_table_of_labels_is_enough(root: Path, tmp_path: Path):
    (tmp_path / "labels.csv").write_text("slide_id,label\ntumor_001,1\nb,0\n")
    words = ["--slide_path", str(root), "--recursive", "--num_processes", "1", "--out", str(tmp_path / "out")]
    assert run_steps(["tissue", "extract_tissue"], [*words, "--labels", str(tmp_path / "labels.csv")]) == 0
    assert (tmp_path / "out" / "extract_tissue" / "images" / "tumor_001.tif").is_file()


def test_output_below_the_slides_is_not_taken_for_slides(root: Path, capsys: pytest.CaptureFixture):
    words = ["--slide_path", str(root), "--recursive", "--num_processes", "1", "--out", str(root / "out")]
    assert run_steps(["tissue"], words) == 0
    assert run_steps(["tissue"], words) == 0
    assert "nothing to do, finished before: 2 slides" in capsys.readouterr().out


def test_a_known_layout_is_not_searched(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    words = ["--dataset", "16", "--data_root", str(root), "--recursive", "--out", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        run_steps(["tissue"], words)
    assert "--recursive searches the folders of --slide_path: omit it with --dataset" in capsys.readouterr().err
