"""python -m tests.support.help_of COMMAND...: prints what `--help` of each gives, as JSON, all in one process.

A COMMAND is a file or, without `.py`, a module as after `python -m`. One process, because each would load NumPy and
OpenCV again; so this takes two seconds in place of twenty.
"""

import contextlib
import io
import json
import runpy
import sys
from pathlib import Path


def help_of(command: str) -> dict[str, object]:
    """Runs one command with `--help`.

    Args:
        command: a file below the working directory, or a module.

    Returns:
        `code`: exit code; `text`: standard output; `errors`: standard error; `heavy`: libraries loaded by now that take
        seconds.
    """
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    is_file = command.endswith(".py")
    path = command if is_file else command.replace(".", "/") + ".py"
    sys.argv = [path if Path(path).is_file() else command.replace(".", "/") + "/__main__.py", "--help"]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            if is_file:
                runpy.run_path(path, run_name="__main__")
            else:
                runpy.run_module(command, run_name="__main__", alter_sys=True)
        except SystemExit as left:
            code = 0 if left.code is None else left.code
    heavy = sorted({"tensorflow", "keras", "horovod"} & set(sys.modules))
    return {"code": code, "text": out.getvalue(), "errors": err.getvalue(), "heavy": heavy}


if __name__ == "__main__":
    found = {command: help_of(command) for command in sys.argv[1:]}
    print(json.dumps(found))
