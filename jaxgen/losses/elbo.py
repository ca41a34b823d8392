"""The evidence lower bound of a latent-variable model p(z) p(x|z) and its tighter relatives.

Kingma & Welling 2014 ("Auto-Encoding Variational Bayes"); Higgins et al. 2017 (beta);
Burda et al. 2016 (the importance-weighted bound). All values are in nats per example.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import (
    Bernoulli,
    Beta,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Distribution,
    InOrder,
    Levels,
    LogisticMixture,
    Normal,
    kl_normal,
    standard_normal,
    sum_event,
)
from jaxgen.posteriors import Posterior, Prior, StandardNormal

Encoder = Callable[[Array], Posterior]  # x [B, ...] -> q(z|x) over [B, Z]
Decoder = Callable[[Array], Distribution]  # z [B, Z] -> p(x|z) over [B, ...]


class Likelihood(NamedTuple):
    """How parameter maps ``[..., maps * C]`` become a density over data ``[..., C]``."""

    maps: int
    density: Callable[[Any], Distribution]
    independent: bool = True  # the entries of x given z; where not, the mean looks like no x


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


def continuous_bernoulli() -> Likelihood:
    """A continuous Bernoulli from one map of logits, over data in [-1, 1]."""
    return Likelihood(1, ContinuousBernoulli)


def beta(levels: int) -> Likelihood:
    """A Beta density from two maps, over data in [-1, 1] on ``levels`` values."""

    def density(maps: Array) -> Beta:
        log_a, log_b = jnp.split(jnp.clip(maps, -6.0, 6.0), 2, axis=-1)
        return Beta(log_a, log_b, levels)

    return Likelihood(2, density)


def logistic_mixture(levels: int, channels: int, components: int = 5) -> Likelihood:
    """A mixture of logistics with coupled channels, over the ``levels`` values in [-1, 1].

    A pixel takes components (1 + 2 C + C^2) numbers, and the maps are as many as hold them.
    """
    count = components * (1 + 2 * channels + channels**2)

    def density(maps: Array) -> LogisticMixture:
        parts = maps[..., :count].reshape(*maps.shape[:-1], -1, components)
        logits, location, log_scale, coupling = jnp.split(
            parts, [1, 1 + channels, 1 + 2 * channels], axis=-2
        )
        coupling = jnp.tanh(coupling).reshape(*maps.shape[:-1], channels, channels, components)
        scale = jnp.maximum(log_scale, -7.0)
        return LogisticMixture(logits[..., 0, :], location, scale, coupling, levels)

    return Likelihood(math.ceil(count / channels), density)


def softmax(levels: int) -> Likelihood:
    """A probability for each of the ``levels`` values in [-1, 1], from as many maps."""

    def density(maps: Array) -> Levels:
        logits = maps.reshape(*maps.shape[:-1], levels, -1)
        return Levels(jnp.moveaxis(logits, -2, -1))

    return Likelihood(levels, density)


def in_order(likelihood: Likelihood) -> Likelihood:
    """p(x|z) = prod_i p(x_i | x_<i, z), each entry with the given likelihood.

    Its decoder answers ``(maps, start)`` of :class:`~jaxgen.distributions.InOrder`, with maps a
    function of x.
    """
    density = lambda found: InOrder(likelihood.density, *found)  # noqa: E731
    return Likelihood(likelihood.maps, density, independent=False)


class ElboTerms(NamedTuple):
    """The two terms of the bound, each ``[B]`` in nats."""

    reconstruction: Array  # E_q log p(x|z)
    kl: Array  # KL(q(z|x) || p(z))

    def elbo(self, beta: float | Array = 1.0) -> Array:
        """``reconstruction - beta * kl``, ``[B]``; a lower bound on log p(x) where beta = 1."""
        return self.reconstruction - beta * self.kl


# (q(z|x), draws z [K, B, Z] of it, log q of these [K, B]) -> KL(q(z|x) || p(z)) [B]
KL = Callable[[Posterior, Array, Array], Array]


def kl_closed_form(q: Posterior, z: Array, log_q: Array) -> Array:
    """KL(q || N(0, I)) ``[B]`` of a diagonal normal q (Kingma & Welling 2014, eq. 10).

    Raises:
      ValueError: for another q.
    """
    del z, log_q
    if not isinstance(q, Normal):
        raise ValueError(f"the KL of a {type(q).__name__} has no closed form: use kl_monte_carlo.")
    return sum_event(kl_normal(q, standard_normal(q.mean.shape)))


def kl_monte_carlo(prior: Prior) -> KL:
    """The mean of log q(z|x) - log p(z) over the draws, ``[B]``: unbiased, for any q and prior."""

    def kl(q: Posterior, z: Array, log_q: Array) -> Array:
        del q
        return (log_q - jax.vmap(prior.log_prob)(z)).mean(axis=0)

    return kl


def draws(key: Array, q: Posterior, samples: int) -> tuple[Array, Array]:
    """``samples`` reparameterized draws z ``[K, B, Z]`` of q, and log q(z|x) ``[K, B]``."""
    z, log_q = jax.vmap(q.draw)(jax.random.split(key, samples))
    chex.assert_rank([z, log_q], [3, 2])
    return z, log_q


def elbo_terms(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int = 1,
    kl: KL = kl_closed_form,
) -> ElboTerms:
    """The terms of the ELBO, estimated with ``samples`` draws of z (Kingma & Welling 2014, eq. 7).

    Args:
      key: one PRNG key.
      encode: x -> q(z|x) over ``[B, Z]``.
      decode: z ``[B, Z]`` -> p(x|z) over arrays shaped like x; its scale of data is x's.
      x: data, ``[B, ...]``.
      samples: K, the number of draws of z for each example.
      kl: :func:`kl_closed_form`, to N(0, I), or :func:`kl_monte_carlo` to any prior.

    Raises:
      AssertionError: if z is not of shape ``[B, Z]`` or p(x|z) not shaped like x.
    """
    q = encode(x)
    z, log_q = draws(key, q, samples)
    chex.assert_equal_shape_prefix([x, z[0]], 1)
    log_likelihood = jax.vmap(lambda z_k: sum_event(decode(z_k).log_prob(x)))(z)  # [K, B]
    return ElboTerms(reconstruction=log_likelihood.mean(axis=0), kl=kl(q, z, log_q))


def negative_elbo(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    beta: float | Array = 1.0,
    samples: int = 1,
    kl: KL = kl_closed_form,
) -> Array:
    """-ELBO ``[B]`` in nats, with the KL weighted by beta: what a VAE is trained to minimize."""
    return -elbo_terms(key, encode, decode, x, samples=samples, kl=kl).elbo(beta)


def log_joint(decode: Decoder, x: Array, prior: Prior | None = None) -> Callable[[Array], Array]:
    """log p(x, z), ``[B]``, as a function of z ``[B, Z]``; of the prior N(0, I) where None."""

    def of(z: Array) -> Array:
        log_prior = (prior or StandardNormal(z.shape[-1])).log_prob(z)
        return sum_event(decode(z).log_prob(x)) + log_prior

    return of


def importance_log_likelihood(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int,
    chunk: int = 1,
    prior: Prior | None = None,
) -> Array:
    """The K-sample bound log 1/K sum_k p(x, z_k) / q(z_k|x), ``[B]`` (Burda et al. 2016, eq. 8).

    It is the ELBO at K = 1, grows with K in expectation and tends to log p(x). ``chunk`` samples
    are decoded at a time, so memory does not grow with K; K must be a multiple of it. The prior is
    N(0, I) where None.
    """
    if samples % chunk:
        raise ValueError(f"samples ({samples}) must be a multiple of chunk ({chunk}).")
    q, joint = encode(x), jax.vmap(log_joint(decode, x, prior))

    def accumulate(log_sum: Array, key: Array) -> tuple[Array, None]:
        z, log_q = draws(key, q, chunk)
        log_weights = joint(z) - log_q  # [chunk, B]
        return jnp.logaddexp(log_sum, jax.nn.logsumexp(log_weights, axis=0)), None

    keys = jax.random.split(key, samples // chunk)
    log_sum, _ = jax.lax.scan(accumulate, jnp.full(x.shape[:1], -jnp.inf), keys)
    return log_sum - jnp.log(samples)
