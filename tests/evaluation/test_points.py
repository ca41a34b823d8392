"""Measures of points against closed forms."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data.records import Arrays, DataSet, Points
from jaxgen.data.toy import DENSITIES
from jaxgen.evaluation import points
from jaxgen.evaluation.points import (
    chamfer_distance,
    mean_log_density,
    mode_coverage,
    mode_precision,
    mode_reverse_kl,
    point_numbers,
    sliced_wasserstein,
)

RNG = np.random.default_rng(0)
GRID = np.stack(np.meshgrid(np.arange(5.0), np.arange(4.0)), axis=-1).reshape(-1, 2)


def white(n, d):
    """Points with mean exactly 0 and covariance exactly I."""
    x = RNG.standard_normal((n, d))
    x = x - x.mean(axis=0)
    return np.linalg.qr(x)[0] * np.sqrt(n)


@pytest.mark.parametrize("shift", [[0.25, 0.0], [0.3, 0.4], [-0.1, 0.2]])
def test_chamfer_distance_of_a_shifted_grid(shift):
    """Shifted by less than half its spacing each point is nearest to itself, |shift|^2 away."""
    want = 2 * len(GRID) * np.sum(np.square(shift))
    np.testing.assert_allclose(chamfer_distance(GRID, GRID + shift), want)


def test_chamfer_distance_of_clouds_far_apart():
    """Points at 0 .. 3 and at 13 .. 16 of a line: from either side to the nearest end."""
    line = np.stack([np.arange(4.0), np.zeros(4)], axis=1)
    there = np.sum((13 - np.arange(4.0)) ** 2)
    back = np.sum((13 + np.arange(4.0) - 3) ** 2)
    np.testing.assert_allclose(chamfer_distance(line, line + np.eye(2)[0] * 13), there + back)


def test_chamfer_distance_is_the_sum_over_the_table_and_symmetric():
    a, b = RNG.standard_normal((30, 3)), RNG.standard_normal((50, 3))
    table = ((a[:, None] - b[None]) ** 2).sum(axis=-1)
    want = table.min(axis=0).sum() + table.min(axis=1).sum()
    np.testing.assert_allclose(chamfer_distance(a, b), want)
    np.testing.assert_allclose(chamfer_distance(b, a), want)
    assert chamfer_distance(a, RNG.permutation(a)) == 0


@pytest.mark.parametrize("d", [1, 2, 5])
def test_sliced_wasserstein_of_a_shift(d):
    """(m . u)^2 in the direction u, on average |m|^2 / D."""
    x, m = white(500, d), RNG.standard_normal(d)
    squared = sliced_wasserstein(x, x + m, projections=4000) ** 2
    np.testing.assert_allclose(squared, m @ m / d, rtol=0.06)


@pytest.mark.parametrize(("d", "s"), [(1, 3.0), (2, 0.5), (4, 2.0)])
def test_sliced_wasserstein_of_a_scale(d, s):
    """(s - 1)^2 in every direction where the covariance is I."""
    x = white(500, d)
    np.testing.assert_allclose(sliced_wasserstein(x, s * x), abs(s - 1), rtol=1e-9)


def test_sliced_wasserstein_of_normals():
    a, b = RNG.standard_normal((2, 20_000, 2)) * [[[1.0]], [[1.5]]]
    np.testing.assert_allclose(sliced_wasserstein(a, b), 0.5, rtol=0.03)


def test_sliced_wasserstein_of_sets_of_different_sizes():
    """Sets in which every point is repeated are the same measures."""
    a, b = RNG.standard_normal((15, 2)), RNG.standard_normal((10, 2))
    assert sliced_wasserstein(a, RNG.permutation(np.repeat(a, 3, axis=0))) < 1e-12
    equal = sliced_wasserstein(np.repeat(a, 2, axis=0), np.repeat(b, 3, axis=0))
    np.testing.assert_allclose(sliced_wasserstein(a, b), equal)
    np.testing.assert_allclose(sliced_wasserstein(b, a), equal)


def test_sliced_wasserstein_of_points_on_a_line():
    """0 and 1 against 0, 0.5 and 1: thirds and halves cut the line in 4, of which 2 move by 1/2."""
    a, b = np.asarray([[0.0], [1.0]]), np.asarray([[0.0], [0.5], [1.0]])
    np.testing.assert_allclose(sliced_wasserstein(a, b), np.sqrt(2 * (1 / 6) * 0.25))


def test_sliced_wasserstein_is_repeatable_and_knows_its_seed():
    a, b = RNG.standard_normal((2, 50, 3))
    assert sliced_wasserstein(a, b) == sliced_wasserstein(a, b)
    assert sliced_wasserstein(a, b) != sliced_wasserstein(a, b, seed=1)


MODES = np.asarray([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [5.0, 5.0]])  # 1 apart at least


def test_modes_are_covered_by_a_quarter_of_their_share():
    """Of 160 points the equal share is 40: ten cover a mode, nine do not, far ones count for none.

    The balls have the radius 1/2.
    """
    x = np.repeat(MODES - 0.49 / np.sqrt(2), [10, 9, 81, 60], axis=0)
    assert mode_coverage(x, MODES) == 3 / 4
    x = np.repeat(MODES - 0.51 / np.sqrt(2), [10, 9, 81, 60], axis=0)
    assert mode_coverage(x, MODES) == 0
    assert mode_coverage(MODES, MODES) == 1
    assert mode_coverage(MODES[:1], MODES[:1]) == 1


def test_points_are_near_a_mode_within_a_quarter_of_the_smallest_distance():
    right = np.asarray([1.0, 0.0])
    x = np.concatenate([MODES + 0.24 * right, MODES - 0.26 * right, [[0.5, 0.5], [40.0, 40.0]]])
    assert mode_precision(x, MODES) == 4 / 10


@pytest.mark.parametrize("name", ["8gaussians", "25gaussians"])
def test_near_a_mode_is_three_standard_deviations_of_the_gaussians(name):
    """Of a normal in the plane the share within r std is 1 - exp(-r^2 / 2)."""
    density = DENSITIES[name]
    x = density.sample(RNG, 40_000)
    np.testing.assert_allclose(mode_precision(x, density.modes), 1 - np.exp(-4.5), atol=0.005)
    assert mode_coverage(x, density.modes) == 1
    assert mode_reverse_kl(x, density.modes) < 1e-3
    right = np.mean(density.modes[:, 0] > 0.1)
    assert mode_coverage(x[x[:, 0] > 0.25], density.modes) == right
    np.testing.assert_allclose(
        mode_reverse_kl(x[x[:, 0] > 0.25], density.modes), -np.log(right), atol=1e-3
    )


@pytest.mark.parametrize(
    ("counts", "want"),
    [
        ([30, 30, 30, 30], 0),
        ([50, 50, 0, 0], np.log(2)),
        ([0, 0, 0, 9], np.log(4)),
        ([2, 1, 1, 0], 0.5 * np.log(0.5 / 0.25)),  # two quarters are as they should be
    ],
)
def test_reverse_kl_of_the_shares_of_modes(counts, want):
    """Points that are near no mode, here at 0.3 of the smallest distance, count for none."""
    near = np.repeat(MODES + 0.1, counts, axis=0)
    far = np.repeat(MODES[:1] - [0.3, 0.0], 100, axis=0)
    np.testing.assert_allclose(mode_reverse_kl(near, MODES), want, atol=1e-12)
    np.testing.assert_allclose(
        mode_reverse_kl(np.concatenate([near, far]), MODES), want, atol=1e-12
    )
    assert np.isnan(mode_reverse_kl(far, MODES))


def test_mean_log_density_counts_what_is_outside():
    log_prob = lambda x: jnp.where(x[:, 0] > 0, -x[:, 0], -jnp.inf)
    x = np.asarray([[1.0, 0.0], [3.0, 0.0], [-1.0, 0.0], [-2.0, 0.0]])
    assert mean_log_density(log_prob, x) == (-2.0, 0.5)
    assert mean_log_density(log_prob, x[2:]) == (-np.inf, 1.0)


def data_of(sample, **known):
    draw = lambda seed, n: Arrays({"x": sample(np.random.default_rng(seed), n)})
    return DataSet("points", Points((2,)), draw(0, 5000), draw(1, 3000), draw(2, 4000), **known)


def test_numbers_of_a_perfect_model_are_those_of_the_test_points():
    density = DENSITIES["8gaussians"]
    data = data_of(density.sample, log_prob=density.log_prob, modes=density.modes)
    numbers = {n.name: n.value for n in point_numbers(data, density.sample(RNG, 3000), "exact")}
    assert numbers["modes_covered"] == numbers["modes_covered_of_test"] == 1
    assert 0 < numbers["modes_reverse_kl"] < 0.01
    assert numbers["outside_support"] == numbers["outside_support_of_test"] == 0
    for name, tolerance in [
        ("chamfer_distance", 0.15 * numbers["chamfer_distance"]),
        ("sliced_wasserstein", 0.03),
        ("points_near_modes", 0.01),
        ("mean_log_density", 0.1),
    ]:
        assert abs(numbers[name] - numbers[f"{name}_of_test"]) < tolerance


def test_numbers_do_not_hang_on_the_units_and_say_what_they_are():
    """Chamfer distances are quoted where the training set has standard deviation 2."""
    samples = RNG.standard_normal((2500, 2))
    normals = lambda rng, n: rng.standard_normal((n, 2))
    plain = point_numbers(data_of(normals), samples, "by hand")
    moved = point_numbers(data_of(lambda rng, n: 7 * normals(rng, n) - 3), 7 * samples - 3, "")
    assert [n.name for n in plain] == [
        "chamfer_distance",
        "chamfer_distance_of_test",
        "sliced_wasserstein",
        "sliced_wasserstein_of_test",
    ]
    for a, b in zip(plain, moved, strict=True):
        scale = 1 if "chamfer" in a.name else 7
        np.testing.assert_allclose(b.value, scale * a.value, rtol=1e-6)
    assert plain[0].protocol.startswith("2048 samples (by hand) against as many test points")
    assert plain[1].protocol.startswith("2048 validation points against")
    assert plain[2].protocol.startswith("2500 samples (by hand)")


def test_numbers_tell_a_bad_model():
    density = DENSITIES["checkerboard"]
    data = data_of(density.sample, log_prob=density.log_prob, modes=density.modes)
    samples = RNG.uniform(-1, 1, (4000, 2))  # knows nothing of the squares
    numbers = {n.name: n.value for n in point_numbers(data, samples, "uniform")}
    assert abs(numbers["outside_support"] - 0.5) < 0.05
    np.testing.assert_allclose(numbers["mean_log_density"], -np.log(2), rtol=1e-5)
    assert numbers["chamfer_distance"] > 1.5 * numbers["chamfer_distance_of_test"]
    gone = {n.name: n.value for n in point_numbers(data, samples + 9, "far away")}
    assert gone["outside_support"] == 1
    assert "mean_log_density" not in gone
    assert gone["modes_covered"] == 0
    assert "modes_reverse_kl" not in gone
    np.testing.assert_allclose(gone["sliced_wasserstein"], 9, rtol=0.1)


def test_samples_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="finite"):
        point_numbers(data_of(lambda rng, n: rng.standard_normal((n, 2))), GRID * np.nan, "")


def squares(seed, count=200, noise=0.05):
    """Unit squares turned at random about the origin, their corners a little off, the fourth of
    every other one missing."""
    rng = np.random.default_rng(seed)
    angle = rng.uniform(0, 2 * np.pi, (count, 1)) + np.arange(4) * np.pi / 2
    x = np.stack([np.cos(angle), np.sin(angle)], axis=-1) / np.sqrt(2)
    mask = np.ones((count, 4), bool)
    mask[::2, 3] = False
    return (x + noise * rng.normal(size=x.shape)).astype(np.float32) * mask[..., None], mask


def test_distances_within_a_set_are_those_of_the_points_that_are_there():
    x, mask = squares(0, noise=0.0)
    found = np.sort(points.pairwise_distances(x, mask))
    want = [1.0] * (100 * 4 + 100 * 2) + [np.sqrt(2)] * (100 * 2 + 100)
    np.testing.assert_allclose(found, want, rtol=1e-5)
    assert len(points.pairwise_distances(np.zeros((2, 500, 3)), np.ones((2, 500), bool))) == 4032


def test_numbers_of_point_sets_tell_a_model_from_noise_and_from_other_sets():
    """Noise of the data's own spread is far in the distances within a set; so are larger sets."""
    parts = [dict(zip(("x", "mask"), squares(seed), strict=True)) for seed in range(3)]
    data = DataSet("squares", Points((4, 2)), *map(Arrays, parts))
    x, mask = squares(9)
    noise = np.random.default_rng(1).normal(size=x.shape) * x[mask].std() * mask[..., None]
    value = lambda x: {n.name: n.value for n in points.point_set_numbers(data, x, mask, "")}
    good, bad, large = value(x), value(noise), value(1.3 * x)
    name = "pairwise_distance_wasserstein"
    assert good[name] < 2 * good[f"{name}_of_test"] + 0.01
    assert min(bad[name], large[name]) > 10 * good[name]
    assert large["sliced_wasserstein"] > 3 * good["sliced_wasserstein"]
    with pytest.raises(points.NotFinite):
        value(np.where(mask[..., None], np.nan, x))
