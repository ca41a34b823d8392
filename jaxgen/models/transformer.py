"""A transformer over tokens, each told of those before it, or of all (Vaswani et al. 2017)."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen.models.embeddings import FourierFeatures

INIT = nn.initializers.normal(0.02)

# queries, keys and values [B, T, heads, size] -> what is found, and what is left for those to come
Attention = Callable[[Array, Array, Array], tuple[Array, Any]]
Places = Array | np.ndarray  # of tokens, [1, T] or [B, T]


class Cache(NamedTuple):
    """A layer's keys and values of what was seen, ``[B, heads, length, size]``."""

    keys: Array
    values: Array


@jax.checkpoint
def up_to_own(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """Attention to the tokens up to one's own.

    By quarters of the queries, each with no more keys than it may see, which saves three eighths of
    the products; weights are taken again for the gradient, where to keep them would take longer.
    """
    ends = [q.shape[1] * i // 4 for i in range(5)]
    found = []
    for start, end in itertools.pairwise(ends):
        before = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        found.append(attend(q[:, start:end], k[:, :end], v[:, :end], before[None, None]))
    return jnp.concatenate(found, axis=1), None


def to_all(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """Attention to all tokens."""
    return attend(q, k, v), None


def with_cache(cache: Cache, at: Array | int, first: Array) -> Attention:
    """:func:`up_to_own` of tokens from the place ``at`` on, with those before it in a cache."""

    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(old, new.swapaxes(1, 2), at, axis=2)
            for old, new in zip(cache, (k, v), strict=True)
        )
        slots, rows = jnp.arange(k.shape[2]), at + jnp.arange(q.shape[1])
        causal = slots[None, None] <= rows[None, :, None]
        mask = causal & (slots[None, None] >= first[:, None, None])  # [B, T, length]
        return attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask[:, None]), Cache(k, v)

    return attention


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention of queries, keys and values ``[B, T, heads, size]``, where ``mask`` lets it."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


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

    def empty(self, count: int) -> tuple[Cache, ...]:
        """A cache of nothing for ``count`` sequences, a part for each layer."""
        shape = (count, self.shared, self.length, self.width // self.heads)
        return (Cache(jnp.zeros(shape), jnp.zeros(shape)),) * self.layers

    def __call__(self, tokens: Array, told: Array | None = None, train: bool = False) -> Array:
        """What else it is ``told [B, width]`` is added to every token."""
        places = np.arange(tokens.shape[1])[None]  # known, so that the angles are constants
        h = self._embedded(tokens, places)
        h = (h if told is None else h + told[:, None]).reshape(-1, self.width)
        for block in self.blocks:
            h, _ = block(h, places, self.attention, train=train)
        return self._logits(h, tokens)

    def extend(
        self, tokens: Array, cache: tuple[Cache, ...], at: Array | int, first: Array
    ) -> tuple[Array, tuple[Cache, ...]]:
        """The same for tokens at the places from ``at`` on, with a cache of those before them, to
        which they attend: not of :func:`to_all`.

        Sequence b begins at the place ``first [B]``: what lies before it is filling, and not seen,
        so that prompts of different lengths end at the same place.
        """
        slots = at + jnp.arange(tokens.shape[1])[None]
        places = jnp.maximum(slots - first[:, None], 0)
        h, after = self._embedded(tokens, places).reshape(-1, self.width), []
        for block, part in zip(self.blocks, cache, strict=True):
            h, seen = block(h, places, with_cache(part, at, first))
            after.append(seen)
        return self._logits(h, tokens), tuple(after)

    def _embedded(self, tokens: Array, places: Places) -> Array:
        h = self.embedding(tokens)
        return h if self.rotary else h + jnp.take(self.position, places, axis=0)

    def _logits(self, h: Array, tokens: Array) -> Array:
        return self.embedding.attend(self.norm(h)).reshape(*tokens.shape, self.vocabulary)


class Block(nn.Module):
    """Attention, then a perceptron, each added to what it sees.

    Tokens are rows ``[B T, width]``: the gradient of a matrix is then one product as it is, where
    sums over two axes ``[B, T, width]`` would have everything transposed first.
    """

    width: int
    heads: int
    key_heads: int
    rotary: bool
    swiglu: bool
    dropout: float
    scale: float

    @nn.compact
    def __call__(
        self, h: Array, places: Places, attention: Attention, train: bool = False
    ) -> tuple[Array, Any]:
        size, tokens = self.width // self.heads, places.shape[1]
        x = nn.RMSNorm()(h)
        ends = self.heads, self.heads + self.key_heads
        qkv = self._dense((ends[1] + self.key_heads) * size)(x)
        q, k, v = jnp.split(qkv.reshape(-1, tokens, ends[1] + self.key_heads, size), ends, axis=2)
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


def turned(x: Array, places: Places) -> Array:
    """``x [B, T, heads, size]``, whose pairs of entries are turned by angles that grow with places.

    The product of two of them depends on the distance of their places alone (Su et al. 2021,
    eq. 15, with the pairs (i, i + size / 2)).
    """
    half, xp = x.shape[-1] // 2, np if isinstance(places, np.ndarray) else jnp
    frequency = 10_000.0 ** (-np.arange(half) / half)
    angle = (places[..., None] * frequency.reshape((1,) * places.ndim + (-1,)))[:, :, None]
    a, b = x[..., :half], x[..., half:]
    cos, sin = xp.cos(angle).astype(x.dtype), xp.sin(angle).astype(x.dtype)
    return jnp.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)
