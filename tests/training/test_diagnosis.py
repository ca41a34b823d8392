import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.diagnosis import gradient_noise, loss_by_time, noise_scale


def test_the_noise_scale_from_exact_squares():
    """E|G_B|^2 = |g|^2 + tr(Sigma) / B."""
    g, trace = 3.0, 48.0
    found = noise_scale(g**2 + trace / 4, g**2 + trace / 32, 4, 32)
    np.testing.assert_allclose((found.signal, found.noise), (9.0, 48.0))
    np.testing.assert_allclose(found.scale, 48 / 9)
    with pytest.raises(ValueError, match="differ in size"):
        noise_scale(1.0, 1.0, 8, 8)


def test_the_noise_scale_of_a_gaussian_mean():
    """loss = |w - x|^2 / 2 with x ~ N(0, s^2 I_d): g = w and tr(Sigma) = d s^2."""
    d, s, w = 20, 1.5, 2.0

    def loss(params, batch, key):
        return 0.5 * ((params["w"][None] - batch) ** 2).sum(axis=1).mean(), {}

    batches = s * jax.random.normal(jax.random.key(0), (200, 32, d))
    found = gradient_noise(loss, {"w": jnp.full(d, w)}, batches, jax.random.key(1), parts=8)
    np.testing.assert_allclose(found.signal, d * w**2, rtol=0.02)
    np.testing.assert_allclose(found.noise, d * s**2, rtol=0.05)


def test_draws_of_the_loss_are_part_of_the_noise():
    """loss = w . eps with one eps a part: all noise, no signal."""

    def loss(params, batch, key):
        return params["w"] @ jax.random.normal(key, (50,)), {}

    batches = [jnp.zeros((16, 1))] * 20
    found = gradient_noise(loss, {"w": jnp.zeros(50)}, batches, jax.random.key(0), parts=8)
    np.testing.assert_allclose(found.noise, 50 * 2, rtol=0.1)  # of a part of 2 examples
    assert abs(found.signal) < 2


def test_losses_are_sorted_by_their_times():
    rng = np.random.default_rng(0)
    times = rng.uniform(size=10_000)
    losses = times**2 + 0.1 * rng.standard_normal(10_000)
    found = loss_by_time(times, losses, bins=20)
    middle = (np.arange(20) + 0.5) / 20
    np.testing.assert_allclose(found.time, middle, atol=0.02)
    np.testing.assert_allclose(found.mean, middle**2, atol=0.03)
    np.testing.assert_allclose(found.std, 0.1, rtol=0.2)
