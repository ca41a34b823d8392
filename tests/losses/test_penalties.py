"""Penalties on critics whose slopes are known: a plane, a bowl, and one that is flat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import penalties

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(size=(2, 6, 2, 2)).astype(np.float32)
UNIT = np.array([0.5, -0.5, 0.5, 0.5], np.float32)  # of norm 1
A = RNG.normal(size=(4, 4)).astype(np.float32)
A = A + A.T
STD = 0.5


def plane(steepness):
    return lambda x: steepness * (x.reshape(-1, 4) @ UNIT) + 3


def bowl(x):
    """x^T A x / 2, whose slope is A x."""
    x = x.reshape(-1, 4)
    return 0.5 * jnp.einsum("bi,ij,bj->b", x, A, x)


CRITICS = {
    "steep": plane(3.0),
    "unit": plane(1.0),
    "shallow": plane(0.25),
    "flat": plane(0.0),
    "bowl": bowl,
}
PENALTIES = {
    "wgan_gp": penalties.wgan_gp,
    "wgan_lp": penalties.wgan_lp,
    "zero_centred": penalties.zero_centred,
    "r1": penalties.r1,
    "r2": penalties.r2,
    "dragan": penalties.dragan(STD),
}


@pytest.fixture(scope="module")
def found():
    """Every penalty of every critic, and where the random ones look, in one program."""

    @jax.jit
    def everything(key):
        values = {
            (name, critic): penalty(key, CRITICS[critic], REAL, FAKE)
            for name, penalty in PENALTIES.items()
            for critic in CRITICS
        }
        between = penalties.interpolated(key, jnp.asarray(REAL), jnp.asarray(FAKE))
        return values, between, jax.random.normal(key, REAL.shape)

    return everything(jax.random.key(0))


# of a critic whose slope has the norm s everywhere
CLOSED = {
    "wgan_gp": lambda s: (s - 1) ** 2,
    "wgan_lp": lambda s: max(0, s - 1) ** 2,
    "zero_centred": lambda s: s**2,
    "r1": lambda s: s**2 / 2,
    "r2": lambda s: s**2 / 2,
    "dragan": lambda s: (s - 1) ** 2,
}


@pytest.mark.parametrize("name", PENALTIES)
def test_planes_are_penalized_by_their_slope_alone(found, name):
    values, *_ = found
    for critic, slope in {"steep": 3, "unit": 1, "shallow": 0.25, "flat": 0}.items():
        want = np.full(6, CLOSED[name](slope))
        np.testing.assert_allclose(values[name, critic], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PENALTIES)
def test_a_bowl_is_penalized_by_its_slope_where_each_penalty_looks(found, name):
    values, between, noise = found
    at = {"r1": REAL, "r2": FAKE, "dragan": REAL + STD * np.asarray(noise)}.get(name, between)
    slope = np.linalg.norm(np.asarray(at).reshape(6, 4) @ A, axis=-1)
    want = [CLOSED[name](s) for s in slope]
    np.testing.assert_allclose(values[name, "bowl"], want, rtol=1e-5)


def test_interpolates_are_on_the_lines_between_each_at_a_place_of_its_own(found):
    _, between, _ = found
    u = (np.asarray(between) - FAKE) / (REAL - FAKE)  # the same for all entries of an example
    u = u.reshape(6, 4)
    np.testing.assert_allclose(u, u[:, :1] + np.zeros((6, 4)), atol=1e-3)
    assert ((u > 0) & (u < 1)).all()
    assert len(np.unique(u[:, 0].round(3))) == 6


def test_a_flat_critic_has_finite_gradients_of_its_parameters():
    """The norm has no derivative at 0, where a critic may well begin."""

    @jax.jit
    def slopes(w, key):
        return [
            jax.grad(lambda w: p(key, lambda x: x.reshape(-1, 4) @ w, REAL, FAKE).sum())(w)  # noqa: B023
            for p in PENALTIES.values()
        ]

    for slope in slopes(jnp.zeros(4), jax.random.key(0)):
        np.testing.assert_array_equal(slope, np.zeros(4))


def test_penalties_of_a_patch_critic_are_of_its_mean_over_patches():
    """A critic whose patches are w_p . x has the gradient mean_p w_p."""
    w = jnp.arange(12.0).reshape(4, 3) / 8  # 3 patches
    patches = lambda x: x.reshape(-1, 4) @ w
    alone = lambda x: patches(x).mean(axis=1)
    for p in PENALTIES.values():
        found, want = (p(jax.random.key(0), critic, REAL, FAKE) for critic in (patches, alone))
        assert found.shape == (len(REAL),)
        np.testing.assert_allclose(found, want, rtol=1e-6)
    logits = jnp.array([[1.0, 2.0], [0.0, 4.0]])
    np.testing.assert_allclose(penalties.consistency(logits, jnp.zeros((2, 2))), [2.5, 8.0])


def test_consistency_is_the_square_of_what_the_augmentation_changes():
    found = penalties.consistency(jnp.array([1.0, -2.0]), jnp.array([1.0, 1.0]))
    np.testing.assert_allclose(found, [0, 9])
    with pytest.raises(AssertionError):
        penalties.consistency(jnp.zeros(2), jnp.zeros(3))
