"""File names, arguments and settings that a shell would run, and secrets: nothing is run, nothing is written down."""

from pathlib import Path

import pytest

from tests.support.bench import Bench
from tests.support.paths import ROOT
from tests.support.stub_launchers import RUN_TRAIN, dry_run, mpich, open_mpi
from tests.support.tiny import SMALL, TinySet, run_train

HOSTILE = """it's "q" $(touch hacked) `touch hacked` ; touch hacked & > hacked é\ttab\nline\\"""
DUMP = """
import os, sys
if "SKIP" not in os.environ:
    with open(os.environ["DUMP_TO"], "ab") as file:
        file.write("".join(word + chr(0) for word in sys.argv[1:]).encode("utf-8", "surrogateescape"))
"""
SECRETS = {
    "FAKE_TOKEN": "tok-5f0c2a7e91",
    "AWS_SECRET_ACCESS_KEY": "aws-93b1d4c8e2",
    "DB_PASSWORD": "pw-77aa10f3c4",
    "SOME_API_KEY": "key-0d9e8f7a6b",
}


@pytest.fixture
def node(bench: Bench) -> Bench:
    """A machine with a core for each of two ranks."""
    bench.stub("nproc", "echo 2")
    bench.stub("lscpu", "printf '%s\\n' '0,0,0,0' '1,0,1,0'")
    open_mpi(bench)
    return bench


def refused(node: Bench, told: str, **env: str) -> None:
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", **env)
    assert done.returncode == 2, done.stdout
    assert told in done.stderr
    assert not list(node.folder.rglob("hacked"))


@pytest.mark.parametrize(
    "hosts",
    [
        "-oProxyCommand=touch hacked",
        "a,-oProxyCommand=x:2",
        "a;touch hacked",
        "$(touch hacked)",
        "a b",
        "a\nb",
        "a:0",
        "a:",
        ",",
    ],
)
def test_machines_that_ssh_would_take_for_options(node: Bench, hosts: str) -> None:
    refused(node, "is not a list of hosts", HOSTS=hosts)


@pytest.mark.parametrize("name", ["NP", "OMP_NUM_THREADS"])
def test_numbers_that_bash_would_run(node: Bench, name: str) -> None:
    refused(node, f"{name}=a[$(touch hacked)] is not a whole number", **{"NP": "2", name: "a[$(touch hacked)]"})


@pytest.mark.parametrize("name", ["SLURM_NTASKS", "SLURM_JOB_NUM_NODES", "SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"])
def test_numbers_of_the_batch_system_that_bash_would_run(node: Bench, name: str) -> None:
    node.stub("srun", "exit 1")
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "2", name: "a[$(touch hacked)]"}
    refused(node, f"{name}=a[$(touch hacked)] is not a whole number", **job)


def test_host_files(node: Bench) -> None:
    refused(node, "is not a readable file", HOSTFILE="absent", NP="2")
    names = ["-x", "n=1", HOSTILE.replace("/", "")]
    for name in names:
        file = node.folder / name
        file.write_text("a\nb\n", encoding="utf-8")
        _, command = dry_run(node, "--debug", HOSTFILE=name, NP="4")
        assert command[command.index("--hostfile") + 1] == str(file)
        assert "ppr:2:node:PE=1" in command
    file.write_text("a\n -oProxyCommand=x slots=2\n", encoding="utf-8")
    refused(node, "a host name cannot begin with -", HOSTFILE=str(file), NP="2")


def test_launcher_arguments_are_split_and_nothing_else(node: Bench) -> None:
    given = '--mca a 1\n--mca b $(touch hacked) * "x y"'
    _, command = dry_run(node, "--debug", NP="2", LAUNCHER_ARGS=given)
    at = command.index("--mca")
    assert command[at : at + 10] == ["--mca", "a", "1", "--mca", "b", "$(touch", "hacked)", "*", '"x', 'y"']


def test_settings_that_are_handed_on(node: Bench) -> None:
    given = {
        "CAMELYON_ROOT": HOSTILE,
        "CUDA_VISIBLE_DEVICES": "$(touch hacked)",
        "LD_LIBRARY_PATH": "/a b;touch hacked",
    }
    _, command = dry_run(node, "--debug", NP="2", SCRIPT="-c", **given)
    assert command[command.index("-u") + 1] == "./-c"
    assert not [word for word in command if "hacked" in word]  # Open MPI gets names, not values
    _, command = dry_run(node, "--debug", NP="2", SCRIPT=HOSTILE, I_MPI_PIN_DOMAIN="x")
    assert command[command.index("-u") + 1] == HOSTILE
    node.stub("srun", "exit 1")
    _, command = dry_run(node, "--debug", SLURM_JOB_ID="7", NP="2", WIDEFOV_SRUN_MPI=HOSTILE)
    assert command[1] == f"--mpi={HOSTILE}"
    assert not list(node.folder.rglob("hacked"))


def test_folders_of_the_set_up(node: Bench) -> None:
    folder = node.folder / "it's$(touch${IFS}hacked)é"
    done = node.run(RUN_TRAIN, "--debug", DRY_RUN="1", NP="2", WIDEFOV_VENV=str(folder), WIDEFOV_WHEELS="-x")
    assert done.returncode == 0, done.stderr
    assert not folder.exists()
    done = node.run(ROOT / "setup_env.sh", WIDEFOV_VENV=str(folder), WIDEFOV_PYTHON="-c", WIDEFOV_WHEELS="-x")
    assert done.returncode == 1
    assert "WIDEFOV_PYTHON=-c is not a working Python" in done.stderr
    assert not list(node.folder.rglob("hacked"))


def test_secrets_are_on_no_command_line(node: Bench) -> None:
    for launcher, make in (("mpirun", open_mpi), ("hydra", mpich), ("horovodrun", open_mpi)):
        make(node)
        done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", NP="2", LAUNCHER=launcher, **SECRETS)
        assert done.returncode == 0, done.stderr
        assert not [value for value in SECRETS.values() if value in done.stdout + done.stderr]
        if launcher == "mpirun":
            assert not [name for name in SECRETS if name in done.stdout]
        if launcher == "horovodrun":
            # which would write their values on the ranks' command lines
            assert [name for name in SECRETS if f"-u {name} " not in done.stdout] == []


@pytest.mark.parametrize("launcher", ["none", "mpirun", "horovodrun"])
def test_arguments_reach_ranks_unharmed(tmp_path: Path, launcher: str) -> None:
    """For real: horovodrun builds a line for a shell out of them."""
    (tmp_path / "dump.py").write_text(DUMP, encoding="utf-8")
    given = ["--slide_path", HOSTILE, "", "--log_dir=-x", "*", "~", "a=b"]
    env = {"LAUNCHER": launcher, "SCRIPT": str(tmp_path / "dump.py"), "DUMP_TO": str(tmp_path / "command")}
    done = run_train(*given, cwd=tmp_path, timeout=120, NP="1", **env)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "command").read_text(encoding="utf-8").split("\0")[:-1] == given
    assert not (tmp_path / "hacked").exists()


def test_a_run_with_hostile_names_keeps_no_secret(tmp_path: Path) -> None:
    folder = tmp_path / HOSTILE.replace("/", "")
    folder.mkdir()
    tiny = TinySet(folder)
    command = tiny.arguments("--hard_mining", "--checkpoint_every", "4", num_steps="8")
    done = run_train(*command, cwd=tmp_path, NP="2", SCRIPT=SMALL, **SECRETS)
    assert done.returncode == 0, done.stderr[-3000:]
    assert not list(tmp_path.rglob("hacked"))
    written = [path for path in tiny.log_dir.rglob("*") if path.is_file()]
    assert {"options.json", "metrics.jsonl", "final.keras", "final.npz"} <= {path.name for path in written}
    kept = {str(path): path.read_bytes() for path in written} | {
        "stdout": done.stdout.encode(),
        "stderr": done.stderr.encode(),
    }
    leaked = [(place, name) for place, data in kept.items() for name, text in SECRETS.items() if text.encode() in data]
    assert leaked == []
