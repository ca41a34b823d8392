"""Samplers of tokens, with the exact denoiser of a joint distribution of a few tokens."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import TokenTable

from jaxgen.decoding import warmed
from jaxgen.diffusion.discrete import (
    absorbing,
    ancestral,
    confident,
    cosine,
    denoised,
    knowing,
    linear,
    replaced,
    sample,
    sample_blocks,
    sample_path,
    uniform,
)

V, L, N = 3, 3, 5000
TABLE = TokenTable.random(V, L)
NOISES = {"uniform": uniform(V), "absorbing": absorbing(V)}
AT_RANDOM = 1e6  # of the choice of places


def shares(x):
    """How often each state was drawn, ``[V^L]``; of tokens that are none it fails."""
    x = np.asarray(x)
    assert x.min() >= 0
    assert x.max() < V
    return np.bincount(x @ V ** np.arange(L)[::-1], minlength=V**L) / len(x)


def apart(found, p):
    """The mean of chi-square over its degrees of freedom: 1, for draws of p."""
    return float((N * (found - p) ** 2 / p).sum() / (len(p) - 1))


def drawn(key, step, steps, pi, denoise, known=None, x_0=None, alpha=linear):
    x_T = jax.random.categorical(key, jnp.log(pi), shape=(N, L))
    x_T = x_T if known is None else jnp.where(known, x_0, x_T)
    times = np.linspace(1, 0, steps + 1)
    return jax.jit(lambda k: sample(k, denoise, x_T, times, step))(jax.random.fold_in(key, 1))


@pytest.mark.parametrize("name", NOISES)
def test_ancestral_draws_near_the_data_with_many_steps(key, name):
    pi = NOISES[name]
    denoise = TABLE.denoiser(linear, pi)
    coarse, fine = (
        apart(shares(drawn(key, ancestral(pi), n, pi, denoise)), TABLE.p) for n in (2, 100)
    )
    assert coarse > 5
    assert fine < 2


@pytest.mark.parametrize("alpha", [linear, cosine])
def test_one_token_at_a_time_in_random_order_draws_the_data(key, alpha):
    """By masks, whatever the schedule: here it says only when there is nothing to do."""
    pi, steps = absorbing(V), {linear: L, cosine: 12}[alpha]
    step = confident(V, alpha, AT_RANDOM)
    x = drawn(key, step, steps, pi, TABLE.denoiser(alpha, pi), alpha=alpha)
    assert apart(shares(x), TABLE.p) < 2


def test_what_is_known_is_kept_and_the_rest_has_the_conditional_distribution(key):
    """Of masks exactly: with one token at a time, and with ancestral steps in the limit."""
    pi, x_0 = absorbing(V), jnp.array([[0, 2, 1]])
    denoise = TABLE.denoiser(lambda t: jnp.full_like(t, 0.5), pi)  # the same at every time
    for known in ([[False, True, False]], [[True, False, True]]):
        known = jnp.array(known)
        p = TABLE.p * (TABLE.states == x_0)[:, known[0]].all(axis=1)
        p = p / p.sum()
        for step, steps in ((confident(V, choice=AT_RANDOM), L), (ancestral(pi), 100)):
            x = drawn(key, step, steps, pi, denoise, known, x_0)
            np.testing.assert_array_equal(jnp.where(known, x, x_0), jnp.tile(x_0, (N, 1)))
            assert apart(shares(x)[p > 0], p[p > 0]) < 2.5


@pytest.mark.parametrize("block", [1, 2, 4])
def test_blocks_one_after_the_other_draw_the_data(key, block):
    """Given those before them, by one token at a time; what is known of a block is kept."""
    table, pi = TokenTable.random(2, 4), absorbing(2)
    exact = table.denoiser(linear, pi)

    def extend(x_t, t, cache, place):
        """The cache is all tokens so far, and masks."""
        seen = jax.lax.dynamic_update_slice_in_dim(cache, x_t, place, axis=1)
        log_p = exact(seen, jnp.full(len(x_t), 0.5))
        return jax.lax.dynamic_slice_in_dim(log_p, place, block, axis=1), seen

    times, step = np.linspace(1, 0, block + 1), confident(2, choice=AT_RANDOM)
    cache = jnp.full((N, 4), 2)
    run = jax.jit(lambda k, x_T: sample_blocks(k, extend, cache, x_T, block, times, step))
    counts = lambda x: np.bincount(np.asarray(x) @ [8, 4, 2, 1], minlength=16) / N
    assert apart(counts(run(key, cache)), table.p) < 2
    known = np.asarray(run(key, cache.at[:, 0].set(1)))
    p = np.where(table.states[:, 0] == 1, table.p, 0.0)
    p = p / p.sum()
    assert apart(counts(known)[p > 0], p[p > 0]) < 2.5
    assert (known[:, 0] == 1).all()


def test_known_tokens_go_back_as_noise_has_them(key):
    """Uniform noise: at every time the known tokens are those of q(x_t|x_0), and pairs of times
    those of q(x_s, x_t|x_0); at the end they are x_0."""
    pi, n = uniform(V), 4
    known, x_0 = jnp.array([[True, False, True]]), jnp.tile(jnp.array([[0, 0, 2]]), (N, 1))
    denoise = knowing(TABLE.denoiser(linear, pi), known, x_0)
    x_T = jax.random.categorical(key, jnp.log(pi), shape=(N, L))
    times = np.linspace(1, 0, n + 1)
    run = jax.jit(lambda k: sample_path(k, denoise, x_T, times, ancestral(pi))[1])
    path = np.asarray(run(jax.random.fold_in(key, 1)))
    np.testing.assert_array_equal(path[-1][:, [0, 2]], [[0, 2]] * N)
    both = np.zeros((V, V))
    np.add.at(both, (path[1][:, 2], path[2][:, 2]), 1 / N)  # at t = 1/2 and s = 1/4
    to = 0.75 * np.eye(V)[2] + 0.25 / V
    between = (0.5 / 0.75) * np.eye(V) + (1 - 0.5 / 0.75) / V
    np.testing.assert_allclose(both.T, to[:, None] * between, atol=0.03)


@pytest.mark.parametrize("alpha", [linear, cosine])
@pytest.mark.parametrize(("length", "steps"), [(8, 64), (4, 16), (64, 100), (12, 5)])
def test_by_sureness_as_many_are_left_as_alpha_says(key, alpha, length, steps):
    """On the mean, and nearly for each: also where a step has less than a token to reveal."""
    x_T, times = jnp.full((400, length), 2), np.linspace(1, 0, steps + 1)
    even = jnp.log(jnp.array([0.5, 0.5, 0.0]))
    denoise = lambda x_t, t: jnp.broadcast_to(even, (*x_t.shape, 3))
    run = jax.jit(lambda k: sample_path(k, denoise, x_T, times, confident(2, alpha))[1])
    left = (np.asarray(run(key)) == 2).sum(axis=2)  # [steps, 400]
    share = 1 - np.asarray(alpha(jnp.asarray(times[1:])))
    spread = 5 * np.sqrt(length / 4 / 400)
    np.testing.assert_allclose(left.mean(axis=1), length * share, atol=spread)
    np.testing.assert_array_equal(left[-1], 0)


def test_the_surest_are_revealed_first_and_each_once(key):
    """No choice is left to chance: tokens come in the order of their log p, so many in each step
    as alpha says, and none changes again; known ones are not counted. At a temperature of 0 too,
    where every token that is drawn is sure of what is kept."""
    length, mask = 8, 4
    log_p = np.log(np.random.default_rng(0).dirichlet(np.ones(4), length))
    log_p = jnp.asarray(np.pad(log_p, ((0, 0), (0, 1)), constant_values=-np.inf), jnp.float32)
    denoise = lambda x_t, t: jnp.tile(log_p[None], (len(x_t), 1, 1))
    coldest = lambda log_p: warmed(log_p, 0.0)
    step = confident(mask, choice=0.0, kept=coldest)
    x_T = jnp.array([[mask] * 8, [3, 3, mask, mask, mask, mask, 3, 3]])
    run = lambda steps: sample_path(key, denoise, x_T, np.linspace(1, 0, steps + 1), step)[1]
    path = np.concatenate([x_T[None], run(4)])
    np.testing.assert_array_equal(
        (path == mask).sum(axis=2), [[8, 4], [6, 3], [4, 2], [2, 1], [0, 0]]
    )
    sure = np.asarray(log_p.max(axis=1))
    for before, after in itertools.pairwise(path):
        for a, b in zip(before, after, strict=True):
            np.testing.assert_array_equal(b[a != mask], a[a != mask])
            new, still = (a == mask) & (b != mask), b == mask
            if new.any() and still.any():
                assert sure[new].min() >= sure[still].max()
    np.testing.assert_array_equal(path[-1][1, [0, 1, 6, 7]], 3)
    np.testing.assert_array_equal(path[-1][0], np.argmax(log_p, axis=1))
    left = (np.asarray(run(10)) == mask).sum(axis=2)  # more steps than there are tokens
    assert (-np.diff(left, axis=0, prepend=[[8, 4]]) <= 1).all()
    assert (left[-1] == 0).all()


@pytest.mark.parametrize("name", NOISES)
def test_logits_of_the_other_tokens_give_the_posterior(key, name):
    """Of independent tokens the network need say the prior alone, whatever x_t and the time."""
    pi = NOISES[name]
    p = np.random.default_rng(1).dirichlet(np.ones(V), L)
    states = TABLE.states
    table = TokenTable(states, np.prod(p[np.arange(L), states], axis=1))
    x_t = replaced(key, jnp.asarray(states), jnp.linspace(0.1, 0.9, len(states)), pi)
    alpha = jnp.linspace(0.1, 0.9, len(states))
    expected = jnp.exp(table.denoiser(lambda t: t, pi)(x_t, alpha))
    logits = jnp.tile(jnp.log(jnp.asarray(p, jnp.float32))[None] + 7.0, (len(states), 1, 1))
    found = jnp.exp(denoised(logits, x_t, alpha, pi))
    seen = np.asarray(x_t < V)[..., None]  # of a mask, p(x_0) itself
    np.testing.assert_allclose(found, expected, atol=1e-5)
    if name == "absorbing":
        hidden = jnp.where(seen, expected, jnp.asarray(np.pad(p, ((0, 0), (0, 1))))[None])
        np.testing.assert_allclose(found, hidden, atol=1e-5)
        assert (found[..., V] == 0).all()
