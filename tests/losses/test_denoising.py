import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture

from jaxgen.diffusion.parameterization import convert, edm, from_x_0
from jaxgen.diffusion.process import diffuse
from jaxgen.diffusion.samplers import VARIANCES
from jaxgen.diffusion.schedules import (
    VP,
    CosineLogSNR,
    FlowMatching,
    LinearLogSNR,
    LogSNR,
    from_betas,
    linear_betas,
)
from jaxgen.losses.classification import label_estimates
from jaxgen.losses.denoising import (
    bound_weighting,
    continuous_bound,
    denoising_loss,
    discretized_decoder,
    edm_weighting,
    hybrid_loss,
    min_snr,
    own_error,
    sigmoid_weighting,
    simple_loss,
    squared_error,
    step_bound_weighting,
    truncated_snr,
    uniform_times,
    variational_bound,
)

LINEAR = from_betas(linear_betas())


def test_a_network_that_answers_zero_has_loss_one(key):
    x_0 = jnp.zeros((4000, 4, 4, 1))
    loss = simple_loss(key, lambda x_t, t: jnp.zeros_like(x_t), LINEAR, x_0)
    assert loss.shape == (4000,)
    np.testing.assert_allclose(loss.mean(), 1.0, atol=4 * np.sqrt(2 / (4000 * 16)))


@pytest.mark.parametrize("schedule", [CosineLogSNR(), VP(), FlowMatching()])
def test_losses_over_steps_refuse_continuous_time_in_a_sentence(schedule, key):
    x_0, t = jnp.zeros((2, 3)), jnp.ones(2, int)
    network = lambda x_t, t: x_t
    name = f"{type(schedule).__name__} is one of continuous time: "
    with pytest.raises(TypeError, match=name + "use denoising_loss, with t from"):
        simple_loss(key, network, schedule, x_0)
    with pytest.raises(TypeError, match=name + "use denoising_loss"):
        hybrid_loss(key, network, schedule, x_0, t)
    with pytest.raises(TypeError, match=name + "use continuous_bound"):
        variational_bound(key, network, schedule, x_0)
    with pytest.raises(TypeError, match=name + "take one with steps"):
        label_estimates(key, lambda y: network, schedule, x_0, jnp.zeros((2, 3), int), 4)


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


# --- weighted objectives -----------------------------------------------------------------------

DATA = Gaussian(np.array([0.3, -0.2]), np.array([[0.5, 0.2], [0.2, 0.3]]))


def predicting(denoise, schedule, target):
    return lambda x_t, t: from_x_0(denoise(x_t, t), x_t, schedule, t, target)


def off(denoise):
    """A denoiser that is wrong, so that its error is not zero."""
    return lambda x_t, t: 0.8 * denoise(x_t, t) + 0.1


@pytest.mark.parametrize(
    "weighting",
    [bound_weighting(), min_snr(), truncated_snr(), sigmoid_weighting(), edm_weighting()],
    ids=["bound", "min_snr", "truncated_snr", "sigmoid", "edm"],
)
def test_a_weighted_loss_does_not_depend_on_what_is_predicted(key, weighting):
    schedule, x_0 = CosineLogSNR(8.0, -8.0), jax.random.normal(key, (200, 2))
    t, denoise = jnp.linspace(0.05, 0.95, 200), off(DATA.denoiser(schedule))
    losses = [
        denoising_loss(
            key, predicting(denoise, schedule, y), schedule, x_0, t, target=y, weighting=weighting
        )
        for y in ("eps", "x_0", "v", "score", "velocity", edm(0.5))
    ]
    for loss in losses[1:]:
        np.testing.assert_allclose(loss, losses[0], rtol=2e-2, atol=1e-5)


def test_weightings_are_their_formulas_on_the_error_of_x_0():
    schedule, t = CosineLogSNR(8.0, -8.0), jnp.linspace(0.05, 0.95, 9)
    snr = np.exp(np.asarray(schedule(t).log_snr, np.float64))
    on_x_0 = lambda weighting: weighting(schedule, t) * snr
    fall = -jax.vmap(jax.grad(lambda t: schedule(t).log_snr))(t)
    np.testing.assert_allclose(on_x_0(min_snr(5.0)), np.minimum(snr, 5), rtol=1e-4)
    np.testing.assert_allclose(on_x_0(truncated_snr()), np.maximum(snr, 1), rtol=1e-4)
    np.testing.assert_allclose(on_x_0(own_error("x_0")), 1, rtol=1e-4)
    np.testing.assert_allclose(on_x_0(own_error("v")), snr + 1, rtol=1e-3)
    s2 = 1 / snr  # (sigma/alpha)^2
    np.testing.assert_allclose(on_x_0(edm_weighting(0.5)), (s2 + 0.25) / (s2 * 0.25), rtol=1e-3)
    np.testing.assert_allclose(on_x_0(bound_weighting()), 0.5 * fall * snr, rtol=1e-3)
    want = 0.5 * fall / (1 + np.exp(3 + np.log(snr)))
    np.testing.assert_allclose(sigmoid_weighting(-3.0)(schedule, t), want, rtol=1e-3)


def test_simple_losses_are_denoising_score_matching_and_flow_matching(key):
    """Without a weighting the error is the target's own: v, velocity, score, by definition."""
    x_0, t = jax.random.normal(key, (50, 2)), jnp.linspace(0.1, 0.9, 50)
    eps = jax.random.normal(key, x_0.shape)
    for schedule, target, y in (
        (FlowMatching(), "velocity", eps - x_0),
        (VP(), "score", -eps / VP()(t).sigma[:, None]),
    ):
        loss = denoising_loss(key, lambda x, t: 0.3 * x, schedule, x_0, t, target=target)
        level = schedule(t)
        x_t = level.alpha[:, None] * x_0 + level.sigma[:, None] * eps
        np.testing.assert_allclose(loss, ((0.3 * x_t - y) ** 2).mean(axis=1), rtol=1e-3)


@pytest.mark.parametrize("variance", VARIANCES)
@pytest.mark.parametrize("target", ["eps", "mu"])
def test_lambda_t_makes_the_weighted_loss_the_bound(key, variance, target):
    """Each L_{t-1} less its part that no mean can change is lambda_t |eps - eps_hat|^2."""
    schedule = from_betas(linear_betas(20, 0.01, 0.3))
    x_0, denoise = jax.random.normal(key, (50, 2)), off(DATA.denoiser(schedule))
    bound = variational_bound(key, denoise, schedule, x_0, variance=VARIANCES[variance])
    for t in (2, 7, 20):
        times = jnp.full((50,), t)
        loss = denoising_loss(
            jax.random.fold_in(key, t),  # the noise of the bound
            predicting(denoise, schedule, target),
            schedule,
            x_0,
            times,
            target=target,
            weighting=step_bound_weighting(VARIANCES[variance]),
        )
        at, to = schedule(jnp.asarray(t)), schedule(jnp.asarray(t - 1))
        ratio = float(VARIANCES["beta_tilde"](at, to) / VARIANCES[variance](at, to))
        fixed = 0.5 * 2 * (ratio - 1 - np.log(ratio))  # two dimensions
        np.testing.assert_allclose(2 * loss + fixed, bound.diffusion[t - 2], rtol=5e-3, atol=1e-3)


def test_the_hybrid_loss_adds_the_bound_and_teaches_only_the_variance(key):
    schedule = from_betas(linear_betas(20, 0.01, 0.3))
    x_0, t = jax.random.normal(key, (60, 2)), jnp.arange(60) % 20 + 1
    network = lambda x_t, t: (0.3 * x_t, jnp.zeros_like(x_t))
    loss = lambda weight: hybrid_loss(key, network, schedule, x_0, t, weight=weight)
    simple = denoising_loss(key, lambda x, t: 0.3 * x, schedule, x_0, t)
    np.testing.assert_allclose(loss(0.0), simple, rtol=1e-5)
    # nu = 0 is beta-tilde, whose terms the bound gives
    added = (loss(1.0) - simple) / 20 * 2  # T times, an entry
    for i in (1, 9, 19):
        at, to = schedule(t[i]), schedule(t[i] - 1)
        x_t = diffuse(x_0, jax.random.normal(key, x_0.shape), schedule(t))[i]
        x_0_hat = (x_t - at.sigma * 0.3 * x_t) / at.alpha
        on_x_0 = to.alpha * (at.sigma**2 - (at.alpha / to.alpha) ** 2 * to.sigma**2) / at.sigma**2
        error = on_x_0**2 * ((x_0[i] - x_0_hat) ** 2).sum()
        want = 0.5 * error / VARIANCES["beta_tilde"](at, to)
        np.testing.assert_allclose(added[i], want, rtol=2e-2)

    def with_mean(scale, nu):
        network = lambda x_t, t: (scale * x_t, nu * jnp.ones_like(x_t))
        return hybrid_loss(key, network, schedule, x_0, t, weight=1.0).mean()

    by_mean, by_nu = jax.grad(with_mean, argnums=(0, 1))(0.3, 0.5)
    mean_only = jax.grad(
        lambda s: denoising_loss(key, lambda x, t: s * x, schedule, x_0, t).mean()
    )(0.3)
    np.testing.assert_allclose(by_mean, mean_only, rtol=1e-4)
    assert np.isfinite(by_nu)
    assert by_nu != 0


def test_the_hybrid_loss_finds_the_variance_of_a_gaussian(key):
    """With the exact mean, its minimum over nu is where p has the variance of the reverse step."""
    schedule, var = from_betas(linear_betas(10, 0.05, 0.5)), 0.25
    data = Gaussian(np.zeros(1), np.array([[var]]))
    x_0, t = jnp.asarray(data.sample(np.random.default_rng(0), 40_000)), jnp.full((40_000,), 6)
    eps_hat = predicting(data.denoiser(schedule), schedule, "eps")

    @jax.jit
    def loss(nu):
        network = lambda x_t, t: (eps_hat(x_t, t), nu * jnp.ones_like(x_t))
        return hybrid_loss(key, network, schedule, x_0, t, weight=1.0).mean()

    a2, s2 = np.asarray(schedule.alpha, float) ** 2, np.asarray(schedule.sigma, float) ** 2
    beta = 1 - a2[6] / a2[5]
    v_s, v_t = a2[5] * var + s2[5], a2[6] * var + s2[6]
    exact, tilde = v_s - a2[6] / a2[5] * v_s**2 / v_t, s2[5] / s2[6] * beta
    nu = np.log(exact / tilde) / np.log(beta / tilde)
    grid = np.linspace(nu - 0.3, nu + 0.3, 13)
    values = np.array([loss(n) for n in grid])
    assert abs(int(values.argmin()) - 6) <= 1


# --- the bound in continuous time ----------------------------------------------------------------


@pytest.mark.parametrize(
    "schedule",
    [LinearLogSNR(12.0, -6.0), CosineLogSNR(12.0, -6.0), LogSNR(lambda t: 12 - 17 * t**2 - t)],
    ids=["linear", "cosine", "any"],
)
def test_the_continuous_bound_of_a_gaussian_is_its_closed_form(key, schedule):
    """With the exact denoiser of N(0, v), half the integral of the smallest squared error
    v/(1 + SNR v) over the SNR is log((1 + SNR_0 v)/(1 + SNR_1 v))/2: for any schedule between the
    same ends (Kingma et al. 2021, section 5.1)."""
    var = 0.3
    data = Gaussian(np.zeros(1), np.array([[var]]))
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 40_000))
    t = (jax.random.uniform(key, (8, 1)) + jnp.arange(40_000)[None] / 40_000) % 1
    terms = jax.jit(lambda t: continuous_bound(key, data.denoiser(schedule), schedule, x_0, t))(t)
    want = 0.5 * np.log((1 + np.exp(12.0) * var) / (1 + np.exp(-6.0) * var))
    np.testing.assert_allclose(terms.diffusion.sum(axis=0).mean(), want, rtol=0.01)
    # at such ends the bound has no gap left to the negative log-likelihood
    nll = -data.log_prob(np.asarray(x_0, np.float64)).mean()
    np.testing.assert_allclose(terms.total().mean(), nll, atol=0.04)


def test_the_continuous_bound_of_a_mixture_is_its_negative_log_likelihood(key):
    data = Mixture(np.array([0.7, 0.3]), np.array([[0.5, 0.5], [-0.5, -0.3]]), 0.2)
    schedule = LinearLogSNR(13.0, -7.0)
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 20_000))
    t = (jax.random.uniform(key, (8, 1)) + jnp.arange(20_000)[None] / 20_000) % 1
    terms = jax.jit(lambda t: continuous_bound(key, data.denoiser(schedule), schedule, x_0, t))(t)
    nll = -data.log_prob(np.asarray(x_0, np.float64)).mean()
    np.testing.assert_allclose(terms.total().mean(), nll, atol=0.05)


def test_the_discrete_bound_tends_to_the_continuous_one(key):
    """Kingma et al. 2021, section 4: the sum over T steps of the same error."""
    schedule, x_0 = LinearLogSNR(8.0, -6.0), jax.random.normal(key, (4000, 2))
    denoise = off(DATA.denoiser(schedule))
    t = (jax.random.uniform(key, (64, 1)) + jnp.arange(4000)[None] / 4000) % 1
    continuous = continuous_bound(key, denoise, schedule, x_0, t).diffusion.sum(axis=0).mean()
    steps = 512

    def term(i):
        at, to = schedule(i / steps), schedule((i - 1) / steps)
        x_t = diffuse(x_0, jax.random.normal(jax.random.fold_in(key, i), x_0.shape), at)
        error = ((x_0 - denoise(x_t, jnp.full((4000,), i / steps))) ** 2).sum(axis=1).mean()
        return 0.5 * (jnp.exp(to.log_snr) - jnp.exp(at.log_snr)) * error

    total = jax.lax.map(term, jnp.arange(1, steps + 1)).sum()
    np.testing.assert_allclose(continuous, total, rtol=0.05)


@pytest.mark.parametrize("weighting", [None, min_snr(), truncated_snr(), edm_weighting()])
def test_a_weighting_at_pure_noise_is_the_same_inside_of_jit(key, weighting):
    """Whether it is finite there is asked while the loss is traced."""
    x_0, t = jnp.ones((4, 2)), jnp.linspace(0.1, 1.0, 4)
    loss = lambda key: denoising_loss(
        key, lambda x, t: x, FlowMatching(), x_0, t, target="velocity", weighting=weighting
    )
    np.testing.assert_allclose(jax.jit(loss)(key), loss(key), rtol=1e-5)
