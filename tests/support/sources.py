"""The program's own files."""

import subprocess

from tests.support.paths import ROOT


def our_sources() -> dict[str, str]:
    """Text of every tracked Python file; of every one outside hidden folders where git does not answer."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--", "*.py"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    names = [name for name in listed.stdout.split("\0") if name]
    if listed.returncode or not names:
        every = (path.relative_to(ROOT) for path in ROOT.rglob("*.py"))
        names = [path.as_posix() for path in every if not any(part.startswith(".") for part in path.parts)]
    return {name: (ROOT / name).read_text(encoding="utf-8") for name in names if (ROOT / name).is_file()}
