"""Write a trained model for use elsewhere: SavedModel, ONNX, Keras, with uint8 RGB in and class probabilities out.

The story: options, open the model, write into a folder beside --out, open the written files and compare, move into
place. `export.py --help` lists the options; docs/model_files.md shows how to use the files.

Shapes: B images, H rows, W columns, C channels (3, or 6 with a context view), K classes.
"""

from __future__ import annotations

import system.start  # noqa: F401  # first: it says what to do where packages are missing

# isort: split
import os
import sys
from pathlib import Path

from artifacts.paths import require_model
from options.export import ExportOptions, export_options
from system.atomic_files import written_folder

MAX_DIFFERENCE = 1e-4  # of probabilities


class DisagreementError(Exception):
    """A written file gives other probabilities than the model."""


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns 0 if every file agrees with the model, 1 if one does not, 2 after any other error."""
    opts = export_options(argv)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # real errors are raised as exceptions
    # The files must not depend on this machine: GPUs round differently.
    os.environ["CUDA_VISIBLE_DEVICES"] = "-1"
    try:
        # Before TensorFlow, whose import takes seconds.
        require_new(opts.files.out)
        require_model(opts.model.model)
    except ValueError as error:
        return failed(error, 2)
    import tensorflow as tf

    try:
        export(opts)
    except DisagreementError as error:
        return failed(error, 1)
    except (ValueError, OSError, tf.errors.OpError) as error:
        return failed(error, 2)
    return 0


def failed(error: Exception, code: int) -> int:
    """Report an error in one line; returns the exit code."""
    print(f"export.py: error: {error}", file=sys.stderr)
    return code


def export(opts: ExportOptions) -> None:
    """Open the model, write the files, compare them, move them into place.

    Raises:
        DisagreementError: a file differs from the model by more than `MAX_DIFFERENCE`; nothing is kept.
        ValueError: the model cannot be opened or exported.
        OSError: no space, no permission.
    """
    # ------------------------------------------------------------------------------------------------------ the model
    from artifacts.exporting import compare, write
    from artifacts.loading import any_size, open_model
    from artifacts.metadata import ModelOverrides

    given = opts.model
    overrides = ModelOverrides(given.img_size, given.resolution, given.context_spacing, given.input_range)
    loaded = open_model(given.model, overrides)
    free = any_size(loaded)
    info, size_multiple = loaded.info, free.info.size_multiple
    context = "" if info.context_um_px is None else f", second view at {info.context_um_px:g} um/px"
    size = f"{info.img_size} px only" if size_multiple is None else f"any multiple of {size_multiple} px"
    for note in loaded.notes:
        print(f"note        {note}")
    print(f"model       {info.network or 'unknown network'} from {loaded.path}")
    print(f"view        {info.img_size} px at {info.um_px:g} um/px{context}")
    if info.stain_norm != "none":
        print(f"note        trained with --stain_norm {info.stain_norm}: the exported network takes normalized images")
    print(f"classes     {', '.join(f'{i} {name}' for i, name in enumerate(info.class_names))}")
    print(f"input       uint8 (B, H, W, {info.channels}), B any, H and W {size}", flush=True)

    # ------------------------------------------------------------------------------------------------- write, compare
    out = opts.files.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with written_folder(out, overwrite=False) as partial:
        written = [write(name, free, partial, opts.files.opset) for name in opts.files.formats]
        differences = []
        for name in written:
            difference, images = compare(partial / name, loaded, free)
            files = [partial / name, *(partial / name).rglob("*")]
            size_mb = sum(file.stat().st_size for file in files if file.is_file()) / 1e6
            print(
                f"{name:<11} {size_mb:.1f} MB, differs from the model by at most {difference:.1e} ({images})",
                flush=True,
            )
            differences.append(difference)
        wrong = [difference for difference in differences if not difference <= MAX_DIFFERENCE]  # NaN, too
        if wrong:
            raise DisagreementError(
                f"the files differ from the model by {wrong[0]:.1e}, more than {MAX_DIFFERENCE:g}; nothing was kept"
            )
    print(f"written     {out}")


def require_new(out: Path) -> None:
    """Check that nothing would be overwritten.

    Raises:
        ValueError: --out is a file, or a folder that is not empty.
    """
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise ValueError(f"--out {out} exists but is not a folder; choose a new or empty folder")
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out {out} is not empty; choose a new or empty folder")


if __name__ == "__main__":
    sys.exit(main())
