import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.process import (
    Level,
    check_prior,
    diffuse,
    marginal,
    posterior_mean,
    posterior_variance,
    transition,
    transition_variance,
)
from jaxgen.diffusion.schedules import (
    VP,
    cosine_betas,
    from_betas,
    linear_betas,
    scaled_linear_betas,
)

BETAS = {"linear": linear_betas(), "cosine": cosine_betas(), "short": linear_betas(10, 0.05, 0.5)}


@pytest.fixture(params=BETAS, ids=str)
def beta(request):
    return BETAS[request.param]


def pairs(beta):
    """Levels of t = 2..T and of t - 1."""
    schedule = from_betas(beta)
    t = jnp.arange(2, schedule.steps + 1)
    return schedule(t), schedule(t - 1)


def test_transition_variance_of_neighbours_is_beta(beta):
    t, s = pairs(beta)
    np.testing.assert_allclose(transition_variance(t, s), beta[1:], rtol=2e-3)


def test_posterior_variance_of_neighbours_is_beta_tilde(beta):
    """Ho et al. 2020, eq. 7, evaluated in float64."""
    alpha_bar = np.cumprod(1 - beta)
    want = (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:]) * beta[1:]
    np.testing.assert_allclose(posterior_variance(*pairs(beta)), want, rtol=2e-3)


def test_posterior_mean_is_equation_7(beta):
    alpha_bar = np.cumprod(1 - beta)
    t, s = pairs(beta)
    n = len(beta) - 1
    x_t, x_0 = np.random.default_rng(0).standard_normal((2, n, 3)).astype(np.float32)
    on_x_0 = np.sqrt(alpha_bar[:-1]) * beta[1:] / (1 - alpha_bar[1:])
    on_x_t = np.sqrt(1 - beta[1:]) * (1 - alpha_bar[:-1]) / (1 - alpha_bar[1:])
    want = on_x_0[:, None] * x_0 + on_x_t[:, None] * x_t
    np.testing.assert_allclose(posterior_mean(x_t, x_0, t, s), want, rtol=2e-3, atol=2e-3)


def test_posterior_is_bayes_rule():
    """q(x_s|x_t, x_0) from the joint normal of (x_s, x_t) given x_0, for levels far apart."""
    t, s = Level(jnp.float32(0.3), jnp.float32(0.9)), Level(jnp.float32(0.8), jnp.float32(0.4))
    ratio = 0.3 / 0.8
    var_s, var_t, cov = 0.4**2, 0.9**2, ratio * 0.4**2
    x_t, x_0 = 0.7, -1.2
    mean = 0.8 * x_0 + cov / var_t * (x_t - 0.3 * x_0)
    got = posterior_mean(jnp.full((1, 1), x_t), jnp.full((1, 1), x_0), t, s)
    np.testing.assert_allclose(got, [[mean]], rtol=1e-5)
    np.testing.assert_allclose(posterior_variance(t, s), var_s - cov**2 / var_t, rtol=1e-5)


def test_a_chain_of_transitions_is_the_marginal(key):
    """q(x_t|x_0) by T small steps and by one: mean and variance."""
    schedule = from_betas(BETAS["short"])
    x_0 = jnp.full((40_000, 1), 1.5)
    x = x_0
    for t in range(1, schedule.steps + 1):
        x = transition(x, schedule(t), schedule(t - 1)).sample(jax.random.fold_in(key, t))
    want = marginal(x_0, schedule(schedule.steps))
    std = float(np.exp(want.log_std[0, 0]))
    np.testing.assert_allclose(x.mean(), want.mean[0, 0], atol=4 * std / 200)
    np.testing.assert_allclose(x.std(), std, rtol=0.015)


def test_marginal_is_what_diffuse_draws(key):
    level = Level(jnp.array([0.6, 0.1]), jnp.array([0.8, 0.99]))
    x_0 = jnp.stack([jnp.full((50_000,), 2.0), jnp.full((50_000,), -1.0)])
    x_t = diffuse(x_0, jax.random.normal(key, x_0.shape), level)
    want = marginal(x_0, level)
    np.testing.assert_allclose(x_t.mean(axis=1), want.mean[:, 0], atol=0.02)
    np.testing.assert_allclose(x_t.std(axis=1), np.exp(want.log_std[:, 0]), rtol=0.015)


def test_clean_data_has_no_posterior_variance():
    schedule = from_betas(linear_betas())
    one, zero = schedule(jnp.asarray(1)), schedule(jnp.asarray(0))
    assert posterior_variance(one, zero) == 0
    np.testing.assert_allclose(transition_variance(one, zero), 1e-4, rtol=1e-4)
    x = jnp.ones((1, 2))
    np.testing.assert_allclose(posterior_mean(x, 3 * x, one, zero), 3 * x, rtol=1e-6)


def test_wrong_shapes_are_refused():
    schedule = from_betas(linear_betas())
    with pytest.raises(AssertionError):
        diffuse(jnp.ones((2, 3)), jnp.ones((2, 3)), schedule(jnp.ones((3,), int)))
    with pytest.raises(AssertionError):
        diffuse(jnp.ones((2, 3)), jnp.ones((2, 1)), schedule(jnp.ones((2,), int)))


@pytest.mark.parametrize("steps", [10, 30, 100, 1000, 4000])
@pytest.mark.parametrize("betas", [linear_betas, scaled_linear_betas, cosine_betas])
def test_a_chain_of_any_length_ends_in_the_prior(steps, betas):
    """As much of the data is left at the end as of the paper's chain of 1000."""
    check_prior(from_betas(betas(steps)), steps)
    if steps >= 100 and betas is not cosine_betas:
        alpha = [from_betas(betas(n)).alpha[-1] for n in (steps, 1000)]
        np.testing.assert_allclose(alpha[0], alpha[1], rtol=0.4)


def test_a_schedule_that_ends_far_from_the_prior_is_refused():
    """The paper's betas over 100 steps: alpha_T^2 = prod(1 - beta) = 0.364."""
    schedule = from_betas(linear_betas(100, 1e-4, 0.02))
    with pytest.raises(ValueError, match=r"at t = 100 the schedule keeps 0\.6 .* noise of 0\.8"):
        check_prior(schedule, 100)
    with pytest.raises(ValueError, match="begins with noise alone"):
        check_prior(VP(), 0.5)
    jax.jit(lambda t: check_prior(VP(), t))(0.5)  # it is not known yet
