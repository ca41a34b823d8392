import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions import kl_normal, standard_normal
from jaxgen.losses import elbo
from jaxgen.models.vae import (
    ConvDecoder,
    ConvEncoder,
    FlowPrior,
    MADEDecoder,
    MixturePrior,
    MLPDecoder,
    MLPEncoder,
    PixelCNNDecoder,
    StandardPrior,
    VampPrior,
    autoregressive_flow,
    committed_normal,
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


IN_ORDER = {
    "made": partial(MADEDecoder, layers=2),
    "pixelcnn": partial(PixelCNNDecoder, channels=8, reach=2),
}
LIKELIHOODS = {"bits": elbo.bernoulli(), "three values": elbo.discretized_logistic(3)}


@pytest.mark.parametrize("of_entries", IN_ORDER.values(), ids=IN_ORDER)
@pytest.mark.parametrize(("name", "told"), [("bits", False), ("three values", True)])
def test_a_decoder_in_order_is_a_distribution_over_images_and_draws_from_it(
    key, randomized, of_entries, name, told
):
    """All images of 2x2 pixels are enumerated; an entry knows z, y and those before it alone."""
    values = [0.0, 1.0] if name == "bits" else [-1.0, 0.0, 1.0]
    every = jnp.array([*itertools.product(values, repeat=4)]).reshape(-1, 2, 2, 1)
    count, likelihood = len(every), elbo.in_order(LIKELIHOODS[name])
    decoder = of_entries((2, 2, 1), likelihood.maps, hidden=12)
    z, y = jax.random.normal(key, (2, 3)), jnp.eye(2) if told else None
    params = randomized(key, decoder, z, y)
    params = jax.tree.map(lambda a: 2 * a, params)  # far from independence

    def density(z, y):
        return likelihood.density(decoder.apply(params, z, y))

    @jax.jit
    def all_at_once(z, y):
        like = lambda a: None if a is None else jnp.repeat(a[None], count, axis=0)
        log_p = density(like(z), like(y)).log_prob(every).reshape(count, 4)
        one = lambda x, z: density(z[None], None if y is None else y[None]).maps(x[None])[0]
        slopes = jax.vmap(jax.jacobian(one, (0, 1)), (0, None))(every[:8], z)
        by_x, by_z = (jnp.abs(s).reshape(8, 4, likelihood.maps, -1).max((0, 2)) for s in slopes)
        draw = lambda key: density(like(z), like(y)).sample(key)
        return log_p, by_x, by_z, jax.lax.map(draw, jax.random.split(key, 8000 // count))

    for i in range(2):
        log_p, by_x, by_z, drawn = all_at_once(z[i], None if y is None else y[i])
        p = np.exp(np.asarray(log_p, float).sum(axis=1))
        np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
        np.testing.assert_array_equal(by_x > 0, np.tril(np.ones((4, 4)), -1) > 0)
        assert (by_z > 0).all()
        drawn = np.asarray(drawn).reshape(-1, 1, 4)
        share = (np.abs(drawn - every.reshape(1, count, 4)) < 1e-4).all(-1).mean(0)
        often = p * len(drawn) > 10
        error = np.sqrt(p * (1 - p) / len(drawn))
        assert (np.abs(share - p) < 5 * error)[often].all()
        assert often.sum() > 5


def test_what_is_called_the_mean_in_order_is_that_of_means_before(key, randomized):
    """By hand, entry by entry; of the first entry it is the mean."""
    likelihood, z = elbo.in_order(elbo.bernoulli()), jnp.ones((1, 2))
    decoder = MADEDecoder((3, 1, 1), hidden=9)
    p_x = likelihood.density(decoder.apply(randomized(key, decoder, z), z))
    x = np.zeros((1, 3, 1, 1), np.float32)
    for i in range(3):
        x[0, i] = jax.nn.sigmoid(p_x.maps(jnp.asarray(x)))[0, i]
    np.testing.assert_allclose(p_x.mean, x, rtol=1e-5)


EXTREME = [0.0, 1e-6, 1.0, 30.0, 1e3, 1e15]


@pytest.mark.parametrize("rate", [0.0, 1e-4, 0.5, 50.0])
def test_a_committed_rate_is_met_by_every_output_of_an_encoder(rate):
    """It is met with equality where the mean is 0 and the std the largest; gradients are finite."""
    outputs = [sign * value for value in EXTREME for sign in (1, -1)]
    h = jnp.array([*itertools.product(outputs, repeat=2)])[:, None]  # [N, 1, (mean, log std)]

    encoder = MLPEncoder(1, layers=0, head=partial(committed_normal, rate=rate))
    params = {"params": {"Dense_0": {"kernel": jnp.eye(2), "bias": jnp.zeros(2)}}}

    def kl(h):
        q = encoder.apply(params, h)
        return kl_normal(q, standard_normal(q.mean.shape))[0, 0]

    found, slope = jax.jit(jax.vmap(jax.value_and_grad(kl)))(h)
    assert (found >= rate * (1 - 1e-5) - 1e-7).all()
    np.testing.assert_allclose(found.min(), rate, rtol=1e-4, atol=1e-6)
    assert np.isfinite(slope).all()
