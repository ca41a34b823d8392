"""The ends of time, one by one: clean data, pure noise, and a log-SNR that is infinite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxgen.diffusion.inverse_problems import diffusion_posterior_sampling, identity
from jaxgen.diffusion.likelihood import ode_log_likelihood
from jaxgen.diffusion.parameterization import (
    TARGETS,
    denoiser,
    edm,
    edm_network,
    from_x_0,
    target_of,
    to_x_0,
    tweedie_covariance,
)
from jaxgen.diffusion.process import Level, diffusion_squared, drift, rates
from jaxgen.diffusion.samplers import (
    ancestral,
    check_falling,
    ddim,
    ddim_inversion,
    sample,
)
from jaxgen.diffusion.schedules import (
    VE,
    VP,
    CosineLogSNR,
    DiscreteSchedule,
    FlowMatching,
    Interpolated,
    LinearLogSNR,
    LogSNR,
    Shifted,
    Sigma,
    SubVP,
    from_betas,
    karras_grid,
    linear_betas,
    log_snr_grid,
    log_snr_of_levels,
    noise_grid,
    respaced_times,
    uniform_grid,
)
from jaxgen.diffusion.solvers import (
    churned,
    corrected,
    dpm_solver_2m,
    dpm_solver_3m,
    euler,
    euler_maruyama,
    heun,
    unipc,
)
from jaxgen.losses.denoising import (
    bound_weighting,
    continuous_bound,
    denoising_loss,
    hybrid_loss,
    min_snr,
    truncated_snr,
    variational_bound,
)

MEAN, STD = 0.3, 0.5
LINEAR = from_betas(linear_betas())


def exact(schedule):
    """The denoiser of N(0.3, 0.5^2)."""

    def denoise(x_t, t):
        alpha, sigma = (c.reshape((-1,) + (1,) * (x_t.ndim - 1)) for c in schedule(t))
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        return MEAN + gain * (x_t - alpha * MEAN)

    return denoise


# --- schedules -----------------------------------------------------------------------------------


def test_shifted_flow_matching_is_the_time_shift_at_the_ends_too():
    """t' = m t/(1 + (m - 1) t) (Esser et al. 2024, eq. 23), whose rates have a closed form."""
    m = 3.0
    shifted, t = Shifted(FlowMatching(), -2 * np.log(m)), jnp.array([0.0, 0.25, 1.0])
    warped = m * t / (1 + (m - 1) * t)
    slope = m / (1 + (m - 1) * t) ** 2
    np.testing.assert_allclose(shifted(t).sigma, warped, atol=1e-6)
    np.testing.assert_allclose(shifted(t).alpha, 1 - warped, atol=1e-6)
    rate = rates(shifted, t)
    np.testing.assert_allclose(rate.sigma, slope, rtol=1e-5)
    np.testing.assert_allclose(rate.alpha, -slope, rtol=1e-5)


@pytest.mark.parametrize("shift", [-1.0, 2.0])
def test_a_shifted_log_snr_has_its_rates_and_its_weight(shift):
    """log SNR = 10 - 16 t + shift: -1/2 d(log SNR)/dt is 8 at every time, as without the shift."""
    shifted, t = Shifted(LogSNR(lambda t: 10 - 16 * t), shift), jnp.array([0.0, 0.3, 1.0])
    np.testing.assert_allclose(shifted(t).log_snr, 10 - 16 * t + shift, rtol=1e-4)
    np.testing.assert_allclose(bound_weighting()(shifted, t), 8.0, rtol=1e-4)
    inside = jnp.array([0.2, 0.5])
    np.testing.assert_allclose(shifted.time(shifted(inside).log_snr), inside, atol=1e-5)


def test_the_inverse_of_a_log_snr_has_a_derivative():
    time = LogSNR(lambda t: 10 - 16 * t - 2 * t**2).time
    t = time(jnp.float32(1.0))
    np.testing.assert_allclose(jax.grad(time)(jnp.float32(1.0)), -1 / (16 + 4 * t), rtol=1e-5)


def test_a_shift_keeps_every_curve():
    t = jnp.linspace(0, 1, 7)
    alpha, sigma = Shifted(VP(), -2.0)(t)
    np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-5)
    np.testing.assert_allclose(Shifted(VE(), 1.0)(t).alpha, 1)
    alpha, sigma = Shifted(SubVP(), -1.0)(t)
    np.testing.assert_allclose(sigma, 1 - alpha**2, atol=1e-6)
    log_snr = SubVP()(t[1:]).log_snr
    np.testing.assert_allclose(Shifted(SubVP(), -1.0)(t[1:]).log_snr, log_snr - 1, atol=1e-4)


def test_sub_vp_inverts_levels_of_any_noise():
    schedule = SubVP()
    for log_snr in (-60.0, -30.0, -18.5, -5.0, 0.0, 12.0, 25.0):
        t = schedule.time(jnp.float32(log_snr))
        beta = 0.05 * t + 0.5 * 19.9 * t**2 / 2  # -log alpha
        want = -2 * beta - 2 * np.log(-np.expm1(-2 * np.float64(beta)))
        np.testing.assert_allclose(want, log_snr, rtol=1e-4, atol=1e-3)


def test_the_rates_of_vp_at_clean_data():
    """g^2 = beta(t) and f = -beta(t)/2, while sigma = sqrt(beta_min t) begins vertically."""
    np.testing.assert_allclose(diffusion_squared(VP(), jnp.float32(0.0)), 0.1, rtol=1e-3)
    np.testing.assert_allclose(diffusion_squared(VP(), jnp.float32(1.0)), 20.0, rtol=1e-3)
    np.testing.assert_allclose(drift(VP(), jnp.float32(0.0)), -0.05, rtol=1e-5)
    assert rates(VP(), jnp.float32(0.0)).sigma == np.inf
    t = np.array([1e-5, 1e-3, 0.02, 0.3, 1.0])
    integral = 0.1 * t + 19.9 * t**2 / 2
    sigma = VP()(jnp.asarray(t, jnp.float32)).sigma
    np.testing.assert_allclose(sigma, np.sqrt(-np.expm1(-integral)), rtol=3e-6)


@pytest.mark.parametrize("schedule", [VP(), FlowMatching(), CosineLogSNR(), Sigma(), VE(), SubVP()])
def test_a_continuous_schedule_refuses_integers(schedule):
    with pytest.raises(TypeError, match="divide those of a discrete schedule"):
        schedule(np.array([3, 2, 1]))
    with pytest.raises(TypeError, match="real times"):
        sample(
            jax.random.key(0), exact(schedule), schedule, jnp.ones((2, 1)),
            respaced_times(1000, 5), ddim(),
        )  # fmt: skip


def test_a_discrete_schedule_refuses_what_is_not_among_its_times():
    for t in (-1, 1001, np.array([0, 1001])):
        with pytest.raises(ValueError, match=r"must be in 0\.\.1000"):
            LINEAR(t)
    with pytest.raises(TypeError, match="Interpolated"):
        LINEAR(0.5)
    assert np.isnan(jax.jit(lambda t: LINEAR(t).alpha)(jnp.array([-1, 1001]))).all()


# --- grids ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("power", [0.2, 0.5, 0.9, 1.0, 2.0, 5.0])
@pytest.mark.parametrize(("steps", "count"), [(10, 10), (10, 7), (1000, 50), (1000, 999), (3, 1)])
def test_respaced_times_differ_for_every_power(steps, count, power):
    times = respaced_times(steps, count, power)
    assert times[0] == steps
    assert times[-1] == 0
    assert len(times) == count + 1
    assert (np.diff(times) < 0).all()


@pytest.mark.parametrize("grid", [log_snr_grid, noise_grid])
def test_grids_of_noise_are_finite_and_reach_infinite_ends(grid):
    times = grid(FlowMatching(), 20, last=0.0)
    assert times[0] == 1
    assert times[-1] == 0
    assert (np.diff(times) < 0).all()
    space = (lambda r: np.log(r)) if grid is log_snr_grid else (lambda r: r ** (1 / 7))
    ratio = np.asarray(times[1:-1], np.float64) / (1 - np.asarray(times[1:-1], np.float64))
    np.testing.assert_allclose(np.diff(space(ratio), 2), 0, atol=2e-3)
    vp = grid(VP(), 20, last=0.0)
    assert np.isfinite(vp).all()
    assert (np.diff(vp) < 0).all()


def test_the_noise_grid_of_sigma_is_karras():
    """Their N levels and then 0, up to where the last of them stands: N steps to 0.002 or to 0."""
    levels = np.asarray(noise_grid(Sigma(), 17, last=0.002))
    np.testing.assert_allclose(levels, karras_grid(18)[:-1], rtol=1e-4)


# --- targets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", [*(t for t in TARGETS if t != "mu"), edm()])
def test_targets_at_clean_data(target):
    """x_0 is x_t whatever is predicted; of eps, whose mean is then 0, the estimate is 0."""
    schedule, t, x = FlowMatching(), jnp.zeros(2), jnp.array([[0.3], [-2.0]])
    np.testing.assert_allclose(
        to_x_0(7 * x, x, schedule, t, target), 7 * x if target == "x_0" else x
    )
    if target == "score":
        with pytest.raises(ValueError, match="infinite at clean data"):
            from_x_0(x, x, schedule, t, target)
        return
    want = {"eps": 0 * x, "x_0": x, "v": 0 * x, "velocity": -x}
    got = from_x_0(x, x, schedule, t, target)
    np.testing.assert_allclose(got, want[target] if isinstance(target, str) else 0 * x, atol=1e-7)


@pytest.mark.parametrize("target", ["x_0", "v", "velocity", edm()])
def test_targets_at_pure_noise(target):
    schedule, t = FlowMatching(), jnp.ones(2)
    x_0, eps = jnp.array([[0.3], [-2.0]]), jnp.array([[0.9], [0.1]])
    y = target_of(x_0, eps, schedule, t, target)
    np.testing.assert_allclose(to_x_0(y, eps, schedule, t, target), x_0, rtol=1e-5)
    np.testing.assert_allclose(from_x_0(x_0, eps, schedule, t, target), y, rtol=1e-5)


@pytest.mark.parametrize("target", ["eps", "score"])
def test_noise_says_nothing_of_the_data(key, target):
    schedule, x = FlowMatching(), jnp.ones((2, 1))
    with pytest.raises(ValueError, match="predict x_0, v, velocity or edm"):
        to_x_0(x, x, schedule, jnp.ones(2), target)
    network = lambda x_t, t: from_x_0(exact(schedule)(x_t, t), x_t, schedule, t, target)
    denoise = denoiser(network, schedule, target)
    draw = lambda first: jax.jit(
        lambda: sample(key, denoise, schedule, x, uniform_grid(8, first=first), ddim())
    )()
    with pytest.raises(ValueError, match="begin at a time before it"):
        draw(1.0)
    assert np.isfinite(draw(0.99)).all()
    with pytest.raises(ValueError, match="says nothing about x_0"):
        ode_log_likelihood(denoise, schedule, x)


def test_training_targets_need_no_division(key):
    """At t = 0 and 1 of flow matching the loss of the network that knows all is 0."""
    schedule, x_0, t = FlowMatching(), jnp.full((3, 4), 0.5), jnp.array([0.0, 0.5, 1.0])
    for target in ("eps", "v", "velocity", "x_0"):
        eps = jax.random.normal(key, x_0.shape)
        network = lambda x_t, t, target=target, eps=eps: target_of(x_0, eps, schedule, t, target)
        np.testing.assert_array_equal(
            denoising_loss(key, network, schedule, x_0, t, target=target), 0
        )


def test_the_inputs_of_edm_are_finite_at_the_ends():
    seen = []
    network = lambda x, c_noise: seen.append((x, c_noise)) or x
    for t in (0.0, 0.5, 1.0):
        edm_network(network, FlowMatching())(jnp.ones((2, 3)), jnp.full(2, t))
    assert np.isfinite([np.append(x, c) for x, c in seen]).all()
    np.testing.assert_allclose(seen[1][1], 0, atol=1e-6)  # ln(sigma/alpha)/4 at the middle
    assert seen[0][1][0] < -1 < 1 < seen[2][1][0]


# --- sampling ------------------------------------------------------------------------------------

LAST_STEPS = [
    (CosineLogSNR(), 20),
    (CosineLogSNR(12.0, -12.0), 10),
    (CosineLogSNR(12.0, -12.0), 50),
    (Shifted(CosineLogSNR(), 2.0), 20),
    (LinearLogSNR(12.0, -9.0), 20),
    (VP(), 20),
]


@pytest.mark.parametrize("make", [dpm_solver_2m, dpm_solver_3m, unipc, lambda: dpm_solver_2m(1.0)])
def test_a_last_step_that_is_much_longer_does_no_harm(key, make):
    """Even times of a cosine schedule end with a step of lambda seven times as long as the last."""
    draw = jax.jit(
        lambda schedule, x_T, times: sample(key, exact(schedule), schedule, x_T, times, make())
    )
    for schedule, count in LAST_STEPS:
        times = uniform_grid(count)
        at = schedule(times[0])
        eps = jax.random.normal(jax.random.key(1), (8000, 1))
        std = jnp.sqrt(at.alpha**2 * STD**2 + at.sigma**2)
        x = draw(schedule, at.alpha * MEAN + std * eps, jnp.asarray(times))
        stochastic = make not in (dpm_solver_2m, dpm_solver_3m, unipc)
        np.testing.assert_allclose(x.std(), STD, rtol=0.12 if stochastic else 0.06)
        np.testing.assert_allclose(x.mean(), MEAN, atol=0.03)


def test_euler_maruyama_refuses_infinite_noise(key):
    schedule, x = FlowMatching(), jnp.ones((2, 1))
    for solver in (euler_maruyama(), corrected(euler_maruyama()), churned(euler_maruyama(), 0.1)):
        with pytest.raises(ValueError, match=r"as at 0\.99, or use ancestral"):
            sample(key, exact(schedule), schedule, x, uniform_grid(8), solver)


def test_churn_leaves_pure_noise_as_it_is(key):
    schedule, x_T = FlowMatching(), jax.random.normal(key, (4000, 1))
    x = sample(key, exact(schedule), schedule, x_T, uniform_grid(40), churned(heun(), 0.2))
    np.testing.assert_allclose([x.mean(), x.std()], [MEAN, STD], atol=0.03)


@pytest.mark.parametrize("times", [[0.0, 0.5, 1.0], [1.0, 1.0, 0.0], [1.0, 0.5, -0.5]])
def test_times_must_fall(times):
    with pytest.raises(ValueError, match="fall"):
        check_falling(VP(), np.asarray(times, np.float32))


def test_inversion_into_pure_noise_is_exact(key):
    """Flow matching from t = 1: DDIM is affine for normal data, and so is its inverse."""
    schedule, times = FlowMatching(), uniform_grid(10)
    x_T = jax.random.normal(key, (16, 1))
    x = sample(key, exact(schedule), schedule, x_T, times, ddim())
    back = ddim_inversion(exact(schedule), schedule, x, times, 40)
    np.testing.assert_allclose(back, x_T, atol=2e-3)
    with pytest.raises(ValueError, match="give times between"):
        ddim_inversion(exact(schedule), schedule, x, [1.0, 0.0])


# --- likelihood ----------------------------------------------------------------------------------


def test_the_prior_is_that_of_the_schedules_end():
    """Sigma ends at 80, where N(0.3, 0.5^2) has become N(0.3, 80^2 + 0.5^2)."""
    schedule, x = Sigma(), jnp.linspace(-1.0, 1.5, 9)[:, None]
    found = ode_log_likelihood(exact(schedule), schedule, x, t_0=0.01)
    want = Gaussian(np.array([MEAN]), np.array([[STD**2 + 1e-4]])).log_prob(np.asarray(x, float))
    # The prior neglects the mean, 0.3 of 80, which is seen far from it.
    np.testing.assert_allclose(found.log_prob, want, atol=0.012)
    with pytest.raises(ValueError, match="give a later t_0"):
        ode_log_likelihood(exact(schedule), schedule, x, t_0=0.0)


@pytest.mark.parametrize(
    "schedule", [Shifted(FlowMatching(), -2.2), Shifted(LogSNR(lambda t: 12 - 24 * t), -1.0)]
)
def test_shifted_schedules_have_likelihoods(schedule):
    x = jnp.linspace(-1.0, 1.5, 9)[:, None]
    alpha, sigma = (float(c) for c in schedule(1e-3))
    found = ode_log_likelihood(exact(schedule), schedule, alpha * x)
    law = Gaussian(np.array([alpha * MEAN]), np.array([[(alpha * STD) ** 2 + sigma**2]]))
    np.testing.assert_allclose(
        found.log_prob, law.log_prob(alpha * np.asarray(x, float)), atol=5e-3
    )


def test_the_continuous_bound_refuses_clean_data(key):
    with pytest.raises(ValueError, match="log_snr_of_levels"):
        continuous_bound(key, exact(VP()), VP(), jnp.ones((2, 1)), jnp.full((3, 2), 0.5))


def test_the_start_for_256_levels_is_that_of_variational_diffusion_models():
    np.testing.assert_allclose(log_snr_of_levels(256), 13.3, atol=0.05)  # Kingma et al. 2021


# --- discrete schedules in continuous time -------------------------------------------------------


def test_interpolation_goes_through_the_table():
    view, i = Interpolated(LINEAR), np.arange(0, 1001, 25)
    got, want = view(jnp.asarray(i / 1000, jnp.float32)), LINEAR(i)
    np.testing.assert_allclose(got.alpha, want.alpha, atol=2e-6)
    np.testing.assert_allclose(got.sigma, want.sigma, atol=2e-6)
    t = jnp.linspace(0.0005, 0.9995, 100)
    np.testing.assert_allclose(view.time(view(t).log_snr), t, atol=1e-5)
    np.testing.assert_allclose(jnp.hypot(*view(t)), 1, rtol=1e-6)
    seen = view.network(lambda x, t: t)(jnp.ones(2), jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(seen, [0, 500])


def test_a_chain_of_1000_steps_is_the_variance_preserving_sde():
    """Interpolated linear betas against VP with beta_min = T beta_1, beta_max = T beta_T."""
    view, t = Interpolated(LINEAR), jnp.linspace(0.05, 1, 40)
    np.testing.assert_allclose(view(t).log_snr, VP()(t).log_snr, rtol=0.01, atol=0.02)
    np.testing.assert_allclose(
        diffusion_squared(view, t - 0.0005), diffusion_squared(VP(), t), rtol=0.03
    )


def test_a_ddpm_has_an_exact_likelihood():
    """A denoiser that takes steps 1..T, in continuous time: log p of N(0.3, 0.5^2)."""
    view = Interpolated(LINEAR)
    at_steps = lambda x_t, t: exact(view)(x_t, t / 1000)
    eps = lambda x_t, t: from_x_0(at_steps(x_t, t), x_t, view, t / 1000, "eps")
    denoise = denoiser(view.network(eps), view)
    alpha, sigma = (float(c) for c in view(1e-3))
    x = alpha * jnp.linspace(-1.0, 1.5, 9)[:, None]
    law = Gaussian(np.array([alpha * MEAN]), np.array([[(alpha * STD) ** 2 + sigma**2]]))
    found = ode_log_likelihood(denoise, view, x)
    # The prior neglects the mean that is left at T, 0.0064 of 0.3, which is seen far from it.
    np.testing.assert_allclose(found.log_prob, law.log_prob(np.asarray(x, float)), atol=0.012)


@pytest.mark.parametrize("solver", [euler(), heun(), churned(heun(), 0.1)])
def test_a_ddpm_is_sampled_in_continuous_time(key, solver):
    view, x_T = Interpolated(LINEAR), jax.random.normal(key, (8000, 1))
    x = sample(key, exact(view), view, x_T, uniform_grid(100), solver)
    np.testing.assert_allclose([x.mean(), x.std()], [MEAN, STD], atol=0.03)
    with pytest.raises(TypeError, match="Interpolated"):
        sample(key, exact(view), LINEAR, x_T, respaced_times(1000, 10), solver)


def test_a_curve_has_the_log_snr_it_is_asked_for():
    for schedule in (VP(), SubVP(), VE(), FlowMatching(), CosineLogSNR(), Sigma()):
        level = schedule.curve(Level(jnp.float32(3.0), jnp.float32(1.5)))
        np.testing.assert_allclose(level.log_snr, 2 * np.log(2), rtol=1e-5)


def test_ancestral_begins_in_pure_noise(key):
    """The first step from alpha = 0 forgets x_T: x_s = alpha_s x_0 + sigma_s z."""
    schedule = FlowMatching()
    x = sample(key, exact(schedule), schedule, jnp.full((8000, 1), 9.0), [1.0, 0.6], ancestral())
    np.testing.assert_allclose([x.mean(), x.std()], [0.4 * MEAN, 0.6], atol=0.03)


# --- more of the same kind -----------------------------------------------------------------------


def test_a_pure_cosine_runs_from_clean_data_to_pure_noise(key):
    schedule = CosineLogSNR(np.inf, -np.inf)
    level = schedule(jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(level.alpha[1], 0.0)
    np.testing.assert_array_equal(level.sigma[0], 0.0)
    x_T = jax.random.normal(key, (4000, 1))
    for solver in (ddim(), heun(), dpm_solver_2m()):
        x = sample(key, exact(schedule), schedule, x_T, uniform_grid(50), solver)
        np.testing.assert_allclose([x.mean(), x.std()], [MEAN, STD], atol=0.03)


def test_a_schedule_without_a_derivative_at_its_end_is_refused_by_what_needs_it(key):
    """log SNR = 2 log((1 - t)/t) has none at t = 1, but it has its levels."""
    schedule = LogSNR(lambda t: 2 * (jnp.log1p(-t) - jnp.log(t)))
    x = jax.random.normal(key, (4000, 1))
    draw = lambda solver: sample(key, exact(schedule), schedule, x, uniform_grid(50), solver)
    for solver in (euler(), heun(), churned(heun(), 0.1)):
        with pytest.raises(ValueError, match="use a solver that knows only levels"):
            draw(solver)
    np.testing.assert_allclose([draw(ddim()).mean(), draw(ddim()).std()], [MEAN, STD], atol=0.03)


def test_times_beyond_the_end_are_refused(key):
    """Steps of a thousand given as reals: every sample would be the mean of the data."""
    x, times = jnp.ones((2, 1)), respaced_times(1000, 5).astype(np.float32)
    with pytest.raises(ValueError, match="ends at time 1, and times begin at 1000"):
        sample(key, exact(VP()), VP(), x, times, ddim())


def test_eps_at_the_pure_noise_of_a_chain_is_refused_by_its_losses(key):
    alpha = np.linspace(1, 0, 101).astype(np.float32)
    chain, x_0 = DiscreteSchedule(alpha, np.sqrt(1 - alpha**2)), jnp.ones((4, 2))
    zero = lambda x, t: 0 * x
    with pytest.raises(ValueError, match="predict x_0, v, velocity or edm"):
        variational_bound(key, denoiser(zero, chain), chain, x_0)
    with pytest.raises(ValueError, match="predict x_0, v, velocity or edm"):
        jax.jit(lambda t: hybrid_loss(key, lambda x, t: (x, x), chain, x_0, t))(jnp.full(4, 100))
    assert np.isfinite(variational_bound(key, denoiser(zero, chain, "v"), chain, x_0).total()).all()
    loss = lambda how: denoising_loss(key, zero, chain, x_0, jnp.full(4, 100), weighting=how)
    with pytest.raises(ValueError, match="or leave out the weighting"):
        loss(truncated_snr())
    assert np.isfinite(loss(min_snr())).all()


def test_the_covariance_of_pure_noise_is_refused():
    flow = FlowMatching()
    with pytest.raises(ValueError, match="give a time before it"):
        tweedie_covariance(exact(flow), jnp.ones((2, 1)), flow, jnp.ones(2))


def test_posterior_sampling_of_a_chain_leaves_clean_data_as_they_are():
    x = jnp.array([[0.3], [0.9]])
    denoise = diffusion_posterior_sampling(exact(LINEAR), LINEAR, 0 * x, identity, 0.5)
    np.testing.assert_allclose(denoise(x, jnp.zeros(2, jnp.int32)), x)
