"""Exact log-likelihoods by the probability-flow ODE, and bits of discrete data from densities.

Along dx/dt = F(x, t) a density changes by d log p(x_t)/dt = -div F (Chen et al. 2018, theorem 1):

    log p(x at t_0) = log p(x at t_1) + int_{t_0}^{t_1} div F(x_t, t) dt
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.ode import solve_ode
from jaxgen.diffusion.parameterization import Denoiser
from jaxgen.diffusion.process import known_level
from jaxgen.diffusion.samplers import check_start
from jaxgen.diffusion.schedules import ContinuousSchedule
from jaxgen.diffusion.sde import probability_flow
from jaxgen.distributions import Normal, bits_per_dimension, sum_event

# --- divergences ------------------------------------------------------------------------------

Map = Callable[[Array], Array]  # x [B, ...] -> [B, ...], each example by itself
Divergence = Callable[[Map, Array], tuple[Array, Array]]  # (f, x) -> f(x) and div f(x) [B]


def _quadratic_forms(f: Map, x: Array, v: Array) -> tuple[Array, Array]:
    """f(x), and v^T (df/dx) v ``[n, B]`` for n vectors an example, ``v [n, B, ...]``."""
    value, push = jax.linearize(f, x)
    chex.assert_equal_shape([value, x])
    return value, jax.vmap(lambda v: sum_event(v * push(v)))(v)


def exact_divergence(f: Map, x: Array) -> tuple[Array, Array]:
    """f(x) and the trace of its Jacobian ``[B]``: D derivatives at once, D entries of an example.

    f must treat each example by itself (no batch statistics).
    """
    basis = jnp.eye(x[0].size, dtype=x.dtype).reshape(-1, 1, *x.shape[1:])
    value, forms = _quadratic_forms(f, x, jnp.broadcast_to(basis, (len(basis), *x.shape)))
    return value, forms.sum(axis=0)


def hutchinson_divergence(
    key: Array, probes: int = 1, draw: Callable[..., Array] = jax.random.rademacher
) -> Divergence:
    """The unbiased estimate E[v^T (df/dx) v] of the trace from ``probes`` vectors v an example.

    Hutchinson 1990; Grathwohl et al. 2019, section 3.1. ``draw(key, shape, dtype)`` has mean 0 and
    covariance I: :func:`jax.random.rademacher`, which is exact for a diagonal Jacobian and of the
    smaller variance, or :func:`jax.random.normal`. The vectors are those of ``key`` at every call,
    so an ODE is solved with one draw over its whole path.
    """

    def divergence(f: Map, x: Array) -> tuple[Array, Array]:
        value, forms = _quadratic_forms(f, x, draw(key, (probes, *x.shape), x.dtype))
        return value, forms.mean(axis=0)

    return divergence


# --- the likelihood ---------------------------------------------------------------------------


class OdeLikelihood(NamedTuple):
    """What :func:`ode_log_likelihood` found."""

    log_prob: Array  # [B], log p(x) in nats, summed over the entries
    latent: Array  # [B, ...], x_{t_1}: the code that the ODE turns back into x
    evaluations: Array  # scalar, of the field; each takes its divergence too


def ode_log_likelihood(
    denoise: Denoiser,
    schedule: ContinuousSchedule,
    x: Array,
    divergence: Divergence = exact_divergence,
    *,
    t_0: float = 1e-3,
    t_1: float | None = None,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> OdeLikelihood:
    """log p(x) of the model that samples by the probability-flow ODE, in nats (Song et al. 2021).

    Their eq. 39 and 40. The prior at t_1 is N(0, sigma_{t_1}^2 I): the signal left there, of
    variance alpha_{t_1}^2 Var(x_0), is neglected, as it is when sampling starts from that prior.

    ``x`` is at time t_0, where sigma > 0 and the ODE is defined, and the density is that of
    x_{t_0} = alpha x_0 + sigma eps with the level (alpha, sigma) of t_0. For clean data x_0 give
    ``alpha * x_0`` and add ``D log(alpha)``, for the scale alpha of each of D entries: it is then
    the density of the data blurred by noise of standard deviation sigma/alpha, which tends to the
    data's as t_0 falls.

    Args:
      denoise: (x_t, t) -> an estimate of x_0, each example by itself.
      schedule: a continuous one.
      x: ``[B, ...]`` at time t_0.
      divergence: :func:`exact_divergence`, or :func:`hutchinson_divergence` of a key, with which
        log p(x) is unbiased and the rest unchanged, up to the choice of steps.
      t_0: the time of ``x``.
      t_1: the time of the prior; the schedule's end where it is not given.
      rtol: the relative tolerance of :func:`~.ode.solve_ode`.
      atol: the absolute one.
      max_steps: the number of steps after which it gives up.

    Raises:
      TypeError: if the schedule is discrete and cannot be differentiated.
      ValueError: if t_0 is clean data, or the denoiser cannot begin at t_1.
      RuntimeError: if t_1 is not reached in ``max_steps`` steps.
    """
    end = schedule.end if t_1 is None else t_1
    first = known_level(schedule, t_0)
    if first is not None and first.sigma == 0:
        raise ValueError(f"t = {t_0} is clean data, where no density has a flow: give a later t_0.")
    check_start(denoise, schedule, x, end)
    flow = probability_flow(denoise, schedule)

    def field(state: tuple[Array, Array], t: Array) -> tuple[Array, Array]:
        return divergence(lambda x: flow(x, t), state[0])

    start = x, jnp.zeros(x.shape[:1], x.dtype)
    (latent, integral), evaluations = solve_ode(
        field, start, t_0, end, rtol=rtol, atol=atol, max_steps=max_steps
    )
    log_sigma = jnp.log(schedule(jnp.asarray(end, x.dtype)).sigma)
    prior = Normal(jnp.zeros_like(x), jnp.broadcast_to(log_sigma, x.shape))
    return OdeLikelihood(sum_event(prior.log_prob(latent)) + integral, latent, evaluations)


# --- discrete data ----------------------------------------------------------------------------


def dequantize(key: Array, bins: Array, levels: int = 256) -> Array:
    """Integers 0..levels - 1 spread uniformly over their bins, which tile [-1, 1]: float32.

    (bins + u) / levels * 2 - 1 with u ~ U[0, 1) (Theis et al. 2016, section 3.1). The bins are
    2 / ``levels`` wide and none is open, unlike those of :func:`~jaxgen.distributions.quantize`,
    whose outermost values are -1 and 1 themselves.

    Raises:
      AssertionError: if ``bins`` are not integers.
    """
    chex.assert_type(bins, int)
    return (bins + jax.random.uniform(key, bins.shape)) / levels * 2 - 1


def dequantized_bits_per_dimension(log_prob: Array, dimensions: int, levels: int = 256) -> Array:
    """Bits per dimension of discrete data from the log-density of dequantized data.

    A bin has the volume (2 / levels)^D, so the bits are -log2 p(x) / D - log2(2 / levels) for x
    from :func:`dequantize`. Their mean over u is an upper bound on -log2 P(bins) / D, with equality
    where the density is constant over each bin (Theis et al. 2016, section 3.1).

    Args:
      log_prob: log p(x) in nats over [-1, 1]^D, of any shape.
      dimensions: D.
      levels: the number of bins a dimension.
    """
    return bits_per_dimension(-log_prob, dimensions) - jnp.log2(2 / levels)
