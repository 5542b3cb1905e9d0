"""Slides that an earlier version finished stay finished: fingerprints of steps and options do not change."""

from dataclasses import dataclass
from pathlib import Path

import pytest

from cohorts.pairing import Case
from cohorts.sets import Slides
from options.classes import LabelMap
from options.fields import Group, read_all
from options.parser import Parser
from preprocessing import store
from preprocessing.steps import NAMES, STEPS

CASE = Case(
    "patient_000_node_1", Path("/s/patient_000_node_1.tif"), Path("/l/patient_000_node_1.xml"), "patient_000", 0
)
# Of release 0.1.0, but for check, which now lists values of masks, and extract_patches, whose resampled px changed;
# with inputs of 1 byte and time 2.
DEFAULT = {
    "check": "0609a0f193510e4fa5b806d27ff8e07f",
    "tissue": "286ae1d654a23d5f490e6c3301a3e94b",
    "xml_to_mask": "417fc23c715973bfb145b18366f2af32",
    "mask_to_xml": "dc95ca21140454f3e3ca9afdc83db3cc",
    "extract_patches": "d1d02d9e341eb36bafa69501e75fd647",
    "manifest": "a1006256fac3279dcf1ace4e95266a8f",
    "trim_tissue": "412a9edf05a9e49f8de1e14bb3cd92a5",
    "extract_tissue": "8586fa76b98c796f0520ca28f8e9d569",
}
OTHER = {
    "check": "04b5aeab87336efe018f29333fa0aa89",
    "tissue": "b6db2e9e436d708c038485f2e7b39255",
    "xml_to_mask": "e948441708f4773b13b332b5d211f23d",
    "mask_to_xml": "b89fc4cda4dcf4e55d213db73a6d9bbc",
    "extract_patches": "7643aacf36d6953272f268cc14d8d2c2",
    "manifest": "1610401267726389b70717dcc091d1b7",
    "trim_tissue": "33922c949daa7c9c7d0035d57146ecd8",
    "extract_tissue": "664d7e80778ad6ed12eb7e63d0802064",
}
OPTIONS = [
    *("--label_map", "a:1", "b:2", "--ignore_groups", "X", "--mask_values", "3:1", "--keep_pen", "--resolution", "0.5"),
    *("--overlap", "0.5", "--save_neg", "--keep_glass", "--no-checksums"),
]


@dataclass(frozen=True, kw_only=True)
class Labels(Group):
    labels: LabelMap


@pytest.mark.parametrize(("options", "um_px", "expected"), [([], None, DEFAULT), (OPTIONS, 0.5, OTHER)])
def test_fingerprints(options, um_px, expected, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(store, "_signature", lambda path: [str(path), 1, 2])
    (tmp_path / "labels.csv").write_text("slide_id,label\npatient_000_node_1,a\n")
    labels = ["--labels", str(tmp_path / "labels.csv")]
    groups = [step.options for step in STEPS]
    own = read_all([Labels, *groups], Parser("x", ""), [*labels, *options])
    reading = own[0].labels.reading(um_px)
    steps = [step.step(mine, reading, Slides([CASE], None, [])) for step, mine in zip(STEPS, own[1:], strict=True)]
    found = {step.name: step.fingerprint(CASE, Path("/o")) for step in steps}
    assert found == expected
    assert tuple(found) == NAMES
