"""The published detector's backbone and BiFPN as sums over variables with the published names.

Written from the papers (https://arxiv.org/abs/1905.11946, https://arxiv.org/abs/1911.09070) and the authors' names. A
variable is drawn when it is first used, so the network itself says which ones a checkpoint holds.
"""

import numpy as np

from tests.support.naive import batch_norm, conv, depthwise, doubled, max_pool, sigmoid, swish

MEAN_RGB = (0.485, 0.456, 0.406)
STD_RGB = (0.229, 0.224, 0.225)

# (repeats, kernel, stride, expansion, filters), after scaling.
BLOCKS = {
    "b0": [
        (1, 3, 1, 1, 16), (2, 3, 2, 6, 24), (2, 5, 2, 6, 40), (3, 3, 2, 6, 80), (3, 5, 1, 6, 112), (4, 5, 2, 6, 192),
        (1, 3, 1, 6, 320),
    ],
    "b4": [
        (2, 3, 1, 1, 24), (4, 3, 2, 6, 32), (4, 5, 2, 6, 56), (6, 3, 2, 6, 112), (6, 5, 1, 6, 160), (8, 5, 2, 6, 272),
        (2, 3, 1, 6, 448),
    ],
}  # fmt: skip
STEM = {"b0": 32, "b4": 48}
# Level and inputs of a node, counted from the cell's inputs (levels 3 to 7 are 0 to 4) on.
NODES = ((6, 3, 4), (5, 2, 5), (4, 1, 6), (3, 0, 7), (4, 1, 7, 8), (5, 2, 6, 9), (6, 3, 5, 10), (7, 4, 11))
# The same where the BiFPN has levels 1 to 7 (0 to 6), as in SURF's segmentation network.
NODES_FROM_1 = (
    (6, 5, 6), (5, 4, 7), (4, 3, 8), (3, 2, 9), (2, 1, 10), (1, 0, 11),
    (2, 1, 11, 12), (3, 2, 10, 13), (4, 3, 9, 14), (5, 4, 8, 15), (6, 5, 7, 16), (7, 6, 17),
)  # fmt: skip


class Detector:
    """Backbone `backbone` and BiFPN with `filters` channels; `variables` fills as parts of it are run."""

    def __init__(self, backbone: str, filters: int, first_level: int = 3) -> None:
        self.backbone, self.filters, self.first_level = backbone, filters, first_level
        self.variables: dict[str, np.ndarray] = {}
        self._rng = np.random.default_rng(11)

    def _variable(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        """Draws by kind, so that signals keep their size: a wrong order, epsilon or missing bias shows."""
        if name not in self.variables:
            kind = name.rsplit("/", 1)[-1]
            if kind in ("moving_variance", "gamma") or kind.startswith("WSM"):
                # Small variances: an epsilon counts.
                value = self._rng.uniform(0.5, 1.5, shape) * (0.01 if kind == "moving_variance" else 1)
                value = value * 0.1 if kind == "gamma" else value
            elif len(shape) == 1:
                value = self._rng.normal(0, 0.2, shape)
            else:
                fan = np.prod(shape[:2]) if kind == "depthwise_kernel" else np.prod(shape[:3])
                value = self._rng.normal(0, 1.4 / np.sqrt(fan), shape)
            self.variables[name] = np.asarray(value, np.float32)
            assert self.variables[name].shape == shape
        return self.variables[name].astype(np.float64)

    def _conv(self, x, scope: str, filters: int, side: int = 1, stride: int = 1, bias: bool = False) -> np.ndarray:
        y = conv(x, self._variable(f"{scope}/kernel", (side, side, x.shape[-1], filters)), stride)
        return y + self._variable(f"{scope}/bias", (filters,)) if bias else y

    def _norm(self, x: np.ndarray, scope: str) -> np.ndarray:
        names = ("gamma", "beta", "moving_mean", "moving_variance")
        return batch_norm(x, *(self._variable(f"{scope}/{name}", x.shape[-1:]) for name in names), epsilon=1e-3)

    def features(self, bytes_HWC: np.ndarray) -> dict[int, np.ndarray]:
        """Levels 1 to 5 of an image with values 0 to 255."""
        top = f"efficientnet-{self.backbone}"
        x = (bytes_HWC - np.multiply(MEAN_RGB, 255)) / np.multiply(STD_RGB, 255)
        x = self._conv(x, f"{top}/stem/conv2d", STEM[self.backbone], side=3, stride=2)
        x = swish(self._norm(x, f"{top}/stem/tpu_batch_normalization"))
        levels, level, index = {}, 1, 0
        for repeats, side, first_stride, expansion, filters in BLOCKS[self.backbone]:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                level += stride == 2
                x = self._block(x, f"{top}/blocks_{index}", side, stride, expansion, filters)
                levels[level] = x
                index += 1
        return levels

    def _block(self, x, scope: str, side: int, stride: int, expansion: int, filters: int) -> np.ndarray:
        norms = ["tpu_batch_normalization", "tpu_batch_normalization_1", "tpu_batch_normalization_2"]
        convs = ["conv2d", "conv2d_1"]
        y = x
        if expansion > 1:
            y = self._conv(y, f"{scope}/{convs.pop(0)}", x.shape[-1] * expansion)
            y = swish(self._norm(y, f"{scope}/{norms.pop(0)}"))
        kernel = self._variable(f"{scope}/depthwise_conv2d/depthwise_kernel", (side, side, y.shape[-1], 1))
        y = swish(self._norm(depthwise(y, kernel, stride), f"{scope}/{norms.pop(0)}"))
        gate = swish(self._conv(y.mean((0, 1))[None, None], f"{scope}/se/conv2d", x.shape[-1] // 4, bias=True))
        y = y * sigmoid(self._conv(gate, f"{scope}/se/conv2d_1", y.shape[-1], bias=True))
        y = self._norm(self._conv(y, f"{scope}/{convs.pop(0)}", filters), f"{scope}/{norms.pop(0)}")
        return y + x if stride == 1 and filters == x.shape[-1] else y

    def _resampled(self, x: np.ndarray, scope: str) -> np.ndarray:
        """To the fused number of channels, by a convolution only where there is another."""
        if x.shape[-1] == self.filters:
            return x
        return self._norm(self._conv(x, f"{scope}/conv2d", self.filters, bias=True), f"{scope}/bn")

    def coarser(self, level5: np.ndarray) -> dict[int, np.ndarray]:
        """Levels 6 and 7."""
        level6 = max_pool(self._resampled(level5, "resample_p6"))
        return {6: level6, 7: max_pool(level6)}

    def cell(self, number: int, levels: dict[int, np.ndarray], level3_up: np.ndarray | None = None) -> list[np.ndarray]:
        """All maps of a cell: its inputs, levels 3 to 7, and its 8 nodes.

        Args:
            number: of the cell, from 0.
            levels: its inputs by level.
            level3_up: what the bottom-up pass starts from in place of node 3, the only one of level 3.
        """
        at = list(range(self.first_level, 8))
        maps = [levels[level] for level in at]
        for index, (level, *inputs) in enumerate(NODES if self.first_level == 3 else NODES_FROM_1):
            scope = f"fpn_cells/cell_{number}/fnode{index}"
            weights = [
                max(float(self._variable(f"{scope}/WSM" + (f"_{i}" if i else ""), ())), 0) for i in range(len(inputs))
            ]
            fused = 0
            for place, (source, weight) in enumerate(zip(inputs, weights, strict=True)):
                x = level3_up if source == 8 and level3_up is not None else maps[source]
                x = self._resampled(x, f"{scope}/resample_{place}_{source}_{len(maps)}")
                x = doubled(x) if at[source] > level else max_pool(x) if at[source] < level else x
                fused = fused + x * weight / (sum(weights) + 0.0001)
            combine = f"{scope}/op_after_combine{len(maps)}"
            x = depthwise(swish(fused), self._variable(f"{combine}/conv/depthwise_kernel", (3, 3, self.filters, 1)))
            x = x @ self._variable(f"{combine}/conv/pointwise_kernel", (1, 1, self.filters, self.filters))[0, 0]
            x = x + self._variable(f"{combine}/conv/bias", (self.filters,))
            maps.append(self._norm(x, f"{combine}/bn"))
            at.append(level)
        return maps

    def head(self, levels: dict[int, np.ndarray], classes: int) -> np.ndarray:
        """Class logits at full resolution from levels 1 to 7, under the names of SURF's public trainer."""
        x = levels[7]
        for step, level in enumerate((6, 5, 4, 3, 2, 1)):
            end = f"_{step}" if step else ""
            x = self._doubled(x, f"segmentation_head/conv2d_transpose{end}", self.filters)
            x = swish(self._norm(x, f"segmentation_head/bn{end}"))
            x = np.concatenate([x, levels[level]], -1)
        return self._doubled(x, "segmentation_head/conv2d_transpose_6", classes) + self._variable(
            "segmentation_head/conv2d_transpose_6/bias", (classes,)
        )

    def _doubled(self, x: np.ndarray, scope: str, filters: int) -> np.ndarray:
        """Transposed convolution of 2 x 2 with stride 2."""
        kernel_22FC = self._variable(f"{scope}/kernel", (2, 2, filters, x.shape[-1]))
        rows, columns, _ = x.shape
        return np.einsum("hwc,ijfc->hiwjf", x, kernel_22FC).reshape(2 * rows, 2 * columns, filters)
