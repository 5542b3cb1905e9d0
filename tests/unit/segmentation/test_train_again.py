"""train.main several times in one process, as tests and notebooks call it."""

import errno
import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

import models
import train
from system.folder_lock import FolderLock
from tests.integration.small_train import small
from tests.support.tiny import TinySet

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def test_runs_in_one_process_do_not_know_of_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three runs of one seed, one of them in a thread; between them one that fails."""
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    environment, handlers = dict(os.environ), [signal.getsignal(number) for number in SIGNALS]
    codes: list[int] = []

    def run(name: str, *more: str) -> None:
        codes.append(train.main(data.arguments("--log_every", "4", *more, log_dir=tmp_path / name, num_steps="16")))

    run("first")
    threads = threading.active_count()
    run("wrong", "--class_weights", "1", "2", "3")
    run("second")
    thread = threading.Thread(target=run, args=("third",))
    thread.start()
    thread.join()
    assert codes == [0, 2, 0, 0]
    assert dict(os.environ) == environment
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    assert threading.active_count() <= threads
    first, second, third = (losses(tmp_path / name) for name in ("first", "second", "third"))
    assert len(first) == 5
    assert first == second == third


def losses(log_dir: Path) -> list[tuple[str, int, float]]:
    rows = [json.loads(line) for line in (log_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(row["kind"], row["images"], row["loss"]) for row in rows]


def test_a_request_before_the_first_step_leaves_without_building_its_graph(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    build = train.Run.build_model

    def signaled(run: train.Run) -> None:
        signal.raise_signal(signal.SIGUSR1)
        build(run)

    monkeypatch.setattr(train.Run, "build_model", signaled)
    assert train.main(data.arguments()) == 75
    assert capsys.readouterr().out.endswith("preempted   SIGUSR1 before the first step: nothing was to be saved\n")
    assert not (data.log_dir / "checkpoints").exists()


def test_a_run_that_ended_in_its_export_is_finished_by_resume(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    with monkeypatch.context() as changed:
        # After final.keras, in the middle of the SavedModel; what a kill leaves is no different.
        changed.setattr("artifacts.checkpoints.shutil.rmtree", raises(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            train.main(data.arguments())
    assert not (data.log_dir / "final.json").exists()
    capsys.readouterr()
    assert train.main(data.arguments("--resume", "auto")) == 0
    said = capsys.readouterr().out
    assert "mIoU; only the final model was missing, and is written now" in said
    assert json.loads((data.log_dir / "final.json").read_text(encoding="utf-8"))["images"] == 4
    assert (data.log_dir / "final_savedmodel" / "saved_model.pb").exists()
    assert train.main(data.arguments("--resume", "auto")) == 0
    assert "done        nothing to do: the checkpoint is at image 4 of 4" in capsys.readouterr().out


def test_the_checkpoint_comes_before_the_picture_for_which_there_is_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = TinySet(tmp_path / "data")
    monkeypatch.setattr(models, "build", small)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    with monkeypatch.context() as changed:
        changed.setattr("training.log.cv2.imwrite", raises(full))
        assert train.main(data.arguments("--validate_every", "4", num_steps="8")) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.name for path in (data.log_dir / "checkpoints").glob("images-*")] == ["images-000000004.npz"]
    # Nothing of it is trained or validated again.
    assert train.main(data.arguments("--resume", "auto", "--validate_every", "4", num_steps="8")) == 0
    assert [images for kind, images, _ in losses(data.log_dir) if kind == "val"] == [4, 8]


def test_a_second_run_in_a_folder_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = TinySet(tmp_path / "data")
    with FolderLock(data.log_dir):
        before = sorted(data.log_dir.iterdir())
        assert train.main(data.arguments()) == 2
        assert sorted(data.log_dir.iterdir()) == before
    said = capsys.readouterr()
    assert said.out == ""
    assert f"error: --log_dir {data.log_dir} is in use by process {os.getpid()} on {socket.gethostname()}" in said.err
    assert said.err.count("\n") == 1


def raises(error: BaseException):
    """A function that raises, whatever it is called with."""

    def function(*_: object, **__: object) -> None:
        raise error

    return function
