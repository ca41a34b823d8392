"""The evidence lower bound of a latent-variable model p(z) p(x|z) and its tighter relatives.

Kingma & Welling 2014 ("Auto-Encoding Variational Bayes"); Higgins et al. 2017 (beta);
Burda et al. 2016 (the importance-weighted bound). All values are in nats per example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import (
    Bernoulli,
    DiscretizedLogistic,
    Distribution,
    Normal,
    kl_normal,
    standard_normal,
    sum_event,
)

Encoder = Callable[[Array], Normal]  # x [B, ...] -> q(z|x) over [B, Z]
Decoder = Callable[[Array], Distribution]  # z [B, Z] -> p(x|z) over [B, ...]


class Likelihood(NamedTuple):
    """How parameter maps ``[..., maps * C]`` become a density over data ``[..., C]``."""

    maps: int
    density: Callable[[Array], Distribution]


def bernoulli() -> Likelihood:
    """p(x|z) over x in {0, 1}, from one map of logits."""
    return Likelihood(1, Bernoulli)


def gaussian(std: float) -> Likelihood:
    """N(mean, std^2) with a fixed std, over data in [-1, 1]."""
    return Likelihood(1, lambda mean: Normal(mean, jnp.full(mean.shape, jnp.log(std))))


def learned_gaussian(smallest_log_std: float = -4.0) -> Likelihood:
    """N(mean, std^2) with a std for every entry, over data in [-1, 1].

    log std is kept above ``smallest_log_std``, smoothly: the density of data on a grid of values
    is otherwise unbounded.
    """

    def density(maps: Array) -> Normal:
        mean, raw = jnp.split(maps, 2, axis=-1)
        return Normal(mean, smallest_log_std + jax.nn.softplus(raw - smallest_log_std))

    return Likelihood(2, density)


def discretized_logistic(levels: int) -> Likelihood:
    """A logistic over the ``levels`` values in [-1, 1], location and scale for every entry."""

    def density(maps: Array) -> DiscretizedLogistic:
        location, log_scale = jnp.split(maps, 2, axis=-1)
        return DiscretizedLogistic(location, jnp.maximum(log_scale, -7.0), levels)

    return Likelihood(2, density)


class ElboTerms(NamedTuple):
    """The two terms of the bound, each ``[B]`` in nats."""

    reconstruction: Array  # E_q log p(x|z)
    kl: Array  # KL(q(z|x) || p(z))

    def elbo(self, beta: float | Array = 1.0) -> Array:
        """``reconstruction - beta * kl``, ``[B]``; a lower bound on log p(x) where beta = 1."""
        return self.reconstruction - beta * self.kl


def kl_closed_form(q: Normal, z: Array) -> Array:
    """KL(q || N(0, I)) ``[B]``; the samples ``z [K, B, Z]`` are not needed."""
    del z
    return sum_event(kl_normal(q, standard_normal(q.mean.shape)))


def kl_monte_carlo(q: Normal, z: Array) -> Array:
    """The mean of log q(z|x) - log p(z) over samples ``z [K, B, Z]`` of q, ``[B]``: unbiased."""
    prior = standard_normal(q.mean.shape)
    log_ratio = jax.vmap(lambda z_k: sum_event(q.log_prob(z_k) - prior.log_prob(z_k)))(z)
    return log_ratio.mean(axis=0)


def sample_latents(key: Array, q: Normal, samples: int) -> Array:
    """``samples`` reparameterized draws z = mu + sigma * eps from q, ``[K, B, Z]``."""
    return jax.vmap(q.sample)(jax.random.split(key, samples))


def elbo_terms(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int = 1,
    kl: Callable[[Normal, Array], Array] = kl_closed_form,
) -> ElboTerms:
    """The terms of the ELBO, estimated with ``samples`` draws of z (Kingma & Welling 2014, eq. 7).

    Args:
      key: one PRNG key.
      encode: x -> q(z|x), a diagonal normal over ``[B, Z]``.
      decode: z ``[B, Z]`` -> p(x|z) over arrays shaped like x; its scale of data is x's.
      x: data, ``[B, ...]``.
      samples: K, the number of draws of z for each example.
      kl: :func:`kl_closed_form` (eq. 10) or :func:`kl_monte_carlo` (eq. 6).

    Raises:
      AssertionError: if q(z|x) is not of shape ``[B, Z]`` or p(x|z) not shaped like x.
    """
    q = encode(x)
    chex.assert_rank(q.mean, 2)
    chex.assert_equal_shape_prefix([x, q.mean], 1)
    z = sample_latents(key, q, samples)
    log_likelihood = jax.vmap(lambda z_k: sum_event(decode(z_k).log_prob(x)))(z)  # [K, B]
    return ElboTerms(reconstruction=log_likelihood.mean(axis=0), kl=kl(q, z))


def negative_elbo(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    beta: float | Array = 1.0,
    samples: int = 1,
) -> Array:
    """-ELBO ``[B]`` in nats, with the KL weighted by beta: what a VAE is trained to minimize."""
    return -elbo_terms(key, encode, decode, x, samples=samples).elbo(beta)


def log_weight(q: Normal, decode: Decoder, x: Array) -> Callable[[Array], Array]:
    """log w = log p(x, z) - log q(z|x), ``[B]``, as a function of z ``[B, Z]``."""
    prior = standard_normal(q.mean.shape)

    def of(z: Array) -> Array:
        log_joint = sum_event(decode(z).log_prob(x)) + sum_event(prior.log_prob(z))
        return log_joint - sum_event(q.log_prob(z))

    return of


def importance_log_likelihood(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int,
    chunk: int = 1,
) -> Array:
    """The K-sample bound log 1/K sum_k p(x, z_k) / q(z_k|x), ``[B]`` (Burda et al. 2016, eq. 8).

    It is the ELBO at K = 1, grows with K in expectation and tends to log p(x). ``chunk`` samples
    are decoded at a time, so memory does not grow with K; K must be a multiple of it.
    """
    if samples % chunk:
        raise ValueError(f"samples ({samples}) must be a multiple of chunk ({chunk}).")
    q = encode(x)
    chex.assert_rank(q.mean, 2)
    weigh = jax.vmap(log_weight(q, decode, x))

    def accumulate(log_sum: Array, key: Array) -> tuple[Array, None]:
        log_weights = weigh(sample_latents(key, q, chunk))  # [chunk, B]
        return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_weights, axis=0)), None

    keys = jax.random.split(key, samples // chunk)
    log_sum, _ = jax.lax.scan(accumulate, jnp.full(x.shape[:1], -jnp.inf), keys)
    return log_sum - jnp.log(samples)
