import jax
import numpy as np
import pytest


@pytest.fixture
def randomized():
    """Parameters drawn at random, none left at zero, so that every path carries signal."""

    def draw(key, model, *inputs):
        shapes = jax.eval_shape(model.init, key, *inputs)
        leaves, tree = jax.tree.flatten(shapes)
        ends = np.cumsum([leaf.size for leaf in leaves])
        values = np.split(0.2 * np.asarray(jax.random.normal(key, (ends[-1],))), ends[:-1])
        return jax.tree.unflatten(
            tree, [v.reshape(leaf.shape) for v, leaf in zip(values, leaves, strict=True)]
        )

    return draw


@pytest.fixture
def kept():
    """How many numbers the forward pass of f keeps for its gradient."""

    def count(f, x):
        backward = jax.eval_shape(lambda x: jax.vjp(f, x)[1], x)
        return sum(leaf.size for leaf in jax.tree.leaves(backward))

    return count
