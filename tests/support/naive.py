"""The layers of the published networks as plain sums in NumPy, float64; nothing here comes from Keras or from `models`.

Shapes: H rows, W columns, C channels; one image at a time.
"""

import numpy as np


def same_padding(size: int, extent: int, stride: int) -> tuple[int, int]:
    """TensorFlow's SAME: as many zeros as the last window needs, the odd one behind."""
    total = max((-(-size // stride) - 1) * stride + extent - size, 0)
    return total // 2, total - total // 2


def taps(x_HWC: np.ndarray, side: int, stride: int = 1, rate: int = 1, pad=None, fill: float = 0.0) -> list:
    """(i, j, values under tap i, j of the kernel at every output pixel); `pad` (before, after), SAME by default."""
    extent = (side - 1) * rate + 1
    pads = [pad or same_padding(size, extent, stride) for size in x_HWC.shape[:2]]
    padded = np.pad(x_HWC, [*pads, (0, 0)], constant_values=fill)
    rows, columns = ((size - extent) // stride + 1 for size in padded.shape[:2])
    return [
        (i, j, padded[i * rate :: stride, j * rate :: stride][:rows, :columns])
        for i in range(side)
        for j in range(side)
    ]


def conv(x_HWC: np.ndarray, kernel: np.ndarray, stride: int = 1, pad=None) -> np.ndarray:
    """A convolution with `kernel` (side, side, in, out)."""
    return sum(values @ kernel[i, j] for i, j, values in taps(x_HWC, len(kernel), stride, pad=pad))


def depthwise(x_HWC: np.ndarray, kernel: np.ndarray, stride: int = 1, rate: int = 1, pad=None) -> np.ndarray:
    """A convolution of every channel by itself with `kernel` (side, side, C, 1)."""
    return sum(values * kernel[i, j, :, 0] for i, j, values in taps(x_HWC, len(kernel), stride, rate, pad))


def max_pool(x_HWC: np.ndarray) -> np.ndarray:
    """3x3, stride 2, SAME."""
    return np.max([values for _, _, values in taps(x_HWC, 3, 2, fill=-np.inf)], axis=0)


def batch_norm(x_HWC: np.ndarray, gamma, beta, mean, variance, epsilon: float) -> np.ndarray:
    """Inference with moving statistics."""
    return (x_HWC - mean) / np.sqrt(variance + epsilon) * gamma + beta


def relu(x: np.ndarray) -> np.ndarray:
    """max(x, 0)."""
    return np.maximum(x, 0)


def sigmoid(x: np.ndarray) -> np.ndarray:
    """The logistic function."""
    return 1 / (1 + np.exp(-x))


def swish(x: np.ndarray) -> np.ndarray:
    """The activation x sigmoid(x)."""
    return x * sigmoid(x)


def doubled(x_HWC: np.ndarray) -> np.ndarray:
    """Every pixel four times."""
    return x_HWC.repeat(2, axis=0).repeat(2, axis=1)


def resized(x_HWC: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Bilinear, corners on corners."""
    for axis, size in ((0, rows), (1, columns)):
        places = np.linspace(0, x_HWC.shape[axis] - 1, size)
        left = np.minimum(places.astype(int), max(x_HWC.shape[axis] - 2, 0))
        right = np.minimum(left + 1, x_HWC.shape[axis] - 1)
        share = (places - left).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
        x_HWC = x_HWC.take(left, axis) * (1 - share) + x_HWC.take(right, axis) * share
    return x_HWC


def difference(got, expected: np.ndarray) -> float:
    """The largest deviation, relative to the largest value; infinite where the shapes differ."""
    got = np.asarray(got)
    return float(np.abs(got - expected).max() / np.abs(expected).max()) if got.shape == expected.shape else np.inf
