"""DeepLabV3+ with Xception-65 as sums over the arrays of the public Keras file, at output stride 16.

The file is `deeplabv3_xception_tf_dim_ordering_tf_kernels.h5` of https://github.com/bonlime/keras-deeplab-v3-plus, made
from a checkpoint of the TensorFlow model zoo (research/deeplab). Its layer names are written out here; the arithmetic
is that of the papers (https://arxiv.org/abs/1802.02611, https://arxiv.org/abs/1610.02357) and of the zoo:

- every convolution with stride 2 pads one row and column on every side, whatever the size of the map;
- in the backbone a separable convolution is ReLU, depthwise, batch norm, pointwise, batch norm; in the last block, the
  pyramid and the decoder it is depthwise, batch norm, ReLU, pointwise, batch norm, ReLU;
- batch norms have epsilon 0.001 in the backbone and 0.00001 elsewhere;
- resizing maps corners on corners.

A layer's arrays are drawn when it is first used, so the network itself says which ones the file holds.
"""

import numpy as np

from tests.support.naive import batch_norm, conv, depthwise, relu, resized

BACKBONE, ELSEWHERE = 1e-3, 1e-5


class DeepLab:
    """The network; `layers` fills as it is run: layer -> array name -> array, in the order of the file."""

    def __init__(self, classes: int) -> None:
        self.classes = classes
        self.layers: dict[str, dict[str, np.ndarray]] = {}
        self._rng = np.random.default_rng(12)

    def __call__(self, image_HWC: np.ndarray) -> dict[str, np.ndarray]:
        """Maps RGB in [-1, 1] to named activations; "logits" has the image's size."""
        rows, columns = image_HWC.shape[:2]
        fine, coarse = self._xception(image_HWC)
        found = {"fine": fine, "coarse": coarse}
        x = self.context(coarse)
        found["context"] = x
        skip = relu(self._conv(fine, "feature_projection0", 48, ELSEWHERE))
        x = np.concatenate([resized(x, rows // 4, columns // 4), skip], -1)
        for name in ("decoder_conv0", "decoder_conv1"):
            x = self._separable(x, name, 256, inside=True, epsilon=ELSEWHERE)
        found["features"] = x
        last = self._layer("logits_semantic", kernel=(1, 1, 256, self.classes), bias=(self.classes,))
        found["logits"] = resized(x @ last["kernel"][0, 0] + last["bias"], rows, columns)
        return found

    def context(self, x: np.ndarray) -> np.ndarray:
        """The pyramid: the image's mean, a 1x1 convolution and three atrous ones, joined and projected."""
        branches = [self._pooled(x), relu(self._conv(x, "aspp0", 256, ELSEWHERE))]
        for number, rate in ((1, 6), (2, 12), (3, 18)):
            branches.append(self._separable(x, f"aspp{number}", 256, rate=rate, inside=True, epsilon=ELSEWHERE))
        return relu(self._conv(np.concatenate(branches, -1), "concat_projection", 256, ELSEWHERE))

    def _xception(self, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The features the decoder takes, of stride 4, and those of stride 16."""
        x = relu(self._conv(x, "entry_flow_conv1_1", 32, BACKBONE, side=3, stride=2))
        x = relu(self._conv(x, "entry_flow_conv1_2", 64, BACKBONE, side=3))
        fine = x
        for number, filters in ((1, 128), (2, 256), (3, 728)):
            start, prefix = x, f"entry_flow_block{number}"
            x = self._separable(x, f"{prefix}_separable_conv1", filters)
            x = self._separable(x, f"{prefix}_separable_conv2", filters)
            fine = x if number == 2 else fine
            x = self._separable(x, f"{prefix}_separable_conv3", filters, stride=2)
            x = x + self._conv(start, f"{prefix}_shortcut", filters, BACKBONE, stride=2)
        for number in range(1, 17):
            start = x
            for unit in (1, 2, 3):
                x = self._separable(x, f"middle_flow_unit_{number}_separable_conv{unit}", 728)
            x = x + start
        start = x
        for unit, filters in ((1, 728), (2, 1024), (3, 1024)):
            x = self._separable(x, f"exit_flow_block1_separable_conv{unit}", filters)
        x = x + self._conv(start, "exit_flow_block1_shortcut", 1024, BACKBONE)
        for unit, filters in ((1, 1536), (2, 1536), (3, 2048)):
            # The stride of the exit flow, given up for resolution, turns into the rate of what follows.
            x = self._separable(x, f"exit_flow_block2_separable_conv{unit}", filters, rate=2, inside=True)
        return fine, x

    def _pooled(self, x: np.ndarray) -> np.ndarray:
        pooled = relu(self._conv(x.mean((0, 1), keepdims=True), "image_pooling", 256, ELSEWHERE))
        return resized(pooled, *x.shape[:2])

    def _separable(
        self, x: np.ndarray, name: str, filters: int, stride: int = 1, rate: int = 1, inside=False, epsilon=BACKBONE
    ) -> np.ndarray:
        """With ReLU before, or `inside` after both halves."""
        kernel = self._layer(f"{name}_depthwise", depthwise_kernel=(3, 3, x.shape[-1], 1))["depthwise_kernel"]
        x = x if inside else relu(x)
        x = self._norm(depthwise(x, kernel, stride, rate, pad=(rate, rate)), f"{name}_depthwise_BN", epsilon)
        x = self._conv(relu(x) if inside else x, f"{name}_pointwise", filters, epsilon)
        return relu(x) if inside else x

    def _conv(self, x: np.ndarray, name: str, filters: int, epsilon: float, side: int = 1, stride: int = 1):
        kernel = self._layer(name, kernel=(side, side, x.shape[-1], filters))["kernel"]
        return self._norm(conv(x, kernel, stride, pad=(side // 2, side // 2)), f"{name}_BN", epsilon)

    def _norm(self, x: np.ndarray, name: str, epsilon: float) -> np.ndarray:
        size = x.shape[-1:]
        arrays = self._layer(name, gamma=size, beta=size, moving_mean=size, moving_variance=size)
        return batch_norm(x, *arrays.values(), epsilon=epsilon)

    def _layer(self, name: str, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
        if name not in self.layers:
            drawn = {array: self._drawn(array, shape) for array, shape in shapes.items()}
            if "gamma" in drawn:
                # Variances so small that both epsilons count, and a gain that undoes them.
                drawn["gamma"] *= np.sqrt(drawn["moving_variance"] + 1e-4)
            self.layers[name] = {array: value.astype(np.float32) for array, value in drawn.items()}
        return {array: value.astype(np.float64) for array, value in self.layers[name].items()}

    def _drawn(self, array: str, shape: tuple[int, ...]) -> np.ndarray:
        if array == "moving_variance":
            return 10 ** self._rng.uniform(-4, -1, shape)
        if array == "gamma":
            return self._rng.uniform(0.5, 1.5, shape)
        if len(shape) == 1:
            return self._rng.normal(0, 0.1, shape)
        fan = np.prod(shape[:2]) if array == "depthwise_kernel" else np.prod(shape[:3])
        return self._rng.normal(0, 1 / np.sqrt(fan), shape)
