"""The page of a study."""

import json
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.unit.tuning.test_study import SPACE, run
from tuning import report
from tuning.definition import Definition
from tuning.journal import open_journal
from tuning.study import Search, Study
from tuning.trials import Claim, Ended, TrialFolder

SPACE_TEXT = "--x 0 1.0\n--kind in a b\n--y 0 2.0 if --kind b\n--n 1 9\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Eight complete trials, one that failed, one that did not fit, one that runs, one that waits."""
    definition = Definition(
        ROOT / "tests" / "support" / "toy_program.py", ("--pause", "0"), tmp_path, SPACE_TEXT, "miou", False, "tpe",
        "median", 0, 0, 1,
    )  # fmt: skip
    definition.agree_with(tmp_path)
    study = Study("study", open_journal(tmp_path / "journal.log")[0], SPACE, Search())
    for number, values in enumerate(run(study, 8)):
        trial = TrialFolder.create(tmp_path / "trials", number, values, ["--x", str(values["x"])])
        claim = Claim(trial)
        claim.end(Ended(0, 1.0))
        state = {"outcome": "complete", "reason": "", "attempts": 1, "ended": 2e9, "value": number / 10}
        trial.close(state)
    for number, outcome in ((8, "failed"), (9, "infeasible")):
        trial = TrialFolder.create(tmp_path / "trials", number, {"x": 0.5, "kind": "a", "n": 1}, [])
        trial.close({"outcome": outcome, "reason": f"<b>{outcome}</b>", "attempts": 3, "ended": 2e9, "value": None})
    running = TrialFolder.create(tmp_path / "trials", 10, {"x": 0.5, "kind": "a", "n": 1}, [])
    Claim(running)
    running.run.mkdir()
    rows = [{"kind": "val", "images": images, "miou": 0.1 * images} for images in (1, 2)]
    (running.run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    TrialFolder.create(tmp_path / "trials", 11, {"x": 0.25, "kind": "a", "n": 1}, [])
    return tmp_path


def test_what_the_page_shows(folder: Path) -> None:
    page = report.write(folder).read_text(encoding="utf-8")
    assert "best miou</span><b>0.7000</b>" in page
    assert "complete</span><b>8</b>" in page
    assert "failed</span><b>1</b>" in page
    assert "1 more did not fit into memory" in page
    assert "Trial 7: miou 0.7000" in page
    assert page.count('aria-label="miou against') == 4
    assert "<code>--y</code>" in page
    assert "0 a, 1 b" in page
    assert "PED-ANOVA" in page
    assert "&lt;b&gt;failed&lt;/b&gt;" in page
    assert "<b>failed</b>" not in page
    # The running one with its best so far.
    assert '<th scope="row">10</th><td>running</td><td>0.2000</td><td>2</td>' in page


def test_a_study_without_trials_has_a_page(tmp_path: Path) -> None:
    Definition(ROOT / "train.py", (), tmp_path, "--seed 0 9", "miou", False, "tpe", "median", 0, 0, 2).agree_with(
        tmp_path
    )
    page = report.html(tmp_path)
    assert "none yet" in page
    assert "2 ranks a trial" in page
    with pytest.raises(ValueError, match="is no study"):
        report.html(tmp_path / "elsewhere")
