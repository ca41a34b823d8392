import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from jaxgen.distributions import (
    Bernoulli,
    DiscretizedLogistic,
    DiscretizedNormal,
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
