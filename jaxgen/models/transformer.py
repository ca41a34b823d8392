"""A decoder-only transformer over tokens (Vaswani et al. 2017; Radford et al. 2019)."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

INIT = nn.initializers.normal(0.02)


class Cache(NamedTuple):
    """Keys and values of what was seen, ``[layers, B, length, heads, size]``."""

    keys: Array
    values: Array


class Transformer(nn.Module):
    """Tokens ``[B, T]`` -> logits ``[B, T, vocabulary]`` of what follows each of them.

    Norms come before attention and perceptron (Xiong et al. 2020), and output and input embedding
    are one table (Press & Wolf 2017). Positions are a learned table, or ``rotary`` (Su et al.
    2021). Queries share keys and values in groups where ``key_heads`` is less than ``heads``
    (Ainslie et al. 2023); the perceptron is a GELU, or with ``swiglu`` gated (Shazeer 2020).

    Raises:
      ValueError: if the heads do not divide the width, or the key heads the heads.
    """

    vocabulary: int
    length: int  # the most tokens
    width: int = 128
    layers: int = 4
    heads: int = 4
    key_heads: int | None = None
    rotary: bool = True
    swiglu: bool = False
    dropout: float = 0.0

    def setup(self) -> None:
        if self.width % self.heads or self.heads % self.shared:
            raise ValueError(
                f"{self.heads} heads of {self.shared} keys do not divide a width of {self.width}."
            )
        self.embedding = nn.Embed(self.vocabulary, self.width, embedding_init=INIT)
        if not self.rotary:
            self.position = self.param("position", INIT, (self.length, self.width))
        size = (self.width, self.heads, self.shared, self.rotary, self.swiglu, self.dropout)
        depth = (2 * self.layers) ** -0.5  # of what is added to the residual stream
        self.blocks = [Block(*size, scale=depth) for _ in range(self.layers)]
        self.norm = nn.RMSNorm()

    @property
    def shared(self) -> int:
        """Heads of keys and values."""
        return self.key_heads or self.heads

    def empty(self, count: int) -> Cache:
        """A cache of nothing, for ``count`` sequences."""
        shape = (self.layers, count, self.length, self.shared, self.width // self.heads)
        return Cache(jnp.zeros(shape), jnp.zeros(shape))

    def __call__(self, tokens: Array, train: bool = False) -> Array:
        places = jnp.arange(tokens.shape[1])[None]
        h = self._embedded(tokens, places)
        for block in self.blocks:
            h, _ = block(h, places, train=train)
        return self.embedding.attend(self.norm(h))

    def extend(
        self, tokens: Array, cache: Cache, at: Array | int, first: Array
    ) -> tuple[Array, Cache]:
        """The same for tokens at the places from ``at`` on, with a cache of those before them.

        Sequence b begins at the place ``first [B]``: what lies before it is filling, and not seen,
        so that prompts of different lengths end at the same place.
        """
        slots = at + jnp.arange(tokens.shape[1])[None]
        places = jnp.maximum(slots - first[:, None], 0)
        h, after = self._embedded(tokens, places), []
        for i, block in enumerate(self.blocks):
            h, seen = block(h, places, (cache.keys[i], cache.values[i], at, first))
            after.append(seen)
        keys, values = (jnp.stack(found) for found in zip(*after, strict=True))
        return self.embedding.attend(self.norm(h)), Cache(keys, values)

    def _embedded(self, tokens: Array, places: Array) -> Array:
        h = self.embedding(tokens)
        return h if self.rotary else h + jnp.take(self.position, places, axis=0)


class Block(nn.Module):
    """Attention to the tokens up to its own, then a perceptron, each added to what it sees."""

    width: int
    heads: int
    key_heads: int
    rotary: bool
    swiglu: bool
    dropout: float
    scale: float

    @nn.compact
    def __call__(
        self, h: Array, places: Array, seen: Any = None, train: bool = False
    ) -> tuple[Array, Any]:
        size = self.width // self.heads
        x = nn.RMSNorm()(h)
        q = self._dense(self.heads * size)(x).reshape(*x.shape[:2], self.heads, size)
        k = self._dense(self.key_heads * size)(x).reshape(*x.shape[:2], self.key_heads, size)
        v = self._dense(self.key_heads * size)(x).reshape(*x.shape[:2], self.key_heads, size)
        if self.rotary:
            q, k = turned(q, places), turned(k, places)
        if seen is None:
            found, after = jax.nn.dot_product_attention(q, k, v, is_causal=True), None
        else:
            keys, values, at, first = seen
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=1)
                for old, new in ((keys, k), (values, v))
            )
            slots, rows = jnp.arange(keys.shape[1]), at + jnp.arange(x.shape[1])
            causal = slots[None, None] <= rows[None, :, None]
            mask = causal & (slots[None, None] >= first[:, None, None])  # [B, T, length]
            found = jax.nn.dot_product_attention(q, keys, values, mask=mask[:, None])
            after = keys, values
        drop = nn.Dropout(self.dropout, deterministic=not train)
        h = h + drop(self._dense(self.width, self.scale)(found.reshape(x.shape)))
        x = nn.RMSNorm()(h)
        if self.swiglu:
            hidden = 8 * self.width // 3
            x = nn.silu(self._dense(hidden)(x)) * self._dense(hidden)(x)
        else:
            x = nn.gelu(self._dense(4 * self.width)(x))
        return h + drop(self._dense(self.width, self.scale)(x)), after

    def _dense(self, features: int, scale: float = 1.0) -> nn.Dense:
        return nn.Dense(features, use_bias=False, kernel_init=nn.initializers.normal(0.02 * scale))


def turned(x: Array, places: Array) -> Array:
    """``x [B, T, heads, size]``, whose pairs of entries are turned by angles that grow with places.

    The product of two of them depends on the distance of their places alone (Su et al. 2021,
    eq. 15, with the pairs (i, i + size / 2)).
    """
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-jnp.arange(half) / half)
    angle = (places[..., None] * frequency.reshape((1,) * places.ndim + (-1,)))[:, :, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
