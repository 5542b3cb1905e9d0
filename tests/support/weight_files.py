"""Weight files as other programs leave them."""

from pathlib import Path

import h5py
import numpy as np


def keras2_file(path: Path, layers: dict[str, dict[str, np.ndarray]], whole_model: bool = False) -> None:
    """Writes the layout of Keras 2: names as bytes, arrays at LAYER/LAYER/NAME:0."""
    with h5py.File(path, "w") as file:
        root = file.create_group("model_weights") if whole_model else file
        root.attrs["layer_names"] = [name.encode() for name in layers]
        for name, arrays in layers.items():
            group = root.create_group(name)
            group.attrs["weight_names"] = [weight.encode() for weight in arrays]
            for weight, array in arrays.items():
                group[weight] = array
