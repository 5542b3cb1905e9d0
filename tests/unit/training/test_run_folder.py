"""The folder of a run: what an earlier run wrote is set aside, what others have there stays."""

import json
from pathlib import Path

import pytest

from training.run_folder import prepare_folder

OPTIONS = {"num_steps": 4, "img_size": 128}
OF_THE_RUN = [
    "checkpoints/images-000000004.npz",
    "checkpoints/abandoned-images-000000008.npz",
    "checkpoints/best.npz",
    "checkpoints/final.npz",
    "samples/rank-1.csv",
    "samples/unreadable-rank-0.csv",
    "samples/slides.json",
    "pictures/val-000000004.png",
    "sampling/a[1].png",
    "replay/a[1].xml",
    "replay/a[1].geojson",
    "replay/index-000000002.png",
    "metrics.jsonl",
    "options.json",
    "events.out.tfevents.1.host",
    "final.keras",
    "final.json",
    "final_savedmodel/saved_model.pb",
    "report.html",
    "samples/rank-0.csv",
]
OF_THE_USER = [
    "samples/train/tumor_001.tif",
    "samples/rank.csv",
    "pictures/me.png",
    "sampling/b.png",
    "replay/b.xml",
    "events.csv",
    "final.docx",
    "final_report.pdf",
    "checkpoints/mine.npz",
    "notes.txt",
]


def write(folder: Path, names: list[str]) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name, encoding="utf-8")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_only_what_a_run_wrote_is_moved(tmp_path: Path) -> None:
    write(tmp_path, OF_THE_RUN)
    (tmp_path / "options.json").write_text(json.dumps(OPTIONS), encoding="utf-8")
    (tmp_path / "samples" / "rank-0.csv").write_text("index,slide,loss\n0,a[1],1.5\n", encoding="utf-8")
    # Nothing of the user in it: the folder itself goes, too.
    whole = tmp_path / "whole"
    write(whole, OF_THE_RUN)
    (whole / "options.json").write_text(json.dumps(OPTIONS), encoding="utf-8")
    assert len(prepare_folder(whole, resumed=False, options=OPTIONS)) == 1
    assert not (whole / "checkpoints").exists()
    write(tmp_path, OF_THE_USER)
    (note,) = prepare_folder(tmp_path, resumed=False, options=OPTIONS)
    assert note.startswith(f"note        {tmp_path} held an earlier run, moved to {tmp_path}/previous-1;")
    assert files(tmp_path / "previous-1") == set(OF_THE_RUN)
    assert {name for name in files(tmp_path) if not name.startswith(("previous-1", "whole"))} == {
        *OF_THE_USER,
        "options.json",
    }


def test_a_folder_without_a_run_is_left_as_it_is(tmp_path: Path) -> None:
    write(tmp_path, OF_THE_USER)
    assert prepare_folder(tmp_path, resumed=False, options=OPTIONS) == []
    assert files(tmp_path) == {*OF_THE_USER, "options.json"}


@pytest.mark.parametrize("name", ["options.json", "metrics.jsonl", "final.keras"])
def test_files_of_others_are_not_overwritten(name: str, tmp_path: Path) -> None:
    write(tmp_path, [name])
    with pytest.raises(ValueError, match=rf"--log_dir \S+ has {name}, which no run of this program wrote: move them"):
        prepare_folder(tmp_path, resumed=False, options=OPTIONS)
    assert (tmp_path / name).read_text(encoding="utf-8") == name


def test_checkpoints_without_options_are_set_aside(tmp_path: Path) -> None:
    write(tmp_path, ["checkpoints/images-000000004.npz"])
    assert len(prepare_folder(tmp_path, resumed=False, options=OPTIONS)) == 1
    assert files(tmp_path) == {"previous-1/checkpoints/images-000000004.npz", "options.json"}
