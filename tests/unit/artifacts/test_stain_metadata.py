"""What a model's description says of stain: kept, checked, and absent in those of earlier versions."""

import pytest

from artifacts import metadata
from artifacts.metadata import ModelInfo

STAIN = {
    "norm": "macenko",
    "targets": {
        "reinhard": {"mean": [1.0, 0.1, -0.2], "std": [0.6, 0.1, 0.1]},
        "macenko": {"stains": [[0.6, 0.7, 0.4], [0.2, 0.9, 0.3]], "most": [2.0, 1.0]},
    },
    "colors": {"middle": [-0.2, -0.5, -0.4], "spread": [0.2, 0.1, 0.1]},
}
INFO = ModelInfo(img_size=128, um_px=0.5, classes=2, class_names=("normal", "tumor"), output="logits", stain=STAIN)


def test_the_stain_of_a_model_is_kept() -> None:
    assert metadata.from_json(INFO.as_json()) == INFO
    assert INFO.stain_norm == "macenko"
    earlier = INFO.as_json()
    del earlier["stain"], earlier["freeze_bn"]
    assert metadata.from_json(earlier).stain is None
    assert metadata.from_json(earlier).stain_norm == "none"


@pytest.mark.parametrize(
    "wrong",
    [
        STAIN | {"norm": "vahadane"},  # without a target
        STAIN | {"norm": "other"},
        STAIN | {"targets": {"macenko": {"stains": [[0.6, 0.7, 0.4]], "most": [2.0, 1.0]}}},
        STAIN | {"targets": STAIN["targets"] | {"reinhard": {"mean": [1.0, 0.1, float("nan")], "std": [1, 1, 1]}}},
        STAIN | {"colors": {"middle": [0, 0]}},
        [],
    ],
)
def test_a_damaged_stain_is_refused(wrong: object) -> None:
    with pytest.raises(ValueError, match=r"stain is .*; must be norm, targets and colors, or null"):
        metadata.from_json(INFO.as_json() | {"stain": wrong})
