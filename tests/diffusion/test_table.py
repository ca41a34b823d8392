"""The promise, over the whole table: any schedule with any grid, solver and prediction.

A cell is a schedule, a grid that reaches its ends of time, a solver (bare, churned, or with a
corrector) and a prediction. Each draws from closed-form denoisers of a normal, of a mixture with
full covariances, and of a point, or is refused, and then says what to use instead. Many cells are
one program: all continuous schedules are evaluated and one is chosen by its index, which is mapped
over.
"""

import functools
import itertools
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import FullMixture

from jaxgen.diffusion.parameterization import TARGETS, edm, from_x_0, to_x_0
from jaxgen.diffusion.process import Level, transition_variance
from jaxgen.diffusion.samplers import ancestral, check, ddim, sample
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
        check(solver, lambda x, t: x, schedule, jnp.zeros((2, 2)), times)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


# --- cells in one program ------------------------------------------------------------------------


@jax.tree_util.register_dataclass
@dataclass
class Chosen:
    """One of several continuous schedules, by its index."""

    index: jax.Array
    among: tuple = field(metadata={"static": True})

    def __call__(self, t):
        levels = [schedule(t) for schedule in self.among]
        return Level(*(jnp.stack(values)[self.index] for values in zip(*levels, strict=True)))

    def time(self, log_snr):
        return jnp.stack([schedule.time(log_snr) for schedule in self.among])[self.index]


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


def rows(discrete):
    """(prediction, data, slice) for every block of the batch, and the size of the batch."""
    names = [p for p in PREDICTIONS if p != ("velocity" if discrete else "mu")]
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


def drawn(name, discrete):
    """Samples ``[schedules, grids, variants, rows, 2]`` of a solver, and their starts."""
    blocks, size = rows(discrete)
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

    if discrete:
        tables = DiscreteSchedule(*(np.stack(v) for v in zip(
            *((s.alpha, s.sigma) for s in DISCRETE.values()), strict=True
        )))  # fmt: skip
        schedule, axis = tables, 0
    else:
        schedule, axis = Chosen(jnp.arange(len(CONTINUOUS)), tuple(CONTINUOUS.values())), 0
    for_variants = jax.vmap(draw, (None, None, 0))
    for_grids = jax.vmap(for_variants, (None, 0, None))
    for_schedules = jax.jit(jax.vmap(for_grids, (axis, 0, None)))
    variants = jnp.asarray(list(VARIANTS.values()))
    x, x_T = for_schedules(schedule, jnp.asarray(times), variants)
    return np.asarray(x, np.float64), np.asarray(x_T, np.float64)


@pytest.mark.parametrize("discrete", [False, True], ids=["continuous", "discrete"])
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow if n in OTHER_PARAMETERS else ()) for n in SOLVERS],
)
def test_every_cell_is_right_or_refused(name, discrete):
    schedules, (blocks, _) = DISCRETE if discrete else CONTINUOUS, rows(discrete)
    refused, run, wrong, found = {}, 0, [], None
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
            if sentence:
                assert any(remedy in sentence for remedy in REMEDIES), sentence
                refused[sentence] = refused.get(sentence, 0) + 1
                continue
            found, run = found or drawn(name, discrete), run + 1
            for k, block in ((k, block) for which, k, block in blocks if which == prediction):
                x, x_T = (values[i, g, v, block] for values in found)
                cell = (schedule_name, g, variant, prediction, k)
                # Euler-Maruyama leaves the noise of the time before in a last step that does not
                # end in clean data.
                left = levels(schedule_name)[g][-2][1] if name == "euler-maruyama" else last[1]
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
