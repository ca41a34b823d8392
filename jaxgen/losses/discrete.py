"""Bounds on -log p(x) of diffusion over tokens, see :mod:`jaxgen.diffusion.discrete`.

Tokens are ``[B, L]``; a denoiser answers log p(x_0|x_t), ``(x_t, t [B]) -> [B, L, V]``. Values are
in nats.
"""

from __future__ import annotations

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.discrete import (
    Alpha,
    Denoiser,
    linear,
    one_hot_log,
    posterior,
    ranks,
    replaced,
)


class DiscreteTerms(NamedTuple):
    """The terms of the bound on -log p(x), nats an example."""

    prior: Array  # KL(q(x_T|x_0) || pi), [B]
    diffusion: Array  # E KL(q(x_s|x_t, x_0) || p(x_s|x_t)), [T - 1, B], from t = 2/T on
    reconstruction: Array  # -E log p(x_0|x_1), [B]

    def total(self) -> Array:
        """Their sum, ``[B]``."""
        return self.prior + self.diffusion.sum(axis=0) + self.reconstruction


def kl_categorical(log_q: Array, log_p: Array) -> Array:
    """KL(q || p) over the last axis, where q may be 0."""
    q = jnp.exp(log_q)
    return jnp.sum(jnp.where(q > 0, q * (jnp.where(q > 0, log_q, 0.0) - log_p), 0.0), axis=-1)


def prior_term(x_0: Array, pi: Array, alpha: Alpha) -> Array:
    """KL(q(x_T|x_0) || pi), ``[B]``: 0 where alpha ends at 0."""
    last = alpha(jnp.ones(()))
    end = last * jax.nn.one_hot(x_0, len(pi)) + (1 - last) * pi.reshape(1, 1, -1)
    log_pi = jnp.log(pi).reshape(1, 1, -1)
    return kl_categorical(jnp.log(end), jnp.maximum(log_pi, -1e30)).sum(axis=1)


def step_term(
    key: Array, denoise: Denoiser, x_0: Array, i: Array, pi: Array, steps: int, alpha: Alpha
) -> tuple[Array, Array]:
    """KL(q(x_s|x_t, x_0) || p(x_s|x_t)) of the steps ``i [B]`` in 1..T by one draw of x_t, and
    -log p(x_0|x_t): ``[B]`` each. At i = 1 both are the same."""
    t = i / steps
    at, to = alpha(t), jnp.where(i == 1, 1.0, alpha(t - 1 / steps))
    x_t = replaced(key, x_0, at, pi)
    log_p_0 = denoise(x_t, t)
    log_q = posterior(one_hot_log(x_0, len(pi)), x_t, at, to, pi)
    kl = kl_categorical(log_q, posterior(log_p_0, x_t, at, to, pi)).sum(axis=1)
    cross_entropy = -jnp.take_along_axis(log_p_0, x_0[..., None], axis=-1)[..., 0].sum(axis=1)
    return kl, cross_entropy


def discrete_bound(
    key: Array, denoise: Denoiser, x_0: Array, pi: Array, steps: int, alpha: Alpha = linear
) -> DiscreteTerms:
    """Every term of the bound with ``steps`` steps, each from one draw of x_t (Austin et al. 2021,
    eq. 1), in nats, of ``x_0 [B, L]`` and noise ``pi [V]``."""

    def term(i: Array) -> Array:
        each = jnp.full(len(x_0), i)
        return step_term(jax.random.fold_in(key, i), denoise, x_0, each, pi, steps, alpha)[0]

    terms = jax.lax.map(term, jnp.arange(1, steps + 1))
    return DiscreteTerms(prior_term(x_0, pi, alpha), terms[1:], terms[0])


def discrete_loss(
    key: Array,
    denoise: Denoiser,
    x_0: Array,
    t: Array,
    pi: Array,
    steps: int,
    alpha: Alpha = linear,
    auxiliary: float = 0.0,
) -> Array:
    """An estimate of :func:`discrete_bound` by one of its steps, that of ``t [B]``, drawn evenly
    from (0, 1]: ``[B]`` nats.

    ``auxiliary`` is the weight lambda of -log p(x_0|x_t) beside it (there eq. 5); with one it is no
    bound of the least value any more.
    """
    chex.assert_rank([x_0, t], [2, 1])
    i = jnp.clip(jnp.ceil(t * steps), 1, steps)
    kl, cross_entropy = step_term(key, denoise, x_0, i, pi, steps, alpha)
    return steps * kl + prior_term(x_0, pi, alpha) + auxiliary * cross_entropy


def masked_loss(
    key: Array, denoise: Denoiser, x_0: Array, t: Array, mask: int, alpha: Alpha = linear
) -> Array:
    """An estimate of the continuous-time bound on -log p(x) of masked diffusion, ``[B]`` nats.

    -alpha'_t / (1 - alpha_t) times the cross-entropy of the tokens that are masked at ``t [B]``,
    drawn evenly from (0, 1] (Sahoo et al. 2024, "MDLM", eq. 10; Shi et al. 2024, eq. 5). With exact
    conditionals its mean is -log p(x) itself.
    """
    chex.assert_rank([x_0, t], [2, 1])
    at, slope = jax.jvp(alpha, (t,), (jnp.ones_like(t),))
    hidden = jax.random.uniform(key, x_0.shape) >= at[:, None]
    noise = 1 - at  # 0 to rounding near t = 0: nothing is hidden then
    weight = jnp.where(noise > 0, -slope / jnp.where(noise > 0, noise, 1.0), 0.0)
    return weight * hidden_nats(denoise, x_0, t, hidden, mask)


def counted_loss(key: Array, denoise: Denoiser, x_0: Array, t: Array, mask: int) -> Array:
    """:func:`masked_loss` of a denoiser that is not told the time, with less variance: ``[B]``.

    Of the L tokens n = ceil(L t) are masked, and L / n times their cross-entropy is the estimate;
    ``t [B]`` is drawn evenly from (0, 1]. That is a random order, of which one place is looked at
    (Uria et al. 2014; Hoogeboom et al. 2022, "Autoregressive diffusion models", eq. 6), and the
    bound is the same for every alpha (Ou et al. 2024, section 3.3): no count is left to chance, and
    no weight grows as t falls to 0.

    Of ``t [B, n]`` each of n blocks of the tokens has its own time and count, for a denoiser that
    sees the blocks before a token's own as they are: the bound is the sum of the blocks' (Arriola
    et al. 2025, "Block diffusion", section 3).

    Raises:
      AssertionError: for times of another batch, or of blocks that do not divide the tokens.
    """
    chex.assert_rank([x_0, t], [2, {1, 2}])
    chex.assert_axis_dimension(t, 0, len(x_0))
    blocks = t.reshape(len(x_0), -1, 1)
    chex.assert_is_divisible(x_0.shape[1], blocks.shape[1])
    size = x_0.shape[1] // blocks.shape[1]
    count = jnp.clip(jnp.ceil(blocks * size), 1, size)  # of masks, [B, n, 1]
    order = ranks(jax.random.uniform(key, (*blocks.shape[:2], size)))
    hidden = (order < count).reshape(x_0.shape)
    weight = jnp.broadcast_to(size / count, order.shape).reshape(x_0.shape)
    return hidden_nats(denoise, x_0, (count / size).reshape(t.shape), hidden, mask, weight)


def hidden_nats(
    denoise: Denoiser,
    x_0: Array,
    t: Array,
    hidden: Array,
    mask: int,
    weight: Array | float = 1.0,
) -> Array:
    """-log p(x_0|x_t) of the tokens that are ``hidden [B, L]`` under the mask, ``[B]``, each by its
    weight."""
    x_t = jnp.where(hidden, mask, x_0)
    log_p = jnp.take_along_axis(denoise(x_t, t), x_0[..., None], axis=-1)[..., 0]
    return jnp.sum(jnp.where(hidden, -log_p, 0.0) * weight, axis=1)
