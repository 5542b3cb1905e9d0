"""Space files: what is searched, and every way to write it wrongly."""

from typing import Any

import pytest

from tuning.space import Parameter, SpaceError, parse

SWITCHES = {"hard_mining": False, "qc": True}


class First:
    """A trial that takes the lower limit, or a given choice."""

    def __init__(self, **choices: str) -> None:
        self._choices = choices
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def suggest_float(self, name: str, low: float, high: float, **more: Any) -> float:
        self.asked.append((name, {"high": high, **more}))
        return low

    def suggest_int(self, name: str, low: int, high: int, **more: Any) -> int:
        self.asked.append((name, {"high": high, **more}))
        return low

    def suggest_categorical(self, name: str, choices: tuple[str, ...]) -> str:
        return self._choices.get(name, choices[0])


def one(text: str) -> Parameter:
    (parameter,) = parse(text, SWITCHES).parameters
    return parameter


def test_every_form() -> None:
    assert one("--base_lr log 1e-5 1e-2  # comment") == Parameter("base_lr", "float", (), 1e-5, 1e-2, None, True)
    assert one("--momentum 0 0.99") == Parameter("momentum", "float", (), 0.0, 0.99)
    assert one("--momentum -1.5 0.5 step 0.5") == Parameter("momentum", "float", (), -1.5, 0.5, 0.5)
    assert one("--batch_size 1 8") == Parameter("batch_size", "int", (), 1, 8)
    assert one("--batch_size log 1 64") == Parameter("batch_size", "int", (), 1, 64, None, True)
    assert one("--img_size 256 1024 step 128") == Parameter("img_size", "int", (), 256, 1024, 128)
    assert one("--optimizer in adam 'a b'") == Parameter("optimizer", "choice", ("adam", "a b"))
    assert one("--hard_mining in on off") == Parameter("hard_mining", "choice", ("on", "off"))


def test_conditions_follow_each_other() -> None:
    space = parse("--loss in ce focal\n--focal_gamma 0.5 5 if --loss focal\n\n--seed 1 2", {})
    assert space.suggest(First()) == {"loss": "ce", "seed": 1}
    assert space.suggest(First(loss="focal")) == {"loss": "focal", "focal_gamma": 0.5, "seed": 1}
    nested = parse("--a in x y\n--b in u v if --a y\n--c 0 1 if --b v", {})
    corners = list(nested.corners())
    assert {"a": "y", "b": "v", "c": 1} in corners
    assert {"a": "x"} in corners
    assert all("c" not in corner or corner["b"] == "v" for corner in corners)


def test_arguments() -> None:
    space = parse("--hard_mining in on off\n--qc in on off\n--base_lr log 1e-5 1e-2\n--img_size 128 256", SWITCHES)
    values = {"hard_mining": "on", "qc": "off", "base_lr": 0.1 + 0.2, "img_size": 128}
    # All digits: the run of --retrain is the same run.
    assert space.arguments(values) == [
        "--hard_mining",
        "--no-qc",
        "--base_lr",
        "0.30000000000000004",
        "--img_size",
        "128",
    ]
    assert space.arguments({"hard_mining": "off", "qc": "on"}) == ["--qc"]


def test_what_optuna_is_asked() -> None:
    trial = First()
    parse("--a log 1 8\n--b 0 1.0 step 0.25\n--c 2 10 step 4", {}).suggest(trial)
    assert trial.asked == [
        ("a", {"high": 8, "step": 1, "log": True}),
        ("b", {"high": 1.0, "step": 0.25, "log": False}),
        ("c", {"high": 10, "step": 4, "log": False}),
    ]


def test_grid() -> None:
    assert one("--a in x y").grid() == ["x", "y"]
    assert one("--a 2 11 step 4").grid() == [2, 6, 10]
    assert one("--a 0 0.3 step 0.1").grid() == pytest.approx([0, 0.1, 0.2, 0.3])
    with pytest.raises(SpaceError, match="--a: a grid needs `in`, whole numbers or a `step`"):
        one("--a 0 0.5").grid()
    with pytest.raises(SpaceError, match="--a: a grid needs"):
        one("--a log 1 64").grid()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: no option is searched"),
        ("base_lr 1 2", "line 1: 'base_lr' is not an option"),
        ("--a 1 2\n--a 1 2", "line 2: --a is given twice"),
        ("--a 2 1", "line 1: --a 2 1: the range is empty"),
        ("--a 1 1", "the range is empty"),
        ("--a nan 1", "the range is empty"),
        ("--a 1 inf", "the range is empty"),
        ("--a 1", "give LOW HIGH"),
        ("--a 1 2 3", "give LOW HIGH"),
        ("--a one two", "give LOW HIGH"),
        ("--a log 0 1", "needs limits above 0"),
        ("--a log 1 4 step 2", "log and step exclude each other"),
        ("--a 0 1 step 2", "step 2: it must be above 0 and at most 1"),
        ("--a in", "--a in: no values"),
        ("--a in x x", "x is given twice"),
        ("--a 'in", "line 1: No closing quotation"),
        ("--b 1 2 if --a x", "if --a: it is not searched further up"),
        ("--a 1 2\n--b 1 2 if --a 1", "line 2: if --a: its values are a range"),
        ("--a in x y\n--b 1 2 if --a z", "if --a z: it has only the values x, y"),
        ("--a in x y\n--b 1 2 if --a", "after `if` come an option and its values"),
        ("--hard_mining 0 1", "--hard_mining takes no value; search it by: --hard_mining in on off"),
        ("--hard_mining in true false", "--hard_mining takes no value"),
    ],
)
def test_mistakes(text: str, message: str) -> None:
    with pytest.raises(SpaceError) as error:
        parse(text, SWITCHES)
    assert message in str(error.value)
