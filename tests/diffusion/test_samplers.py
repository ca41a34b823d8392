import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture, ancestral_gaussian_moments

from jaxgen.diffusion.process import posterior_mean
from jaxgen.diffusion.samplers import VARIANCES, ancestral, sample, sample_path
from jaxgen.diffusion.schedules import cosine_betas, from_betas, linear_betas, respaced_times

LINEAR = from_betas(linear_betas())
N = 20_000


@functools.partial(jax.jit, static_argnums=(1, 4, 5))
def run(key, denoise, schedule, times, variance, shape):
    key_start, key = jax.random.split(key)
    x_T = jax.random.normal(key_start, shape)
    return sample(key, denoise, schedule, x_T, times, ancestral(VARIANCES[variance]))


@pytest.mark.parametrize("variance", VARIANCES)
def test_algorithm_2_reproduces_a_gaussian(key, variance):
    data = Gaussian(np.array([0.5, -1.0]), np.array([[0.5, 0.3], [0.3, 0.4]]))
    x = run(key, data.denoiser(LINEAR), LINEAR, respaced_times(1000, 1000), variance, (N, 2))
    np.testing.assert_allclose(x.mean(axis=0), data.mean, atol=0.025)
    np.testing.assert_allclose(np.cov(x.T), data.cov, atol=0.025)


@pytest.mark.parametrize("variance", VARIANCES)
def test_algorithm_2_reproduces_a_mixture(key, variance):
    means = np.array([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]])
    data = Mixture(np.array([0.6, 0.3, 0.1]), means, 0.2)
    x = run(key, data.denoiser(LINEAR), LINEAR, respaced_times(1000, 1000), variance, (N, 2))
    x = np.asarray(x)
    mode = data.nearest_mode(x)
    weights = np.bincount(mode, minlength=3) / N
    np.testing.assert_allclose(weights, data.weights, atol=4 * np.sqrt(0.25 / N))
    for k in range(3):
        inside = x[mode == k]
        np.testing.assert_allclose(inside.mean(axis=0), means[k], atol=0.02)
        np.testing.assert_allclose(np.cov(inside.T), 0.2**2 * np.eye(2), atol=0.004)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize(("betas", "count"), [(linear_betas(), 20), (cosine_betas(), 7)])
def test_few_steps_have_the_error_that_theory_gives_them(key, variance, betas, count):
    """Respaced steps are biased; the exact recursion of the two moments says by how much."""
    schedule, times = from_betas(betas), respaced_times(1000, count)
    data = Gaussian(np.array([0.7]), np.array([[0.25]]))
    x = run(key, data.denoiser(schedule), schedule, times, variance, (4 * N, 1))
    alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
    mean, var = ancestral_gaussian_moments(alpha_bar, times, 0.7, 0.25, variance)
    np.testing.assert_allclose(x.mean(), mean, atol=4 * np.sqrt(var / (4 * N)))
    np.testing.assert_allclose(x.var(), var, rtol=0.025)


def test_a_point_is_reached_exactly(key):
    point = Mixture(np.ones(1), np.array([[0.3, -0.8]]), 0.0)
    x = run(key, point.denoiser(LINEAR), LINEAR, respaced_times(1000, 50), "beta_tilde", (8, 2))
    np.testing.assert_allclose(x, np.tile(point.means, (8, 1)), atol=1e-5)


def test_the_step_mean_is_equation_11():
    """mu = (x_t - beta_t / sqrt(1 - alpha-bar_t) eps) / sqrt(alpha_t), Ho et al. 2020."""
    beta = linear_betas()
    alpha_bar = np.cumprod(1 - beta)
    rng = np.random.default_rng(0)
    for t in (2, 10, 500, 1000):
        x_t, eps = rng.standard_normal((2, 4, 3)).astype(np.float32)
        a_bar, b = alpha_bar[t - 1], beta[t - 1]
        x_0 = (x_t - np.sqrt(1 - a_bar) * eps) / np.sqrt(a_bar)
        want = (x_t - b / np.sqrt(1 - a_bar) * eps) / np.sqrt(1 - b)
        got = posterior_mean(x_t, x_0.astype(np.float32), LINEAR(t), LINEAR(t - 1))
        np.testing.assert_allclose(got, want, rtol=2e-3, atol=2e-3)


def test_the_path_ends_in_the_sample_and_holds_every_step(key):
    data = Gaussian(np.zeros(2), np.eye(2))
    denoise, times = data.denoiser(LINEAR), respaced_times(1000, 10)
    x_T = jax.random.normal(key, (5, 2))
    x = sample(key, denoise, LINEAR, x_T, times, ancestral())
    end, (path, estimates) = sample_path(key, denoise, LINEAR, x_T, times, ancestral())
    np.testing.assert_array_equal(end, x)
    np.testing.assert_array_equal(path[-1], x)
    assert path.shape == estimates.shape == (10, 5, 2)
    # each estimate is the denoiser's, of the state before it
    want = denoise(path[3], jnp.full((5,), times[4]))
    np.testing.assert_allclose(estimates[4], want, rtol=1e-5)


def test_a_second_call_compiles_nothing(key):
    data = Gaussian(np.zeros(2), np.eye(2))
    denoise, traces = data.denoiser(LINEAR), []

    @jax.jit
    def draw(key, x_T):
        traces.append(1)
        return sample(key, denoise, LINEAR, x_T, respaced_times(1000, 5), ancestral())

    draw(key, jnp.zeros((3, 2)))
    draw(jax.random.key(1), jnp.ones((3, 2)))
    assert len(traces) == 1
