"""Posteriors and priors: their densities against closed forms and Jacobians."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxgen.distributions import Normal
from jaxgen.posteriors import (
    AutoregressiveFlow,
    Flow,
    FullNormal,
    Householder,
    InverseAutoregressive,
    Mixture,
    Planar,
    StandardNormal,
    vamp_prior,
)

RNG = np.random.default_rng(0)
B, Z = 5, 3


def normal(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


MIX = jnp.asarray(np.tril(np.random.default_rng(1).standard_normal((2, Z, Z)), -1), jnp.float32)


def masked(mix, z):
    """Two maps whose entry i depends on the entries before i."""
    m, s = jnp.tanh(jnp.einsum("fij,bj->fbi", mix, z))
    return m, 2 * s


STEPS = {
    "planar": Planar(normal(B, Z, scale=3.0), normal(B, Z, scale=2.0), normal(B)),
    "householder": Householder(normal(B, Z)),
    "inverse autoregressive": InverseAutoregressive(masked, MIX),
}


@pytest.mark.parametrize("name", STEPS)
def test_the_log_determinant_is_that_of_the_jacobian(name):
    step, z = STEPS[name], normal(B, Z)
    _, log_det = step(z)
    jacobian = jax.jacobian(lambda z: step(z)[0])(z)  # [B, Z, B, Z]
    own = np.stack([jacobian[i, :, i] for i in range(B)])
    sign, want = np.linalg.slogdet(np.asarray(own, np.float64))
    np.testing.assert_allclose(log_det, want, atol=1e-4)
    assert (sign == (-1 if name == "householder" else 1)).all()  # a reflection turns space around
    if name == "inverse autoregressive":
        assert np.abs(np.triu(own[0], 1)).max() == 0


@pytest.mark.parametrize("dot", [-50.0, -1.0, 0.0, 3.0])
def test_planar_steps_are_invertible_whatever_the_parameters(dot):
    """Along w they rise: 1 + u . w tanh' stays above 0, also where u . w was far below -1."""
    w = jnp.array([[1.0, 0.0, 0.0]])
    step = Planar(dot * w, w, jnp.zeros(1))
    line = jnp.linspace(-3, 3, 101)[:, None] * w
    out, log_det = jax.vmap(lambda z: step(z[None]))(line)
    assert (np.diff(out[:, 0, 0]) > -1e-6).all()
    assert np.isfinite(log_det).all()


def test_steps_without_a_direction_do_nothing_and_parameters_are_leaves(key):
    z, zero, tiny = normal(1, Z), jnp.zeros((1, Z)), jnp.full((1, Z), 1e-8)
    for step in (Planar(-1e9 * tiny / 2, tiny, jnp.ones(1)), Householder(zero), Householder(tiny)):
        out, log_det = step(z)
        np.testing.assert_allclose(out, z)
        np.testing.assert_allclose(log_det, 0, atol=1e-6)
    out, log_det = Planar(zero, normal(1, Z), jnp.ones(1))(z)  # also where w has a direction
    np.testing.assert_allclose(out, z, atol=1e-6)
    np.testing.assert_allclose(log_det, 0, atol=1e-6)
    # far below -1, at the very plane
    out, log_det = Planar(-100 * jnp.ones((1, Z)), jnp.ones((1, Z)), jnp.zeros(1))(zero)
    assert np.isfinite(log_det).all()
    flow = Flow(Normal(zero, zero), (Planar(z, z, jnp.ones(1)), Householder(z)))
    assert len(jax.tree.leaves(flow)) == 6

    def stopped(u):
        moved = jax.lax.stop_gradient(Flow(flow.base, (Planar(u, z, jnp.ones(1)),)))
        return moved.draw(key)[1].sum()

    assert not jax.grad(stopped)(z).any()


def test_a_full_normal_has_its_covariance_and_density(key):
    q = FullNormal(normal(2, Z), normal(2, Z, scale=0.3), normal(2, Z, Z))
    z, log_q = jax.vmap(q.draw)(jax.random.split(key, 20_000))
    np.testing.assert_allclose(log_q[:50], jax.vmap(q.log_prob)(z[:50]), atol=1e-3)
    for i in range(2):
        root = np.tril(q.lower[i], -1) + np.diag(np.exp(q.log_std[i]))
        exact = Gaussian(np.asarray(q.mean[i]), root @ root.T)
        np.testing.assert_allclose(log_q[:, i], exact.log_prob(np.asarray(z[:, i])), atol=2e-3)
        np.testing.assert_allclose(np.cov(z[:, i].T), root @ root.T, rtol=0.1, atol=0.05)


def test_a_flow_of_reflections_is_a_normal_turned(key):
    v, base = normal(1, Z), Normal(normal(1, Z), normal(1, Z, scale=0.5))
    turn = np.eye(Z) - 2 * np.outer(v[0], v[0]) / np.sum(np.asarray(v) ** 2)
    z, log_q = Flow(base, (Householder(v),)).draw(key)
    cov = turn @ np.diag(np.exp(2 * np.asarray(base.log_std[0]))) @ turn.T
    exact = Gaussian(turn @ np.asarray(base.mean[0]), cov).log_prob(np.asarray(z))
    np.testing.assert_allclose(log_q, exact, rtol=1e-4)


def test_the_density_of_a_flow_is_that_of_its_base_over_the_volume(key):
    """Of all steps together, by the Jacobian of their composition."""
    base = Normal(normal(B, Z), normal(B, Z, scale=0.5))

    def composed(z):
        for step in STEPS.values():
            z, _ = step(z)
        return z

    z_0, log_base = base.draw(key)
    z, log_q = Flow(base, tuple(STEPS.values())).draw(key)
    np.testing.assert_allclose(z, composed(z_0), rtol=1e-5, atol=1e-5)
    jacobian = jax.jacobian(composed)(z_0)
    volume = np.linalg.slogdet(np.stack([jacobian[i, :, i] for i in range(B)]).astype(float))[1]
    np.testing.assert_allclose(log_q, log_base - volume, rtol=1e-3, atol=1e-3)


def test_a_mixture_has_the_density_and_the_moments_of_one(key):
    prior = Mixture(jnp.array([0.0, 1.0, -1.0]), normal(3, Z, scale=2.0), normal(3, Z, scale=0.3))
    share = np.exp(np.asarray(prior.logits)) / np.exp(np.asarray(prior.logits)).sum()
    z = np.asarray(prior.sample(key, 50_000))
    parts = [
        Gaussian(np.asarray(m), np.diag(np.exp(2 * np.asarray(s))))
        for m, s in zip(prior.mean, prior.log_std, strict=True)
    ]
    want = np.log(sum(w * np.exp(p.log_prob(z[:20])) for w, p in zip(share, parts, strict=True)))
    np.testing.assert_allclose(prior.log_prob(z[:20]), want, atol=1e-3)
    np.testing.assert_allclose(z.mean(0), share @ np.asarray(prior.mean), atol=0.05)
    one = Mixture(jnp.zeros(1), jnp.zeros((1, Z)), jnp.zeros((1, Z)))
    np.testing.assert_allclose(
        one.log_prob(z), Gaussian(np.zeros(Z), np.eye(Z)).log_prob(z), rtol=1e-4
    )


def test_the_vamp_prior_is_the_mean_of_the_posteriors_of_its_inputs():
    weight = normal(4, 2 * Z)
    encode = lambda x: Normal(*jnp.split(x @ weight, 2, axis=-1))
    inputs, z = normal(6, 4), normal(B, Z)
    q = encode(inputs)
    each = np.stack(
        [
            Normal(*[jnp.broadcast_to(a[c], (B, Z)) for a in (q.mean, q.log_std)])
            .log_prob(z)
            .sum(-1)
            for c in range(6)
        ]
    )
    want = np.log(np.exp(each.astype(np.float64)).mean(0))
    np.testing.assert_allclose(vamp_prior(encode, inputs).log_prob(z), want, rtol=1e-4)


def test_gradients_are_finite_at_extreme_parameters(key):
    big = {"u": jnp.full((1, Z), -100.0), "w": jnp.full((1, Z), 100.0), "zero": jnp.zeros((1, Z))}

    def value(big):
        steps = [
            Planar(big["u"], big["w"], jnp.zeros(1)),
            Planar(big["u"], big["zero"], jnp.zeros(1)),
        ]
        steps += [Householder(big["zero"]), InverseAutoregressive(lambda _, z: (z, -big["w"]))]
        z, log_q = Flow(Normal(big["zero"], big["zero"]), tuple(steps)).draw(key)
        mixture = Mixture(
            jnp.array([-100.0, 100.0]),
            jnp.concatenate([big["u"], big["w"]]),
            jnp.concatenate([big["zero"] - 20, big["zero"] + 20]),
        )
        return (z.sum() + log_q + mixture.log_prob(z)).sum()

    for leaf in jax.tree.leaves(jax.jit(jax.value_and_grad(value))(big)):
        assert np.isfinite(leaf).all()


def test_an_autoregressive_flow_draws_from_its_density(key):
    """A draw goes back to the base by the steps' definition; the density is by the Jacobian."""
    backward = lambda mix, z: tuple(a[:, ::-1] for a in masked(mix, z[:, ::-1]))
    prior = AutoregressiveFlow(Z, (masked, backward), (MIX, MIX / 2))
    z = prior.sample(key, B)
    base = jax.random.normal(key, (B, Z))

    def back(z):
        for network, mix in ((backward, MIX / 2), (masked, MIX)):
            m, s = network(mix, z)
            z = (z - m) * jnp.exp(-s)
        return z

    np.testing.assert_allclose(back(z), base, atol=1e-4)
    jacobian = jax.jacobian(back)(z)
    volume = np.linalg.slogdet(np.stack([jacobian[i, :, i] for i in range(B)]).astype(float))[1]
    want = Gaussian(np.zeros(Z), np.eye(Z)).log_prob(np.asarray(base, float)) + volume
    np.testing.assert_allclose(prior.log_prob(z), want, rtol=1e-3, atol=1e-3)


def test_the_standard_normal_has_its_density(key):
    prior = StandardNormal(Z)
    z = np.asarray(prior.sample(key, 10))
    want = Gaussian(np.zeros(Z), np.eye(Z)).log_prob(z)
    np.testing.assert_allclose(prior.log_prob(z), want, rtol=1e-5)
