"""The U-Net of Ho et al. 2020 (appendix B), for images of any height, width and channels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

ZERO = nn.initializers.zeros_init()


def sinusoidal_embedding(t: Array, dim: int, max_period: float = 10_000.0) -> Array:
    """sin and cos of t at ``dim / 2`` frequencies, 1 down to 1/max_period: ``[B] -> [B, dim]``.

    Vaswani et al. 2017, section 3.5, applied to the noise level's index.
    """
    half = dim // 2
    frequency = jnp.exp(-math.log(max_period) * jnp.arange(half) / max(half - 1, 1))
    angle = t.astype(jnp.float32)[:, None] * frequency[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=1)


class Norm(nn.Module):
    """Group norm with as many of ``groups`` as divide the channels; statistics in float32."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups = math.gcd(self.groups, x.shape[-1])
        return nn.GroupNorm(num_groups=groups, epsilon=1e-6, dtype=self.dtype)(x)


class ResidualBlock(nn.Module):
    """norm-swish-conv, plus the embedding, norm-swish-dropout-conv, plus a shortcut.

    The last convolution starts at zero, so the block starts as its shortcut.
    """

    channels: int
    groups: int
    dropout: float
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, embedding: Array, train: bool) -> Array:
        conv = lambda **kw: nn.Conv(self.channels, (3, 3), dtype=self.dtype, **kw)  # noqa: E731
        h = conv()(nn.swish(Norm(self.groups, self.dtype)(x)))
        bias = nn.Dense(self.channels, dtype=self.dtype)(nn.swish(embedding))
        h = h + bias[:, None, None, :]
        h = nn.swish(Norm(self.groups, self.dtype)(h))
        h = nn.Dropout(self.dropout, deterministic=not train)(h)
        h = conv(kernel_init=ZERO)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """Single-head self-attention over all pixels, added to its input; starts as the identity."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        qkv = nn.Dense(3 * c, dtype=self.dtype)(Norm(self.groups, self.dtype)(x))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * c), 3, axis=-1)
        logits = jnp.einsum("bqc,bkc->bqk", q, k) / math.sqrt(c)
        weights = jax.nn.softmax(logits.astype(jnp.float32), axis=-1).astype(v.dtype)
        mixed = jnp.einsum("bqk,bkc->bqc", weights, v).reshape(b, h, w, c)
        return x + nn.Dense(c, kernel_init=ZERO, dtype=self.dtype)(mixed)


class UNet(nn.Module):
    """Predicts an image-shaped quantity from x ``[B, H, W, C]``, times t and labels ``[B]``.

    Level i works at ceil(size / 2^i), with ``channels * multipliers[i]`` channels; on the way up
    every level is resized to the size it had on the way down, so any height and width will do.

    Attributes:
      channels: the width of the first level.
      multipliers: one factor a level.
      blocks: residual blocks a level on the way down; one more on the way up.
      attention: heights of feature maps (in pixels) that get self-attention after every block.
      dropout: rate inside the residual blocks; drawn from the ``dropout`` stream.
      groups: of the group norms.
      num_classes: if given, ``labels`` are embedded and added to the time embedding.
      out_channels: of the prediction; the input's where None.
      dtype: of the computation; parameters and the prediction are float32.

    Raises:
      ValueError: if the image is too small for the number of levels, or labels and
        ``num_classes`` do not go together.
    """

    channels: int = 128
    multipliers: Sequence[int] = (1, 2, 2, 2)
    blocks: int = 2
    attention: Sequence[int] = (16,)
    dropout: float = 0.0
    groups: int = 32
    num_classes: int | None = None
    out_channels: int | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, t: Array, labels: Array | None = None, *, train: bool = False
    ) -> Array:
        self._check(x, t, labels)
        embedding = sinusoidal_embedding(t, self.channels)
        embedding = nn.Dense(4 * self.channels, dtype=self.dtype)(embedding)
        embedding = nn.Dense(4 * self.channels, dtype=self.dtype)(nn.swish(embedding))
        if labels is not None and self.num_classes is not None:
            embedding += nn.Embed(self.num_classes, 4 * self.channels, dtype=self.dtype)(labels)

        def block(h: Array, multiplier: int) -> Array:
            width = self.channels * multiplier
            h = ResidualBlock(width, self.groups, self.dropout, self.dtype)(h, embedding, train)
            if h.shape[1] in self.attention:
                h = SelfAttention(self.groups, self.dtype)(h)
            return h

        h = nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = nn.Conv(h.shape[-1], (3, 3), strides=2, dtype=self.dtype)(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, multiplier)
                skips.append(h)

        width = h.shape[-1]
        h = ResidualBlock(width, self.groups, self.dropout, self.dtype)(h, embedding, train)
        h = SelfAttention(self.groups, self.dtype)(h)
        h = ResidualBlock(width, self.groups, self.dropout, self.dtype)(h, embedding, train)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), multiplier)
            if level > 0:
                h = nn.Conv(h.shape[-1], (3, 3), dtype=self.dtype)(double(h, skips[-1].shape[1:3]))

        h = nn.swish(Norm(self.groups, self.dtype)(h))
        out = nn.Conv(self.out_channels or x.shape[-1], (3, 3), kernel_init=ZERO, dtype=self.dtype)
        return out(h).astype(jnp.float32)

    def _check(self, x: Array, t: Array, labels: Array | None) -> None:
        if x.ndim != 4 or t.shape != x.shape[:1]:
            raise ValueError(f"x must be [B, H, W, C] and t [B], got {x.shape} and {t.shape}.")
        if (labels is None) != (self.num_classes is None):
            raise ValueError("labels are given if and only if num_classes is set.")
        levels, smallest = len(self.multipliers), min(x.shape[1:3])
        if smallest <= 2 ** (levels - 2) and levels > 1:
            raise ValueError(
                f"a {x.shape[1]}x{x.shape[2]} image cannot be halved {levels - 1} times: "
                f"use at most {1 + math.ceil(math.log2(smallest))} multipliers."
            )


def double(x: Array, size: tuple[int, ...]) -> Array:
    """Nearest-neighbour doubling of ``[B, H, W, C]``, cropped to ``size`` (2H or 2H - 1, ...)."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : size[0], : size[1]]
