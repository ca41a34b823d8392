"""What a network may predict about x_t, and how each prediction gives every other.

Given x_t, each target y is linear in x_0. The table :data:`TARGETS` holds that relation as
c y = a x_t + b x_0, which is read from left to right to make a target, and from right to left to
make a prediction an estimate of x_0:

    eps       the noise: sigma eps = x_t - alpha x_0
    x_0       the clean data
    v         alpha eps - sigma x_0                              (Salimans & Ho 2022, section 4)
    score     grad log q(x_t|x_0) = -eps / sigma                 (Song et al. 2021)
    mu        the mean of q(x_{t-1}|x_t, x_0)                    (Ho et al. 2020, eq. 7)
    velocity  dx_t/dt = (d alpha/dt) x_0 + (d sigma/dt) eps      (Lipman et al. 2023)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.process import Schedule, expand, posterior_weights, rates

Network = Callable[[Array, Array], Array]  # (x_t [B, ...], t [B]) -> a prediction [B, ...]
Denoiser = Callable[[Array, Array], Array]  # (x_t [B, ...], t [B]) -> an estimate of x_0 [B, ...]


class Relation(NamedTuple):
    """The coefficients of c y = a x_t + b x_0 at one time, scalars or ``[B]``."""

    a: Array
    b: Array
    c: Array


def _x_0(schedule: Schedule, t: Array) -> Relation:
    one = jnp.ones_like(schedule(t).alpha)
    return Relation(a=0 * one, b=one, c=one)


def _eps(schedule: Schedule, t: Array) -> Relation:
    alpha, sigma = schedule(t)
    return Relation(a=jnp.ones_like(alpha), b=-alpha, c=sigma)


def _v(schedule: Schedule, t: Array) -> Relation:
    alpha, sigma = schedule(t)
    return Relation(a=alpha, b=-(alpha**2 + sigma**2), c=sigma)


def _score(schedule: Schedule, t: Array) -> Relation:
    alpha, sigma = schedule(t)
    return Relation(a=-jnp.ones_like(alpha), b=alpha, c=sigma**2)


def _mu(schedule: Schedule, t: Array) -> Relation:
    if jnp.issubdtype(jnp.asarray(t).dtype, jnp.floating):
        raise TypeError("mu is the mean one step before t: it needs a discrete schedule.")
    on_x_t, on_x_0 = posterior_weights(schedule(t), schedule(t - 1))
    return Relation(a=on_x_t, b=on_x_0, c=jnp.ones_like(on_x_0))


def _velocity(schedule: Schedule, t: Array) -> Relation:
    (alpha, sigma), rate = schedule(t), rates(schedule, t)
    return Relation(a=rate.sigma, b=rate.alpha * sigma - rate.sigma * alpha, c=sigma)


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
        total = sigma**2 + (alpha * sigma_data) ** 2  # all coefficients are multiplied by it
        c_out = sigma * sigma_data * jnp.sqrt(total)
        return Relation(a=-alpha * sigma_data**2, b=total, c=c_out)

    return relation


def edm_network(network: Network, schedule: Schedule, sigma_data: float = 0.5) -> Network:
    """F_theta(c_in x, c_noise): inputs of unit variance, and ln(sigma)/4 for the time.

    Karras et al. 2022, table 1; the network's prediction is the target :func:`edm`.
    """

    def scaled(x_t: Array, t: Array) -> Array:
        level = schedule(t)
        c_in = 1 / jnp.sqrt(level.sigma**2 + (level.alpha * sigma_data) ** 2)
        return network(expand(c_in, x_t) * x_t, -level.log_snr / 8)

    return scaled


def relation_of(target: str | Target, schedule: Schedule, t: Array) -> Relation:
    """The relation of a target given by its name in :data:`TARGETS` or as such a function."""
    return (TARGETS[target] if isinstance(target, str) else target)(schedule, t)


def from_x_0(x_0: Array, x_t: Array, schedule: Schedule, t: Array, target: str | Target) -> Array:
    """The target ``y = (a x_t + b x_0) / c`` of ``x_0 [B, ...]`` at times t (scalar or ``[B]``)."""
    chex.assert_equal_shape([x_0, x_t])
    a, b, c = (expand(k, x_t) for k in relation_of(target, schedule, t))
    return (a * x_t + b * x_0) / c


def to_x_0(
    prediction: Array, x_t: Array, schedule: Schedule, t: Array, source: str | Target
) -> Array:
    """The estimate ``x_0 = (c y - a x_t) / b`` that a prediction y of ``source`` makes."""
    chex.assert_equal_shape([prediction, x_t])
    a, b, c = (expand(k, x_t) for k in relation_of(source, schedule, t))
    return (c * prediction - a * x_t) / b


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
    """Makes a network ``(x_t, t) -> prediction`` into a denoiser ``(x_t, t) -> x_0``."""

    def denoise(x_t: Array, t: Array) -> Array:
        return to_x_0(network(x_t, t), x_t, schedule, t, prediction)

    return denoise


def tweedie(score: Array, x_t: Array, schedule: Schedule, t: Array) -> Array:
    """E[x_0|x_t] = (x_t + sigma^2 grad log q(x_t)) / alpha (Efron 2011), ``[B, ...]``."""
    return to_x_0(score, x_t, schedule, t, "score")


def tweedie_covariance(denoise: Denoiser, x_t: Array, schedule: Schedule, t: Array) -> Array:
    """Cov[x_0|x_t] = (sigma^2 / alpha) dE[x_0|x_t]/dx_t, ``[B, D, D]`` with D entries of an x.

    The second-order formula of Tweedie: sigma^2/alpha^2 (I + sigma^2 Hessian of log q(x_t)). It
    takes D derivatives of ``denoise``, times t are ``[B]``.
    """

    def one(x: Array, t: Array) -> Array:
        jacobian = jax.jacfwd(lambda x: denoise(x[None], t[None])[0])(x)
        return jacobian.reshape(x.size, x.size)

    alpha, sigma = schedule(t)
    return (sigma**2 / alpha)[:, None, None] * jax.vmap(one)(x_t, t)
