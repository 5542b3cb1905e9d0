"""experiments/end_to_end.sh: train, predict, evaluate with one command, on slides that cost seconds."""

import json
import subprocess
from pathlib import Path

from tests.support.paths import ROOT
from tests.support.tiny import TinySet, environment


def test_from_slides_to_a_report(tmp_path: Path) -> None:
    tiny = TinySet(tmp_path, val={"tumor_101": (323, 259), "normal_102": (290, 305)})
    words = "--img_size 128 --resolution 2 --batch_size 2 --num_steps 8 --val_patches 4 --model effdetd0 --no_cuda"
    command = [str(ROOT / "experiments" / "end_to_end.sh"), str(tmp_path), str(tmp_path / "out"), *words.split()]
    done = subprocess.run(
        command, env=environment(NP="2"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    out = tmp_path / "out"
    assert (out / "training" / "checkpoints" / "best.npz").exists()
    assert sorted(path.parent.name for path in out.glob("predictions/*/summary.json")) == ["normal_102", "tumor_101"]
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text(encoding="utf-8"))
    # Eight images teach nothing, but all tissue of both slides is scored once: what the grid of maps has, 2 um/px.
    confusion = metrics["pixels"]["confusion"]
    assert sum(map(sum, confusion)) > 0.8 * (323 * 259 + 290 * 305)
    assert sum(confusion[1]) == 120 * 130
    report = (out / "evaluation" / "report.html").read_text(encoding="utf-8")
    assert "tumor_101" in report
    assert "normal_102" in report
    again = subprocess.run(
        command, env=environment(NP="2"), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
        check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-3000:]
    assert "2 of them done before" in again.stdout
    assert tiny.log_dir.exists() is False
