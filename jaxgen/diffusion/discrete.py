"""Diffusion over tokens: noise that replaces them, its posterior, and samplers.

A token stays with probability alpha, or is drawn anew from ``pi``: q(x_t|x_0) = alpha_t x_0 +
(1 - alpha_t) pi (Austin et al. 2021, "Structured denoising diffusion models in discrete
state-spaces", D3PM, appendix A.2: uniform and absorbing). alpha falls from 1 to 0 as t goes from 0
to 1. Tokens are ``[B, L]``; a denoiser answers log p(x_0|x_t), ``(x_t, t [B]) -> [B, L, V]``.
:mod:`jaxgen.losses.discrete` has the bounds that it is trained by.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.decoding import everything

NEVER = -1e30  # the logarithm of what cannot be

Denoiser = Callable[[Array, Array], Array]
Alpha = Callable[[Array], Array]  # t in [0, 1] -> alpha_t
Kept = Callable[[Array], Array]  # log p [B, L, V] -> the same of what is kept, others -inf
# (key, log p(x_0|x_t) [B, L, V], x_t [B, L], t, s) -> x_s [B, L], for numbers s < t
Step = Callable[[Array, Array, Array, Array, Array], Array]
# (x_t [B, b], t [B], cache, place) -> (log p(x_0|x_t) [B, b, V], the cache with x_t), of a block of
# tokens from a place on, told of those before it by a cache
Extend = Callable[[Array, Array, Any, Array], tuple[Array, Any]]


# --- noise --------------------------------------------------------------------------------------


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


def one_hot_log(x: Array, tokens: int) -> Array:
    """log of one-hot tokens, -inf where it is 0."""
    return jnp.log(jax.nn.one_hot(x, tokens))


def likelihood(x_t: Array, alpha: Array, pi: Array) -> Array:
    """q(x_t|x_0) of ``x_t [B, L]`` at ``alpha [B]`` or ``[B, L]``, for every x_0: ``[B, L, V]``.

    alpha is never quite 0, so that a token among masks is still what it is where all should be
    masked: one that is given.
    """
    at, seen = jnp.maximum(alpha, 1e-30).reshape(len(x_t), -1, 1), jax.nn.one_hot(x_t, len(pi))
    return at * seen + (1 - at) * pi[x_t][..., None]


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
    to = alpha_s[:, None, None]
    from_0 = likelihood(x_t, alpha_t, pi)
    log_r = jnp.maximum(jnp.where(from_0 > 0, log_p_0 - log_of(from_0), NEVER), NEVER)
    from_s = likelihood(x_t, alpha_t / jnp.maximum(alpha_s, 1e-30), pi)  # for every x_s
    anew = log_of((1 - to) * pi.reshape(1, 1, -1)) + jax.nn.logsumexp(log_r, -1, keepdims=True)
    log_p = log_of(from_s) + jnp.logaddexp(log_of(to) + log_r, anew)
    return jnp.maximum(log_p, NEVER) - jax.nn.logsumexp(log_p, axis=-1, keepdims=True)


def log_of(p: Array) -> Array:
    """log p, and for 0 a number that still has sums and gradients."""
    return jnp.where(p > 0, jnp.log(jnp.where(p > 0, p, 1.0)), NEVER)


# --- denoisers ----------------------------------------------------------------------------------


def denoised(logits: Array, x_t: Array, alpha: Array, pi: Array) -> Array:
    """log p(x_0|x_t) ``[B, L, V]`` by Bayes' rule of a network's ``logits`` at ``alpha``, which is
    ``[B]`` or ``[B, L]``.

    They stand for p(x_0^l) as the *other* tokens of x_t tell it, which is then weighted by
    q(x_t^l|x_0^l): a network need not learn to read a token off itself, nor how far to trust it.
    Under masks that is the parameterization of Sahoo et al. 2024 (section 3.2.3): a token that is
    seen is sure, and none is a mask, for which there is no logit, ``[B, L, V - 1]``.
    """
    alpha = jnp.minimum(alpha, 1 - 1e-7)  # never quite 1: a mask among tokens is still one
    lacking = len(pi) - logits.shape[-1]
    logits = jnp.pad(logits, ((0, 0), (0, 0), (0, lacking)), constant_values=-jnp.inf)
    return jax.nn.log_softmax(logits + jnp.log(likelihood(x_t, alpha, pi)))


def knowing(denoise: Denoiser, known: Array, x_0: Array) -> Denoiser:
    """The denoiser where the tokens x_0 of ``known [B, L]`` are given.

    By ancestral steps these go back along q(x_s|x_t, x_0), exactly as noise has them, and end as
    they are. Of them the others know what x_t shows: only in the limit of little noise all, so that
    they are drawn from p(x_0|known) approximately, as by any replacement (Lugmayr et al. 2022,
    section 4). Under masks this is not needed, and all is exact: tokens that are known are not
    masked from the start, and no step changes them.
    """

    def told(x_t: Array, t: Array) -> Array:
        log_p_0 = denoise(x_t, t)
        return jnp.where(known[..., None], one_hot_log(x_0, log_p_0.shape[-1]), log_p_0)

    return told


# --- samplers -----------------------------------------------------------------------------------


def ancestral(pi: Array, alpha: Alpha = linear, kept: Kept = everything) -> Step:
    """Every x_s from p(x_s|x_t), each token by itself, with what is ``kept`` of log p(x_0|x_t).

    What tokens of one step have to do with each other is lost: exact in the limit of many steps.
    """

    def step(key: Array, log_p_0: Array, x_t: Array, t: Array, s: Array) -> Array:
        at, to = (jnp.full(len(x_t), alpha(time)) for time in (t, s))
        # "high": rare tokens, of which a step of many has only such, would be drawn too rarely
        # by a float32 Gumbel (Zheng et al. 2024, "Masked diffusion models are secretly
        # time-agnostic masked models", section 5)
        log_p = posterior(kept(log_p_0), x_t, at, to, pi)
        return jax.random.categorical(key, log_p, mode="high").astype(x_t.dtype)

    return step


def confident(
    mask: int,
    alpha: Alpha = linear,
    choice: float | Array = 1.0,
    kept: Kept = everything,
) -> Step:
    """Draws all that is masked, of what is ``kept`` of log p(x_0|x_t), and keeps what the denoiser
    is surest of (MaskGIT: Chang et al. 2022, section 3.2).

    So many stay masked that their mean share is that of alpha_s: a share that is no whole number of
    tokens is rounded at random. Sureness is the denoiser's log p of the token that was drawn, which
    nothing was left out of (at a temperature of 0 all would be sure), plus Gumbel noise times
    ``choice`` t: at 0 the order is the denoiser's alone, and where it is huge at random. Then, with
    a step for each token, draws are exact; sure ones first are likelier than they should be.
    """

    def step(key: Array, log_p_0: Array, x_t: Array, t: Array, s: Array) -> Array:
        key_token, key_order, key_round = jax.random.split(key, 3)
        hidden = x_t == mask
        drawn = jax.random.categorical(key_token, kept(log_p_0), mode="high").astype(x_t.dtype)
        sure = jnp.take_along_axis(log_p_0, drawn[..., None], axis=-1)[..., 0]
        sure = sure + choice * t * jax.random.gumbel(key_order, sure.shape)
        count = hidden.sum(axis=1, keepdims=True)
        left = count * ((1 - alpha(s)) / (1 - alpha(t)))
        left = jnp.floor(left + jax.random.uniform(key_round, left.shape))
        rank = ranks(jnp.where(hidden, sure, jnp.inf))  # the least sure ones stay masked
        return jnp.where(hidden & (rank >= left), drawn, x_t)

    return step


def ranks(x: Array) -> Array:
    """How many entries of its row are before each one in rising order, ``[..., L]``."""
    return jnp.argsort(jnp.argsort(x, axis=-1), axis=-1)


def sample(
    key: Array, denoise: Denoiser, x_T: Array, times: Array | np.ndarray, step: Step
) -> Array:
    """x_0 ``[B, L]`` from ``x_T`` through ``times``, which fall from 1 to 0: one scan."""
    return _scan(key, denoise, x_T, times, step, lambda x_s: None)[0]


def sample_path(
    key: Array, denoise: Denoiser, x_T: Array, times: Array | np.ndarray, step: Step
) -> tuple[Array, Array]:
    """:func:`sample`, with every x_s on its way, ``[n, B, L]``."""
    return _scan(key, denoise, x_T, times, step, lambda x_s: x_s)


def sample_blocks(
    key: Array,
    extend: Extend,
    cache: Any,
    x_T: Array,
    block: int,
    times: Array | np.ndarray,
    step: Step,
) -> Array:
    """x_0 ``[B, L]`` in blocks of so many tokens, each by :func:`sample` given those before it
    (Arriola et al. 2025, "Block diffusion", algorithm 2): one scan."""
    chex.assert_rank(x_T, 2)
    blocks = x_T.reshape(len(x_T), -1, block).swapaxes(0, 1)

    def one(cache, row):
        key, x_T, place = row
        denoise = lambda x_t, t: extend(x_t, t, cache, place)[0]  # noqa: E731
        x_0 = sample(key, denoise, x_T, times, step)
        return extend(x_0, jnp.zeros(len(x_0)), cache, place)[1], x_0

    rows = jax.random.split(key, len(blocks)), blocks, block * jnp.arange(len(blocks))
    return jax.lax.scan(one, cache, rows)[1].swapaxes(0, 1).reshape(x_T.shape)


def _scan(key, denoise, x_T, times, step, keep):
    chex.assert_rank([x_T, times], [2, 1])
    times = jnp.asarray(times, jnp.float32)

    def move(x_t, row):
        key, t, s = row
        x_s = step(key, denoise(x_t, jnp.full(len(x_t), t)), x_t, t, s)
        return x_s, keep(x_s)

    keys = jax.random.split(key, len(times) - 1)
    return jax.lax.scan(move, x_T, (keys, times[:-1], times[1:]))
