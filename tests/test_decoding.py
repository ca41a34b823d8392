"""Filters of logits by hand, and samplers of a Markov chain, whose probabilities are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.decoding import nucleus, sample_tokens, top_k, warmed

P = np.array([0.1, 0.5, 0.15, 0.25])
LOGITS = jnp.log(jnp.asarray(P, jnp.float32))[None] + 3.0


@pytest.mark.parametrize(
    ("k", "kept"), [(1, [1]), (2, [1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3])]
)
def test_the_k_most_likely_are_left_in_their_proportions(k, kept):
    found = np.asarray(jax.nn.softmax(top_k(LOGITS, k)))[0]
    expected = np.where(np.isin(np.arange(4), kept), P, 0)
    np.testing.assert_allclose(found, expected / expected.sum(), rtol=1e-5)


@pytest.mark.parametrize(
    ("p", "kept"), [(0.0, [1]), (0.4, [1]), (0.6, [1, 3]), (0.8, [1, 3, 2]), (1.0, [0, 1, 2, 3])]
)
def test_the_nucleus_is_the_fewest_that_reach_p(p, kept):
    found = np.isfinite(np.asarray(nucleus(LOGITS, p)))[0]
    np.testing.assert_array_equal(np.flatnonzero(found), sorted(kept))


def test_temperature_is_a_power_of_the_probabilities():
    for temperature in (0.5, 1.0, 2.0):
        found = jax.nn.softmax(warmed(LOGITS, temperature))[0]
        np.testing.assert_allclose(
            found, P ** (1 / temperature) / (P ** (1 / temperature)).sum(), rtol=1e-4
        )
    np.testing.assert_allclose(jax.nn.softmax(warmed(LOGITS, 0.0))[0], [0, 1, 0, 0])


CHAIN = np.array([[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.3, 0.3, 0.4]], np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_tokens_of_a_chain_have_its_probabilities(key, temperature):
    """The cache is the sequence so far, as a count of what was fed."""

    def next_token(cache, token, place):
        return jnp.log(jnp.asarray(CHAIN))[token], cache.at[:, place].set(token)

    start = jnp.log(jnp.tile(jnp.asarray([[0.2, 0.3, 0.5]]), (20_000, 1)))
    cache = jnp.zeros((20_000, 6), jnp.int32)
    draw = jax.jit(
        lambda key: sample_tokens(key, next_token, cache, start, 1, 4, temperature=temperature)
    )
    tokens = np.asarray(draw(key))
    cooled = lambda p: p ** (1 / temperature) / (p ** (1 / temperature)).sum(-1, keepdims=True)
    p = cooled(np.array([0.2, 0.3, 0.5]))
    for i in range(4):
        np.testing.assert_allclose(np.bincount(tokens[:, i], minlength=3) / 20_000, p, atol=0.015)
        p = p @ cooled(CHAIN)


def test_without_temperature_the_most_likely_token_follows(key):
    next_token = lambda cache, token, place: (jnp.log(jnp.asarray(CHAIN))[token], cache)
    start = jnp.asarray([[0.0, 1.0, 0.0]])
    found = sample_tokens(key, next_token, None, start, 0, 4, temperature=0.0)
    np.testing.assert_array_equal(found, [[1, 2, 2, 2]])
