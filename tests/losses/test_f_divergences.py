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
SOME = np.linspace(-3, 3, 7, dtype=np.float32)  # logits at which no part loses digits
RATIOS = np.array([0.1, 0.5, 1, 2, 7, *P / Q], np.float32)


def bound(divergence, v):
    """E_p T - E_q f*(T) of logits ``[3]``: minus what the critic of f-GAN minimizes."""
    critic, zeros = f_gan(divergence).critic, jnp.zeros(3)
    real, fake = critic(v, zeros), critic(zeros, v)  # each with the other at logit 0
    return critic(zeros, zeros)[0] - (jnp.float32(P) @ real + jnp.float32(Q) @ fake)


@pytest.fixture(scope="module")
def found():
    """All that is looked at, of every divergence, in one program."""
    rng = np.random.default_rng(0)
    others = np.concatenate([rng.normal(size=(50, 3)), 30 * rng.normal(size=(50, 3))])

    def of(divergence, best):
        slopes = jax.vmap(jax.grad(divergence.f))(RATIOS)
        logits = jnp.concatenate([best[None], best[None] + others.astype(np.float32)])
        return {
            "f": divergence.f(RATIOS),
            "slope": slopes,  # T* = f'(u)
            "conjugate of slope": divergence.conjugate(slopes),
            "T of best": divergence.activation(best),
            "bounds": jax.vmap(lambda v: bound(divergence, v))(logits),
            "slope of bound": jax.grad(lambda v: bound(divergence, v))(best),
            "T": divergence.activation(SOME),
            "conjugate": divergence.conjugate(divergence.activation(SOME)),
            "fake": divergence.fake(SOME),
            "extreme": [
                (part(EXTREME), jax.vmap(jax.grad(part))(EXTREME))
                for part in (divergence.activation, divergence.fake)
            ],
            "generator": f_gan(divergence).generator(EXTREME, EXTREME),
        }

    everything = jax.jit(lambda best: {name: of(TABLE[name][0], v) for name, v in best.items()})
    return everything({name: jnp.float32(row[2]) for name, row in TABLE.items()})


@pytest.mark.parametrize("name", TABLE)
def test_the_bound_is_the_divergence_at_the_best_critic_and_below_it_elsewhere(found, name):
    (_, exact, _), now = TABLE[name], found[name]
    np.testing.assert_allclose(Q @ now["f"][-3:], exact, rtol=1e-5)
    slope, conjugate = now["slope"][-3:], now["conjugate of slope"][-3:]
    np.testing.assert_allclose(now["T of best"], slope, rtol=1e-5)
    np.testing.assert_allclose(P @ slope - Q @ conjugate, exact, rtol=1e-5)
    np.testing.assert_allclose(now["bounds"][0], exact, rtol=1e-5)
    assert (now["bounds"][1:] < exact).all()
    np.testing.assert_allclose(now["slope of bound"], 0, atol=1e-6)


@pytest.mark.parametrize("name", TABLE)
def test_the_conjugate_is_one(found, name):
    """f(u) + f*(t) >= u t, with equality at t = f'(u); and f(1) = 0."""
    now, u = found[name], RATIOS
    gap = now["f"][:, None] + now["conjugate"][None] - u[:, None] * now["T"][None]
    assert (gap > -1e-5).all()
    want = u * now["slope"]
    np.testing.assert_allclose(now["f"] + now["conjugate of slope"], want, atol=2e-5)
    assert abs(now["f"][2]) < 1e-7


@pytest.mark.parametrize("name", TABLE)
def test_values_and_slopes_are_finite_and_rise_at_logits_of_100(found, name):
    """Both of g_f and of f*(g_f), which agree where neither loses digits."""
    now = found[name]
    assert np.isfinite(now["extreme"]).all()
    (values, _), (fakes, _) = now["extreme"]
    assert (np.diff(values) >= 0).all()
    np.testing.assert_allclose(now["fake"], now["conjugate"], rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(now["generator"], -fakes)
