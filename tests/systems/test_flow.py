"""Flows as systems: the probabilities of all images and of draws; points whose entropy is known."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import flow
from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.data.sources import load
from jaxgen.losses.dequantization import bin_of
from jaxgen.training.step import Now

LEVELS = 3
EVERY = np.array(list(itertools.product(range(LEVELS), repeat=4)), np.uint8).reshape(-1, 2, 2, 1)


@pytest.mark.parametrize("dequantization", ["uniform", "variational"])
def test_draws_have_the_probabilities_of_all_images(key, dequantization):
    """Of draws within [-1, 1]: the mean of p / q over dequantizations is P(b), for each of 81.

    Under a learned q these ratios have no variance, as it is thin at the ends of a bin: its bound
    is held to be one.
    """
    source = Arrays({"x": EVERY, "label": np.zeros(len(EVERY), np.int32)})
    data = DataSet("tiny", Image((2, 2, 1), LEVELS), source, source, source)
    tiny = {"levels": 1, "layers": 1, "width": 4, "bins": 4}
    config = replace(flow.DIGITS, model="spline", dequantization=dequantization, **tiny)
    system = flow.build(config, data)

    @jax.jit
    def both(key):
        key_init, key_noise, key_z, key = jax.random.split(key, 4)
        leaves, tree = jax.tree.flatten(system.init(key_init)["params"])
        keys = jax.random.split(key_noise, len(leaves))
        noise = [0.2 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
        params = jax.tree.unflatten(tree, [a + n for a, n in zip(leaves, noise, strict=True)])
        x = system.run("inverse", params, jax.random.normal(key_z, (20_000, 2, 2, 1)))
        bound = lambda key: system.bound(params, key, EVERY)
        return x, jax.vmap(bound)(jax.random.split(key, 250))

    x, bounds = both(key)
    inside = np.abs(np.asarray(x)).max(axis=(1, 2, 3)) <= 1
    bins = np.asarray(bin_of(x, LEVELS)).reshape(len(x), -1)[inside] @ [27, 9, 3, 1]
    seen = np.bincount(bins, minlength=len(EVERY)) / len(x)
    assert 0.2 < inside.mean() < 0.99
    bounds, noise = np.asarray(bounds, float), 5 * np.sqrt(seen / len(x))
    assert (bounds.mean(axis=0) <= np.log(seen + noise + 1e-4)).all()
    if dequantization == "uniform":
        p, error = np.exp(bounds).mean(axis=0), np.exp(bounds).std(axis=0) / np.sqrt(len(bounds))
        assert (np.abs(seen - p) < 5 * (error + np.sqrt(p / len(x)))).all()
        np.testing.assert_allclose(p.sum(), inside.mean(), atol=0.02)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "margin"), [("8gaussians", 0.08), ("moons", 0.08)])
def test_points_are_learned_to_their_entropy(key, name, margin):
    """-log p of the model is at most so many nats above that of the density, and not below it."""
    data, steps = load(name), 2000
    system = flow.build(flow.PRESETS[name], data)
    optimizer, x = optax.adam(optax.cosine_decay_schedule(2e-3, steps)), data.train.fetch
    batches = x(np.random.default_rng(0).integers(len(data.train), size=(steps, 256)))["x"]

    @jax.jit
    def trained(batches):
        def step(carry, x):
            params, state = carry
            loss = lambda p: system.loss(p, {"x": x}, key, Now(0, {}))[0].mean()
            updates, state = optimizer.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        params = system.init(key)["params"]
        return jax.lax.scan(step, (params, optimizer.init(params)), batches)[0][0]

    test = data.test.fetch(np.arange(len(data.test)))["x"]
    found = jax.jit(system.log_prob)(trained(batches), jnp.asarray(test)).mean()
    exact = np.asarray(data.log_prob(jnp.asarray(test))).mean()
    assert -0.01 < exact - found < margin
