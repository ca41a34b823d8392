import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.vae import (
    ConvDecoder,
    ConvEncoder,
    FlowPrior,
    MixturePrior,
    MLPDecoder,
    MLPEncoder,
    StandardPrior,
    VampPrior,
    autoregressive_flow,
    full_normal,
    householder_flow,
    planar_flow,
)

PAIRS = [(MLPEncoder, MLPDecoder), (ConvEncoder, ConvDecoder)]


@pytest.mark.parametrize(("encoder", "decoder"), PAIRS)
@pytest.mark.parametrize("shape", [(8, 8, 1), (7, 10, 3)])
@pytest.mark.parametrize("maps", [1, 2])
def test_maps_have_the_image_size_and_every_latent_matters(key, encoder, decoder, shape, maps):
    x = jax.random.normal(key, (3, *shape))
    q, _ = encoder(4, hidden=32).init_with_output(key, x)
    assert q.mean.shape == q.log_std.shape == (3, 4)
    assert not np.allclose(q.mean[0], q.mean[1])
    model = decoder(shape, maps=maps, hidden=32)
    out, variables = model.init_with_output(key, q.mean)
    assert out.shape == (3, *shape[:2], maps * shape[2])
    jacobian = jax.jacobian(lambda z: model.apply(variables, z[None])[0])(q.mean[0])
    assert (jnp.abs(jacobian).max(axis=(0, 1, 2)) > 0).all()


HEADS = {
    "full": full_normal,
    "planar": planar_flow,
    "householder": householder_flow,
    "iaf": autoregressive_flow,
}


@pytest.mark.parametrize("head", HEADS.values(), ids=HEADS)
def test_every_head_answers_a_posterior_whose_density_is_that_of_its_draws(key, randomized, head):
    """log q against the Jacobian of the reparameterization, of every head with its own network."""
    encoder = MLPEncoder(3, hidden=16, head=head)
    x = jax.random.normal(key, (2, 4, 4, 1))
    params = randomized(key, encoder, x)
    eps = jax.random.normal(key, (2, 3))

    def moved(eps):
        """The draw that has the noise eps."""
        q = encoder.apply(params, x)
        if hasattr(q, "root"):
            return q.mean + jnp.einsum("bij,bj->bi", q.root, eps)
        z = q.base.mean + jnp.exp(q.base.log_std) * eps
        for step in q.steps:
            z, _ = step(z)
        return z

    z, log_q = encoder.apply(params, x).draw(key)
    np.testing.assert_allclose(z, moved(eps), rtol=1e-4, atol=1e-5)
    jacobian = jax.jacobian(moved)(eps)
    volume = np.linalg.slogdet(np.stack([jacobian[i, :, i] for i in range(2)]).astype(float))[1]
    base = -0.5 * (eps**2 + np.log(2 * np.pi)).sum(-1)
    np.testing.assert_allclose(log_q, base - volume, rtol=1e-3, atol=1e-3)


PRIORS = {
    "standard": StandardPrior(2),
    "mixture": MixturePrior(2, 5),
    "vamp": VampPrior((4, 4, 1), 5),
    "flow": FlowPrior(2, hidden=16),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS)
def test_every_prior_is_a_density_and_draws_from_it(key, prior):
    """It integrates to 1 over the plane, and the mean of its draws is that of the integral."""
    encoder = MLPEncoder(2, hidden=8)
    variables = encoder.init(key, jnp.zeros((1, 4, 4, 1)))
    encode = lambda x: encoder.apply(variables, x)
    noisy = lambda a: a + 0.3 * jax.random.normal(key, a.shape)
    params = jax.tree.map(noisy, prior.init(key, encode))
    p = prior.apply(params, encode)
    line = np.linspace(-20, 20, 801)
    z = np.stack(np.meshgrid(line, line), -1).reshape(-1, 2).astype(np.float32)
    mass = np.exp(np.asarray(jax.jit(p.log_prob)(z), float)) * (line[1] - line[0]) ** 2
    np.testing.assert_allclose(mass.sum(), 1, rtol=2e-3)
    drawn = np.asarray(p.sample(key, 20_000))
    np.testing.assert_allclose(drawn.mean(0), mass @ z, atol=0.06)
    np.testing.assert_allclose((drawn**2).mean(0), mass @ z**2, rtol=0.1)
