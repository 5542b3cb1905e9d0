"""The command that run_train.sh would run: launcher, ranks, threads, pinning, quoting."""

import sys
from pathlib import Path

import pytest

from tests.support.bench import Bench
from tests.support.stub_launchers import RUN_TRAIN, dry_run, intel, mpich, open_mpi, shell_words, without_exports


@pytest.fixture
def node(bench: Bench, allowed_cpu: int) -> Bench:
    """A machine with 2 sockets of 2 cores, 8 hardware threads; a third socket is there but not ours to use."""
    bench.stub("nproc", "echo 8")
    rows = "\n".join(f"{allowed_cpu},{socket},{core}" for socket, core in ((0, 0), (0, 1), (1, 2), (1, 3)))
    bench.stub("lscpu", f"printf '%s\\n' '# CPU,Socket,Core' '{rows}' '99999,2,4'")
    return bench


AGENT = ["-launcher", "ssh", "-launcher-exec", str(RUN_TRAIN.parent / "launch" / "remote.sh")]
KEEPALIVE = {"time": "10", "intvl": "5", "probes": "4"}
WATCHED = [word for name, value in KEEPALIVE.items() for word in ("--mca", f"oob_tcp_keepalive_{name}", value)]
WATCHED += ["--mca", "plm_rsh_agent", AGENT[-1]]
NO_CONTAINERS = ["--mca", "btl_tcp_if_exclude", "127.0.0.0/8,docker0,podman0,cni0,lxcbr0,virbr0"]
TRAIN = ["PY", "-u", str(RUN_TRAIN.parent / "train.py")]


def test_open_mpi_gets_one_rank_per_socket_each_with_its_cores(node: Bench) -> None:
    open_mpi(node)
    settings, command = dry_run(node, "--img_size", "512")
    pinned = ["-map-by", "ppr:2:node:PE=2", "--bind-to", "core"]
    assert without_exports(command) == ["mpirun", "-np", "2", *pinned, *TRAIN, "--img_size", "512"]
    assert settings["OMP_NUM_THREADS"] == "4"
    assert settings["TF_NUM_INTRAOP_THREADS"] == "4"


def test_open_mpi_exports_what_ranks_on_other_machines_need(node: Bench) -> None:
    open_mpi(node)
    given = {"LD_LIBRARY_PATH": "/opt/lib", "HOROVOD_CYCLE_TIME": "2", "CAMELYON_ROOT": "/data"}
    _, command = dry_run(node, "--debug", NP="2", **given)
    exported = {command[at + 1] for at, word in enumerate(command) if word == "-x"}
    always = {"PATH", "OMP_NUM_THREADS", "TF_NUM_INTRAOP_THREADS"}
    assert exported == always | set(given)


def test_more_ranks_than_cores_are_not_pinned(node: Bench) -> None:
    open_mpi(node)
    settings, command = dry_run(node, "--debug", NP="5")
    spread = ["-map-by", "ppr:5:node", "--bind-to", "none", "--oversubscribe"]
    assert without_exports(command) == ["mpirun", "-np", "5", *spread, *TRAIN, "--debug"]
    assert settings["OMP_NUM_THREADS"] == "1"


def test_mpich_and_intel_get_hydra(node: Bench) -> None:
    mpich(node)
    settings, command = dry_run(node, "--debug", NP="4")
    assert command == ["mpiexec.hydra", "-np", "4", "-bind-to", "core:1", *TRAIN, "--debug"]
    assert settings["OMP_NUM_THREADS"] == "2"
    intel(node)
    settings, command = dry_run(node, "--debug", NP="4")
    assert command == ["mpiexec.hydra", "-np", "4", *TRAIN, "--debug"]
    assert settings["I_MPI_PIN_DOMAIN"] == "auto"


def test_hydra_maps_ranks_to_sockets_or_numa_nodes_where_they_fit(node: Bench, allowed_cpu: int) -> None:
    mpich(node)
    _, command = dry_run(node, "--debug", NP="2")
    assert command == ["mpiexec.hydra", "-np", "2", "-bind-to", "socket", "-map-by", "socket", *TRAIN, "--debug"]
    _, command = dry_run(node, "--debug", NP="3")
    assert command[3:5] == ["-bind-to", "core:1"]
    intel(node)
    assert dry_run(node, "--debug", NP="2")[0]["I_MPI_PIN_DOMAIN"] == "socket"
    assert dry_run(node, "--debug", NP="2", I_MPI_PIN_DOMAIN="core")[0]["I_MPI_PIN_DOMAIN"] == "core"
    # the same cores as four NUMA nodes
    rows = "\n".join(f"{allowed_cpu},{core // 2},{core},{core}" for core in range(4))
    node.stub("lscpu", f"printf '%s\\n' '# CPU,Socket,Core,Node' '{rows}' '99999,2,4,4'")
    assert dry_run(node, "--debug", NP="4")[0]["I_MPI_PIN_DOMAIN"] == "numa"
    mpich(node)
    _, command = dry_run(node, "--debug", NP="4")
    assert command[3:7] == ["-bind-to", "numa", "-map-by", "numa"]
    _, command = dry_run(node, "--debug", NP="1", LAUNCHER="hydra")
    assert command[3:5] == ["-bind-to", "core:4"]


def test_a_script_of_ones_own_takes_the_place_of_train_py(node: Bench) -> None:
    mpich(node)
    _, command = dry_run(node, "--debug", NP="4", SCRIPT="mine.py")
    assert command == ["mpiexec.hydra", "-np", "4", "-bind-to", "core:1", "PY", "-u", "mine.py", "--debug"]


@pytest.mark.parametrize(
    ("library", "expected"), [("libmpi.so.40", "mpirun"), ("libmpi.so.12", "mpiexec.hydra")], ids=["openmpi", "mpich"]
)
def test_the_library_horovod_was_linked_with_decides(node: Bench, tmp_path: Path, library: str, expected: str) -> None:
    open_mpi(node)
    node.stub("mpiexec.hydra", "echo 'HYDRA build details:'")
    package = tmp_path / "site" / "horovod"
    (package / "tensorflow").mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "tensorflow" / "mpi_lib.so").write_bytes(b"\x7fELF\x00" + library.encode() + b"\x00")
    _, command = dry_run(node, "--debug", NP="2", PYTHONPATH=str(tmp_path / "site"))
    assert command[0] == expected


def test_several_machines(node: Bench) -> None:
    open_mpi(node)
    settings, command = dry_run(node, "--debug", HOSTS="a:2,b:2,c:2")
    there = [*WATCHED, *NO_CONTAINERS, "-map-by", "ppr:2:node:PE=2", "--bind-to", "core"]
    assert without_exports(command) == ["mpirun", "-np", "6", "--host", "a:2,b:2,c:2", *there, *TRAIN, "--debug"]
    assert settings["OMP_NUM_THREADS"] == "4"
    intel(node)
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2,c:2", LAUNCHER="hydra")
    assert command == ["mpiexec.hydra", "-np", "6", "-hosts", "a,b,c", "-ppn", "2", *AGENT, *TRAIN, "--debug"]
    hostfile = node.folder / "machines"
    hostfile.write_text("# two of them\na\n\nb\n", encoding="utf-8")
    mpich(node)
    _, command = dry_run(node, "--debug", NP="4", HOSTFILE=str(hostfile))
    assert command[:9] == ["mpiexec.hydra", "-np", "4", "-ppn", "2", "-bind-to", "socket", "-map-by", "socket"]
    assert command[9:15] == ["-f", str(hostfile), *AGENT]


def test_the_daemons_of_open_mpi_are_found_elsewhere(node: Bench) -> None:
    open_mpi(node)
    node.stub("orted", "exit 1")
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2")
    assert command[5:7] == ["--prefix", str(node.folder)]
    _, command = dry_run(node, "--debug", NP="2")
    assert "--prefix" not in command
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2", LAUNCHER="horovodrun")
    (given,) = [word for word in command if word.startswith("--mpi-args=")]
    assert given == f"--mpi-args=--prefix {node.folder} {' '.join(WATCHED)}"


def test_the_network_can_be_chosen(node: Bench) -> None:
    chosen = {"HOSTS": "a:2,b:2", "IFACE": "ib0"}
    open_mpi(node)
    _, command = dry_run(node, "--debug", **chosen)
    at = command.index("btl_tcp_if_include")
    assert command[at - 1 : at + 5] == ["--mca", "btl_tcp_if_include", "ib0", "--mca", "oob_tcp_if_include", "ib0"]
    assert "btl_tcp_if_exclude" not in command
    _, command = dry_run(node, "--debug", LAUNCHER="horovodrun", **chosen)
    assert command[command.index("--network-interfaces") + 1] == "ib0"
    mpich(node)
    settings, command = dry_run(node, "--debug", LAUNCHER="hydra", **chosen)
    assert command[command.index("-iface") + 1] == "ib0"
    assert settings["FI_TCP_IFACE"] == "ib0"


def test_a_choice_made_elsewhere_is_left_alone(node: Bench) -> None:
    open_mpi(node)
    source = "mca:btl:tcp:param:btl_tcp_if_include:source:"
    node.stub("ompi_info", f"echo {source}default")
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2")
    assert command[command.index("btl_tcp_if_exclude") + 1] == NO_CONTAINERS[2]
    node.stub("ompi_info", f"echo {source}file:/etc/openmpi-mca-params.conf")
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2")
    assert "btl_tcp_if_exclude" not in command
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2", LAUNCHER_ARGS="--mca btl_tcp_if_exclude eth9")
    assert command.count("btl_tcp_if_exclude") == 1
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2", LAUNCHER_ARGS="--mca plm_rsh_agent rsh")
    assert command.count("plm_rsh_agent") == 1
    mpich(node)
    _, command = dry_run(node, "--debug", HOSTS="a:2,b:2", LAUNCHER="hydra", HYDRA_LAUNCHER="rsh")
    assert "-launcher" not in command


def test_slurm_job_uses_srun_and_its_tasks(node: Bench) -> None:
    open_mpi(node)
    node.stub("srun", "exit 1")
    job = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2", "SLURM_CPUS_ON_NODE": "12"}
    settings, command = dry_run(node, "--debug", **job)
    tasks = ["--export=ALL", "--kill-on-bad-exit=1", "--ntasks=4", "--cpus-per-task=6", "--cpu-bind=cores"]
    assert command == ["srun", "--mpi=pmix", *tasks, *TRAIN, "--debug"]
    assert settings["OMP_NUM_THREADS"] == "6"
    settings, command = dry_run(node, "--debug", SLURM_CPUS_PER_TASK="3", WIDEFOV_SRUN_MPI="pmi2", **job)
    assert command[:2] == ["srun", "--mpi=pmi2"]
    assert command[5] == "--cpus-per-task=3"
    assert settings["OMP_NUM_THREADS"] == "3"


def test_without_srun_a_slurm_job_uses_mpirun(node: Bench) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", SLURM_JOB_ID="7", NP="2")
    assert command[0] == "mpirun"


def test_one_rank_needs_no_launcher(node: Bench) -> None:
    settings, command = dry_run(node, "--debug", NP="1")
    assert command == [*TRAIN, "--debug"]
    assert settings["OMP_NUM_THREADS"] == "8"


def test_a_rank_of_another_launcher_starts_no_more(node: Bench) -> None:
    open_mpi(node)
    settings, command = dry_run(node, "--debug", OMPI_COMM_WORLD_RANK="1", NP="4")
    assert command == [*TRAIN, "--debug"]
    assert "OMP_NUM_THREADS" not in settings


def test_gpus_give_the_ranks(node: Bench) -> None:
    open_mpi(node)
    node.stub("nvidia-smi", "printf 'GPU %d: NVIDIA A100\\n' 0 1 2")
    _, command = dry_run(node, "--debug")
    assert command[:3] == ["mpirun", "-np", "3"]
    _, command = dry_run(node, "--debug", CUDA_VISIBLE_DEVICES="-1")
    assert command[:3] == ["mpirun", "-np", "2"]
    _, command = dry_run(node, "--debug", CUDA_VISIBLE_DEVICES="0,1,2,3")
    assert command[:3] == ["mpirun", "-np", "4"]


def test_every_argument_arrives_unharmed(node: Bench) -> None:
    given = ["--slide_path", "/a b/*", "it's", 'say "hi"', "$(touch hacked)", "a;b", "", "-x=é", "line\nbreak"]
    _, command = dry_run(node, *given, NP="1")
    assert command[3:] == given
    # Not only printed: run for real, down to the program.
    open_mpi(node)
    node.stub("mpirun", "if [[ $1 == --version ]]; then echo 'Open MPI'; else printf '%s\\0' \"$@\"; fi")
    node.stub("python", f'if [[ $2 == "1" || $2 == "0" ]]; then exit 0; fi; exec "{sys.executable}" -S "$@"')
    done = node.run(RUN_TRAIN, *given, NP="2", WIDEFOV_ENV="active")
    assert done.stdout.split("\0")[-len(given) - 1 : -1] == given
    assert not (node.folder / "hacked").exists()


def test_launcher_arguments_are_added(node: Bench) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", NP="2", LAUNCHER_ARGS="--mca btl tcp,self")
    at = command.index("--mca")
    assert command[at : at + 4] == ["--mca", "btl", "tcp,self", "PY"]


def test_horovodrun(node: Bench) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", NP="2", LAUNCHER="horovodrun")
    assert command[:2] == ["PY", "-c"]
    assert command[3:] == ["-np", "2", "--binding-args", "--bind-to core --map-by slot:PE=2", *TRAIN, "--debug"]


@pytest.mark.parametrize(
    ("env", "told"),
    [
        ({"NP": "two"}, "NP=two is not a whole number of 1 or more"),
        ({"NP": "0"}, "NP=0 is not a whole number of 1 or more"),
        ({"NP": "2", "OMP_NUM_THREADS": "x"}, "OMP_NUM_THREADS=x is not a whole number of 1 or more"),
        ({"LAUNCHER": "ssh"}, "LAUNCHER=ssh is unknown; use mpirun, hydra, srun, horovodrun or none"),
        ({"LAUNCHER": "none", "NP": "2"}, "LAUNCHER=none starts one rank, but NP=2"),
    ],
    ids=["word", "zero", "threads", "launcher", "none"],
)
def test_wrong_choices_are_named(node: Bench, env: dict[str, str], told: str) -> None:
    open_mpi(node)
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", **env)
    assert done.returncode == 2
    assert told in done.stderr
    assert done.stdout == ""


def test_dry_run_sets_nothing_up(node: Bench, tmp_path: Path) -> None:
    done = node.run(RUN_TRAIN, "--debug", DRY_RUN="1", NP="2", WIDEFOV_VENV=str(tmp_path / "venv"), WIDEFOV_MPI="mpich")
    assert done.returncode == 0
    assert shell_words(done.stdout)[3] == "mpiexec.hydra"
    assert not (tmp_path / "venv").exists()
    assert not (tmp_path / "venv.log").exists()


@pytest.mark.parametrize("how", [(), ("sh",), ("bash", "--posix")])
def test_the_script_may_be_called_by_a_link_and_by_any_shell(node: Bench, how: tuple[str, ...]) -> None:
    open_mpi(node)
    node.stub("python", f'exec "{sys.executable}" -S "$@"')
    link = node.folder / "go"
    link.symlink_to(RUN_TRAIN)
    done = node.run(*how, link, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", NP="1", POSIXLY_CORRECT="1")
    assert (done.returncode, done.stderr) == (0, "")
    assert shell_words(done.stdout)[-2:] == [TRAIN[-1], "--debug"]


@pytest.mark.parametrize("script", ["run_train.sh", "run_tests.sh", "check.sh", "setup_env.sh", "run_prepro.sh"])
def test_the_scripts_describe_themselves_from_any_folder(bench: Bench, script: str) -> None:
    bench.stub("python", '[[ $1 == - || $1 == -c ]] && exit 0; echo "$@"')
    done = bench.run("sh", RUN_TRAIN.parent / script, "--help", WIDEFOV_ENV="active")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("launcher", "said"),
    [
        (
            "srun",
            "srun is not on PATH, so LAUNCHER=srun cannot start 2 ranks; use a node, or a container, that has SLURM's",
        ),
        (
            "hydra",
            "mpiexec.hydra is not on PATH, so LAUNCHER=hydra cannot start 2 ranks; load the MPI module that Horovod",
        ),
    ],
)
def test_a_launcher_that_is_missing_is_named(node: Bench, launcher: str, said: str) -> None:
    node.stub("python", "exit 0")
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", NP="2", LAUNCHER=launcher)
    assert done.returncode == 2
    assert done.stderr.startswith(f"run_train.sh: {said}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "step",
    [{"PMIX_RANK": "0", "PMIX_NAMESPACE": "x", "SLURM_STEP_NUM_TASKS": "1"}, {"PMI_RANK": "0", "PMI_SIZE": "1"}],
)
def test_a_shell_by_srun_pty_is_no_rank(node: Bench, step: dict[str, str]) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", NP="4", SLURM_PROCID="0", SLURM_NTASKS="4", **step)
    assert command[:3] == ["mpirun", "-np", "4"]
    # Its variables reach no rank.
    node.stub("mpirun", 'if [[ $1 == --version ]]; then echo "mpirun (Open MPI) 4.1.8"; else env; fi')
    node.stub("python", 'if [[ $1 == *supervise.py ]]; then shift 2 && exec "$@"; fi')
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", NP="4", **step)
    assert "OMP_NUM_THREADS=" in done.stdout
    assert "PMI" not in done.stdout


def test_a_rank_of_a_step_of_several_tasks_stays_one(node: Bench) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", NP="4", PMIX_RANK="0", SLURM_STEP_NUM_TASKS="4")
    assert command == [*TRAIN, "--debug"]


def test_one_rank_by_mpirun_cannot_be_more(node: Bench) -> None:
    node.stub("python", "exit 0")
    env = {"OMPI_COMM_WORLD_RANK": "0", "OMPI_COMM_WORLD_SIZE": "1"}
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", NP="4", DRY_RUN="1", **env)
    assert done.returncode == 2
    assert "mpirun started this script as its only rank, but NP=4 or HOSTS ask for more; omit mpirun" in done.stderr


def test_without_a_home_the_scripts_start(node: Bench) -> None:
    open_mpi(node)
    node.stub("python", f'exec "{sys.executable}" -S "$@"')
    del node.env["HOME"]
    done = node.run(RUN_TRAIN, "--debug", WIDEFOV_ENV="active", DRY_RUN="1", NP="1")
    assert (done.returncode, done.stderr) == (0, "")


def test_horovodrun_keeps_nothing_in_a_home_that_cannot_be_written(node: Bench) -> None:
    open_mpi(node)
    _, command = dry_run(node, "--debug", NP="2", LAUNCHER="horovodrun", HOME="/proc/none")
    assert "--disable-cache" in command
    _, command = dry_run(node, "--debug", NP="2", LAUNCHER="horovodrun")
    assert "--disable-cache" not in command
