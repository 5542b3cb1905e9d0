"""The hosts of netns.py are what the other tests take them for."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

import pytest

from tests.integration.hosts.netns import Hosts, clear_leftovers

pytestmark = pytest.mark.xdist_group("netns")


def ssh(hosts: Hosts, *words: str) -> subprocess.CompletedProcess[str]:
    """The launch agent, from the first host."""
    command = [str(hosts.folder / "bin" / "ssh"), *words]
    return subprocess.run(
        hosts.inside(hosts.names[0], command),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_each_host_has_its_own_name_address_and_memory(two_hosts: Hosts) -> None:
    first, second = two_hosts.names
    Path("/dev/shm/widefov-hosts-test").touch()
    try:
        assert two_hosts.output_of(second, "ls", "/dev/shm") == ""
    finally:
        Path("/dev/shm/widefov-hosts-test").unlink()
    assert " 10.77.0.2/24 " in two_hosts.output_of(second, "ip", "-br", "address", "show", "eth0")
    assert two_hosts.output_of(second, "hostname").strip() == second
    assert two_hosts.output_of(first, "hostname").strip() == first
    assert f"10.77.0.2 {second}" in two_hosts.output_of(first, "cat", "/etc/hosts")
    assert second not in Path("/etc/hosts").read_text(encoding="utf-8")


def test_the_agent_runs_a_command_there_and_returns_its_exit_code(two_hosts: Hosts) -> None:
    second = two_hosts.names[1]
    done = ssh(two_hosts, "-x", "-o", "ConnectTimeout=9", f"me@{second}", "-p", "22", "hostname;", "pwd;", "exit", "7")
    assert done.stdout.split() == [second, os.environ["HOME"]]
    assert done.returncode == 7


def test_the_agents_shell_is_as_bare_as_sshs(two_hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WIDEFOV_ONLY_HERE", "1")
    assert "WIDEFOV_ONLY_HERE" not in ssh(two_hosts, two_hosts.names[1], "env").stdout


def test_the_agent_cannot_reach_a_host_that_is_cut_off(fresh_hosts: Hosts) -> None:
    second = fresh_hosts.names[1]
    fresh_hosts.cut(second)
    done = ssh(fresh_hosts, "-o", "ConnectTimeout=2", second, "true")
    assert done.returncode == 255
    fresh_hosts.repair(second)
    assert ssh(fresh_hosts, second, "true").returncode == 0


def test_bytes_are_counted(two_hosts: Hosts) -> None:
    before = two_hosts.sent_bytes(two_hosts.names[1])
    assert len(ssh(two_hosts, two_hosts.names[1], "head", "-c", "300000", "/dev/zero").stdout) == 300000
    # headers: 66 bytes for each 1448
    assert 300000 < two_hosts.sent_bytes(two_hosts.names[1]) - before < 330000


def test_a_slow_cable_delays_and_loses(slow_hosts: Hosts) -> None:
    far = slow_hosts.names[1]
    begin = time.monotonic()
    assert ssh(slow_hosts, far, "true").returncode == 0
    # two round trips: the connection, then the command and its answer
    assert time.monotonic() - begin >= 4 * 0.02
    before = slow_hosts.lost_frames(far)
    assert len(ssh(slow_hosts, far, "head", "-c", "2000000", "/dev/zero").stdout) == 2000000
    time.sleep(1.5)
    assert slow_hosts.lost_frames(far) > before


def test_nothing_outlives_the_hosts(fresh_hosts: Hosts) -> None:
    links = Path("/proc/net/dev").read_text(encoding="utf-8").count(":")
    command = ["setsid", "sleep", "31415"]
    process = fresh_hosts.start(fresh_hosts.names[1], command, dict(os.environ), fresh_hosts.folder / "out")
    while not fresh_hosts.jobs():
        time.sleep(0.05)
    assert "31415" in " ".join(fresh_hosts.jobs().values())
    fresh_hosts.__exit__(None, None, None)
    assert process.wait(10) != 0
    assert fresh_hosts.jobs() == {}
    assert Path("/proc/net/dev").read_text(encoding="utf-8").count(":") == links


def test_folders_of_a_killed_test_are_cleared_and_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    user = os.geteuid()
    # no process has so high a number (pid_max is at most 2^22)
    names = [f"ompi.wf9999999n1.{user}", f"ompi.wf{os.getpid()}n1.{user}", f"ompi.node7.{user}"]
    for name in names:
        (tmp_path / name).mkdir()
    clear_leftovers()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
