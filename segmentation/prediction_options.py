"""Which options of predict.py decide what a slide's prediction is."""

from __future__ import annotations

from typing import Any

from artifacts.loading import LoadedModel
from inference.slide_list import checksum
from inference.summary import CUT
from options.predict import PredictOptions


def result_options(opts: PredictOptions, network: LoadedModel) -> dict[str, Any]:
    """Return what determines the result, JSON types: stored in every summary.json and compared with it."""
    windows, results = opts.windows, opts.results
    return {
        "model": checksum(network.path), "img_size": network.info.img_size, "um_px": network.info.um_px,
        "overlap": windows.overlap, "tissue_only": windows.tissue_only, "eightfold": windows.eightfold,
        "mpp": opts.slides.mpp, "bb_downsample": opts.tissue.bb_downsample,
        "min_probability": results.min_probability, "nms_um": results.nms_um,
        "simplify_um": results.simplify_um, "min_area_um2": results.min_area_um2,
        "overlay": results.overlay,
        "geojson_frame": results.geojson_frame,
        **({CUT: True} if windows.tissue_only else {}),
        **({} if windows.stream is None else {"stream": True}),
    }  # fmt: skip
