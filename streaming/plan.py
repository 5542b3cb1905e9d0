"""Tiles and segments of a streamed ResNet for a given memory, and time and memory of a training step.

python -m streaming.plan --model resnet34 --size 8192 --memory 6
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from options.choices import RESNETS


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m streaming.plan",
        description=__doc__.split("\n\n")[0],
    )
    parser.add_argument("--model", required=True, choices=RESNETS, help="network")
    parser.add_argument("--size", type=int, nargs="+", required=True, metavar="PX", help="side, or rows and columns")
    parser.add_argument("--memory", type=float, required=True, metavar="GIB", help="of the whole process")
    parser.add_argument("--cut", metavar="LAYER", help="layer of the late map; default: the last block")
    parser.add_argument("--no_time", action="store_true", help="do not measure how fast this machine is")
    given = parser.parse_args(arguments)
    from models import resnet
    from streaming.planner import forecast, plan, resident_bytes
    from streaming.stream import Streamed

    blocks = resnet.VARIANTS[given.model].blocks
    ends = [f"layer{stage}_{count - 1}" for stage, count in enumerate(blocks, start=1)]
    hw = (given.size[0], given.size[-1])
    cut = given.cut or ends[3]
    network = resnet.build(given.model, 1)
    try:
        keep = [names for names in ((), (ends[1],), (ends[1], ends[2])) if all(name < cut for name in names)]
        best = plan(network, hw, int(given.memory * 2**30) - resident_bytes(), cut, keep)
        stream = Streamed(network, cut, best.tile, best.segments, spare=best.spare)
        text = str(best) if given.no_time else str(forecast(stream, hw))
    except ValueError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(f"{text}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
