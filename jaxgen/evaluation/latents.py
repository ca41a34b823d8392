"""Walks through a latent space, and how much of it is used."""

from __future__ import annotations

import chex
import jax.numpy as jnp
import numpy as np
from jax import Array


def linear_path(start: Array, end: Array, count: int) -> Array:
    """``count`` points on the segment from ``start`` to ``end [..., Z]``: ``[count, ..., Z]``."""
    chex.assert_equal_shape([start, end])
    weight = jnp.linspace(0.0, 1.0, count).reshape((count,) + (1,) * start.ndim)
    return (1 - weight) * start[None] + weight * end[None]


def spherical_path(start: Array, end: Array, count: int) -> Array:
    """``count`` points on the arc from ``start`` to ``end [..., Z]``: ``[count, ..., Z]``.

    Shoemake 1985. Between draws of N(0, I) the arc keeps the norm that the prior has, where the
    segment passes near the origin.
    """
    chex.assert_equal_shape([start, end])
    norm = lambda x: jnp.linalg.norm(x, axis=-1, keepdims=True)  # noqa: E731
    cosine = (start * end).sum(-1, keepdims=True) / (norm(start) * norm(end))
    angle = jnp.arccos(jnp.clip(cosine, -1 + 1e-6, 1 - 1e-6))[None]
    weight = jnp.linspace(0.0, 1.0, count).reshape((count,) + (1,) * start.ndim)
    mixed = jnp.sin((1 - weight) * angle) * start[None] + jnp.sin(weight * angle) * end[None]
    return mixed / jnp.sin(angle)


def analogy(a: Array, b: Array, c: Array) -> Array:
    """ "a is to b as c is to ...": mean(c) + mean(b) - mean(a) over examples ``[n, Z]``: ``[Z]``.

    Radford et al. 2016, section 6.3.2, who average three latents for each concept.
    """
    return c.mean(axis=0) + b.mean(axis=0) - a.mean(axis=0)


def principal_axes(z: np.ndarray, count: int = 2) -> tuple[np.ndarray, np.ndarray]:
    """The mean ``[Z]`` of ``z [N, Z]``, and the directions of most variance ``[Z, count]``."""
    mean = z.mean(axis=0)
    _, _, axes = np.linalg.svd(z - mean, full_matrices=False)
    return mean, axes[:count].T


def turned(z: np.ndarray, like: np.ndarray) -> np.ndarray:
    """``z [N, K]`` about its mean, turned or mirrored to lie as near to ``like [N, K]`` as it can.

    Schoenemann 1966. No distance between examples changes: pictures of axes that are known up to
    a rotation can be compared by eye.
    """
    z = z - z.mean(axis=0)
    u, _, v = np.linalg.svd(z.T @ (like - like.mean(axis=0)))
    return z @ (u @ v)


ACTIVE = 0.01  # variance over the data, Burda et al. 2016, section 5.2


def active_units(means: np.ndarray) -> np.ndarray:
    """Which latents the means of q(z|x), ``[N, Z]``, vary in over the data: ``[Z]`` of bool.

    A unit is active where that variance exceeds 0.01 (Burda et al. 2016, section 5.2).

    Raises:
      ValueError: for less than two examples, which do not vary.
    """
    if len(means) < 2:
        raise ValueError("the use of latents is seen in two examples or more.")
    return np.var(means, axis=0) > ACTIVE
