import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture

from jaxgen.diffusion.parameterization import convert
from jaxgen.diffusion.samplers import VARIANCES
from jaxgen.diffusion.schedules import from_betas, linear_betas
from jaxgen.losses.denoising import (
    discretized_decoder,
    simple_loss,
    squared_error,
    uniform_times,
    variational_bound,
)

LINEAR = from_betas(linear_betas())


def test_a_network_that_answers_zero_has_loss_one(key):
    x_0 = jnp.zeros((4000, 4, 4, 1))
    loss = simple_loss(key, lambda x_t, t: jnp.zeros_like(x_t), LINEAR, x_0)
    assert loss.shape == (4000,)
    np.testing.assert_allclose(loss.mean(), 1.0, atol=4 * np.sqrt(2 / (4000 * 16)))


def test_the_true_noise_has_loss_zero(key):
    """For one data point the noise can be read off x_t."""
    x_0 = jnp.full((64, 3), 0.4)

    def network(x_t, t):
        return convert(x_0, x_t, LINEAR, t, "x_0", "eps")

    np.testing.assert_allclose(simple_loss(key, network, LINEAR, x_0), 0.0, atol=1e-4)


def test_the_exact_denoiser_has_the_smallest_possible_loss(key):
    """For data N(0, s^2), Var(eps|x_t) = alpha^2 s^2 / (alpha^2 s^2 + sigma^2); its mean over t."""
    data = Gaussian(np.zeros(1), np.array([[0.25]]))
    denoise = data.denoiser(LINEAR)
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 100_000))

    def network(x_t, t, scale=1.0):
        return scale * convert(denoise(x_t, t), x_t, LINEAR, t, "x_0", "eps")

    alpha2 = np.cumprod(1 - linear_betas())
    want = np.mean(0.25 * alpha2 / (0.25 * alpha2 + 1 - alpha2))
    loss = simple_loss(key, network, LINEAR, x_0).mean()
    np.testing.assert_allclose(loss, want, rtol=0.02)
    for scale in (0.9, 1.1):
        assert simple_loss(key, lambda x, t, s=scale: network(x, t, s), LINEAR, x_0).mean() > loss


def test_times_are_uniform_over_one_to_T(key):
    t = np.asarray(uniform_times(key, 50_000, 10))
    counts = np.bincount(t, minlength=11)
    assert counts[0] == 0
    np.testing.assert_allclose(counts[1:], 5000, atol=5 * np.sqrt(5000))


def vp_schedule(steps):
    """The VP process of Song et al. 2021, beta from 0.1 to 20 over [0, 1], cut into steps."""
    return from_betas(linear_betas(steps, 0.1 / steps, 20 / steps))


def test_the_bound_tends_to_the_negative_log_likelihood(key):
    """With the exact denoiser of a normal, and sigma_t^2 = beta_t, the gap falls like 1/T.

    (With beta-tilde_t it does not vanish for continuous data: that is the variance of the reverse
    step of a point mass, and half of the right one at t = 2 however large T is.)
    """
    data = Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]]))
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 4000))
    nll = -data.log_prob(np.asarray(x_0, np.float64)).mean()
    gaps = []
    for steps in (50, 200, 800):
        schedule = vp_schedule(steps)
        terms = variational_bound(
            key, data.denoiser(schedule), schedule, x_0, variance=VARIANCES["beta"]
        )
        gaps.append(float(terms.total().mean()) - nll)
    assert gaps[0] > gaps[1] > gaps[2] > -0.01
    assert gaps[1] < 0.5 * gaps[0]
    assert abs(gaps[2]) < 0.05


def test_the_bound_of_a_mixture_tends_to_its_negative_log_likelihood(key):
    data = Mixture(np.array([0.7, 0.3]), np.array([[0.5, 0.5], [-0.5, -0.3]]), 0.2)
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 4000))
    nll = -data.log_prob(np.asarray(x_0, np.float64)).mean()
    schedule = from_betas(linear_betas(1000, 1e-4, 0.02))
    terms = variational_bound(
        key, data.denoiser(schedule), schedule, x_0, variance=VARIANCES["beta"]
    )
    np.testing.assert_allclose(terms.total().mean(), nll, atol=0.05)


def test_discretized_bound_of_discrete_data_tends_to_its_entropy(key):
    """Values on a grid of 17 levels: -log p(x) is exact, no bin mass may leak, and the gap falls
    like 1/T with beta-tilde_t, since at small t each x_t has one possible x_0."""
    values = np.linspace(-1, 1, 17)[:, None]
    weights = np.exp(-2 * (values[:, 0] - 0.3) ** 2)
    weights /= weights.sum()
    data = Mixture(weights, values, 0.0)
    x_0 = data.sample(np.random.default_rng(0), 1000)
    nll = -np.log(weights)[data.nearest_mode(x_0)].mean()
    gaps = []
    for steps in (250, 1000, 4000):
        schedule = vp_schedule(steps)
        terms = variational_bound(
            key,
            data.denoiser(schedule),
            schedule,
            jnp.asarray(x_0),
            variance=VARIANCES["beta_tilde"],
            decoder=discretized_decoder(17),
        )
        gaps.append(float(terms.total().mean()) - nll)
        assert terms.diffusion.shape == (steps - 1, 1000)
        assert terms.diffusion.min() >= 0
    assert gaps[0] > 2 * gaps[1] > 4 * gaps[2]
    assert abs(gaps[2]) < 0.05


def test_the_prior_term_is_its_closed_form(key):
    """L_T = KL(N(a x, 1 - a^2) || N(0, 1)) with a^2 = alpha-bar_T."""
    x_0 = jnp.linspace(-1, 1, 7)[:, None]
    terms = variational_bound(key, lambda x, t: x, LINEAR, x_0)
    a2 = np.prod(1 - linear_betas())
    want = 0.5 * (a2 * np.asarray(x_0[:, 0]) ** 2 - a2 - np.log1p(-a2))
    np.testing.assert_allclose(terms.prior, want, rtol=1e-2)


def test_shapes_must_agree(key):
    with pytest.raises(AssertionError):
        squared_error(jnp.zeros((4, 3)), jnp.zeros((4, 1)))
    with pytest.raises(AssertionError):
        simple_loss(key, lambda x, t: x[:, :1], LINEAR, jnp.zeros((4, 3)))


def test_the_loss_of_a_batch_is_reproducible_from_its_key(key):
    x_0 = jax.random.normal(key, (8, 3))
    network = lambda x_t, t: 0.1 * x_t
    one, two = (simple_loss(key, network, LINEAR, x_0) for _ in range(2))
    other = simple_loss(jax.random.key(1), network, LINEAR, x_0)
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)
