"""Programs that stand in for real ones, so that the scripts can be watched without a cluster or a network."""

import shutil
import stat
import subprocess
from pathlib import Path

# What the scripts need of a bare Linux; everything else that is on PATH in a test is a stub.
TOOLS = "awk bash cat chmod cksum cp cut date df dirname basename env flock getconf grep head"
TOOLS += " id ln ls mkdir mktemp mv readlink rm sed sh sleep sort tail touch tr uname wc"


class Bench:
    """A folder of stub programs and a way to run a script that sees only those.

    Args:
        folder: an empty folder; `folder/bin` becomes the PATH, `folder/home` the home.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir(parents=True)
        (folder / "home").mkdir()
        for tool in TOOLS.split():
            self.link(tool)
        self.env = {"PATH": str(self.bin), "HOME": str(folder / "home"), "LANG": "C.UTF-8"}

    def stub(self, name: str, text: str) -> Path:
        """Writes the bash program `name`, first (and only) of its name on PATH."""
        path = self.bin / name
        path.unlink(missing_ok=True)
        path.write_text(f"#!{shutil.which('bash')}\n{text}\n", encoding="utf-8")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    def link(self, tool: str) -> None:
        """Puts a real program on PATH."""
        found = shutil.which(tool)
        assert found is not None, f"{tool} is missing on this machine"
        (self.bin / tool).symlink_to(found)

    def run(self, *command: str | Path, cwd: Path | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        """Runs a command with the stubs; `env` is added to the environment."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.folder,
            env=self.env | env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            start_new_session=True,
        )
