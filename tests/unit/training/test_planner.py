"""The planner: lines through measured steps, what fits, and what it says."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.costs import fitted, memory_line, time_line
from options.choices import MODELS, RECOMPUTATIONS
from parallel.comm import AgreedError, SoloComm
from system.gpus import Gpu
from training import planner
from training.planner import Cost, Line, Memory, PlannedStep, costs

STEP = PlannedStep("deeplab", 1280, 1, "none", "float32", 128)
COST = Cost(gib=Line(1.0, 2.0), seconds=Line(0.5, 3.0), product_gflop_s=100.0)


def test_line_by_hand() -> None:
    assert memory_line([0.25, 1.0], [2.0, 3.5]) == pytest.approx([1.5, 2.0])
    assert time_line([0.25, 2.0, 1.0], [9.0, 3.0, 9.0]) == [0.0, 1.5]
    assert Line(1.5, 2.0).at(4.0) == 9.5


def test_runs_are_fitted_by_hand() -> None:
    run = {"img_size": 1000, "resident_gib": 3.0, "step_s": 4.0, "product_gflop_s": 300.0, "timed": True}
    small = run | {"img_size": 500, "resident_gib": 1.5, "step_s": 9.0, "product_gflop_s": 100.0}
    # Measured before, without time; and an older run of a size measured again.
    large = run | {"img_size": 2000, "resident_gib": 9.0, "step_s": 99.0, "timed": False}
    found = fitted([run, small, large, run | {"resident_gib": 7.0}])
    assert [r["img_size"] for r in found["runs"]] == [500, 1000, 2000]
    assert found["gib"] == pytest.approx([1.0, 2.0])
    assert found["product_gflop_s"] == 200.0
    # 4 s at 300 GFLOP/s would be 6 s at 200
    assert found["seconds"] == [0.0, 6.0]


def test_cost_by_hand() -> None:
    # 2 x 1000 x 1000 px = 2 Mpx; 1 + 2 * 2, the pipeline's 0.4, and three batches of 8 MB
    assert COST.step_gib(1000, 2) == pytest.approx(5.4 + 3 * 8e6 / 2**30)
    # 0.5 + 3 * 2 s at 100 GFLOP/s
    assert COST.step_s(1000, 2, 200.0) == pytest.approx(3.25)


def test_largest_size_is_the_last_that_fits() -> None:
    size = COST.largest_size(2, 9.0, 128)
    assert size % 128 == 0
    assert COST.step_gib(size, 2) <= 9.0 < COST.step_gib(size + 128, 2)
    assert COST.largest_size(2, 1.0, 128) == 0


def test_costs_are_known_for_every_network_and_recomputation() -> None:
    known = {name: costs(name) for name in MODELS}
    assert [tuple(sorted(found)) for found in known.values()] == [tuple(sorted(RECOMPUTATIONS))] * len(MODELS)
    gib = [(found["fine"].step_gib(2048, 1), found["none"].step_gib(2048, 1)) for found in known.values()]
    assert [fine < 0.5 * none for fine, none in gib] == [True] * len(MODELS)
    assert costs("unet") == {}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two ways of recomputing on a machine of 10 GiB, twice as fast as the one that was measured."""
    row = {"model": "deeplab", "product_gflop_s": 100.0, "seconds": [0.5, 3.0]}
    rows = [row | {"recompute": "none", "gib": [1.0, 8.0]}, row | {"recompute": "blocks", "gib": [1.0, 2.0]}]
    (tmp_path / "costs.json").write_text(json.dumps({"costs": rows}), encoding="utf-8")
    monkeypatch.setattr(planner, "COSTS", tmp_path / "costs.json")
    monkeypatch.setattr(planner, "memory", lambda _=None: Memory(10.0, 9.0, "machine"))
    monkeypatch.setattr(planner, "product_rate", lambda: 200.0)


@pytest.mark.usefixtures("machine")
def test_plan_says_what_fits() -> None:
    lines = [" ".join(text.split()) for text in planner.plan(STEP)]
    assert lines[1] == "machine: 10.0 GiB, 9.0 free; float32 matrix product 200 GFLOP/s"
    assert lines[4:6] == [
        "* none 14.5 GiB 2.7 s 0.369 no 1024",
        "blocks 4.7 GiB 2.7 s 0.369 yes 2048",
    ]
    # Two ranks share the machine.
    shared = [" ".join(text.split()) for text in planner.plan(STEP, ranks=2)]
    assert shared[4:6] == ["* none 14.5 GiB 2.7 s 0.369 no 640", "blocks 4.7 GiB 2.7 s 0.369 just 1280"]


@pytest.mark.usefixtures("machine")
def test_advice() -> None:
    ways = planner.advice(STEP, 1, 10.0)
    assert ways == ["--recompute none: up to --img_size 1024", "--recompute blocks: up to --img_size 2048"]
    assert planner.advice(replace(STEP, model="unet"), 1, 10.0) == []
    assert planner.advice(STEP, 1, 1.0) == []


@pytest.mark.usefixtures("machine")
def test_a_step_that_cannot_fit_is_refused() -> None:
    alone = SoloComm()
    with pytest.raises(
        AgreedError, match=r"about 14\.5 GiB per rank, 10\.0 are available.*none: up to --img_size 1024"
    ):
        planner.require_memory(STEP, alone, refuse=True)
    warned = ["memory      about 14.5 GiB per rank; machine 10.0 GiB, 9.0 free, for 1 rank"]
    assert planner.require_memory(STEP, alone, refuse=False) == warned
    assert planner.require_memory(replace(STEP, recompute="blocks"), alone, refuse=True) != []
    # Not measured: nothing is known.
    assert planner.require_memory(replace(STEP, precision="bfloat16"), alone, refuse=True) == []
    assert planner.require_memory(replace(STEP, model="unet"), alone, refuse=True) == []
    assert planner.out_of_memory_advice(STEP, 1).startswith("On this machine fit: --recompute none: up to")


def test_memory_is_that_of_the_own_gpu() -> None:
    assert planner.memory(Gpu(1, "GPU-b", 40.0)) == Memory(40.0, 40.0, "GPU", "1 GPU-b")
    # It has none of its own.
    assert planner.memory(Gpu(0, "GPU-a", None)).owner in ("machine", "control group")


class Two(SoloComm):
    """The first of two ranks of a node; the other has another GPU, or the same."""

    size, local_size = 2, 2

    def __init__(self, other: Memory) -> None:
        self.other = other

    def gather(self, value: Any) -> list[Any]:
        return [value, (self.other, 2)]


def test_every_rank_has_its_own_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Cost, "step_gib", lambda *_: 14.5)
    mine, another = Gpu(0, "GPU-a", 40.0), Memory(16.0, 16.0, "GPU", "1 GPU-b")
    # Half of 16 GiB would be too little.
    said = planner.require_memory(STEP, Two(another), refuse=True, gpu=mine)
    assert said == ["memory      about 14.5 GiB per rank; GPU 16.0 GiB, 16.0 free, for 1 rank"]
    said = planner.require_memory(STEP, Two(planner.memory(mine)), refuse=True, gpu=mine)
    assert said == ["memory      about 14.5 GiB per rank; GPU 40.0 GiB, 40.0 free, for 2 ranks"]
    with pytest.raises(
        AgreedError, match=r"about 14\.5 GiB per rank, 8\.0 are available on the GPU of rank 1\. On thi"
    ):
        planner.require_memory(STEP, Two(replace(another, total=8.0)), refuse=True, gpu=mine)


def test_memory_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    here = planner.memory()
    assert 0 < here.free <= here.total
    monkeypatch.setattr(planner, "_group_limit_gib", lambda: 0.25)
    assert planner.memory() == Memory(0.25, 0.25, "control group")
