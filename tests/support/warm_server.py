"""A Python that has TensorFlow and the programs imported and forks for each run: started by warm.py.

Reads requests, a line of JSON each (script, argv, cwd, env, stdout, stderr), and answers each by two lines: the number
of the process that runs the script, then its status as of os.waitpid.
"""

import json
import os
import runpy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

# As train.py does before TensorFlow is imported, which here comes first.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["CUDA_VISIBLE_DEVICES"] = "-1"

import predict  # noqa: F401
import train  # noqa: F401
from parallel import devices  # noqa: F401  # loads TensorFlow


def become(request: dict) -> None:
    """Run the script in this process, as `python SCRIPT ARGUMENT...` would."""
    null = os.open(os.devnull, os.O_RDONLY)
    outputs = [os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in ("stdout", "stderr")]
    for number, source in enumerate((null, *outputs)):
        os.dup2(source, number)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.argv = [request["script"], *request["argv"]]
    sys.path[0] = str(Path(request["script"]).parent)
    sys.path.insert(1, str(Path(__file__).parents[2]))
    runpy.run_path(request["script"], run_name="__main__")


def serve() -> None:
    """One run after the other; returns in the child."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            become(json.loads(line))
            return
        print(child, flush=True)
        print(os.waitpid(child, 0)[1], flush=True)


if __name__ == "__main__":
    serve()
