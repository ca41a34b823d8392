"""The diffusion transformer, DiT, with adaLN-Zero blocks (Peebles & Xie 2023, section 3)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.blocks import applier, attend
from jaxgen.models.embeddings import conditioning, sinusoidal_embedding

ZERO = nn.initializers.zeros_init()


def patchify(x: Array, patch: int) -> Array:
    """Images ``[B, H, W, C]`` -> one token a square, ``[B, HW / patch^2, patch^2 C]``, row by row.

    Raises:
      ValueError: if the patch does not divide the height and the width.
    """
    b, height, width, c = x.shape
    if height % patch != 0 or width % patch != 0:
        raise ValueError(f"a {height}x{width} image cannot be cut into {patch}x{patch} patches.")
    x = x.reshape(b, height // patch, patch, width // patch, patch, c)
    return x.swapaxes(2, 3).reshape(b, -1, patch * patch * c)


def unpatchify(tokens: Array, patch: int, size: tuple[int, int]) -> Array:
    """The inverse of :func:`patchify`, for images of ``size`` (height, width)."""
    height, width = size
    x = tokens.reshape(len(tokens), height // patch, width // patch, patch, patch, -1)
    return x.swapaxes(2, 3).reshape(len(tokens), height, width, -1)


def positions(rows: int, columns: int, width: int) -> Array:
    """Fixed positions ``[rows * columns, width]``: half the width tells the row, half the column.

    Each half is the :func:`sinusoidal_embedding` of the index; width is a multiple of 4.
    """
    row = sinusoidal_embedding(jnp.arange(rows), width // 2)
    column = sinusoidal_embedding(jnp.arange(columns), width // 2)
    return jnp.concatenate([jnp.repeat(row, columns, axis=0), jnp.tile(column, (rows, 1))], axis=1)


def modulation(embedding: Array, count: int, width: int, dtype: Any) -> list[Array]:
    """``count`` arrays ``[B, 1, width]``, linear in swish of the embedding; they start at zero."""
    dense = nn.Dense(count * width, kernel_init=ZERO, dtype=dtype)
    return jnp.split(dense(nn.swish(embedding))[:, None, :], count, axis=-1)


def modulated_norm(x: Array, scale: Array, shift: Array, dtype: Any) -> Array:
    """Adaptive layer norm of ``[B, N, width]``, which has no scale and bias but those given."""
    norm = nn.LayerNorm(epsilon=1e-6, use_scale=False, use_bias=False, dtype=dtype)
    return norm(x) * (1 + scale) + shift


class Block(nn.Module):
    """Attention and a perceptron on tokens ``[B, N, width]``, each behind a gate.

    The embedding ``[B, E]`` gives scale and shift of the norms and the gates, which start at zero,
    so the block starts as the identity.
    """

    heads: int
    ratio: int = 4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, embedding: Array) -> Array:
        width = x.shape[-1]
        dense = lambda n, **kw: nn.Dense(n, dtype=self.dtype, **kw)  # noqa: E731
        told = modulation(embedding, 6, width, self.dtype)

        h = modulated_norm(x, told[0], told[1], self.dtype)
        # A bias of the keys would cancel in the softmax, and one of the values is the output's:
        # neither is here to drift by rounding alone.
        q, kv = dense(width)(h), dense(2 * width, use_bias=False)(h)
        k, v = jnp.split(kv, 2, axis=-1)
        x = x + told[2] * dense(width)(attend(q, k, v, self.heads))

        h = modulated_norm(x, told[3], told[4], self.dtype)
        h = nn.gelu(dense(self.ratio * width)(h))
        return x + told[5] * dense(width)(h)


class DiT(nn.Module):
    """Predicts an image-shaped quantity from x ``[B, H, W, C]`` and times t ``[B]``.

    The defaults are the paper's DiT-S/2.

    Attributes:
      patch: side of the squares that become tokens; it divides the height and the width.
      width: of the tokens, a multiple of 4 and of ``heads``.
      depth: number of blocks.
      heads: of every attention.
      time_features: of ``width`` numbers a time, see :mod:`jaxgen.models.embeddings`.
      num_classes: if given, ``labels [B]`` are embedded and added to the time embedding.
      condition_dim: if given, so is ``condition [B, condition_dim]``.
      out_channels: of the prediction; the input's where None.
      dtype: of the computation; parameters and the prediction are float32.
      remat: whether blocks are computed again for the gradient, in exchange for memory.

    Raises:
      ValueError: if the image cannot be cut into patches, the width into heads, or labels and
        ``num_classes``, condition and ``condition_dim`` do not go together.
    """

    patch: int = 2
    width: int = 384
    depth: int = 12
    heads: int = 6
    time_features: Callable[[Array, int], Array] = sinusoidal_embedding
    num_classes: int | None = None
    condition_dim: int | None = None
    out_channels: int | None = None
    dtype: Any = jnp.float32
    remat: bool = False

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
        if x.ndim != 4 or t.shape != x.shape[:1]:
            raise ValueError(f"x must be [B, H, W, C] and t [B], got {x.shape} and {t.shape}.")
        if self.width % 4 != 0:
            raise ValueError(f"the width must be a multiple of 4, got {self.width}.")
        embedding = conditioning(
            self.time_features(t, self.width),
            labels,
            condition,
            width=self.width,
            num_classes=self.num_classes,
            condition_dim=self.condition_dim,
            dtype=self.dtype,
        )
        _, height, width, channels = x.shape
        h = nn.Dense(self.width, dtype=self.dtype)(patchify(x, self.patch))
        where = positions(height // self.patch, width // self.patch, self.width)
        h = h + where[None, :, :].astype(h.dtype)

        apply = applier(self.remat)
        for _ in range(self.depth):
            h = apply(Block(self.heads, dtype=self.dtype), h, embedding)

        scale, shift = modulation(embedding, 2, self.width, self.dtype)
        h = modulated_norm(h, scale, shift, self.dtype)
        outputs = self.patch**2 * (self.out_channels or channels)
        h = nn.Dense(outputs, kernel_init=ZERO, dtype=self.dtype)(h)
        return unpatchify(h, self.patch, (height, width)).astype(jnp.float32)
