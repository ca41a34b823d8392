"""Variational bounds of f-divergences, held to the divergences of two known distributions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses.f_divergences import (
    JENSEN_SHANNON,
    KL,
    PEARSON,
    REVERSE_KL,
    SQUARED_HELLINGER,
    f_gan,
)

P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
M = (P + Q) / 2
# Each divergence by its own definition, and the logit v of the best critic, g_f(v) = f'(p / q).
TABLE = {
    "KL": (KL, np.sum(P * np.log(P / Q)), 1 + np.log(P / Q)),
    "reverse KL": (REVERSE_KL, np.sum(Q * np.log(Q / P)), np.log(P / Q)),
    "Pearson": (PEARSON, np.sum((P - Q) ** 2 / Q), 2 * (P / Q - 1)),
    "Hellinger": (
        SQUARED_HELLINGER,
        np.sum((np.sqrt(P) - np.sqrt(Q)) ** 2),
        np.log(P / Q) / 2,
    ),
    "Jensen-Shannon": (
        JENSEN_SHANNON,
        np.sum(P * np.log(P / M)) + np.sum(Q * np.log(Q / M)),
        np.log(P / Q),
    ),
}
EXTREME = np.array([-100.0, -30.0, -3.0, 0.0, 2.0, 30.0, 100.0], np.float32)


def bound(divergence, logits):
    """E_p T - E_q f*(T) of logits ``[..., 3]``: minus what the critic of f-GAN minimizes."""
    critic = f_gan(divergence).critic
    no = jnp.zeros(logits.shape[-1])
    p, q = jnp.float32(P), jnp.float32(Q)

    def one(v):
        at_zero = critic(no, no)[0]  # the two terms, each with the other at logit 0
        return -(p @ critic(v, no) + q @ critic(no, v) - at_zero)

    return jnp.vectorize(one, signature="(n)->()")(jnp.asarray(logits, jnp.float32))


@pytest.mark.parametrize("name", TABLE)
def test_the_bound_is_the_divergence_at_the_best_critic_and_below_it_elsewhere(name):
    divergence, exact, best = TABLE[name]
    u = jnp.float32(P / Q)
    np.testing.assert_allclose(jnp.float32(Q) @ divergence.f(u), exact, rtol=1e-5)
    # T* = f'(p / q), which the logits come to through g_f
    slope = jax.vmap(jax.grad(divergence.f))(u)
    np.testing.assert_allclose(divergence.activation(jnp.float32(best)), slope, rtol=1e-5)
    tight = P @ slope - Q @ divergence.conjugate(slope)
    np.testing.assert_allclose(tight, exact, rtol=1e-5)
    rng = np.random.default_rng(0)
    logits = np.concatenate([best[None], best + rng.normal(size=(50, 3)), 30 * rng.normal(size=(50, 3))])
    values = bound(divergence, logits)
    np.testing.assert_allclose(values[0], exact, rtol=1e-5)
    assert (values[1:] < exact).all()
    np.testing.assert_allclose(jax.grad(lambda v: bound(divergence, v))(best), 0, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_the_conjugate_is_one(name):
    """f(u) + f*(t) >= u t, with equality at t = f'(u); and f(1) = 0."""
    divergence, *_ = TABLE[name]
    u, t = jnp.float32([0.1, 0.5, 1, 2, 7]), divergence.activation(jnp.linspace(-3, 3, 7))
    gap = divergence.f(u)[:, None] + divergence.conjugate(t)[None] - u[:, None] * t[None]
    assert (gap > -1e-5).all()
    at = jax.vmap(jax.grad(divergence.f))(u)
    np.testing.assert_allclose(divergence.f(u) + divergence.conjugate(at), u * at, atol=2e-5)
    assert abs(divergence.f(jnp.float32(1))) < 1e-7


@pytest.mark.parametrize("name", TABLE)
def test_values_and_slopes_are_finite_and_rise_at_logits_of_100(name):
    """Both of g_f and of f*(g_f), which agree where neither loses digits."""
    divergence, *_ = TABLE[name]
    v = jnp.asarray(EXTREME)
    for part in (divergence.activation, divergence.fake):
        values, slopes = part(v), jax.vmap(jax.grad(part))(v)
        assert np.isfinite(values).all()
        assert np.isfinite(slopes).all()
    assert (np.diff(divergence.activation(v)) >= 0).all()
    some = jnp.linspace(-3, 3, 7)
    want = divergence.conjugate(divergence.activation(some))
    np.testing.assert_allclose(divergence.fake(some), want, rtol=1e-5, atol=1e-5)
    critic, generator = f_gan(divergence)
    np.testing.assert_array_equal(generator(v, v), -divergence.fake(v))
    np.testing.assert_array_equal(critic(v, v[::-1]), divergence.fake(v[::-1]) - divergence.activation(v))
