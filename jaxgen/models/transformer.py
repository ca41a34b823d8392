"""A transformer over tokens, each told of those before it, or of all (Vaswani et al. 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.embeddings import FourierFeatures

INIT = nn.initializers.normal(0.02)

# queries, keys and values [B, T, heads, size] -> what is found, and what is left for those to come
Attention = Callable[[Array, Array, Array], tuple[Array, Any]]


class Cache(NamedTuple):
    """Keys and values of what was seen, ``[layers, B, length, heads, size]``."""

    keys: Array
    values: Array


def up_to_own(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """Attention to the tokens up to one's own."""
    return jax.nn.dot_product_attention(q, k, v, is_causal=True), None


def to_all(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """Attention to all tokens."""
    return jax.nn.dot_product_attention(q, k, v), None


def with_cache(keys: Array, values: Array, at: Array | int, first: Array) -> Attention:
    """:func:`up_to_own` of tokens from the place ``at`` on, with those before it in a cache."""

    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Any]:
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=1)
            for old, new in ((keys, k), (values, v))
        )
        slots, rows = jnp.arange(k.shape[1]), at + jnp.arange(q.shape[1])
        causal = slots[None, None] <= rows[None, :, None]
        mask = causal & (slots[None, None] >= first[:, None, None])  # [B, T, length]
        return jax.nn.dot_product_attention(q, k, v, mask=mask[:, None]), (k, v)

    return attention


class Transformer(nn.Module):
    """Tokens ``[B, T]`` -> logits ``[B, T, vocabulary]``: of what follows each of them where the
    attention is :func:`up_to_own`, of each itself where it is :func:`to_all`.

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
    attention: Attention = up_to_own

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

    def __call__(self, tokens: Array, told: Array | None = None, train: bool = False) -> Array:
        """What else it is ``told [B, width]`` is added to every token."""
        places = jnp.arange(tokens.shape[1])[None]
        h = self._embedded(tokens, places)
        h = h if told is None else h + told[:, None]
        for block in self.blocks:
            h, _ = block(h, places, self.attention, train=train)
        return self.embedding.attend(self.norm(h))

    def extend(
        self, tokens: Array, cache: Cache, at: Array | int, first: Array
    ) -> tuple[Array, Cache]:
        """The same for tokens at the places from ``at`` on, with a cache of those before them, to
        which they attend: not of :func:`to_all`.

        Sequence b begins at the place ``first [B]``: what lies before it is filling, and not seen,
        so that prompts of different lengths end at the same place.
        """
        slots = at + jnp.arange(tokens.shape[1])[None]
        places = jnp.maximum(slots - first[:, None], 0)
        h, after = self._embedded(tokens, places), []
        for i, block in enumerate(self.blocks):
            h, seen = block(h, places, with_cache(cache.keys[i], cache.values[i], at, first))
            after.append(seen)
        keys, values = (jnp.stack(found) for found in zip(*after, strict=True))
        return self.embedding.attend(self.norm(h)), Cache(keys, values)

    def _embedded(self, tokens: Array, places: Array) -> Array:
        h = self.embedding(tokens)
        return h if self.rotary else h + jnp.take(self.position, places, axis=0)


class Block(nn.Module):
    """Attention, then a perceptron, each added to what it sees."""

    width: int
    heads: int
    key_heads: int
    rotary: bool
    swiglu: bool
    dropout: float
    scale: float

    @nn.compact
    def __call__(
        self, h: Array, places: Array, attention: Attention, train: bool = False
    ) -> tuple[Array, Any]:
        size = self.width // self.heads
        x = nn.RMSNorm()(h)
        q = self._dense(self.heads * size)(x).reshape(*x.shape[:2], self.heads, size)
        k = self._dense(self.key_heads * size)(x).reshape(*x.shape[:2], self.key_heads, size)
        v = self._dense(self.key_heads * size)(x).reshape(*x.shape[:2], self.key_heads, size)
        if self.rotary:
            q, k = turned(q, places), turned(k, places)
        found, after = attention(q, k, v)
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


class TokenDenoiser(nn.Module):
    """Noisy tokens ``x_t [B, L]`` -> logits ``[B, L, tokens]`` of what they were.

    The transformer attends to all, and its vocabulary may have more, such as a mask. Where it is
    ``timed`` it is told t ``[B]`` in [0, 1], and of data with ``classes`` the labels ``[B]``. Under
    masks the best answer is the same at every time, and nothing need be told (Ou et al. 2024,
    theorem 1).
    """

    transformer: Transformer
    tokens: int
    timed: bool = False
    classes: int | None = None

    @nn.compact
    def __call__(self, x_t: Array, t: Array, labels: Array, train: bool = False) -> Array:
        width, told = self.transformer.width, None
        if self.timed:
            told = nn.Dense(width)(nn.silu(nn.Dense(width)(FourierFeatures()(t, width))))
        if self.classes is not None:
            label = nn.Embed(self.classes, width, embedding_init=INIT)(labels)
            told = label if told is None else told + label
        return self.transformer(x_t, told, train)[..., : self.tokens]


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
