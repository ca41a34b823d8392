"""What is put together: learned variances, additions to solvers, gradients, dtypes, programs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from oracles import Mixture

from jaxgen.diffusion.guidance import (
    classifier,
    classifier_free,
    clip_x_0,
    doubled_classifier_free,
    dynamic_threshold,
    in_interval,
    inpaint,
)
from jaxgen.diffusion.inverse_problems import diffusion_posterior_sampling, identity
from jaxgen.diffusion.parameterization import denoiser, tweedie_covariance, x_0_of
from jaxgen.diffusion.samplers import (
    VARIANCES,
    ancestral,
    consistency,
    ddim,
    ddim_inversion,
    learned_ancestral,
    resampling,
    sample,
    sample_path,
)
from jaxgen.diffusion.schedules import (
    VP,
    CosineLogSNR,
    FlowMatching,
    Sigma,
    from_betas,
    karras_grid,
    linear_betas,
    log_snr_grid,
    respaced_times,
    uniform_grid,
)
from jaxgen.diffusion.solvers import (
    SOLVERS,
    churned,
    corrected,
    dpm_solver_2m,
    dpm_solver_3m,
    heun,
    unipc,
)
from jaxgen.losses.denoising import hybrid_loss, uniform_times, variational_bound
from jaxgen.losses.distillation import consistency_function

LINEAR = from_betas(linear_betas())
DATA = Mixture(np.ones(1), np.full((1, 1), 0.3), 0.5)


# --- additions to unipc --------------------------------------------------------------------------


def test_a_corrector_moves_unipc(key):
    """From half the noise it should have, Langevin steps at every level restore what is missing."""
    schedule, times = CosineLogSNR(), log_snr_grid(CosineLogSNR(), 40, last=0.0)
    x_T = 0.5 * jax.random.normal(key, (4000, 1))
    draw = lambda solver: sample(key, DATA.denoiser(schedule), schedule, x_T, times, solver).std()
    assert draw(unipc()) < 0.3
    np.testing.assert_allclose(draw(corrected(unipc(), 8, 0.1)), 0.5, rtol=0.06)


def test_churn_reaches_unipc(key):
    """Two keys give samples that hardly know of their common x_T, as for other solvers."""
    schedule, times = Sigma(), karras_grid(60)
    x_T = 80 * jax.random.normal(key, (4000, 1))

    def correlation(solver):
        draw = lambda k: sample(k, DATA.denoiser(schedule), schedule, x_T, times, solver)
        a, b = draw(jax.random.key(1)), draw(jax.random.key(2))
        np.testing.assert_allclose(a.std(), 0.5, rtol=0.06)
        return np.corrcoef(a[:, 0], b[:, 0])[0, 1]

    of_others = correlation(churned(dpm_solver_2m(), 0.05))
    np.testing.assert_allclose(correlation(churned(unipc(), 0.05)), of_others, atol=0.08)


# --- a learned variance --------------------------------------------------------------------------


def pair(schedule=LINEAR, nu=0.3):
    """The exact denoiser, as the network of L_hybrid answers it: through (eps, nu)."""
    exact = DATA.denoiser(schedule)

    def network(x_t, t):
        alpha, sigma = (c[:, None] for c in schedule(t))
        return (x_t - alpha * exact(x_t, t)) / sigma, jnp.full(x_t.shape, nu)

    return denoiser(network, schedule)


LABELLED = lambda x_t, t: -0.5 * ((x_t - 1) ** 2).sum(axis=1)
GUIDED = {
    "clip": lambda d, s: clip_x_0(d, -0.2, 0.4),
    "threshold": lambda d, s: dynamic_threshold(d, 0.9),
    "classifier-free": lambda d, s: classifier_free(d, d, 1.0),
    "interval": lambda d, s: classifier_free(d, d, in_interval(2.0, s, 0.1, 5.0)),
    "rescaled": lambda d, s: classifier_free(d, lambda x, t: 0.5 * x_0_of(d)(x, t), 1.0, 0.7),
    "classifier": lambda d, s: classifier(d, s, LABELLED, 0.5),
    "inpaint": lambda d, s: inpaint(d, jnp.full((6, 1), 0.7), jnp.ones((1, 1))),
    "dps": lambda d, s: diffusion_posterior_sampling(d, s, jnp.full((6, 1), 0.7), identity, 0.1),
}


@pytest.mark.parametrize("name", GUIDED)
def test_guidance_changes_x_0_and_keeps_nu(key, name):
    """On the pair it does to x_0 what it does to x_0 alone."""
    x_t, t = jax.random.normal(key, (6, 1)), jnp.full(6, 300)
    x_0, nu = GUIDED[name](pair(), LINEAR)(x_t, t)
    np.testing.assert_allclose(x_0, GUIDED[name](x_0_of(pair()), LINEAR)(x_t, t), rtol=1e-5)
    np.testing.assert_allclose(nu, 0.3)


@pytest.mark.parametrize("name", ["ddim", "dpm_solver_2m", "dpm_solver_3m", "unipc", "ancestral"])
def test_solvers_without_a_variance_take_the_x_0_of_a_pair(key, name):
    x_T, times = jax.random.normal(key, (6, 1)), respaced_times(1000, 12)
    draw = lambda d: sample(key, clip_x_0(d, -3, 3), LINEAR, x_T, times, SOLVERS[name])
    np.testing.assert_allclose(draw(pair()), draw(x_0_of(pair())), rtol=1e-5)


def test_a_pair_is_guided_and_sampled_with_its_variance(key):
    x_T, times = jax.random.normal(key, (8000, 1)), respaced_times(1000, 100)
    guided = clip_x_0(classifier_free(pair(), pair(), 1.0), -3, 3)
    for solver in (learned_ancestral(), resampling(learned_ancestral())):
        x = sample(key, guided, LINEAR, x_T, times, solver)
        np.testing.assert_allclose([x.mean(), x.std()], [0.3, 0.5], atol=0.03)
    with pytest.raises(ValueError, match="answers no variance"):
        sample(key, x_0_of(pair()), LINEAR, x_T, times, learned_ancestral())


@pytest.mark.parametrize(("nu", "variance"), [(0.0, "beta_tilde"), (1.0, "beta")])
def test_the_bound_of_a_pair_at_its_ends_is_that_of_the_fixed_variances(key, nu, variance):
    """At every t, t = 1 too: there is one convention for the variance where beta-tilde is 0."""
    schedule = from_betas(linear_betas(50, 1e-3, 0.2))
    x_0 = jnp.asarray(DATA.sample(np.random.default_rng(0), 64))
    learned = variational_bound(key, pair(schedule, nu), schedule, x_0)
    fixed = variational_bound(
        key, x_0_of(pair(schedule)), schedule, x_0, variance=VARIANCES[variance]
    )
    for a, b in zip(learned, fixed, strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-3)


def test_the_mean_of_the_hybrid_loss_is_the_bound(key):
    """T times L_{t-1} at uniform t, in nats an entry, against the whole bound without its prior."""
    schedule, n = from_betas(linear_betas(20, 1e-2, 0.3)), 40_000
    x_0 = jnp.asarray(DATA.sample(np.random.default_rng(0), n))
    exact = DATA.denoiser(schedule)

    def network(x_t, t):
        alpha, sigma = (c[:, None] for c in schedule(t))
        return (x_t - alpha * exact(x_t, t)) / sigma, jnp.full(x_t.shape, 0.4)

    t = uniform_times(jax.random.key(1), n, 20)
    both = hybrid_loss(key, network, schedule, x_0, t, weight=1.0)
    simple = hybrid_loss(key, network, schedule, x_0, t, weight=0.0)
    terms = variational_bound(key, denoiser(network, schedule), schedule, x_0[:4000])
    want = float((terms.total() - terms.prior).mean())
    np.testing.assert_allclose(float((both - simple).mean()), want, atol=0.03)


# --- consistency, covariance, one call for two ---------------------------------------------------


def test_multistep_consistency_sampling_keeps_the_variance():
    """Song et al. 2023, algorithm 1, with the exact consistency function of N(0.3, 0.5^2), which
    answers with what has the noise of its first level: no step may add that noise again."""
    schedule, first = Sigma(), 0.4

    def f(x, t):
        """Along the flow (x - m)/sqrt(s^2 + sigma^2) is constant."""
        return 0.3 + (x - 0.3) * jnp.sqrt((0.25 + first**2) / (0.25 + t[:, None] ** 2))

    x_T = 80 * jax.random.normal(jax.random.key(0), (20_000, 1))
    times = np.append(np.geomspace(80.0, first, 6)[:-1], 0.0)
    x = sample(jax.random.key(1), f, schedule, x_T, times, consistency(first))
    np.testing.assert_allclose(x.std(), np.sqrt(0.25 + first**2), rtol=0.02)
    np.testing.assert_allclose(x.mean(), 0.3, atol=0.02)


def test_a_consistency_function_at_pure_noise_is_its_limit():
    schedule, x = FlowMatching(), jnp.array([[0.4], [-1.0]])
    f = consistency_function(lambda x, t: 0.3 * x + 1, schedule, 0.02)
    at, near = f(x, jnp.ones(2)), f(x, jnp.full(2, 1 - 1e-5))
    assert np.isfinite(at).all()
    np.testing.assert_allclose(at, near, rtol=1e-3)
    np.testing.assert_allclose(f(x, jnp.full(2, 0.02)), x / 0.98, rtol=1e-5)


def test_the_covariance_of_a_batch_with_labels(key):
    """A denoiser that holds [B] labels: each example has the variance of its own label's data."""
    schedule, std = VP(), jnp.array([0.2, 0.5, 1.0])

    def denoise(x_t, t):
        alpha, sigma = (c[:, None] for c in schedule(t))
        variance = std[:, None] ** 2
        return alpha * variance / (alpha**2 * variance + sigma**2) * x_t

    x_t, t = jax.random.normal(key, (3, 2)), jnp.full(3, 0.4)
    alpha, sigma = schedule(t)
    want = std**2 * sigma**2 / (alpha**2 * std**2 + sigma**2)
    got = tweedie_covariance(denoise, x_t, schedule, t)
    np.testing.assert_allclose(got, want[:, None, None] * jnp.eye(2)[None], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("weight", [0.0, 2.0, in_interval(1.5, VP(), 0.05, 50.0)])
def test_one_call_on_twice_the_batch_is_classifier_free_guidance(key, weight):
    calls, means = [], jnp.array([0.8, -0.5, 0.0])

    def denoise(x_t, t, labels):
        calls.append(len(x_t))
        return Mixture(np.ones(1), np.zeros((1, 2)), 0.5).denoiser(VP())(x_t, t) + means[
            labels
        ][:, None]  # fmt: skip

    labels, nobody = jnp.array([0, 1, 0, 1]), jnp.full(4, 2)
    once = doubled_classifier_free(denoise, labels, nobody, weight, 0.3)
    twice = classifier_free(
        lambda x, t: denoise(x, t, labels), lambda x, t: denoise(x, t, nobody), weight, 0.3
    )
    x_t, t = jax.random.normal(key, (4, 2)), jnp.array([0.2, 0.5, 0.9, 0.4])
    got = once(x_t, t)
    assert calls == [8]
    np.testing.assert_allclose(got, twice(x_t, t), rtol=1e-5)


# --- gradients -----------------------------------------------------------------------------------


def through(schedule, times, solver, x_T=1.0):
    x = jnp.full((1, 1), x_T)
    return sample(jax.random.key(0), DATA.denoiser(schedule), schedule, x, times, solver).sum()


@pytest.mark.parametrize(
    "function",
    [
        lambda gamma: through(Sigma(), karras_grid(6), churned(heun(), gamma)),
        lambda eta: through(VP(), uniform_grid(6), dpm_solver_2m(eta)),
        lambda eta: through(FlowMatching(), uniform_grid(6), ddim(eta)),
        lambda x: through(Sigma(), karras_grid(6), churned(heun(), 0.0), x),
    ],
    ids=["churn", "2m", "ddim", "x_T"],
)
def test_gradients_are_finite_at_the_ends_of_a_parameter(function):
    slope = jax.jit(jax.grad(function))
    assert np.isfinite([slope(v) for v in (0.0, 0.5, 1.0)]).all()


@pytest.mark.parametrize(
    "name",
    [
        "ancestral",
        "ddim",
        "euler",
        "heun",
        "dpm_solver_2m",
        pytest.param("unipc", marks=pytest.mark.slow),
    ],
)
def test_the_gradient_in_a_schedule_is_its_difference(name):
    """d/d beta_max through a grid that ends with clean data."""

    @jax.jit
    def end(beta_max):
        return through(VP(0.1, beta_max), uniform_grid(8), SOLVERS[name], 0.7)

    got = jax.grad(end)(15.0)
    want = (end(15.5) - end(14.5)) / 1.0
    np.testing.assert_allclose(got, want, rtol=0.03, atol=1e-4)


# --- dtypes --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("name", SOLVERS)
def test_samplers_keep_the_dtype_of_their_start(key, name, dtype):
    """The denoiser sees it too; the path between them loses nothing to it."""
    seen = []
    schedule = CosineLogSNR()
    exact = Mixture(np.ones(1), np.full((1, 1), 0.3, np.float32), np.float32(0.5)).denoiser(
        schedule
    )

    def denoise(x_t, t):
        seen.append(x_t.dtype)
        return exact(x_t, t).astype(x_t.dtype)

    x_T = jax.random.normal(key, (512, 1), dtype)
    x, (path, _) = sample_path(key, denoise, schedule, x_T, uniform_grid(24), SOLVERS[name])
    assert x.dtype == path.dtype == dtype
    assert set(seen) == {jnp.dtype(dtype)}
    single = sample(key, exact, schedule, x_T.astype(jnp.float32), uniform_grid(24), SOLVERS[name])
    np.testing.assert_allclose(x.astype(jnp.float32).std(), single.std(), rtol=0.1)


@pytest.mark.parametrize("name", SOLVERS)
def test_samplers_take_mixtures_of_precisions(key, name):
    with jax.enable_x64(True):
        schedule, results = CosineLogSNR(), []
        exact = DATA.denoiser(schedule)
        for x_dtype, out_dtype, t_dtype in (
            (np.float32, np.float64, np.float64),
            (np.float64, np.float32, np.float32),
        ):
            x_T = jnp.linspace(-1, 1, 5).astype(x_dtype)[:, None]
            denoise = lambda x, t, d=out_dtype: exact(x, t).astype(d)
            times = uniform_grid(8).astype(t_dtype)
            results.append(sample(key, denoise, schedule, x_T, times, SOLVERS[name]))
            assert results[-1].dtype == x_dtype
        assert np.isfinite(results[0]).all()
        if name in ("ddim", "euler", "heun", "dpm_solver_2m", "dpm_solver_3m", "unipc"):
            np.testing.assert_allclose(results[0], results[1], rtol=1e-3, atol=1e-4)


# --- programs ------------------------------------------------------------------------------------


def compilations(function):
    """How many programs a call compiles."""
    count = []
    listen = lambda event, duration, **_: count.append(event)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        jax.block_until_ready(function())
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    return sum("backend_compile" in event for event in count)


@pytest.mark.parametrize("make", [ddim, unipc, lambda: corrected(dpm_solver_3m(), 1, 0.1)])
def test_two_calls_without_jit_compile_once(key, make):
    """As in the README; other values in what the denoiser closes over compile nothing either."""
    x_T, times = jax.random.normal(key, (3, 2)), respaced_times(1000, 7)

    def draw(scale):
        params = jnp.full((2,), scale)
        denoise = clip_x_0(denoiser(lambda x, t: params[None] * x, LINEAR))
        return sample(key, denoise, LINEAR, x_T, times, make())

    first = draw(0.5)
    draw(0.6)
    assert compilations(lambda: draw(0.7)) <= 2  # of the lines before it, not of the sampler
    np.testing.assert_array_equal(draw(0.5), first)
    assert np.abs(np.asarray(draw(0.7) - first)).max() > 1e-3


def test_what_a_denoiser_closes_over_may_change(key):
    """A network that is trained on between two calls is the new one in the second.

    Into clean data DDIM's one step answers the denoiser's x_0, here gain x.
    """
    state = {}
    denoise = lambda x, t: state["gain"] * x
    for gain in (0.2, 0.9):
        state["gain"] = jnp.float32(gain)
        x = sample(key, denoise, VP(), jnp.ones((2, 1)), uniform_grid(1), ddim())
        np.testing.assert_allclose(x, gain, rtol=1e-5)


def test_one_program_for_each_placement(key):
    """The same text on other devices, or on the same in another order, is another program."""
    devices = np.asarray(jax.devices())
    for order in (devices, devices[::-1], devices[:4]):
        x_T = jnp.linspace(-1, 1, 8)[:, None]
        placed = jax.device_put(x_T, NamedSharding(Mesh(order, "x"), PartitionSpec("x")))
        x = sample(key, lambda x, t: 0.5 * x, VP(), placed, uniform_grid(1), ddim())
        np.testing.assert_allclose(x, 0.5 * x_T, rtol=1e-5)


def test_a_sampler_runs_without_compilation_for_debugging(key):
    with jax.disable_jit():
        x = sample(key, lambda x, t: 0.5 * x, VP(), jnp.ones((2, 1)), uniform_grid(1), ddim())
    np.testing.assert_allclose(x, 0.5, rtol=1e-5)


def test_inversion_compiles_once(key):
    x, times = jax.random.normal(key, (3, 1)), uniform_grid(5, last=0.1)
    invert = lambda: ddim_inversion(DATA.denoiser(VP()), VP(), x, times)
    invert()
    assert compilations(invert) <= 2


def test_the_same_call_makes_the_same_solver():
    assert ddim() == ddim()
    assert churned(heun(), 0.2) == churned(heun(), 0.2)
    assert ddim(0.5) != ddim()
    traces = []

    @functools.partial(jax.jit, static_argnums=1)
    def draw(x_T, solver):
        traces.append(1)
        exact = DATA.denoiser(VP())
        return sample(jax.random.key(0), exact, VP(), x_T, uniform_grid(3), solver)

    for _ in range(2):
        draw(jnp.ones((2, 1)), corrected(unipc(), 1, 0.1))
        draw(jnp.ones((2, 1)), ancestral())
    assert len(traces) == 2
    jax.jit(lambda eta: sample(jax.random.key(0), DATA.denoiser(VP()), VP(), jnp.ones((2, 1)),
                               uniform_grid(3), ddim(eta)))(0.3)  # fmt: skip
