import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Mixture

from jaxgen.losses.score_matching import (
    denoising_score_matching,
    implicit_score_matching,
    sliced_score_matching,
)

MEAN = np.array([0.3, -0.2, 0.5])
COV = np.array([[0.5, 0.2, 0.0], [0.2, 0.4, 0.1], [0.0, 0.1, 0.3]])
SCALES = (0.0, 0.5, 1.0, 1.5)


def gaussian_score(cov, scale=1.0):
    """scale * grad log N(x; MEAN, cov)."""
    precision = jnp.asarray(np.linalg.inv(cov), jnp.float32)
    return lambda x: -scale * (x - jnp.asarray(MEAN, jnp.float32)[None]) @ precision


def gaussian_points():
    """Six points whose mean and covariance are exactly MEAN and COV."""
    root = np.linalg.cholesky(COV) * np.sqrt(3)
    return jnp.asarray(MEAN + np.concatenate([root.T, -root.T]), jnp.float32)


def mixture_score(data):
    def log_prob(x):
        squared = ((x[None] - jnp.asarray(data.means, jnp.float32)) ** 2).sum(-1)
        return jax.nn.logsumexp(jnp.log(data.weights) - 0.5 * squared / data.std**2)

    return jax.vmap(jax.grad(log_prob))


@pytest.mark.parametrize("a", SCALES)
def test_implicit_score_matching_is_the_distance_to_the_score_less_its_constant(a):
    """For s = a grad log p of a normal, E|grad log p|^2 = tr(C^-1), so
    E = |a - 1|^2 tr(C^-1)/2 - tr(C^-1)/2. The loss is quadratic in x: six points give E."""
    loss = implicit_score_matching(gaussian_score(COV, a), gaussian_points())
    assert loss.shape == (6,)
    fisher = np.trace(np.linalg.inv(COV))
    np.testing.assert_allclose(loss.mean(), ((a - 1) ** 2 - 1) * fisher / 2, rtol=1e-4, atol=1e-5)


def test_implicit_score_matching_of_a_mixture_is_smallest_at_its_score():
    data = Mixture(np.array([0.6, 0.4]), np.array([[1.0, 0.5], [-0.7, -0.2]]), 0.5)
    x, score = jnp.asarray(data.sample(np.random.default_rng(0), 20_000)), mixture_score(data)
    squared = (np.asarray(score(x)) ** 2).sum(axis=1)
    bent = lambda a, b: lambda x: a * score(x) + b * jnp.sin(x)
    loss = jax.jit(lambda a, b: implicit_score_matching(bent(a, b), x))
    losses = {a: np.asarray(loss(a, 0.0)) for a in SCALES}
    for a, values in losses.items():
        gap = values - ((a - 1) ** 2 - 1) * squared / 2  # of mean zero, for each a
        assert abs(gap.mean()) <= 4 * gap.std() / np.sqrt(len(gap))
    assert min(losses, key=lambda a: losses[a].mean()) == 1.0
    for b in (-0.3, 0.3):
        assert loss(1.0, b).mean() > losses[1.0].mean()


@pytest.mark.parametrize(
    ("projections", "draw"), [(1, jax.random.rademacher), (3, jax.random.normal)]
)
def test_sliced_score_matching_is_the_implicit_one_in_the_mean(key, projections, draw):
    field = lambda x: jnp.sin(x[:, ::-1]) * x - 0.5 * x**3
    x = jnp.array([[0.3, -0.8, 1.1]])
    want = implicit_score_matching(field, x)[0]
    many = jnp.repeat(x, 20_000, axis=0)
    loss = jax.jit(lambda x: sliced_score_matching(key, field, x, projections, draw))(many)
    assert loss.shape == (20_000,)
    assert loss.std() > 0
    assert abs(loss.mean() - want) < 4 * loss.std() / np.sqrt(20_000)


def test_sliced_score_matching_is_exact_for_signs_and_a_diagonal_jacobian(key):
    field, x = lambda x: jnp.sin(x) - x**3, jax.random.normal(key, (5, 2, 3))
    np.testing.assert_allclose(
        sliced_score_matching(key, field, x), implicit_score_matching(field, x), rtol=1e-5
    )


@pytest.mark.parametrize("a", SCALES)
def test_denoising_score_matching_is_the_distance_to_the_noised_score_plus_its_constant(key, a):
    """E|s - grad log p_sigma|^2/2 + D/(2 sigma^2) - E|grad log p_sigma|^2/2, where
    p_sigma = N(m, C + sigma^2 I) and E|grad log p_sigma|^2 = tr((C + sigma^2 I)^-1)."""
    sigma, n = 0.6, 40_000
    noised = COV + sigma**2 * np.eye(3)
    x = np.random.default_rng(0).multivariate_normal(MEAN, COV, n).astype(np.float32)
    loss = denoising_score_matching(key, gaussian_score(noised, a), jnp.asarray(x), sigma)
    fisher = np.trace(np.linalg.inv(noised))
    want = ((a - 1) ** 2 - 1) * fisher / 2 + 3 / (2 * sigma**2)
    assert loss.shape == (n,)
    assert abs(loss.mean() - want) < 4 * loss.std() / np.sqrt(n)


def test_denoising_score_matching_takes_a_sigma_an_example(key):
    """For one data point at 0 the score -x/sigma^2 is the noise itself: the loss is zero. A score
    of zero leaves |eps|^2/(2 sigma^2)."""
    sigma, x = jnp.geomspace(0.01, 10, 2000), jnp.zeros((2000, 2, 5))
    exact = denoising_score_matching(key, lambda x: -x / sigma[:, None, None] ** 2, x, sigma)
    np.testing.assert_allclose(exact * sigma**2, np.zeros(2000), atol=1e-8)
    zero = denoising_score_matching(key, jnp.zeros_like, x, sigma) * sigma**2
    np.testing.assert_allclose(zero.mean(), 5.0, atol=4 * np.sqrt(10 / 2 / 2000))
    with pytest.raises(AssertionError):
        denoising_score_matching(key, jnp.zeros_like, x, sigma[:, None])


def test_the_objectives_train(key):
    """The gradient in a of ISM and of its slices is (a - 1) tr(C^-1), through the derivatives of
    the score."""
    x, fisher = gaussian_points(), np.trace(np.linalg.inv(COV))
    loss = lambda a: implicit_score_matching(gaussian_score(COV, a), x).mean()
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(0.4), -0.6 * fisher, rtol=1e-4)
    many = jnp.repeat(x, 4000, axis=0)
    sliced = lambda a: sliced_score_matching(key, gaussian_score(COV, a), many).mean()
    np.testing.assert_allclose(jax.jit(jax.grad(sliced))(0.4), -0.6 * fisher, rtol=0.02)


def test_a_score_of_another_shape_is_refused(key):
    x, narrow = jnp.ones((4, 3)), lambda x: x[:, :1]
    for loss in (
        lambda: implicit_score_matching(narrow, x),
        lambda: sliced_score_matching(key, narrow, x),
        lambda: denoising_score_matching(key, narrow, x, 0.1),
    ):
        with pytest.raises(AssertionError):
            loss()
