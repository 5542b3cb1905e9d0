"""A program for tests of searches: no network, a score that follows from its options, checkpoints like train.py's.

--x, --y      miou is 0.01 images - (x - 0.3)^2 - (y - 1)^2
--n N         length, images
--pause S     for each of them
--crash N     ends with code 1 once, at this image
--code N      ends with this code at once
"""

import argparse
import json
import signal
import sys
import time
from pathlib import Path


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(prog="toy_program.py")
    for name, default in (("x", 0.0), ("y", 0.0), ("pause", 0.0), ("n", 5.0), ("crash", -1.0), ("code", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--log_dir", type=Path)
    parser.add_argument("--resume")
    parser.add_argument("--kind")
    opts = parser.parse_args()
    if opts.code:
        print("toy_program.py: error: as requested")
        return int(opts.code)
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda received, _: asked.append(received))
    opts.log_dir.mkdir(parents=True, exist_ok=True)
    checkpoint, metrics, crashed = (opts.log_dir / name for name in ("checkpoint", "metrics.jsonl", "crashed"))
    start = int(checkpoint.read_text()) if checkpoint.exists() else 0
    rows = metrics.read_text().splitlines()[:start] if metrics.exists() else []
    metrics.write_text("".join(f"{row}\n" for row in rows))
    for images in range(start + 1, int(opts.n) + 1):
        time.sleep(opts.pause)
        row = {"kind": "val", "images": images, "miou": 0.01 * images - (opts.x - 0.3) ** 2 - (opts.y - 1) ** 2}
        with metrics.open("a") as file:
            file.write(json.dumps(row) + "\n")
        checkpoint.write_text(str(images))
        if images == opts.crash and not crashed.exists():
            crashed.touch()
            return 1
        if asked and images < opts.n:
            return 75
    return 0


if __name__ == "__main__":
    sys.exit(main())
