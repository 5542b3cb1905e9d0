"""The scaling model: allreduces, steps and predictions worked out on paper."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

import models
from benchmarks.scaling_model import (
    COSTS,
    ETHERNET_10,
    INFINIBAND_100,
    WORKLOADS,
    Host,
    Link,
    Network,
    Setting,
    Workload,
    allreduce_s,
    compute_s,
    draw,
    largest,
    measured_host,
    settings,
    table,
)

# 1 ms per message, 1 us per byte; 100 times as fast within a node.
SLOW, FAST = Link("slow", 1e-3, 1e-6), Link("fast", 1e-5, 1e-8)
TINY = Workload("tiny", gradients=1000, moving=100, norms=2, norm_channels=20)
FREE = Host(call_s=0.0, byte_s={"fp32": 0.0, "fp16": 0.0})
# What benchmarks.allreduce and benchmarks.scaling write, as far as the model reads it.
ALLREDUCE = {
    "link": {"alpha_s": 1e-6, "beta_s": 0.1e-9},
    "fits": {"fp32": {"alpha_s": 0.002, "beta_s": 0.5e-9}, "fp16": {"alpha_s": 0.003, "beta_s": 2e-9}},
}
SCALING = {"summary": {"variation": 0.01, "fp32": {"overlapped": 0.25}, "fp16": {"overlapped": 0.0}}}


@pytest.mark.parametrize(
    ("algorithm", "ranks", "seconds"),
    [
        ("ring", 1, 0.0),
        # 2 x 1 ms, and 2 x 1/2 x 6000 us
        ("ring", 2, 0.008),
        # 2 x 2 ms, and 2 x 2/3 x 6000 us
        ("ring", 3, 0.012),
        # 2 x 7 ms, and 2 x 7/8 x 6000 us
        ("ring", 8, 0.0245),
        ("tree", 1, 0.0),
        ("tree", 2, 0.008),
        # 2 rounds each way, as for 4
        ("tree", 3, 0.012),
        # 2 x 3 ms, and the same bytes as the ring
        ("tree", 8, 0.0165),
    ],
)
def test_allreduce_by_hand(algorithm: str, ranks: int, seconds: float) -> None:
    assert allreduce_s(algorithm, SLOW, ranks, 6000) == pytest.approx(seconds)


def test_nodes_reduce_within_and_then_between() -> None:
    network = Network(intra=FAST, inter=SLOW, per_node=4, algorithm="ring")
    # 4 ranks of one node: 2 x 3 x 10 us, and 2 x 3/4 x 60 us
    assert network.allreduce_s(4, 6000) == pytest.approx(150e-6)
    # 3 of them: 2 x 2 x 10 us, and 2 x 2/3 x 60 us
    assert network.allreduce_s(3, 6000) == pytest.approx(120e-6)
    # two nodes: that, and 2 x 1 ms with 6000 us between them
    assert network.allreduce_s(8, 6000) == pytest.approx(0.00815)


def test_nodes_that_are_not_full_are_refused() -> None:
    with pytest.raises(ValueError, match="6 ranks do not fill nodes of 4"):
        Network(FAST, SLOW, per_node=4).allreduce_s(6, 1.0)


def test_mean_adds_the_host_and_the_negotiation() -> None:
    host = Host(call_s=0.1, byte_s={"fp32": 2e-6, "fp16": 5e-6}, fusion_bytes=2500)
    network = Network(FAST, SLOW, per_node=1, algorithm="ring")
    # 3 ranks. negotiation: 4 ms, 4/3 x 128 us; 6000 bytes as three messages: 3 x 4 ms, 4/3 x 6000 us
    expected = 0.1 + 6000 * 2e-6 + 0.004 + 128e-6 * 4 / 3 + 3 * 0.004 + 0.008
    assert host.mean_s(network, 3, 6000) == pytest.approx(expected)
    assert host.mean_s(network, 3, 6000, "fp16") == pytest.approx(expected + 6000 * 3e-6)


def test_step_by_hand() -> None:
    # No latency, no host: two ranks send each byte once, 1 us each; three negotiations of 128 bytes.
    network = Network(FAST, Link("bytes", 0.0, 1e-6), per_node=1)
    setting = Setting(TINY, 0.02, network, FREE)
    # gradients 4000 bytes, sums 12, moving statistics 400
    assert setting.communication_s(2) == pytest.approx(0.004 + 12e-6 + 400e-6 + 3 * 128e-6)
    assert setting.step_s(2) == pytest.approx(0.024796)
    assert setting.efficiency(2) == pytest.approx(0.02 / 0.024796)
    assert setting.efficiency(1) == 1.0
    # half the gradients' bytes
    assert replace(setting, wire="fp16").communication_s(2) == pytest.approx(0.002796)
    # three quarters of the gradients' call (4000 and 128 bytes) are hidden
    assert replace(setting, overlap=0.75).communication_s(2) == pytest.approx(0.004796 - 0.75 * 0.004128)


def test_sync_bn_adds_two_calls_per_layer() -> None:
    setting = Setting(TINY, 0.02, Network(FAST, Link("bytes", 0.0, 1e-6), per_node=1), FREE)
    # 2 layers of 10 channels: 84 bytes forward, 80 backward, each with 128 of negotiation
    more = replace(setting, sync_bn=True).communication_s(2) - setting.communication_s(2)
    assert more == pytest.approx(2 * (84 + 80 + 256) * 1e-6)
    called = replace(setting, host=replace(FREE, call_s=0.001))
    assert called.communication_s(2) - setting.communication_s(2) == pytest.approx(0.003)
    assert replace(called, sync_bn=True).communication_s(2) - called.communication_s(2) == pytest.approx(0.004 + 840e-6)


def test_stragglers_by_hand() -> None:
    # Largest of n normal numbers: 0.564 of two and 1.539 of ten, by tables of order statistics; and of 1000, 3.241.
    assert largest(1) == 0.0
    assert largest(2) == pytest.approx(0.564, abs=0.05)
    assert largest(10) == pytest.approx(1.539, abs=0.05)
    assert largest(1000) == pytest.approx(3.241, abs=0.05)
    silent = Network(Link("none", 0.0, 0.0), Link("none", 0.0, 0.0))
    setting = Setting(TINY, 10.0, silent, FREE, variation=0.1)
    # 0.1 x 3.24 of the step
    assert setting.efficiency(1000) == pytest.approx(0.755, abs=0.005)


def test_shortest_step_has_the_wanted_efficiency() -> None:
    setting = Setting(TINY, 0.02, Network(FAST, SLOW), FREE, variation=0.01)
    shortest = setting.shortest_step_s(64, 0.9)
    assert replace(setting, compute_s=shortest).efficiency(64) == pytest.approx(0.9)
    assert replace(setting, variation=0.1).shortest_step_s(64, 0.9) == float("inf")


def test_links_by_hand() -> None:
    # 1.25 GB/s x 1448 / 1538 and 12 GB/s
    assert ETHERNET_10.beta_s == pytest.approx(0.8497e-9, rel=1e-4)
    assert INFINIBAND_100.beta_s == pytest.approx(0.08333e-9, rel=1e-4)


def test_host_is_what_the_link_leaves() -> None:
    link, host = measured_host(ALLREDUCE)
    assert (link.alpha_s, link.beta_s) == (1e-6, 0.1e-9)
    assert host.call_s == pytest.approx(0.002 - 4e-6)
    assert host.byte_s == pytest.approx({"fp32": 0.4e-9, "fp16": 1.9e-9})
    # Two ranks of one node: what was measured, and the negotiation's 128 bytes through the link.
    assert host.mean_s(Network(link, link), 2, 10**6) == pytest.approx(0.002 + 0.5e-3 + 128 * 0.1e-9)


def test_compute_is_the_planners_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    costs = [{"model": "m", "recompute": r, "seconds": s} for r, s in (("none", [1.0, 2.0]), ("blocks", [0.0, 9.0]))]
    (tmp_path / "costs.json").write_text(json.dumps({"costs": costs}), encoding="utf-8")
    monkeypatch.setattr("benchmarks.scaling_model.COSTS", tmp_path / "costs.json")
    # 1 + 2 x 1 Mpx
    assert compute_s("m", 1000, "none", 1.0) == 3.0
    # 9 x 4 Mpx on a machine twice as fast
    assert compute_s("m", 2000, "blocks", 2.0) == 18.0


def test_costs_have_every_curve() -> None:
    assert COSTS.name == "costs.json"
    curves = settings(ALLREDUCE, SCALING, 2, False)
    # 2 networks, 2 fields, 2 speeds, 2 links, 2 algorithms, 2 types
    assert len(curves) == 64
    assert {c["setting"].overlap for c in curves if c["wire"] == "fp32"} == {0.25}
    assert {c["setting"].overlap for c in settings(ALLREDUCE, SCALING, 2, False, overlap=0.5)} == {0.5}
    ring, tree = (next(c["setting"] for c in curves if c["algorithm"] == a) for a in ("ring", "tree"))
    # Few latencies: the tree is never slower, and the same for two.
    assert tree.step_s(1024) < ring.step_s(1024)
    assert tree.step_s(2) == ring.step_s(2)


def test_table_and_curve(tmp_path: Path) -> None:
    curves = settings(ALLREDUCE, SCALING, 2, False)
    lines = table(curves, (4, 1024)).splitlines()
    assert len(lines) == 2 + 64
    assert lines[0] == "| model | px | step s | link | allreduce | wire | 4 | 1024 | 0.9 of 1024 from a step of |"
    draw(curves, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("workload", WORKLOADS, ids=lambda w: w.name)
def test_workloads_are_those_of_the_networks(workload: Workload) -> None:
    model = models.build(workload.name, 128, 2)

    def numbers(variables: list) -> int:
        return sum(v.value.shape.num_elements() for v in variables)

    synced = models.synchronize(model, lambda tensors: tensors)
    norms = [int(layer.moving_mean.shape[0]) for layer in model.layers if getattr(layer, "total", None) is not None]
    assert numbers(model.trainable_variables) == workload.gradients
    assert numbers([v for v in model.non_trainable_variables if v.dtype == "float32"]) == workload.moving
    assert (synced, sum(norms)) == (workload.norms, workload.norm_channels)
