"""Walks through a latent space, and how much of it is used."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
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


def semantic_directions(kernel: np.ndarray, count: int) -> np.ndarray:
    """The unit directions that a first layer ``[Z, F]`` carries furthest, ``[count, Z]``.

    The n that maximize ||A n||, A being the layer as a map of latents: eigenvectors of A^T A (Shen
    & Zhou 2021, SeFa), found without a sample.
    """
    _, _, directions = np.linalg.svd(np.asarray(kernel, np.float64).T, full_matrices=False)
    return directions[:count]


def projected(
    generate: Callable[[Array], Array], x: Array, z: Array, steps: int = 300, rate: float = 0.1
) -> Array:
    """Latents ``[B, Z]`` whose examples are near ``x [B, ...]``: Adam from ``z``, rate to 0.

    On the squared error an entry and 0.001 |z|^2 / Z, which keeps to where the prior is (compare
    Zhu et al. 2016; Lipton & Tripathi 2017).
    """
    optimizer = optax.adam(optax.cosine_decay_schedule(rate, steps))

    def distance(z: Array) -> Array:
        apart = (generate(z) - x).reshape(len(x), -1)
        return jnp.sum((apart**2).mean(axis=-1) + 1e-3 * (z**2).mean(axis=-1))

    @jax.jit
    def step(z: Array, state: Any) -> tuple[Array, Any]:
        updates, state = optimizer.update(jax.grad(distance)(z), state)
        return optax.apply_updates(z, updates), state  # pyright: ignore[reportReturnType]

    state = optimizer.init(z)
    for _ in range(steps):  # not a scan: on CPU it would slow the gradients of convolutions
        z, state = step(z, state)
    return z


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
