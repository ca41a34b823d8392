"""Samplers: a pure step from x_t to x_s, and one ``lax.scan`` of it over rows of times.

A step sees the denoiser's estimate of x_0 and two levels, so it serves every schedule and every
prediction target; what it draws comes from the key of its row.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser
from jaxgen.diffusion.process import (
    Level,
    Schedule,
    expand,
    posterior_mean,
    posterior_variance,
    transition_variance,
)

Step = Callable[[Array, Array, Array, Level, Level], Array]  # (key, x_t, x_0, t, s) -> x_s
Variance = Callable[[Level, Level], Array]


def ancestral(variance: Variance = posterior_variance) -> Step:
    """One step of Algorithm 2 (Ho et al. 2020), x_s = mu(x_t, x_0) + sigma z.

    ``variance`` is the paper's choice of sigma_t^2: :func:`~.process.posterior_variance` for
    beta-tilde_t, :func:`~.process.transition_variance` for beta_t. No noise enters clean data.
    """

    def step(key: Array, x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        std = jnp.where(s.sigma > 0, jnp.sqrt(variance(t, s)), 0.0)
        z = jax.random.normal(key, x_t.shape, x_t.dtype)
        return posterior_mean(x_t, x_0, t, s) + expand(std, x_t) * z

    return step


VARIANCES: dict[str, Variance] = {
    "beta": transition_variance,
    "beta_tilde": posterior_variance,
}


def sample(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    step: Step,
) -> Array:
    """Runs the reverse process from ``x_T [B, ...]`` through ``times`` (falling, ``[n + 1]``).

    Returns x at the last time, ``[B, ...]``, after n evaluations of ``denoise``.
    """
    return _scan(key, denoise, schedule, x_T, times, step, lambda x_s, x_0: None)[0]


def sample_path(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    step: Step,
) -> tuple[Array, tuple[Array, Array]]:
    """:func:`sample` with its path: every x_s and the x_0 estimated for it, ``[n, B, ...]``."""
    return _scan(key, denoise, schedule, x_T, times, step, lambda x_s, x_0: (x_s, x_0))


def _scan(key, denoise, schedule, x_T, times, step, keep):
    times = jnp.asarray(times)

    def body(x_t, row):
        t, s, key = row
        x_0 = denoise(x_t, jnp.full(x_t.shape[:1], t))
        x_s = step(key, x_t, x_0, schedule(t), schedule(s))
        return x_s, keep(x_s, x_0)

    rows = (times[:-1], times[1:], jax.random.split(key, len(times) - 1))
    return jax.lax.scan(body, x_T, rows)
