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
    """Attention to the tokens up to one's own."""

    def part(start: int, end: int) -> Array:
        before = jnp.arange(end)[None] <= jnp.arange(start, end)[:, None]
        return attend(q[:, start:end], k[:, :end], v[:, :end], before[None, None])

    return by_quarters(q.shape[1], 1, part), None


def by_quarters(length: int, block: int, part: Callable[[int, int], Array]) -> Array:
    """What is found for the queries from a place to another, quarter by quarter of all blocks.

    Each with no more keys than it may see, which saves three eighths of the products; under
    ``checkpoint`` weights are taken again for the gradient, where to keep them would take longer.
    """
    ends = sorted({length // block * i // 4 * block for i in range(4)} | {length})
    found = [part(start, end) for start, end in itertools.pairwise(ends)]
    return jnp.concatenate(found, axis=1)


def to_all(q: Array, k: Array, v: Array) -> tuple[Array, None]:
    """Attention to all tokens."""
    return attend(q, k, v), None


def beside_clean(block: int, copies: int = 1) -> Attention:
    """Attention of clean tokens ``[B, T]`` and of their noisy forms, ``copies`` of each, which
    follow in the batch, ``[copies B, T]``.

    In blocks of so many tokens, clean ones attend to those of their own block and of all before it,
    noisy ones to those of their own block and to the clean ones of all before it (Arriola et al.
    2025, "Block diffusion", section 3).
    """

    @jax.checkpoint
    def attention(q: Array, k: Array, v: Array) -> tuple[Array, None]:
        (k, *noisy_k), (v, *noisy_v) = (jnp.split(x, 1 + copies) for x in (k, v))

        def part(start: int, end: int) -> Array:
            clean, *noisy = jnp.split(q[:, start:end], 1 + copies)
            own, seen = jnp.arange(start, end)[:, None] // block, jnp.arange(end)[None] // block
            found = [attend(clean, k[:, :end], v[:, :end], (seen <= own)[None, None])]
            beside = jnp.concatenate([seen < own, own == own.T], axis=1)[None, None]
            for q_t, k_t, v_t in zip(noisy, noisy_k, noisy_v, strict=True):
                keys = jnp.concatenate([k[:, :end], k_t[:, start:end]], axis=1)
                values = jnp.concatenate([v[:, :end], v_t[:, start:end]], axis=1)
                found.append(attend(q_t, keys, values, beside))
            return jnp.concatenate(found)

        return by_quarters(q.shape[1], block, part), None

    return attention


def with_cache(cache: Cache, at: Array | int, first: Array, block: int = 1) -> Attention:
    """Attention of tokens from the place ``at`` on to those up to their own, or to the last of
    their ``block``, with those before ``at`` in a cache."""

    def attention(q: Array, k: Array, v: Array) -> tuple[Array, Cache]:
        k, v = (
            jax.lax.dynamic_update_slice_in_dim(
                old, new.swapaxes(1, 2).astype(old.dtype), at, axis=2
            )
            for old, new in zip(cache, (k, v), strict=True)
        )
        slots, rows = jnp.arange(k.shape[2]), at + jnp.arange(q.shape[1])
        causal = slots[None, None] // block <= rows[None, :, None] // block
        mask = causal & (slots[None, None] >= first[:, None, None])  # [B, T, length]
        keys, values = (x.swapaxes(1, 2).astype(q.dtype) for x in (k, v))
        return attend(q, keys, values, mask[:, None]), Cache(k, v)

    return attention


def attend(q: Array, k: Array, v: Array, mask: Array | None = None) -> Array:
    """Attention of queries, keys and values ``[B, T, heads, size]``, where ``mask`` lets it."""
    return jax.nn.dot_product_attention(q, k, v, mask=mask)


class Transformer(nn.Module):
    """Tokens ``[B, T]`` -> logits ``[B, T, vocabulary]``: of what follows each of them where the
    attention is :func:`up_to_own`, of each itself where it is to all.

    Norms come before attention and perceptron (Xiong et al. 2020), and output and input embedding
    are one table (Press & Wolf 2017). Positions are a learned table, or ``rotary`` (Su et al.
    2021). Queries share keys and values in groups where ``key_heads`` is less than ``heads``
    (Ainslie et al. 2023); the perceptron is a GELU, or with ``swiglu`` gated (Shazeer 2020).

    Raises:
      ValueError: if the heads do not divide the width, or the key heads the heads, or if a head is
        of an odd width that has no pairs to be turned; for more tokens than its length.
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
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide a width of {self.width}.")
        if self.heads % self.shared:
            raise ValueError(f"{self.shared} key heads do not divide {self.heads} heads.")
        if self.rotary and self.width // self.heads % 2:
            size = self.width // self.heads
            raise ValueError(f"heads of {size} have no pairs to turn: use another width.")
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
        zeros = jnp.zeros(shape, jnp.float32)
        return (Cache(zeros, zeros),) * self.layers

    def __call__(
        self,
        tokens: Array,
        told: Array | None = None,
        train: bool = False,
        attention: Attention = up_to_own,
    ) -> Array:
        """What else it is ``told [B, width]`` is added to every token."""
        self._refuse_longer(tokens.shape[1])
        places = np.arange(tokens.shape[1])[None]  # known, so that the angles are constants
        h = self._embedded(tokens, places, told)
        for block in self.blocks:
            h, _ = block(h, places, attention, train=train)
        return self._logits(h, tokens)

    def extend(
        self,
        tokens: Array,
        cache: tuple[Cache, ...],
        at: Array | int,
        first: Array,
        told: Array | None = None,
        together: int = 1,
    ) -> tuple[Array, tuple[Cache, ...]]:
        """The same for tokens at the places from ``at`` on, with a cache of those before them, to
        which they attend: not of :func:`to_all`.

        Sequence b begins at the place ``first [B]``: what lies before it is filling, and not seen,
        so that prompts of different lengths end at the same place. Tokens ``together`` in blocks
        of so many attend to each other both ways.
        """
        self._refuse_longer(tokens.shape[1] + (at if isinstance(at, int) else 0))
        slots = at + jnp.arange(tokens.shape[1])[None]
        places = jnp.maximum(slots - first[:, None], 0)
        h, after = self._embedded(tokens, places, told), []
        for block, part in zip(self.blocks, cache, strict=True):
            h, seen = block(h, places, with_cache(part, at, first, together))
            after.append(seen)
        return self._logits(h, tokens), tuple(after)

    def _refuse_longer(self, tokens: int) -> None:
        if tokens > self.length:
            raise ValueError(f"{tokens} tokens are more than the {self.length} of the transformer.")

    def _embedded(self, tokens: Array, places: Places, told: Array | None) -> Array:
        h = self.embedding(tokens)
        h = h if self.rotary else h + jnp.take(self.position, places, axis=0)
        return (h if told is None else h + told[:, None]).reshape(-1, self.width)

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

    With a ``block`` the transformer attends by :func:`beside_clean`: every block of so many tokens
    is told of the clean ones before it, of x_0 ``[B, L]`` in training, of a cache in sampling. Of
    each x_0 there may be several noisy forms, which follow one another, ``x_t [copies B, L]``.

    Raises:
      ValueError: for blocks that are told a time, or are not told x_0.
    """

    transformer: Transformer
    tokens: int
    timed: bool = False
    classes: int | None = None
    block: int | None = None

    def setup(self) -> None:
        width = self.transformer.width
        if self.timed and self.block is not None:
            raise ValueError("clean tokens beside noisy ones have no time: use no block, or masks.")
        if self.timed and width < 2:
            raise ValueError("a time is told by two numbers or more: use a larger width.")
        if self.timed:
            self.time = nn.Sequential([nn.Dense(width), nn.silu, nn.Dense(width)])
        if self.classes is not None:
            self.label = nn.Embed(self.classes, width, embedding_init=INIT)

    def __call__(
        self,
        x_t: Array,
        t: Array,
        labels: Array,
        x_0: Array | None = None,
        train: bool = False,
    ) -> Array:
        told = self._told(t, labels)
        if self.block is None:
            return self.transformer(x_t, told, train, to_all)[..., : self.tokens]
        if x_0 is None:
            raise ValueError("a block is told those before it: give x_0.")
        copies = len(x_t) // len(x_0)
        told = None if told is None else jnp.tile(told, (1 + copies, 1))
        attention = beside_clean(self.block, copies)
        both = self.transformer(jnp.concatenate([x_0, x_t]), told, train, attention)
        return both[len(x_0) :, :, : self.tokens]

    def extend(
        self, x_t: Array, t: Array, labels: Array, cache: Any, at: Array | int
    ) -> tuple[Array, Any]:
        """The same for a block at the places from ``at`` on, with a cache of the clean tokens
        before it; the cache that is answered knows x_t."""
        first, told = jnp.zeros(len(x_t), jnp.int32), self._told(t, labels)
        logits, cache = self.transformer.extend(x_t, cache, at, first, told, self.block or 1)
        return logits[..., : self.tokens], cache

    def _told(self, t: Array, labels: Array) -> Array | None:
        width, told = self.transformer.width, None
        if self.timed:
            told = self.time(FourierFeatures()(t, width))
        if self.classes is not None:
            label = self.label(labels)
            told = label if told is None else told + label
        return told


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
