"""The parts of a classifier are the whole of it, with the same weights."""

import keras
import numpy as np
import pytest

from classification.network import CUTS, KEPT, build
from models import efficientnet
from options.choices import CLASSIFIERS


def image(hw=(96, 70)):
    return np.random.default_rng(0).uniform(-1, 1, (2, *hw, 3)).astype(np.float32)


@pytest.mark.parametrize(("name", "channels"), [("resnet18", 32), ("resnet50", 128), ("efficientnetb0", 112)])
def test_the_parts_in_a_row_are_the_network(name, channels):
    classifier, report = build(name, 3, "average", width=8 if "resnet" in name else None)
    assert report is None
    middle = classifier.early(image())
    assert middle.shape == (2, 6, 5, channels)  # stride 16
    found = classifier.head(classifier.late(middle))
    assert found.shape == (2, 3)
    np.testing.assert_allclose(found, classifier.model(image()), rtol=1e-5, atol=1e-6)
    assert classifier.outputs == 3
    assert len(classifier.trained) == len({id(v) for v in classifier.trained})
    assert {id(v) for v in classifier.trained} == {id(v) for v in classifier.model.trainable_variables}


def test_every_network_has_a_cut_and_maps_to_keep():
    assert set(CUTS) == set(KEPT) == set(CLASSIFIERS)


def test_efficientnet_b0_has_the_parameters_of_the_paper():
    # keras.applications.EfficientNetB0 with 1000 classes: 5330571, 7 of them of its Normalization layer.
    network = efficientnet.build("b0", 1000)
    assert network.count_params() == 5330564


def test_what_is_trained():
    classifier, _ = build("resnet18", 2, width=4)
    everything = len(classifier.trained)
    assert everything == 62
    classifier.train(early=False, norm=True)
    assert classifier.trained
    assert all(v.path.startswith(("layer4", "fc")) for v in classifier.trained)
    assert not classifier.trains_early
    classifier.train(early=True, norm=False)
    assert {v.path.split("/")[1] for v in classifier.trained} == {"kernel", "bias"}
    classifier.train(early=True, norm=True)
    assert len(classifier.trained) == everything


def test_the_hash_is_of_the_early_weights_alone():
    keras.utils.set_random_seed(1)
    first, _ = build("resnet18", 2, width=4)
    keras.utils.set_random_seed(1)
    second, _ = build("resnet18", 2, width=4)
    start = first.hash()
    assert second.hash() == start
    assert len(start) == 64
    first.head.weights[0].assign_add(np.ones(first.head.weights[0].shape))
    assert first.hash() == start
    first.early.get_layer("bn1").moving_mean.assign_add(np.ones(4))
    assert first.hash() != start


def test_weights_load_by_name_and_the_head_stays(tmp_path):
    keras.utils.set_random_seed(1)
    given, _ = build("resnet18", 5, width=4)
    path = tmp_path / "given.keras"
    given.model.save(path)
    keras.utils.set_random_seed(2)
    found, report = build("resnet18", 2, width=4, weights_path=path)
    assert [layer for layer, _ in report.skipped] == ["fc"]
    assert found.hash() == given.hash()


def test_the_whole_model_is_saved_and_opened(tmp_path):
    classifier, _ = build("resnet18", 2, width=4, cut="layer2_1")
    classifier.model.save(tmp_path / "final.keras")
    opened = keras.models.load_model(tmp_path / "final.keras")
    assert (opened(image()).numpy() == classifier.model(image()).numpy()).all()


def test_precision_is_that_of_maps_and_logits_are_float32():
    classifier, _ = build("resnet18", 2, precision="bfloat16", width=4)
    middle = classifier.early(image())
    assert (middle.dtype.name, classifier.late(middle).dtype.name) == ("bfloat16", "bfloat16")
    assert classifier.model(image()).dtype.name == "float32"
    assert {w.dtype for w in classifier.model.trainable_weights} == {"float32"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "vgg"}, "network 'vgg' is unknown; choose one of resnet18, resnet34, resnet50, efficientnetb0"),
        ({"precision": "int8"}, "precision 'int8' is unknown"),
        ({"pool": "median"}, "pool 'median' is unknown; choose one of max, average"),
        ({"cut": "layer9"}, "cut 'layer9': resnet18 has no such layer before its last map; give the end of a block"),
        ({"cut": "layer4_1"}, "cut 'layer4_1': resnet18 has no such layer before its last map"),
        ({"cut": "layer3_1_conv1"}, "cut 'layer3_1_conv1': layers behind it also look at maps before it"),
        ({"outputs": 0}, "outputs is 0; a classifier needs at least 1"),
    ],
)
def test_bad_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        build(**{"name": "resnet18", "outputs": 2, "width": 4, **options})


def test_an_untrained_resnet_starts_with_blocks_that_are_identities() -> None:
    keras.utils.set_random_seed(1)
    for name, last in (("resnet18", "layer2_1_bn2"), ("resnet50", "layer2_1_bn3")):
        model = build(name, 2, width=4)[0].model
        assert not np.any(model.get_layer(last).gamma)
        assert np.all(model.get_layer("layer2_1_bn1").gamma.numpy() == 1)
        image_BHWC = np.random.default_rng(0).uniform(-1, 1, (1, 97, 97, 3)).astype(np.float32)
        started = np.abs(model(image_BHWC)).max()
        for layer in model.layers:
            if "bn" in layer.name:
                layer.gamma.assign(np.ones(layer.gamma.shape))
        assert started < 0.5 * np.abs(model(image_BHWC)).max()
