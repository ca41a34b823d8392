"""Bits per dimension of one-pixel images whose distribution is known."""

import jax.numpy as jnp
import numpy as np
from oracles import Mixture

from jaxgen.diffusion.schedules import VP, LinearLogSNR, from_betas, linear_betas
from jaxgen.evaluation.likelihood import likelihood

LEVELS = 17
VALUES = np.linspace(-1, 1, LEVELS)[:, None]
WEIGHTS = np.exp(-2 * (VALUES[:, 0] - 0.3) ** 2)
WEIGHTS /= WEIGHTS.sum()
ENTROPY = -(WEIGHTS * np.log2(WEIGHTS)).sum()


def pixels(data, schedule):
    denoise = data.denoiser(schedule)
    return lambda x_t, t: denoise(x_t.reshape(-1, 1), t).reshape(x_t.shape)


def images(n):
    bins = np.random.default_rng(0).choice(LEVELS, size=n, p=WEIGHTS)
    return jnp.asarray(bins.reshape(n, 1, 1, 1), jnp.uint8)


def test_the_bounds_of_a_discrete_distribution_are_just_above_its_entropy(key):
    data, bins = Mixture(WEIGHTS, VALUES, 0.0), images(4000)
    empirical = -np.log2(WEIGHTS)[np.asarray(bins).ravel()].mean()
    np.testing.assert_allclose(empirical, ENTROPY, atol=0.05)

    schedule = from_betas(linear_betas(2000, 0.1 / 2000, 20 / 2000))
    discrete = likelihood("discrete_bound", key, pixels(data, schedule), schedule, bins, LEVELS)
    gap = float(discrete.bits_per_dimension.mean()) - empirical
    assert -0.02 < gap < 0.15
    assert "bound" in discrete.kind
    # the curve is the bound, term by term: all but the decoder's part and the prior's
    curve_bits = float(discrete.curve.sum()) / np.log(2)
    assert curve_bits < float(discrete.bits_per_dimension.mean())
    assert curve_bits > 0.9 * empirical

    schedule = LinearLogSNR(12.0, -8.0)
    continuous = likelihood(
        "continuous_bound", key, pixels(data, schedule), schedule, bins, LEVELS, times=64
    )
    gap = float(continuous.bits_per_dimension.mean()) - empirical
    assert -0.03 < gap < 0.06
    assert "continuous" in continuous.kind


def test_the_ode_gives_the_density_of_dequantized_data(key):
    """-log2 of the density averaged over each bin's width: an integral in closed form."""
    data, bins = Mixture(np.array([0.6, 0.4]), np.array([[0.4], [-0.5]]), 0.3), images(4000)
    u = (np.arange(200) + 0.5) / 200
    x = VALUES + (u[None] - 0.5) * 2 / (LEVELS - 1)
    log_p = data.log_prob(x.reshape(-1, 1)).reshape(LEVELS, 200).mean(axis=1)
    bits = -log_p / np.log(2) - np.log2(2 / (LEVELS - 1))  # a bin is 2/(levels - 1) wide
    want = bits[np.asarray(bins).ravel()].mean()
    for probes in (None, 1):  # in one dimension a probe of +-1 is exact
        got = likelihood("ode", key, pixels(data, VP()), VP(), bins, LEVELS, probes=probes)
        np.testing.assert_allclose(got.bits_per_dimension.mean(), want, atol=0.01)
    assert "Hutchinson" in got.kind
