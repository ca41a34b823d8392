"""Solvers of the reverse ODE and SDE in continuous time, and what can be added to any solver.

``euler``, ``heun`` and ``euler_maruyama`` step in the schedule's own time, so with
:class:`~.schedules.Sigma` they are those of Karras et al. 2022 and with
:class:`~.schedules.FlowMatching` those of rectified flow. The others step in half the log-SNR,
lambda = log(alpha/sigma), where the linear part of the ODE is solved exactly (Lu et al. 2022): with
h = lambda_s - lambda_t

    x_s = sigma_s/sigma_t x_t + alpha_s int_0^h e^(u - h) x_0(lambda_t + u) du,

and they differ in the polynomial that stands for the denoiser x_0 along the step; they know only
levels, so they serve discrete schedules too.

Into clean data every solver answers x_0: the exponential ones do by their formula, and one step of
a time whose derivative may be infinite there would leave noise. A polynomial is not followed far
beyond the points that it goes through (:func:`_trusted`), as it would be in a last step that is
much longer than those before it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.parameterization import from_x_0, x_0_of
from jaxgen.diffusion.process import (
    Schedule,
    diffusion_squared,
    known_level,
    rates,
    safe_sqrt,
    transition_variance,
)
from jaxgen.diffusion.samplers import (
    Solver,
    ancestral,
    check_falling,
    ddim,
    ends_clean,
    makes_solver,
    noise_std,
    unless_clean,
)
from jaxgen.diffusion.sde import probability_flow, score


def check_continuous(schedule: Schedule, times: np.ndarray) -> None:
    """Refuses discrete schedules, which have no derivative in time, and times that do not fall.

    Raises:
      TypeError: for integer times.
      ValueError: as :func:`~.samplers.check_falling`, and where the derivative is not defined.
    """
    check_falling(schedule, times)
    if np.issubdtype(times.dtype, np.integer):
        rates(schedule, jnp.asarray(times))  # which says what to use instead
    rate = known_level(lambda t: rates(schedule, t), times[0])
    if rate is not None and np.isnan(rate).any():
        raise ValueError(
            f"this schedule has no derivative at t = {times[0]:.4g}: begin before it, use a solver "
            "that knows only levels, such as ddim or unipc, or a log_snr that is finite there."
        )


@makes_solver
def euler() -> Solver:
    """x_s = x_t + (s - t) dx/dt of the probability-flow ODE: order 1."""

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        x_0 = denoise(x_t, t)
        x_s = x_t + (s - t) * from_x_0(x_0, x_t, schedule, t, "velocity")
        return unless_clean(schedule, s, x_s, x_0), x_0, memory

    return Solver(step, check=check_continuous)


@makes_solver
def heun() -> Solver:
    """The trapezoidal rule with Euler's step for a guess: order 2, two evaluations a step.

    Karras et al. 2022, algorithm 1; a step into clean data is :func:`euler`'s.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        x_0 = denoise(x_t, t)
        slope = from_x_0(x_0, x_t, schedule, t, "velocity")
        x_s = unless_clean(schedule, s, x_t + (s - t) * slope, x_0).astype(x_t.dtype)

        def correct(x_s: Array) -> Array:
            at_s = probability_flow(denoise, schedule)(x_s, s)
            return (x_t + (s - t) * 0.5 * (slope + at_s)).astype(x_t.dtype)

        return jax.lax.cond(ends_clean(schedule, s), lambda x: x, correct, x_s), x_0, memory

    cost = lambda schedule, t, s: 1 if ends_clean(schedule, s) else 2  # noqa: E731
    return Solver(step, cost=cost, check=check_continuous)


@makes_solver
def euler_maruyama() -> Solver:
    """x_s = x_t + (s - t)(f x_t - g^2 score) + g sqrt(t - s) z of the reverse SDE.

    Song et al. 2021, eq. 6 and section 4.1. It cannot begin at pure noise, where g is infinite.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        x_0 = denoise(x_t, t)
        g2 = diffusion_squared(schedule, t)
        # f x - g^2 score = (f x - g^2/2 score) - g^2/2 score
        flow = from_x_0(x_0, x_t, schedule, t, "velocity")
        slope = flow - 0.5 * g2 * from_x_0(x_0, x_t, schedule, t, "score")
        x_s = x_t + (s - t) * slope + noise_std(g2 * (t - s), schedule(s)) * noise(key, x_t)
        return unless_clean(schedule, s, x_s, x_0), x_0, memory

    def check(schedule: Schedule, times: np.ndarray) -> None:
        check_continuous(schedule, times)
        level = known_level(schedule, times[0])
        if level is not None and level.alpha == 0:
            raise ValueError(
                f"g is infinite at pure noise (t = {times[0]:.4g}): begin before it, as at "
                f"{0.99 * times[0]:.4g}, or use ancestral or dpm_solver_2m_sde, which begin there."
            )

    return Solver(step, check=check)


# --- multistep exponential integrators -------------------------------------------------------


class History(NamedTuple):
    """The last estimates of x_0, newest first, with their lambda, and how many there are."""

    x_0: tuple[Array, ...]
    lam: tuple[Array, ...]
    known: Array

    def push(self, x_0: Array, lam: Array) -> History:
        return History((x_0, *self.x_0)[:-1], (lam, *self.lam)[:-1], self.known + 1)


def _no_history(length: int) -> Callable[[Array], History]:
    def init(x_T: Array) -> History:
        # Values that are not known get weight zero; their lambdas differ, so that it is finite.
        zeros = jnp.zeros((), x_T.dtype)
        lam = tuple(zeros + 100.0 * (i + 1) for i in range(length))
        return History((jnp.zeros_like(x_T),) * length, lam, jnp.zeros((), jnp.int32))

    return init


def _lam(schedule: Schedule, t: Array) -> Array:
    """lambda = log(alpha/sigma), kept finite at pure noise and at clean data."""
    return jnp.clip(0.5 * schedule(t).log_snr, -20.0, 20.0)


def _trusted(h: Array, gap: Array) -> Array:
    """Whether points ``gap`` apart may say how the denoiser goes on over a step h, in lambda.

    As a function of lambda the denoiser changes over lengths of about one (of normal data it is a
    logistic function), so over steps shorter than that always, else over twice the gap. Points that
    are closer would be followed far beyond what they know, and errors grow with h / gap.
    """
    return (gap > 0) & (h <= jnp.maximum(2.0 * gap, 1.0))


def moments(h: Array, count: int) -> list[Array]:
    """m_k = int_0^1 h e^(h (v - 1)) v^k dv for k < ``count``: 1 - e^(-h), (h - m_0)/h, ...

    The phi-functions of exponential integrators; the recursion m_k = 1 - k/h m_(k-1) cancels for
    small h, where the series is used.
    """
    closed, small = [-jnp.expm1(-h)], h < 1.0
    for k in range(1, count):
        closed.append(1 - k / jnp.where(small, 1.0, h) * closed[-1])
    near = jnp.where(small, h, 0.0)
    terms = [near**j * (-1) ** (j - 1) for j in range(1, 18)]
    series = [
        sum(x * (math.factorial(k) / math.factorial(k + j)) for j, x in enumerate(terms, 1))
        for k in range(count)
    ]
    return [jnp.where(small, a, b) for a, b in zip(series, closed, strict=True)]


def integration_weights(h: Array, nodes: Sequence[Array]) -> list[Array]:
    """w_j with sum_j w_j p(r_j) = int_0^1 h e^(h (v - 1)) p(v) dv for polynomials p.

    Exact for degrees below the number of ``nodes`` r_j, which are in units of the step h (0 is its
    beginning, 1 its end): the integrals of the Lagrange basis.
    """
    m, weights = moments(h, len(nodes)), []
    for j, r_j in enumerate(nodes):
        basis: list[Any] = [1.0]  # of prod_i (v - r_i)/(r_j - r_i), lowest power first
        for i, r_i in enumerate(nodes):
            if i != j:
                pairs = zip([0.0, *basis], [*basis, 0.0], strict=True)
                basis = [(raised - r_i * same) / (r_j - r_i) for raised, same in pairs]
        weights.append(sum(c * m_k for c, m_k in zip(basis, m, strict=True)))
    return weights


def _integrate(
    schedule: Schedule,
    x_t: Array,
    t: Array,
    s: Array,
    x_0: Sequence[Array],
    lam: Sequence[Array],
    known: Array,
) -> Array:
    """The step above with the polynomial through as many of the points (lam, x_0) as are known.

    And trusted. Where s is clean data the polynomial is the constant x_0[0].
    """
    at, to = schedule(t), schedule(s)
    h = _lam(schedule, s) - _lam(schedule, t)
    nodes = [(value - _lam(schedule, t)) / h for value in lam]
    x_s = to.sigma / at.sigma * x_t
    weights = [jnp.where(to.sigma > 0, moments(h, 1)[0], 1.0)] + [0.0] * (len(nodes) - 1)
    use = to.sigma > 0
    for n in range(2, len(nodes) + 1):
        better = integration_weights(h, nodes[:n]) + [0.0] * (len(nodes) - n)
        use &= (known >= n) & _trusted(h, lam[n - 2] - lam[n - 1])
        weights = [jnp.where(use, new, old) for new, old in zip(better, weights, strict=True)]
    for w, x in zip(weights, x_0, strict=True):
        x_s = x_s + to.alpha * w * x
    return x_s


@makes_solver
def dpm_solver_2m(eta: Array | float = 0.0) -> Solver:
    """DPM-Solver++(2M), and with eta = 1 its SDE form (Lu et al. 2022b, algorithm 2 and 7.3).

    The denoiser along a step is taken as x_0 + (x_0 - its last value) / (2 r) with r the ratio of
    the last step to this one in lambda; the first step, one into clean data, and one much longer
    than the last, use x_0 alone, and so are :func:`~.samplers.ddim`'s. Order 2, one evaluation a
    step.
    """

    def step(key, denoise, schedule, x_t, t, s, memory: History, noise):
        x_0, at, to = denoise(x_t, t), schedule(t), schedule(s)
        lam = _lam(schedule, t)
        h = _lam(schedule, s) - lam
        gap = lam - memory.lam[0]
        r, use = gap / h, (memory.known >= 1) & (to.sigma > 0) & _trusted(h, gap)
        middle = x_0 + jnp.where(use, 0.5 / r, 0.0) * (x_0 - memory.x_0[0])
        weight = jnp.where(to.sigma > 0, -jnp.expm1(-(1 + eta) * h), 1.0)
        x_s = to.sigma / at.sigma * jnp.exp(-eta * h) * x_t + to.alpha * weight * middle
        if not (isinstance(eta, (int, float)) and eta == 0):
            std = to.sigma * safe_sqrt(-jnp.expm1(-2 * eta * h))
            x_s += std * noise(key, x_t)
        return x_s, x_0, memory.push(x_0, lam)

    return Solver(step, _no_history(1))


@makes_solver
def dpm_solver_3m() -> Solver:
    """DPM-Solver++(3M): the quadratic through the last three x_0 (Lu et al. 2022b, section 4).

    Order 3 once three values are known; the first two steps are of orders 1 and 2, so a grid
    whose first steps are short keeps order 3 as a whole. One evaluation a step.
    """

    def step(key, denoise, schedule, x_t, t, s, memory: History, noise):
        x_0, lam = denoise(x_t, t), _lam(schedule, t)
        points = (x_0, *memory.x_0), (lam, *memory.lam), memory.known + 1
        return _integrate(schedule, x_t, t, s, *points), x_0, memory.push(x_0, lam)

    return Solver(step, _no_history(2))


class _Predicted(NamedTuple):
    x: Array  # the corrected x at the last time
    time: Array
    x_next: Array  # what was predicted from it, and for when
    time_next: Array
    history: History


@makes_solver
def unipc(order: int = 2) -> Solver:
    """UniPC (Zhao et al. 2023) with a corrector of order ``order`` + 1, one evaluation a step.

    The evaluation at the predicted x_t first corrects x_t itself, by the polynomial through it and
    the ``order`` values before it; the prediction of x_s then goes on from there. The coefficients
    integrate the polynomials exactly (the paper's UniPC with varying coefficients, in x_0 form).
    What is corrected is its own prediction: an x_t that was moved in between, as :func:`churned`
    and :func:`corrected` do, is taken as it is.
    """

    def init(x_T: Array) -> _Predicted:
        never = jnp.asarray(-1.0, x_T.dtype)
        return _Predicted(x_T, never, x_T, never, _no_history(order)(x_T))

    def step(key, denoise, schedule, x_t, t, s, memory: _Predicted, noise):
        x_0, lam, history = denoise(x_t, t), _lam(schedule, t), memory.history
        values, lams = (x_0, *history.x_0), (lam, *history.lam)
        known = history.known + 1
        unmoved = (t == memory.time_next) & jnp.all(x_t == memory.x_next)

        def correct() -> Array:
            before = memory.time.astype(t.dtype)
            x = _integrate(schedule, memory.x, before, t, values, lams, known)
            return x.astype(x_t.dtype)

        x_t = jax.lax.cond(unmoved, correct, lambda: x_t)
        x_s = _integrate(schedule, x_t, t, s, values[:order], lams[:order], known)
        new = _Predicted(x_t, t.astype(x_t.dtype), x_s, s.astype(x_t.dtype), history.push(x_0, lam))
        return x_s, x_0, new

    return Solver(step, init)


# --- what can be added to a solver -----------------------------------------------------------


class _Churned(NamedTuple):
    lam: Array  # of the last evaluation
    inner: Any


@makes_solver
def churned(
    solver: Solver,
    gamma: Array | float,
    low: float = 0.0,
    high: float = math.inf,
    s_noise: float = 1.0,
) -> Solver:
    """Raises the noise by a factor 1 + ``gamma`` before each step (Karras et al. 2022, alg. 2).

    ``gamma`` is the paper's min(S_churn/N, sqrt(2) - 1), ``low`` and ``high`` its S_tmin and
    S_tmax (of sigma/alpha), ``s_noise`` its S_noise. The schedule must have its inverse ``time``.
    Pure noise cannot be raised and stays. Where the noise hardly falls from one evaluation to the
    next, as it may near the end of a schedule, what differs between them is what was added, and the
    solver begins anew, without what it remembers.
    """

    def init(x_T: Array) -> _Churned:
        return _Churned(jnp.asarray(-jnp.inf, x_T.dtype), solver.init(x_T))

    def step(key, denoise, schedule, x_t, t, s, memory: _Churned, noise):
        key_churn, key = jax.random.split(key)
        at = schedule(t)
        inside = (at.sigma >= low * at.alpha) & (at.sigma <= high * at.alpha)
        inside &= (at.alpha > 0) & (jnp.asarray(gamma) > 0)
        log_snr = jnp.where(inside, at.log_snr, 0.0) - 2 * jnp.log1p(gamma)
        raised = jnp.where(inside, schedule.time(log_snr), t).astype(t.dtype)
        to = schedule(raised)
        std = jnp.where(inside, safe_sqrt(transition_variance(to, at)), 0.0)
        scale = jnp.where(inside, to.alpha / jnp.where(inside, at.alpha, 1.0), 1.0)
        x_t = (scale * x_t + s_noise * std * noise(key_churn, x_t)).astype(x_t.dtype)
        lam = _lam(schedule, raised)
        close = lam - memory.lam < 0.5 * (_lam(schedule, s) - lam)
        inner = jax.tree.map(
            lambda old, new: jnp.where(close, new, old), memory.inner, solver.init(x_t)
        )
        x_s, x_0, inner = solver.step(key, denoise, schedule, x_t, raised, s, inner, noise)
        return x_s, x_0, _Churned(lam.astype(x_t.dtype), inner)

    def check(schedule: Schedule, times: np.ndarray) -> None:
        if not hasattr(schedule, "time"):
            raise TypeError(
                "noise is raised in continuous time: use schedules.Interpolated(schedule)."
            )
        solver.check(schedule, times)

    return replace(solver, step=step, init=init, check=check)


@makes_solver
def corrected(solver: Solver, steps: int = 1, snr: float = 0.16) -> Solver:
    """A predictor with ``steps`` steps of Langevin dynamics after each of its own.

    x <- x + e score + sqrt(2 e) z (Song et al. 2021, algorithms 1, 4 and 5), with
    e = 2 (snr sigma)^2: the paper's step with the score's norm replaced by that of the noise over
    sigma, which does not depend on the other examples of a batch. None after a step into clean
    data.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        key, key_corrector = jax.random.split(key)
        x_s, x_0, memory = solver.step(key, denoise, schedule, x_t, t, s, memory, noise)
        std = 2 * snr * schedule(s).sigma  # sqrt(2 e)
        grad_log_q = score(x_0_of(denoise), schedule)

        def langevin(i, x):
            z = noise(jax.random.fold_in(key_corrector, i), x)
            return (x + 0.5 * std**2 * grad_log_q(x, s) + std * z).astype(x.dtype)

        def correct(x):
            return jax.lax.fori_loop(0, steps, langevin, x)

        return jax.lax.cond(ends_clean(schedule, s), lambda x: x, correct, x_s), x_0, memory

    def cost(schedule, t, s):
        return solver.cost(schedule, t, s) + (0 if ends_clean(schedule, s) else steps)

    return replace(solver, step=step, cost=cost)


SOLVERS: dict[str, Solver] = {  # by the names that commands give them
    "ancestral": ancestral(),
    "ddim": ddim(),
    "euler": euler(),
    "heun": heun(),
    "heun_churned": churned(heun(), 0.2, 0.05, 50.0),
    "euler_maruyama": euler_maruyama(),
    "predictor_corrector": corrected(euler_maruyama(), 1, 0.1),
    "dpm_solver_2m": dpm_solver_2m(),
    "dpm_solver_2m_sde": dpm_solver_2m(1.0),
    "dpm_solver_3m": dpm_solver_3m(),
    "unipc": unipc(),
}
