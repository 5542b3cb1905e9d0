"""Whether Open MPI may copy between processes is found out by trying."""

import subprocess
import sys
from pathlib import Path

from tests.support.paths import ROOT

SCRIPT = [sys.executable, str(ROOT / "launch" / "single_copy.py")]
CONTAINER = [sys.executable, str(ROOT / "tests" / "support" / "seccomp.py")]


def printed(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_refused_in_a_container_and_not_here() -> None:
    assert printed(*SCRIPT) == ""
    assert printed(*CONTAINER, *SCRIPT) == "refused\n"


def test_open_mpi_then_copies_through_shared_memory(tmp_path: Path) -> None:
    """In the function that writes mpirun's command line, with what run_train.sh has settled before."""
    script = tmp_path / "command.sh"
    script.write_text(
        f"""set -euo pipefail
root={ROOT} wf_python={sys.executable} ranks=2 ranks_per_host=2 cores_per_rank=1 settings=()
. "$root/launch/launchers.sh"
mpirun_command
printf '%s\\n' "${{settings[@]-}}"
""",
        encoding="utf-8",
    )
    setting = "OMPI_MCA_btl_vader_single_copy_mechanism=none"
    assert setting not in printed("bash", str(script)).split()
    assert setting in printed(*CONTAINER, "bash", str(script)).split()
