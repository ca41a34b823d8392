"""The Gaussian forward process x_t = alpha_t x_0 + sigma_t eps, its transitions and posteriors.

One kernel serves discrete and continuous time: two :class:`Level` s, s before t, say everything
about q(x_t|x_0), q(x_t|x_s) and q(x_s|x_t, x_0) (Kingma et al. 2021, appendix A). With
alpha_t^2 + sigma_t^2 = 1 and s = t - 1 they are the formulas of Ho et al. 2020.

In continuous time the same process is the stochastic differential equation (Song et al. 2021)

    dx = f(t) x dt + g(t) dw,   f = d log(alpha)/dt,   g^2 = d(sigma^2)/dt - 2 f sigma^2

whose drift and diffusion are derivatives of the schedule, taken by autodiff.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

from jaxgen.distributions import Normal


def safe_sqrt(x: Array) -> Array:
    """The square root, and 0 with derivative 0 where x is 0 or, by rounding, below it."""
    positive = x > 0  # chosen inside too: the derivative of a root at 0 would be infinite
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _safe_log(x: Array) -> Array:
    positive = x > 0
    return jnp.where(positive, jnp.log(jnp.where(positive, x, 1.0)), -jnp.inf)


# (key, x [B, ...]) -> eps of the shape and dtype of x; in a loss x is x_0, in a sampler x_t
Noise = Callable[[Array, Array], Array]


def standard_normal(key: Array, x: Array) -> Array:
    """eps ~ N(0, I) ``[B, ...]``: the noise of every loss, starting point and solver unless another
    is given, such as one that is 0 where a mask is, or has no centre of mass."""
    return jax.random.normal(key, x.shape, x.dtype)


class Level(NamedTuple):
    """A noise level: the pair (alpha, sigma), scalars or one value per example ``[B]``."""

    alpha: Array
    sigma: Array

    @property
    def log_snr(self) -> Array:
        """log(alpha^2 / sigma^2); +inf for clean data, -inf for pure noise, with derivative 0."""
        return 2 * (_safe_log(self.alpha) - _safe_log(self.sigma))


class Schedule(Protocol):
    """Gives the level of a time (an integer 0..T, or a number in [0, 1]); level 0 is clean data."""

    def __call__(self, t: Array) -> Level: ...


def known_level(schedule: Schedule, t: Any) -> Level | None:
    """The level of t as NumPy arrays, or None where t or the schedule is not known while tracing.

    What is refused before anything is compiled is decided by it.
    """
    if isinstance(t, Tracer):
        return None
    with jax.ensure_compile_time_eval():
        level = schedule(t)
    if any(isinstance(value, Tracer) for value in level):
        return None
    return jax.tree.map(np.asarray, level)


def check_prior(schedule: Schedule, t: Any) -> None:
    """Sampling begins with noise alone, so little may be left of the data beside it.

    Raises:
      ValueError: if alpha_t is more than a tenth of sigma_t at the time ``t`` where it begins.
    """
    level = known_level(schedule, t)
    if level is not None and level.alpha > 0.1 * level.sigma:
        raise ValueError(
            f"sampling begins with noise alone, and at t = {np.asarray(t):g} the schedule keeps "
            f"{level.alpha:.2g} of the data beside noise of {level.sigma:.2g}: take larger betas, "
            "or a later time."
        )


def expand(coefficient: Array, x: Array) -> Array:
    """Reshapes a scalar or ``[B]`` coefficient to multiply ``x [B, ...]``."""
    coefficient = jnp.asarray(coefficient)
    if coefficient.ndim == 0:
        return coefficient.reshape((1,) * x.ndim)
    chex.assert_shape(coefficient, x.shape[:1])
    return coefficient.reshape(coefficient.shape + (1,) * (x.ndim - 1))


def diffuse(x_0: Array, eps: Array, level: Level) -> Array:
    """A draw ``[B, ...]`` of q(x_t|x_0) from its noise: alpha_t x_0 + sigma_t eps (Ho et al. 2020,
    eq. 4)."""
    chex.assert_equal_shape([x_0, eps])
    return expand(level.alpha, x_0) * x_0 + expand(level.sigma, x_0) * eps


def marginal(x_0: Array, level: Level) -> Normal:
    """q(x_t|x_0) = N(alpha_t x_0, sigma_t^2 I) of ``x_0 [B, ...]``; clean data have no density."""
    mean = expand(level.alpha, x_0) * x_0
    return Normal(mean, jnp.broadcast_to(expand(jnp.log(level.sigma), x_0), x_0.shape))


def transition_variance(t: Level, s: Level) -> Array:
    """sigma_{t|s}^2 = sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2, the variance of q(x_t|x_s).

    It is beta_t where s = t - 1. Written as sigma_t^2 (1 - SNR_t/SNR_s), because for neighbouring
    levels the difference of the two terms cancels in float32.
    """
    return -(t.sigma**2) * jnp.expm1(t.log_snr - s.log_snr)


def transition(x_s: Array, t: Level, s: Level) -> Normal:
    """q(x_t|x_s) = N((alpha_t/alpha_s) x_s, sigma_{t|s}^2 I) of ``x_s [B, ...]`` (Ho et al. 2020,
    eq. 2)."""
    mean = expand(t.alpha / s.alpha, x_s) * x_s
    log_std = 0.5 * jnp.log(transition_variance(t, s))
    return Normal(mean, jnp.broadcast_to(expand(log_std, x_s), x_s.shape))


def posterior_variance(t: Level, s: Level) -> Array:
    """The variance of q(x_s|x_t, x_0): beta-tilde_t where s = t - 1; 0 where s is clean data."""
    return transition_variance(t, s) * (s.sigma / t.sigma) ** 2


def posterior_weights(t: Level, s: Level) -> tuple[Array, Array]:
    """What the mean of q(x_s|x_t, x_0) takes of x_t and of x_0 (Ho et al. 2020, eq. 7)."""
    on_x_t = t.alpha / s.alpha * (s.sigma / t.sigma) ** 2
    on_x_0 = s.alpha * transition_variance(t, s) / t.sigma**2
    return on_x_t, on_x_0


def posterior_mean(x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
    """The mean of q(x_s|x_t, x_0) (Ho et al. 2020, eq. 7), ``[B, ...]``.

    With an estimate of x_0 in place of x_0 it is the mean of the reverse step p(x_s|x_t).
    """
    chex.assert_equal_shape([x_t, x_0])
    on_x_t, on_x_0 = posterior_weights(t, s)
    return expand(on_x_t, x_t) * x_t + expand(on_x_0, x_0) * x_0


def interpolated_log_variance(nu: Array, largest: Array, smallest: Array) -> Array:
    """nu log(beta) + (1 - nu) log(beta-tilde), entry by entry, for nu ``[B, ...]`` in [0, 1].

    Nichol & Dhariwal 2021, eq. 15: a learned variance between the two choices of Ho et al. 2020,
    ``largest`` and ``smallest``, which are scalars or ``[B]``. Where ``smallest`` is 0, as it is in
    a step into clean data, ``largest`` stands for both.
    """
    smallest = jnp.where(smallest > 0, smallest, largest)
    log_largest, log_smallest = expand(jnp.log(largest), nu), expand(jnp.log(smallest), nu)
    return nu * log_largest + (1 - nu) * log_smallest


def rates(schedule: Schedule, t: Array) -> Level:
    """(d alpha/dt, d sigma/dt) at times t, of t's shape.

    d sigma/dt is infinite at the clean data of processes that begin as a diffusion does, with
    sigma^2 in proportion to t (:class:`~.schedules.VP`).

    Raises:
      TypeError: if t is an integer, for then the schedule is discrete and has no derivative.
    """
    t = jnp.asarray(t)
    if not jnp.issubdtype(t.dtype, jnp.floating):
        raise TypeError(
            "a discrete schedule has no derivative in time: use schedules.Interpolated(schedule), "
            "which is continuous, or a solver that knows only levels, such as ddim or unipc."
        )
    return Level(*jax.jvp(lambda t: tuple(schedule(t)), (t,), (jnp.ones_like(t),))[1])


def drift(schedule: Schedule, t: Array) -> Array:
    """f(t) = d log(alpha)/dt; -inf at pure noise."""
    return rates(schedule, t).alpha / schedule(t).alpha


def after_clean(schedule: Schedule, t: Array) -> Array:
    """t, and a moment after clean data, where d sigma/dt may be infinite and sigma is 0."""
    return jnp.where(schedule(t).sigma == 0, 1e-6, t)


def before_noise(schedule: Schedule, t: Array) -> Array:
    """t, and a moment before pure noise, where d log(alpha)/dt is infinite."""
    return jnp.where(schedule(t).alpha == 0, t - 1e-6, t)


def diffusion_squared(schedule: Schedule, t: Array) -> Array:
    """g(t)^2 = d(sigma^2)/dt - 2 f sigma^2, which is -sigma^2 d(log SNR)/dt.

    At clean data the limit from above; inf at pure noise.
    """
    t = after_clean(schedule, t)
    level, rate = schedule(t), rates(schedule, t)
    return 2 * level.sigma * (rate.sigma - rate.alpha / level.alpha * level.sigma)
