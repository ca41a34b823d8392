import numpy as np
import pytest
import scipy.linalg

from jaxgen.evaluation.distances import (
    frechet_distance,
    frechet_gaussians,
    kernel_distance,
    nearest_distances,
    precision_recall,
    psnr,
)

RNG = np.random.default_rng(0)


def test_frechet_distance_of_commuting_covariances():
    """For diagonal A and B it is |m|^2 + sum (sqrt a - sqrt b)^2."""
    a, b, m = RNG.uniform(0, 3, 5), RNG.uniform(0, 3, 5), RNG.standard_normal(5)
    got = frechet_gaussians(np.zeros(5), np.diag(a), m, np.diag(b))
    np.testing.assert_allclose(got, m @ m + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum(), rtol=1e-9)


def test_frechet_distance_is_the_formula_with_scipys_root():
    roots = RNG.standard_normal((2, 6, 6))
    a, b = roots @ roots.swapaxes(1, 2)
    m = RNG.standard_normal(6)
    want = m @ m + np.trace(a + b - 2 * scipy.linalg.sqrtm(a @ b).real)
    np.testing.assert_allclose(frechet_gaussians(m, a, np.zeros(6), b), want, rtol=1e-6)


def test_frechet_distance_of_samples():
    a = RNG.standard_normal((50_000, 3))
    b = 2 * RNG.standard_normal((50_000, 3)) + 1
    np.testing.assert_allclose(frechet_distance(a, b), 3 * 1 + 3 * (2 - 1) ** 2, rtol=0.03)
    assert frechet_distance(a, a) < 1e-9
    np.testing.assert_allclose(frechet_distance(a[:, :1], b[:, :1]), 1 + 1, rtol=0.05)


def test_kernel_distance_is_unbiased():
    """Its mean over pairs of sets from one distribution is 0; a loop over pairs agrees."""
    values = [
        kernel_distance(RNG.standard_normal((20, 4)), RNG.standard_normal((25, 4)))
        for _ in range(400)
    ]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(400)
    a, b = RNG.standard_normal((5, 3)), RNG.standard_normal((4, 3))
    k = lambda x, y: (x @ y / 3 + 1) ** 3
    within = lambda s: np.mean(
        [k(x, y) for i, x in enumerate(s) for j, y in enumerate(s) if i != j]
    )
    want = within(a) + within(b) - 2 * np.mean([k(x, y) for x in a for y in b])
    np.testing.assert_allclose(kernel_distance(a, b), want, rtol=1e-9)


def test_blocks_change_nothing():
    a, b = RNG.standard_normal((2300, 3)), RNG.standard_normal((1100, 3))
    k = lambda x, y: (x @ y.T / 3 + 1) ** 3
    off = lambda x: (k(x, x).sum() - np.trace(k(x, x))) / (len(x) * (len(x) - 1))
    np.testing.assert_allclose(
        kernel_distance(a, b), off(a) + off(b) - 2 * k(a, b).mean(), rtol=1e-6, atol=1e-9
    )


@pytest.mark.parametrize("shape", [(3,), (2, 2, 1)])
def test_nearest_distances(shape):
    a, b = RNG.standard_normal((1500, *shape)), RNG.standard_normal((7, *shape))
    table = np.linalg.norm((a[:, None] - b[None]).reshape(1500, 7, -1), axis=-1)
    np.testing.assert_allclose(nearest_distances(a, b), table.min(axis=1), rtol=1e-6)
    np.testing.assert_allclose(nearest_distances(b, b), 0, atol=1e-6)


def test_psnr_by_hand():
    truth = np.zeros((2, 2, 2, 1))
    assert psnr(truth + 0.2, truth) == pytest.approx(20.0)  # 10 log10(2^2 / 0.2^2)


def test_precision_is_of_fakes_within_the_data_and_recall_of_data_within_the_fakes():
    rng = np.random.default_rng(0)
    near = rng.normal(size=(400, 2))
    two = np.concatenate([near[:200], near[200:] + 100])  # two modes
    assert precision_recall(two, two) == (1, 1)
    precision, recall = precision_recall(two, rng.normal(size=(200, 2)))  # one of them is lost
    assert precision > 0.9
    np.testing.assert_allclose(recall, 0.5, atol=0.05)
    precision, recall = precision_recall(near, np.concatenate([near + 0.01, near + 100]))
    np.testing.assert_allclose((precision, recall), (0.5, 1), atol=0.03)  # half of it is wrong
    assert precision_recall(near, near + 1000) == (0, 0)
    # by hand, with the nearest neighbour: 0 and 1 reach 1 far, 5 reaches 4
    real, fake = np.array([[0.0], [1.0], [5.0]]), np.array([[-0.9], [2.1], [9.5], [30.0]])
    precision, recall = precision_recall(real, fake, k=1)
    assert precision == 0.5
    assert recall == 1.0  # -0.9 reaches 3 far, 2.1 reaches 3 far
