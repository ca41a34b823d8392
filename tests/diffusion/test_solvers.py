"""Every solver: right marginals of data with exact denoisers, and its order of convergence."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import WELL, Mixture

from jaxgen.diffusion.process import posterior_mean, transition_variance
from jaxgen.diffusion.samplers import ancestral, ddim, evaluations, sample
from jaxgen.diffusion.schedules import (
    VE,
    VP,
    CosineLogSNR,
    FlowMatching,
    Sigma,
    SubVP,
    from_betas,
    karras_grid,
    linear_betas,
    log_snr_grid,
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
    integration_weights,
    moments,
    unipc,
)

LINEAR = from_betas(linear_betas())


def to_clean(grid):
    return np.append(np.asarray(grid), 0.0)


COSINE_GRID = log_snr_grid(CosineLogSNR(), 60, 1.0, 0.0)
FINE_GRID = log_snr_grid(CosineLogSNR(), 300, 1.0, 0.0)
# (schedule, times, solver): each with as many steps as make its bias smaller than the noise
SOLVERS = {
    "ancestral beta-tilde": (LINEAR, respaced_times(1000, 500), ancestral()),
    "ddim": (LINEAR, respaced_times(1000, 300), ddim()),
    "ddim quadratic": (LINEAR, respaced_times(1000, 120, power=2), ddim()),
    "ddim eta 1/2": (CosineLogSNR(), uniform_grid(300), ddim(0.5)),
    "euler, flow": (FlowMatching(), uniform_grid(300), euler()),
    "euler, sigma": (Sigma(), karras_grid(300), euler()),
    "heun, sigma": (Sigma(), karras_grid(40), heun()),
    "heun, churned": (Sigma(), karras_grid(100), churned(heun(), 0.1, 0.05, 50.0)),
    "heun, flow": (FlowMatching(), uniform_grid(60), heun()),
    "euler-maruyama, vp": (VP(), to_clean(uniform_grid(600, last=0.02) ** 1.5), euler_maruyama()),
    "dpm-solver++ 2m": (CosineLogSNR(), COSINE_GRID, dpm_solver_2m()),
    "dpm-solver++ 2m, discrete": (LINEAR, respaced_times(1000, 100), dpm_solver_2m()),
    "dpm-solver++ 2m sde": (CosineLogSNR(), FINE_GRID, dpm_solver_2m(1.0)),
    "dpm-solver++ 3m": (CosineLogSNR(), COSINE_GRID, dpm_solver_3m()),
    "unipc 2": (CosineLogSNR(), COSINE_GRID, unipc(2)),
    "unipc 3": (CosineLogSNR(), COSINE_GRID, unipc(3)),
    "predictor-corrector, vp": (
        VP(),
        to_clean(uniform_grid(500, last=0.02) ** 2),
        corrected(euler_maruyama(), 1, 0.1),
    ),
    "predictor-corrector, ve": (
        VE(0.01, 50.0),
        to_clean(uniform_grid(200)),
        corrected(ancestral(), 1, 0.1),
    ),
    "ancestral, sub-vp": (SubVP(), to_clean(uniform_grid(300, last=0.02) ** 1.5), ancestral()),
}


@functools.partial(jax.jit, static_argnums=(1, 2), compiler_options=WELL)
def draw(key, name, shape, data):
    schedule, times, solver = SOLVERS[name]
    if isinstance(schedule, VE):  # clean data are not on its curve
        times = times[:-1]
    key_start, key = jax.random.split(key)
    denoise = data.denoiser(schedule)
    x_T = schedule(times[0]).sigma * jax.random.normal(key_start, shape)
    x = sample(key, denoise, schedule, x_T, times, solver)
    return denoise(x, jnp.full(shape[:1], times[-1])) if isinstance(schedule, VE) else x


jax.tree_util.register_dataclass(Mixture, ["weights", "means", "std"], [])


OTHERS = (  # of a solver that is there with another schedule, spacing or order
    "ddim quadratic",
    "ddim eta 1/2",
    "euler, sigma",
    "heun, flow",
    "dpm-solver++ 2m, discrete",
    "unipc 3",
    "predictor-corrector, ve",
    "ancestral, sub-vp",
)
CASES = [
    pytest.param(name, dim, marks=pytest.mark.slow if dim == 64 and name in OTHERS else ())
    for name in SOLVERS
    for dim in (2, 64)
]


@pytest.mark.parametrize(("name", "dim"), CASES)
def test_marginals(key, name, dim):
    """A point, a Gaussian and a mixture of three, through one compiled program."""
    n = 4000 if dim == 2 else 500
    rng = np.random.default_rng(0)
    centre = np.tile([0.5, -0.7], dim // 2)
    directions = np.linalg.qr(rng.standard_normal((dim, 2)))[0].T
    modes = np.stack([3 * directions[0], -3 * directions[0], 3 * directions[1]])
    std = np.tile([0.6, 0.3], dim // 2)
    even = np.ones(3) / 3

    def one(weights, means, std):
        data = Mixture(*(jnp.asarray(v, jnp.float32) for v in (weights, means, std)))
        return np.asarray(draw(key, name, (n, dim), data), np.float64)

    point = one(even, np.tile(centre, (3, 1)), 0 * std)
    np.testing.assert_allclose(point, np.tile(centre, (n, 1)), atol=0.02)

    x = one(even, np.tile(centre, (3, 1)), std)
    error = 4 / np.sqrt(n)  # four standard errors
    np.testing.assert_allclose(x.mean(axis=0), centre, atol=error * 0.6 + 0.01)
    cov = np.cov(x.T) / np.outer(std, std)
    np.testing.assert_allclose(np.diag(cov).mean(), 1.0, atol=error * np.sqrt(2 / dim) + 0.03)
    off = cov - np.diag(np.diag(cov))
    assert np.sqrt((off**2).sum() / dim / (dim - 1)) < 1.2 / np.sqrt(n) + 0.01

    data = Mixture(np.array([0.6, 0.3, 0.1]), modes, std)
    x = one(data.weights, modes, std)
    mode = data.nearest_mode(x)
    np.testing.assert_allclose(np.bincount(mode, minlength=3) / n, data.weights, atol=error / 2)
    for k in range(3):
        inside = x[mode == k]
        error = 4 / np.sqrt(len(inside))
        np.testing.assert_allclose(inside.mean(axis=0), modes[k], atol=error * 0.6 + 0.01)
        ratio = (inside.var(axis=0) / std**2).mean()
        np.testing.assert_allclose(ratio, 1.0, atol=error * np.sqrt(2 / dim) + 0.03)


# --- order of convergence ------------------------------------------------------------------------

ORDER_DATA = Mixture(np.array([0.3, 0.7]), np.array([[0.9], [-0.7]]), 0.4)


def flow(schedule, x_t, t, s):
    """In one dimension the probability flow keeps the quantiles: F_s(x_s) = F_t(x_t)."""

    def log_odds(x, time):
        alpha, sigma = schedule(time)
        z = (x - alpha * ORDER_DATA.means.T) / jnp.sqrt(alpha**2 * ORDER_DATA.std**2 + sigma**2)
        below, above = (
            (ORDER_DATA.weights[None] * jax.scipy.stats.norm.cdf(sign * z)).sum(axis=1)
            for sign in (1, -1)
        )
        return jnp.log(below / above)

    want, low, high = log_odds(x_t, t), -20.0 + 0 * x_t[:, 0], 20.0 + 0 * x_t[:, 0]
    for _ in range(60):
        middle = 0.5 * (low + high)
        smaller = log_odds(middle[:, None], s) < want
        low, high = jnp.where(smaller, middle, low), jnp.where(smaller, high, middle)
    return low[:, None]


def errors(solver, schedule, first, last, counts, start):
    """The error at ``last`` of the flow from ``first``, for each number of steps."""
    found = []
    level = schedule(first)
    x_T = level.alpha * jnp.linspace(-1.5, 1.5, 7)[:, None] + level.sigma * 0.7
    truth = flow(schedule, x_T, first, last)
    denoise = ORDER_DATA.denoiser(schedule)
    for n in counts:
        times = start(log_snr_grid(schedule, n, first, last), n)
        x = sample(jax.random.key(0), denoise, schedule, x_T, times, solver)
        found.append(float(jnp.sqrt(jnp.mean((x - truth) ** 2))))
    return np.asarray(found)


def short_start(grid, n):
    """Splits the first step in three, of lengths n^-2 and n^-1 times its own and the rest, so that
    the first two steps, which know too few values for order 3, do no harm."""
    first, second = grid[0], grid[1]
    extra = first + (second - first) * jnp.array([1 / n**2, 1 / n])
    return jnp.concatenate([grid[:1], extra, grid[1:]])


CONVERGENCE = {
    "euler": (euler(), 1, None),
    "ddim": (ddim(), 1, None),
    "heun": (heun(), 2, None),
    "dpm-solver++ 2m": (dpm_solver_2m(), 2, None),
    "dpm-solver++ 3m": (dpm_solver_3m(), 3, short_start),
    "unipc 1": (unipc(1), 2, None),
    "unipc 2": (unipc(2), 3, short_start),
}
CURVES = {"vp": (VP(), 0.9, 0.05), "flow": (FlowMatching(), 0.9, 0.1)}


@pytest.mark.parametrize("curve", ["vp", pytest.param("flow", marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", CONVERGENCE)
def test_order_of_convergence(name, curve):
    """The slope of log error over log steps, from four step counts, in float64."""
    solver, order, start = CONVERGENCE[name]
    with jax.enable_x64(True):
        counts = (40, 80, 160, 320)
        error = errors(solver, *CURVES[curve], counts, start or (lambda grid, n: grid))
    slopes = np.log2(error[:-1] / error[1:])
    np.testing.assert_allclose(slopes.mean(), order, atol=0.2)
    np.testing.assert_allclose(slopes[-1], order, atol=0.2)


def test_order_of_the_ancestral_mean():
    """E[x_s] under ancestral sampling, by carrying the density of x through each normal step on a
    grid: the error of the mean falls like 1/T."""
    with jax.enable_x64(True):
        schedule, first, last = CosineLogSNR(), 0.9, 0.1
        grid = jnp.linspace(-5.0, 5.0, 1201)[:, None]
        denoise, found = ORDER_DATA.denoiser(schedule), []
        zero = jnp.zeros(())

        @jax.jit
        def carry(p, t, s):
            at, to = schedule(t), schedule(s)
            mean = posterior_mean(grid, denoise(grid, jnp.full(len(grid), t)), at, to)
            kernel = jnp.exp(-0.5 * (grid.T - mean) ** 2 / transition_variance(at, to))
            return (p[:, None] * kernel / kernel.sum(axis=1, keepdims=True)).sum(axis=0)

        at, to = schedule(first + zero), schedule(last + zero)
        std = jnp.sqrt(at.alpha**2 * ORDER_DATA.std**2 + at.sigma**2)
        start = jnp.exp(-0.5 * ((grid - at.alpha * ORDER_DATA.means.T) / std) ** 2)
        start = (start * ORDER_DATA.weights[None]).sum(axis=1)
        for n in (5, 10, 20, 40):
            times, p = log_snr_grid(schedule, n, first, last), start / start.sum()
            for t, s in itertools.pairwise(times):
                p = carry(p, t, s)
            true = to.alpha * (ORDER_DATA.weights @ ORDER_DATA.means)[0]
            found.append(abs(float((p * grid[:, 0]).sum() - true)))
    slopes = np.log2(np.array(found[:-1]) / np.array(found[1:]))
    np.testing.assert_allclose(slopes[-1], 1.0, atol=0.15)


# --- identities ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [FlowMatching(), Sigma()], ids=["flow", "sigma"])
def test_euler_is_ddim_where_time_is_sigma_over_alpha_or_straight(key, schedule):
    """On straight paths and for alpha = 1 the two first-order steps are the same."""
    data = Mixture(np.array([0.5, 0.5]), np.array([[1.0, 0.0], [-1.0, 0.5]]), 0.3)
    x_T = schedule(1.0).sigma * jax.random.normal(key, (20, 2))
    a, b = (
        sample(key, data.denoiser(schedule), schedule, x_T, uniform_grid(7), solver)
        for solver in (euler(), ddim())
    )
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_first_step_of_the_multistep_solvers_is_ddims(key):
    data, x_T = Mixture(np.ones(1), np.ones((1, 2)), 0.5), jax.random.normal(key, (20, 2))
    step = lambda solver: sample(key, data.denoiser(VP()), VP(), x_T, [0.9, 0.6], solver)
    for solver in (dpm_solver_2m(), dpm_solver_3m(), unipc(2)):
        np.testing.assert_allclose(step(solver), step(ddim()), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(  # and its SDE form's is ancestral: the same key, the same noise
        step(dpm_solver_2m(1.0)), step(ancestral()), rtol=1e-4, atol=1e-5
    )


def test_moments_are_their_integrals():
    v, w = np.polynomial.legendre.leggauss(60)
    v, w = (v + 1) / 2, w / 2
    for h in (1e-4, 0.03, 0.7, 1.0, 1.3, 6.0):
        want = [(w * h * np.exp(h * (v - 1)) * v**k).sum() for k in range(4)]
        np.testing.assert_allclose(jnp.stack(moments(jnp.float32(h), 4)), want, rtol=2e-5)


def test_integration_weights_are_exact_for_polynomials():
    """int_0^1 h e^(h (v-1)) p(v) dv for p of degree 2 through three nodes, one ahead."""
    v, w = np.polynomial.legendre.leggauss(40)
    v, w = (v + 1) / 2, w / 2
    nodes, p = np.array([1.0, 0.0, -1.7]), np.poly1d([0.3, -1.1, 0.8])
    for h in (0.05, 2.0):
        weights = np.stack(integration_weights(jnp.float32(h), [jnp.float32(r) for r in nodes]))
        np.testing.assert_allclose(
            weights @ p(nodes), (w * h * np.exp(h * (v - 1)) * p(v)).sum(), rtol=1e-4
        )


def test_without_churn_a_churned_solver_is_itself(key):
    data, x_T = Mixture(np.ones(1), np.ones((1, 2)), 0.5), 80 * jax.random.normal(key, (20, 2))
    draw = lambda solver: sample(key, data.denoiser(Sigma()), Sigma(), x_T, karras_grid(10), solver)
    np.testing.assert_allclose(draw(churned(heun(), 0.0)), draw(heun()), rtol=1e-4, atol=1e-5)
    out_of_range = churned(heun(), 0.4, low=100.0)
    np.testing.assert_allclose(draw(out_of_range), draw(heun()), rtol=1e-4, atol=1e-5)


# --- cost ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("solver", "times", "want"),
    [
        (ddim(), uniform_grid(10), 10),
        (heun(), karras_grid(18), 35),  # Karras et al. 2022: 2N - 1
        (heun(), uniform_grid(10, last=0.1), 20),
        (dpm_solver_2m(), uniform_grid(10), 10),
        (unipc(3), uniform_grid(10), 10),
        (corrected(euler_maruyama(), 2), uniform_grid(10), 28),
        (churned(heun(), 0.1), karras_grid(18), 35),
    ],
)
def test_evaluations_are_those_made(key, solver, times, want):
    """Counted where they happen, at run time."""
    made = []

    def denoise(x_t, t):
        jax.debug.callback(lambda: made.append(1))
        return 0.5 * x_t

    jax.block_until_ready(sample(key, denoise, Sigma(), jnp.ones((2, 2)), times, solver))
    jax.effects_barrier()
    assert len(made) == evaluations(solver, Sigma(), times) == want


@pytest.mark.parametrize("name", ["heun, sigma", "unipc 3", "dpm-solver++ 3m", "heun, churned"])
def test_solvers_are_differentiable(key, name):
    """dx/dx_T = std / sigma_T along the flow of N(m, std^2)."""
    schedule, times, solver = SOLVERS[name]
    if "churned" in name:  # its noise would move the derivative
        solver = churned(heun(), 0.0)
    data = Mixture(np.ones(1), np.full((1, 1), 0.7), 0.5)
    top = float(schedule(times[0]).sigma)
    draw = lambda x: sample(key, data.denoiser(schedule), schedule, x, times, solver).sum()
    slope = jax.jit(jax.grad(draw))(jnp.full((1, 1), top)) * top
    np.testing.assert_allclose(slope, 0.5, rtol=0.02)
