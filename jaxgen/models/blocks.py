"""What the blocks of several networks have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax


class GroupNorm(nn.Module):
    """Group norm (Wu & He 2018) of ``[B, ..., C]``, with the parameters of Flax's.

    The statistics, in float32, are means over the pixels of each channel first ``[B, C]`` and over
    a group's channels then. Reducing a group at once, as Flax does, runs along its few adjacent
    channels instead: with the swish after it, on two CPU cores (JAX 0.10), that took 3 to 5 times
    as long, and 2 to 3 times with the gradient. Normalizing is then one multiply-add a pixel.
    """

    groups: int
    epsilon: float = 1e-6
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        channels = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones_init(), (channels,))
        bias = self.param("bias", nn.initializers.zeros_init(), (channels,))
        x = x.astype(jnp.float32)
        mean, square = self._over_group(x), self._over_group(x * x)  # [B, C]
        variance = jnp.maximum(square - mean**2, 0)
        slope = lax.rsqrt(variance + self.epsilon) * scale[None]
        offset = bias[None] - mean * slope
        pixels = tuple(range(1, x.ndim - 1))
        slope, offset = jnp.expand_dims(slope, pixels), jnp.expand_dims(offset, pixels)
        return (x * slope + offset).astype(self.dtype)

    def _over_group(self, x: Array) -> Array:
        """Every channel's mean over the pixels and channels of its group: ``[B, C]``."""
        means = x.mean(axis=tuple(range(1, x.ndim - 1)))
        of_groups = means.reshape(means.shape[0], self.groups, -1).mean(axis=-1)
        return jnp.repeat(of_groups, x.shape[-1] // self.groups, axis=-1)


def attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Softmax attention in ``heads`` groups of channels: q, k, v and the result ``[B, N, C]``.

    Vaswani et al. 2017, section 3.2, without its linear maps; the softmax is in float32.

    Raises:
      ValueError: if the heads do not divide the channels.
    """
    channels = q.shape[-1]
    if channels % heads != 0:
        raise ValueError(f"{heads} attention heads do not divide {channels} channels.")
    split = lambda z: z.reshape(*z.shape[:2], heads, channels // heads)  # noqa: E731
    return jax.nn.dot_product_attention(split(q), split(k), split(v)).reshape(q.shape)


def applier(remat: bool) -> Callable[..., Array]:
    """``(block, *arrays) -> block(*arrays)``; with ``remat``, activations inside the block are
    computed again for its gradient instead of kept (Chen et al. 2016, section 4). That is for
    accelerators: XLA on CPU (JAX 0.10) computes them again early enough to save nothing.
    """

    def apply(block: nn.Module, *arrays: Array) -> Array:
        return block(*arrays)  # pyright: ignore[reportCallIssue]

    # The function is lifted, not the class: the class's new name would be in the parameter tree.
    return nn.remat(apply) if remat else apply


def squeeze(x: Array) -> Array:
    """``[B, H, W, C]`` -> ``[B, H/2, W/2, 4 C]``: the pixels of each square of 2x2 as channels."""
    b, h, w, c = x.shape
    if h % 2 or w % 2:
        raise ValueError(
            f"{h} x {w} pixels have no squares of 2x2: use another --image-size, or fewer --levels "
            "(--model realnvp squeezes nothing at one)."
        )
    x = x.reshape(b, h // 2, 2, w // 2, 2, c).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, h // 2, w // 2, 4 * c)


def unsqueeze(x: Array) -> Array:
    """What :func:`squeeze` had."""
    b, h, w, c = x.shape
    x = x.reshape(b, h, w, 2, 2, c // 4).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(b, 2 * h, 2 * w, c // 4)
