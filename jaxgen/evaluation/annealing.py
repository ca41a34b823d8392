"""log p(x) by annealed importance sampling, from below and from above.

Neal 2001 ("Annealed importance sampling"); for decoders, with Hamiltonian transitions, Wu et al.
2017; from both sides Grosse et al. 2015. All values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LogDensity = Callable[[Array], Array]  # z [B, Z] -> log density [B], normalized or not


class Annealed(NamedTuple):
    """One chain an example, from one density to another."""

    log_weight: Array  # [B]; the mean of exp is the ratio of the normalizers, end over start
    z: Array  # [B, Z], the last state
    accepted: Array  # [B], the share of transitions that were accepted


def sigmoid_temperatures(steps: int, span: float = 4.0) -> np.ndarray:
    """beta_0 = 0 .. beta_T = 1 ``[steps + 1]``, closest at both ends (Grosse et al. 2015)."""
    at = 1 / (1 + np.exp(-np.linspace(-span, span, steps + 1)))
    return (at - at[0]) / (at[-1] - at[0])


def anneal(
    key: Array,
    start: LogDensity,
    end: LogDensity,
    z: Array,
    temperatures: np.ndarray,
    sizes: Array,
    *,
    leapfrogs: int = 10,
) -> Annealed:
    """From draws ``z [B, Z]`` of ``start`` through start^(1 - beta) end^beta to ``end``.

    At each of the ``temperatures`` beta_0 = 0 .. beta_T = 1 the weight takes the ratio of two
    neighbours, and a Hamiltonian transition of ``leapfrogs`` steps leaves the second invariant
    (Neal 2001, eq. 11). Their ``sizes [T, B]`` may not depend on these chains: take them from
    :func:`adapted_sizes` of others.
    """

    def step(state: tuple[Array, Array, Array], row: tuple) -> tuple[tuple, None]:
        z, log_w, moves = state
        key, before, beta, size = row
        log_w = log_w + (beta - before) * (end(z) - start(z))
        z, moved = hamiltonian(key, between(start, end, beta), z, size, leapfrogs)
        return (z, log_w, moves + moved), None

    beta, steps = jnp.asarray(temperatures, z.dtype), len(temperatures) - 1
    rows, none = (jax.random.split(key, steps), beta[:-1], beta[1:], sizes), jnp.zeros(len(z))
    (z, log_w, moves), _ = jax.lax.scan(step, (z, none, none), rows)
    return Annealed(log_w, z, moves / steps)


def adapted_sizes(
    key: Array,
    start: LogDensity,
    end: LogDensity,
    z: Array,
    temperatures: np.ndarray,
    *,
    leapfrogs: int = 10,
    first: float = 0.1,
    wanted: float = 0.65,
) -> Array:
    """Sizes of the leapfrog's steps at each temperature, ``[T, B]``, from chains of their own.

    A chain's grows while more than the share ``wanted`` of its latest transitions, about ten, was
    accepted, and shrinks while it was less (Wu et al. 2017). To adapt the very chains that are
    weighed would bias their weights.
    """

    def step(state: tuple[Array, Array, Array], row: tuple) -> tuple[tuple, Array]:
        z, size, lately = state
        key, beta = row
        z, moved = hamiltonian(key, between(start, end, beta), z, size, leapfrogs)
        lately = 0.9 * lately + 0.1 * moved
        return (z, size * jnp.where(lately > wanted, 1.02, 0.98), lately), size

    beta, like = jnp.asarray(temperatures[1:], z.dtype), jnp.ones(len(z), z.dtype)
    rows = jax.random.split(key, len(beta)), beta
    return jax.lax.scan(step, (z, first * like, wanted * like), rows)[1]


def between(start: LogDensity, end: LogDensity, beta: Array) -> LogDensity:
    """start^(1 - beta) end^beta."""
    return lambda z: (1 - beta) * start(z) + beta * end(z)


def hamiltonian(
    key: Array, log_density: LogDensity, z: Array, size: Array, leapfrogs: int
) -> tuple[Array, Array]:
    """A transition that leaves ``log_density`` invariant, and whether it moved ``[B]``.

    ``size [B]`` is that of the leapfrog's steps (Neal 2011, section 5.3).
    """
    slope = jax.grad(lambda z: log_density(z).sum())
    key_p, key_u = jax.random.split(key)
    by = size[:, None]

    def leap(state: tuple[Array, Array], _: None) -> tuple[tuple[Array, Array], None]:
        z, p = state
        z = z + by * p
        return (z, p + by * slope(z)), None

    p = jax.random.normal(key_p, z.shape, z.dtype)
    (new, half_on), _ = jax.lax.scan(leap, (z, p + by / 2 * slope(z)), None, length=leapfrogs)
    q = half_on - by / 2 * slope(new)
    gain = log_density(new) - log_density(z) + 0.5 * (p**2 - q**2).sum(axis=-1)
    moved = jnp.log(jax.random.uniform(key_u, size.shape)) < gain  # NaN stays where it is
    return jnp.where(moved[:, None], new, z), moved.astype(z.dtype)
