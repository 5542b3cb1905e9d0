"""Checkpoints of EfficientDet's authors: which of their variables each of our layers takes.

Published at https://github.com/google/automl/tree/master/efficientdet as TensorFlow checkpoints: PREFIX.index and
PREFIX.data-00000-of-00001, with variables by name. Read as plain arrays by TensorFlow's reader; no graph is built from
the file.

What has a counterpart, decided node by node:

- The backbone, layer by layer, and the convolution to level 6.
- Their BiFPN has levels 3 to 7, ours 1 to 7. Their node `fnodeI` and our node of the same level and direction have the
  same inputs in the same order, hence the same fusion weights, and the same convolution, batch norm and lateral
  convolutions (of the first cell). Level 3 has one node there, two here: theirs fuses (level 3, level 4 from above),
  which is our top-down node. In the first cell all our top-down nodes down to level 3 then compute what theirs do.
- Our bottom-up node of level 4 takes its third input from our bottom-up node of level 3 where theirs takes it from the
  one node of level 3. It is the same role, so it has their weights, but that input starts untrained: the bottom-up
  outputs are a start to train from, not the detector's features.
- Nothing there corresponds to levels 1 and 2, to our bottom-up node of level 3, and to the head; nothing here to
  `class_net`, `box_net` and to cells after our last (D4 has 7, we have 3).

Networks of SURF's public trainer have the same names, but a BiFPN over levels 1 to 7: 12 nodes in
a cell instead of 8, so `fnodeI` is another node. How many nodes the first cell has tells which it is. There every
node, and the head (`segmentation_head`), has its counterpart here. Its Keras files (`.h5`) name the same variables.

The evaluated weights are moving averages, kept next to each variable under `ExponentialMovingAverage`: they are taken
where there are any.
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tensorflow as tf

from models import efficientdet, efficientnet

AVERAGE = "/ExponentialMovingAverage"

# Variables of a layer, in the order of Keras' `layer.weights`.
CONV = ("kernel",)
CONV_BIAS = ("kernel", "bias")
DEPTHWISE = ("depthwise_kernel",)
SEPARABLE = ("depthwise_kernel", "pointwise_kernel", "bias")
NORM = ("gamma", "beta", "moving_mean", "moving_variance")

# Our layer -> their scope and its variables. Below efficientnet-bN/:
STEM = (("stem_conv", "stem/conv2d", CONV), ("stem_bn", "stem/tpu_batch_normalization", NORM))
# Below efficientnet-bN/blocks_I/. Their names are numbered in the order of use, so they shift where there is no
# expansion.
SQUEEZE_EXCITE = (("se_reduce", "se/conv2d", CONV_BIAS), ("se_expand", "se/conv2d_1", CONV_BIAS))
BLOCK = (
    ("expand_conv", "conv2d", CONV),
    ("expand_bn", "tpu_batch_normalization", NORM),
    ("dwconv", "depthwise_conv2d", DEPTHWISE),
    ("bn", "tpu_batch_normalization_1", NORM),
    *SQUEEZE_EXCITE,
    ("project_conv", "conv2d_1", CONV),
    ("project_bn", "tpu_batch_normalization_2", NORM),
)
BLOCK_WITHOUT_EXPANSION = (
    ("dwconv", "depthwise_conv2d", DEPTHWISE),
    ("bn", "tpu_batch_normalization", NORM),
    *SQUEEZE_EXCITE,
    ("project_conv", "conv2d", CONV),
    ("project_bn", "tpu_batch_normalization_1", NORM),
)
# Below resample_p6/, and below a node's resample_0_LEVEL_COUNT/.
RESAMPLE = (("conv", "conv2d", CONV_BIAS), ("bn", "bn", NORM))
# Below a node's op_after_combineCOUNT/.
COMBINED = (("conv", "conv", SEPARABLE), ("bn", "bn", NORM))
DETECTOR_LEVEL = 3  # the first level of the detector's BiFPN
# Of the segmentation head: a convolution and a batch norm for each step, and the convolution to classes. Keras numbers
# layers of a kind, the first of a process without a number.
HEAD_CONV = re.compile(r"(?:^|.*/)segmentation_head(?:_\d+)?/conv2d_transpose(?:_(\d+))?$")
HEAD_NORM = re.compile(r"(?:^|.*/)segmentation_head(?:_\d+)?/bn(?:_(\d+))?$")

# Our layer -> for each of its arrays, the variables it is made of: one, or several scalars.
Table = dict[str, list[tuple[str, ...]]]


@dataclass(frozen=True)
class StoredArray:
    """An array of a checkpoint, read only when its values are asked for, as of an h5py dataset."""

    values_of: Callable[[str], npt.NDArray[np.generic]]
    variables: tuple[str, ...]
    shape: tuple[int, ...]

    def __getitem__(self, key: tuple[()]) -> npt.NDArray[np.generic]:
        """Returns the whole array, `stored[()]`."""
        parts = [np.asarray(_asked(self.values_of, variable)) for variable in self.variables]
        whole: npt.NDArray[np.generic] = np.concatenate([np.ravel(part) for part in parts]).reshape(self.shape)
        return whole[key]


def nodes(first_level: int) -> list[tuple[str, int]]:
    """Returns our node and the number of its inputs for each `fnodeI` of a BiFPN that starts at a level, by I."""
    down = [(f"td{level}", 2) for level in range(efficientdet.MAX_LEVEL - 1, first_level - 1, -1)]
    up = [(f"bu{level}", 3) for level in range(first_level + 1, efficientdet.MAX_LEVEL)]
    return [*down, *up, (f"bu{efficientdet.MAX_LEVEL}", 2)]


def first_level(names: Collection[str]) -> int:
    """Returns the level at which the BiFPN of a checkpoint starts, from the number of nodes in its first cell."""
    found = {match[1] for name in names if (match := re.match(r"fpn_cells/cell_0/fnode(\d+)/", name))}
    return max(efficientdet.MIN_LEVEL, efficientdet.MAX_LEVEL - len(found) // 2) if found else DETECTOR_LEVEL


def table(model_name: str, first_level: int = DETECTOR_LEVEL) -> Table:
    """Returns what each layer of a network takes, but for the head; empty for networks other than EfficientDet.

    Args:
        model_name: Name of the network.
        first_level: Level at which the checkpoint's BiFPN starts.
    """
    if model_name not in efficientdet.VARIANTS:
        return {}
    backbone = efficientdet.VARIANTS[model_name].backbone
    scope = f"efficientnet-{backbone}"
    found = _layers("", scope, STEM)
    for index, block in enumerate(efficientnet.blocks(backbone)):
        rows = BLOCK if block.stage.expand_ratio != 1 else BLOCK_WITHOUT_EXPANSION
        found |= _layers(block.prefix, f"{scope}/blocks_{index}", rows)
    found |= _layers("resample_p6_", "resample_p6", RESAMPLE)
    for cell in range(efficientdet.CELLS):
        for index, (node, inputs) in enumerate(nodes(first_level)):
            prefix, scope = f"fpn_cell{cell}_{node}_", f"fpn_cells/cell_{cell}/fnode{index}"
            # Their nodes and resamplings carry the number of feature maps made before them in the cell.
            count = efficientdet.MAX_LEVEL - first_level + 1 + index
            found[f"{prefix}fuse"] = [tuple(f"{scope}/WSM{f'_{i}' if i else ''}" for i in range(inputs))]
            found |= _layers(prefix, f"{scope}/op_after_combine{count}", COMBINED)
            level = int(node[-1])
            if cell == 0 and level <= efficientdet.BACKBONE_LEVEL:
                found |= _layers(f"{prefix}lateral_", f"{scope}/resample_0_{level - first_level}_{count}", RESAMPLE)
    return found


def head_table(names: Collection[str]) -> Table:
    """Returns what our head's layers take from a `segmentation_head`; empty where the file has none like ours.

    Its six steps are all named alike: in order of their numbers they climb from level 6 to level 1. Files in which the
    batch norms share one name have no order, and these stay out.
    """
    scopes = {name.rsplit("/", 1)[0] for name in names}
    convs, norms = (_numbered(scopes, kind) for kind in (HEAD_CONV, HEAD_NORM))
    steps = [f"head_up{level}" for level in range(efficientdet.MAX_LEVEL - 1, efficientdet.MIN_LEVEL - 1, -1)]
    found: Table = {}
    if len(convs) == len(steps) + 1:
        found |= {f"{step}_conv": [(f"{scope}/kernel",)] for step, scope in zip(steps, convs, strict=False)}
        found["logits"] = [(f"{convs[-1]}/{variable}",) for variable in CONV_BIAS]
    if len(norms) == len(steps):
        for step, scope in zip(steps, norms, strict=True):
            found[f"{step}_bn"] = [(f"{scope}/{variable}",) for variable in NORM]
    return found


def _numbered(scopes: Collection[str], kind: re.Pattern[str]) -> list[str]:
    """Returns the scopes of a kind by their numbers."""
    numbers = {scope: int(match[1] or 0) for scope in scopes if (match := kind.match(scope))}
    return sorted(numbers, key=lambda scope: numbers[scope])


def _layers(prefix: str, scope: str, rows: tuple[tuple[str, str, tuple[str, ...]], ...]) -> Table:
    return {
        f"{prefix}{layer}": [(f"{scope}/{theirs}/{variable}",) for variable in variables]
        for layer, theirs, variables in rows
    }


def index_file(path: Path) -> Path | None:
    """Returns PREFIX.index of the checkpoint that a path means (PREFIX, or any of its files); None if there is none."""
    prefix = re.sub(r"\.(index|meta|data-\d{5}-of-\d{5})$", "", path.name)
    index = path.with_name(f"{prefix}.index")
    return index if index.is_file() else None


def folder_checkpoints(folder: Path) -> list[Path]:
    """Returns the `.index` files of a folder: only the newest if the trainer's file `checkpoint` names it."""
    state = folder / "checkpoint"
    if state.is_file():
        line = re.search(rb'^model_checkpoint_path: "([^"\n]+)"', state.read_bytes(), re.MULTILINE)
        # Often a path on the machine that trained it: only the name still holds.
        newest = line and index_file(folder / Path(line[1].decode("utf-8", "replace")).name)
        if newest:
            return [newest]
    return sorted(folder.glob("*.index"))


@dataclass(frozen=True)
class Variable:
    """A variable of a file.

    Attributes:
        shape: Its sides.
        values_of: Reads the variable of a name.
    """

    shape: tuple[int, ...]
    values_of: Callable[[str], npt.NDArray[np.generic]]


def read(index: Path, model_name: str) -> tuple[dict[str, list[StoredArray]], list[tuple[str, str]]]:
    """Opens a checkpoint as our layers.

    Args:
        index: PREFIX.index.
        model_name: Name of the network.

    Returns:
        Layer -> its arrays, as far as the checkpoint has them; and (variables, reason) for all others.

    Raises:
        OSError: The index is damaged. A damaged data file shows when an array is read.
    """
    reader = _asked(tf.train.load_checkpoint, str(index)[: -len(".index")])
    shapes, types = reader.get_variable_to_shape_map(), reader.get_variable_to_dtype_map()
    numbers = {
        name: Variable(tuple(shape), reader.get_tensor) for name, shape in shapes.items() if types[name].is_floating
    }
    return as_layers(numbers, sorted(shapes), model_name)


def as_layers(
    variables: Mapping[str, Variable], names: Sequence[str], model_name: str
) -> tuple[dict[str, list[StoredArray]], list[tuple[str, str]]]:
    """Sorts variables under the published names into our layers.

    Args:
        variables: Variables of numbers, by name.
        names: Names of everything in the file, sorted.
        model_name: Name of the network.

    Returns:
        See `read`.
    """
    wanted = table(model_name, first_level(names))
    # The fusion weights have the same shapes in every variant: another variant's are of no use by themselves.
    if any(variable in names for variable in wanted.get("stem_conv", [()])[0]):
        wanted |= head_table(names)
    else:
        wanted = {}
    stored: dict[str, list[StoredArray]] = {}
    for layer, arrays in wanted.items():
        for parts in arrays:
            found = [name + AVERAGE if name + AVERAGE in variables else name for name in parts]
            found = [name for name in found if name in variables]
            if found:
                sizes = [variables[name].shape for name in found]
                shape = sizes[0] if len(parts) == 1 else (sum(int(np.prod(size)) for size in sizes),)
                stored.setdefault(layer, []).append(StoredArray(variables[found[0]].values_of, tuple(found), shape))
    taken = {name for arrays in wanted.values() for parts in arrays for name in parts}
    return stored, _left(list(names), taken)


def _asked(function: Callable[[str], Any], name: str) -> Any:
    """Calls TensorFlow's reader, whose errors over damaged files are of many kinds."""
    try:
        return function(name)
    except (tf.errors.OpError, IndexError, RuntimeError, ValueError) as error:
        raise OSError(str(error)) from error


def _left(variables: list[str], taken: set[str]) -> list[tuple[str, str]]:
    """Names what is not used as briefly as possible: a scope in place of all its variables, slots by their kind."""
    scopes = {"/".join(parts[:i]) for parts in (name.split("/") for name in taken) for i in range(1, len(parts))}
    parts_left: list[str] = []
    slots: Counter[str] = Counter()
    for name in variables:
        parts = name.removesuffix(AVERAGE).split("/")
        if "/".join(parts) in taken:
            continue
        if "/".join(parts[:-1]) in taken:
            slots[parts[-1]] += 1
            continue
        paths = ["/".join(parts[:i]) for i in range(1, len(parts) + 1)]
        parts_left.append(next(path for path in paths if path not in scopes))
    reasons = [(part, "the model has no such part") for part in dict.fromkeys(parts_left)]
    return reasons + [(f"*/{slot}", f"state of the optimizer, {count} variables") for slot, count in slots.items()]
