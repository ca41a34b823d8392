import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture

from jaxgen.diffusion.likelihood import (
    dequantize,
    dequantized_bits_per_dimension,
    exact_divergence,
    hutchinson_divergence,
    ode_log_likelihood,
)
from jaxgen.diffusion.schedules import VE, VP, FlowMatching

T_0 = 1e-3


def gaussian(d):
    rng = np.random.default_rng(1)
    rotation, _ = np.linalg.qr(rng.standard_normal((d, d)))
    cov = rotation * np.geomspace(0.02, 1.0, d) @ rotation.T
    return Gaussian(rng.uniform(-1, 1, d), cov)


def denoiser(data, schedule):
    """The oracle's, or for a normal the same in the eigenbasis of its covariance: no inverses."""
    if isinstance(data, Mixture):
        return data.denoiser(schedule)
    values, basis = (jnp.asarray(v, jnp.float32) for v in np.linalg.eigh(data.cov))
    mean = jnp.asarray(data.mean, jnp.float32)[None]

    def denoise(x_t, t):
        alpha, sigma = (v[:, None] for v in schedule(t))
        gain = alpha * values[None] / (alpha**2 * values[None] + sigma**2)
        return mean + (gain * ((x_t - alpha * mean) @ basis)) @ basis.T

    return denoise


def mixture(d):
    rng = np.random.default_rng(2)
    return Mixture(np.array([0.5, 0.3, 0.2]), rng.uniform(-1, 1, (3, d)), 0.3)


def at_level(data, alpha, sigma):
    """The law of alpha x_0 + sigma eps."""
    if isinstance(data, Gaussian):
        return Gaussian(alpha * data.mean, alpha**2 * data.cov + sigma**2 * np.eye(len(data.mean)))
    std = np.sqrt(alpha**2 * data.std**2 + sigma**2)
    return Mixture(data.weights, alpha * data.means, std)


def level_of(schedule, t):
    return tuple(float(v) for v in schedule(jnp.asarray(t, jnp.float32)))


@pytest.mark.parametrize(
    ("schedule", "error"), [(VP(), 0.01), (FlowMatching(), 0.002)], ids=["vp", "flow"]
)
@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("make", [gaussian, mixture])
def test_likelihood_is_the_true_one(make, d, schedule, error):
    """At t_0 for x_{t_0}, and of the data for alpha x_0, in bits per dimension.

    VP keeps a signal of alpha_1 = 0.007, which its prior neglects; flow matching keeps none.
    """
    data, bits = make(d), d * np.log(2)
    (alpha, sigma), rng = level_of(schedule, T_0), np.random.default_rng(0)
    x_0, noise = data.sample(rng, 64), rng.standard_normal((64, d))
    x = np.concatenate([alpha * x_0 + sigma * noise, alpha * x_0]).astype(np.float32)
    found = jax.jit(lambda x: ode_log_likelihood(denoiser(data, schedule), schedule, x, t_0=T_0))(x)
    log_p = np.asarray(found.log_prob, np.float64)
    assert log_p.shape == (128,)
    assert 0 < found.evaluations < 1000
    blurred = at_level(data, alpha, sigma).log_prob(x.astype(np.float64))
    np.testing.assert_allclose(log_p / bits, blurred / bits, atol=error)
    clean = data.log_prob(x_0.astype(np.float64))
    got = log_p[64:] + d * np.log(alpha)
    np.testing.assert_allclose(got.mean() / bits, clean.mean() / bits, atol=0.01)


def test_latents_are_draws_of_the_prior_and_its_scale_is_the_schedules():
    """VE ends at sigma_1 = 5: the latents of data have that deviation, and log p is right."""
    schedule, data = VE(0.01, 5.0), gaussian(2)
    x = data.sample(np.random.default_rng(0), 2000)
    found = jax.jit(lambda x: ode_log_likelihood(denoiser(data, schedule), schedule, x, t_0=0.0))(x)
    np.testing.assert_allclose(np.std(found.latent, axis=0), 5.0, rtol=0.08)
    want = at_level(data, 1.0, 0.01).log_prob(x.astype(np.float64)).mean()
    # What the prior N(0, sigma_1^2 I) neglects: the data's own mean and variance.
    np.testing.assert_allclose(np.mean(found.log_prob), want, atol=0.05)


@pytest.mark.parametrize(
    ("schedule", "draw"),
    [(VP(), jax.random.rademacher), (FlowMatching(), jax.random.normal)],
    ids=["vp-rademacher", "flow-normal"],
)
def test_hutchinsons_likelihood_is_unbiased(key, schedule, draw):
    """One x, many draws of the probes: their mean is the true log-density."""
    data, n = mixture(64), 512
    alpha, sigma = level_of(schedule, T_0)
    x = alpha * data.sample(np.random.default_rng(3), 1)
    found = jax.jit(
        lambda x: ode_log_likelihood(
            denoiser(data, schedule), schedule, x, hutchinson_divergence(key, 1, draw), t_0=T_0
        )
    )(jnp.repeat(x, n, axis=0))
    want = at_level(data, alpha, sigma).log_prob(x.astype(np.float64))[0]
    log_p = np.asarray(found.log_prob)
    assert log_p.std() > 0
    assert abs(log_p.mean() - want) < 4 * log_p.std() / np.sqrt(n) + 0.05
    np.testing.assert_allclose(found.latent, jnp.repeat(found.latent[:1], n, axis=0), atol=1e-5)


def test_divergences_of_a_linear_field(key):
    """tr A exactly. With S = (A + A^T)/2 the variance of v^T A v is 2 |S|^2 for normal v, and for
    signs that of S without its diagonal, so that one vector is exact for a diagonal A."""
    a = np.random.default_rng(0).standard_normal((6, 6)).astype(np.float32)
    x = jax.random.normal(key, (20_000, 2, 3))
    linear = lambda a: lambda x: (x.reshape(-1, 6) @ a.T).reshape(x.shape)
    value, exact = exact_divergence(linear(a), x[:5])
    np.testing.assert_allclose(value, linear(a)(x[:5]), rtol=1e-5)
    np.testing.assert_allclose(exact, np.full(5, np.trace(a)), rtol=1e-5)

    symmetric = (a + a.T) / 2
    off_diagonal = symmetric - np.diag(np.diag(symmetric))
    signs, normal = jax.random.rademacher, jax.random.normal
    for draw, matrix, probes in ((signs, off_diagonal, 1), (normal, symmetric, 3)):
        divergence = hutchinson_divergence(key, probes, draw)
        estimate = np.asarray(jax.jit(lambda x, d=divergence: d(linear(a), x)[1])(x))
        variance = 2 * (matrix**2).sum() / probes
        np.testing.assert_allclose(estimate.var(), variance, rtol=0.1)
        assert abs(estimate.mean() - np.trace(a)) < 4 * np.sqrt(variance / len(x))

    diagonal = np.diag(np.diag(a))
    _, estimate = hutchinson_divergence(key)(linear(diagonal), x[:5])
    np.testing.assert_allclose(estimate, np.full(5, np.trace(a)), rtol=1e-5)


def test_hutchinsons_probes_stay_the_same_from_call_to_call(key):
    divergence, x = hutchinson_divergence(key), jnp.ones((4, 3))
    field = lambda x: x[:, ::-1] ** 2
    np.testing.assert_array_equal(divergence(field, x)[1], divergence(field, x)[1])
    other = hutchinson_divergence(jax.random.key(1))(field, x)[1]
    assert not np.allclose(divergence(field, x)[1], other)


def test_a_field_of_another_shape_is_refused(key):
    for divergence in (exact_divergence, hutchinson_divergence(key)):
        with pytest.raises(AssertionError):
            divergence(lambda x: x[:, :1], jnp.ones((4, 3)))


# --- discrete data ---


def test_dequantized_values_fill_their_bins(key):
    bins = jnp.repeat(jnp.arange(8, dtype=jnp.uint8)[:, None], 5000, axis=1)
    x = np.asarray(dequantize(key, bins, 8), np.float64)
    low = -1 + 2 * np.arange(8)[:, None] / 8
    assert (x >= low).all()
    assert (x <= low + 0.25).all()
    np.testing.assert_allclose(x.mean(axis=1), low[:, 0] + 0.125, atol=4 * 0.25 / np.sqrt(60_000))
    np.testing.assert_allclose(x.std(axis=1), 0.25 / np.sqrt(12), rtol=0.05)
    with pytest.raises(AssertionError):
        dequantize(key, jnp.linspace(-1, 1, 5))


@pytest.mark.parametrize("levels", [2, 8, 256])
@pytest.mark.parametrize("d", [1, 12])
def test_uniform_data_take_log2_levels_bits(levels, d):
    log_prob = jnp.full(3, -d * np.log(2.0))  # the density 1/2 per dimension over [-1, 1]
    bits = dequantized_bits_per_dimension(log_prob, d, levels)
    np.testing.assert_allclose(bits, np.full(3, np.log2(levels)), rtol=1e-6)


def test_bits_are_at_least_the_entropy_and_equal_it_for_a_piecewise_constant_density():
    """Bits of P under q(x), over a fine grid in every bin: H(P) + what q varies within bins."""
    p = np.array([0.05, 0.4, 0.3, 0.15, 0.1])
    entropy, fine = -(p * np.log2(p)).sum(), 2000
    x = (np.arange(5 * fine) + 0.5) / (5 * fine) * 2 - 1
    piecewise = np.repeat(p / 0.4, fine)
    tilt = np.tile(1 + 0.8 * np.linspace(-1, 1, fine), 5)  # the mass of every bin stays
    smooth = np.exp(-0.5 * (x / 0.5) ** 2)
    smooth /= smooth.mean() * 2

    def bits(density):
        values = dequantized_bits_per_dimension(jnp.log(jnp.asarray(density)), 1, 5)
        return (np.asarray(values).reshape(5, fine).mean(axis=1) * p).sum()

    np.testing.assert_allclose(bits(piecewise), entropy, rtol=1e-5)
    assert bits(piecewise * tilt) > entropy + 0.01
    # Jensen: the mean over u is above the bits of the masses that the density gives the bins.
    masses = smooth.reshape(5, fine).mean(axis=1) * 0.4
    assert bits(smooth) > -(p * np.log2(masses)).sum() > entropy
