"""Path lengths of syntheses whose Jacobian is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import gammaln

from jaxgen.losses.path_length import path_length, path_mean, path_penalty

RNG = np.random.default_rng(0)
IMAGE, PIXELS, WIDTH = (3, 2, 1), 6, 8
ROWS = np.linalg.qr(RNG.normal(size=(WIDTH, PIXELS)))[0].T  # [PIXELS, WIDTH], orthonormal
MATRICES = {
    "any": RNG.normal(size=(PIXELS, WIDTH)).astype(np.float32),
    "even": (1.7 * ROWS).astype(np.float32),
}
W = np.zeros((50_000, WIDTH), np.float32)


def linear(name):
    return lambda w: (w @ MATRICES[name].T).reshape(len(w), *IMAGE)


@pytest.fixture(scope="module")
def lengths():
    @jax.jit
    def everything(key):
        return {name: path_length(key, linear(name), W) for name in MATRICES}

    return jax.tree.map(np.asarray, everything(jax.random.key(0)))


@pytest.mark.parametrize("name", MATRICES)
def test_the_mean_square_is_the_frobenius_norm(lengths, name):
    want = (MATRICES[name] ** 2).sum() / PIXELS
    squares = lengths[name] ** 2
    error = squares.std() / np.sqrt(len(W))
    np.testing.assert_allclose(squares.mean(), want, atol=4 * error)
    np.testing.assert_allclose(squares.mean(), want, rtol=0.02)


def test_of_an_orthogonal_jacobian_lengths_are_chi(lengths):
    """||A^T y|| = c ||y||, chi of 6 degrees: its mean is a, its variance the least penalty."""
    c = 1.7 / np.sqrt(PIXELS)
    mean = c * np.sqrt(2) * np.exp(gammaln((PIXELS + 1) / 2) - gammaln(PIXELS / 2))
    variance = c**2 * PIXELS - mean**2
    np.testing.assert_allclose(lengths["even"].mean(), mean, rtol=0.01)
    penalty = path_penalty(jnp.asarray(lengths["even"]), jnp.float32(mean))
    np.testing.assert_allclose(penalty.mean(), variance, rtol=0.03)
    # another Jacobian has lengths that vary more for their mean
    relative = {name: each.std() / each.mean() for name, each in lengths.items()}
    assert relative["any"] > 1.1 * relative["even"]


@pytest.mark.parametrize("shape", [(3, 4), (3, 2, 4)], ids=["one w", "one w a layer"])
def test_it_is_the_jacobian_transposed_times_noise(key, shape):
    w = jnp.asarray(RNG.normal(size=shape), jnp.float32)
    a = jnp.asarray(RNG.normal(size=(12, w[0].size)), jnp.float32)
    one = lambda w: jnp.sin(a @ w.reshape(-1)).reshape(2, 3, 2)

    @jax.jit
    def everything(w):
        found = path_length(key, jax.vmap(one), w)
        return found, jax.random.normal(key, (3, 2, 3, 2)), jax.vmap(jax.jacobian(one))(w)

    found, y, jacobian = everything(w)
    y, jacobian = np.asarray(y).reshape(3, 12) / np.sqrt(2 * 3), jacobian.reshape(3, 12, -1)
    want = np.linalg.norm(np.einsum("byw,by->bw", jacobian, y), axis=-1)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_where_nothing_moves_lengths_are_zero_and_gradients_finite(key):
    w = jnp.ones((2, WIDTH))

    @jax.jit
    @jax.value_and_grad
    def total(scale):
        return path_length(key, lambda w: scale * linear("any")(w), w).sum()

    value, slope = total(0.0)
    assert (value, slope) == (0, 0)
    value, slope = total(2.0)  # the length is 2 times that of A
    np.testing.assert_allclose(slope, value / 2, rtol=1e-5)


def test_the_average_comes_from_zero_to_what_lengths_are():
    mean, lengths = jnp.zeros(()), jnp.array([1.0, 3.0])
    for _ in range(10):
        mean = path_mean(mean, lengths, decay=0.8)
    np.testing.assert_allclose(mean, 2 * (1 - 0.8**10), rtol=1e-5)
    slope = jax.grad(lambda lengths: path_mean(mean, lengths))(lengths)
    np.testing.assert_array_equal(slope, [0, 0])
    with pytest.raises(AssertionError):
        path_penalty(lengths, lengths)
