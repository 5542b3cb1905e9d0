"""Optimizers, which turn joint gradients into an update of the weights: Adam, AdamW, SGD with momentum, LARS, LAMB.

Keras' own updates add some eighty graph operations per variable: half of EfficientDet-D0's training graph, paid at
every start. Where TensorFlow has a fused kernel it is used: one operation that reads and writes each weight once.

Weight decay and the layer-wise rates of LARS and LAMB are for kernels only. Biases and BatchNorm's scales and shifts,
all of one dimension, take neither: You et al. 2017, Goyal et al. 2017 (arXiv:1706.02677, section 5.1).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from options.choices import OPTIMIZERS


class Optimizer:
    """Base of all: the count of updates, and some moments of the gradient for each weight.

    Args:
        variables: Keras variables to train, in the order in which gradients will come.
        moments: arrays kept for each variable.

    Attributes:
        steps: number of updates done, int64 variable.
    """

    def __init__(self, variables: Sequence[Any], moments: int) -> None:
        self._trained = [v.value for v in variables]
        self.steps = tf.Variable(0, dtype=tf.int64, trainable=False)
        self._moments = [
            [tf.Variable(tf.zeros_like(v), trainable=False) for v in self._trained] for _ in range(moments)
        ]

    @property
    def variables(self) -> list[Any]:
        """Everything that a checkpoint must keep: updates done, then the moments, each for all weights."""
        return [self.steps, *(variable for moment in self._moments for variable in moment)]

    def apply(self, grads: Sequence[Any], learning_rate: Any) -> None:
        """Update the variables; `learning_rate` is a float32 scalar tensor."""
        self._begin(tf.cast(self.steps.assign_add(1), tf.float32))
        for variable, grad, *moments in zip(self._trained, grads, *self._moments, strict=True):
            self._update(variable, grad, learning_rate, *moments)

    def _begin(self, steps: Any) -> None:
        """Before the updates of the variables: computes what they share; `steps` counts this update, from 1."""
        del steps  # AutoGraph takes no function without a statement

    def _update(self, variable: Any, grad: Any, learning_rate: Any, *moments: Any) -> None:
        raise NotImplementedError


class TwoMoments(Optimizer):
    """Base of Adam and LAMB: decaying means of gradients and of their squares.

    Args:
        variables: see `Optimizer`.
        weight_decay: of the kernels; None for none.
        epsilon: added to the root of the second moment.
        betas: decay of the first and of the second moment.
    """

    def __init__(
        self,
        variables: Sequence[Any],
        weight_decay: float | None,
        epsilon: float,
        betas: tuple[float, float] = (0.9, 0.999),
    ) -> None:
        super().__init__(variables, moments=2)
        self._weight_decay = weight_decay
        self._epsilon = epsilon
        self._betas = betas

    def _begin(self, steps: Any) -> None:
        self._powers = [tf.pow(beta, steps) for beta in self._betas]


class Adam(TwoMoments):
    """Adam (Kingma and Ba 2015, arXiv:1412.6980), and with decay AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101).

    The arithmetic of `keras.optimizers.Adam` and `AdamW`.

    Args:
        variables: see `Optimizer`.
        weight_decay: taken off the kernels, times the learning rate, apart from the gradient; None for Adam.
    """

    def __init__(self, variables: Sequence[Any], weight_decay: float | None = None) -> None:
        super().__init__(variables, weight_decay, epsilon=1e-7)

    def _update(self, variable: Any, grad: Any, learning_rate: Any, *moments: Any) -> None:
        if self._weight_decay and is_kernel(variable):
            variable.assign_sub(learning_rate * self._weight_decay * variable)
        tf.raw_ops.ResourceApplyAdam(
            var=variable.handle,
            m=moments[0].handle,
            v=moments[1].handle,
            beta1_power=self._powers[0],
            beta2_power=self._powers[1],
            lr=learning_rate,
            beta1=tf.constant(self._betas[0]),
            beta2=tf.constant(self._betas[1]),
            epsilon=tf.constant(self._epsilon),
            grad=grad,
        )


class Sgd(Optimizer):
    """Gradient descent with momentum, m <- momentum m + g, w <- w - rate m.

    With the rate outside of the momentum, as in Goyal et al. 2017 (arXiv:1706.02677, equation 9): a change of the
    rate acts at once, also on what earlier gradients left.

    Args:
        variables: see `Optimizer`.
        momentum: share of the moment kept at an update.
        weight_decay: share of a kernel added to its gradient.
    """

    def __init__(self, variables: Sequence[Any], momentum: float = 0.9, weight_decay: float = 0.0) -> None:
        super().__init__(variables, moments=1)
        self._momentum = momentum
        self._weight_decay = weight_decay

    def _update(self, variable: Any, grad: Any, learning_rate: Any, *moments: Any) -> None:
        if self._weight_decay and is_kernel(variable):
            grad = grad + self._weight_decay * variable
        tf.raw_ops.ResourceApplyMomentum(
            var=variable.handle,
            accum=moments[0].handle,
            lr=learning_rate,
            grad=grad,
            momentum=tf.constant(self._momentum),
        )


class Lars(Optimizer):
    """LARS (You, Gitman and Ginsburg 2017, arXiv:1708.03888, algorithm 1): each kernel has a rate of its own.

    Args:
        variables: see `Optimizer`.
        momentum: share of the moment kept at an update.
        weight_decay: share of a kernel added to its gradient.
        trust: eta, the size of an update relative to that of the kernel.
    """

    def __init__(
        self, variables: Sequence[Any], momentum: float = 0.9, weight_decay: float = 1e-4, trust: float = 0.001
    ) -> None:
        super().__init__(variables, moments=1)
        self._momentum = momentum
        self._weight_decay = weight_decay
        self._trust = trust

    def _update(self, variable: Any, grad: Any, learning_rate: Any, *moments: Any) -> None:
        if is_kernel(variable):
            size, slope = tf.norm(variable), tf.norm(grad)
            ratio = _ratio(self._trust * size, slope + self._weight_decay * size)
            learning_rate = learning_rate * ratio
            grad = grad + self._weight_decay * variable
        moment = moments[0]
        moment.assign(self._momentum * moment + learning_rate * grad)
        variable.assign_sub(moment)


class Lamb(TwoMoments):
    """LAMB (You et al. 2020, arXiv:1904.00962, algorithm 2): Adam whose update is scaled to the size of the kernel.

    Args:
        variables: see `Optimizer`.
        weight_decay: share of a kernel added to Adam's update, before it is scaled.
    """

    def __init__(self, variables: Sequence[Any], weight_decay: float = 0.01) -> None:
        super().__init__(variables, weight_decay, epsilon=1e-6)

    def _update(self, variable: Any, grad: Any, learning_rate: Any, *moments: Any) -> None:
        first, second = moments
        beta_1, beta_2 = self._betas
        first.assign(beta_1 * first + (1 - beta_1) * grad)
        second.assign(beta_2 * second + (1 - beta_2) * tf.square(grad))
        unbiased = first / (1 - self._powers[0])
        update = unbiased / (tf.sqrt(second / (1 - self._powers[1])) + self._epsilon)
        if is_kernel(variable):
            update += self._weight_decay * variable
            learning_rate = learning_rate * _ratio(tf.norm(variable), tf.norm(update))
        variable.assign_sub(learning_rate * update)


def build(name: str, variables: Sequence[Any], momentum: float, weight_decay: float | None) -> Optimizer:
    """The optimizer of this name.

    Args:
        name: one of `OPTIMIZERS`.
        variables: see `Optimizer`.
        momentum: of sgd and lars.
        weight_decay: of all but adam; None for 0.

    Raises:
        ValueError: unknown name.
    """
    decay = weight_decay or 0.0
    if name == "adam":
        return Adam(variables)
    if name == "adamw":
        return Adam(variables, decay)
    if name == "sgd":
        return Sgd(variables, momentum, decay)
    if name == "lars":
        return Lars(variables, momentum, decay)
    if name == "lamb":
        return Lamb(variables, decay)
    raise ValueError(f"optimizer {name!r} is unknown; choose one of {', '.join(OPTIMIZERS)}")


def is_kernel(variable: Any) -> bool:
    """Whether a variable is a kernel, which decays; biases, scales and shifts have one dimension."""
    return len(variable.shape) > 1


def _ratio(over: Any, under: Any) -> Any:
    """Quotient of two lengths; 1 where either is 0: a kernel at 0 could not leave it otherwise."""
    return tf.where((over > 0) & (under > 0), over / tf.where(under > 0, under, 1.0), 1.0)
