"""An elastic job over hosts: one leaves and another joins, then one is cut off; counter and stream go on."""

import csv
import re
from pathlib import Path

import pytest

from tests.integration.hosts import jobs
from tests.integration.hosts.netns import Hosts
from tests.support.tiny import SMALL, TinySet

# As ~/.ssh/config has it: or horovodrun never learns that a silent host is gone.
KEEPALIVE = "-oServerAliveInterval=10"


def images_after(said: str, word: str) -> list[int]:
    """The image counters of the lines that begin with this word."""
    return [int(found) for found in re.findall(rf"\b{word} .* at image (\d+)", said)]


def check_stream(log_dir: Path) -> None:
    """Every index was trained once, by any rank and after any number of restarts."""
    indices: list[int] = []
    for path in sorted((log_dir / "samples").glob("rank-*.csv")):
        with path.open(newline="", encoding="utf-8") as file:
            indices += [int(row["index"]) for row in csv.DictReader(file)]
    assert len(indices) > 20
    assert sorted(indices) == list(range(len(indices)))


@pytest.mark.slow
@pytest.mark.kind("elastic job")
def test_hosts_leave_join_and_are_cut_off(three_hosts: Hosts, tmp_path: Path) -> None:
    first, second, third = three_hosts.names
    present, script = tmp_path / "present", tmp_path / "discover.sh"
    script.write_text(f"#!/bin/sh\ncat {present}\n", encoding="ascii")
    script.chmod(0o755)

    def here(*names: str) -> None:
        present.write_text("".join(f"{name}:1\n" for name in names), encoding="ascii")

    here(first, second)
    tiny = TinySet(tmp_path)
    words = tiny.arguments(
        "--elastic", "--lr_scaling", "none",
        num_steps="1000000", log_every="4", checkpoint_every="4", validate_every="1000000",
    )  # fmt: skip
    elastic = f"--gloo --min-np 1 --max-np 2 --network-interface eth0 --host-discovery-script {script}"
    given = {"LAUNCHER": "horovodrun", "LAUNCHER_ARGS": elastic, "HOSTS": "", "NP": "2"}
    job = jobs.start(three_hosts, tmp_path / "output", SMALL, words, WIDEFOV_TEST_SSH_OPTIONS=KEEPALIVE, **given)
    try:
        job.wait_for("loss 0.", times=6)
        here(first, third)
        # On the host that stays and on the one that joins: a rank leaves without an error of the job.
        job.wait_for("ranks       2 x batch 1", times=2)
        job.wait_for("loss 0.", times=job.said().count("loss 0.") + 6)
        assert images_after(job.said(), "resume") == images_after(job.said(), "preempted")
        three_hosts.cut(third)
        here(first)
        job.wait_for("ranks       1 x batch 1")
        job.wait_for("loss 0.", times=job.said().count("loss 0.") + 6)
        job.ask_to_leave()
        assert job.all_gone_within(60), three_hosts.jobs()
    finally:
        print(job.said()[-8000:])
    # From the newest checkpoint: at most a checkpoint's distance and a step are lost.
    resumed = images_after(job.said(), "resume")
    assert len(resumed) == 2
    assert resumed[1] > resumed[0]
    check_stream(tiny.log_dir)
