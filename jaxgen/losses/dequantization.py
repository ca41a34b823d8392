"""Bounds on the probability of discrete data under a density, by noise within their bins.

A density p of values x gives bins b the probability P(b), the integral of p over their volume. For
any q(x|b) on that volume, log P(b) >= E_q[log p(x) - log q(x|b)]: with a uniform q (Theis et al.
2016, section 3.1), or a learned one (Ho et al. 2019, "Flow++", eq. 5 and 6). The bins tile [-1, 1].
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.likelihood import dequantize as even_noise

# (key, bins [B, ...] in 0 .. levels - 1) -> x of q(x|bins), of their shape, and log q [B]
Dequantize = Callable[[Array, Array], tuple[Array, Array]]


def within(bins: Array, u: Array, levels: int) -> Array:
    """The value in [-1, 1] at the share u in [0, 1] of a bin's width from its lower edge."""
    return (bins + u) / levels * 2 - 1


def bin_of(x: Array, levels: int) -> Array:
    """The bin ``0 .. levels - 1`` that holds x, the nearest one beyond [-1, 1]; int32."""
    return jnp.clip(jnp.floor((x + 1) / 2 * levels), 0, levels - 1).astype(jnp.int32)


def log_volume(bins: Array, levels: int) -> float:
    """That of the bins of one example, (2 / levels)^D."""
    return bins[0].size * float(np.log(2 / levels))


def uniform(levels: int) -> Dequantize:
    """q(x|b) even over the bin."""

    def dequantize(key: Array, bins: Array) -> tuple[Array, Array]:
        log_q = jnp.full(len(bins), -log_volume(bins, levels))
        return even_noise(key, bins, levels), log_q

    return dequantize


def variational(levels: int, draw: Dequantize) -> Dequantize:
    """q(x|b) of the shares u in [0, 1] that ``draw(key, bins)`` answers with log q(u|b) ``[B]``."""

    def dequantize(key: Array, bins: Array) -> tuple[Array, Array]:
        u, log_q = draw(key, bins)
        chex.assert_equal_shape([u, bins])
        return within(bins, u, levels), log_q - log_volume(bins, levels)

    return dequantize


def dequantized_bound(
    key: Array,
    log_prob: Callable[[Array], Array],
    dequantize: Dequantize,
    bins: Array,
    samples: int = 1,
) -> Array:
    """log 1/K sum_k p(x_k) / q(x_k|b), ``[B]`` nats: a lower bound on log P(b) in expectation.

    It grows with K towards log P(b) (Ho et al. 2019, eq. 13). ``log_prob`` maps ``[B, ...]`` to
    ``[B]``. All K ``samples`` are held at a time.
    """

    def one(key: Array) -> Array:
        x, log_q = dequantize(key, bins)
        log_p = log_prob(x)
        chex.assert_shape([log_p, log_q], (len(bins),))
        return log_p - log_q

    if samples == 1:
        return one(key)
    each = jax.vmap(one)(jax.random.split(key, samples))
    return jax.nn.logsumexp(each, axis=0) - np.log(samples)
