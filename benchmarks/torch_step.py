"""A training step of ResNet-34 on one large image: a stream of ours, PyTorch, and PyTorch with checkpoints.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch timm      # PyTorch is no requirement
    python -m benchmarks.torch_step --torch /tmp/torch/bin/python --size 2048 --tiles 1024,256 --rounds 3 [--json PATH]

Arms run one after the other, a process for each, and again for every round, so that what else the machine does falls on
all. A process does a first step and a timed one: forward, global maximum, linear layer, and the gradients of all
variables, with frozen statistics, float32. timm's network is in channels-last order, which is its fastest on CPU;
checkpoints are timm's own (`set_grad_checkpointing`). Peak memory is the process's.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

ARMS = ("torch", "torch, checkpoints")


def torch_step(size: int, checkpoints: bool) -> dict[str, Any]:
    """Seconds and peak memory of PyTorch, in this process."""
    import timm
    import torch

    torch.manual_seed(0)
    network = timm.create_model("resnet34", pretrained=False, num_classes=2, global_pool="max")
    network = network.eval().to(memory_format=torch.channels_last)
    network.set_grad_checkpointing(checkpoints)
    image = torch.rand(1, 3, size, size).to(memory_format=torch.channels_last)
    taken = []
    for _ in range(2):
        wall, cpu = time.perf_counter(), time.process_time()
        network.zero_grad()
        (network(image) ** 2).sum().backward()
        taken.append((time.perf_counter() - wall, time.process_time() - cpu))
    peak = re.findall(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))[0]
    versions = {"torch": torch.__version__, "timm": timm.__version__, "threads": torch.get_num_threads()}
    return {"wall_s": taken[1][0], "cpu_s": taken[1][1], "peak_bytes": int(peak) * 1024, "versions": versions}


def ours(size: int, tiles: str) -> dict[str, Any]:
    """The same of a stream, in a process of `benchmarks.streaming`."""
    command = [sys.executable, "-m", "benchmarks.streaming", "--size", str(size), "--arms", tiles, "--steps", "1"]
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"torch_step_{os.getpid()}.json"
    subprocess.run([*command, "--json", str(path)], check=True, capture_output=True)
    (row,) = json.loads(path.read_text(encoding="utf-8"))["arms"]
    path.unlink()
    return {"wall_s": row["wall_s"][0], "cpu_s": row["cpu_s"][0], "peak_bytes": row["peak_bytes"]}


def main() -> None:
    """Print the table and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--torch", default=sys.executable, help="Python with torch and timm")
    parser.add_argument("--size", type=int, default=2048, help="rows and columns of the image, px")
    parser.add_argument("--tiles", default="1024,256", help="an arm of benchmarks.streaming")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--worker", choices=ARMS, help=argparse.SUPPRESS)
    opts = parser.parse_args()
    if opts.worker:
        print(json.dumps(torch_step(opts.size, opts.worker == ARMS[1])))
        return
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(opts.rounds):
        for arm in (*ARMS, opts.tiles):
            if arm in ARMS:
                command = [opts.torch, __file__, "--size", str(opts.size), "--worker", arm]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                row = json.loads(done.stdout.splitlines()[-1])
            else:
                row = ours(opts.size, arm)
            found.setdefault(arm, []).append(row)
            print(f"{arm:20} {row['wall_s']:7.1f} s {row['cpu_s']:7.1f} s of CPU {row['peak_bytes'] / 2**30:6.2f} GiB",
                  flush=True)  # fmt: skip
    for arm, rows in found.items():
        wall, cpu, peak = (median(row[key] for row in rows) for key in ("wall_s", "cpu_s", "peak_bytes"))
        print(f"median {arm:20} {wall:7.1f} s {cpu:7.1f} s of CPU {peak / 2**30:6.2f} GiB")
    if opts.json:
        from benchmarks import report

        report.write(opts.json, {"network": "resnet34", "size_px": opts.size, "arms": found})


if __name__ == "__main__":
    main()
