"""Noise over tokens and its bounds, by enumeration of a joint distribution of a few tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import TokenTable

from jaxgen.diffusion.discrete import (
    absorbing,
    cosine,
    denoised,
    linear,
    one_hot_log,
    posterior,
    replaced,
    uniform,
)
from jaxgen.losses.discrete import counted_loss, discrete_bound, discrete_loss, masked_loss

V, L = 3, 3
TABLE = TokenTable.random(V, L)
STATES, P = TABLE.states, TABLE.p
NOISES = {"uniform": uniform(V), "absorbing": absorbing(V)}


def transition(alpha, pi):
    """q(x_t|x_0) as a matrix."""
    return alpha * np.eye(len(pi)) + (1 - alpha) * np.asarray(pi)[None]


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


def counted(key, denoise, x_0, t, mask, alpha):
    return counted_loss(key, denoise, x_0, t, mask)


@pytest.mark.parametrize(
    ("loss", "alpha"), [(masked_loss, linear), (masked_loss, cosine), (counted, linear)]
)
def test_with_exact_conditionals_the_masked_bound_is_log_p(key, loss, alpha):
    x_0, pi = jnp.asarray(STATES), absorbing(V)
    denoise = TABLE.denoiser(alpha, pi)

    @jax.jit
    def one(key):
        key_t, key = jax.random.split(key)
        offset = jax.random.uniform(key_t, (len(x_0),))
        return loss(key, denoise, x_0, 1 - offset, V, alpha)

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
            lambda k, n=steps: discrete_bound(k, TABLE.denoiser(linear, pi), x_0, pi, n).total()
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
    denoise = TABLE.denoiser(linear, pi)
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
        even_denoise = lambda x_t, t: denoise(x_t, t)[..., :V]
        bound = discrete_bound(key, denoise, x_0, absorbing(V), 4).total().sum()
        even = discrete_loss(key, even_denoise, x_0, jnp.ones(1), uniform(V), 4, auxiliary=0.1)
        masked = masked_loss(key, denoise, x_0, jnp.array([0.5]), V)
        return bound + (even + masked + counted_loss(key, denoise, x_0, jnp.ones(1), V)).sum()

    value, slope = jax.value_and_grad(loss)(logits)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("size", [5.0, 100.0, 300.0])
def test_what_is_surely_wrong_costs_its_nats_and_can_be_unlearned(key, size):
    """The last step of uniform noise, KL = -log p(x_0|x_1): no floor hides how wrong a token is."""
    x_0, pi = jnp.zeros((1, 1), jnp.int32), uniform(V)

    def loss(size):
        log_p = jax.nn.log_softmax(jnp.array([-size, 0.0, 0.0]))
        denoise = lambda x_t, t: jnp.broadcast_to(log_p, (1, 1, V))
        return discrete_loss(key, denoise, x_0, jnp.array([0.1]), pi, 10).sum()

    value, slope = jax.value_and_grad(loss)(jnp.float32(size))
    np.testing.assert_allclose(value, 10 * np.log(np.exp(-size) + 2) + 10 * size, rtol=1e-4)
    np.testing.assert_allclose(slope, 10 * 2 / (2 + np.exp(-size)), rtol=1e-4)


def test_nothing_is_hidden_where_noise_is_none_to_rounding(key):
    squared = lambda t: jnp.cos(jnp.pi * t / 2) ** 2
    t = jnp.array([1e-5, 1e-4, 1.5e-4, 1.0])
    x_0, denoise = jnp.zeros((4, L), jnp.int32), lambda x_t, t: jnp.log(jnp.full((4, L, V), 1 / V))
    assert np.isfinite(masked_loss(key, denoise, x_0, t, V, squared)).all()
    logits, hidden = jnp.zeros((1, L, V)), jnp.full((1, L), V)
    sure = denoised(logits, hidden, jnp.ones(1), absorbing(V))[0, 0]
    np.testing.assert_allclose(np.exp(sure), [1 / V] * V + [0], atol=1e-6)


def test_times_of_other_batches_and_blocks_are_refused(key):
    x_0, denoise = jnp.zeros((2, 4), jnp.int32), lambda x_t, t: jnp.zeros((2, 4, V))
    for shape in ((4,), (4, 2), (2, 3), (2, 1, 1)):
        with pytest.raises(AssertionError):
            counted_loss(key, denoise, x_0, jnp.ones(shape), V)


def unlike(x_t, t):
    """A denoiser that is far from exact, and hangs on all of x_t."""
    logits = jnp.sin(
        3.0 * jnp.arange(V).reshape(1, 1, V) + (x_t + x_t.sum(axis=1, keepdims=True))[..., None]
    )
    return jnp.pad(jax.nn.log_softmax(2 * logits), ((0, 0), (0, 0), (0, 1)), constant_values=-1e9)


def test_the_count_of_masks_gives_the_mean_over_all_orders(key):
    """sum over orders and places of -log p of the next token, by enumeration, for any denoiser."""
    x_0 = STATES[[5, 12, 22]]
    exact = np.zeros(len(x_0))
    orders = list(itertools.permutations(range(L)))
    for order, i in itertools.product(orders, range(L)):
        hidden = np.isin(np.arange(L), order[i:])
        x_t = jnp.asarray(np.where(hidden[None], V, x_0))
        log_p = np.asarray(unlike(x_t, jnp.ones(len(x_0))))
        exact -= log_p[np.arange(len(x_0)), order[i], x_0[:, order[i]]] / len(orders)

    @jax.jit
    def means(key):
        t = 1 - jax.random.uniform(key, (20_000 * len(x_0),))
        x = jnp.tile(jnp.asarray(x_0), (20_000, 1))
        losses = counted_loss(key, unlike, x, t, V), masked_loss(key, unlike, x, t, V)
        return [(v.reshape(-1, len(x_0)).mean(axis=0), v.std()) for v in losses]

    (of_counts, small), (of_times, large) = means(key)
    np.testing.assert_allclose(of_counts, exact, rtol=0.01)
    np.testing.assert_allclose(of_times, exact, rtol=0.03)
    assert small < large / 1.5


def test_blocks_with_exact_conditionals_have_the_bound_log_p(key):
    """Two blocks of two tokens, the second told of the first: each with a time of its own."""
    table, pi = TokenTable.random(V, 4), absorbing(V)
    exact, x_0 = table.denoiser(linear, pi), jnp.asarray(table.states)
    nothing = jnp.full((len(x_0), 2), V)

    def denoise(x_t, t):
        assert t.shape == (len(x_0), 2)
        at = jnp.full(len(x_0), 0.5)  # the same at every time
        first = exact(jnp.concatenate([x_t[:, :2], nothing], axis=1), at)[:, :2]
        second = exact(jnp.concatenate([x_0[:, :2], x_t[:, 2:]], axis=1), at)[:, 2:]
        return jnp.concatenate([first, second], axis=1)

    @jax.jit
    def one(key):
        key_t, key = jax.random.split(key)
        t = 1 - jax.random.uniform(key_t, (len(x_0), 2))
        return counted_loss(key, denoise, x_0, t, V)

    found = jnp.mean(jax.lax.map(one, jax.random.split(key, 10_000)), axis=0)
    seen = table.p > 1e-3
    np.testing.assert_allclose(found[seen], -np.log(table.p)[seen], rtol=0.06, atol=0.05)


@pytest.mark.parametrize("name", NOISES)
def test_a_step_at_random_has_the_mean_of_the_whole_bound(key, name):
    """And the auxiliary term is its own: lambda times -log p(x_0|x_t)."""
    pi, x_0, steps = NOISES[name], jnp.asarray(STATES), 5
    denoise = lambda x_t, t: unlike(x_t, t)[..., : len(pi)]

    @jax.jit
    def both(key):
        key_t, key_one, key = jax.random.split(key, 3)
        t = 1 - jax.random.uniform(key_t, (len(x_0),))
        one = discrete_loss(key_one, denoise, x_0, t, pi, steps)
        more = discrete_loss(key_one, denoise, x_0, t, pi, steps, auxiliary=0.5) - one
        x_t = replaced(key_one, x_0, 1 - jnp.ceil(t * steps) / steps, pi)
        log_p = jnp.take_along_axis(denoise(x_t, t), x_0[..., None], axis=-1)
        whole = discrete_bound(key, denoise, x_0, pi, steps).total()
        return one, whole, jnp.abs(more + 0.5 * log_p.sum(axis=(1, 2)))

    one, whole, off = jax.lax.map(both, jax.random.split(key, 3000))
    assert off.max() < 1e-3
    spread = np.asarray(one.std(axis=0)) / 3000**0.5
    assert (np.abs(one.mean(axis=0) - whole.mean(axis=0)) < 5 * spread + 0.01).all()
