"""Noise over tokens and its bounds, by enumeration of a joint distribution of a few tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.discrete import (
    absorbing,
    cosine,
    discrete_bound,
    linear,
    masked_loss,
    one_hot_log,
    posterior,
    replaced,
    uniform,
)

V, L = 3, 3
STATES = np.array(list(itertools.product(range(V), repeat=L)))  # [27, L]
P = np.random.default_rng(0).dirichlet(0.5 * np.ones(len(STATES)))
NOISES = {"uniform": uniform(V), "absorbing": absorbing(V)}


def transition(alpha, pi):
    """q(x_t|x_0) as a matrix."""
    return alpha * np.eye(len(pi)) + (1 - alpha) * np.asarray(pi)[None]


def exact_denoiser(alpha, pi):
    """log p(x_0^l|x_t) of the joint distribution, by Bayes."""
    joint, states = jnp.asarray(P, jnp.float32), jnp.asarray(STATES)

    def denoise(x_t, t):
        at = alpha(t)[:, None, None]
        size = len(pi)
        same = (states[None] == x_t[:, None]).astype(jnp.float32)  # [B, N, L]
        q = at * same + (1 - at) * jnp.asarray(pi)[x_t][:, None]
        weight = joint[None] * jnp.prod(q, axis=2)  # [B, N]
        weight = weight / jnp.maximum(weight.sum(axis=1, keepdims=True), 1e-30)
        found = jnp.einsum("bn,nlv->blv", weight, jax.nn.one_hot(states, size))
        return jnp.log(jnp.maximum(found, 1e-30))

    return denoise


@pytest.mark.parametrize("name", NOISES)
def test_noise_and_posterior_are_those_of_the_matrices(key, name):
    pi = NOISES[name]
    x_0 = jnp.tile(jnp.arange(V)[:, None], (1, 20_000))
    x_t = np.asarray(replaced(key, x_0, jnp.full(V, 0.4), pi))
    for i in range(V):
        share = np.bincount(x_t[i], minlength=len(pi)) / x_t.shape[1]
        np.testing.assert_allclose(share, transition(0.4, pi)[i], atol=0.015)
    to_s, to_t = transition(0.7, pi), transition(0.4, pi)
    between = transition(0.4 / 0.7, pi)
    for i, j in itertools.product(range(V), range(len(pi))):
        if to_t[i, j] == 0:
            continue
        found = posterior(
            one_hot_log(jnp.full((1, 1), i), len(pi)),
            jnp.full((1, 1), j),
            jnp.array([0.4]),
            jnp.array([0.7]),
            pi,
        )[0, 0]
        np.testing.assert_allclose(np.exp(found), between[:, j] * to_s[i] / to_t[i, j], atol=1e-6)


@pytest.mark.parametrize("alpha", [linear, cosine])
def test_with_exact_conditionals_the_masked_bound_is_log_p(key, alpha):
    x_0, pi = jnp.asarray(STATES), absorbing(V)
    denoise = exact_denoiser(alpha, pi)

    @jax.jit
    def one(key):
        key_t, key = jax.random.split(key)
        offset = jax.random.uniform(key_t, (len(x_0),))
        return masked_loss(key, denoise, x_0, 1 - offset, V, alpha)

    found = jnp.mean(jax.lax.map(one, jax.random.split(key, 40_000)), axis=0)
    seen = P > 1e-3
    np.testing.assert_allclose(found[seen], -np.log(P)[seen], rtol=0.06, atol=0.05)


@pytest.mark.parametrize("name", NOISES)
def test_the_bound_lies_above_minus_log_p_and_nears_it_with_many_steps(key, name):
    """Steps of factorized posteriors lose something; of masked tokens nothing in the limit."""
    pi, x_0 = NOISES[name], jnp.asarray(STATES)
    gaps = []
    for steps in (2, 40):
        bound = jax.jit(
            lambda k, n=steps: discrete_bound(k, exact_denoiser(linear, pi), x_0, pi, n).total()
        )
        values = jax.lax.map(bound, jax.random.split(key, 500)).mean(axis=0)
        gaps.append(float(P @ (values + np.log(P))))  # the mean KL of the model from the data
    assert gaps[0] > gaps[1] > -0.02
    assert gaps[1] < 0.05


@pytest.mark.parametrize("name", NOISES)
def test_a_step_down_from_the_exact_posterior_has_the_marginal_of_the_data(key, name):
    """sum_{x_t} q(x_t) p(x_s|x_t) = q(x_s), for every token alone."""
    pi = NOISES[name]
    size = len(pi)
    every = np.array(list(itertools.product(range(size), repeat=L)))
    at, to = transition(0.3, pi), transition(0.6, pi)
    q_t = np.array([P @ np.prod(at[STATES, x], axis=1) for x in every])
    denoise = exact_denoiser(linear, pi)
    n = len(every)
    log_p = posterior(
        denoise(jnp.asarray(every), jnp.full(n, 0.7)),
        jnp.asarray(every),
        jnp.full(n, 0.3),
        jnp.full(n, 0.6),
        pi,
    )
    found = np.einsum("n,nlv->lv", q_t, np.exp(np.asarray(log_p)))
    expected = np.array([P @ to[STATES[:, i]] for i in range(L)])
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_gradients_are_finite_where_a_token_cannot_be(key):
    logits = jnp.where(jnp.arange(V + 1) == 0, 100.0, -100.0)
    x_0 = jnp.array([[1, 2, 0]])

    def loss(logits):
        denoise = lambda x_t, t: jnp.broadcast_to(jax.nn.log_softmax(logits), (1, 3, V + 1))
        bound = discrete_bound(key, denoise, x_0, absorbing(V), 4).total().sum()
        return bound + masked_loss(key, denoise, x_0, jnp.array([0.5]), V).sum()

    value, slope = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
