"""Path length regularization (Karras et al. 2020, StyleGAN2, section 3.2).

A step in w should change the image by as much wherever it is made: ||J_w^T y|| of random images y
is held at its own mean.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array


def path_length(key: Array, synthesize: Callable[[Array], Array], w: Array) -> Array:
    """||J_w^T y|| ``[B]`` for y ~ N(0, I) / sqrt(H W).

    ``synthesize`` takes w ``[B, ...]`` to images ``[B, H, W, C]``, each from its own w alone. y is
    divided so that lengths are comparable between sizes of images.
    """
    x, pull = jax.vjp(synthesize, w)
    chex.assert_rank(x, 4)
    y = jax.random.normal(key, x.shape, x.dtype) / (x.shape[1] * x.shape[2]) ** 0.5
    (slope,) = pull(y)
    squared = jnp.sum(slope.reshape(len(w), -1) ** 2, axis=-1)
    flat = squared == 0  # where the root has no derivative
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squared)))


def path_penalty(lengths: Array, mean: Array) -> Array:
    """(||J_w^T y|| - a)^2 ``[B]``, a being the moving average of :func:`path_mean`.

    The weight is ln 2 / (ln r - ln 2) for images of r x r pixels: that of appendix B times r^2,
    by which y here is divided.
    """
    chex.assert_rank([lengths, mean], [1, 0])
    return (lengths - mean) ** 2


def path_mean(mean: Array, lengths: Array, decay: float = 0.99) -> Array:
    """a after a step, no gradient through it; it starts at 0 (appendix B)."""
    return decay * mean + (1 - decay) * jax.lax.stop_gradient(lengths).mean()
