"""The U-Net of Ho et al. 2020 (appendix B), for images of any height, width and channels.

Options beyond the paper, off by default, are those of Dhariwal & Nichol 2021 (section 3).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxgen.models.blocks import GroupNorm, applier, attend
from jaxgen.models.embeddings import conditioning, sinusoidal_embedding

ZERO = nn.initializers.zeros_init()


class Norm(nn.Module):
    """Group norm with as many of ``groups`` as divide the channels; statistics in float32."""

    groups: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        groups = math.gcd(self.groups, x.shape[-1])
        return GroupNorm(groups, dtype=self.dtype)(x)


class ResidualBlock(nn.Module):
    """norm-swish-conv, norm-swish-dropout-conv, plus a shortcut, told of an embedding between.

    The embedding is added before the second norm, or, with ``scale_shift``, scales and shifts what
    that norm answers: norm(h) (1 + scale) + shift (Dhariwal & Nichol 2021, section 3.1). The last
    convolution starts at zero, so the block starts as its shortcut.
    """

    channels: int
    groups: int
    dropout: float = 0.0  # of this call: zero outside training
    scale_shift: bool = False
    dtype: Any = jnp.float32
    convolution: Callable[..., Array] = lax.conv_general_dilated

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        conv = partial(
            nn.Conv,
            self.channels,
            (3, 3),
            dtype=self.dtype,
            conv_general_dilated=self.convolution,
        )
        h = conv()(nn.swish(Norm(self.groups, self.dtype)(x)))
        outputs = 2 * self.channels if self.scale_shift else self.channels
        told = nn.Dense(outputs, dtype=self.dtype)(nn.swish(embedding))[:, None, None, :]
        norm = Norm(self.groups, self.dtype)
        if self.scale_shift:
            scale, shift = jnp.split(told, 2, axis=-1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + told)
        h = nn.Dropout(self.dropout, deterministic=False)(nn.swish(h))
        h = conv(kernel_init=ZERO)(h)
        if x.shape[-1] != self.channels:
            x = nn.Dense(self.channels, dtype=self.dtype)(x)
        return x + h


class SelfAttention(nn.Module):
    """Self-attention over all pixels, added to its input; starts as the identity."""

    groups: int
    heads: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, h, w, c = x.shape
        qkv = nn.Dense(3 * c, dtype=self.dtype)(Norm(self.groups, self.dtype)(x))
        q, k, v = jnp.split(qkv.reshape(b, h * w, 3 * c), 3, axis=-1)
        mixed = attend(q, k, v, self.heads).reshape(b, h, w, c)
        return x + nn.Dense(c, kernel_init=ZERO, dtype=self.dtype)(mixed)


class UNet(nn.Module):
    """Predicts an image-shaped quantity from x ``[B, H, W, C]`` and times t ``[B]``.

    Level i works at ceil(size / 2^i), with ``channels * multipliers[i]`` channels; on the way up
    every level is resized to the size it had on the way down, so any height and width will do.

    Attributes:
      channels: the width of the first level.
      multipliers: one factor a level.
      blocks: residual blocks a level on the way down; one more on the way up.
      attention: heights of feature maps (in pixels) that get self-attention after every block.
      heads: of every attention; they divide its channels.
      dropout: rate inside the residual blocks; drawn from the ``dropout`` stream.
      groups: of the group norms.
      scale_shift: whether the embedding scales and shifts in the residual blocks, or is added.
      time_features: of ``channels`` numbers a time, see :mod:`jaxgen.models.embeddings`.
      num_classes: if given, ``labels [B]`` are embedded and added to the time embedding.
      condition_dim: if given, so is ``condition [B, condition_dim]``.
      out_channels: of the prediction; the input's where None.
      dtype: of the computation; parameters and the prediction are float32.
      remat: whether blocks are computed again for the gradient, in exchange for memory.
      convolution: with the arguments of ``lax.conv_general_dilated``; on CPU, for training steps
        inside ``lax.scan``, :func:`jaxgen.models.convolution.convolve`.

    Raises:
      ValueError: if the image is too small for the number of levels, the heads do not divide the
        channels, or labels and ``num_classes``, condition and ``condition_dim`` do not go together.
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
    heads: int = 1
    scale_shift: bool = False
    time_features: Callable[[Array, int], Array] = sinusoidal_embedding
    condition_dim: int | None = None
    remat: bool = False
    convolution: Callable[..., Array] = lax.conv_general_dilated

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
        self._check(x, t)
        embedding = conditioning(
            self.time_features(t, self.channels),
            labels,
            condition,
            width=4 * self.channels,
            num_classes=self.num_classes,
            condition_dim=self.condition_dim,
            dtype=self.dtype,
        )
        apply, dropout = applier(self.remat), self.dropout if train else 0.0

        def residual(h: Array, width: int) -> Array:
            block = ResidualBlock(
                width, self.groups, dropout, self.scale_shift, self.dtype, self.convolution
            )
            return apply(block, h, embedding)

        def attention(h: Array) -> Array:
            return apply(SelfAttention(self.groups, self.heads, self.dtype), h)

        def block(h: Array, multiplier: int) -> Array:
            h = residual(h, self.channels * multiplier)
            return attention(h) if h.shape[1] in self.attention else h

        conv = partial(nn.Conv, dtype=self.dtype, conv_general_dilated=self.convolution)
        h = conv(self.channels, (3, 3))(x)
        skips = [h]
        for level, multiplier in enumerate(self.multipliers):
            if level > 0:
                h = conv(h.shape[-1], (3, 3), strides=2)(h)
                skips.append(h)
            for _ in range(self.blocks):
                h = block(h, multiplier)
                skips.append(h)

        width = h.shape[-1]
        h = residual(attention(residual(h, width)), width)

        for level, multiplier in reversed(list(enumerate(self.multipliers))):
            for _ in range(self.blocks + 1):
                h = block(jnp.concatenate([h, skips.pop()], axis=-1), multiplier)
            if level > 0:
                h = conv(h.shape[-1], (3, 3))(double(h, skips[-1].shape[1:3]))

        h = nn.swish(Norm(self.groups, self.dtype)(h))
        out = conv(self.out_channels or x.shape[-1], (3, 3), kernel_init=ZERO)
        return out(h).astype(jnp.float32)

    def _check(self, x: Array, t: Array) -> None:
        if x.ndim != 4 or t.shape != x.shape[:1]:
            raise ValueError(f"x must be [B, H, W, C] and t [B], got {x.shape} and {t.shape}.")
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
