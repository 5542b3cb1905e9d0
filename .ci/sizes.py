"""Files are read in one sitting, functions on one screen: fewer than 400 and 60 lines.

python .ci/sizes.py [FILE...]    these files; every tracked one without
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE_LINES, FUNCTION_LINES = 400, 60


def faults(name: str, text: str) -> Iterator[str]:
    """What is too long in one file."""
    lines = len(text.splitlines())
    if lines >= FILE_LINES:
        yield f"{name}: {lines} lines; fewer than {FILE_LINES} are allowed"
    if not name.endswith(".py"):
        return
    for node in ast.walk(ast.parse(text, name)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            body = [n for n in node.body if not (isinstance(n, ast.Expr) and isinstance(n.value, ast.Constant))]
            lines = (node.end_lineno or 0) - (body[0].lineno if body else node.lineno) + 1
            if lines >= FUNCTION_LINES:
                yield f"{name}:{node.lineno}: {node.name} has {lines} lines; fewer than {FUNCTION_LINES} are allowed"


def main(names: list[str]) -> int:
    """Entry point; 1 when something is too long."""
    if not names:
        listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
        names = [name for name in listed.stdout.split("\0") if name]
    found: list[str] = []
    for path in [ROOT / name for name in names]:
        if path.suffix in (".py", ".sh") and path.is_file():
            found += faults(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8"))
    print("\n".join(found), end="\n" if found else "")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
