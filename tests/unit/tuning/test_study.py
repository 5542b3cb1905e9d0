"""Studies of Optuna: the same trials whether or not they were resumed; journals that were cut."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tuning.journal import Journal, open_journal, repair
from tuning.space import SpaceError, Value, parse
from tuning.study import Search, Study

SPACE = parse("--x 0 1.0\n--kind in a b\n--y 0 2.0 if --kind b\n--n 1 9", {})


def value_of(values: dict[str, Value]) -> float:
    return -((float(values["x"]) - 0.3) ** 2) - (float(values.get("y", 0)) - 1) ** 2 + float(values["n"]) / 100


def opened(folder: Path, search: Search) -> Study:
    return Study("study", open_journal(folder / "journal.log")[0], SPACE, search)


def run(study: Study, trials: int) -> list[dict[str, Value]]:
    found = []
    for _ in range(trials):
        number, values = study.ask()
        study.report(number, 1, value_of(values))
        study.tell(number, "complete", value_of(values), "", {})
        found.append(values)
    return found


@pytest.mark.parametrize("sampler", ["tpe", "random", "qmc"])
def test_a_resumed_study_goes_on_as_if_it_had_not_stopped(sampler: str, tmp_path: Path) -> None:
    search = Search(sampler, seed=3)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = run(opened(tmp_path / "a", search), 16)
    first = run(opened(tmp_path / "b", search), 5)
    # Killed after asking for a trial, before all its values were chosen.
    broken = opened(tmp_path / "b", search)
    broken._study.sampler = broken._sampler(5)
    asked = broken._study.ask()
    asked.suggest_float("x", 0, 1.0)
    resumed = opened(tmp_path / "b", search)
    assert resumed.running() == [5]
    values = resumed.ask_again(5)
    resumed.tell(5, "complete", value_of(values), "", {})
    assert [*first, values, *run(resumed, 10)] == whole
    assert len({json.dumps(one) for one in whole}) == 16


def test_trials_do_not_depend_on_hash_seeds(tmp_path: Path) -> None:
    code = (
        "import json, sys; from pathlib import Path; sys.path.insert(0, sys.argv[1]);"
        "from tests.unit.tuning.test_study import opened, run, Search;"
        "print(json.dumps(run(opened(Path(sys.argv[2]), Search(seed=3)), 14)))"
    )
    found = []
    for seed in ("0", "1"):
        (tmp_path / seed).mkdir()
        arguments = [sys.executable, "-c", code, str(ROOT), str(tmp_path / seed)]
        environment = os.environ | {"PYTHONHASHSEED": seed}
        done = subprocess.run(arguments, env=environment, capture_output=True, text=True, check=True)
        found.append(json.loads(done.stdout))
    assert found[0] == found[1]


def test_a_grid_visits_every_cell_once(tmp_path: Path) -> None:
    space = parse("--a in x y\n--b 1 3", {})
    study = Study("study", open_journal(tmp_path / "journal.log")[0], space, Search("grid"))
    found = []
    for _ in range(6):
        number, values = study.ask()
        study.tell(number, "complete", 0.0, "", {})
        found.append(tuple(values.values()))
    assert sorted(found) == [("x", 1), ("x", 2), ("x", 3), ("y", 1), ("y", 2), ("y", 3)]
    with pytest.raises(SpaceError, match="a grid has no conditions"):
        opened(tmp_path, Search("grid"))


def test_the_median_ends_what_is_worse(tmp_path: Path) -> None:
    study = opened(tmp_path, Search("random", warm_up=2))
    for index in range(5):
        number, _ = study.ask()
        for images in (1, 2, 3):
            study.report(number, images, float(index + images))
        study.tell(number, "complete", float(index), "", {})
    number, _ = study.ask()
    study.report(number, 1, -9.0)
    assert not study.should_prune(number)
    study.report(number, 2, -9.0)
    assert study.should_prune(number)
    study.tell(number, "pruned", -9.0, "", {})
    best = study.best()
    assert best is not None
    assert best.number == 4


def test_outcomes_are_told_once_and_kept(tmp_path: Path) -> None:
    study = opened(tmp_path, Search(minimize=True))
    for outcome in ("complete", "pruned", "infeasible", "failed"):
        number, _ = study.ask()
        value = 1.0 if outcome == "complete" else None
        study.tell(number, outcome, value, f"because {outcome}", {"images": 7})
        study.tell(number, "failed", None, "again", {})
    found = opened(tmp_path, Search(minimize=True)).trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "PRUNED", "PRUNED", "FAIL"]
    assert found[2].user_attrs == {"images": 7, "reason": "because infeasible"}
    assert [trial.constraints for trial in found][2] == {"memory": 1.0}


def test_values_that_the_journal_lost_are_asked_for_again(tmp_path: Path) -> None:
    study = opened(tmp_path, Search())
    values = {"x": 0.25, "kind": "b", "y": 1.5, "n": 3}
    assert study.ask(values) == (0, values)


# ------------------------------------------------------------------------------------------------------------- journals


def test_a_cut_last_line_is_set_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    assert repair(path) == ""
    run(opened(tmp_path, Search()), 2)
    assert repair(path) == ""
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    note = repair(path)
    assert "its last line was cut short" in note
    assert path.read_bytes() == whole[: whole.rstrip().rfind(b"\n") + 1]
    assert (tmp_path / "journal.log.cut-1").read_bytes() == whole[:-5]
    assert len(run(opened(tmp_path, Search()), 1)) == 1


def test_half_a_line_that_ends_well_is_cut_too(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"a": 1}\n{"b": \n')
    assert repair(path)
    assert path.read_bytes() == b'{"a": 1}\n'


def test_damage_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "journal.log"
    path.write_bytes(b'{"a": 1}\n???\n{"b": 2}\n')
    with pytest.raises(ValueError, match=r"journal.log, line 2: damaged"):
        repair(path)


def test_a_full_disk_leaves_no_half_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = Journal(tmp_path / "journal.log")
    journal.append_logs([{"a": 1}])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        journal.append_logs([{"b": 2}])
    monkeypatch.undo()
    assert list(journal.read_logs(0)) == [{"a": 1}]
