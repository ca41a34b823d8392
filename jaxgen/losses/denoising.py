"""The objectives of denoising diffusion (Ho et al. 2020): L_simple and the variational bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser
from jaxgen.diffusion.process import (
    Level,
    diffuse,
    expand,
    marginal,
    posterior_mean,
    posterior_variance,
)
from jaxgen.diffusion.schedules import DiscreteSchedule
from jaxgen.distributions import (
    DiscretizedNormal,
    Distribution,
    Normal,
    kl_normal,
    standard_normal,
    sum_event,
)

Network = Callable[[Array, Array], Array]  # (x_t [B, ...], t [B]) -> a prediction [B, ...]


def squared_error(prediction: Array, target: Array) -> Array:
    """The mean over entries of (prediction - target)^2, ``[B]``."""
    chex.assert_equal_shape([prediction, target])
    return sum_event((prediction - target) ** 2) / prediction[0].size


def uniform_times(key: Array, batch: int, steps: int) -> Array:
    """t ~ Uniform{1, ..., T}, ``[B]`` int32."""
    return jax.random.randint(key, (batch,), 1, steps + 1)


def simple_loss(key: Array, network: Network, schedule: DiscreteSchedule, x_0: Array) -> Array:
    """L_simple = |eps - eps_theta(alpha_t x_0 + sigma_t eps, t)|^2 with t uniform, ``[B]``.

    Ho et al. 2020, eq. 14 and Algorithm 1; the mean over entries in place of the sum, so that the
    value of a network that answers 0 is 1 for any image size. ``x_0 [B, ...]`` is in [-1, 1].
    """
    key_t, key_eps = jax.random.split(key)
    t = uniform_times(key_t, x_0.shape[0], schedule.steps)
    eps = jax.random.normal(key_eps, x_0.shape, x_0.dtype)
    return squared_error(network(diffuse(x_0, eps, schedule(t)), t), eps)


class BoundTerms(NamedTuple):
    """The variational bound on -log p(x_0), term by term, in nats (Ho et al. 2020, eq. 5)."""

    prior: Array  # [B]     L_T = KL(q(x_T|x_0) || N(0, I))
    diffusion: Array  # [T - 1, B]  L_{t-1} = KL(q(x_{t-1}|x_t, x_0) || p(x_{t-1}|x_t)), t = 2..T
    decoder: Array  # [B]     L_0 = -log p(x_0|x_1)

    def total(self) -> Array:
        """L_T + sum_t L_{t-1} + L_0, ``[B]``."""
        return self.prior + self.diffusion.sum(axis=0) + self.decoder


def discretized_decoder(levels: int) -> Callable[[Array, Array], Distribution]:
    """p(x_0|x_1) over ``levels`` values in [-1, 1] (Ho et al. 2020, section 3.3)."""
    return lambda mean, log_std: DiscretizedNormal(mean, log_std, levels)


def variational_bound(
    key: Array,
    denoise: Denoiser,
    schedule: DiscreteSchedule,
    x_0: Array,
    *,
    variance: Callable[[Level, Level], Array] = posterior_variance,
    decoder: Callable[[Array, Array], Distribution] = Normal,
) -> BoundTerms:
    """Every term of the bound, each L_{t-1} from one draw of x_t: T evaluations of ``denoise``.

    Args:
      key: one PRNG key; each t draws its own noise.
      denoise: (x_t, t) -> an estimate of x_0.
      x_0: data ``[B, ...]``, in [-1, 1] where ``decoder`` is discretized.
      variance: sigma_t^2 of p(x_{t-1}|x_t), as in :func:`jaxgen.diffusion.samplers.ancestral`.
      decoder: (mean, log_std) -> p(x_0|x_1): :func:`discretized_decoder` for images,
        :class:`~jaxgen.distributions.Normal` for a density over continuous data. Its variance is
        ``variance`` at t = 1, or at t = 2 where that vanishes (beta-tilde_1 = 0).
    """
    key_scan, key_decoder = jax.random.split(key)

    def estimate(key: Array, t: Array) -> tuple[Array, Array]:
        eps = jax.random.normal(key, x_0.shape, x_0.dtype)
        x_t = diffuse(x_0, eps, schedule(t))
        return x_t, denoise(x_t, jnp.full(x_0.shape[:1], t))

    def log_std(var: Array) -> Array:
        return jnp.broadcast_to(expand(0.5 * jnp.log(var), x_0), x_0.shape)

    def kl(t: Array) -> Array:
        x_t, x_0_hat = estimate(jax.random.fold_in(key_scan, t), t)
        at, to = schedule(t), schedule(t - 1)
        q = Normal(posterior_mean(x_t, x_0, at, to), log_std(posterior_variance(at, to)))
        p = Normal(posterior_mean(x_t, x_0_hat, at, to), log_std(variance(at, to)))
        return sum_event(kl_normal(q, p))

    diffusion = jax.lax.map(kl, jnp.arange(2, schedule.steps + 1))
    prior = kl_normal(
        marginal(x_0, schedule(jnp.asarray(schedule.steps))), standard_normal(x_0.shape)
    )

    zero, one, two = (schedule(jnp.asarray(t)) for t in range(3))
    x_1, x_0_hat = estimate(key_decoder, jnp.asarray(1))
    var = jnp.where(variance(one, zero) > 0, variance(one, zero), variance(two, one))
    p_x_0 = decoder(posterior_mean(x_1, x_0_hat, one, zero), log_std(var))
    return BoundTerms(
        prior=sum_event(prior), diffusion=diffusion, decoder=-sum_event(p_x_0.log_prob(x_0))
    )
