"""Layers against their sums written out, and against the statistics that they promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.models.equalized import (
    EqualizedConv,
    EqualizedDense,
    minibatch_std,
    on_sphere,
    pixel_norm,
)

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


LAYERS = {  # and the variance of what they answer
    "dense": (EqualizedDense(400), (500, 300), 2.0),
    "linear": (EqualizedDense(400, gain=1.0), (500, 300), 1.0),
    "slow": (EqualizedDense(400, rate=0.01), (500, 300), 2.0),
    "colours": (EqualizedConv(400, 1, gain=1.0), (5, 10, 10, 100), 1.0),
}


@pytest.fixture(scope="module")
def found():
    """What every layer answers of normal numbers, and its kernel."""
    inputs = {name: normal(*shape) for name, (_, shape, _) in LAYERS.items()}

    @jax.jit
    def everything(key):
        return {n: layer.init_with_output(key, inputs[n]) for n, (layer, _, _) in LAYERS.items()}

    return jax.tree.map(np.asarray, everything(jax.random.key(0)))


@pytest.mark.parametrize("name", LAYERS)
def test_weights_are_of_unit_std_and_outputs_of_the_gain(found, name):
    (y, variables), (_, _, variance) = found[name], LAYERS[name]
    kernel = variables["params"]["kernel"]
    rate = 0.01 if name == "slow" else 1.0
    np.testing.assert_allclose(kernel.std() * rate, 1, rtol=5 / np.sqrt(2 * kernel.size))
    np.testing.assert_allclose(y.var(), variance, rtol=0.05)


@pytest.mark.parametrize("rate", [1.0, 0.01])
def test_a_dense_layer_moves_at_its_rate(key, rate):
    """Gradients are those of the matrix that is applied, times what it is scaled by."""
    layer = EqualizedDense(3, gain=1.5, rate=rate, start=0.7)
    x, g = normal(6, 4), normal(6, 3)
    params = {"kernel": normal(4, 3), "bias": np.full(3, 0.7 / rate, np.float32)}
    begun = jax.jit(layer.init)(key, x)["params"]["bias"]
    np.testing.assert_allclose(begun, params["bias"], rtol=1e-6)
    scale = rate * 1.5 / np.sqrt(4)
    y, pull = jax.vjp(lambda params: layer.apply({"params": params}, x), params)
    np.testing.assert_allclose(y, scale * x @ params["kernel"] + 0.7, rtol=1e-4, atol=1e-6)
    (slopes,) = pull(jnp.asarray(g))
    np.testing.assert_allclose(slopes["kernel"], scale * x.T @ g, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(slopes["bias"], rate * g.sum(axis=0), rtol=1e-5)


def test_a_convolution_is_its_sum():
    x, kernel, bias = normal(2, 4, 3, 6), normal(3, 3, 6, 5), normal(5)
    params = {"kernel": kernel, "bias": bias}
    y = EqualizedConv(5, gain=0.8).apply({"params": params}, x)
    kernel = 0.8 / np.sqrt(9 * 6) * kernel
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = bias + sum(
        around[:, i : i + 4, j : j + 3] @ kernel[i, j] for i in range(3) for j in range(3)
    )
    np.testing.assert_allclose(y, want, rtol=1e-4, atol=1e-5)


def test_pixel_norm_keeps_the_direction_and_makes_the_mean_square_one():
    x = 7 * normal(2, 3, 3, 5)
    y = np.asarray(pixel_norm(x))
    np.testing.assert_allclose((y**2).mean(axis=-1), 1, rtol=1e-5)
    ratio = x / y
    np.testing.assert_allclose(ratio, ratio[..., :1] + 0 * x, rtol=1e-4)
    assert (ratio > 0).all()


@pytest.mark.parametrize(("batch", "size", "group"), [(8, 4, 4), (6, 4, 3), (6, 3, 3), (5, 4, 5)])
def test_the_minibatch_std_is_that_of_the_groups(batch, size, group):
    x = normal(batch, 2, 3, 4)
    y = np.asarray(minibatch_std(x, size))
    np.testing.assert_array_equal(y[..., :-1], x)
    for i in range(0, batch, group):
        want = np.std(x[i : i + group], axis=0).mean()
        np.testing.assert_allclose(y[i : i + group, ..., -1], want, rtol=1e-5, atol=1e-7)


def test_examples_that_are_the_same_have_no_std_and_a_finite_gradient():
    x = jnp.broadcast_to(normal(1, 2, 2, 3), (4, 2, 2, 3))
    told = lambda x: minibatch_std(x)[..., -1].sum()
    told, slope = jax.jit(jax.value_and_grad(told))(x)
    assert told == 0
    np.testing.assert_array_equal(slope, np.zeros_like(x))


class Conditioned(nn.Module):
    classes: int | None

    @nn.compact
    def __call__(self, z, labels=None):
        return on_sphere(z, labels, self.classes)


def test_latents_and_labels_are_normalized_apart(key):
    z, labels = normal(4, 6), jnp.array([0, 1, 0, 2])
    y = np.asarray(jax.jit(Conditioned(3).init_with_output)(key, z, labels)[0])
    np.testing.assert_allclose((y**2).reshape(4, 2, 6).mean(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(y[:, :6], pixel_norm(z), rtol=1e-6)
    np.testing.assert_array_equal(y[0, 6:], y[2, 6:])
    assert not np.allclose(y[0, 6:], y[1, 6:], atol=0.1)
    plain, variables = Conditioned(None).init_with_output(key, z)
    np.testing.assert_array_equal(plain, pixel_norm(z))
    assert not variables
    for classes, given in [(None, labels), (3, None)]:
        with pytest.raises(ValueError, match="labels are given"):
            Conditioned(classes).init(key, z, given)
