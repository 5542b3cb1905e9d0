"""What launchers (mpirun, hydra, srun, horovodrun) tell their processes by environment variables.

Known before any library is loaded; loads none itself. All that depends on a launcher's variables stands here.
"""

from __future__ import annotations

import os
import sys

# Variables that hold the number of processes of this job. SLURM's count is trusted only inside a step that speaks
# PMI(x): in a bare batch script SLURM_NTASKS is set although the script is one process.
SIZE_VARIABLES = ("HOROVOD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS")
# Set by Open MPI, by MPICH's and Intel's hydra, and by srun with PMIx.
MPI_RANK_VARIABLES = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "PMIX_RANK")
RANK_VARIABLES = ("HOROVOD_RANK", *MPI_RANK_VARIABLES, "SLURM_PROCID")


def launched_size() -> int:
    """Number of processes that a launcher started; 1 without a launcher."""
    for name in SIZE_VARIABLES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    if "PMIX_RANK" in os.environ or os.environ.get("SLURM_MPI_TYPE", "").startswith("pmi"):
        return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return 1


def launched_rank() -> int:
    """Rank that the launcher gave this process; 0 without a launcher."""
    for name in RANK_VARIABLES:
        if os.environ.get(name, "").isdigit() and launched_size() > 1:
            return int(os.environ[name])
    return 0


def launched_by_mpi() -> bool:
    """Whether an MPI launcher started this process, be it the only one."""
    return any(name in os.environ for name in MPI_RANK_VARIABLES)


def is_first_rank() -> bool:
    """Whether this process may write to the terminal: one of a job does."""
    # A PMIx launcher may tell the rank, but no size that we know of.
    return launched_rank() == 0 and all(os.environ.get(name, "0") == "0" for name in MPI_RANK_VARIABLES)


def is_elastic() -> bool:
    """Whether a launcher started this process as one of an elastic job (`horovodrun --min-np ...`)."""
    return os.environ.get("HOROVOD_ELASTIC") == "1"


def ends_with_first_failure() -> bool:
    """Whether the launcher ends all processes as soon as one exits with an error, before they are connected.

    Open MPI's mpirun and horovodrun do; hydra, srun without --kill-on-bad-exit and elastic jobs wait for the others.
    """
    return bool({"OMPI_COMM_WORLD_RANK", "HOROVOD_RANK"} & set(os.environ)) and not is_elastic()


def supervised() -> bool:
    """Whether run_train.sh started these ranks by a launcher: launch/supervise.py reads what they print."""
    return bool(os.environ.get("WIDEFOV_MARK"))


def tell_supervisor(word: str) -> None:
    """Tell launch/supervise.py that the ranks are `listening` for requests, or have `left` after one; rank 0 alone."""
    if supervised() and sys.stdout is not None:
        sys.stdout.write(f"{os.environ['WIDEFOV_MARK']} {word}\n")
        sys.stdout.flush()


def program() -> str:
    """Name of the script that runs, for messages; of `python -m PACKAGE` that of the package."""
    folder, name = os.path.split(sys.argv[0])
    return (os.path.basename(folder) if name == "__main__.py" else name) or "train.py"
