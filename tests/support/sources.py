"""The program's own files."""

import subprocess

from tests.support.paths import ROOT


def our_files() -> list[str]:
    """Every tracked file, with `/`; every one outside hidden folders and runs/ where git does not answer."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode or not names:
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*"))
        hidden = (path for path in every if not any(part.startswith(".") or part == "runs" for part in path.parts[:-1]))
        names = [path.as_posix() for path in hidden]
    return [name for name in names if (ROOT / name).is_file()]


def our_sources() -> dict[str, str]:
    """Text of every Python file of `our_files`."""
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in our_files() if name.endswith(".py")}
