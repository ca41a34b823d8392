"""Diffusion over tokens: noise that replaces them, its posterior, and bounds on log p(x).

A token stays with probability alpha, or is drawn anew from ``pi``: q(x_t|x_0) = alpha_t x_0 +
(1 - alpha_t) pi (Austin et al. 2021, "Structured denoising diffusion models in discrete
state-spaces", appendix A.2: uniform and absorbing). alpha falls from 1 to 0 as t goes from 0 to 1.
Tokens are ``[B, L]``; a denoiser answers log p(x_0|x_t), ``(x_t, t [B]) -> [B, L, V]``. Values are
in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

Denoiser = Callable[[Array, Array], Array]
Alpha = Callable[[Array], Array]  # t in [0, 1] -> alpha_t


def uniform(tokens: int) -> Array:
    """Noise of all tokens alike, ``[V]``."""
    return jnp.full(tokens, 1 / tokens)


def absorbing(tokens: int) -> Array:
    """Noise that is one token more, the mask, ``[V + 1]``: it is the last."""
    return jax.nn.one_hot(tokens, tokens + 1)


def linear(t: Array) -> Array:
    """alpha_t = 1 - t: in even steps of time as many tokens are replaced."""
    return 1 - t


def cosine(t: Array) -> Array:
    """alpha_t = 1 - sin(pi t / 2), slow at the beginning (Chang et al. 2022, figure 3)."""
    return 1 - jnp.sin(jnp.pi * t / 2)


def replaced(key: Array, x_0: Array, alpha: Array, pi: Array) -> Array:
    """x_t of x_0 ``[B, L]`` at ``alpha [B]``."""
    chex.assert_rank(x_0, 2)
    key_keep, key_draw = jax.random.split(key)
    keep = jax.random.uniform(key_keep, x_0.shape) < alpha[:, None]
    drawn = jax.random.categorical(key_draw, jnp.log(pi), shape=x_0.shape)
    return jnp.where(keep, x_0, drawn.astype(x_0.dtype))


def posterior(log_p_0: Array, x_t: Array, alpha_t: Array, alpha_s: Array, pi: Array) -> Array:
    """log p(x_s|x_t) = log sum_{x_0} p(x_0) q(x_s|x_t, x_0), ``[B, L, V]``, for s before t.

    There eq. 3 and 4. An x_0 that cannot have become x_t is left out.

    Args:
      log_p_0: of the denoiser, ``[B, L, V]``, or the logarithm of one-hot x_0.
      x_t: ``[B, L]``.
      alpha_t: at t, ``[B]``.
      alpha_s: at s, ``[B]``.
      pi: the noise, ``[V]``.
    """
    at, to = alpha_t[:, None, None], alpha_s[:, None, None]
    seen = jax.nn.one_hot(x_t, len(pi))  # [B, L, V]
    pi = pi.reshape(1, 1, -1)
    noise_of_x_t = jnp.sum(pi * seen, axis=-1, keepdims=True)
    from_0 = at * seen + (1 - at) * noise_of_x_t  # q(x_t|x_0), for every x_0
    possible = from_0 > 0
    r = jnp.where(possible, jnp.exp(log_p_0) / jnp.where(possible, from_0, 1.0), 0.0)
    step = at / jnp.maximum(to, 1e-30)
    from_s = step * seen + (1 - step) * noise_of_x_t  # q(x_t|x_s), for every x_s
    p = from_s * (to * r + (1 - to) * pi * r.sum(axis=-1, keepdims=True))
    return jnp.log(jnp.maximum(p, 1e-30)) - jnp.log(jnp.maximum(p.sum(-1, keepdims=True), 1e-30))


class DiscreteTerms(NamedTuple):
    """The terms of the bound on -log p(x), nats an example."""

    prior: Array  # KL(q(x_T|x_0) || pi), [B]
    diffusion: Array  # E KL(q(x_s|x_t, x_0) || p(x_s|x_t)), [T - 1, B], from t = 2/T on
    reconstruction: Array  # -E log p(x_0|x_1), [B]

    def total(self) -> Array:
        """Their sum, ``[B]``."""
        return self.prior + self.diffusion.sum(axis=0) + self.reconstruction


def one_hot_log(x: Array, tokens: int) -> Array:
    """log of one-hot tokens, -inf where it is 0."""
    return jnp.log(jax.nn.one_hot(x, tokens))


def kl_categorical(log_q: Array, log_p: Array) -> Array:
    """KL(q || p) over the last axis, where q may be 0."""
    q = jnp.exp(log_q)
    return jnp.sum(jnp.where(q > 0, q * (jnp.where(q > 0, log_q, 0.0) - log_p), 0.0), axis=-1)


def discrete_bound(
    key: Array, denoise: Denoiser, x_0: Array, pi: Array, steps: int, alpha: Alpha = linear
) -> DiscreteTerms:
    """Every term of the bound with ``steps`` steps, each from one draw of x_t (Austin et al. 2021,
    eq. 1)."""
    batch, truth = len(x_0), one_hot_log(x_0, len(pi))
    log_pi = jnp.log(pi).reshape(1, 1, -1)

    def term(i: Array) -> Array:
        t = jnp.full(batch, i / steps)
        at, to = alpha(t), jnp.where(i == 1, 1.0, alpha(t - 1 / steps))
        x_t = replaced(jax.random.fold_in(key, i), x_0, at, pi)
        log_q = posterior(truth, x_t, at, to, pi)
        log_p = posterior(denoise(x_t, t), x_t, at, to, pi)
        return kl_categorical(log_q, log_p).sum(axis=1)  # at i = 1, -log p(x_0|x_1)

    terms = jax.lax.map(term, jnp.arange(1, steps + 1))
    last = alpha(jnp.ones(()))
    end = last * jax.nn.one_hot(x_0, len(pi)) + (1 - last) * pi.reshape(1, 1, -1)
    prior = kl_categorical(jnp.log(end), jnp.maximum(log_pi, -1e30)).sum(axis=1)
    return DiscreteTerms(prior, terms[1:], terms[0])


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
    x_t = jnp.where(hidden, mask, x_0)
    log_p = jnp.take_along_axis(denoise(x_t, t), x_0[..., None], axis=-1)[..., 0]
    return -slope / (1 - at) * jnp.sum(jnp.where(hidden, -log_p, 0.0), axis=1)
