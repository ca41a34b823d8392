"""From logits of the next token to tokens: temperature, top-k, nucleus, and a sampler."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax import Array

Filter = Callable[[Array], Array]  # logits [..., V] -> logits, -inf for what is left out
# (cache, token [B], place) -> (logits of the next [B, V], cache)
NextToken = Callable[[Any, Array, Array], tuple[Array, Any]]
# (tokens [B, T], cache, place of the first) -> (logits [B, T, V], cache)
Extend = Callable[[Array, Any, Any], tuple[Array, Any]]


def everything(logits: Array) -> Array:
    """Leaves nothing out."""
    return logits


def warmed(logits: Array, temperature: float | Array) -> Array:
    """Logits ``[..., V]`` of p^(1/temperature), normalized later; at 0 the best token alone."""
    best = jnp.where(logits == logits.max(axis=-1, keepdims=True), 0.0, -jnp.inf)
    safe = jnp.where(jnp.asarray(temperature) > 0, temperature, 1.0)
    return jnp.where(jnp.asarray(temperature) > 0, logits / safe, best)


def top_k(logits: Array, k: int) -> Array:
    """The k largest of ``logits [..., V]`` alone (Fan et al. 2018), and those equal to the k-th."""
    least = jax.lax.top_k(logits, min(k, logits.shape[-1]))[0][..., -1:]
    return jnp.where(logits >= least, logits, -jnp.inf)


def nucleus(logits: Array, p: float | Array) -> Array:
    """Of ``logits [..., V]`` those of the fewest tokens that have a probability of p or more
    together, and those equal to the last of them (Holtzman et al. 2020)."""
    falling = jnp.sort(logits, axis=-1, descending=True)
    before = jnp.cumsum(jax.nn.softmax(falling), axis=-1) - jax.nn.softmax(falling)
    least = jnp.where(before < p, falling, jnp.inf).min(axis=-1, keepdims=True)
    return jnp.where(logits >= jnp.minimum(least, falling[..., :1]), logits, -jnp.inf)


def sample_tokens(
    key: Array,
    next_token: NextToken,
    cache: Any,
    logits: Array,
    place: Array | int,
    count: int,
    *,
    temperature: float | Array = 1.0,
    keep: Filter = everything,
) -> Array:
    """``count`` tokens ``[B, count]`` one after the other, as one scan.

    Args:
      key: one PRNG key.
      next_token: a step of the model, with a cache of what it has seen.
      cache: after the prompt.
      logits: of the first new token, ``[B, V]``.
      place: of the first new token.
      count: how many, at least one.
      temperature: 0 for the most likely token at every place.
      keep: what is left of the logits: :func:`top_k`, :func:`nucleus`, or one after the other.
    """
    chex.assert_rank(logits, 2)

    def draw(key: Array, logits: Array) -> Array:
        return jax.random.categorical(key, keep(warmed(logits, temperature)))

    def step(state: tuple[Any, Array], row: tuple[Array, Array]) -> tuple[Any, Array]:
        (cache, token), (i, key) = state, row
        logits, cache = next_token(cache, token, place + i)
        token = draw(key, logits)
        return (cache, token), token

    keys = jax.random.split(key, count)
    first = draw(keys[0], logits)
    _, tokens = jax.lax.scan(step, (cache, first), (jnp.arange(count - 1), keys[1:]))
    return jnp.concatenate([first[:, None], tokens.T], axis=1)


def continued(
    key: Array, extend: Extend, cache: Any, tokens: Array, count: int, **how: Any
) -> Array:
    """``count`` tokens ``[B, count]`` after those of ``tokens [B, T]``, by a network with a cache.

    ``extend`` answers logits ``[B, T, V]`` of what follows each of the tokens at the places from
    one on, and the cache after them; ``how`` is as of :func:`sample_tokens`.
    """

    def next_token(cache: Any, token: Array, place: Array) -> tuple[Array, Any]:
        logits, cache = extend(token[:, None], cache, place)
        return logits[:, 0], cache

    logits, cache = extend(tokens, cache, 0)
    place = tokens.shape[1]
    return sample_tokens(key, next_token, cache, logits[:, -1], place, count, **how)
