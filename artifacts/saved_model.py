"""SavedModel folders, ours or from elsewhere, opened as a function of images.

A SavedModel is a program of TensorFlow operations, some of which reach files, the network or Python. A model with such
an operation is refused before it is loaded.

Shapes: B images, H rows, W columns, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

ENTRIES = ("serve", "serving_default")
MAX_GRAPH_BYTES = 2**31 - 1  # of a protobuf message

# Operations with effects or state that a segmentation network needs.
STATEFUL = {
    "Assert", "AssignAddVariableOp", "AssignVariableOp", "DisableCopyOnRead", "If", "ReadVariableOp",
    "StatefulPartitionedCall", "VarHandleOp", "VarIsInitializedOp", "While",
}  # fmt: skip
# Every SavedModel has a function that writes its variables and one that reads them. They need the name of a file, which
# nothing here passes, so these operations are harmless in functions of that kind, and only there.
SAVING = {"MergeV2Checkpoints", "RestoreV2", "SaveV2", "ShardedFilename"}
SAVING_ARGUMENT = "file_prefix"
# These reach files although TensorFlow does not list them as stateful.
REACHING = {"MatchingFiles", "PrintV2", "PyFuncStateless", "ReadFile", "WriteFile"}


Call = Callable[[Any], Any]


@dataclass(frozen=True)
class OpenedModel:
    """A model of unknown origin.

    Attributes:
        call: images (B, H, W, C) -> output (B, H, W, K).
        source: what owns the variables.
        shape: shape of the images that it takes; None: any.
        dtype: type of these images.
    """

    call: Call
    source: Any
    shape: tuple[Any, ...]
    dtype: str


def load(folder: Path) -> OpenedModel:
    """Open a SavedModel by its entry `serve`, else `serving_default`.

    Args:
        folder: folder with `saved_model.pb`.

    Raises:
        ValueError: damaged, with operations that reach beyond the model, or without an entry of one input and one
            output.
    """
    _refuse_reaching(folder)
    try:
        loaded = tf.saved_model.load(str(folder))
    except Exception as error:  # whatever its parts raise
        raise ValueError(f"{folder}: damaged SavedModel ({str(error).splitlines()[0][:300]})") from error
    entry = next((loaded.signatures[name] for name in ENTRIES if name in loaded.signatures), None)
    if entry is None:
        found = ", ".join(loaded.signatures) or "none"
        raise ValueError(f"{folder}: has the entries {found}; one called {ENTRIES[0]} is needed")
    inputs = entry.structured_input_signature[1]
    if len(inputs) != 1 or len(entry.structured_outputs) != 1:
        raise ValueError(
            f"{folder}: takes {', '.join(inputs)} and gives {', '.join(entry.structured_outputs)}; "
            "one of each is needed"
        )
    ((name, spec),), (output,) = inputs.items(), entry.structured_outputs
    if spec.shape.rank is None:
        raise ValueError(f"{folder}: does not state the shape of the images it takes")

    def call(image_BHWC: Any, _owner: Any = loaded) -> Any:
        # A function of a SavedModel does not keep its variables alive; this reference to their owner does.
        return entry(**{name: image_BHWC})[output]

    return OpenedModel(call, loaded, tuple(spec.shape), spec.dtype.name)


def _refuse_reaching(folder: Path) -> None:
    """Refuse unknown operations and those that reach files, the network or Python."""
    path = folder / "saved_model.pb"
    try:
        if path.stat().st_size > MAX_GRAPH_BYTES:
            raise ValueError("too large")
        stored = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except (OSError, ValueError, DecodeError) as error:
        raise ValueError(f"{path}: damaged SavedModel ({error})") from error
    names = set()
    for graph in (part.graph_def for part in stored.meta_graphs):
        functions = {function.signature.name: function for function in graph.library.function}
        saving = {name for name, function in functions.items() if _is_saving(function)}
        names |= {node.op for node in graph.node} - SAVING
        for name, function in functions.items():
            used = {node.op for node in function.node_def}
            called = {attribute.func.name for node in function.node_def for attribute in node.attr.values()}
            names |= used - SAVING if name in saving else used | (called & saving)
        names -= set(functions) - saving
    reaching = sorted(name for name in names if _reaches(name))
    if reaching:
        raise ValueError(
            f"{folder}: refused, because it has operations that are unknown or may reach files, the network or Python: "
            f"{', '.join(reaching[:5])}"
        )


def _is_saving(function: Any) -> bool:
    arguments = function.signature.input_arg
    return len(arguments) > 0 and arguments[0].name == SAVING_ARGUMENT


def _reaches(name: str) -> bool:
    known = op_def_registry.get(name)
    return known is None or name in REACHING or (known.is_stateful and name not in STATEFUL)
