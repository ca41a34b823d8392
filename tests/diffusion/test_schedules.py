import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.process import diffusion_squared, drift
from jaxgen.diffusion.schedules import (
    VE,
    VP,
    CosineLogSNR,
    FlowMatching,
    LinearLogSNR,
    LogSNR,
    Shifted,
    Sigma,
    SubVP,
    cosine_betas,
    from_betas,
    karras_grid,
    linear_betas,
    log_snr_grid,
    respaced_times,
    scaled_linear_betas,
    sigmoid_betas,
    uniform_grid,
)
from jaxgen.losses.denoising import continuous_bound
from jaxgen.models.monotone import MonotoneLogSNR


def test_linear_schedule_is_the_papers():
    """Ho et al. 2020, section 4: 1e-4 to 0.02, and hardly any signal is left at T.

    They give L_T ~ 1e-5 bits/dim: for one dimension of unit second moment
    KL(q(x_T|x_0) || N(0, 1)) = (alpha-bar - log-terms ...) / 2 log 2.
    """
    beta = linear_betas()
    assert beta[0] == 1e-4
    assert beta[-1] == 0.02
    assert len(beta) == 1000
    alpha_bar = np.prod(1 - beta)
    kl_bits = 0.5 * (alpha_bar * 1.0 + (1 - alpha_bar) - 1 - np.log(1 - alpha_bar)) / np.log(2)
    assert 1e-5 < kl_bits < 5e-5
    np.testing.assert_allclose(from_betas(beta).alpha[-1] ** 2, alpha_bar, rtol=1e-5)


@pytest.mark.parametrize("steps", [10, 1000])
def test_cosine_schedule_is_its_formula(steps):
    """Nichol & Dhariwal 2021, eq. 17, away from the clipped end."""
    schedule = from_betas(cosine_betas(steps))
    t = np.arange(steps)
    f = lambda t: np.cos((t / steps + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(schedule.alpha[:-1] ** 2, f(t) / f(0), rtol=1e-4, atol=1e-7)
    assert cosine_betas(steps).max() <= 0.999


@pytest.mark.parametrize("betas", [linear_betas(), cosine_betas(), linear_betas(4, 0.1, 0.9)])
def test_tables_lose_nothing_in_float32(betas):
    schedule = from_betas(betas)
    alpha_bar = np.cumprod(1 - betas.astype(np.longdouble))
    np.testing.assert_allclose(schedule.alpha[1:], np.sqrt(alpha_bar), rtol=2e-7)
    np.testing.assert_allclose(schedule.sigma[1:], np.sqrt(1 - alpha_bar), rtol=2e-7)
    assert (schedule.alpha[0], schedule.sigma[0]) == (1, 0)
    assert (np.diff(schedule(np.arange(1, len(betas) + 1)).log_snr) < 0).all()


def test_schedules_can_be_indexed_under_jit():
    schedule = from_betas(linear_betas())
    t = jnp.array([0, 5, 1000])
    for alpha, sigma in (schedule(t), jax.jit(lambda t: schedule(t))(t)):
        np.testing.assert_array_equal(alpha, schedule.alpha[np.asarray(t)])
        np.testing.assert_array_equal(sigma, schedule.sigma[np.asarray(t)])


@pytest.mark.parametrize("bad", [[0.1, 1.0], [0.0, 0.1], [-0.1], [[0.1, 0.2]]])
def test_impossible_betas_are_refused(bad):
    with pytest.raises(ValueError, match="between 0 and 1"):
        from_betas(np.asarray(bad))


def test_respaced_times():
    np.testing.assert_array_equal(respaced_times(1000, 1000), np.arange(1000, -1, -1))
    for count in (1, 3, 100, 999):
        times = respaced_times(1000, count)
        assert (times[0], times[-1], len(times)) == (1000, 0, count + 1)
        assert (np.diff(times) < 0).all()
        assert np.ptp(np.diff(times)) <= 1  # evenly
    for count in (0, 1001):
        with pytest.raises(ValueError, match="sampling steps"):
            respaced_times(1000, count)


# --- continuous schedules ----------------------------------------------------------------------

CONTINUOUS = {
    "vp": VP(),
    "sub_vp": SubVP(),
    "ve": VE(),
    "sigma": Sigma(),
    "flow": FlowMatching(),
    "linear_log_snr": LinearLogSNR(),
    "cosine_log_snr": CosineLogSNR(),
    "any_log_snr": LogSNR(lambda t: 8 - 14 * t**3 - t),
    "shifted": Shifted(CosineLogSNR(), -2.0),
}
TIMES = np.linspace(0.02, 0.98, 25)


def beta_integral(t):
    """int_0^t beta(s) ds for beta from 0.1 to 20 (Song et al. 2021, eq. 33)."""
    return 0.1 * t + 0.5 * 19.9 * t**2


# alpha and sigma, drift f and squared diffusion g^2 from the papers, in float64.
PAPERS = {
    "vp": (
        lambda t: np.exp(-0.5 * beta_integral(t)),
        lambda t: np.sqrt(1 - np.exp(-beta_integral(t))),
        lambda t: -0.5 * (0.1 + 19.9 * t),
        lambda t: 0.1 + 19.9 * t,
    ),
    "sub_vp": (
        lambda t: np.exp(-0.5 * beta_integral(t)),
        lambda t: 1 - np.exp(-beta_integral(t)),
        lambda t: -0.5 * (0.1 + 19.9 * t),
        lambda t: (0.1 + 19.9 * t) * (1 - np.exp(-2 * beta_integral(t))),
    ),
    "ve": (
        np.ones_like,
        lambda t: 0.01 * 5000**t,
        np.zeros_like,
        lambda t: (0.01 * 5000**t) ** 2 * 2 * np.log(5000),
    ),
    "sigma": (np.ones_like, lambda t: t, np.zeros_like, lambda t: 2 * t),
    "flow": (lambda t: 1 - t, lambda t: t, lambda t: -1 / (1 - t), lambda t: 2 * t / (1 - t)),
}


@pytest.mark.parametrize("name", PAPERS)
def test_levels_drift_and_diffusion_are_the_papers(name):
    """Song et al. 2021, eq. 8-14 and appendix B; rectified flow by hand."""
    schedule, t = CONTINUOUS[name], jnp.asarray(TIMES, jnp.float32)
    got = (*schedule(t), drift(schedule, t), diffusion_squared(schedule, t))
    for value, formula in zip(got, PAPERS[name], strict=True):
        np.testing.assert_allclose(value, formula(TIMES), rtol=2e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_time_is_the_inverse_of_log_snr(name):
    schedule = CONTINUOUS[name]
    t = jnp.asarray(TIMES, jnp.float32)
    log_snr = schedule(t).log_snr
    assert (np.diff(log_snr) < 0).all()
    np.testing.assert_allclose(schedule.time(log_snr), t, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(schedule.time(log_snr[3]), t[3], rtol=1e-3, atol=1e-4)  # a scalar


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_sde_has_the_marginals_of_the_schedule(name):
    """Mean and variance of dx = f x dt + g dw follow m' = f m, v' = 2 f v + g^2: integrated by
    Runge-Kutta from one level they must arrive at another."""
    with jax.enable_x64(True):
        schedule = CONTINUOUS[name]
        times = jnp.linspace(0.1, 0.9, 401)
        rates = jax.jit(lambda t: (drift(schedule, t), diffusion_squared(schedule, t)))
        f, g2 = (np.asarray(c) for c in rates(times))
        h = times[2] - times[0]
        m, v = (float(c) for c in schedule(times[0]))
        v = v**2
        for i in range(0, 400, 2):
            slope = lambda j, m, v: (f[j] * m, 2 * f[j] * v + g2[j])
            k1 = slope(i, m, v)
            k2 = slope(i + 1, m + h / 2 * k1[0], v + h / 2 * k1[1])
            k3 = slope(i + 1, m + h / 2 * k2[0], v + h / 2 * k2[1])
            k4 = slope(i + 2, m + h * k3[0], v + h * k3[1])
            m += h / 6 * (k1[0] + 2 * k2[0] + 2 * k3[0] + k4[0])
            v += h / 6 * (k1[1] + 2 * k2[1] + 2 * k3[1] + k4[1])
        end = schedule(times[-1])
        np.testing.assert_allclose([m, np.sqrt(v)], [end.alpha, end.sigma], rtol=1e-5, atol=1e-7)


def test_diffusion_is_the_fall_of_the_log_snr():
    """g^2 = -sigma^2 d(log SNR)/dt, for every schedule."""
    for name, schedule in CONTINUOUS.items():
        t = jnp.asarray(0.4)
        fall = jax.grad(lambda t, s=schedule: s(t).log_snr)(t)
        got = diffusion_squared(schedule, t)
        np.testing.assert_allclose(got, -(schedule(t).sigma ** 2) * fall, rtol=1e-3, err_msg=name)


def test_log_snr_schedules_are_their_formulas():
    t = jnp.asarray(TIMES, jnp.float32)
    np.testing.assert_allclose(LinearLogSNR(10.0, -6.0)(t).log_snr, 10 - 16 * TIMES, atol=1e-4)
    # wide limits leave alpha = cos(pi t / 2)
    np.testing.assert_allclose(
        CosineLogSNR(30.0, -30.0)(t).alpha, np.cos(np.pi * TIMES / 2), atol=1e-5
    )
    ends = CosineLogSNR(15.0, -15.0)(jnp.array([0.0, 1.0])).log_snr
    np.testing.assert_allclose(ends, [15, -15], rtol=1e-3)


def test_shifting_moves_the_log_snr_and_stays_on_the_curve():
    t = jnp.asarray(TIMES, jnp.float32)
    moved = Shifted(CosineLogSNR(), -2.0)(t)
    np.testing.assert_allclose(moved.log_snr, CosineLogSNR()(t).log_snr - 2, atol=2e-3)
    np.testing.assert_allclose(moved.alpha**2 + moved.sigma**2, 1.0, rtol=1e-5)
    # Esser et al. 2024, eq. 23: for rectified flow it is a shift of time
    m = 3.0
    shifted = Shifted(FlowMatching(), -2 * np.log(m))(t)
    np.testing.assert_allclose(shifted.sigma, m * TIMES / (1 + (m - 1) * TIMES), rtol=1e-5)


def test_scaled_linear_and_sigmoid_are_their_formulas():
    beta = scaled_linear_betas(1000)
    np.testing.assert_allclose(np.diff(np.sqrt(beta)), np.diff(np.sqrt(beta)).mean(), rtol=1e-6)
    np.testing.assert_allclose([beta[0], beta[-1]], [0.00085, 0.012])
    alpha_bar = np.cumprod(1 - sigmoid_betas(1000))
    t = np.arange(1, 1001) / 1000
    logistic = lambda t: 1 / (1 + np.exp(-(6 * t - 3)))
    want = (logistic(1) - logistic(t)) / (logistic(1) - logistic(0))
    np.testing.assert_allclose(alpha_bar[:-1], want[:-1], rtol=1e-6)
    np.testing.assert_allclose(alpha_bar[499], 0.5, rtol=1e-6)  # by symmetry


def test_grids():
    np.testing.assert_allclose(uniform_grid(4), [1, 0.75, 0.5, 0.25, 0])
    sigma = karras_grid(18)
    # Karras et al. 2022, eq. 5, at i = 5 of N = 18
    want = (80 ** (1 / 7) + 5 / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(sigma[[0, 5, 17, 18]], [80, want, 0.002, 0])
    grid = log_snr_grid(VP(), 10)
    np.testing.assert_allclose(np.diff(VP()(grid).log_snr, n=2), 0, atol=5e-3)
    np.testing.assert_allclose((grid[0], grid[-1]), (1, 1e-3), rtol=1e-3)


def test_quadratic_times():
    times = respaced_times(1000, 10, power=2)
    np.testing.assert_array_equal(times, [1000, 810, 640, 490, 360, 250, 160, 90, 40, 10, 0])
    for count in (50, 300, 999, 1000):
        times = respaced_times(1000, count, power=2)
        assert (times[0], times[-1], len(times)) == (1000, 0, count + 1)
        assert (np.diff(times) < 0).all()


def test_a_learned_schedule_is_one_and_its_parameters_have_gradients(key):
    """Kingma et al. 2021, section 4.1: a monotone network for the log-SNR."""
    model, t = MonotoneLogSNR(hidden=16), jnp.linspace(0.05, 0.95, 9)
    variables = model.init(key, t)
    learned = lambda variables: LogSNR(lambda t: model.apply(variables, t))
    schedule = learned(variables)
    np.testing.assert_allclose(schedule.time(schedule(t).log_snr), t, atol=1e-3)
    assert (diffusion_squared(schedule, t) > 0).all()

    def loss(variables):
        x_0, denoise = jnp.ones((9, 2)), lambda x, t: 0.5 * x
        return continuous_bound(key, denoise, learned(variables), x_0, t[None]).total().mean()

    gradients = jax.tree.leaves(jax.grad(loss)(variables))
    assert all(np.isfinite(g).all() for g in gradients)
    assert all(np.abs(g).max() > 0 for g in gradients)
