import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxgen.diffusion.inverse_problems import (
    blur,
    diffusion_posterior_sampling,
    downsample,
    grayscale,
    identity,
    masked,
    posterior_sampling,
    pseudoinverse_variance,
)
from jaxgen.diffusion.process import expand
from jaxgen.diffusion.samplers import ancestral, ddim, sample
from jaxgen.diffusion.schedules import (
    VE,
    VP,
    FlowMatching,
    from_betas,
    linear_betas,
    log_snr_grid,
    respaced_times,
)

LINEAR = from_betas(linear_betas())
N = 20_000
RNG = np.random.default_rng(0)
SKEWED = RNG.uniform(size=(3, 5)).astype(np.float32)  # no symmetry, so that a reflection shows
MASK = (RNG.uniform(size=(1, 4, 6, 1)) < 0.5).astype(np.float32)
OPERATORS = {
    "identity": identity,
    "masked": functools.partial(masked, mask=jnp.asarray(MASK)),
    "downsample": functools.partial(downsample, factor=2),
    "grayscale": grayscale,
    "blur": functools.partial(blur, kernel=SKEWED),
    "separable blur": functools.partial(blur, kernel=SKEWED[0]),
}
GAINS = {"identity": 1.0, "masked": 1.0, "downsample": 0.25, "grayscale": 0.447}


def as_matrix(operator, shape):
    """A, ``[m, n]``, of an operator of one image of ``shape [H, W, C]``."""
    n = int(np.prod(shape))
    columns = operator(jnp.eye(n).reshape(n, *shape))
    return np.asarray(columns, np.float64).reshape(n, -1).T


def normal(schedule, mean, variance):
    """E[x_0|x_t] for independent entries N(mean, variance)."""

    def denoise(x_t, t):
        alpha, sigma = (expand(k, x_t) for k in schedule(t))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def condition(mean, cov, A, noise_variance, y):
    """Mean and covariance of x_0 ~ N(mean, cov) given y = A x_0 + N(0, noise_variance I)."""
    gain = cov @ A.T @ np.linalg.inv(A @ cov @ A.T + noise_variance * np.eye(len(A)))
    return mean + gain @ (y - A @ mean), cov - gain @ A @ cov


# --- operators -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPERATORS)
def test_operators_are_linear_and_have_their_adjoint(name):
    operator = jax.jit(OPERATORS[name])
    x, z = RNG.standard_normal((2, 3, 4, 6, 3)).astype(np.float32)
    y, pull_back = jax.vjp(operator, x)
    both = 2 * np.asarray(y) - 3 * np.asarray(operator(z))
    np.testing.assert_allclose(operator(2 * x - 3 * z), both, rtol=1e-4, atol=1e-5)
    u = RNG.standard_normal(y.shape).astype(np.float32)
    np.testing.assert_allclose(np.vdot(u, y), np.vdot(pull_back(u)[0], x), rtol=1e-4)


def test_operators_are_those_of_numpy():
    x = RNG.standard_normal((2, 4, 6, 3)).astype(np.float32)
    np.testing.assert_array_equal(OPERATORS["identity"](x), x)
    np.testing.assert_array_equal(OPERATORS["masked"](x), x * MASK)
    squares = [[x[:, i : i + 2, j : j + 2].mean(axis=(1, 2)) for j in (0, 2, 4)] for i in (0, 2)]
    want = np.asarray(squares).transpose(2, 0, 1, 3)
    np.testing.assert_allclose(OPERATORS["downsample"](x), want, rtol=1e-5, atol=1e-6)
    want = x @ np.float32([[0.299], [0.587], [0.114]])
    np.testing.assert_allclose(OPERATORS["grayscale"](x), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kernel", [SKEWED, SKEWED[0], np.ones((7, 1)) / 7])
def test_blurs_are_circular_convolutions(kernel):
    """y[i, j] = sum_kl kernel[k, l] x[i - k + middle, j - l + middle]; 7 is more than the image."""
    x = RNG.standard_normal((2, 5, 6, 3)).astype(np.float32)
    full = np.outer(kernel, kernel) if kernel.ndim == 1 else kernel
    rows, columns = full.shape[0] // 2, full.shape[1] // 2
    want = sum(
        full[k, m] * np.roll(x, (k - rows, m - columns), axis=(1, 2))
        for k in range(full.shape[0])
        for m in range(full.shape[1])
    )
    np.testing.assert_allclose(blur(jnp.asarray(x), kernel), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", GAINS)
def test_gains_are_those_of_the_operators(name):
    """A A^T = c I, on the entries that are measured at all."""
    A = as_matrix(OPERATORS[name], (4, 6, 3))
    A = A[np.abs(A).sum(axis=1) > 0]
    np.testing.assert_allclose(A @ A.T, GAINS[name] * np.eye(len(A)), atol=5e-4)


@pytest.mark.parametrize(
    ("operator", "match"),
    [
        (functools.partial(downsample, factor=4), "does not divide"),
        (lambda x: grayscale(x[..., :2]), "3 channels"),
        (functools.partial(blur, kernel=np.ones((2, 3))), "odd"),
        (functools.partial(blur, kernel=np.ones(4)), "odd"),
    ],
)
def test_operators_refuse_what_they_cannot_do(operator, match):
    with pytest.raises(ValueError, match=match):
        operator(jnp.zeros((1, 4, 6, 3)))


# --- the guided denoiser is the exact one ----------------------------------------------------


@pytest.mark.parametrize("name", GAINS)
@pytest.mark.parametrize("noise_variance", [0.0, 0.2])
def test_pseudoinverse_guidance_of_independent_normal_data_is_exact(name, noise_variance):
    """With A A^T = c I it is E[x_0|x_t, y], by the conditioning formula in NumPy."""
    mean, v, shape = 0.2, 0.5, (4, 2, 3)
    operator = {**OPERATORS, "masked": functools.partial(masked, mask=MASK[:, :, :2])}[name]
    A = as_matrix(operator, shape)
    measured = np.abs(A).sum(axis=1) > 0
    gain = (A @ A.T)[measured][0, measured][0]
    t = jnp.asarray([0.02, 0.3, 0.6, 0.95])
    x_t, truth = RNG.standard_normal((2, len(t), *shape)).astype(np.float32)
    y = operator(truth)
    for schedule in (VP(), VE(), FlowMatching()):
        variance = pseudoinverse_variance(noise_variance, gain, v)
        prior = normal(schedule, mean, v)
        got = jax.jit(posterior_sampling(prior, schedule, y, operator, variance))(x_t, t)
        for i in range(len(t)):
            alpha, sigma = (float(k) for k in schedule(t[i]))
            r2 = v * sigma**2 / (v * alpha**2 + sigma**2)
            estimate = np.asarray(prior(x_t, t)[i], np.float64).ravel()
            want, _ = condition(
                estimate,
                r2 * np.eye(A.shape[1]),
                A[measured],
                noise_variance,
                np.asarray(y[i]).ravel()[measured],
            )
            np.testing.assert_allclose(np.ravel(got[i]), want, rtol=5e-3, atol=5e-3)


def test_the_paper_s_variance_is_that_of_unit_data():
    level = VE()(jnp.asarray([0.3, 0.7]))
    want = 0.1 + np.asarray(level.sigma) ** 2 / (1 + np.asarray(level.sigma) ** 2)
    np.testing.assert_allclose(pseudoinverse_variance(0.1)(level), want, rtol=1e-6)


def test_no_level_gives_nan():
    """Clean data, nearly clean data and pure noise, y measured without noise."""
    t = jnp.asarray([0.0, 1e-6, 0.5, 1.0])
    x_t, y = jnp.ones((4, 2)), jnp.full((4, 2), 0.3)
    prior, variance = normal(FlowMatching(), 0.0, 1.0), pseudoinverse_variance()
    guided = jax.jit(posterior_sampling(prior, FlowMatching(), y, identity, variance))(x_t, t)
    want = np.asarray([1.0, 0.3, 0.3, 0.0])[:, None]  # y wherever there is a gradient towards it
    np.testing.assert_allclose(guided, np.broadcast_to(want, (4, 2)), atol=1e-4)


# --- samples of the posterior ----------------------------------------------------------------


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def draw(key, guide, schedule, solver, x_T, times):
    return sample(key, guide(normal(schedule, MEAN, V)), schedule, x_T, times, solver)


MEAN, V = np.float32([[0.5, -0.2, 0.0]]), np.float32([[0.4, 0.1, 1.0]])  # of the data
SCALE, NOISE = np.float32([[2.0, 1.0, 0.5]]), 0.05  # y = SCALE x_0 + N(0, NOISE)
Y = np.float32([[1.8, 0.3, -0.6]])


def exact_variance(level):
    """sigma_y^2 + A^2 V_t, for each entry: the exact variance of y given x_t, ``[B, 3]``."""
    alpha, sigma = (k[:, None] for k in level)
    return NOISE + SCALE**2 * V * sigma**2 / (alpha**2 * V + sigma**2)


@pytest.mark.parametrize("solver", [ddim(), ancestral()], ids=["ddim", "ancestral"])
def test_samples_have_the_mean_and_variance_of_the_posterior(key, solver):
    def guide(denoise):
        y = jnp.broadcast_to(Y, (N, 3))
        return posterior_sampling(denoise, VP(), y, lambda x: SCALE * x, exact_variance)

    z = jax.random.normal(key, (N, 3))
    z = (z - z.mean(axis=0, keepdims=True)) / z.std(axis=0, keepdims=True)  # ddim is affine
    times = jnp.append(log_snr_grid(VP(), 400), 0.0)
    x = draw(jax.random.key(6), guide, VP(), solver, z, times)
    precision = 1 / V[0] + SCALE[0] ** 2 / NOISE
    mean = (MEAN[0] / V[0] + SCALE[0] * Y[0] / NOISE) / precision
    np.testing.assert_allclose(x.mean(axis=0), mean, atol=0.012)
    np.testing.assert_allclose(x.var(axis=0), 1 / precision, rtol=0.05)


def test_what_is_measured_without_noise_conditions_what_correlates_with_it(key):
    """One entry of a correlated pair is known: exactly what inpainting by replacement misses."""
    data = Gaussian(np.zeros(2), np.array([[1.0, 0.9], [0.9, 1.0]]))
    mask, n = jnp.asarray([[1, 0]]), 4000

    def variance(level):  # of the known entry given x_t
        alpha, sigma = (k.astype(jnp.float32) for k in level)
        precise = [lam * sigma**2 / (alpha**2 * lam + sigma**2) for lam in (1.9, 0.1)]
        return 0.5 * (precise[0] + precise[1])

    y = jnp.tile(jnp.asarray([[1.2, 0.0]]), (n, 1))
    guided = posterior_sampling(
        data.denoiser(LINEAR), LINEAR, y, functools.partial(masked, mask=mask), variance
    )
    times = respaced_times(1000, 200)
    x_T = jax.random.normal(key, (n, 2))
    x = jax.jit(lambda x_T: sample(key, guided, LINEAR, x_T, times, ancestral()))(x_T)
    mean, cov = condition(np.zeros(2), data.cov, np.eye(2)[:1], 0.0, np.array([1.2]))
    np.testing.assert_allclose(x[:, 0], np.full(n, 1.2), atol=5e-3)
    np.testing.assert_allclose(x[:, 1].mean(), mean[1], atol=0.03)
    np.testing.assert_allclose(x[:, 1].var(), cov[1, 1], atol=0.02)


# --- DPS -------------------------------------------------------------------------------------


def test_an_ancestral_step_is_that_of_algorithm_1(key):
    """x_{t-1} of the prior, minus zeta/||y - A x_0|| times the gradient of ||y - A x_0||^2."""
    zeta, operator = 0.7, OPERATORS["downsample"]
    prior = lambda x_t, t: jnp.tanh(x_t) + 0.1 * x_t**2
    x_t = jax.random.normal(key, (3, 4, 6, 3))
    y = operator(jax.random.normal(jax.random.key(1), x_t.shape))

    def step(denoise, times):
        return sample(jax.random.key(2), denoise, LINEAR, x_t, times, ancestral())

    def squared(x):
        residual = y - operator(prior(x, None))
        return (residual.reshape(3, -1) ** 2).sum(axis=1)

    @jax.jit
    def both(times):
        size = (zeta / jnp.sqrt(squared(x_t)))[:, None, None, None]
        want = step(prior, times) - size * jax.grad(lambda x: squared(x).sum())(x_t)
        return want, step(diffusion_posterior_sampling(prior, LINEAR, y, operator, zeta), times)

    for t in (1, 2, 300, 1000):
        want, got = both(np.array([t, t - 1]))
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_dps_has_no_step_where_the_measurement_is_met():
    y = jnp.zeros((2, 4))
    guided = jax.jit(diffusion_posterior_sampling(lambda x, t: x, LINEAR, y, identity))
    np.testing.assert_array_equal(guided(y, jnp.full((2,), 500)), y)


def test_dps_brings_samples_to_the_measurement(key):
    y, x_T = jnp.full((500, 3), 0.8), jax.random.normal(key, (500, 3))
    guided = diffusion_posterior_sampling(normal(LINEAR, 0.0, 1.0), LINEAR, y, identity, 0.02)
    times = respaced_times(1000, 1000)
    x = jax.jit(lambda x_T: sample(key, guided, LINEAR, x_T, times, ancestral()))(x_T)
    assert np.abs(x - y).mean() < 0.1  # 0.98 without guidance


def test_dps_needs_the_steps_of_a_discrete_schedule():
    guided = diffusion_posterior_sampling(lambda x, t: x, VP(), jnp.ones((1, 2)), identity)
    with pytest.raises(TypeError, match="discrete"):
        guided(jnp.ones((1, 2)), jnp.ones(1))


def test_measurements_of_another_shape_are_refused():
    guided = posterior_sampling(
        lambda x, t: x, VP(), jnp.ones((1, 2, 2, 1)), identity, pseudoinverse_variance()
    )
    with pytest.raises(AssertionError):
        guided(jnp.ones((1, 4, 4, 1)), jnp.ones(1))


def test_the_step_size_and_the_noise_may_be_traced():
    x_t, y, t = jnp.ones((2, 3)), jnp.zeros((2, 3)), jnp.full((2,), 500)

    def by_variance(v):
        variance = pseudoinverse_variance(v)
        return posterior_sampling(lambda x, t: x, LINEAR, y, identity, variance)(x_t, t)

    def by_step(zeta):
        return diffusion_posterior_sampling(lambda x, t: x, LINEAR, y, identity, zeta)(x_t, t)

    values = jnp.asarray([0.1, 1.0])
    for function in (by_variance, by_step):
        function = jax.jit(function)
        each = np.stack([function(value) for value in values])
        np.testing.assert_allclose(jax.vmap(function)(values), each, rtol=1e-5)
