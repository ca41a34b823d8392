"""Each density against moments, supports and integrals that follow from its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import i0e
from scipy.stats import kstest, multivariate_normal, rice

from jaxgen.data.toy import DENSITIES

N = 40_000
HALF, CELLS = 1.5, 300  # a grid of midpoints: no wider than half the narrowest noise


def draw(name, n=N):
    return DENSITIES[name].sample(np.random.default_rng(0), n)


@pytest.fixture(params=DENSITIES)
def name(request):
    return request.param


def test_points_are_float32_and_in_the_picture(name):
    x = draw(name)
    assert x.shape == (N, 2)
    assert x.dtype == np.float32
    assert np.abs(x).max() < 1.4


def test_eight_gaussians():
    x = draw("8gaussians")
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    np.testing.assert_allclose(np.bincount(angle) / N, 1 / 8, atol=0.01)
    # E|x|^2 = radius^2 + 2 std^2
    np.testing.assert_allclose((x**2).sum(axis=1).mean(), 0.8**2 + 2 * 0.05**2, rtol=0.01)


def test_twenty_five_gaussians():
    x = draw("25gaussians")
    cell = np.clip(np.round(2 * x).astype(int) + 2, 0, 4)
    counts = np.zeros((5, 5))
    np.add.at(counts, (cell[:, 1], cell[:, 0]), 1)
    np.testing.assert_allclose(counts / N, 1 / 25, atol=0.005)
    np.testing.assert_allclose((x - np.round(2 * x) / 2).std(axis=0), 0.04, rtol=0.01)
    # E x^2 of -1, -1/2, 0, 1/2, 1 is 1/2
    np.testing.assert_allclose((x**2).mean(axis=0), 0.5 + 0.04**2, rtol=0.02)


def test_a_ring_has_all_angles_and_the_radii_of_rice():
    """|c + noise| of a fixed c is Rice's, and no angle is preferred."""
    x = np.float64(draw("ring"))
    assert kstest(np.hypot(*x.T), rice(0.8 / 0.05, scale=0.05).cdf).pvalue > 0.01
    assert kstest(np.arctan2(*x.T) / (2 * np.pi) + 0.5, "uniform").pvalue > 0.01


def test_two_moons_are_half_circles():
    x = draw("moons") * 1.6 + [0.5, 0.25]
    upper, lower = np.hypot(x[:, 0], x[:, 1]), np.hypot(x[:, 0] - 1, x[:, 1] - 0.5)
    off = np.minimum(np.abs(upper - 1), np.abs(lower - 1))  # from the nearer circle
    assert off.max() < 6 * 0.03 * 1.6
    np.testing.assert_allclose(off.mean(), 0.03 * 1.6 * np.sqrt(2 / np.pi), rtol=0.1)


def test_swiss_roll_is_a_spiral():
    """The radius is proportional to the angle run through: angle mod 2 pi is known from r."""
    x = draw("swissroll")
    r = np.hypot(x[:, 0], x[:, 1]) * 15
    angle = np.arctan2(x[:, 1], x[:, 0])
    difference = np.angle(np.exp(1j * (r - angle)))
    assert np.std(difference) < 0.45
    assert (r.min() > 3.0, r.max() < 16.0) == (True, True)


def test_checkerboard_covers_the_dark_squares_only():
    x = draw("checkerboard")
    cell = np.clip(np.floor((x + 1) * 2).astype(int), 0, 3)
    counts = np.zeros((4, 4))
    np.add.at(counts, (cell[:, 1], cell[:, 0]), 1)
    dark = (np.add.outer(np.arange(4), np.arange(4)) % 2) == 0
    np.testing.assert_allclose(counts[dark] / N, 1 / 8, atol=0.01)
    assert counts[~dark].sum() == 0


def test_the_density_is_that_of_the_draws(name):
    """It integrates to 1, and its entropy over a grid is the mean of -log p over draws: by Gibbs'
    inequality any other density would give more."""
    middle = HALF * ((np.arange(CELLS) + 0.5) * 2 / CELLS - 1)
    grid = np.stack(np.meshgrid(middle, middle), axis=-1).reshape(-1, 2)
    log_p = np.asarray(DENSITIES[name].log_prob(jnp.asarray(grid)), np.float64)
    mass = np.exp(log_p) * (2 * HALF / CELLS) ** 2
    np.testing.assert_allclose(mass.sum(), 1, atol=1e-4)
    entropy = -(mass * np.where(mass > 0, log_p, 0)).sum()
    over_draws = -np.asarray(DENSITIES[name].log_prob(jnp.asarray(draw(name, 20_000))))
    error = over_draws.std() / np.sqrt(20_000)
    np.testing.assert_allclose(over_draws.mean(), entropy, atol=4 * error + 1e-4)


OCTAGON = [[0.8 * np.cos(k * np.pi / 4), 0.8 * np.sin(k * np.pi / 4)] for k in range(8)]
LATTICE = [[i / 2, j / 2] for i in range(-2, 3) for j in range(-2, 3)]


@pytest.mark.parametrize(
    ("name", "centres", "std"), [("8gaussians", OCTAGON, 0.05), ("25gaussians", LATTICE, 0.04)]
)
def test_log_density_of_gaussians(name, centres, std):
    x = np.random.default_rng(1).uniform(-1, 1, (50, 2))
    want = np.log(np.mean([multivariate_normal(c, std**2).pdf(x) for c in centres], axis=0))
    got = DENSITIES[name].log_prob(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_log_density_of_the_ring_is_a_bessel_function():
    """The mean of exp(r R cos(angle) / s^2) over angles is I_0(r R / s^2)."""
    r, angle = np.linspace(0, 1.3, 50), np.random.default_rng(1).uniform(0, 7, 50)
    x = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
    # i0e(z) = exp(-z) I_0(z)
    want = np.log(i0e(r * 0.8 / 0.05**2) / (2 * np.pi * 0.05**2)) - (r - 0.8) ** 2 / (2 * 0.05**2)
    got = DENSITIES["ring"].log_prob(jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)


def moons(angle, upper):
    x, y = (np.cos(angle), np.sin(angle)) if upper else (1 - np.cos(angle), 0.5 - np.sin(angle))
    return np.asarray([x - 0.5, y - 0.25]) / 1.6


@pytest.mark.parametrize(
    ("name", "std", "curves"),
    [
        ("moons", 0.03, [lambda u, k=k: moons(np.pi * u, k) for k in (True, False)]),
        (
            "swissroll",
            0.02,
            [lambda u: (r := 1.5 * np.pi * (1 + 2 * u)) * np.asarray([np.cos(r), np.sin(r)]) / 15],
        ),
    ],
)
def test_log_density_along_a_curve_is_the_integral(name, std, curves):
    """Near the curve, by an adaptive rule that is told where the peak is."""
    rng = np.random.default_rng(2)
    for u, curve in [(u, curve) for u in (0.0, 0.03, 0.4, 0.77, 1.0) for curve in curves]:
        x = curve(u) + std * rng.standard_normal(2)
        at = lambda v, c, x=x: multivariate_normal(x, std**2).pdf(c(v)) / len(curves)
        places = np.clip(u + np.asarray([-0.05, 0, 0.05]), 0, 1)
        total = sum(quad(at, 0, 1, (c,), points=places, limit=500)[0] for c in curves)
        got = DENSITIES[name].log_prob(jnp.asarray(x[None]))
        np.testing.assert_allclose(got, [np.log(total)], atol=1e-3)


def test_log_density_of_the_checkerboard():
    inside = [[-0.75, -0.75], [-0.25, -0.25], [0.9, 0.6], [-1.0, -1.0], [1.0, 1.0], [0.0, 0.0]]
    outside = [[-0.25, -0.75], [0.6, -0.6], [1.01, 0.9], [-3.0, 0.0]]
    got = DENSITIES["checkerboard"].log_prob(jnp.asarray(inside + outside))
    np.testing.assert_allclose(got, [-np.log(2)] * len(inside) + [-np.inf] * len(outside))
    assert np.isfinite(DENSITIES["checkerboard"].log_prob(jnp.asarray(draw("checkerboard")))).all()


def test_gradients_are_finite_and_point_home(name):
    log_prob = DENSITIES[name].log_prob
    score = jax.grad(lambda x: log_prob(x).sum())
    x = jnp.asarray([[3.0, -3.0], [0.0, 0.0], [0.31, 0.45]])
    assert np.isfinite(score(x)).all()
    if name != "checkerboard":  # whose density is flat
        assert float(score(x)[0] @ x[0]) < 0


def test_the_score_near_a_mode_is_that_of_its_normal():
    density = DENSITIES["8gaussians"]
    x = jnp.asarray(density.modes + np.asarray([0.03, -0.02]))
    score = jax.grad(lambda x: density.log_prob(x).sum())(x)
    np.testing.assert_allclose(score, np.tile([-12.0, 8.0], (8, 1)), rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "count"), [("8gaussians", 8), ("25gaussians", 25), ("checkerboard", 8)]
)
def test_modes_are_the_means_of_what_lies_nearest(name, count):
    x, modes = draw(name), DENSITIES[name].modes
    assert modes.shape == (count, 2)
    nearest = np.linalg.norm(x[:, None] - modes, axis=-1).argmin(axis=1)
    means = np.stack([x[nearest == k].mean(axis=0) for k in range(count)])
    np.testing.assert_allclose(means, modes, atol=0.01)


def test_they_are_loaded_by_name_and_repeatable():
    from jaxgen.data.sources import load

    index = np.arange(100)
    a, b = (load("moons") for _ in range(2))
    np.testing.assert_array_equal(a.train.fetch(index)["x"], b.train.fetch(index)["x"])
    assert not np.array_equal(a.train.fetch(index)["x"], a.test.fetch(index)["x"])
