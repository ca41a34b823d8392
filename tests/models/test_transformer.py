"""The transformer: what sees what, and the cached result against the uncached one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.transformer import (
    TokenDenoiser,
    Transformer,
    turned,
)

KINDS = {
    "rotary": {},
    "learned": {"rotary": False},
    "grouped": {"key_heads": 2},
    "swiglu": {"swiglu": True, "key_heads": 1},
}


def build(key, randomized, **options):
    net = Transformer(11, 9, width=16, layers=2, heads=4, **options)
    tokens = jax.random.randint(key, (3, 9), 0, 11)
    return net, randomized(key, net, tokens), tokens


@pytest.mark.parametrize("name", KINDS)
def test_logits_see_the_tokens_up_to_their_own_and_a_cache_changes_nothing(key, randomized, name):
    net, variables, tokens = build(key, randomized, **KINDS[name])
    apply = jax.jit(net.apply)
    logits = apply(variables, tokens)
    for j in range(9):
        other = apply(variables, tokens.at[:, j].set((tokens[:, j] + 1) % 11))
        moved = np.abs(other - logits).max(axis=(0, 2)) > 0
        np.testing.assert_array_equal(moved, np.arange(9) >= j, err_msg=str(j))

    extend = jax.jit(lambda *a: net.apply(variables, *a, method="extend"))
    cache, none = net.empty(3), jnp.zeros(3, jnp.int32)
    first, cache = extend(tokens[:, :4], cache, 0, none)
    found = [first]
    for i in range(4, 9):
        step, cache = extend(tokens[:, i : i + 1], cache, i, none)
        found.append(step)
    np.testing.assert_allclose(jnp.concatenate(found, axis=1), logits, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["rotary", "learned"])
def test_prompts_of_different_lengths_in_one_batch_are_as_each_alone(key, randomized, name):
    net, variables, tokens = build(key, randomized, **KINDS[name])
    lengths = np.array([5, 2, 4])
    filled = np.zeros((3, 5), int)
    for b, n in enumerate(lengths):
        filled[b, 5 - n :] = tokens[b, :n]
    cache, first = net.empty(3), jnp.asarray(5 - lengths)
    logits, cache = net.apply(variables, filled, cache, 0, first, method="extend")
    step, _ = net.apply(variables, tokens[:, 8:], cache, 5, first, method="extend")
    for b, n in enumerate(lengths):
        alone = jnp.concatenate([tokens[b : b + 1, :n], tokens[b : b + 1, 8:]], axis=1)
        expected = net.apply(variables, alone)[0]
        np.testing.assert_allclose(logits[b, -1], expected[n - 1], atol=2e-5, rtol=1e-4)
        np.testing.assert_allclose(step[b, 0], expected[n], atol=2e-5, rtol=1e-4)


def test_turned_products_depend_on_the_distance_alone(key):
    q, k = jax.random.normal(key, (2, 1, 1, 1, 8))
    at = lambda x, place: turned(x, jnp.full((1, 1), place))[0, 0, 0]
    expected = at(q, 0) @ at(k, 3)
    for place in (1, 7, 40):
        np.testing.assert_allclose(at(q, place) @ at(k, place + 3), expected, rtol=1e-4)
    assert abs(at(q, 0) @ at(k, 4) - expected) > 1e-3


def test_sizes_that_do_not_go_together_are_refused(key):
    x, t = jnp.zeros((1, 3), int), jnp.ones(1)
    with pytest.raises(ValueError, match="do not divide"):
        Transformer(5, 4, width=10, heads=4).init(key, x)
    with pytest.raises(ValueError, match="no pairs to turn"):
        Transformer(5, 4, width=12, heads=4).init(key, x)
    net = Transformer(5, 4, width=16, heads=4)
    with pytest.raises(ValueError, match="give x_0"):
        TokenDenoiser(net, 4, block=3).init(key, x, t, x)
    with pytest.raises(ValueError, match="no block"):
        TokenDenoiser(net, 4, timed=True, block=3).init(key, x, t, x)


@pytest.mark.parametrize("rotary", [True, False])
def test_a_denoiser_of_tokens_sees_all_of_them_the_time_and_the_class(key, randomized, rotary):
    """And where they are: by either kind of positions it is no function of the set of tokens."""
    net = Transformer(11, 9, width=16, layers=2, heads=4, rotary=rotary)
    net = TokenDenoiser(net, 10, timed=True, classes=3)
    x, t, y = jax.random.randint(key, (3, 9), 0, 11), jnp.array([0.1, 0.5, 0.9]), jnp.arange(3)
    variables = randomized(key, net, x, t, y)
    apply = jax.jit(lambda *a: net.apply(variables, *a))
    logits = apply(x, t, y)
    assert logits.shape == (3, 9, 10)  # none of what is no token of the data
    for j in range(9):
        moved = np.abs(apply(x.at[:, j].set((x[:, j] + 1) % 11), t, y) - logits).max(axis=2)
        assert (moved > 0).all(), j
    assert (np.abs(apply(x, t + 0.1, y) - logits).max(axis=2) > 0).all()
    assert (np.abs(apply(x, t, (y + 1) % 3) - logits).max(axis=2) > 0).all()
    turned_round = apply(x[:, ::-1], t, y)[:, ::-1]
    assert (np.abs(turned_round - logits).max(axis=2) > 1e-5).all()  # rounding: 1e-7


@pytest.mark.parametrize(
    ("rotary", "block", "length"), [(True, 2, 6), (False, 3, 9), (True, 2, 16)]
)
def test_a_block_sees_itself_and_the_clean_ones_before_it(key, randomized, rotary, block, length):
    """All pairs; and a cache of the clean ones changes nothing."""
    net = Transformer(11, length, 16, layers=2, heads=4, rotary=rotary)
    net = TokenDenoiser(net, 10, classes=3, block=block)
    x_t, x_0 = jax.random.randint(key, (2, 3, length), 0, 10)
    t, y = jnp.ones(3), jnp.arange(3)
    variables = randomized(key, net, x_t, t, y, x_0)
    apply = jax.jit(lambda x_t, x_0: net.apply(variables, x_t, t, y, x_0=x_0))
    logits = apply(x_t, x_0)
    of = np.arange(length) // block
    changed = lambda x, j: x.at[:, j].set((x[:, j] + 1) % 11)
    moved = lambda found: np.abs(found - logits).max(axis=(0, 2)) > 0
    for j in range(length):
        np.testing.assert_array_equal(moved(apply(changed(x_t, j), x_0)), of == of[j], str(j))
        np.testing.assert_array_equal(moved(apply(x_t, changed(x_0, j))), of > of[j], str(j))

    other = changed(x_t, 1)  # of several noisy forms each is as alone
    both = net.apply(variables, jnp.concatenate([x_t, other]), jnp.tile(t, 2), y, x_0=x_0)
    alone = jnp.concatenate([logits, apply(other, x_0)])
    np.testing.assert_allclose(both, alone, atol=2e-5, rtol=1e-4)

    extend = jax.jit(lambda *a: net.apply(variables, *a, method="extend"))
    cache = net.transformer.empty(3)
    for place in range(0, length, block):
        own = slice(place, place + block)
        found, _ = extend(x_t[:, own], t, y, cache, place)
        np.testing.assert_allclose(found, logits[:, own], atol=2e-5, rtol=1e-4)
        _, cache = extend(x_0[:, own], t, y, cache, place)

    whole = net.clone(block=length), net.clone(block=None)  # one block is all of them
    one, all_of_them = (n.apply(variables, x_t, t, y, x_0=x_0) for n in whole)
    np.testing.assert_allclose(one, all_of_them, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("name", KINDS)
def test_more_tokens_than_there_are_places_for_are_refused(key, randomized, name):
    net, variables, tokens = build(key, randomized, **KINDS[name])
    with pytest.raises(ValueError, match="10 tokens are more than the 9"):
        net.apply(variables, jnp.pad(tokens, ((0, 0), (0, 1))))
    none = jnp.zeros(3, jnp.int32)
    with pytest.raises(ValueError, match="10 tokens are more than the 9"):
        net.apply(variables, tokens[:, :2], net.empty(3), 8, none, method="extend")


@pytest.mark.parametrize("rotary", [True, False])
def test_a_cache_takes_keys_of_any_precision_where_numbers_are_double(key, randomized, rotary):
    net, variables, tokens = build(key, randomized, rotary=rotary)
    with jax.enable_x64(True):
        if not rotary:  # its table is of double precision there, as a parameter begins
            variables = jax.tree.map(lambda p: p.astype(jnp.float64), variables)
        how = {"at": 0, "first": jnp.zeros(3, jnp.int32), "method": "extend"}
        logits, _ = net.apply(variables, tokens, net.empty(3), **how)
        np.testing.assert_allclose(logits, net.apply(variables, tokens), atol=2e-5, rtol=1e-4)
