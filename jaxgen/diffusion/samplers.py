"""Samplers: one ``lax.scan`` of a solver's step over falling times, and the solvers of chains.

A :class:`Solver` moves x_t to x_s with a denoiser and a schedule, so it serves every prediction
target and every guidance rule; what it draws comes from the key of its row. Here are the contract
and the solvers that know only two levels, ancestral sampling and DDIM, which serve discrete and
continuous schedules alike; :mod:`jaxgen.diffusion.solvers` has those of higher order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser
from jaxgen.diffusion.process import (
    Level,
    Schedule,
    diffuse,
    expand,
    interpolated_log_variance,
    posterior_mean,
    posterior_variance,
    transition,
    transition_variance,
)

Variance = Callable[[Level, Level], Array]
VARIANCES: dict[str, Variance] = {
    "beta": transition_variance,
    "beta_tilde": posterior_variance,
}


class Step(Protocol):
    """Moves x_t ``[B, ...]`` from time t to s (scalars): (x_s, the estimate of x_0, memory)."""

    def __call__(
        self,
        key: Array,
        denoise: Denoiser,
        schedule: Schedule,
        x_t: Array,
        t: Array,
        s: Array,
        memory: Any,
    ) -> tuple[Array, Array, Any]: ...


@dataclass(frozen=True)
class Solver:
    """A step, what it remembers between steps, and how often it evaluates the denoiser.

    ``step`` calls ``denoise(x_t, t)`` with a scalar t. ``cost(schedule, t, s)`` is the number of
    evaluations in the step from t to s; :func:`evaluations` adds them up.
    """

    step: Step
    init: Callable[[Array], Any] = lambda x_T: ()
    cost: Callable[[Schedule, Any, Any], int] = lambda schedule, t, s: 1


def sample(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    solver: Solver,
) -> Array:
    """Runs the reverse process from ``x_T [B, ...]`` through ``times`` (falling, ``[n + 1]``).

    Returns x at the last time, ``[B, ...]``, after :func:`evaluations` calls of ``denoise``. It is
    differentiable, and every value that the solver or the denoiser closes over may be traced, so
    that it can be vmapped or changed without a new compilation.
    """
    return _scan(key, denoise, schedule, x_T, times, solver, lambda x_s, x_0: None)[0]


def sample_path(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    solver: Solver,
) -> tuple[Array, tuple[Array, Array]]:
    """:func:`sample` with its path: every x_s and the x_0 estimated for it, ``[n, B, ...]``."""
    return _scan(key, denoise, schedule, x_T, times, solver, lambda x_s, x_0: (x_s, x_0))


def _scan(key, denoise, schedule, x_T, times, solver, keep):
    times = jnp.asarray(times)

    def at(x: Array, t: Array) -> Array:
        return denoise(x, jnp.full(x.shape[:1], t))

    def body(carry, row):
        x_t, memory = carry
        t, s, key = row
        x_s, x_0, memory = solver.step(key, at, schedule, x_t, t, s, memory)
        return (x_s, memory), keep(x_s, x_0)

    rows = (times[:-1], times[1:], jax.random.split(key, len(times) - 1))
    (x, _), kept = jax.lax.scan(body, (x_T, solver.init(x_T)), rows)
    return x, kept


def evaluations(solver: Solver, schedule: Schedule, times: Array | np.ndarray) -> int:
    """How often :func:`sample` calls the denoiser (the number of function evaluations, NFE)."""
    with jax.ensure_compile_time_eval():
        times = np.asarray(times)
        return sum(solver.cost(schedule, t, s) for t, s in itertools.pairwise(times))


def ends_clean(schedule: Schedule, s: Array) -> Array:
    """Whether time s has no noise: no second evaluation can be made there."""
    return schedule(s).sigma == 0


def from_estimate(update: Callable[[Array, Array, Array, Level, Level], Array]) -> Solver:
    """The solver of an ``update(key, x_t, x_0, level of t, level of s) -> x_s``: one evaluation."""

    def step(key, denoise, schedule, x_t, t, s, memory):
        x_0 = denoise(x_t, t)
        return update(key, x_t, x_0, schedule(t), schedule(s)), x_0, memory

    return Solver(step)


def noise_std(variance: Array, s: Level) -> Array:
    """The standard deviation of a step's noise: none enters clean data."""
    # The inner choice keeps the derivative of the square root finite where it is not used.
    noisy = s.sigma > 0
    return jnp.where(noisy, jnp.sqrt(jnp.where(noisy, variance, 1.0)), 0.0)


def ancestral(variance: Variance = posterior_variance) -> Solver:
    """Algorithm 2 of Ho et al. 2020, x_s = mu(x_t, x_0) + sigma z.

    ``variance`` is the paper's choice of sigma_t^2: :func:`~.process.posterior_variance` for
    beta-tilde_t, :func:`~.process.transition_variance` for beta_t. No noise enters clean data.
    """

    def update(key: Array, x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        z = jax.random.normal(key, x_t.shape, x_t.dtype)
        return posterior_mean(x_t, x_0, t, s) + expand(noise_std(variance(t, s), s), x_t) * z

    return from_estimate(update)


def learned_ancestral() -> Solver:
    """:func:`ancestral` with a learned variance (Nichol & Dhariwal 2021, eq. 15).

    The denoiser returns the pair (x_0, nu), with nu ``[B, ...]`` in [0, 1] from beta-tilde to beta.
    """

    def step(key, denoise, schedule, x_t, t, s, memory):
        x_0, nu = denoise(x_t, t)
        at, to = schedule(t), schedule(s)
        std = jnp.exp(0.5 * interpolated_log_variance(nu, at, to))
        z = jnp.where(to.sigma > 0, jax.random.normal(key, x_t.shape, x_t.dtype), 0.0)
        return posterior_mean(x_t, x_0, at, to) + std * z, x_0, memory

    return Solver(step)


def ddim_step(x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
    """alpha_s x_0 + sigma_s eps with the eps that x_t and x_0 imply, ``[B, ...]``.

    Song et al. 2021a, eq. 12 without noise: how x_t would move if the denoiser stayed at x_0.
    """
    eps = (x_t - expand(t.alpha, x_t) * x_0) / expand(t.sigma, x_t)
    return expand(s.alpha, x_0) * x_0 + expand(s.sigma, eps) * eps


def ddim(eta: Array | float = 0.0) -> Solver:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z (Song et al. 2021a, eq. 12 and 16).

    eta in [0, 1] scales std from 0, which is deterministic, to that of :func:`ancestral`.
    """
    deterministic = isinstance(eta, (int, float)) and eta == 0

    def update(key: Array, x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        if deterministic:
            return ddim_step(x_t, x_0, t, s)
        # std = eta sigma_s sqrt(share), with share 1 - SNR_t/SNR_s of the variance at s
        share = jnp.where(s.sigma > 0, transition_variance(t, s) / t.sigma**2, 0.0)
        direction = Level(s.alpha, s.sigma * jnp.sqrt(1 - eta**2 * share))
        z = jax.random.normal(key, x_t.shape, x_t.dtype)
        std = eta * s.sigma * noise_std(share, s)
        return ddim_step(x_t, x_0, t, direction) + expand(std, z) * z

    return from_estimate(update)


def consistency() -> Solver:
    """x_s = alpha_s x_0 + sigma_s z: multistep sampling of a consistency function.

    Song et al. 2023, algorithm 1. Each step answers with x_0 and begins again from less noise.
    """

    def update(key: Array, x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        return diffuse(x_0, jax.random.normal(key, x_t.shape, x_t.dtype), s)

    return from_estimate(update)


def ddim_inversion(
    denoise: Denoiser,
    schedule: Schedule,
    x: Array,
    times: Array | np.ndarray,
    iterations: int = 1,
) -> Array:
    """The x_T ``[B, ...]`` from which :func:`ddim` with eta = 0 makes ``x`` through ``times``.

    ``times`` fall, as for :func:`sample`. Each step solves for x_t by fixed-point iteration: with
    one iteration it is the usual approximation that takes the noise from x_s (Song et al. 2021a,
    section 5.4), with more it is the exact inverse wherever the iteration contracts.
    """
    times = jnp.asarray(times)

    def body(x_s: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = row
        at, to = schedule(t), schedule(s)

        def improve(_, x_t: Array) -> Array:
            x_0 = denoise(x_t, jnp.full(x.shape[:1], t))
            eps = (x_t - at.alpha * x_0) / at.sigma
            return at.alpha / to.alpha * (x_s - to.sigma * eps) + at.sigma * eps

        return jax.lax.fori_loop(0, iterations, improve, x_s), None

    return jax.lax.scan(body, x, (times[:-1][::-1], times[1:][::-1]))[0]


# --- going back up: the resampling of RePaint ------------------------------------------------


def resampling(solver: Solver) -> Solver:
    """``solver`` for times that also rise: up from t to s, x_s is drawn from q(x_s|x_t).

    With :func:`resampling_times` and an inpainting denoiser it is RePaint (Lugmayr et al. 2022).
    """

    def step(key, denoise, schedule, x_t, t, s, memory):
        def up(memory):
            return transition(x_t, schedule(s), schedule(t)).sample(key), x_t, solver.init(x_t)

        def down(memory):
            return solver.step(key, denoise, schedule, x_t, t, s, memory)

        return jax.lax.cond(s > t, up, down, memory)

    def cost(schedule, t, s):
        return 0 if s > t else solver.cost(schedule, t, s)

    return Solver(step, solver.init, cost)


def resampling_times(times: np.ndarray, jump: int = 10, repeats: int = 10) -> np.ndarray:
    """``times`` with every stretch of ``jump`` steps gone through ``repeats`` times.

    Lugmayr et al. 2022, algorithm 1 and section 5.6; stretches that end in the last time are gone
    through once, since no noise can be added to clean data twice.
    """
    times, path, i = np.asarray(times), [times[0]], 0
    while i < len(times) - 1:
        stop = min(i + jump, len(times) - 1)
        again = 1 if stop == len(times) - 1 else repeats
        for k in range(again):
            path += list(times[i + 1 : stop + 1])
            if k < again - 1:
                path.append(times[i])
        i = stop
    return np.asarray(path)
