"""A diffusion model as a classifier: how ill data fit each label, by the bound on log p(x|y)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser, from_x_0
from jaxgen.diffusion.process import diffuse, expand, transition_variance
from jaxgen.diffusion.schedules import DiscreteSchedule, steps_of
from jaxgen.distributions import Distribution, Normal
from jaxgen.losses.denoising import bound_term, squared_error


class Estimates(NamedTuple):
    """Two ways to say how ill x_0 fits each label, ``[B, C]``: lower is better."""

    bound: Array  # on -log p(x_0|y) in nats, up to a constant common to all y
    error: Array  # mean of |eps - eps_hat|^2


def label_estimates(
    key: Array,
    denoise: Callable[[Array], Denoiser],
    schedule: DiscreteSchedule,
    x_0: Array,
    labels: Array,
    draws: int,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> Estimates:
    """The bound (Ho et al. 2020, eq. 5) for each of ``labels [B, C]``, from K = ``draws``.

    ``denoise(y [B])`` is the denoiser given labels. All labels see the same (t, eps), so that their
    differences have little noise (Li et al. 2023; Clark & Jaini 2023). One t is drawn in each of K
    cells of equal width in sigma_t, where classes differ, and its L_{t-1} (with L_0 at t = 1) is
    divided by its probability: the mean estimates the sum over t without bias. L_T, common to all
    labels, is left out. The variance of p(x_{t-1}|x_t) is beta_t.

    Raises:
      TypeError: for a schedule of continuous time.
    """
    steps = steps_of(schedule, "take one with steps")
    key_t, key_eps = jax.random.split(key)
    sigma = schedule(jnp.arange(steps + 1)).sigma
    u = (jnp.arange(draws) + jax.random.uniform(key_t, (draws,))) / draws
    t = jnp.clip(jnp.searchsorted(sigma, u * sigma[-1]), 1, steps)
    p_t = (sigma[t] - sigma[t - 1]) / sigma[-1]

    def draw(row):
        t, p_t, key = row
        t = jnp.full(x_0.shape[:1], t)
        level = schedule(t)
        eps = jax.random.normal(key, x_0.shape)
        x_t = diffuse(x_0, eps, level)
        beta = expand(transition_variance(level, schedule(t - 1)), x_0)
        log_variance = jnp.broadcast_to(jnp.log(beta), x_0.shape)

        def given(y):
            x_0_hat = denoise(y)(x_t, t)
            term = bound_term(schedule, x_0, x_t, x_0_hat, t, log_variance, decoder)
            eps_hat = from_x_0(x_0_hat, x_t, schedule, t, "eps")
            return Estimates(term / p_t, squared_error(eps_hat, eps))

        return jax.lax.map(given, labels.T)

    each = jax.lax.map(draw, (t, p_t, jax.random.split(key_eps, draws)))
    return jax.tree.map(lambda e: e.mean(axis=0).T, each)
