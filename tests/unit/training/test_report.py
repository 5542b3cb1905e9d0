"""The page of a run: made from its folder whatever is missing there, never the end of a run, of an old run too."""

import errno
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training import environment, log, report
from training.log import Picture, Progress, RunLog
from training.run_folder import prepare_folder, trim_metrics

OPTIONS = {
    "model": "effdetd0", "img_size": 1024, "resolution": 0.25, "num_steps": 40, "slide_path": "/data/<slides>",
    "label_path": "/data/labels", "label_format": "xml", "label_map": {"_0": 1, "_2": 0}, "data_sampler": "surf",
    "augment": "flips", "val_split": 0.15,
}  # fmt: skip


def row(kind: str, images: int, **more: object) -> str:
    values = {"loss": 0.5, "miou": 0.6, "dice": 0.7, "auc": 0.8, "iou_0": 0.55, "iou_1": 0.65, "dice_0": 0.71}
    return json.dumps({"kind": kind, "images": images, "seconds": images * 6.0} | values | {"dice_1": 0.7} | more)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run of 40 images with three validations, the second of them the best; the last line is cut short."""
    prepare_folder(tmp_path / "run", resumed=False, options=OPTIONS)
    folder = tmp_path / "run"
    lines = [
        row("train", 10, images_per_s=2.0, input_wait=0.25, learning_rate=1e-3),
        row("train", 20, images_per_s=None, input_wait=None, learning_rate=1e-4),
        row("val", 20, miou=0.3, loss=0.9),
        row("train", 30, images_per_s=4.0, input_wait=0.75, learning_rate=1e-5),
        row("val", 30, miou=0.91234),
        row("val", 40, miou=0.5, auc=None),
        '{"kind": "val", "ima',
    ]
    (folder / "metrics.jsonl").write_text("\n".join(lines))
    (folder / "samples").mkdir()
    header = "index,slide,x_l0,y_l0,um_px,cls,origin,attempt,rejected,loss"
    samples = ["0,a & b,1,1,0.25,0,stream,0,,0.5", "1,a & b,1,1,0.25,1,stream,0,,0.5", "2,c,1,1,0.25,1,pool,0,,0.5"]
    (folder / "samples" / "rank-0.csv").write_text("\n".join([header, *samples[:2]]))
    (folder / "samples" / "rank-1.csv").write_text("\n".join([header, samples[2], "3,c,1,1,0.25,1,pool,0,,"]))
    for name in ("pictures/val-000000020", "pictures/val-000000030", "pictures/val-000000040", "sampling/a & b"):
        (folder / name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.full((30, 60, 3), 120, np.uint8)).save(folder / f"{name}.png")
    environment.add_start(folder, environment.describe(4, "4 GPUs", 0))
    return folder


def text_of(html: str) -> str:
    """The words of a page, one blank between two."""
    return " ".join(re.sub(r"<[^>]*>", " ", html.split("</style>")[1]).split())


def test_everything_of_a_run_is_on_its_page(folder: Path) -> None:
    assert report.main([str(folder)]) == 0
    html = (folder / "report.html").read_text(encoding="utf-8")
    shown = text_of(html)
    assert "state not finished: 40 of 40 images in 4.0 min" in shown
    assert "model effdetd0, field of view 1024 px at 0.25 um/px = 256 um" in shown
    assert "slides /data/&lt;slides&gt; labels /data/labels xml" in shown
    assert "classes 0 normal, 1 tumor" in shown
    assert "Best val mIoU 0.912 at image 30" in shown
    assert "Val mIoU 0.500 at image 40, the last" in shown
    assert "Val AUC not defined" in shown
    assert "Speed 4.00 images/s, median" in shown
    assert "Waiting for patches 75.0% of the time, median; rank 0" in shown
    titles = re.findall(r"<figcaption>([^<]*)</figcaption><svg", html)
    assert titles == [title for title, *_ in report.CURVES]
    assert "all slides 1 2 3" in shown
    assert "a &amp; b 1 1 2" in shown
    assert "Origin: stream 2, pool 1" in shown
    assert re.findall(r"<figcaption>((?:last|best|first)[^<]*)", html) == [
        "last: image 40", "best: image 30", "first: image 20",
    ]  # fmt: skip
    assert 'alt="sampled places of a &amp; b"' in html
    assert "devices 4 GPUs" in shown
    assert '"img_size": 1024' in html.replace("&quot;", '"')
    assert not re.search(r"<script|https?:|url\(| on\w+=", html)
    (folder / "final.json").write_text(json.dumps({"class_names": {"0": "stroma", "1": "lesion"}}))
    shown = text_of(report.html(folder))
    assert "state finished:" in shown
    assert "1 lesion 0.650 0.700" in shown
    # Continued beyond its end.
    prepare_folder(folder, resumed=True, options=OPTIONS | {"num_steps": 80, "model": None})
    shown = text_of(report.html(folder))
    assert "state not finished: 40 of 80 images" in shown
    assert "model the default, field of view" in shown


def test_the_curves_run_through_training_and_validation(folder: Path) -> None:
    html = report.html(folder)
    miou = html.split("<figcaption>mIoU</figcaption>")[1].split("</figure>")[0]
    (training,) = re.findall(r'class="curve" points="([^"]*)"', miou)
    (validation,) = re.findall(r'class="curve second" points="([^"]*)"', miou)
    # Images 0 to 40 on 46 to 348 px, mIoU 0 to 1 on 228 to 12 px.
    assert training == "121.5,98.4 197.0,98.4 272.5,98.4"
    assert validation == f"197.0,163.2 272.5,{228 - 0.91234 * 216:.1f} 348.0,120.0"
    # One timed value is a dot, an undefined one no point.
    speed = html.split("<figcaption>images/s</figcaption>")[1].split("</figure>")[0]
    assert re.findall(r'class="curve" points="([^"]*)"', speed) != []
    assert "second" not in speed.split("</svg>")[0]


def test_a_new_run_has_a_page_too(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "run", resumed=False, options={})
    assert "nothing logged yet" in text_of(report.html(tmp_path / "run"))


def test_starts_of_a_resumed_run_are_listed(folder: Path) -> None:
    environment.add_start(folder, environment.describe(8, "8 GPUs", 30))
    shown = text_of(report.html(folder))
    assert "ranks 8" in shown
    assert re.search(r"starts \S+ \S+ \S+ at image 0, \S+ \S+ \S+ at image 30", shown)
    (folder / environment.NAME).write_text('{"starts": 3')
    assert "Environment" not in text_of(report.html(folder))


def test_a_folder_without_a_run_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert report.main([str(tmp_path / "nowhere")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"training.report: error: {tmp_path}/nowhere has no options.json: give the --log_dir of a run"


def test_damaged_options_are_one_line(folder: Path, capsys: pytest.CaptureFixture) -> None:
    (folder / "options.json").write_text("{")
    assert report.main([str(folder)]) != 0
    assert f"{folder / 'options.json'} is damaged: " in capsys.readouterr().err


def test_resuming_drops_later_and_damaged_rows(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write("\n\0\0\0\n{}\n" + row("train", 30) + "\n")
    trim_metrics(folder, 30)
    kept = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["kind"], line["images"]) for line in kept] == [
        *(("train", 10), ("train", 20), ("val", 20), ("train", 30), ("val", 30)),
        ("train", 30),
    ]


def test_a_page_that_cannot_be_written_is_a_warning(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    report.write(folder)
    before = (folder / "report.html").read_bytes()

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    run_log = RunLog(folder, 0)
    run_log.report()
    run_log.started({"images": 0})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"WARNING     {folder}/report.html is not up to date (No space left on device);")
    assert lines[1] == f"WARNING     {folder}/environment.json cannot be written: No space left on device"
    assert (folder / "report.html").read_bytes() == before
    monkeypatch.setattr(report, "html", lambda _: 1 / 0)
    assert "division by zero" in report.attempt(folder)


def test_it_is_written_after_validations_by_one_rank(tmp_path: Path) -> None:
    picture = Picture(*(np.zeros((8, 8, *more), np.uint8) for more in ((3,), (), ())))
    for rank in (0, 1):
        folder = tmp_path / f"rank-{rank}"
        prepare_folder(folder, resumed=False, options=OPTIONS)
        run_log = RunLog(folder, rank)
        run_log.numbers("train", 8, {"loss": 0.5})
        run_log.write()
        assert not (folder / "report.html").exists()
        run_log.numbers("val", 8, {"loss": 0.25, "miou": 0.5})
        run_log.pictures(8, [picture])
        run_log.write()
        assert (folder / "report.html").exists() == (rank == 0)
        run_log.close()
    assert "last and best and first: image 8" in text_of((tmp_path / "rank-0" / "report.html").read_text())


def test_waiting_for_patches_is_a_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each patch takes 3 s to come and 1 s to be trained; the first step is not timed, a validation does not count."""
    now = [0.0]
    monkeypatch.setattr(log.time, "perf_counter", lambda: now[0])

    def feed():
        for images in (4, 8, 12):
            now[0] += 3.0
            yield images

    progress = Progress(100, 0, shown=False)
    assert math.isnan(progress.wait_share)
    for images in progress.timed(feed()):
        now[0] += 1.0
        progress.step(images, 0.5)
        if images == 8:
            now[0] += 50.0
            progress.exclude(50.0)
    assert progress.lap() == pytest.approx(1.0)
    assert progress.wait_share == pytest.approx(0.75)
    progress.lap()
    assert math.isnan(progress.wait_share)
