"""Each density against moments and supports that follow from its definition."""

import numpy as np
import pytest

from jaxgen.data.sources import load
from jaxgen.data.toy import DENSITIES

N = 40_000


@pytest.fixture(params=DENSITIES)
def draw(request):
    return DENSITIES[request.param](np.random.default_rng(0), N)


def test_points_are_float32_and_in_the_picture(draw):
    assert draw.shape == (N, 2)
    assert draw.dtype == np.float32
    assert np.abs(draw).max() < 1.4


def test_eight_gaussians():
    x = DENSITIES["8gaussians"](np.random.default_rng(0), N)
    angle = np.round(np.arctan2(x[:, 1], x[:, 0]) / (np.pi / 4)).astype(int) % 8
    np.testing.assert_allclose(np.bincount(angle) / N, 1 / 8, atol=0.01)
    # E|x|^2 = radius^2 + 2 std^2
    np.testing.assert_allclose((x**2).sum(axis=1).mean(), 0.8**2 + 2 * 0.05**2, rtol=0.01)


def test_two_moons_are_half_circles():
    x = DENSITIES["moons"](np.random.default_rng(0), N) * 1.6 + [0.5, 0.25]
    upper, lower = np.hypot(x[:, 0], x[:, 1]), np.hypot(x[:, 0] - 1, x[:, 1] - 0.5)
    off = np.minimum(np.abs(upper - 1), np.abs(lower - 1))  # from the nearer circle
    assert off.max() < 6 * 0.03 * 1.6
    np.testing.assert_allclose(off.mean(), 0.03 * 1.6 * np.sqrt(2 / np.pi), rtol=0.1)


def test_swiss_roll_is_a_spiral():
    """The radius is proportional to the angle run through: angle mod 2 pi is known from r."""
    x = DENSITIES["swissroll"](np.random.default_rng(0), N)
    r = np.hypot(x[:, 0], x[:, 1]) * 15
    angle = np.arctan2(x[:, 1], x[:, 0])
    difference = np.angle(np.exp(1j * (r - angle)))
    assert np.std(difference) < 0.45
    assert (r.min() > 3.0, r.max() < 16.0) == (True, True)


def test_checkerboard_covers_the_dark_squares_only():
    x = DENSITIES["checkerboard"](np.random.default_rng(0), N)
    cell = np.clip(np.floor((x + 1) * 2).astype(int), 0, 3)
    counts = np.zeros((4, 4))
    np.add.at(counts, (cell[:, 1], cell[:, 0]), 1)
    dark = (np.add.outer(np.arange(4), np.arange(4)) % 2) == 0
    np.testing.assert_allclose(counts[dark] / N, 1 / 8, atol=0.01)
    assert counts[~dark].sum() == 0


def test_they_are_loaded_by_name_and_repeatable():
    a, b = load("moons"), load("moons")
    np.testing.assert_array_equal(a.train.x, b.train.x)
    assert not a.is_image
    assert not np.array_equal(a.train.x[:100], a.test.x[:100])
