"""Diffusion over tokens as it is run: its bound, draws and infilling of a tiny set of images."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.d3pm import DIGITS, TEXT, Drawing, build
from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.data.text import text_set
from jaxgen.diffusion.discrete import sample
from jaxgen.training.step import Now

LEVELS, SHAPE = 3, (1, 3, 1)
X = np.random.default_rng(0).integers(0, LEVELS, (8, *SHAPE)).astype(np.uint8)
SOURCE = Arrays({"x": X, "label": np.arange(8, dtype=np.int32) % 2})
DATA = DataSet("tiny", Image(SHAPE, LEVELS), SOURCE, SOURCE, SOURCE, classes=2)
SMALL = replace(DIGITS, width=16, layers=1, conditional=True, drawing=Drawing(bound_draws=256))
NOISES = ("masked", "uniform")


def system_of(key, **options):
    system = build(replace(SMALL, **options), DATA)
    params = jax.tree.map(lambda a: 4 * a, system.init(key)["params"])  # far from even
    return system, params


@pytest.mark.parametrize("noise", NOISES)
def test_the_bound_is_one_of_what_is_drawn(key, noise):
    """exp(-bound) sums to no more than 1 over all images, and draws are no less likely than it.

    The bound holds for the chain with as many steps as it has, up to what its estimate is off.
    """
    drawing = Drawing(sample_steps=16, bound_draws=256)
    system, params = system_of(key, noise=noise, diffusion_steps=16, drawing=drawing)
    states = np.stack(np.meshgrid(*[np.arange(LEVELS)] * 3, indexing="ij"), -1).reshape(-1, *SHAPE)
    weights = SimpleNamespace(params=params)

    @jax.jit
    def both(key):
        every = {"x": jnp.asarray(states), "label": jnp.zeros(len(states), jnp.int32)}
        nats = jax.lax.map(lambda k: system.nats(params, k, every), jax.random.split(key, 8))
        x = system.sample(key, weights, {"label": jnp.zeros(4000, jnp.int32)})
        return nats.mean(axis=0), x

    nats, x = both(key)
    assert np.exp(-nats).sum() < 1.01
    tokens = np.round((np.asarray(x).reshape(-1, 3) + 1) / 2 * (LEVELS - 1)).astype(int)
    shares = np.bincount(tokens @ LEVELS ** np.arange(3)[::-1], minlength=27) / len(x)
    assert shares.max() > 0.06  # 1/27 where all are alike
    slack = 0.01 + 4 * np.sqrt(shares / len(x))
    assert (shares > np.exp(-nats) - slack).all()


@pytest.mark.parametrize("block", [1, 2])
def test_of_blocks_the_bound_is_one_of_what_is_drawn(key, block):
    """And with blocks of one token it is no bound, but the probability itself."""
    shape = (1, 4, 1)
    states = np.stack(np.meshgrid(*[np.arange(2)] * 4, indexing="ij"), -1).reshape(-1, *shape)
    source = Arrays({"x": states.astype(np.uint8), "label": np.zeros(16, np.int32)})
    data = DataSet("bits", Image(shape, 2), source, source, source, classes=2)
    drawing = Drawing(sample_steps=16, bound_draws=32)
    system = build(replace(SMALL, block=block, drawing=drawing), data)
    params = jax.tree.map(lambda a: 4 * a, system.init(key)["params"])
    batch = source.fetch(np.arange(16))

    @jax.jit
    def both(key):
        nats = system.nats(params, key, batch)
        given = {"label": jnp.zeros(4000, jnp.int32)}
        weights = SimpleNamespace(params=params)
        known = jnp.array([[False, True, False, False]]), jnp.ones((4000, 4), jnp.int32)
        return nats, system.sample(key, weights, given), system.drawn(key, weights, given, known)

    nats, x, known = both(key)
    p, tokens = np.exp(-nats), np.asarray(x).reshape(-1, 4) > 0
    shares = np.bincount(tokens @ [8, 4, 2, 1], minlength=16) / len(x)
    slack = 0.01 + 4 * np.sqrt(shares / len(x))
    assert p.sum() < 1.01
    assert shares.max() > 0.1  # 1/16 where all are alike
    assert (shares > p - slack).all()
    assert (known[:, 1] == 1).all()
    if block == 1:
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
        assert (shares < p + slack).all()
    trained = replace(system, copies=3)  # of any number of noisy forms the loss is the bound
    loss = lambda k: trained.loss(params, batch, k, Now(0, {}, train=True))[0] * 4
    losses = np.asarray(jax.jit(lambda k: jax.lax.map(loss, jax.random.split(k, 500)))(key))
    exact = jax.jit(replace(system, draws=1000).nats)(params, key, batch)
    spread = 5 * losses.std(axis=0) * np.sqrt(1 / 500 + 3 / 1000) + 0.01
    assert (np.abs(losses.mean(axis=0) - exact) < spread).all()


@pytest.mark.parametrize("noise", NOISES)
def test_known_pixels_are_kept_and_draws_are_tokens(key, noise):
    system, params = system_of(key, noise=noise)
    known = jnp.array([[True, False, True]])
    weights, given = SimpleNamespace(params=params), {"label": jnp.arange(8) % 2}
    x_0 = system.tokens(key, X)
    run = jax.jit(lambda k: system.reverse(sample, k, weights, given, (known, x_0)))
    found = np.asarray(run(key))
    np.testing.assert_array_equal(found[:, [0, 2]], np.asarray(x_0)[:, [0, 2]])
    assert found.min() >= 0
    assert found.max() < LEVELS
    np.testing.assert_array_equal(system.shown(x_0), 2 * X / (LEVELS - 1) - 1)


@pytest.mark.parametrize(("noise", "block"), [("masked", None), ("uniform", None), ("masked", 1)])
def test_loss_and_gradients_are_finite_at_large_logits(key, noise, block):
    system, params = system_of(key, noise=noise, block=block, dropout=0.1)
    batch = SOURCE.fetch(np.arange(8))

    @jax.jit
    def loss(params):
        return system.loss(params, batch, key, Now(0, {}, train=True))[0].mean()

    for size in (1.0, 30.0):  # of logits up to hundreds
        grown = jax.tree.map(lambda a, n=size: n * a, params)
        value, slope = jax.value_and_grad(loss)(grown)
        assert np.isfinite(value)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))


def test_options_that_do_not_go_together_are_refused():
    text = text_set("letters", {"train": bytes(range(97, 123)) * 20}, 12)
    sure = Drawing(sampler="confident")
    for config, data, fix in (
        (replace(SMALL, noise="uniform", drawing=sure), DATA, "--noise masked"),
        (replace(SMALL, auxiliary=0.1), DATA, "--noise uniform"),
        (replace(SMALL, noise="uniform", block=1), DATA, "--noise masked"),
        (replace(SMALL, block=2), DATA, "no divisor of the 3 tokens"),
        (replace(SMALL, copies=2), DATA, "leave it out, or use --block"),
        (replace(SMALL, block=1, drawing=Drawing(sample_steps=2)), DATA, "3 blocks need as many"),
        (replace(TEXT, pixels="bits"), text, "--pixels levels"),
        (replace(TEXT, conditional=True), text, "leave out --conditional"),
    ):
        with pytest.raises(ValueError, match=fix):
            build(config, data)
