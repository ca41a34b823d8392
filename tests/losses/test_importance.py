"""Gradients of the importance-weighted bound, of linear Gaussian models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear_gaussian_model

from jaxgen.distributions import Normal
from jaxgen.losses import importance
from jaxgen.losses.elbo import negative_elbo
from jaxgen.posteriors import Flow

MODEL = linear_gaussian_model(np.random.default_rng(0))
X = (np.random.default_rng(1).standard_normal((4, 3)) @ MODEL.W.T + MODEL.b).astype(np.float32)
MEAN, STD = (np.asarray(a, np.float32) for a in MODEL.posterior(X.astype(np.float64)))
LOSSES = [importance.iwae_loss, importance.stl_loss, importance.dreg_loss]
EXACT = {"shift": jnp.zeros(3), "log_std": jnp.zeros(3), "W": jnp.asarray(MODEL.W, jnp.float32)}
OFF = EXACT | {"shift": jnp.array([0.3, -0.2, 0.1]), "log_std": jnp.array([0.2, 0.3, -0.1])}


def encoder(params):
    return lambda x: Normal(
        MEAN + params["shift"][None],
        jnp.broadcast_to(np.log(STD) + params["log_std"], MEAN.shape),
    )


def decoder(params):
    def decode(z):
        mean = z @ params["W"].T + jnp.asarray(MODEL.b, jnp.float32)[None]
        return Normal(mean, jnp.full(mean.shape, np.log(MODEL.s)))

    return decode


def loss_of(loss, samples):
    return lambda params, key: loss(
        key, encoder(params), decoder(params), X, samples=samples
    ).mean()


def gradients(loss, samples, params, draws):
    """Gradients ``[draws, ...]`` by the names of the parameters."""
    one = jax.grad(loss_of(loss, samples))
    keys = jax.random.split(jax.random.key(0), draws)
    return jax.jit(lambda: jax.lax.map(lambda k: one(params, k), keys, batch_size=500))()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_value_is_the_bound(loss, key):
    def values(samples):
        both = lambda: [
            f(key, encoder(OFF), decoder(OFF), X, samples=samples) for f in (loss, plain)
        ]
        return jax.jit(both)()

    plain = importance.iwae_loss
    value, other = values(7)
    np.testing.assert_allclose(value, other, rtol=1e-5)
    assert value.shape == (4,)
    many, _ = values(10_000)
    np.testing.assert_allclose(-many, MODEL.log_prob(X), atol=0.05)


@pytest.mark.parametrize("loss", LOSSES[1:])
@pytest.mark.parametrize("samples", [1, 5])
def test_at_the_exact_posterior_the_encoders_gradient_is_zero_in_every_draw(loss, samples):
    found = gradients(loss, samples, EXACT, 10)
    assert np.abs(found["shift"]).max() < 1e-4
    assert np.abs(found["log_std"]).max() < 1e-4
    plain = gradients(importance.iwae_loss, samples, EXACT, 10)
    assert np.abs(plain["log_std"]).max() > 0.1


def test_with_one_draw_they_are_the_gradient_of_the_elbo():
    """Its gradient is known: d KL(q || p(z|x)) of two normals."""
    shift, log_std = np.asarray(OFF["shift"]), np.asarray(OFF["log_std"])
    want = {"shift": shift / STD**2, "log_std": np.exp(2 * log_std) - 1}
    for loss in LOSSES:
        found = gradients(loss, 1, OFF, 5000)
        for name, exact in want.items():
            values = np.asarray(found[name])
            error = 4 * values.std(0) / np.sqrt(len(values))
            assert (np.abs(values.mean(0) - np.broadcast_to(exact, (3,))) < error + 1e-4).all()
    elbo = lambda params, key: negative_elbo(key, encoder(params), decoder(params), X).mean()
    decoders = jax.grad(elbo)(OFF, jax.random.key(3))["W"]
    for loss in LOSSES:
        found = jax.grad(loss_of(loss, 1))(OFF, jax.random.key(3))["W"]
        np.testing.assert_allclose(found, decoders, rtol=1e-4, atol=1e-4)


def test_dreg_is_unbiased_and_stl_is_not():
    """Against the gradient of the bound itself, K = 5; the decoder's is the same in every draw."""
    plain, stl, dreg = (gradients(loss, 5, OFF, 10_000) for loss in LOSSES)
    for other in (stl, dreg):
        np.testing.assert_allclose(other["W"], plain["W"], rtol=1e-3, atol=1e-3)
    apart = lambda a, b: np.abs(
        (a.mean(0) - b.mean(0)) / np.sqrt((a.var(0) + b.var(0)) / len(a))
    ).max()
    for name in ("shift", "log_std"):
        assert apart(np.asarray(plain[name]), np.asarray(dreg[name])) < 4
    assert max(apart(np.asarray(plain[n]), np.asarray(stl[n])) for n in ("shift", "log_std")) > 8


def test_signal_against_noise_falls_for_iwae_and_rises_for_dreg():
    """In the limit as K^(-1/2) and K^(1/2) (Rainforth et al. 2018; Tucker et al. 2019)."""

    def signal(loss, samples):
        found = np.asarray(gradients(loss, samples, OFF, 2000)["shift"], np.float64)
        return float(np.mean(np.abs(found.mean(0)) / found.std(0)))

    plain = [signal(importance.iwae_loss, k) for k in (16, 256)]
    dreg = [signal(importance.dreg_loss, k) for k in (16, 256)]
    assert plain[1] / plain[0] < 0.5
    assert dreg[1] / dreg[0] > 1.4


def test_gradients_are_finite_where_scales_are_extreme(key):
    for log_std in (-20.0, 20.0):
        params = EXACT | {"log_std": jnp.full(3, log_std)}
        for loss in LOSSES:
            value, found = jax.jit(jax.value_and_grad(loss_of(loss, 3)))(params, key)
            assert all(np.isfinite(v).all() for v in jax.tree.leaves((value, found)))


def test_a_density_that_is_known_at_its_draws_alone_is_refused(key):
    flow = lambda x: Flow(encoder(OFF)(x), ())
    with pytest.raises(ValueError, match="use iwae_loss"):
        importance.stl_loss(key, flow, decoder(OFF), X, samples=2)
