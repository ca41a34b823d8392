"""Bounds on discrete probabilities, by densities whose mass in a bin is known."""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.stats

from jaxgen.diffusion.likelihood import dequantize
from jaxgen.losses.dequantization import bin_of, dequantized_bound, uniform, variational

LEVELS, MEAN, STD = 4, 0.3, 0.4
BINS = jnp.asarray(np.stack(np.meshgrid(*[np.arange(LEVELS)] * 2), -1).reshape(-1, 2))  # [16, 2]
EDGES = np.linspace(-1, 1, LEVELS + 1)
CDF = scipy.stats.norm.cdf(EDGES, MEAN, STD)
LOG_MASS = np.log(np.diff(CDF))[np.asarray(BINS)].sum(axis=1)  # log P(b) of two such entries


def log_normal(x):
    z = (x - MEAN) / STD
    return jnp.sum(-0.5 * z**2 - np.log(STD) - 0.5 * np.log(2 * np.pi), axis=-1)


def bounds(dequantize, samples=1, draws=2000, log_prob=log_normal):
    one = lambda key: dequantized_bound(key, log_prob, dequantize, BINS, samples)
    return np.asarray(jax.jit(jax.vmap(one))(jax.random.split(jax.random.key(0), draws)), float)


def test_the_uniform_bound_is_the_mean_of_log_p_over_the_bin():
    """Of a normal that is a mean of squares, in closed form, and below log P(b) in every bin."""
    low, high = EDGES[:-1] - MEAN, EDGES[1:] - MEAN
    squares = (high**3 - low**3) / (3 * (high - low)) / STD**2
    each = -0.5 * squares - np.log(STD) - 0.5 * np.log(2 * np.pi) + np.log(2 / LEVELS)
    want = each[np.asarray(BINS)].sum(axis=1)
    found = bounds(uniform(LEVELS))
    error = found.std(axis=0) / np.sqrt(len(found))
    assert (np.abs(found.mean(axis=0) - want) < 5 * error).all()
    assert (want < LOG_MASS).all()


def test_the_uniform_bound_is_tight_where_the_density_is_constant_in_a_bin():
    masses = np.array([0.1, 0.2, 0.3, 0.4])
    height = jnp.asarray(np.log(masses * LEVELS / 2), jnp.float32)
    found = bounds(uniform(LEVELS), draws=20, log_prob=lambda x: height[bin_of(x, LEVELS)].sum(-1))
    want = np.log(masses)[np.asarray(BINS)].sum(axis=1)
    np.testing.assert_allclose(found, np.broadcast_to(want, found.shape), atol=1e-5)


def truncated(key, bins):
    """The normal within each bin, by its distribution function: the right q."""
    cdf = jnp.asarray(CDF, jnp.float32)
    low, high = cdf[bins], cdf[bins + 1]
    x = MEAN + STD * jax.scipy.stats.norm.ppf(
        low + (high - low) * jax.random.uniform(key, bins.shape)
    )
    u = (x + 1) / 2 * LEVELS - bins
    log_width = np.log(2 / LEVELS) * bins.shape[-1]
    return u, log_normal(x) - jnp.log(high - low).sum(axis=-1) + log_width


def test_the_variational_bound_is_tight_at_the_right_q():
    """Every draw answers log P(b)."""
    found = bounds(variational(LEVELS, truncated), draws=50)
    np.testing.assert_allclose(found, np.broadcast_to(LOG_MASS, found.shape), atol=2e-3)


def test_a_uniform_q_that_is_drawn_is_the_uniform_bound(key):
    draw = lambda key, bins: (jax.random.uniform(key, bins.shape), jnp.zeros(len(bins)))
    both = [
        dequantized_bound(key, log_normal, q, BINS)
        for q in (uniform(LEVELS), variational(LEVELS, draw))
    ]
    np.testing.assert_allclose(*both, atol=1e-5)


def test_more_samples_come_nearer_to_the_probability():
    means = [bounds(uniform(LEVELS), k, 1000).mean(axis=0) for k in (1, 4, 64)]
    gaps = LOG_MASS - np.stack(means)
    one, few, many = gaps.mean(axis=1)
    assert one > 2 * few > 4 * many > 0
    np.testing.assert_allclose(gaps[2], 0, atol=0.05)


def test_values_are_in_the_bins_they_are_of(key):
    bins = jnp.arange(LEVELS)[None]
    np.testing.assert_array_equal(bin_of(dequantize(key, bins, LEVELS), LEVELS), bins)
    np.testing.assert_array_equal(bin_of(jnp.array([-9.0, -1.0, 1.0, 9.0]), LEVELS), [0, 0, 3, 3])
