"""How a network is told the time, the class and anything else: features and their embedding.

*Time features* are callables ``(t [B], dim) -> [B, dim]``, of an even ``dim``, without parameters.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array


def sinusoidal_embedding(t: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """sin and cos of t at ``dim / 2`` frequencies, 1 down to 1/max_period: ``[B] -> [B, dim]``.

    For times that count steps, up to a thousand or so. Vaswani et al. 2017, section 3.5, applied to
    the noise level. Over [0, 1] the features hardly move, but the first few: scale such times (by
    1000, say), or take :class:`FourierFeatures`.
    """
    half = dim // 2
    frequency = jnp.exp(-math.log(max_period) * jnp.arange(half) / max(half - 1, 1))
    angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


@dataclasses.dataclass(frozen=True)
class FourierFeatures:
    """sin and cos of 2 pi f t at ``dim / 2`` random frequencies: ``[B] -> [B, dim]``.

    For times in [0, 1]. With f ~ N(0, scale^2) the mean over frequencies of the products of the
    features of t and s tends to exp(-(2 pi scale (t - s))^2 / 2): times closer than about
    1 / (2 pi scale) look alike. Tancik et al. 2020, section 5; Song et al. 2021, appendix H, with
    ``scale=16`` for images.
    """

    scale: float = 1.0
    seed: int = 0

    def __call__(self, t: Array, dim: int) -> Array:
        # A function of the seed, so that the frequencies are neither trained nor stored.
        frequency = self.scale * np.random.default_rng(self.seed).standard_normal(dim // 2)
        angle = t.astype(jnp.float32)[:, None] * jnp.float32(2 * np.pi * frequency)[None, :]
        return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


def conditioning(
    features: Array,
    labels: Array | None,
    condition: Array | None,
    *,
    width: int,
    num_classes: int | None = None,
    condition_dim: int | None = None,
    dtype: Any = jnp.float32,
) -> Array:
    """An embedding ``[B, width]``: two layers on time features ``[B, F]``, plus what else is known.

    A class is added through a table, a vector through a linear map. To be called in a compact
    method, whose own layers these become.

    Args:
      features: time features, ``[B, F]``.
      labels: integers ``[B]``, given if and only if ``num_classes`` is.
      condition: ``[B, condition_dim]``, given if and only if ``condition_dim`` is.

    Raises:
      ValueError: if labels or condition do not go with ``num_classes`` and ``condition_dim``.
    """
    batch = features.shape[0]
    if (labels is None) != (num_classes is None):
        raise ValueError("labels are given if and only if num_classes is set.")
    if (condition is None) != (condition_dim is None):
        raise ValueError("a condition is given if and only if condition_dim is set.")
    if labels is not None and labels.shape != (batch,):
        raise ValueError(f"labels must be [{batch}], one a time, got {labels.shape}.")
    if condition is not None and condition.shape != (batch, condition_dim):
        raise ValueError(f"condition must be [{batch}, {condition_dim}], got {condition.shape}.")
    embedding = nn.Dense(width, dtype=dtype)(features)
    embedding = nn.Dense(width, dtype=dtype)(nn.swish(embedding))
    if labels is not None and num_classes is not None:
        embedding += nn.Embed(num_classes, width, dtype=dtype)(labels)
    if condition is not None:
        # The time embedding has the bias of the sum.
        embedding += nn.Dense(width, use_bias=False, dtype=dtype)(condition)
    return embedding
