"""Compares `models.resnet` with torchvision's and timm's networks, in two steps, since PyTorch is no requirement.

    python -m venv /tmp/torch && /tmp/torch/bin/pip install torch torchvision timm safetensors
    /tmp/torch/bin/python benchmarks/torch_resnet.py write /tmp/weights      # random weights in every format, logits
    python -m benchmarks.torch_resnet compare /tmp/weights [--json PATH]     # the same files through load_weights

Weights follow from their names, and the images from a seed, so that the logits can be repeated
(`tests/unit/models/test_resnet.py` has some).
"""

import argparse
import json
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("resnet18", "resnet34", "resnet50")
SIZES = ((65, 94), (224, 224))
CLASSES = 7


def random_weight(name: str, shape: Sequence[int]) -> Any:
    """float32 numbers that follow from a tensor's name: activations keep their scale from layer to layer."""
    draw = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(tuple(shape))
    if name.endswith("running_var"):
        return (0.5 + np.abs(draw)).astype(np.float32)
    if len(shape) == 1:
        return (0.1 * draw + (0.8 if name.endswith("weight") else 0)).astype(np.float32)
    return (draw / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


def random_image(size: Sequence[int]) -> Any:
    """RGB in [-1, 1], (2, H, W, 3), float32."""
    return np.random.default_rng(5).uniform(-1, 1, (2, *size, 3)).astype(np.float32)


def write(folder: Path) -> None:
    """Weights in every format and logits, by PyTorch."""
    import safetensors.torch
    import timm
    import torch
    import torchvision

    folder.mkdir(parents=True, exist_ok=True)
    mean, std = (torch.tensor(v).reshape(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for name in NAMES:
        network = getattr(torchvision.models, name)(num_classes=CLASSES)
        state = network.state_dict()
        state = {
            key: torch.from_numpy(random_weight(key, value.shape)) if value.is_floating_point() else value
            for key, value in state.items()
        }
        network.load_state_dict(state)
        twin = timm.create_model(name, pretrained=False, num_classes=CLASSES)
        twin.load_state_dict(state)
        torch.save(state, folder / f"{name}.pth")
        torch.save({"state_dict": state, "epoch": 3}, folder / f"{name}_old.pth", _use_new_zipfile_serialization=False)
        safetensors.torch.save_file(state, folder / f"{name}.safetensors")
        for size in SIZES:
            image = torch.from_numpy(random_image(size).transpose(0, 3, 1, 2).copy())
            standardized = ((image + 1) / 2 - mean) / std
            with torch.no_grad():
                logits = network.eval()(standardized).numpy()
                other = twin.eval()(standardized).numpy()
            assert np.abs(logits - other).max() < 1e-4 * np.abs(logits).max()
            np.save(folder / f"{name}_{size[0]}x{size[1]}.npy", logits)
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    (folder / "versions.json").write_text(json.dumps(versions))


def compare(folder: Path) -> list[dict[str, Any]]:
    """Largest difference of logits, relative to the largest logit, per network, format and size."""
    from models import resnet
    from models.weights import load_weights

    rows = []
    for name in NAMES:
        for suffix in (".pth", "_old.pth", ".safetensors"):
            network = resnet.build(name, CLASSES, "average")
            report = load_weights(network, folder / f"{name}{suffix}")
            for size in SIZES:
                theirs = np.load(folder / f"{name}_{size[0]}x{size[1]}.npy")
                ours = np.asarray(network(random_image(size), training=False))
                rows.append(
                    {
                        "network": name,
                        "file": f"{name}{suffix}",
                        "layers": len(report.loaded),
                        "skipped": len(report.skipped),
                        "px": f"{size[0]} x {size[1]}",
                        "difference": float(np.abs(ours - theirs).max() / np.abs(theirs).max()),
                    }
                )
    return rows


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("write", "compare"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.action == "write":
        write(given.folder)
        return
    rows = compare(given.folder)
    print(f"{'file':24} {'layers':>6} {'skipped':>7} {'px':>10} {'difference':>10}")
    for row in rows:
        print(f"{row['file']:24} {row['layers']:6} {row['skipped']:7} {row['px']:>10} {row['difference']:10.1e}")
    if given.json:
        given.json.write_text(
            json.dumps({"versions": json.loads((given.folder / "versions.json").read_text()), "rows": rows})
        )
    sys.exit(any(row["difference"] > 1e-4 or row["skipped"] for row in rows))


if __name__ == "__main__":
    main()
