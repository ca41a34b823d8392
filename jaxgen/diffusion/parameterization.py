"""What a network may predict about x_t, and how each prediction gives every other.

Each target y is linear in the data and the noise of x_t = alpha x_0 + sigma eps. The table
:data:`TARGETS` holds y = p x_0 + q eps:

    eps       the noise
    x_0       the clean data
    v         alpha eps - sigma x_0                              (Salimans & Ho 2022, section 4)
    score     grad log q(x_t|x_0) = -eps / sigma                 (Song et al. 2021)
    mu        the mean of q(x_{t-1}|x_t, x_0)                    (Ho et al. 2020, eq. 7)
    velocity  dx_t/dt = (d alpha/dt) x_0 + (d sigma/dt) eps      (Lipman et al. 2023)

With x_t it is one equation for x_0, solved by :func:`to_x_0`.

At the ends of time. Clean data are their own x_0, and say nothing of eps, whose mean given x_t is
then 0. Of pure noise, eps and score say nothing about x_0, and are refused there.

A denoiser may answer the pair (x_0, nu), where nu is a learned variance (Nichol & Dhariwal 2021).
Guidance changes its x_0 and keeps its nu (:func:`map_x_0`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.process import Schedule, expand, known_level, rates

Network = Callable[[Array, Array], Any]  # (x_t [B, ...], t [B]) -> a prediction [B, ...]
# (x_t [B, ...], t [B]) -> an estimate of x_0 [B, ...], or its pair with nu [B, ...]
Denoiser = Callable[[Array, Array], Any]


class Relation(NamedTuple):
    """The coefficients of y = p x_0 + q eps at one time, scalars or ``[B]``."""

    p: Array
    q: Array


def _x_0(schedule: Schedule, t: Array) -> Relation:
    one = jnp.ones_like(schedule(t).alpha)
    return Relation(p=one, q=0 * one)


def _eps(schedule: Schedule, t: Array) -> Relation:
    one = jnp.ones_like(schedule(t).alpha)
    return Relation(p=0 * one, q=one)


def _v(schedule: Schedule, t: Array) -> Relation:
    alpha, sigma = schedule(t)
    return Relation(p=-sigma, q=alpha)


def _score(schedule: Schedule, t: Array) -> Relation:
    sigma = schedule(t).sigma
    return Relation(p=0 * sigma, q=-1 / sigma)


def _mu(schedule: Schedule, t: Array) -> Relation:
    if jnp.issubdtype(jnp.result_type(t), jnp.floating):
        raise TypeError(
            "mu is the mean one step before t, so it needs a discrete schedule: predict eps, x_0, "
            "v or velocity in continuous time."
        )
    at, to = schedule(t), schedule(t - 1)
    return Relation(p=to.alpha, q=at.alpha / to.alpha * to.sigma**2 / at.sigma)


def _velocity(schedule: Schedule, t: Array) -> Relation:
    rate = rates(schedule, t)
    return Relation(p=rate.alpha, q=rate.sigma)


Target = Callable[[Schedule, Array], Relation]
TARGETS: dict[str, Target] = {
    "eps": _eps,
    "x_0": _x_0,
    "v": _v,
    "score": _score,
    "mu": _mu,
    "velocity": _velocity,
}


def edm(sigma_data: float = 0.5) -> Target:
    """F of x_0 = c_skip x + c_out F, of unit variance at all levels (Karras et al. 2022, eq. 7).

    x = x_t/alpha has noise sigma/alpha, so the target is defined for every schedule; with
    alpha^2 + sigma^2 = 1 and sigma_data = 1 it is -v. :func:`edm_network` scales the inputs.
    """

    def relation(schedule: Schedule, t: Array) -> Relation:
        alpha, sigma = schedule(t)
        size = jnp.sqrt(sigma**2 + (alpha * sigma_data) ** 2)
        return Relation(p=sigma / (sigma_data * size), q=-sigma_data * alpha / size)

    return relation


def edm_network(network: Network, schedule: Schedule, sigma_data: float = 0.5) -> Network:
    """F_theta(c_in x, c_noise): inputs of unit variance, and ln(sigma)/4 for the time.

    Karras et al. 2022, table 1; the network's prediction is the target :func:`edm`. So that the
    ends of time are like the times near them, ln(sigma) is kept between -10 and 10.
    """

    def scaled(x_t: Array, t: Array) -> Array:
        level = schedule(t)
        c_in = 1 / jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2)
        log_sigma = jnp.clip(-0.5 * level.log_snr, -10.0, 10.0)
        return network(expand(c_in, x_t) * x_t, log_sigma / 4)

    return scaled


def scaled_network(network: Network, schedule: Schedule, variance: float = 0.5) -> Network:
    """A network whose inputs have about unit size at every level, and whose time is the level.

    ``variance`` is that of the data (0.5 is that of most images in [-1, 1]). The time is T = 1000
    times u = 2/pi arctan(sigma/alpha), that of the cosine schedule (Salimans & Ho 2022, appendix
    E): the network never knows which schedule it serves.
    """

    def scaled(x_t: Array, t: Array) -> Array:
        alpha, sigma = schedule(t)
        size = jnp.sqrt(sigma**2 + variance * alpha**2)
        return network(x_t / expand(size, x_t), 2000 / jnp.pi * jnp.arctan2(sigma, alpha))

    return scaled


def relation_of(target: str | Target, schedule: Schedule, t: Array) -> Relation:
    """The relation of a target given by its name in :data:`TARGETS` or as such a function."""
    return (TARGETS[target] if isinstance(target, str) else target)(schedule, t)


def target_of(x_0: Array, eps: Array, schedule: Schedule, t: Array, target: str | Target) -> Array:
    """The target y = p x_0 + q eps that a network is trained on, ``[B, ...]``, t scalar or ``[B]``.

    Raises:
      ValueError: if it is infinite at a t that is known while tracing.
    """
    chex.assert_equal_shape([x_0, eps])
    _refuse_infinite(schedule, t, target)
    p, q = (expand(k, x_0) for k in relation_of(target, schedule, t))
    return p * x_0 + q * eps


def from_x_0(x_0: Array, x_t: Array, schedule: Schedule, t: Array, target: str | Target) -> Array:
    """The target y of an estimate ``x_0 [B, ...]`` at times t (scalar or ``[B]``).

    Its noise is eps = (x_t - alpha x_0) / sigma, and 0, its mean, at clean data.

    Raises:
      ValueError: if y is infinite at a t that is known while tracing.
    """
    if target == "x_0":
        return x_0
    chex.assert_equal_shape([x_0, x_t])
    alpha, sigma = (expand(k, x_t) for k in schedule(t))
    clean = sigma == 0
    eps = jnp.where(clean, 0.0, x_t - alpha * x_0) / jnp.where(clean, 1.0, sigma)
    return target_of(x_0, eps, schedule, t, target)


def to_x_0(
    prediction: Array, x_t: Array, schedule: Schedule, t: Array, source: str | Target
) -> Array:
    """The estimate of x_0 that a prediction y of ``source`` makes, ``[B, ...]``.

    x_0 = (sigma y - q x_t) / (p sigma - q alpha), which solves y = p x_0 + q eps and
    x_t = alpha x_0 + sigma eps; x_t / alpha at clean data.

    Raises:
      ValueError: if the prediction says nothing about x_0 at a t that is known while tracing.
    """
    if source == "x_0":
        return prediction
    chex.assert_equal_shape([prediction, x_t])
    _refuse_uninformative(schedule, t, source)
    alpha, sigma = (expand(k, x_t) for k in schedule(t))
    p, q = (expand(k, x_t) for k in relation_of(source, schedule, t))
    clean = sigma == 0
    p, q = jnp.where(clean, 0.0, p), jnp.where(clean, -1.0, q)  # any finite pair but q = 0
    return (sigma * prediction - q * x_t) / (p * sigma - q * alpha)


def _refuse_uninformative(schedule: Schedule, t: Array, source: str | Target) -> None:
    level = known_level(schedule, t)
    if level is not None and np.any(level.alpha == 0):
        with jax.ensure_compile_time_eval():
            p, _ = relation_of(source, schedule, t)
        if np.any((np.asarray(p) == 0) & (level.alpha == 0)):
            raise ValueError(
                f"{source} says nothing about x_0 at pure noise (alpha = 0): begin at a time "
                "before it, or predict x_0, v, velocity or edm."
            )


def _refuse_infinite(schedule: Schedule, t: Array, target: str | Target) -> None:
    level = known_level(schedule, t)
    if level is not None and np.any(level.sigma == 0):
        with jax.ensure_compile_time_eval():
            _, q = relation_of(target, schedule, t)
        if not np.all(np.isfinite(np.asarray(q))):
            raise ValueError(
                f"{target} is infinite at clean data (sigma = 0) of this schedule: take a later "
                "time, or one of eps, x_0 and v."
            )


def convert(
    prediction: Array,
    x_t: Array,
    schedule: Schedule,
    t: Array,
    source: str | Target,
    target: str | Target,
) -> Array:
    """Turns a prediction of ``source`` into one of ``target``, ``[B, ...]``."""
    if source == target:
        return prediction
    return from_x_0(to_x_0(prediction, x_t, schedule, t, source), x_t, schedule, t, target)


def denoiser(network: Network, schedule: Schedule, prediction: str | Target = "eps") -> Denoiser:
    """Makes a network ``(x_t, t) -> prediction`` into a denoiser ``(x_t, t) -> x_0``.

    Of a network that answers the pair (prediction, nu) it makes one of (x_0, nu).
    """

    def denoise(x_t: Array, t: Array) -> Any:
        return with_x_0(network(x_t, t), lambda y: to_x_0(y, x_t, schedule, t, prediction))

    return denoise


def with_x_0(estimate: Any, function: Callable[[Array], Array]) -> Any:
    """``function`` of x_0, where the estimate is x_0 or the pair (x_0, nu), which keeps its nu."""
    if isinstance(estimate, tuple):
        x_0, nu = estimate
        return function(x_0), nu
    return function(estimate)


def map_x_0(denoise: Denoiser, function: Callable[[Array], Array]) -> Denoiser:
    """A denoiser with ``function`` applied to its x_0."""
    return lambda x_t, t: with_x_0(denoise(x_t, t), function)


def x_0_in(estimate: Any) -> Array:
    """The x_0 of an estimate, which is x_0 or the pair (x_0, nu)."""
    return estimate[0] if isinstance(estimate, tuple) else estimate


def x_0_of(denoise: Denoiser) -> Denoiser:
    """A denoiser that answers x_0 alone, also where a variance was learned."""
    return lambda x_t, t: x_0_in(denoise(x_t, t))


def tweedie(score: Array, x_t: Array, schedule: Schedule, t: Array) -> Array:
    """E[x_0|x_t] = (x_t + sigma^2 grad log q(x_t)) / alpha (Efron 2011), ``[B, ...]``."""
    return to_x_0(score, x_t, schedule, t, "score")


def tweedie_covariance(denoise: Denoiser, x_t: Array, schedule: Schedule, t: Array) -> Array:
    """Cov[x_0|x_t] = (sigma^2 / alpha) dE[x_0|x_t]/dx_t, ``[B, D, D]`` with D entries of an x.

    The second-order formula of Tweedie: sigma^2/alpha^2 (I + sigma^2 Hessian of log q(x_t)). It
    takes D derivatives of ``denoise`` at the whole batch, each example by itself; t is ``[B]``.

    Raises:
      ValueError: at a t known to be pure noise, where E[x_0|x_t] does not depend on x_t.
    """
    level = known_level(schedule, t)
    if level is not None and np.any(level.alpha == 0):
        raise ValueError(
            "at pure noise (alpha = 0) the covariance is that of the data, which a denoiser does "
            "not tell: give a time before it."
        )
    batch, size = x_t.shape[0], x_t[0].size
    basis = jnp.eye(size, dtype=x_t.dtype).reshape(size, 1, *x_t.shape[1:])
    _, push = jax.linearize(lambda x: x_0_of(denoise)(x, t), x_t)
    columns = jax.vmap(lambda v: push(jnp.broadcast_to(v, x_t.shape)))(basis)
    jacobian = jnp.moveaxis(columns.reshape(size, batch, size), 0, -1)
    alpha, sigma = schedule(t)
    return (sigma**2 / alpha)[:, None, None] * jacobian
