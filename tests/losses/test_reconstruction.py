"""Errors, penalties and corruption of autoencoders, held to closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.reconstruction import (
    absolute_sum,
    add_noise,
    contraction,
    mask,
    mean_activation_kl,
    squared_distance,
)
from jaxgen.models.vae import ConvEncoder, MLPEncoder
from jaxgen.systems.autoencoder import code

RNG = np.random.default_rng(0)
W, B = RNG.standard_normal((12, 3)), RNG.standard_normal(3)  # float64
X = RNG.standard_normal((5, 2, 6))


def linear(x):
    return x.reshape(len(x), -1) @ jnp.float32(W) + jnp.float32(B)[None]


def sigmoid(x):
    return jax.nn.sigmoid(linear(x))


def test_the_error_is_the_sum_over_entries():
    x = jnp.float32(X)
    np.testing.assert_allclose(squared_distance(x, x + 2), np.full(5, 4 * 12), rtol=1e-6)
    with pytest.raises(AssertionError):
        squared_distance(x, x[:1])


# --- the contractive penalty ----------------------------------------------------------------------


def test_the_contraction_of_a_linear_encoder_is_the_norm_of_its_matrix():
    np.testing.assert_allclose(contraction(linear, jnp.float32(X)), np.full(5, np.sum(W**2)), 1e-5)


def test_the_contraction_of_a_sigmoid_encoder_is_that_of_the_paper():
    """Rifai et al. 2011, section 5: sum_j (h_j (1 - h_j))^2 |W_j|^2."""
    h = 1 / (1 + np.exp(-(X.reshape(5, -1) @ W + B)))
    want = ((h * (1 - h)) ** 2 @ (W**2).sum(axis=0)[:, None])[:, 0]
    np.testing.assert_allclose(contraction(sigmoid, jnp.float32(X)), want, rtol=1e-4)


@pytest.mark.parametrize("kind", [MLPEncoder, ConvEncoder])
def test_the_contraction_of_networks_is_that_of_forward_derivatives(key, kind):
    """One example at a time."""
    x = jax.random.normal(key, (3, 5, 4, 2))
    encoder = kind(4, hidden=8, head=code)
    variables = encoder.init(key, x)
    encode = lambda x: encoder.apply(variables, x)
    one = jax.vmap(jax.jacfwd(lambda x: encode(x[None])[0]))
    found, jacobian = jax.jit(lambda x: (contraction(encode, x), one(x)))(x)
    np.testing.assert_allclose(found, (jacobian**2).sum(axis=(1, 2, 3, 4)), rtol=1e-4)


def test_small_noise_moves_codes_by_the_contraction(key):
    """E |f(x + std eps) - f(x)|^2 = std^2 |J|^2 + O(std^4), exact for a linear encoder."""
    x, std = jnp.float32(X), 0.01
    for encode in (linear, sigmoid):
        apart = lambda k, f=encode: ((f(add_noise(k, x, std)) - f(x)) ** 2).sum(axis=1)
        moved = np.asarray(jax.jit(jax.vmap(apart))(jax.random.split(key, 20_000)))
        error = 5 * moved.std(axis=0) / np.sqrt(len(moved))
        difference = np.abs(moved.mean(axis=0) - std**2 * contraction(encode, x))
        assert (difference < error + 1e-3 * std**2).all()


# --- penalties on activations ---------------------------------------------------------------------


@pytest.mark.parametrize("rho", [0.0, 0.05, 0.5, 1.0])
def test_the_kl_of_mean_activations_is_that_of_float64(rho):
    logits = 3 * RNG.standard_normal((7, 4))
    mean = (1 / (1 + np.exp(-logits))).mean(axis=0)
    kl = np.zeros(4)
    for p, a in ((rho, mean), (1 - rho, 1 - mean)):
        kl += p * np.log(p / a) if p else 0
    found = mean_activation_kl(jnp.float32(logits), rho)
    np.testing.assert_allclose(found, np.full(7, kl.sum()), rtol=1e-4, atol=1e-6)


def test_the_kl_is_zero_at_the_sparsity_that_is_asked_for():
    at = jnp.full((6, 3), np.log(0.05 / 0.95), jnp.float32)
    value, slope = jax.value_and_grad(lambda x: mean_activation_kl(x, 0.05).mean())(at)
    np.testing.assert_allclose([value, jnp.abs(slope).max()], 0, atol=1e-6)


def test_the_l1_norm():
    z = jnp.array([[1.0, -2.0], [0.0, 0.5]])
    value, slope = jax.value_and_grad(lambda z: absolute_sum(z).sum())(z)
    np.testing.assert_array_equal(absolute_sum(z), [3, 0.5])
    np.testing.assert_array_equal(slope, jnp.sign(z))
    assert value == 3.5


@pytest.mark.parametrize("size", [0.0, 100.0, 1e4, 1e30])
def test_values_and_slopes_are_finite_at_extreme_inputs(size):
    """Units that are always on, always off, or both by turns."""
    logits = size * jnp.array([[1.0, -1.0, 1.0], [1.0, -1.0, -1.0]])
    kl = lambda x: mean_activation_kl(x, 0.05).sum()
    saturated = lambda x: contraction(lambda x: jax.nn.sigmoid(x), x).sum()
    for f in (kl, lambda x: absolute_sum(x).sum(), saturated):
        value, slope = jax.value_and_grad(f)(logits)
        assert np.isfinite(value)
        assert np.isfinite(slope).all()
    if size == 1e4:  # a unit that is off costs rho |logit|, one that is on 1 - rho
        (column,) = {float(jnp.round(v)) for v in mean_activation_kl(logits[:, :1], 0.05)}
        assert column == 9500
        slopes = jax.grad(kl)(logits)[:, :2].sum(axis=0) / 2  # of one example's value
        np.testing.assert_allclose(slopes, [0.95, -0.05], rtol=1e-5)


# --- corruption -----------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_mask_hides_each_entry_with_its_probability(key, share):
    x = 2 + jax.random.uniform(key, (20_000, 3, 2))
    seen = np.asarray(mask(key, x, share, -1.0))
    hidden = seen == -1
    np.testing.assert_array_equal(seen[~hidden], np.asarray(x)[~hidden])
    error = 5 * np.sqrt(share * (1 - share) / len(x))
    np.testing.assert_allclose(hidden.mean(axis=0), share, atol=error)
    flat = hidden.reshape(len(x), -1) - share
    covariance = flat.T @ flat / len(x)  # each by itself
    np.testing.assert_allclose(covariance, share * (1 - share) * np.eye(6), atol=error + 1e-6)


def test_noise_is_normal_around_the_input(key):
    x = jax.random.uniform(key, (50_000, 2))
    moved = np.asarray(add_noise(key, x, 0.5) - x, np.float64)
    np.testing.assert_allclose(moved.mean(axis=0), 0, atol=5 * 0.5 / np.sqrt(len(x)))
    np.testing.assert_allclose(np.cov(moved.T), 0.25 * np.eye(2), atol=0.01)
    np.testing.assert_allclose((moved**4).mean() / (moved**2).mean() ** 2, 3, atol=0.15)
    np.testing.assert_array_equal(add_noise(key, x, 0.0), x)
