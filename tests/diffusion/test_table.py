"""The promise, over the whole table: any schedule with any grid, solver and prediction.

A cell is a schedule, a grid that reaches its ends of time, a solver (bare, churned, or with a
corrector) and a prediction. Each draws from closed-form denoisers of a normal, of a mixture with
full covariances, and of a point, or is refused, and then says what to use instead. Many cells are
one program: all continuous schedules are evaluated and one is chosen by its index, which is mapped
over.
"""

import functools
import itertools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import WELL, FullMixture

from jaxgen.diffusion.guidance import classifier, classifier_free, clip_x_0, in_interval, inpaint
from jaxgen.diffusion.inverse_problems import identity, posterior_sampling, pseudoinverse_variance
from jaxgen.diffusion.likelihood import ode_log_likelihood
from jaxgen.diffusion.parameterization import (
    TARGETS,
    edm,
    from_x_0,
    relation_of,
    target_of,
    to_x_0,
    x_0_in,
)
from jaxgen.diffusion.process import Level, transition_variance
from jaxgen.diffusion.samplers import ancestral, check_sampling, ddim, learned_ancestral, sample
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
    cosine_betas,
    from_betas,
    linear_betas,
    log_snr_grid,
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
    edm_weighting,
    min_snr,
    own_error,
    sigmoid_weighting,
    truncated_snr,
)
from jaxgen.losses.times import stratified_times

STEPS = 100
# What 100 steps may be off by, beyond chance: most solvers are of first order in the step.
SLOPE, COVARIANCE, MEAN = 0.09, 0.25, 0.05


def without_signal() -> DiscreteSchedule:
    """Linear betas rescaled to end in pure noise (Lin et al. 2023, algorithm 1)."""
    alpha = np.asarray(from_betas(linear_betas()).alpha, np.float64)
    alpha = (alpha - alpha[-1]) / (1 - alpha[-1])
    return DiscreteSchedule(alpha.astype(np.float32), np.sqrt(1 - alpha**2).astype(np.float32))


def bent(t):
    return 10 - 17 * t - 3 * t**2


DISCRETE = {
    "linear betas": from_betas(linear_betas()),
    "cosine betas": from_betas(cosine_betas()),
    "without signal": without_signal(),
}
CONTINUOUS = {
    "vp": VP(),
    "sub-vp": SubVP(),
    "ve": VE(),
    "sigma": Sigma(),
    "flow": FlowMatching(),
    "linear log-snr": LinearLogSNR(),
    "cosine log-snr": CosineLogSNR(),
    "cosine log-snr 12": CosineLogSNR(12.0, -12.0),
    "log-snr": LogSNR(bent),
    "interpolated": Interpolated(DISCRETE["linear betas"]),
    "interpolated without signal": Interpolated(DISCRETE["without signal"]),
    "shifted vp": Shifted(VP(), -2.0),
    "shifted sub-vp": Shifted(SubVP(), -1.0),
    "shifted sigma": Shifted(Sigma(), 1.0),
    "shifted flow": Shifted(FlowMatching(), -2.2),
    "shifted cosine": Shifted(CosineLogSNR(), 2.0),
    "shifted log-snr": Shifted(LogSNR(bent), -1.0),
    "shifted interpolated": Shifted(Interpolated(DISCRETE["cosine betas"]), -1.0),
}
SCHEDULES = {**CONTINUOUS, **DISCRETE}
SOLVERS = {
    "ancestral": ancestral(),
    "ancestral, beta": ancestral(transition_variance),
    "ddim": ddim(),
    "ddim, eta 1/2": ddim(0.5),
    "euler": euler(),
    "heun": heun(),
    "euler-maruyama": euler_maruyama(),
    "2m": dpm_solver_2m(),
    "2m sde": dpm_solver_2m(1.0),
    "3m": dpm_solver_3m(),
    "unipc": unipc(),
    "unipc 3": unipc(3),
}
OTHER_PARAMETERS = ("ancestral, beta", "ddim, eta 1/2", "unipc 3")  # of a solver that is there
DETERMINISTIC = ("ddim", "euler", "heun", "2m", "3m", "unipc", "unipc 3")
VARIANTS = {"bare": (0.0, 0.0), "churned": (0.1, 0.0), "corrected": (0.0, 0.1)}  # gamma, snr
PREDICTIONS = {**{name: name for name in TARGETS}, "edm": edm()}


@functools.cache
def grids(name):
    """All from the schedule's end to time 0."""
    schedule = SCHEDULES[name]
    if isinstance(schedule, DiscreteSchedule):
        return [respaced_times(schedule.steps, STEPS, power) for power in (1.0, 2.0, 0.8)]
    # Even steps are of time in [0, 1]; where time is sigma, most would be spent on noise.
    even = noise_grid(schedule, STEPS, rho=3.0) if "sigma" in name else uniform_grid(STEPS)
    return [np.asarray(g, np.float32) for g in (
        even, log_snr_grid(schedule, STEPS, last=0.0), noise_grid(schedule, STEPS)
    )]  # fmt: skip


# --- what is refused -----------------------------------------------------------------------------

REMEDIES = (
    "predict x_0, v, velocity or edm",
    "predict eps, x_0, v or velocity",
    "use schedules.Interpolated(schedule)",
    "use ancestral or dpm_solver_2m_sde",
)


@functools.cache
def prediction_refusal(name, prediction):
    schedule, ends = SCHEDULES[name], grids(name)[0][[0, -2]]
    try:
        for t in ends:
            for convert in (to_x_0, from_x_0):
                jax.eval_shape(
                    lambda x, t=t, convert=convert: convert(
                        x, x, schedule, t, PREDICTIONS[prediction]
                    ),
                    jnp.zeros((2, 2)),
                )
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def solver_refusal(schedule, solver, times):
    try:
        check_sampling(solver, lambda x, t: x, schedule, jnp.zeros((2, 2)), times)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


PURE_NOISE = ("flow", "shifted flow", "without signal", "interpolated without signal")


def impossible(schedule, solver, variant, prediction):
    """Which cells there cannot be, said apart from the library."""
    discrete, stepping = schedule in DISCRETE, solver in ("euler", "heun", "euler-maruyama")
    return (
        (discrete and (stepping or variant == "churned"))
        or prediction == ("velocity" if discrete else "mu")
        or (schedule in PURE_NOISE and prediction in ("eps", "score"))
        or (schedule in PURE_NOISE and solver == "euler-maruyama")
    )


# --- cells in one program ------------------------------------------------------------------------


@jax.jit
def all_levels(t):
    """alpha and sigma of every schedule, traced once for all that ask at such times."""
    levels = [schedule(t) for schedule in CONTINUOUS.values()]
    return [jnp.stack(values) for values in zip(*levels, strict=True)]


@jax.jit
def all_times(log_snr):
    return jnp.stack([schedule.time(log_snr) for schedule in CONTINUOUS.values()])


@jax.tree_util.register_dataclass
@dataclass
class Chosen:
    """One of the continuous schedules, by its index."""

    index: jax.Array

    def __call__(self, t):
        return Level(*(values[self.index] for values in all_levels(t)))

    def time(self, log_snr):
        return all_times(log_snr)[self.index]


def together(discrete):
    """All schedules of a kind as one, whose first axis is mapped over."""
    if not discrete:
        return Chosen(jnp.arange(len(CONTINUOUS)))
    return jax.tree.map(lambda *tables: np.stack(tables), *DISCRETE.values())


class Once:
    """A schedule that is traced once for each time, as a program would evaluate it."""

    def __init__(self, schedule):
        self.schedule, self.seen = schedule, []

    def __call__(self, t):
        for time, level in self.seen:
            if time is t:
                return level
        self.seen.append((t, self.schedule(t)))
        return self.seen[-1][1]

    def time(self, log_snr):
        return self.schedule.time(log_snr)


# Weights, means and covariances of a normal, a mixture and a point.
DATA = [
    FullMixture(np.ones(1), np.array([[0.3, 0.3]]), np.eye(2)[None] * 0.25),
    FullMixture(
        np.array([0.7, 0.3]),
        np.array([[0.8, 0.2], [-0.9, -0.4]]),
        np.array([[[0.3, 0.18], [0.18, 0.2]], [[0.1, -0.06], [-0.06, 0.2]]]),
    ),
    FullMixture(np.ones(1), np.array([[0.3, -0.8]]), np.zeros((1, 2, 2))),
]
ROWS = {"x_0": (1500, 800, 8)}  # of each of DATA
OTHERS = (0, 64, 0)  # of each other prediction
# A solver sees of a prediction the x_0 that it says, and the test of conversions below holds these
# to each other at every level: so the product with the others is run by default for two solvers.
WITH_OTHERS = ("ddim", "heun")


def rows(discrete, others):
    """(prediction, data, slice) for every block of the batch, and the size of the batch."""
    names = [p for p in PREDICTIONS if p != ("velocity" if discrete else "mu")]
    names = names if others else ["x_0"]
    blocks, start = [], 0
    for name in names:
        for k, count in enumerate(ROWS.get(name, OTHERS)):
            if count:
                blocks.append((name, k, slice(start, start + count)))
                start += count
    return blocks, start


def network(schedule, blocks):
    """The exact estimate of each block, taken to its prediction and back."""

    def denoise(x, t):
        t, parts = t[0], []
        for name, k, block in blocks:
            x_0 = DATA[k].denoise(x[block], schedule(t))
            if name != "x_0":
                target = PREDICTIONS[name]
                y = from_x_0(x_0, x[block], schedule, t, target)
                x_0 = to_x_0(y, x[block], schedule, t, target)
            parts.append(x_0)
        return jnp.concatenate(parts)

    return denoise


def drawn(name, discrete, others):
    """Samples ``[schedules, grids, variants, rows, 2]`` of a solver, and their starts."""
    blocks, size = rows(discrete, others)
    schedules = DISCRETE if discrete else CONTINUOUS
    times = np.stack([np.stack(grids(name)) for name in schedules])
    rng = np.random.default_rng(0)
    x_0 = np.concatenate([DATA[k].sample(rng, b.stop - b.start) for _, k, b in blocks])

    def draw(schedule, times, variant):
        schedule = Once(schedule)
        key_start, key = jax.random.split(jax.random.key(0))
        solver = corrected(SOLVERS[name], 1, variant[1])
        solver = solver if discrete else churned(solver, variant[0])
        at = schedule(times[0])
        x_T = at.alpha * x_0 + at.sigma * jax.random.normal(key_start, (size, 2))
        return sample(key, network(schedule, blocks), schedule, x_T, times, solver), x_T

    for_variants = jax.vmap(draw, (None, None, 0))
    for_grids = jax.vmap(for_variants, (None, 0, None))
    for_schedules = jax.jit(jax.vmap(for_grids, (0, 0, None)), compiler_options=WELL)
    variants = jnp.asarray(list(VARIANTS.values()))
    x, x_T = for_schedules(together(discrete), jnp.asarray(times), variants)
    return np.asarray(x, np.float64), np.asarray(x_T, np.float64)


def solvers_with_others():
    """Every solver once by default, and on request its product with the other predictions."""
    for name, others in itertools.product(SOLVERS, (False, True)):
        default = name not in OTHER_PARAMETERS and others == (name in WITH_OTHERS)
        marks = () if default else pytest.mark.slow
        yield pytest.param(name, others, marks=marks, id=f"{name}{', all' if others else ''}")


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize(("name", "others"), list(solvers_with_others()))
def test_every_cell_is_right_or_refused(name, others, discrete):
    schedules, (blocks, _) = DISCRETE if discrete else CONTINUOUS, rows(discrete, others)
    refused, run, wrong, found = {}, 0, [], None
    assert len(schedules) * len(VARIANTS) * 3 * len(PREDICTIONS) == (189 if discrete else 1134)
    for (i, schedule_name), g, (v, variant) in itertools.product(
        enumerate(schedules), range(3), enumerate(VARIANTS)
    ):
        times, (gamma, snr) = grids(schedule_name)[g], VARIANTS[variant]
        used = SOLVERS[name]
        used = corrected(used, 1, snr) if snr else churned(used, gamma) if gamma else used
        by_solver = solver_refusal(schedules[schedule_name], used, times)
        first, last = (levels(schedule_name)[g][e] for e in (0, -1))
        for prediction in PREDICTIONS:
            sentence = by_solver or prediction_refusal(schedule_name, prediction)
            assert bool(sentence) == impossible(schedule_name, name, variant, prediction), (
                schedule_name, variant, prediction, sentence,
            )  # fmt: skip
            if sentence:
                assert any(remedy in sentence for remedy in REMEDIES), sentence
                refused[sentence] = refused.get(sentence, 0) + 1
                continue
            found, run = found or drawn(name, discrete, others), run + 1
            for k, block in ((k, block) for which, k, block in blocks if which == prediction):
                x, x_T = (values[i, g, v, block] for values in found)
                cell = (schedule_name, g, variant, prediction, k)
                # In a last step that does not end in clean data, as much noise enters by beta_t as
                # there was before it.
                by_beta = name in ("euler-maruyama", "ancestral, beta")
                left = levels(schedule_name)[g][-2][1] if by_beta else last[1]
                error = error_of(x, DATA[k], last, left)
                if not error < 1:
                    wrong.append((*cell, round(error, 2)))
                if k == 0 and variant == "bare" and name in DETERMINISTIC:
                    # The flow of a normal is linear, so its slope is seen without any chance.
                    slope = x.std() / x_T.std() * deviation(0.5, first) / deviation(0.5, last)
                    # Euler's step of sigma ~ e^(-ct) takes (1 - c h) for e^(-c h).
                    euler_on_ve = (name, schedule_name) == ("euler", "ve")
                    if not abs(slope - 1) < (0.25 if euler_on_ve else SLOPE):
                        wrong.append((*cell, "slope", round(slope, 3)))
    print(f"\n{name}: {run} cells run, {sum(refused.values())} refused: {refused}")
    assert not wrong, f"{len(wrong)} of {run}: {wrong[:12]}"


@functools.cache
def levels(name):
    """The levels of every grid, ``[grids, steps + 1]`` pairs."""
    levels = [np.stack(SCHEDULES[name](jnp.asarray(times))) for times in grids(name)]
    return np.moveaxis(np.asarray(levels, np.float64), 1, 2)


def deviation(std, level):
    """Of x at a level, for normal data of deviation ``std``."""
    return np.sqrt((level[0] * std) ** 2 + level[1] ** 2)


def error_of(x, data, level, left):
    """The largest error of mean and covariance, over what chance and 100 steps allow.

    A point is to be met up to the noise ``left``.
    """
    alpha, sigma = level
    mean, cov = alpha * data.mean(), alpha**2 * data.cov() + sigma**2 * np.eye(2)
    if not np.isfinite(x).all():
        return np.inf
    if not data.covs.any():
        return np.abs(x - mean).max() / (0.03 + 5 * left)
    std = np.sqrt(np.diag(cov))
    off = (np.cov(x.T) - cov) / np.outer(std, std)
    n = len(x)
    by_mean = np.abs(x.mean(axis=0) - mean) / std / (5 / np.sqrt(n) + MEAN)
    return max(by_mean.max(), np.abs(off).max() / (5 * np.sqrt(2 / n) + COVARIANCE))


# --- conversions, guidance, learned variances and likelihoods over the same schedules -------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_prediction_says_the_same_at_every_level(name):
    """y of (x_0, eps) is solved for x_0 again, and made again of it, at all times of every grid."""
    schedule, rng = SCHEDULES[name], np.random.default_rng(0)
    x_0, eps = (jnp.asarray(rng.standard_normal((8, 2)), jnp.float32) for _ in range(2))

    def errors(t, prediction):
        """Of x_0 in units of sigma/alpha, which multiplies any rounding; of y relative."""
        (alpha, sigma), y = schedule(t), target_of(x_0, eps, schedule, t, prediction)
        x_t = alpha * x_0 + sigma * eps
        again = to_x_0(y, x_t, schedule, t, prediction)
        y_again = from_x_0(x_0, x_t, schedule, t, prediction)
        scale = 1 + sigma / jnp.where(alpha > 0, alpha, 1.0)
        back = jnp.abs(y_again - y).max() / (1 + jnp.abs(y).max())
        rounding = jnp.where(sigma > 0, alpha / jnp.where(sigma > 0, sigma, 1.0), 0.0)
        return jnp.abs(again - x_0).max() / scale, back / (1 + rounding)

    times = np.unique(np.concatenate(grids(name)))
    times = times[np.asarray(schedule(times).sigma) > 0]
    for prediction in PREDICTIONS:
        if not prediction_refusal(name, prediction):
            each = lambda t, p=PREDICTIONS[prediction]: errors(t, p)
            assert np.max(jax.jit(jax.vmap(each))(times)) < 1e-4, prediction


M, S2, Y, V = 0.3, 0.25, 0.8, 0.1  # data N(M, S2); y = x_0 + noise of variance V was seen to be Y


def exact(schedule, mean=M, variance=S2):
    def denoise(x_t, t):
        alpha, sigma = (value[:, None] for value in schedule(t))
        gain = alpha * variance / (alpha**2 * variance + sigma**2)
        return mean + gain * (x_t - alpha * mean)

    return denoise


def log_likelihood(schedule):
    """log p(y|x_t), a normal about E[x_0|x_t]."""

    def log_prob(x_t, t):
        alpha, sigma = schedule(t[0])
        spread = S2 * sigma**2 / (alpha**2 * S2 + sigma**2)
        return -0.5 * ((Y - exact(schedule)(x_t, t)) ** 2).sum(axis=1) / (V + spread)

    return log_prob


GUIDED = {  # by what is drawn: mean and variance in closed form
    "classifier": (
        lambda s, n: classifier(exact(s), s, log_likelihood(s)),
        (M * V + Y * S2) / (V + S2),
        S2 * V / (V + S2),
    ),
    "posterior sampling": (
        lambda s, n: posterior_sampling(
            exact(s), s, jnp.full((n, 1), Y), identity, pseudoinverse_variance(V, 1.0, S2)
        ),
        (M * V + Y * S2) / (V + S2),
        S2 * V / (V + S2),
    ),
    # of two normals of equal variance, guidance draws from one beyond them
    "classifier-free": (lambda s, n: classifier_free(exact(s, 0.5), exact(s, 0.1), 1.5), 1.1, S2),
    "in an interval": (
        lambda s, n: classifier_free(exact(s, 0.5), exact(s, 0.1), in_interval(1.5, s, 0.0)),
        1.1,
        S2,
    ),
    "inpaint": (lambda s, n: inpaint(exact(s), jnp.full((n, 1), Y), jnp.ones((1, 1))), Y, 0.0),
    "pair": (lambda s, n: clip_x_0(with_nu(exact(s), 0.5), -4, 4), M, S2),
    "pair, beta": (lambda s, n: with_nu(exact(s), 1.0), M, S2),
}


def with_nu(denoise, nu):
    return lambda x, t: (denoise(x, t), jnp.full_like(x, nu))


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize("learned", [False, True], ids=["2m", "learned variance"])
def test_guidance_and_learned_variances_over_all_schedules(discrete, learned):
    """From the end of every schedule to time 0, all that is guided in one batch."""
    guided = {k: v for k, v in GUIDED.items() if not learned or k.startswith("pair")}
    schedules, n = DISCRETE if discrete else CONTINUOUS, 2000
    times = np.stack([grids(name)[0 if discrete else 2] for name in schedules])
    solver = learned_ancestral() if learned else dpm_solver_2m()

    def draw(schedule, times):
        schedule = Once(schedule)
        at = schedule(times[0])
        key_x, key_eps, key = jax.random.split(jax.random.key(3), 3)
        parts = []
        for _, mean, variance in guided.values():  # the start that each distribution has
            x_0 = mean + variance**0.5 * jax.random.normal(key_x, (n, 1))
            parts.append(at.alpha * x_0 + at.sigma * jax.random.normal(key_eps, (n, 1)))
        each = [make(schedule, n) for make, _, _ in guided.values()]

        def denoise(x, t):
            found = [d(x[i * n : i * n + n], t[:n]) for i, d in enumerate(each)]
            if learned:
                return tuple(jnp.concatenate(part) for part in zip(*found, strict=True))
            return jnp.concatenate([x_0_in(part) for part in found])

        return sample(key, denoise, schedule, jnp.concatenate(parts), times, solver)

    found = np.asarray(jax.jit(jax.vmap(draw))(together(discrete), jnp.asarray(times)))
    for name, x in zip(schedules, found, strict=True):
        alpha, sigma = (float(v) for v in SCHEDULES[name](jnp.asarray(grids(name)[0][-1])))
        for (what, (_, mean, variance)), part in zip(
            guided.items(), np.split(x, len(guided)), strict=True
        ):
            std = np.sqrt(alpha**2 * variance + sigma**2)
            np.testing.assert_allclose(
                part.mean(), alpha * mean, atol=0.04, err_msg=f"{name}, {what}"
            )
            np.testing.assert_allclose(
                part.std(), std, rtol=0.12, atol=0.01, err_msg=f"{name}, {what}"
            )


STARTS_NOISY = (
    "ve", "linear log-snr", "cosine log-snr", "cosine log-snr 12", "log-snr", "shifted cosine",
    "shifted log-snr",
)  # fmt: skip


def test_the_likelihood_of_every_continuous_schedule():
    """By the ODE, from close to clean data to the schedule's own end.

    The flow of N(0.3, 0.25) is affine, and at its end is the prior, of the end's noise alone.
    """
    x_0 = jnp.linspace(-0.9, 1.5, 5)[:, None]
    firsts = jnp.asarray([noise_grid(s, 8, last=0.0)[-2] for s in CONTINUOUS.values()])
    ends = jnp.asarray([float(s.end) for s in CONTINUOUS.values()])

    def measure(schedule, t_0, t_1):
        schedule = Once(schedule)
        x = schedule(t_0).alpha * x_0
        found = ode_log_likelihood(exact(schedule), schedule, x, t_0=t_0, t_1=t_1)
        return found.log_prob, schedule(t_0), schedule(t_1)

    measured = jax.jit(jax.vmap(measure), compiler_options=WELL)
    found, first, last = measured(together(False), firsts, ends)
    for i, name in enumerate(CONTINUOUS):
        (a_0, s_0), (a_1, s_1) = ([float(v[i]) for v in level] for level in (first, last))
        std_0, std_1 = (np.sqrt(a**2 * S2 + s**2) for a, s in ((a_0, s_0), (a_1, s_1)))
        latent = a_1 * M + std_1 / std_0 * a_0 * (np.asarray(x_0[:, 0], np.float64) - M)
        want = -0.5 * (latent / s_1) ** 2 - 0.5 * np.log(2 * np.pi * s_1**2) + np.log(std_1 / std_0)
        # A table has a kink at each of its steps, which the solver's own steps meet by chance.
        atol = 6e-3 if "interpolated" in name else 1e-3
        np.testing.assert_allclose(found[i], want, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", CONTINUOUS)
def test_the_continuous_bound_of_every_schedule_or_its_refusal(name):
    """With the exact denoiser it is the negative log-likelihood of what the decoder sees."""
    schedule, rng = CONTINUOUS[name], np.random.default_rng(0)
    x_0 = jnp.asarray(M + np.sqrt(S2) * rng.standard_normal((4000, 1)), jnp.float32)
    each = jax.random.split(jax.random.key(1), len(x_0))
    t = jax.vmap(lambda key: stratified_times(key, 512, low=0.0), out_axes=1)(each)
    run = lambda: continuous_bound(jax.random.key(0), exact(schedule), schedule, x_0, t)
    if name not in STARTS_NOISY:
        with pytest.raises(ValueError, match="starts with noise"):
            run()
        return
    terms = jax.jit(run)()
    alpha, sigma = (float(v) for v in schedule(jnp.asarray(1.0)))
    prior = 0.5 * (alpha / sigma) ** 2 * (S2 + M**2)  # KL(N(a x, s^2) || N(0, s^2))
    np.testing.assert_allclose(terms.prior.mean(), prior, rtol=0.1, atol=1e-4)
    entropy = 0.5 * np.log(2 * np.pi * np.e * S2)
    total = np.asarray(terms.total(), np.float64)
    chance = total.std() / np.sqrt(len(total))
    np.testing.assert_allclose(total.mean(), entropy + prior, atol=0.01 + 4 * chance)
    assert chance < 0.1


WEIGHTINGS = {"min_snr": min_snr(), "truncated": truncated_snr(), "edm": edm_weighting()}
PER_TIME = {"sigmoid": sigmoid_weighting(), "bound": bound_weighting()}


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
def test_weightings_are_finite_at_the_ends_and_have_their_limits(discrete):
    """At clean data and at pure noise as a moment beside them, for every target that is finite."""
    schedules, weightings, targets = CONTINUOUS, WEIGHTINGS | PER_TIME, ("x_0", "v", "velocity")
    if discrete:
        schedules, weightings, targets = DISCRETE, WEIGHTINGS, ("x_0", "v")
    cells = itertools.product(schedules.items(), (*targets, "edm"), weightings.items())
    for (name, schedule), prediction, (how, weighting) in cells:
        target, end = PREDICTIONS[prediction], schedule.end
        moment = 1 if discrete else 2e-6 * float(end)  # and ten of them, from either end
        t = np.array([[0, moment, 10 * moment], [end, end - moment, end - 10 * moment]])
        t = jnp.asarray(t, jnp.int32 if discrete else jnp.float32)
        finite = np.isfinite(relation_of(target, schedule, t)).all(axis=0)[:, 0]
        weight = np.asarray(weighting(schedule, t) / own_error(target)(schedule, t))
        for at, near, farther in weight[finite]:  # the ends where the target is finite
            cell = f"{name}, {how}, {prediction}"
            assert np.isfinite(at), cell
            if not discrete and near < 1.5 * farther:  # else it is infinite in the limit
                np.testing.assert_allclose(at, near, rtol=0.1, atol=2e-3, err_msg=cell)
