"""Perceptrons for points: a residual one that is told the time, and a plain one."""

from __future__ import annotations

from collections.abc import Callable

from flax import linen as nn
from jax import Array

from jaxgen.models.embeddings import FourierFeatures, conditioning

ZERO = nn.initializers.zeros_init()


class TimeMLP(nn.Module):
    """Predicts a vector ``[B, D]`` from points x ``[B, D]`` and times t ``[B]``.

    Residual blocks as in the U-Net of Ho et al. 2020 (appendix B), with linear maps for
    convolutions and without norms; each starts as the identity, and the prediction as zero.

    Attributes:
      width: of the hidden layers.
      depth: number of residual blocks.
      time_features: of ``width`` numbers a time, see :mod:`jaxgen.models.embeddings`; the default
        is for times in [0, 1].
      num_classes: if given, ``labels [B]`` are embedded and added to the time embedding.
      out_channels: of the prediction; the input's where None.
      condition_dim: if given, so is ``condition [B, condition_dim]``.

    Raises:
      ValueError: if x and t are not ``[B, D]`` and ``[B]``, or labels and ``num_classes``,
        condition and ``condition_dim`` do not go together.
    """

    width: int = 128
    depth: int = 3
    time_features: Callable[[Array, int], Array] = FourierFeatures()
    num_classes: int | None = None
    out_channels: int | None = None
    condition_dim: int | None = None

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        labels: Array | None = None,
        condition: Array | None = None,
        *,
        train: bool = False,
    ) -> Array:
        del train  # the contract of all networks; nothing here is different in training
        if x.ndim != 2 or t.shape != x.shape[:1]:
            raise ValueError(f"x must be [B, D] and t [B], got {x.shape} and {t.shape}.")
        features = self.time_features(t, self.width)
        how = {"num_classes": self.num_classes, "condition_dim": self.condition_dim}
        embedding = nn.swish(conditioning(features, labels, condition, width=self.width, **how))
        h = nn.Dense(self.width)(x)
        for _ in range(self.depth):
            # The embedding's map has the bias of the sum.
            told = nn.Dense(self.width)(embedding)
            inner = nn.swish(nn.Dense(self.width, use_bias=False)(nn.swish(h)) + told)
            h = h + nn.Dense(self.width, kernel_init=ZERO)(inner)
        return nn.Dense(self.out_channels or x.shape[-1], kernel_init=ZERO)(nn.swish(h))


class MLP(nn.Module):
    """x ``[B, D]`` -> ``[B, outputs]`` through ``depth`` layers of ``width`` units."""

    outputs: int
    width: int = 128
    depth: int = 3
    last: nn.initializers.Initializer = nn.initializers.lecun_normal()  # of the last kernel

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        del labels, train  # the contract of all networks; nothing here is different in training
        return nn.Dense(self.outputs, kernel_init=self.last)(hidden(x, self.width, self.depth))


class Hidden(nn.Module):
    """x ``[B, D]`` -> features ``[B, width]``: :class:`MLP` before its last map."""

    width: int = 128
    depth: int = 3

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        del labels, train
        return hidden(x, self.width, self.depth)


def hidden(x: Array, width: int, depth: int) -> Array:
    """Layers of leaky ReLUs, in a module's compact method."""
    for _ in range(depth):
        x = nn.leaky_relu(nn.Dense(width)(x), 0.2)
    return x
