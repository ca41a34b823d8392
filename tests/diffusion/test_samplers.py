import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import WELL, Gaussian, Mixture, ancestral_gaussian_moments

from jaxgen.diffusion.process import posterior_mean
from jaxgen.diffusion.samplers import (
    VARIANCES,
    ancestral,
    ddim,
    ddim_inversion,
    evaluations,
    learned_ancestral,
    resampling,
    resampling_times,
    sample,
    sample_path,
)
from jaxgen.diffusion.schedules import (
    VP,
    CosineLogSNR,
    cosine_betas,
    from_betas,
    linear_betas,
    respaced_times,
    uniform_grid,
)

LINEAR = from_betas(linear_betas())
N = 20_000


@functools.partial(jax.jit, static_argnums=(1, 4, 5), compiler_options=WELL)
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


# --- DDIM ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [LINEAR, CosineLogSNR()], ids=["linear", "cosine"])
def test_ddim_with_eta_one_is_ancestral_sampling(key, schedule):
    """Song et al. 2021a, section 4.1; the same key, so the same noise."""
    data = Mixture(np.array([0.5, 0.5]), np.array([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    times = respaced_times(1000, 10) if schedule is LINEAR else uniform_grid(10)
    x_T = jax.random.normal(key, (50, 2))
    a, b = (
        sample(key, data.denoiser(schedule), schedule, x_T, times, solver)
        for solver in (ddim(1.0), ancestral())
    )
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4)


def test_ddim_does_not_depend_on_the_key_unless_eta_asks(key):
    data, x_T, traces = Gaussian(np.zeros(2), np.eye(2)), jnp.ones((3, 2)), []

    @jax.jit
    def draw(key, eta):
        traces.append(1)
        return sample(key, data.denoiser(VP()), VP(), x_T, uniform_grid(5), ddim(eta))

    other = jax.random.key(1)
    np.testing.assert_array_equal(draw(key, 0.0), draw(other, 0.0))
    assert not np.allclose(draw(key, 0.5), draw(other, 0.5))
    assert len(traces) == 1  # a new eta compiles nothing
    static = sample(key, data.denoiser(VP()), VP(), x_T, uniform_grid(5), ddim())
    np.testing.assert_allclose(draw(key, 0.0), static, rtol=1e-5)


def test_ddim_takes_one_step_to_the_estimate(key):
    """From x_T straight to clean data the sample is the denoiser's answer."""
    data, x_T = Gaussian(np.ones(2), np.eye(2)), jax.random.normal(key, (3, 2))
    denoise = data.denoiser(VP())
    x = sample(key, denoise, VP(), x_T, [1.0, 0.0], ddim())
    np.testing.assert_allclose(x, denoise(x_T, jnp.ones(3)), rtol=1e-5)


@pytest.mark.parametrize("iterations", [1, 20])
def test_ddim_inversion_encodes_what_ddim_decodes(key, iterations):
    """Solved to the end, each step is inverted exactly, however coarse; once, to first order."""
    data = Mixture(np.array([0.3, 0.7]), np.array([[0.8, 0.2], [-0.8, 0.0]]), 0.3)
    denoise, x = data.denoiser(VP()), jnp.asarray(data.sample(np.random.default_rng(0), 100))

    @functools.partial(jax.jit, static_argnums=0)
    def error(count):
        times = uniform_grid(count, last=0.01) ** 1.5
        x_T = ddim_inversion(denoise, VP(), x, times, iterations)
        back = sample(key, denoise, VP(), x_T, times, ddim())
        return x_T, jnp.sqrt(jnp.mean((back - x) ** 2))

    x_T, coarse = error(25)
    if iterations == 20:
        assert coarse < 2e-4
        np.testing.assert_allclose(x_T.std(), 1.0, atol=0.2)  # the code looks like noise
    else:
        assert 1.6 < coarse / error(50)[1] < 2.6  # first order


# --- learned variance ----------------------------------------------------------------------------


@pytest.mark.parametrize(("nu", "variance"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_the_ends_of_the_learned_variance_are_the_fixed_ones(key, nu, variance):
    data, times = Gaussian(np.zeros(2), np.eye(2) / 4), respaced_times(1000, 10)
    denoise, x_T = data.denoiser(LINEAR), jax.random.normal(key, (5, 2))
    both = lambda x_t, t: (denoise(x_t, t), jnp.full(x_t.shape, nu))
    a = sample(key, both, LINEAR, x_T, times, learned_ancestral())
    b = sample(key, denoise, LINEAR, x_T, times, ancestral(VARIANCES[variance]))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_right_learned_variance_makes_a_coarse_sampler_exact(key):
    """For a Gaussian the reverse step is normal with a known variance between the two choices: with
    it ten steps are as exact as a thousand (what learning the variance is for)."""
    var, times = 0.25, respaced_times(1000, 10)
    data = Gaussian(np.array([0.7]), np.array([[var]]))
    denoise = data.denoiser(LINEAR)
    below = dict(zip(times[:-1].tolist(), times[1:].tolist(), strict=True))
    table = np.zeros(1001, np.float32)
    a2, s2 = np.asarray(LINEAR.alpha, float) ** 2, np.asarray(LINEAR.sigma, float) ** 2
    for t, s in below.items():
        if s > 0:
            beta = s2[t] - a2[t] / a2[s] * s2[s]
            v_s, v_t = a2[s] * var + s2[s], a2[t] * var + s2[t]
            exact = v_s - a2[t] / a2[s] * v_s**2 / v_t  # Var(x_s|x_t) of the joint normal
            tilde = s2[s] / s2[t] * beta
            table[t] = np.log(exact / tilde) / np.log(beta / tilde)
    assert (table >= 0).all()
    assert (table <= 1).all()
    nu = jnp.asarray(table)
    both = lambda x_t, t: (denoise(x_t, t), jnp.broadcast_to(nu[t][:, None], x_t.shape))
    x_T = jax.random.normal(key, (100_000, 1))
    x = sample(key, both, LINEAR, x_T, times, learned_ancestral())
    # the last step returns the mean, which lacks Var(x_0|x_1): the only error left
    t = int(times[-2])
    lost = var - a2[t] * var**2 / (a2[t] * var + s2[t])
    np.testing.assert_allclose(x.mean(), 0.7, atol=0.01)
    np.testing.assert_allclose(x.var(), var - lost, rtol=0.02)


# --- resampling ----------------------------------------------------------------------------------


def test_resampling_times_go_back_up():
    path = resampling_times(np.array([8, 6, 4, 2, 0]), jump=2, repeats=3)
    np.testing.assert_array_equal(path, [8, 6, 4, 8, 6, 4, 8, 6, 4, 2, 0])
    schedule = from_betas(linear_betas(8, 0.01, 0.3))
    assert evaluations(resampling(ancestral()), schedule, path) == 8  # two of ten rows go up


def test_going_up_and_down_changes_no_marginal(key):
    data = Gaussian(np.array([0.7]), np.array([[0.25]]))
    times = resampling_times(uniform_grid(600) ** 1.5, jump=40, repeats=2)
    x_T = jax.random.normal(key, (N, 1))
    x = sample(key, data.denoiser(VP()), VP(), x_T, times, resampling(ancestral()))
    np.testing.assert_allclose(x.mean(), 0.7, atol=0.02)
    np.testing.assert_allclose(x.std(), 0.5, rtol=0.02)


# --- what may be traced --------------------------------------------------------------------------


def test_samplers_are_vmapped_over_eta_and_seeds(key):
    data, x_T = Gaussian(np.zeros(2), np.eye(2)), jax.random.normal(key, (4, 2))
    draw = lambda key, eta: sample(key, data.denoiser(VP()), VP(), x_T, uniform_grid(6), ddim(eta))
    keys, etas = jax.random.split(key, 3), jnp.array([0.0, 0.4, 1.0])
    together = jax.jit(jax.vmap(draw))(keys, etas)
    for i in range(3):
        np.testing.assert_allclose(together[i], draw(keys[i], etas[i]), rtol=1e-4, atol=1e-5)


def test_samplers_are_differentiable(key):
    """x = m + s z along the probability flow of N(m, s^2): dx/dm = 1 and dx/dx_T = s."""

    def draw(mean, x_T):
        def denoise(x_t, t):
            alpha, sigma = (c[:, None] for c in VP()(t))
            return mean + alpha * 0.25 / (alpha**2 * 0.25 + sigma**2) * (x_t - alpha * mean)

        times = uniform_grid(400) ** 2
        return sample(key, denoise, VP(), x_T, times, ddim()).sum()

    by_mean, by_x_T = jax.grad(draw, argnums=(0, 1))(0.7, jnp.full((1, 1), 0.3))
    np.testing.assert_allclose(by_mean, 1.0, atol=0.01)
    np.testing.assert_allclose(by_x_T, 0.5, rtol=0.02)
    finite = jax.grad(
        lambda eta: sample(
            key, lambda x, t: 0.5 * x, VP(), jnp.ones((1, 1)), uniform_grid(4), ddim(eta)
        ).sum()
    )
    assert np.isfinite([finite(0.0), finite(0.5), finite(1.0)]).all()
