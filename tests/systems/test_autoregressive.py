"""Exact models, held to enumeration over every image of a few bits or levels."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import made, pixelcnn
from jaxgen.data.records import Arrays, DataSet, Image

MADE = replace(made.DIGITS, hidden=10)
CNN = replace(pixelcnn.DIGITS, width=6, layers=2, likelihood="bernoulli")
PLUSPLUS = replace(CNN, model="plusplus", layers=1, dropout=0.5)
TWELVE, COLOURS = (3, 4, 1), (1, 2, 3)
EVEN, EVEN_COLOURS = (2, 6, 1), (2, 2, 3)  # of sides that can be halved
CASES = {
    "fvbn": (made, replace(MADE, model="fvbn", reach=2), TWELVE, 2),
    "nade": (made, replace(MADE, model="nade"), TWELVE, 2),
    "made": (made, MADE, TWELVE, 2),
    "made, orders": (made, replace(MADE, orders=3), TWELVE, 2),
    "made, levels": (made, replace(MADE, likelihood="softmax"), COLOURS, 3),
    "pixelcnn": (pixelcnn, replace(CNN, model="plain"), TWELVE, 2),
    "gated": (pixelcnn, CNN, TWELVE, 2),
    "rnn": (pixelcnn, replace(CNN, model="rnn"), TWELVE, 2),
    "gated, colours": (pixelcnn, replace(CNN, likelihood="softmax"), COLOURS, 3),
    "gated, mixture": (pixelcnn, replace(CNN, likelihood="logistic_mixture"), COLOURS, 3),
    "plusplus": (pixelcnn, PLUSPLUS, EVEN, 2),
    "plusplus, colours": (pixelcnn, replace(PLUSPLUS, likelihood="softmax"), EVEN_COLOURS, 2),
    "plusplus, mixture": (
        pixelcnn,
        replace(PLUSPLUS, likelihood="logistic_mixture"),
        EVEN_COLOURS,
        2,
    ),
}


def of_shape(shape, levels):
    """A set of which only the shape and the levels matter."""
    x = np.zeros((8, *shape), np.uint8)
    source = Arrays({"x": x, "label": np.zeros(8, np.int32)})
    return DataSet("tiny", Image(shape, levels), source, source, source, classes=2)


def every(shape, levels):
    """All images, ``[levels^D, *shape]``, at the scale of the likelihood."""
    found = np.array(list(itertools.product(range(levels), repeat=int(np.prod(shape)))), np.float32)
    return found.reshape(-1, *shape) / (levels - 1)


@pytest.mark.parametrize("name", CASES)
def test_the_probabilities_of_all_images_sum_to_one_and_draws_have_them(key, name):
    """Draws: the frequency of each image of the first few entries is that of its probability."""
    module, config, shape, levels = CASES[name]
    system = module.build(config, of_shape(shape, levels))
    params = system.init(key)["params"]
    leaves, tree = jax.tree.flatten(params)
    noise = [
        0.4 * jax.random.normal(k, a.shape)
        for k, a in zip(jax.random.split(key, len(leaves)), leaves, strict=True)
    ]
    params = jax.tree.unflatten(tree, [a + n for a, n in zip(leaves, noise, strict=True)])
    x = every(shape, levels)
    x = x if system.binary else 2 * x - 1
    labels = jnp.zeros(len(x), jnp.int32)

    @jax.jit
    def both(params):
        log_p = system.log_prob(params, x, labels)
        weights = type("W", (), {"params": params})
        draw = lambda k: system.sample(k, weights, {"label": labels[:50]})
        return log_p, jax.lax.map(draw, jax.random.split(key, 100))

    log_p, drawn = both(params)
    p = np.exp(np.asarray(log_p, np.float64))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-4)
    assert p.max() < 0.9
    drawn = np.asarray(drawn).reshape(-1, int(np.prod(shape)))
    values = x.reshape(len(x), -1) * (2 if system.binary else 1) - (1 if system.binary else 0)
    exact = p @ values  # means and second moments of every entry, and of pairs
    np.testing.assert_allclose(drawn.mean(axis=0), exact, atol=0.09)
    pairs = (values * p[:, None]).T @ values
    np.testing.assert_allclose(drawn.T @ drawn / len(drawn), pairs, atol=0.1)


def test_components_of_a_mixture_begin_apart(key):
    """Equal ones would have equal gradients, and be one component for ever."""
    config = replace(CNN, likelihood="logistic_mixture")
    system = pixelcnn.build(config, of_shape(COLOURS, 3))
    p = system.density(system.init(key)["params"], jnp.zeros(1, jnp.int32))
    found = p.density(p.maps(jax.random.normal(key, p.start.shape)))
    apart = np.asarray(found.location).std(axis=-1)[0].reshape(-1, 3)[1:]  # the first sees nothing
    assert (apart > 0).all()
