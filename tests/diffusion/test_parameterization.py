import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture

from jaxgen.diffusion.parameterization import (
    TARGETS,
    convert,
    denoiser,
    edm,
    edm_network,
    from_x_0,
    to_x_0,
    tweedie,
    tweedie_covariance,
)
from jaxgen.diffusion.schedules import (
    VP,
    CosineLogSNR,
    FlowMatching,
    Sigma,
    from_betas,
    linear_betas,
)

RNG = np.random.default_rng(0)
X_0, EPS = RNG.standard_normal((2, 6, 3)).astype(np.float32)
T = jnp.array([0.01, 0.1, 0.3, 0.5, 0.8, 0.95])
SCHEDULES = {"vp": VP(), "flow": FlowMatching(), "sigma": Sigma()}


def state(schedule, t):
    alpha, sigma = (np.asarray(c)[:, None] for c in schedule(t))
    return alpha, sigma, alpha * X_0 + sigma * EPS


def truth(schedule, t):
    """Each target by its definition, from the noise that made x_t; velocity by autodiff in t."""
    alpha, sigma, _ = state(schedule, t)
    path = lambda t: schedule(t).alpha[:, None] * X_0 + schedule(t).sigma[:, None] * EPS
    return {
        "x_0": X_0,
        "eps": EPS,
        "v": alpha * EPS - sigma * X_0,
        "score": -EPS / sigma,
        "velocity": jax.jvp(path, (t,), (jnp.ones_like(t),))[1],
    }


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_pair_agrees_with_the_definitions(name):
    schedule = SCHEDULES[name]
    want, (_, _, x_t) = truth(schedule, T), state(schedule, T)
    for source, target in itertools.product(want, want):
        got = convert(jnp.asarray(want[source]), jnp.asarray(x_t), schedule, T, source, target)
        np.testing.assert_allclose(got, want[target], rtol=1e-3, atol=2e-3, err_msg=source + target)


def test_every_pair_agrees_on_a_discrete_schedule():
    """With mu, the mean of q(x_{t-1}|x_t, x_0), whose definition is eq. 7 of Ho et al. 2020."""
    beta = linear_betas(10, 0.05, 0.5)
    schedule, t = from_betas(beta), jnp.array([2, 3, 5, 7, 9, 10])
    alpha, sigma, x_t = state(schedule, t)
    a_bar = np.cumprod(1 - beta)
    at, before, b = (c[np.asarray(t) - k][:, None] for c, k in ((a_bar, 1), (a_bar, 2), (beta, 1)))
    mu = np.sqrt(before) * b / (1 - at) * X_0 + np.sqrt(1 - b) * (1 - before) / (1 - at) * x_t
    want = {"x_0": X_0, "eps": EPS, "v": alpha * EPS - sigma * X_0, "score": -EPS / sigma, "mu": mu}
    assert set(want) | {"velocity"} == set(TARGETS)
    for source, target in itertools.product(want, want):
        got = convert(jnp.asarray(want[source]), jnp.asarray(x_t), schedule, t, source, target)
        np.testing.assert_allclose(got, want[target], rtol=1e-4, atol=1e-4, err_msg=source + target)


def test_targets_say_which_schedules_have_them():
    x, t = jnp.zeros((6, 3)), jnp.ones((6,), jnp.int32)
    with pytest.raises(TypeError, match="continuous"):
        from_x_0(x, x, from_betas(linear_betas()), t, "velocity")
    with pytest.raises(TypeError, match="discrete"):
        from_x_0(x, x, VP(), T, "mu")


def test_the_score_is_the_gradient_of_the_log_density():
    alpha, sigma, x_t = (jnp.asarray(c) for c in state(VP(), T))
    log_q = lambda x: -0.5 * (((x - alpha * X_0) / sigma) ** 2).sum()
    got = from_x_0(jnp.asarray(X_0), x_t, VP(), T, "score")
    np.testing.assert_allclose(got, jax.grad(log_q)(x_t), rtol=1e-3, atol=1e-3)


def test_the_velocity_of_flow_matching_is_noise_minus_data():
    """Also at t = 1, where nothing of the data is left in x_t."""
    t = jnp.array([0.1, 0.2, 0.5, 0.7, 0.9, 1.0])
    _, _, x_t = state(FlowMatching(), t)
    v = from_x_0(jnp.asarray(X_0), jnp.asarray(x_t), FlowMatching(), t, "velocity")
    np.testing.assert_allclose(v, EPS - X_0, rtol=1e-5, atol=1e-5)
    back = to_x_0(v, jnp.asarray(x_t), FlowMatching(), t, "velocity")
    np.testing.assert_allclose(back, X_0, rtol=1e-5, atol=1e-5)


def test_v_needs_no_noise_to_give_x_0():
    x_0 = to_x_0(jnp.asarray(EPS), jnp.asarray(X_0), FlowMatching(), jnp.zeros(6), "v")
    np.testing.assert_allclose(x_0, X_0)


def test_edm_preconditioning_is_table_1():
    """c_skip, c_out, c_in, c_noise of Karras et al. 2022 at alpha = 1, for a network at hand."""
    sigma, sigma_data = np.array([0.002, 0.1, 0.5, 2.0, 10.0, 80.0]), 0.5
    x_t = X_0 + sigma[:, None] * EPS
    total = sigma**2 + sigma_data**2
    c_skip, c_out = sigma_data**2 / total, sigma * sigma_data / np.sqrt(total)
    c_in, c_noise = 1 / np.sqrt(total), np.log(sigma) / 4
    network = lambda x, c: jnp.sin(2 * x) + jnp.asarray(c)[:, None]
    f = np.asarray(network(jnp.asarray(c_in[:, None] * x_t), c_noise))
    want = c_skip[:, None] * x_t + c_out[:, None] * f
    t, schedule = jnp.asarray(sigma, jnp.float32), Sigma()
    scaled = edm_network(network, schedule, sigma_data)
    got = denoiser(scaled, schedule, edm(sigma_data))(jnp.asarray(x_t, jnp.float32), t)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_edm_with_unit_data_on_a_preserving_schedule_is_minus_v():
    x_t = jnp.asarray(state(CosineLogSNR(), T)[2])
    f = from_x_0(jnp.asarray(X_0), x_t, CosineLogSNR(), T, edm(1.0))
    v = from_x_0(jnp.asarray(X_0), x_t, CosineLogSNR(), T, "v")
    np.testing.assert_allclose(f, -v, rtol=1e-4, atol=1e-4)


def test_edm_targets_have_unit_variance():
    """For data of standard deviation sigma_data, at every level: what the scaling is for."""
    rng = np.random.default_rng(1)
    x_0, eps = rng.standard_normal((2, 40_000, 1)).astype(np.float32)
    for schedule, t in ((Sigma(), 0.01), (Sigma(), 5.0), (VP(), 0.4)):
        alpha, sigma = schedule(jnp.asarray(t))
        x_t = alpha * 0.5 * x_0 + sigma * eps
        f = from_x_0(jnp.asarray(0.5 * x_0), x_t, schedule, jnp.asarray(t), edm(0.5))
        np.testing.assert_allclose(f.std(), 1.0, rtol=0.02)


def test_denoiser_reads_the_prediction():
    schedule, t = from_betas(linear_betas()), jnp.array([1, 500])
    x_0, eps = jnp.array([[0.5, -3.0], [2.0, 0.1]]), jnp.ones((2, 2))
    alpha, sigma = schedule(t)
    x_t = alpha[:, None] * x_0 + sigma[:, None] * eps
    denoise = denoiser(lambda x_t, t: eps, schedule)
    np.testing.assert_allclose(denoise(x_t, t), x_0, rtol=1e-4, atol=1e-4)


COV = np.array([[0.5, 0.3], [0.3, 0.4]])


def test_tweedie_gives_the_posterior_mean_of_a_gaussian():
    """From the gradient of log q(x_t) = N(alpha m, alpha^2 C + sigma^2 I), by autodiff."""
    data, schedule = Gaussian(np.array([0.5, -1.0]), COV), VP()
    x_t = jnp.asarray(RNG.standard_normal((6, 2)), jnp.float32)

    def log_q(x, t):
        alpha, sigma = schedule(t)
        d = x - alpha * jnp.asarray(data.mean, jnp.float32)
        return -0.5 * d @ jnp.linalg.solve(alpha**2 * jnp.asarray(COV) + sigma**2 * jnp.eye(2), d)

    score = jax.vmap(jax.grad(log_q))(x_t, T)
    want = data.denoiser(schedule)(x_t, T)
    np.testing.assert_allclose(tweedie(score, x_t, schedule, T), want, rtol=5e-3, atol=5e-3)


def test_tweedie_gives_the_posterior_covariance_of_a_gaussian():
    """(C^-1 + alpha^2/sigma^2 I)^-1, the product rule of normal densities."""
    data, schedule = Gaussian(np.array([0.5, -1.0]), COV), FlowMatching()
    got = tweedie_covariance(data.denoiser(schedule), jnp.asarray(X_0[:, :2]), schedule, T)
    for t, cov in zip(np.asarray(T, np.float64), got, strict=True):
        want = np.linalg.inv(np.linalg.inv(COV) + ((1 - t) / t) ** 2 * np.eye(2))
        np.testing.assert_allclose(cov, want, rtol=1e-3, atol=1e-4)


def test_tweedie_covariance_of_two_points_is_that_of_a_coin():
    """x_0 = +-1 with P(+1|x_t) = p: variance 4 p (1 - p), which no Gaussian formula gives."""
    data, schedule = Mixture(np.array([0.5, 0.5]), np.array([[1.0], [-1.0]]), 0.0), VP()
    x_t = jnp.asarray(RNG.standard_normal((6, 1)), jnp.float32)
    alpha, sigma = schedule(T)
    p = jax.nn.sigmoid(2 * alpha * x_t[:, 0] / sigma**2)
    got = tweedie_covariance(data.denoiser(schedule), x_t, schedule, T)[:, 0, 0]
    np.testing.assert_allclose(got, 4 * p * (1 - p), rtol=1e-3, atol=1e-5)
