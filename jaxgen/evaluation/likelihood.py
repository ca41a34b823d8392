"""Likelihoods of images in bits per dimension, each with the name of what it is.

A bound and an exact value, of dequantized or of discrete data, are different numbers under one
unit: :func:`likelihood` measures any of them, and its ``kind`` says which it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxgen.data.records import to_signed
from jaxgen.diffusion.likelihood import (
    dequantize,
    dequantized_bits_per_dimension,
    exact_divergence,
    hutchinson_divergence,
    ode_log_likelihood,
)
from jaxgen.diffusion.parameterization import Denoiser
from jaxgen.diffusion.process import posterior_variance
from jaxgen.diffusion.samplers import Variance
from jaxgen.diffusion.schedules import ContinuousSchedule, DiscreteSchedule
from jaxgen.distributions import bits_per_dimension
from jaxgen.losses.denoising import continuous_bound, discretized_decoder, variational_bound
from jaxgen.losses.times import stratified_times


@struct.dataclass
class Likelihood:
    """Bits per dimension of each example, and what they are."""

    bits_per_dimension: Array  # [B]
    kind: str = struct.field(pytree_node=False)
    curve: Array | None = None  # [n], where a bound is a sum over times: the terms' means, in nats


def discrete_bound_likelihood(
    key: Array,
    denoise: Denoiser,
    schedule: DiscreteSchedule,
    bins: Array,
    levels: int,
    variance: Variance = posterior_variance,
) -> Likelihood:
    """The variational bound of Ho et al. 2020 for images ``bins [B, H, W, C]`` in 0..levels - 1."""
    terms = variational_bound(
        key,
        denoise,
        schedule,
        to_signed(bins, levels),
        variance=variance,
        decoder=discretized_decoder(levels),
    )
    bits = bits_per_dimension(terms.total(), bins[0].size)
    kind = f"bound: variational, T = {schedule.steps}, one draw a step"
    return Likelihood(bits, kind, terms.diffusion.mean(axis=1))


def continuous_bound_likelihood(
    key: Array,
    denoise: Denoiser,
    schedule: ContinuousSchedule,
    bins: Array,
    levels: int,
    times: int = 100,
) -> Likelihood:
    """The continuous-time bound of Kingma et al. 2021 with a discretized decoder at t = 0.

    For a schedule that begins with noise (the level of t = 0 is not clean data).
    """
    key_t, key = jax.random.split(key)
    draw = lambda key: stratified_times(key, times, low=0.0)  # noqa: E731
    t = jax.vmap(draw, out_axes=1)(jax.random.split(key_t, len(bins)))
    x_0, decoder = to_signed(bins, levels), discretized_decoder(levels)
    terms = continuous_bound(key, denoise, schedule, x_0, t, decoder=decoder)
    bits = bits_per_dimension(terms.total(), bins[0].size)
    kind = f"bound: continuous time, {times} stratified times an image"
    return Likelihood(bits, kind)


def ode_likelihood(
    key: Array,
    denoise: Denoiser,
    schedule: ContinuousSchedule,
    bins: Array,
    levels: int,
    t_0: float = 1e-3,
    t_1: float | None = None,
    probes: int | None = None,
) -> Likelihood:
    """The exact likelihood of the probability-flow ODE, of uniformly dequantized images.

    Song et al. 2021, section 4.3. ``probes`` vectors estimate the trace (Hutchinson); with None it
    is exact, which takes as many derivatives as an image has entries. The prior is that of ``t_1``,
    the schedule's end where it is not given. The uniform noise is one bin
    wide about the values of :func:`~jaxgen.data.records.to_signed`, on which networks train.
    """
    key_u, key_v = jax.random.split(key)
    stretch = levels / (levels - 1)  # from bins that tile [-1, 1] to bins about -1, ..., 1
    x_0 = stretch * dequantize(key_u, jnp.asarray(bins, jnp.int32), levels)
    divergence = exact_divergence if probes is None else hutchinson_divergence(key_v, probes)
    alpha = schedule(jnp.asarray(t_0)).alpha
    found = ode_log_likelihood(
        denoise, schedule, alpha * x_0, divergence, t_0=t_0, t_1=t_1, rtol=1e-4, atol=1e-4
    )
    # the density of what dequantize gave, of which x is alpha times stretch times
    log_prob = found.log_prob + bins[0].size * jnp.log(alpha * stretch)
    bits = dequantized_bits_per_dimension(log_prob, bins[0].size, levels)
    trace = "exact trace" if probes is None else f"Hutchinson trace of {probes} probes, unbiased"
    return Likelihood(bits, f"probability-flow ODE, {trace}, uniform dequantization")


def ode_log_density(
    denoise: Denoiser,
    schedule: ContinuousSchedule,
    x: Array,
    *,
    t_0: float = 1e-3,
    tolerance: float = 1e-4,
) -> Array:
    """log p of points ``x [B, D]`` by the probability-flow ODE, in nats, with the exact trace.

    It is the density of the data blurred by noise of standard deviation sigma/alpha of ``t_0``.
    """
    alpha = schedule(jnp.asarray(t_0)).alpha
    found = ode_log_likelihood(
        denoise, schedule, alpha * x, t_0=t_0, rtol=tolerance, atol=tolerance
    )
    return found.log_prob + x[0].size * jnp.log(alpha)


METHODS: dict[str, Callable[..., Likelihood]] = {
    "discrete_bound": discrete_bound_likelihood,
    "continuous_bound": continuous_bound_likelihood,
    "ode": ode_likelihood,
}


def likelihood(
    method: str,
    key: Array,
    denoise: Denoiser,
    schedule: Any,
    bins: Array,
    levels: int,
    **options: Any,
) -> Likelihood:
    """The bits per dimension of images ``bins [B, H, W, C]`` in 0..levels - 1, by one of METHODS.

    The ``schedule`` is discrete for ``discrete_bound``, and continuous for the others.

    ``options`` are the method's own: ``variance``; ``times``; ``t_0``, ``t_1`` and ``probes``.
    """
    return METHODS[method](key, denoise, schedule, bins, levels, **options)
