import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Mixture

from jaxgen.diffusion.guidance import (
    add_to_score,
    autoguidance,
    classifier,
    classifier_free,
    clip_x_0,
    dynamic_threshold,
    image_to_image,
    in_interval,
    inpaint,
)
from jaxgen.diffusion.parameterization import TARGETS, edm, from_x_0, tweedie
from jaxgen.diffusion.process import expand
from jaxgen.diffusion.samplers import (
    ancestral,
    ddim,
    resampling,
    resampling_times,
    sample,
    sample_path,
)
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
LEVELS = {  # schedules, and times from nearly clean to nearly noise
    "vp": (VP(), jnp.asarray([0.02, 0.2, 0.5, 0.8, 0.99])),
    "ve": (VE(), jnp.asarray([0.1, 0.4, 0.5, 0.6, 0.8])),
    "flow": (FlowMatching(), jnp.asarray([0.02, 0.2, 0.5, 0.8, 0.98])),
    "discrete": (LINEAR, jnp.asarray([5, 100, 300, 600, 990])),
}


def normal(schedule, mean, variance):
    """E[x_0|x_t] for independent entries N(mean, variance)."""

    def denoise(x_t, t):
        alpha, sigma = (expand(k, x_t) for k in schedule(t))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def standardized(key, shape):
    """Noise with mean 0 and variance 1 exactly: what is affine in it has its exact moments."""
    z = jax.random.normal(key, shape)
    return (z - z.mean(axis=0, keepdims=True)) / z.std(axis=0, keepdims=True)


def counted(denoise):
    """A denoiser, and the list of its calls by Python: its traces, under jit."""
    calls = []

    def call(x_t, t):
        calls.append(1)
        return denoise(x_t, t)

    return call, calls


def estimate(shape, key=0):
    return 0.8 * jax.random.normal(jax.random.key(key), shape)


# --- guidance without a classifier -----------------------------------------------------------


@pytest.mark.parametrize("w", [0.5, 3.0, -1.0])
@pytest.mark.parametrize("name", LEVELS)
def test_guided_normals_are_the_normal_of_their_extrapolated_precision(name, w):
    """p1^(1+w) p0^-w is normal at each level: precision (1+w)/V1 - w/V0, and means by precision."""
    schedule, t = LEVELS[name]
    (m1, v1), (m0, v0) = (1.0, 0.3), (-0.5, 0.8)
    guided = classifier_free(normal(schedule, m1, v1), normal(schedule, m0, v0), w)
    x_t = jnp.asarray([[-2.0], [-0.5], [0.0], [1.0], [3.0]])
    alpha, sigma = (np.asarray(k, np.float64)[:, None] for k in schedule(t))
    V1, V0 = alpha**2 * v1 + sigma**2, alpha**2 * v0 + sigma**2
    precision = (1 + w) / V1 - w / V0
    mean = ((1 + w) * alpha * m1 / V1 - w * alpha * m0 / V0) / precision
    score = -precision * (np.asarray(x_t) - mean)
    want = (np.asarray(x_t) + sigma**2 * score) / alpha
    np.testing.assert_allclose(guided(x_t, t), want, rtol=1e-3, atol=1e-3)
    got = tweedie(jnp.asarray(score, jnp.float32), x_t, schedule, t)
    np.testing.assert_allclose(guided(x_t, t), got, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("target", [*TARGETS, "edm"])
def test_every_prediction_is_extrapolated_alike(target):
    schedule, t = (LINEAR, jnp.asarray([5, 500])) if target == "mu" else (VP(), jnp.array([0.2, 1]))
    c, u = (lambda x, t: jnp.sin(x)), (lambda x, t: jnp.cos(x))
    x_t = estimate((2, 3))

    def predict(x_0):
        kind = edm() if target == "edm" else target
        return from_x_0(x_0, x_t, schedule, t, kind)

    guided = predict(classifier_free(c, u, 2.5)(x_t, t))
    want = 3.5 * predict(c(x_t, t)) - 2.5 * predict(u(x_t, t))
    np.testing.assert_allclose(guided, want, rtol=1e-4, atol=1e-4)


@functools.partial(jax.jit, static_argnums=(1, 2))
def draw_between_equal_variances(key, schedule, solver, w, times):
    """Samples of the guided N(1, 0.25) against N(0.6, 0.25)."""
    key_start, key = jax.random.split(key)
    denoise = classifier_free(normal(schedule, 1.0, 0.25), normal(schedule, 0.6, 0.25), w)
    first = schedule(times[0])
    mean = first.alpha * (1.0 + 0.4 * w)
    std = jnp.sqrt(first.alpha**2 * 0.25 + first.sigma**2)
    x_T = mean + std * standardized(key_start, (N, 1))
    return sample(key, denoise, schedule, x_T, times, solver)


@pytest.mark.parametrize("solver", [ddim(), ancestral()], ids=["ddim", "ancestral"])
def test_between_equal_variances_guidance_moves_the_mean_alone(key, solver):
    """The guided process diffuses N(m1 + w (m1 - m0), v), so its samples are of that normal."""
    times = jnp.append(log_snr_grid(VP(), 500), 0.0)
    for w in (0.0, 2.0):  # traced: one compilation
        x = draw_between_equal_variances(key, VP(), solver, w, times)
        np.testing.assert_allclose(x.mean(), 1.0 + 0.4 * w, atol=0.012)
        np.testing.assert_allclose(x.var(), 0.25, atol=0.01)


MIXTURE = Mixture(
    np.array([0.2, 0.3, 0.4, 0.1]), 1.2 * np.array([[1, 1], [1, -1], [-1, -1], [-1, 1]]), 0.3
)
CHOSEN = Mixture(np.array([0.4, 0.6]), MIXTURE.means[:2], 0.3)  # the first two components


def component_log_probs(schedule, x_t, t):
    """log (weight_k q(x_t|k)) ``[B, 4]`` up to a constant of the level."""
    alpha, sigma = (k[:, None] for k in schedule(t))
    difference = x_t[:, None, :] - alpha[..., None] * jnp.asarray(MIXTURE.means, float)[None]
    squared = (difference**2).sum(axis=-1)
    log_weights = jnp.log(jnp.asarray(MIXTURE.weights, float))[None]
    return log_weights - 0.5 * squared / (alpha**2 * MIXTURE.std**2 + sigma**2)


def log_chosen(schedule, x_t, t):
    """log p(y|x_t), y being that the component is one of the first two, ``[B]``."""
    terms = component_log_probs(schedule, x_t, t)
    return jax.nn.logsumexp(terms[:, :2], axis=1) - jax.nn.logsumexp(terms, axis=1)


@pytest.mark.parametrize("name", ["vp", "flow"])
def test_guided_mixtures_have_the_extrapolated_score(name):
    schedule, t = LEVELS[name]
    x_t = jax.random.normal(jax.random.key(1), (5, 2))

    def log_q(x, components):
        return jax.nn.logsumexp(component_log_probs(schedule, x, t)[:, :components], axis=1).sum()

    w = 1.7
    guided = classifier_free(CHOSEN.denoiser(schedule), MIXTURE.denoiser(schedule), w)
    log_q_grad = jax.jit(jax.grad(log_q), static_argnums=1)
    want = (1 + w) * log_q_grad(x_t, 2) - w * log_q_grad(x_t, 4)
    got = from_x_0(jax.jit(guided)(x_t, t), x_t, schedule, t, "score")
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


def test_autoguidance_is_the_same_extrapolation():
    good, weak = normal(VP(), 0.4, 0.2), normal(VP(), 0.1, 0.5)
    x_t, t = estimate((3, 2)), jnp.full((3,), 0.5)
    x_0, x_0_weak = good(x_t, t), weak(x_t, t)
    want = x_0_weak + 2.4 * (x_0 - x_0_weak)  # as Karras et al. write it, w = 2.4
    np.testing.assert_allclose(autoguidance(good, weak, 1.4)(x_t, t), want, rtol=1e-5)


@pytest.mark.parametrize("weight", [0, 0.0])
def test_a_weight_of_zero_is_the_conditional_denoiser(weight):
    denoise, log_prob = normal(VP(), 0.0, 1.0), lambda x, t: x.sum(axis=1)
    assert classifier_free(denoise, None, weight) is denoise
    assert autoguidance(denoise, None, weight) is denoise
    assert classifier(denoise, VP(), log_prob, weight) is denoise


def test_each_denoiser_is_called_once():
    (c, c_calls), (u, u_calls) = counted(normal(VP(), 1.0, 0.3)), counted(normal(VP(), 0.0, 0.3))
    classifier_free(c, u, 2.0, rescale=0.5)(estimate((3, 2)), jnp.full((3,), 0.5))
    assert (len(c_calls), len(u_calls)) == (1, 1)


def test_a_traced_weight_is_changed_and_vmapped_without_a_new_compilation(key):
    conditional, calls = counted(normal(VP(), 1.0, 0.3))
    x_T, times = jax.random.normal(key, (4, 2)), jnp.linspace(1, 0, 6)

    @jax.jit
    def draw(w, phi):
        limited = in_interval(w, VP(), 0.1, 5.0)
        guided = classifier_free(conditional, normal(VP(), 0.0, 0.5), limited, phi)
        return sample(key, guided, VP(), x_T, times, ddim())

    weights = np.asarray([0.0, 1.0, 4.0], np.float32)
    each = np.stack([draw(w, 0.3) for w in weights])
    assert len(calls) == 1
    assert np.abs(each[0] - each[2]).max() > 0.1
    # The rounding of the noise at t = 1 comes back multiplied by 1/alpha = 150 and the weight.
    np.testing.assert_allclose(jax.vmap(draw, (0, None))(weights, 0.3), each, rtol=1e-4)


def test_a_weight_may_differ_between_the_examples_of_a_batch():
    c, u = normal(VP(), 1.0, 0.3), normal(VP(), 0.0, 0.3)
    x_t, t = estimate((3, 2)), jnp.full((3,), 0.5)
    weights = jnp.asarray([0.0, 1.0, 5.0])
    got = classifier_free(c, u, weights)(x_t, t)
    for i, w in enumerate(weights):
        np.testing.assert_allclose(got[i], classifier_free(c, u, w)(x_t, t)[i], rtol=1e-5)


# --- the interval ----------------------------------------------------------------------------


def test_the_interval_is_of_sigma_over_alpha_and_open_below():
    t = jnp.asarray([0.0, 0.2, 0.5, 2 / 3, 0.9, 1.0])  # sigma/alpha: 0, 1/4, 1, 2, 9, inf
    schedule = FlowMatching()
    np.testing.assert_array_equal(in_interval(3.0, schedule, 1.0, 9.5)(t), [0, 0, 0, 3, 3, 0])
    np.testing.assert_array_equal(in_interval(3.0, schedule)(t), [0, 3, 3, 3, 3, 3])
    rising = in_interval(lambda t: 10 * t, schedule, 0.5, 5.0)(t)
    np.testing.assert_allclose(rising, [0, 0, 5, 20 / 3, 0, 0], rtol=1e-6)


@pytest.mark.parametrize("kind", ["classifier_free", "classifier"])
def test_outside_the_interval_nothing_is_evaluated_for_guidance(key, kind):
    seen = []
    see = functools.partial(jax.debug.callback, lambda t: seen.append(float(t)))

    def reference(x_t, t):
        see(t[0])
        return 0.5 * x_t

    def log_prob(x_t, t):
        see(t[0])
        return -(x_t**2).sum(axis=1)

    limited = in_interval(2.0, FlowMatching(), 0.3, 3.0)  # t in (0.231, 0.75]
    denoise = normal(FlowMatching(), 0.5, 0.2)
    guided = {
        "classifier_free": classifier_free(denoise, reference, limited, rescale=0.2),
        "classifier": classifier(denoise, FlowMatching(), log_prob, limited),
    }[kind]
    x_T, times = jax.random.normal(key, (3, 2)), np.linspace(1, 0, 11)
    x = jax.jit(lambda x_T: sample(key, guided, FlowMatching(), x_T, times, ddim()))(x_T)
    jax.effects_barrier()
    assert np.isfinite(x).all()
    np.testing.assert_allclose(sorted(seen), [0.3, 0.4, 0.5, 0.6, 0.7], rtol=1e-5)


def test_examples_at_several_times_are_limited_each_by_its_own():
    c, u = normal(VP(), 1.0, 0.3), normal(VP(), 0.0, 0.3)
    limited, plain = in_interval(2.0, VP(), 0.5, 5.0), classifier_free(c, u, 2.0)
    x_t, t = estimate((3, 2)), jnp.asarray([0.05, 0.5, 1.0])
    got = classifier_free(c, u, limited)(x_t, t)
    want = jnp.stack([c(x_t, t)[0], plain(x_t, t)[1], c(x_t, t)[2]])
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_low_precision_denoisers_keep_their_type():
    c, u = (lambda x, t: x.astype(jnp.bfloat16)), (lambda x, t: 0 * x.astype(jnp.bfloat16))
    x_t, t = estimate((3, 2)), jnp.full((3,), 0.5)
    w = jnp.asarray(np.float32(2.0))  # not weakly typed: it would promote
    for weight in (w, in_interval(w, VP())):
        assert classifier_free(c, u, weight, rescale=0.5)(x_t, t).dtype == jnp.bfloat16


# --- the rescaling ---------------------------------------------------------------------------


def test_full_rescaling_restores_the_conditional_deviation():
    a, b = estimate((4, 5, 3), key=1), 0.3 * estimate((4, 5, 3), key=2)
    c, u = (lambda x, t: a), (lambda x, t: b)
    t = jnp.zeros(4)
    plain = classifier_free(c, u, 3.0)(a, t)
    full = classifier_free(c, u, 3.0, rescale=1.0)(a, t)
    half = classifier_free(c, u, 3.0, rescale=0.5)(a, t)
    none = classifier_free(c, u, 3.0, rescale=jnp.zeros(()))(a, t)
    axes = (1, 2)
    assert np.all(np.std(plain, axes) > 2 * np.std(a, axes))
    np.testing.assert_allclose(np.std(full, axes), np.std(a, axes), rtol=1e-5)
    np.testing.assert_allclose(half, 0.5 * (plain + full), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(none, plain, rtol=1e-6)
    # each example is multiplied by one number
    ratio = np.asarray(full / plain).reshape(4, -1)
    np.testing.assert_allclose(ratio, np.tile(ratio[:, :1], (1, 15)), rtol=1e-4)


def test_constant_estimates_are_not_rescaled():
    one, two = (lambda x, t: jnp.ones_like(x)), (lambda x, t: 0.5 * jnp.ones_like(x))
    x = classifier_free(one, two, 1.0, rescale=0.7)(jnp.zeros((2, 4)), jnp.zeros(2))
    np.testing.assert_allclose(x, np.full((2, 4), 1.5), rtol=1e-6)


# --- guidance by a classifier ----------------------------------------------------------------


@pytest.mark.parametrize("name", LEVELS)
def test_the_exact_classifier_makes_the_exact_conditional_denoiser(name):
    schedule, t = LEVELS[name]
    x_t = (1 + schedule(t).sigma)[:, None] * jax.random.normal(jax.random.key(2), (5, 2))
    log_prob = functools.partial(log_chosen, schedule)
    guided = classifier(MIXTURE.denoiser(schedule), schedule, log_prob, 1.0)
    want = jax.jit(CHOSEN.denoiser(schedule))(x_t, t)
    np.testing.assert_allclose(jax.jit(guided)(x_t, t), want, rtol=2e-3, atol=2e-3)


def test_classifier_guidance_is_that_without_a_classifier():
    """By Bayes' rule a weight w + 1 on the classifier is w beyond the conditional model."""
    schedule, t = LEVELS["vp"]
    x_t, log_prob = (
        jax.random.normal(jax.random.key(3), (5, 2)),
        functools.partial(log_chosen, VP()),
    )
    by_classifier = classifier(MIXTURE.denoiser(schedule), schedule, log_prob, jnp.asarray(3.0))
    free = classifier_free(CHOSEN.denoiser(schedule), MIXTURE.denoiser(schedule), 2.0)
    got, want = jax.jit(by_classifier)(x_t, t), jax.jit(free)(x_t, t)
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


def test_an_added_score_stays_finite_at_clean_data_and_at_pure_noise():
    level = FlowMatching()(jnp.asarray([0.0, 1e-12, 0.5, 1.0]))
    gradient = jnp.asarray([[jnp.inf], [3.0], [3.0], [jnp.nan]])
    np.testing.assert_allclose(
        add_to_score(jnp.ones((4, 1)), gradient, level), [[1], [1], [2.5], [1]]
    )


def test_classifier_guidance_samples_from_pure_noise(key):
    """From the end of flow matching, where alpha is 0, to the chosen components."""
    schedule = FlowMatching()
    log_prob = functools.partial(log_chosen, schedule)
    guided = classifier(MIXTURE.denoiser(schedule), schedule, log_prob)
    x_T = jax.random.normal(key, (4000, 2))
    times = np.linspace(1, 0, 101)
    x = np.asarray(jax.jit(lambda x_T: sample(key, guided, schedule, x_T, times, ddim()))(x_T))
    shares = np.bincount(MIXTURE.nearest_mode(x), minlength=4) / 4000
    np.testing.assert_allclose(shares, [0.4, 0.6, 0.0, 0.0], atol=0.03)


# --- thresholds ------------------------------------------------------------------------------


@pytest.mark.parametrize("percentile", [0.5, 0.9, 0.995, 1.0])
def test_dynamic_thresholding_is_that_of_each_example(percentile):
    x = np.random.default_rng(0).standard_normal((3, 4, 5, 2)).astype(np.float32)
    x *= np.array([0.1, 1.0, 6.0], np.float32).reshape(3, 1, 1, 1)
    got = dynamic_threshold(lambda x_t, t: x_t, percentile)(jnp.asarray(x), jnp.zeros(3))
    for example, result in zip(x, got, strict=True):
        ordered = np.sort(np.abs(example).ravel())
        position = percentile * (ordered.size - 1)
        below, above = ordered[int(np.floor(position))], ordered[int(np.ceil(position))]
        s = max(1.0, below + (position - np.floor(position)) * (above - below))
        np.testing.assert_allclose(result, np.clip(example, -s, s) / s, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got[0], x[0], rtol=1e-6)  # inside [-1, 1] nothing changes
    assert np.abs(got).max() <= 1


def test_a_percentile_is_a_fraction():
    with pytest.raises(ValueError, match="percentile"):
        dynamic_threshold(lambda x_t, t: x_t, 99.5)


def test_static_thresholding_clips():
    x = jnp.asarray([[-3.0, 0.2, 1.5]])
    clipped = clip_x_0(lambda x_t, t: x_t)(x, jnp.zeros(1))
    np.testing.assert_array_equal(clipped, np.float32([[-1, 0.2, 1]]))


# --- inpainting ------------------------------------------------------------------------------

COV = np.array([[1.0, 0.9], [0.9, 1.0]])
KNOWN = 1.2  # of the first coordinate; the second is N(0.9 * 1.2, 1 - 0.81) given it


def correlated(schedule):
    """E[x_0|x_t] for N(0, COV), in its eigenbasis (1, 1), (1, -1), where it is independent."""
    basis = jnp.asarray([[1.0, 1.0], [1.0, -1.0]]) / jnp.sqrt(2.0)
    along = normal(schedule, 0.0, jnp.asarray([[1.9, 0.1]]))
    return lambda x_t, t: along(x_t @ basis, t) @ basis


def inpainted(schedule, n):
    known = jnp.tile(jnp.asarray([[KNOWN, jnp.nan]]), (n, 1))  # what is not known is not looked at
    return inpaint(correlated(schedule), known, jnp.asarray([[1, 0]]))


@pytest.fixture(scope="module")
def replacement():
    """x_s of ancestral sampling with the replacement method, ``[50, N, 2]``, and the times s."""
    times = respaced_times(1000, 50)

    @jax.jit
    def draw(key):
        start, key = jax.random.split(key)
        x_T = jax.random.normal(start, (N, 2))
        return sample_path(key, inpainted(LINEAR, N), LINEAR, x_T, times, ancestral())[1][0]

    return np.asarray(draw(jax.random.key(5))), times[1:]


def test_known_pixels_are_the_forward_process_of_themselves(replacement):
    path, times = replacement
    alpha, sigma = (np.asarray(k) for k in LINEAR(times))
    np.testing.assert_array_equal(path[-1, :, 0], np.float32(KNOWN))
    for i in (5, 20, 35, 45, 48):
        at = path[i, :, 0]
        np.testing.assert_allclose(at.mean(), alpha[i] * KNOWN, atol=4 * sigma[i] / N**0.5)
        np.testing.assert_allclose(at.var(), sigma[i] ** 2, rtol=4 * (2 / N) ** 0.5)
    # and jointly so: x_t = (alpha_t/alpha_s) x_s + noise gives Cov(x_s, x_t|x_0)
    for s, t in ((25, 20), (40, 35)):
        covariance = np.cov(path[s, :, 0], path[t, :, 0])[0, 1]
        want = alpha[t] / alpha[s] * sigma[s] ** 2
        np.testing.assert_allclose(covariance, want, atol=4 * sigma[s] * sigma[t] / N**0.5)


def test_resampling_brings_the_unknown_pixels_to_their_conditional(key, replacement):
    x_T = jax.random.normal(key, (N, 2))
    times = resampling_times(respaced_times(1000, 50), jump=2, repeats=10)
    solver = resampling(ancestral())
    draw = jax.jit(lambda x_T: sample(key, inpainted(LINEAR, N), LINEAR, x_T, times, solver))
    repaint, plain = np.asarray(draw(x_T)), replacement[0][-1]
    np.testing.assert_array_equal(repaint[:, 0], np.float32(KNOWN))

    def errors(x):
        return abs(x[:, 1].mean() - 0.9 * KNOWN), abs(x[:, 1].var() - 0.19)

    # Replacement alone is off by 0.35 and 0.14: it sees the known pixel through its noise.
    assert errors(plain)[0] > 4 * errors(repaint)[0]
    assert errors(plain)[1] > 4 * errors(repaint)[1]


def test_the_mask_broadcasts_over_channels_but_not_over_ranks():
    known, x = jnp.ones((2, 3, 3, 2)), jnp.zeros((2, 3, 3, 2))
    mask = np.zeros((1, 3, 3, 1), bool)
    mask[0, 1, 1, 0] = True
    out = inpaint(lambda x_t, t: x_t, known, mask)(x, jnp.zeros(2))
    np.testing.assert_array_equal(out, np.broadcast_to(mask, x.shape))
    with pytest.raises(AssertionError):
        inpaint(lambda x_t, t: x_t, known, mask[0])


# --- from one image to another ---------------------------------------------------------------


@pytest.mark.parametrize("first", [20, 300, 1000])
@pytest.mark.parametrize("kind", ["ddim", "ancestral"])
def test_image_to_image_keeps_of_the_input_what_its_noise_leaves(key, kind, first):
    """For normal data the output is normal and linear in the input, with a slope known by theory.

    Ancestral sampling draws from p(x_0|x_t), whose mean has slope alpha v / (alpha^2 v + sigma^2)
    in x_t; DDIM scales x_t by the ratio of the deviations.
    """
    mean, v = 0.5, 0.3
    x = mean + v**0.5 * standardized(key, (N, 1))
    times, solver = np.arange(first, -1, -1), {"ddim": ddim(), "ancestral": ancestral()}[kind]

    @jax.jit
    def edit(key, x):
        return image_to_image(key, normal(LINEAR, mean, v), LINEAR, x, times, solver)

    out = edit(jax.random.key(7), x)
    alpha, sigma = (float(k) for k in LINEAR(first))
    share = alpha**2 * v / (alpha**2 * v + sigma**2)
    cov = np.cov(x[:, 0], out[:, 0])
    np.testing.assert_allclose(out.mean(), mean, atol=0.02)
    np.testing.assert_allclose(cov[1, 1], v, atol=0.015)
    slope = {"ddim": share**0.5, "ancestral": share}[kind]
    np.testing.assert_allclose(cov[0, 1] / cov[0, 0], slope, atol=0.03)


def test_image_to_image_begins_at_the_first_time(key):
    """With a denoiser that returns x_t, one step into clean data shows the x_t it was given."""
    times, x = np.array([600, 0]), jnp.full((N, 1), 2.0)
    x_t = image_to_image(key, lambda x_t, t: x_t, LINEAR, x, times, ddim())
    alpha, sigma = (float(k) for k in LINEAR(600))
    np.testing.assert_allclose(x_t.mean(), 2 * alpha, atol=4 * sigma / N**0.5)
    np.testing.assert_allclose(x_t.std(), sigma, rtol=4 * (0.5 / N) ** 0.5)
