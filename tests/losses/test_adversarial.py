import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.adversarial import (
    discriminator_loss,
    minimax_generator_loss,
    non_saturating_generator_loss,
)

LOGITS = np.array([-100.0, -20.0, -1.5, 0.0, 0.7, 20.0, 100.0])


def log_d(a):
    """log D in float64 without cancellation: a - log(1 + e^a) for a < 0, and its mirror."""
    return np.minimum(a, 0) - np.log1p(np.exp(-np.abs(a)))


def test_values_are_the_definitions():
    a = jnp.asarray(LOGITS, jnp.float32)
    np.testing.assert_allclose(
        non_saturating_generator_loss(a), -log_d(LOGITS), rtol=1e-6, atol=1e-37
    )
    np.testing.assert_allclose(minimax_generator_loss(a), log_d(-LOGITS), rtol=1e-6, atol=1e-37)
    want = -(log_d(LOGITS) + log_d(-LOGITS[::-1]))
    np.testing.assert_allclose(discriminator_loss(a, a[::-1]), want, rtol=1e-6, atol=1e-37)


def test_gradients_are_exact_at_logits_of_100():
    """d/da log(1 - D) = -D and d/da (-log D) = D - 1: the first fades, the second does not."""
    a = jnp.asarray(LOGITS, jnp.float32)
    d = 1 / (1 + np.exp(-LOGITS))
    minimax = jax.grad(lambda a: minimax_generator_loss(a).sum())(a)
    saturating = jax.grad(lambda a: non_saturating_generator_loss(a).sum())(a)
    np.testing.assert_allclose(minimax, -d, rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(saturating, -1 / (1 + np.exp(LOGITS)), rtol=1e-5, atol=1e-37)


def test_the_optimal_discriminator_attains_the_jensen_shannon_divergence():
    """Goodfellow et al. 2014, theorem 1: at D = p / (p + q) the value is -log 4 + 2 JSD(p, q)."""
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.5, 0.3, 0.2])
    logits = jnp.asarray(np.log(p / q), jnp.float32)
    zero = jnp.full((3,), -1e4)  # contributes log(1 - D) = 0 or log D = 0 on the other side
    real = discriminator_loss(logits, zero) @ jnp.asarray(p, jnp.float32)
    fake = discriminator_loss(-zero, logits) @ jnp.asarray(q, jnp.float32)
    m = (p + q) / 2
    jsd = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))
    np.testing.assert_allclose(-(real + fake), -np.log(4) + 2 * jsd, rtol=1e-5)
    # and no other discriminator does better
    shifted = discriminator_loss(logits + 0.1, zero) @ jnp.asarray(p, jnp.float32)
    shifted += discriminator_loss(-zero, logits + 0.1) @ jnp.asarray(q, jnp.float32)
    assert shifted > real + fake


def test_ranks_are_checked():
    with pytest.raises(AssertionError):
        discriminator_loss(jnp.zeros((4, 1)), jnp.zeros((4, 1)))
    with pytest.raises(AssertionError):
        discriminator_loss(jnp.zeros(4), jnp.zeros(3))
    with pytest.raises(AssertionError):
        minimax_generator_loss(jnp.zeros((4, 1)))
