import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxgen.distributions import (
    Bernoulli,
    Beta,
    ContinuousBernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
    LogisticMixture,
    Normal,
    bits_per_dimension,
    kl_normal,
    quantize,
    sum_event,
)

VALUES = np.linspace(-1, 1, 17, dtype=np.float32)


def full(value):
    return jnp.full((17,), value, jnp.float32)


def test_normal_log_prob_is_scipys():
    x, mean, log_std = np.random.default_rng(0).standard_normal((3, 50)).astype(np.float32)
    got = Normal(jnp.asarray(mean), jnp.asarray(log_std)).log_prob(jnp.asarray(x))
    np.testing.assert_allclose(got, scipy.stats.norm.logpdf(x, mean, np.exp(log_std)), rtol=2e-4)


@pytest.mark.parametrize(
    ("q", "p"),
    [((0.0, 1.0), (0.0, 1.0)), ((0.3, 0.5), (-1.0, 2.0)), ((2.0, 3.0), (1.5, 0.7))],
)
def test_kl_is_the_integral(q, p):
    def integrand(x):
        log_q, log_p = scipy.stats.norm.logpdf(x, *q), scipy.stats.norm.logpdf(x, *p)
        return np.exp(log_q) * (log_q - log_p)

    want, _ = scipy.integrate.quad(integrand, q[0] - 12 * q[1], q[0] + 12 * q[1])
    as_normal = lambda m, s: Normal(jnp.array([m]), jnp.log(jnp.array([s])))
    np.testing.assert_allclose(kl_normal(as_normal(*q), as_normal(*p)), [want], atol=1e-5)


def test_kl_of_nearly_equal_variances_keeps_its_digits():
    # KL = delta^2 to second order in the log-ratio delta of standard deviations.
    q, p = Normal(jnp.zeros(1), jnp.array([1e-3])), Normal(jnp.zeros(1), jnp.zeros(1))
    np.testing.assert_allclose(kl_normal(q, p), [1e-6], rtol=0.02)


def test_bernoulli_is_finite_at_extreme_logits():
    logits = jnp.array([-100.0, 100.0, -100.0, 100.0])
    x = jnp.array([0.0, 1.0, 1.0, 0.0])
    np.testing.assert_allclose(Bernoulli(logits).log_prob(x), [0, 0, -100, -100], atol=1e-30)
    assert np.isfinite(jax.grad(lambda a: Bernoulli(a).log_prob(x).sum())(logits)).all()


@pytest.mark.parametrize("kind", [DiscretizedNormal, DiscretizedLogistic])
@pytest.mark.parametrize("mean", [-1.7, -1.0, -0.03, 0.4, 1.0, 2.5])
@pytest.mark.parametrize("log_scale", [-4.0, -2.0, 0.0, 2.0])
def test_discretized_probabilities_sum_to_one(kind, mean, log_scale):
    log_p = kind(full(mean), full(log_scale), 17).log_prob(jnp.asarray(VALUES))
    np.testing.assert_allclose(np.exp(np.asarray(log_p, np.float64)).sum(), 1.0, rtol=2e-5)


@pytest.mark.parametrize(
    ("kind", "cdf"),
    [(DiscretizedNormal, scipy.stats.norm), (DiscretizedLogistic, scipy.stats.logistic)],
)
def test_discretized_probabilities_are_differences_of_the_cdf(kind, cdf):
    mean, scale = 0.21, 0.15
    edges = np.concatenate([[-np.inf], VALUES[:-1].astype(float) + 1 / 16, [np.inf]])
    want = np.diff(cdf.cdf((edges - mean) / scale))
    got = kind(full(mean), full(np.log(scale)), 17).log_prob(jnp.asarray(VALUES))
    bulk = want > 1e-12  # below, the reference itself has lost its digits
    np.testing.assert_allclose(got[bulk], np.log(want[bulk]), rtol=3e-5, atol=3e-5)


def test_far_tails_are_finite_in_both_directions():
    # ~200 standard deviations out: log p is about -z^2/2, and both tails are the same.
    right = DiscretizedNormal(full(1.0), full(np.log(0.01)), 17).log_prob(jnp.asarray(VALUES))
    left = DiscretizedNormal(full(-1.0), full(np.log(0.01)), 17).log_prob(jnp.asarray(VALUES))
    np.testing.assert_allclose(right, left[::-1], rtol=1e-5)
    want = scipy.stats.norm.logsf((2 - 1 / 16) / 0.01)
    np.testing.assert_allclose(right[0], want, rtol=1e-4)


@pytest.mark.parametrize("kind", [DiscretizedNormal, DiscretizedLogistic])
def test_discretized_gradients_are_finite_everywhere(kind):
    def total(parameters):
        x = jnp.asarray(VALUES)
        return kind(full(1.0) * parameters[0], full(1.0) * parameters[1], 17).log_prob(x).sum()

    for mean in (-3.0, 0.0, 1.0):
        for log_scale in (-6.0, 0.0, 3.0):
            assert np.isfinite(jax.grad(total)(jnp.array([mean, log_scale]))).all()


def test_samples_have_the_frequencies_of_log_prob(key):
    p = DiscretizedLogistic(jnp.full((20_000,), 0.3), jnp.full((20_000,), -2.0), 17)
    x = np.asarray(p.sample(key))
    counts = np.array([np.mean(np.abs(x - v) < 1e-4) for v in VALUES])
    want = np.exp(DiscretizedLogistic(full(0.3), full(-2.0), 17).log_prob(jnp.asarray(VALUES)))
    np.testing.assert_allclose(counts, want, atol=4 * np.sqrt(0.25 / 20_000))
    np.testing.assert_array_equal(quantize(jnp.asarray(x), 17), x)


def test_units():
    # A uniform distribution over 256 values costs 8 bits a dimension.
    nats = jnp.full((3,), 12 * np.log(256.0), jnp.float32)
    np.testing.assert_allclose(bits_per_dimension(nats, 12), 8.0, rtol=1e-6)
    np.testing.assert_array_equal(sum_event(jnp.ones((2, 3, 4))), [12, 12])


def test_shapes_must_agree():
    with pytest.raises(AssertionError):
        Normal(jnp.zeros((2, 1)), jnp.zeros((2, 1))).log_prob(jnp.zeros((2, 3)))


@pytest.mark.parametrize("x", [0.0, 0.3, 1.0])
def test_the_bernoulli_and_its_gradient_keep_their_digits_at_extreme_logits(x):
    """log p and its slope x - sigmoid(logits) against float64, relative to what they are."""
    logits = np.array([-100.0, -15.0, -1e-3, 0.0, 2.0, 15.0, 100.0], np.float32)
    log_p = lambda a: Bernoulli(a).log_prob(jnp.full(a.shape, x, a.dtype))
    value, slope = log_p(jnp.asarray(logits)), jax.grad(lambda a: log_p(a).sum())(logits)
    wide = logits.astype(np.float64)
    want = -x * np.logaddexp(0, -wide) - (1 - x) * np.logaddexp(0, wide)
    np.testing.assert_allclose(value, want, rtol=1e-6, atol=1e-40)
    np.testing.assert_allclose(slope, x - 1 / (1 + np.exp(-wide)), rtol=1e-5, atol=1e-7)


LOGITS = np.array([-100.0, -20.0, -3.0, -0.15, -1e-4, 0.0, 0.1, 0.5, 8.0, 100.0], np.float32)


def test_the_continuous_bernoulli_is_a_density_with_its_mean():
    """By quadrature in float64 of exp(l u), l as it is."""
    p = ContinuousBernoulli(jnp.asarray(LOGITS))
    u, w = np.polynomial.legendre.leggauss(400)
    wide = LOGITS.astype(np.float64)
    mass = np.exp(wide * (u[:, None] + 1) / 2 - np.maximum(wide, 0)) * w[:, None]
    log_z = np.log(mass.sum(0)) + np.maximum(wide, 0)  # over x in [-1, 1]
    for x in (-1.0, -0.3, 1.0):
        want = wide * (x + 1) / 2 - log_z
        log_p = p.log_prob(jnp.full(LOGITS.shape, x))
        np.testing.assert_allclose(log_p, want, rtol=1e-5, atol=3e-5)
    np.testing.assert_allclose(p.mean, (mass * u[:, None]).sum(0) / mass.sum(0), atol=2e-5)
    many = ContinuousBernoulli(jnp.broadcast_to(LOGITS, (40_000, len(LOGITS))))
    drawn = np.asarray(many.sample(jax.random.key(0)))
    np.testing.assert_allclose(drawn.mean(0), p.mean, atol=0.02)
    assert np.abs(drawn).max() <= 1


def test_the_beta_density_is_scipys_at_the_middles_of_bins():
    a, b, levels = np.array([0.3, 1.0, 5.0]), np.array([0.5, 2.0, 5.0]), 11
    p = Beta(*(jnp.log(jnp.asarray(v, jnp.float32)) for v in (a, b)), levels)
    bins = np.arange(levels)[:, None]
    x = jnp.asarray(np.broadcast_to(2 * bins / (levels - 1) - 1, (levels, 3)), jnp.float32)
    want = scipy.stats.beta.logpdf((bins + 0.5) / levels, a, b) + np.log((levels - 1) / 2 / levels)
    np.testing.assert_allclose(jax.vmap(p.log_prob)(x), want, rtol=1e-4, atol=1e-5)
    of_u = lambda u: 2 * (levels * u - 0.5) / (levels - 1) - 1  # x, whose bin has u in its middle
    each = [scipy.stats.beta(*pair) for pair in zip(a, b, strict=True)]
    mean = [np.clip(beta.expect(of_u), -1, 1) for beta in each]
    np.testing.assert_allclose(p.mean, mean, rtol=1e-5, atol=1e-6)
    drawn = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 20_000)))
    mean = [beta.expect(lambda u: np.clip(of_u(u), -1, 1)) for beta in each]
    np.testing.assert_allclose(drawn.mean(0), mean, atol=0.02)


def mixture(shape=(), channels=2, components=3, levels=5, seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *s: jnp.asarray(rng.standard_normal(s), jnp.float32)
    return LogisticMixture(
        draw(*shape, components),
        draw(*shape, channels, components),
        draw(*shape, channels, components) - 1,
        jnp.tanh(draw(*shape, channels, channels, components)),
        levels,
    )


def test_a_mixture_of_logistics_over_coupled_channels_sums_to_one_and_draws_what_it_says():
    """All 25 colours of two channels of five levels, enumerated."""
    p, line = mixture(), np.linspace(-1, 1, 5)
    colours = np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)
    mass = np.exp(np.asarray(jax.vmap(p.log_prob)(jnp.asarray(colours, jnp.float32)), float))
    np.testing.assert_allclose(mass.sum(), 1, rtol=1e-5)
    drawn = np.asarray(jax.vmap(p.sample)(jax.random.split(jax.random.key(0), 100_000)))
    bins = np.round((drawn + 1) * 2).astype(int) @ [5, 1]
    seen = np.bincount(bins, minlength=25) / len(drawn)
    assert np.all(np.abs(seen - mass) < 5 * np.sqrt(mass / len(drawn)) + 1e-4)


def test_a_mixture_is_coupled_as_pixelcnn_has_it():
    """p(r) p(g|r) p(b|r, g) in each component, by differences of logistic CDFs in NumPy."""
    p = mixture(channels=3, components=2, levels=9, seed=1)
    x = np.array([-1.0, 0.25, 1.0])
    sigmoid = lambda a: 1 / (1 + np.exp(-a))
    total, weights = 0.0, np.exp(np.asarray(p.logits, float))
    for k, weight in enumerate(weights / weights.sum()):
        c = np.asarray(p.coupling[..., k], float)
        m = np.asarray(p.location[..., k], float)
        m = [m[0], m[1] + c[1, 0] * x[0], m[2] + c[2, 0] * x[0] + c[2, 1] * x[1]]
        s, half = np.exp(np.asarray(p.log_scale[..., k], float)), 1 / 8
        low, high = ((x + d - m) / s for d in (-half, half))
        low, high = np.where(x == -1, -np.inf, low), np.where(x == 1, np.inf, high)
        total += weight * np.prod(sigmoid(high) - sigmoid(low))
    np.testing.assert_allclose(p.log_prob(jnp.asarray(x, jnp.float32)), np.log(total), rtol=1e-4)


@pytest.mark.parametrize("size", [20.0, 100.0, -100.0])
def test_likelihoods_and_their_gradients_are_finite_at_extreme_parameters(size):
    from jaxgen.losses import elbo

    likelihoods = {
        "bernoulli": elbo.bernoulli(),
        "gaussian": elbo.gaussian(0.1),
        "learned gaussian": elbo.learned_gaussian(),
        "logistic": elbo.discretized_logistic(256),
        "mixture": elbo.logistic_mixture(256, 3),
        "beta": elbo.beta(256),
        "continuous": elbo.continuous_bernoulli(),
    }
    x = jnp.asarray(np.linspace(-1, 1, 12).reshape(2, 2, 1, 3), jnp.float32)
    for name, likelihood in likelihoods.items():
        at = (x + 1) / 2 if name == "bernoulli" else x
        maps = jnp.full((2, 2, 1, 3 * likelihood.maps), size)
        loss = lambda maps, at=at, p=likelihood: p.density(maps).log_prob(at).sum()
        value, slope = jax.value_and_grad(loss)(maps)
        assert np.isfinite(value), name
        assert np.isfinite(slope).all(), name
        assert np.isfinite(likelihood.density(maps).mean).all(), name
        if abs(size) <= 20:  # exp(100) is beyond float32
            assert np.isfinite(likelihood.density(maps).sample(jax.random.key(0))).all(), name
