"""Latents that are codes: nearest neighbours in a codebook, grids of scalars, relaxed categories.

A code is an integer ``[...]`` for a vector ``[..., Z]``. Gradients pass straight through: what is
decoded is the code's vector, and its gradient is taken for that of the encoder's (van den Oord et
al. 2017, "Neural discrete representation learning", section 3.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array


class Quantized(NamedTuple):
    """What is decoded, with the encoder's gradient, and its codes."""

    z: Array  # [..., Z]
    code: Array  # [...], int32; of several quantizers one after the other [..., depth]


def straight_through(z: Array, quantized: Array) -> Array:
    """The value of ``quantized``, the gradient of ``z``."""
    chex.assert_equal_shape([z, quantized])
    return z + jax.lax.stop_gradient(quantized - z)


# --- codebooks ---------------------------------------------------------------------------------


def nearest(z: Array, vectors: Array) -> Array:
    """Which of ``vectors [K, Z]`` is nearest to each of ``z [..., Z]``: ``[...]``, int32."""
    flat = jax.lax.stop_gradient(z.reshape(-1, z.shape[-1]))
    distance = jnp.sum(vectors**2, axis=1)[None] - 2 * flat @ vectors.T  # but for |z|^2
    return jnp.argmin(distance, axis=1).astype(jnp.int32).reshape(z.shape[:-1])


def commitment(z: Array, quantized: Array) -> Array:
    """The mean of (z - sg[e])^2 over all entries but those of the first axis, ``[B]`` (eq. 3)."""
    apart = (z - jax.lax.stop_gradient(quantized)) ** 2
    return apart.reshape(len(z), -1).mean(axis=1)


@struct.dataclass
class Codebook:
    """Vectors that are moving averages of what was assigned to them (appendix A.1).

    ``count [K]`` and ``total [K, Z]`` are those of a batch, averaged over time; a mean over devices
    of both is the codebook of all of them.
    """

    count: Array
    total: Array

    @property
    def vectors(self) -> Array:
        """e_k, ``[K, Z]``."""
        return self.total / jnp.maximum(self.count, 1e-6)[:, None]


def codebook(key: Array, codes: int, latents: int) -> Codebook:
    """One at random, every code used once."""
    return Codebook(jnp.ones(codes), jax.random.normal(key, (codes, latents)) / math.sqrt(latents))


def assigned(
    key: Array,
    book: Codebook,
    z: Array,
    code: Array,
    *,
    decay: float = 0.99,
    least: float = 0.01,
) -> Codebook:
    """The codebook after ``z [..., Z]`` was assigned to ``code [...]``.

    A code of less than ``least`` of an even share of the batch is dead, and begins anew at one of
    z, drawn at random, with an even share (Dhariwal et al. 2020, section 3.1).
    """
    z, code = jax.lax.stop_gradient(z).reshape(-1, z.shape[-1]), code.reshape(-1)
    codes = len(book.count)
    member = jax.nn.one_hot(code, codes, dtype=z.dtype)  # [N, K]
    used, of_used = member.sum(axis=0), member.T @ z
    drawn = z[jax.random.randint(key, (codes,), 0, len(z))]
    count = decay * book.count + (1 - decay) * used
    total = decay * book.total + (1 - decay) * of_used
    share = len(z) / codes
    dead = count < least * share
    return Codebook(jnp.where(dead, share, count), jnp.where(dead[:, None], share * drawn, total))


def vector_quantize(z: Array, vectors: Array) -> Quantized:
    """``z [..., Z]`` by the nearest of ``vectors [K, Z]``."""
    code = nearest(z, vectors)
    return Quantized(straight_through(z, vectors[code]), code)


def residual_quantize(z: Array, vectors: Sequence[Array]) -> Quantized:
    """Each codebook quantizes what the ones before it left (Zeghidour et al. 2021, algorithm 1)."""
    found, codes = jnp.zeros_like(z), []
    for each in vectors:
        codes.append(nearest(z - found, each))
        found = found + each[codes[-1]]
    return Quantized(straight_through(z, found), jnp.stack(codes, axis=-1))


def perplexity(code: Array, codes: int) -> Array:
    """exp of the entropy of how often each of ``codes`` is used: from 1 to ``codes``, a scalar."""
    share = jnp.bincount(code.reshape(-1), length=codes) / code.size
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share)))


# --- scalars -------------------------------------------------------------------------------------


def finite_scalar(z: Array, levels: Sequence[int]) -> Quantized:
    """Each entry of ``z [..., Z]`` on a grid of its own number of ``levels`` in [-1, 1].

    Mentzer et al. 2024 ("Finite scalar quantization"), section 3.1: the entry is bounded by tanh
    and rounded, with the gradient straight through the rounding. The code counts all grid points.

    Raises:
      AssertionError: unless there is one number of levels an entry.
      ValueError: for less than two levels.
    """
    chex.assert_axis_dimension(z, -1, len(levels))
    if min(levels) < 2:
        raise ValueError(f"an entry takes two levels or more, not {min(levels)}.")
    count = np.asarray(levels)
    middle = (count - 1) / 2  # even numbers of levels have none: their grid lies half a step off
    like = lambda a: jnp.asarray(a, z.dtype).reshape((1,) * (z.ndim - 1) + (-1,))  # noqa: E731
    bounded = like(middle) * jnp.tanh(z)
    half = like(np.where(count % 2, 0.0, 0.5))
    grid = jnp.clip(jnp.round(bounded - half) + half, -like(middle), like(middle))
    quantized = straight_through(bounded, grid) / like(middle)
    digit = jnp.round(grid + like(middle)).astype(jnp.int32)
    basis = np.concatenate([[1], np.cumprod(count[:-1])]).astype(np.int32)
    place = jnp.asarray(basis).reshape((1,) * (z.ndim - 1) + (-1,))
    return Quantized(quantized, jnp.sum(digit * place, axis=-1))


def scalars_of(code: Array, levels: Sequence[int]) -> Array:
    """The grid point ``[..., Z]`` in [-1, 1] of codes ``[...]`` of :func:`finite_scalar`."""
    digits, rest = [], code
    for count in levels:
        digits.append(2 * (rest % count) / (count - 1) - 1)
        rest = rest // count
    return jnp.stack(digits, axis=-1).astype(jnp.float32)


# --- categories ----------------------------------------------------------------------------------


def gumbel_softmax(key: Array, logits: Array, temperature: float | Array) -> Quantized:
    """A draw of the categories ``logits [..., K]``: its one-hot vector, and its index.

    The gradient is that of softmax((logits + Gumbel noise) / temperature) (Jang et al. 2017, eq. 2
    and section 2.2; Maddison et al. 2017).
    """
    noisy = logits + jax.random.gumbel(key, logits.shape, logits.dtype)
    code = jnp.argmax(noisy, axis=-1).astype(jnp.int32)
    hard = jax.nn.one_hot(code, logits.shape[-1], dtype=logits.dtype)
    return Quantized(straight_through(jax.nn.softmax(noisy / temperature), hard), code)


def kl_uniform(logits: Array) -> Array:
    """KL of the categories ``logits [..., K]`` to even ones, ``[...]`` in nats."""
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * log_p, axis=-1) + math.log(logits.shape[-1])
