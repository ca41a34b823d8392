"""Samplers: one ``lax.scan`` of a solver's step over falling times, and the solvers of chains.

A :class:`Solver` moves x_t to x_s with a denoiser and a schedule, so it serves every prediction
target and every guidance rule; what it draws comes from the key of its row. Here are the contract
and the solvers that know only two levels, ancestral sampling and DDIM, which serve discrete and
continuous schedules alike; :mod:`jaxgen.diffusion.solvers` has those of higher order.

At the ends of time. A step into clean data answers the estimate of x_0. One from pure noise keeps
nothing of x_t but its noise. What a solver or a prediction cannot do there is refused before
anything is compiled, in a sentence that names what to use instead.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.extend.core import jaxpr_as_fun

from jaxgen.diffusion.parameterization import Denoiser, x_0_of
from jaxgen.diffusion.process import (
    Level,
    Noise,
    Schedule,
    diffuse,
    expand,
    interpolated_log_variance,
    known_level,
    posterior_mean,
    posterior_variance,
    safe_sqrt,
    standard_normal,
    transition_variance,
)

Variance = Callable[[Level, Level], Array]
VARIANCES: dict[str, Variance] = {
    "beta": transition_variance,
    "beta_tilde": posterior_variance,
}


class Step(Protocol):
    """Moves x_t ``[B, ...]`` from time t to s (scalars): (x_s, the estimate of x_0, memory).

    What it draws is ``noise(key, x_t)``.
    """

    def __call__(
        self,
        key: Array,
        denoise: Denoiser,
        schedule: Schedule,
        x_t: Array,
        t: Array,
        s: Array,
        memory: Any,
        noise: Noise,
    ) -> tuple[Array, Array, Any]: ...


def check_falling(schedule: Schedule, times: np.ndarray) -> None:
    """Refuses times that do not fall, of levels that do not rise in noise.

    Raises:
      ValueError: naming the times.
    """
    if not np.all(np.diff(times) < 0):
        raise ValueError(f"sampling times must fall, from noise to data, got {_shown(times)}.")
    level = known_level(schedule, times)
    end = getattr(schedule, "end", None)
    if end is not None and not isinstance(end, Tracer) and np.max(times) > end * (1 + 1e-5):
        raise ValueError(
            f"this schedule ends at time {end:g}, and times begin at {np.max(times):g}: give times "
            "in its own unit, or a schedule that ends later."
        )
    if level is not None:
        valid = np.isfinite(level).all() and np.min(level) >= 0
        # sigma/alpha may not rise from one time to the next
        products = level.sigma[:-1] * level.alpha[1:] - level.sigma[1:] * level.alpha[:-1]
        if not valid or np.any(products < -1e-6):
            raise ValueError(
                f"the noise does not fall along the times {_shown(times)}: they are not times of "
                "this schedule."
            )


def _shown(times: np.ndarray) -> str:
    ends = [f"{t:.4g}" for t in times]
    return ", ".join(ends if len(ends) < 7 else [*ends[:3], "...", *ends[-3:]])


@dataclass(frozen=True)
class Solver:
    """A step, what it remembers between steps, and how often it evaluates the denoiser.

    ``step`` calls ``denoise(x_t, t)`` with a scalar t. ``cost(schedule, t, s)`` is the number of
    evaluations in the step from t to s; :func:`evaluations` adds them up.
    ``check(schedule, times)`` raises where the solver cannot serve. ``pair`` says that the step
    takes the pair (x_0, nu) of a learned variance, where others take x_0 alone. The same call makes
    the same solver, as long as its arguments are not arrays.
    """

    step: Step
    init: Callable[[Array], Any] = lambda x_T: ()
    cost: Callable[[Schedule, Any, Any], int] = lambda schedule, t, s: 1
    check: Callable[[Schedule, np.ndarray], None] = check_falling
    pair: bool = False


Make = TypeVar("Make", bound=Callable[..., Solver])


def makes_solver(make: Make) -> Make:
    """So that ``ddim() == ddim()``, and a solver may be a static argument of ``jit``."""
    remembered = functools.lru_cache(maxsize=None)(make)

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Solver:
        try:
            return remembered(*args, **kwargs)
        except TypeError:  # an argument is an array, or is traced, and has no hash
            return make(*args, **kwargs)

    return made  # pyright: ignore[reportReturnType]


def sample(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    solver: Solver,
    noise: Noise = standard_normal,
) -> Array:
    """Runs the reverse process from ``x_T [B, ...]`` through ``times`` (falling, ``[n + 1]``).

    Returns x at the last time, ``[B, ...]``, after :func:`evaluations` calls of ``denoise``. It is
    differentiable, and every value that the solver or the denoiser closes over may be traced, so
    that it can be vmapped or changed without a new compilation. The path is kept in float32 where
    x_T is of less precision; the denoiser always sees, and the result has, the dtype of x_T.
    ``noise`` is what a stochastic solver adds, as x_T was made of it too.

    Called outside of ``jit``, it traces each time and compiles once a program: other values, of
    the parameters too, compile nothing.

    Raises:
      ValueError: if the times, the solver or the denoiser do not go with the schedule, as far as
        times and schedule are known while tracing.
      TypeError: for integer times of a continuous schedule, or real ones of a discrete one.
    """
    return _run(key, denoise, schedule, x_T, times, solver, noise, lambda x_s, x_0: None)[0]


def sample_path(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x_T: Array,
    times: Array | np.ndarray,
    solver: Solver,
    noise: Noise = standard_normal,
) -> tuple[Array, tuple[Array, Array]]:
    """:func:`sample` with its path: every x_s and the x_0 estimated for it, ``[n, B, ...]``."""
    return _run(key, denoise, schedule, x_T, times, solver, noise, lambda x_s, x_0: (x_s, x_0))


def _run(key, denoise, schedule, x_T, times, solver, noise, keep):
    x_T = jnp.asarray(x_T)
    check_sampling(solver, denoise, schedule, x_T, times)

    def run(key: Array, x_T: Array, times: Array) -> Any:
        return _scan(key, denoise, schedule, x_T, times, solver, noise, keep)

    return _compiled_once(run, key, x_T, jnp.asarray(times))


def check_sampling(
    solver: Solver, denoise: Denoiser, schedule: Schedule, x_T: Array, times: Array | np.ndarray
) -> None:
    """Refuses what cannot be sampled, before anything is compiled; see :func:`sample`."""
    if isinstance(times, Tracer):
        return
    times = np.asarray(times)
    solver.check(schedule, times)
    check_start(denoise, schedule, x_T, times[0])


def check_start(denoise: Denoiser, schedule: Schedule, x: Array, t: Any) -> None:
    """Where t is known to be pure noise, traces ``denoise`` there, so that it may refuse it."""
    level, symbolic = known_level(schedule, t), jax.export.is_symbolic_dim(x.shape[0])
    if level is None or level.alpha > 0 or symbolic:
        return
    with jax.ensure_compile_time_eval():
        times = jnp.full(x.shape[:1], jnp.asarray(t))
    jax.eval_shape(lambda x: denoise(x, times), x)


def _scan(key, denoise, schedule, x_T, times, solver, noise, keep):
    denoise = denoise if solver.pair else x_0_of(denoise)
    dtype = jnp.promote_types(x_T.dtype, jnp.float32)  # of the path
    if jnp.issubdtype(times.dtype, jnp.floating):
        times = times.astype(dtype)

    def at(x: Array, t: Array) -> Any:
        estimate = denoise(x.astype(x_T.dtype), jnp.full(x.shape[:1], t))
        return jax.tree.map(lambda value: value.astype(dtype), estimate)

    def body(carry, row):
        t, s, key = row
        x_s, x_0, memory = solver.step(key, at, schedule, carry[0], t, s, carry[1], noise)
        # A schedule of another precision does not change that of the path.
        new = jax.tree.map(lambda new, old: new.astype(old.dtype), (x_s, memory), carry)
        return new, jax.tree.map(lambda x: x.astype(x_T.dtype), keep(new[0], x_0))

    rows = (times[:-1], times[1:], jax.random.split(key, len(times) - 1))
    x = x_T.astype(dtype)
    (x, _), kept = jax.lax.scan(body, (x, solver.init(x)), rows)
    return x.astype(x_T.dtype), kept


PROGRAMS_KEPT = 100
_compiled: dict[Any, Callable[..., Any]] = {}  # by the text of the program and where it runs


def _compiled_once(function: Callable[..., Any], *args: Any) -> Any:
    """``function(*args)``, compiled unless a program of the same text was compiled before.

    It is traced at each call, so that what it closes over may change; arrays among that are
    arguments of the program. ``jit`` would know it by its identity, and it is another closure at
    each call. Inside another transformation it is inlined.
    """
    if jax.config.jax_disable_jit:  # pyright: ignore[reportAttributeAccessIssue]
        return function(*args)
    out = []

    def flat(*args: Any) -> list[Array]:
        leaves, tree = jax.tree.flatten(function(*args))
        out.append(tree)
        return leaves

    closed = jax.make_jaxpr(flat)(*args)
    run = lambda consts, *args: jaxpr_as_fun(closed.replace(consts=consts))(*args)  # noqa: E731
    values = [*closed.consts, *args]
    leaves = None
    if not closed.effects and not any(isinstance(value, Tracer) for value in values):
        lowered = jax.jit(run).lower(closed.consts, *args)
        text = lowered.as_text()
        # A callback is a function of this process, which the text of the program does not tell.
        if "callback" not in text:
            placed = tuple(getattr(value, "sharding", None) for value in values)
            program = hashlib.sha256(text.encode()).hexdigest(), placed
            if program not in _compiled:
                if len(_compiled) >= PROGRAMS_KEPT:
                    del _compiled[next(iter(_compiled))]  # the oldest
                _compiled[program] = lowered.compile()
            leaves = _compiled[program](closed.consts, *args)
    return jax.tree.unflatten(out[-1], leaves or run(closed.consts, *args))


def evaluations(solver: Solver, schedule: Schedule, times: Array | np.ndarray) -> int:
    """How often :func:`sample` calls the denoiser (the number of function evaluations, NFE)."""
    with jax.ensure_compile_time_eval():
        times = np.asarray(times)
        return sum(solver.cost(schedule, t, s) for t, s in itertools.pairwise(times))


def ends_clean(schedule: Schedule, s: Array) -> Array:
    """Whether time s has no noise: no second evaluation can be made there."""
    return schedule(s).sigma == 0


def unless_clean(schedule: Schedule, s: Array, x_s: Array, x_0: Array) -> Array:
    """``x_s``, and alpha x_0 at clean data: there a derivative in time may be infinite."""
    return jnp.where(ends_clean(schedule, s), schedule(s).alpha * x_0, x_s)


# (what draws z, x_t, x_0, level of t, level of s) -> x_s
UpdateRule = Callable[[Callable[[], Array], Array, Array, Level, Level], Array]


def from_estimate(update: UpdateRule) -> Solver:
    """The solver of an ``update(draw, x_t, x_0, level of t, level of s) -> x_s``: one evaluation.

    ``draw()`` is the noise z of the step.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        x_0 = denoise(x_t, t)
        draw = lambda: noise(key, x_t)  # noqa: E731
        return update(draw, x_t, x_0, schedule(t), schedule(s)), x_0, memory

    return Solver(step)


def noise_std(variance: Array, s: Level) -> Array:
    """The standard deviation of a step's noise: none enters clean data."""
    return jnp.where(s.sigma > 0, safe_sqrt(variance), 0.0)


@makes_solver
def ancestral(variance: Variance = posterior_variance) -> Solver:
    """Algorithm 2 of Ho et al. 2020, x_s = mu(x_t, x_0) + sigma z.

    ``variance`` is the paper's choice of sigma_t^2: :func:`~.process.posterior_variance` for
    beta-tilde_t, :func:`~.process.transition_variance` for beta_t. No noise enters clean data.
    """

    def update(draw: Callable[[], Array], x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        std = expand(noise_std(variance(t, s), s), x_t)
        return posterior_mean(x_t, x_0, t, s) + std * draw()

    return from_estimate(update)


@makes_solver
def learned_ancestral() -> Solver:
    """:func:`ancestral` with a learned variance (Nichol & Dhariwal 2021, eq. 15).

    The denoiser returns the pair (x_0, nu), with nu ``[B, ...]`` in [0, 1] from beta-tilde to beta.

    Raises:
      ValueError: if it returns x_0 alone.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        estimate = denoise(x_t, t)
        if not isinstance(estimate, tuple):
            raise ValueError(
                "the denoiser answers no variance: train one with hybrid_loss, or sample by "
                "ancestral, whose variance is fixed."
            )
        x_0, nu = estimate
        at, to = schedule(t), schedule(s)
        log_variance = interpolated_log_variance(
            nu, transition_variance(at, to), posterior_variance(at, to)
        )
        z = jnp.where(to.sigma > 0, noise(key, x_t), 0.0)
        return posterior_mean(x_t, x_0, at, to) + jnp.exp(0.5 * log_variance) * z, x_0, memory

    return Solver(step, pair=True)


def ddim_step(x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
    """alpha_s x_0 + sigma_s eps with the eps that x_t and x_0 imply, ``[B, ...]``.

    Song et al. 2021a, eq. 12 without noise: how x_t would move if the denoiser stayed at x_0.
    """
    eps = (x_t - expand(t.alpha, x_t) * x_0) / expand(t.sigma, x_t)
    return expand(s.alpha, x_0) * x_0 + expand(s.sigma, eps) * eps


@makes_solver
def ddim(eta: Array | float = 0.0) -> Solver:
    """x_s = alpha_s x_0 + sqrt(sigma_s^2 - std^2) eps + std z (Song et al. 2021a, eq. 12 and 16).

    eta in [0, 1] scales std from 0, which is deterministic, to that of :func:`ancestral`.
    """
    deterministic = isinstance(eta, (int, float)) and eta == 0

    def update(draw: Callable[[], Array], x_t: Array, x_0: Array, t: Level, s: Level) -> Array:
        if deterministic:
            return ddim_step(x_t, x_0, t, s)
        # std = eta sigma_s sqrt(share), with share 1 - SNR_t/SNR_s of the variance at s
        share = jnp.where(s.sigma > 0, transition_variance(t, s) / t.sigma**2, 0.0)
        direction = Level(s.alpha, s.sigma * safe_sqrt(1 - eta**2 * share))
        std = expand(eta * s.sigma * noise_std(share, s), x_t)
        return ddim_step(x_t, x_0, t, direction) + std * draw()

    return from_estimate(update)


@makes_solver
def consistency(first: float = 0.0) -> Solver:
    """x_s = alpha_s x_0 + std z: multistep sampling of a consistency function.

    Song et al. 2023, algorithm 1. Each step answers with x_0 and begins again from less noise. What
    it answers has the noise of the time ``first``, at which the function is the identity, and so
    std^2 = sigma_s^2 - (alpha_s/alpha_first)^2 sigma_first^2, their tau^2 - epsilon^2.
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        least = schedule(jnp.asarray(first, jnp.result_type(t)))
        x_0, to = denoise(x_t, t), schedule(s)
        std = safe_sqrt(to.sigma**2 - (to.alpha / least.alpha * least.sigma) ** 2)
        return diffuse(x_0, noise(key, x_t), Level(to.alpha, std)), x_0, memory

    return Solver(step)


def ddim_inversion(
    denoise: Denoiser,
    schedule: Schedule,
    x: Array,
    times: Array | np.ndarray,
    iterations: int = 1,
) -> Array:
    """The x_T ``[B, ...]`` from which :func:`ddim` with eta = 0 makes ``x`` through ``times``.

    ``times`` fall, as for :func:`sample`. Each step solves for x_t by fixed-point iteration: with
    one iteration it is the usual approximation that takes the noise from x_s (Song et al. 2021a,
    section 5.4), with more it is the exact inverse wherever the iteration contracts.

    Raises:
      ValueError: as :func:`sample`; and for a step from clean data to pure noise, of which the
        first says nothing about the second.
    """
    check_sampling(ddim(), denoise, schedule, x, times)
    level = known_level(schedule, times if isinstance(times, Tracer) else np.asarray(times))
    if level is not None and np.any((level.alpha[:-1] == 0) & (level.sigma[1:] == 0)):
        raise ValueError(
            "a step between clean data and pure noise has no inverse: give times between them."
        )
    denoise = x_0_of(denoise)

    def body(x_s: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        t, s = row
        at, to = schedule(t), schedule(s)
        noisy = (at.alpha < at.sigma) & (to.sigma > 0)

        def improve(_, x_t: Array) -> Array:
            x_0 = denoise(x_t, jnp.full(x.shape[:1], t))
            # Two forms of the inverse step, with the noise seen from x_s and from x_t. The first
            # contracts at much noise and serves pure noise, the second serves clean data.
            eps = (x_s - to.alpha * x_0) / jnp.where(noisy, to.sigma, 1.0)
            from_s = at.alpha * x_0 + at.sigma * eps
            eps = (x_t - at.alpha * x_0) / at.sigma
            from_t = at.alpha / to.alpha * (x_s - to.sigma * eps) + at.sigma * eps
            return jnp.where(noisy, from_s, from_t).astype(x.dtype)

        return jax.lax.fori_loop(0, iterations, improve, x_s), None

    def run(x: Array, times: Array) -> Array:
        return jax.lax.scan(body, x, (times[:-1][::-1], times[1:][::-1]))[0]

    return _compiled_once(run, jnp.asarray(x), jnp.asarray(times))


# --- going back up: the resampling of RePaint ------------------------------------------------


@makes_solver
def resampling(solver: Solver) -> Solver:
    """``solver`` for times that also rise: up from t to s, x_s is drawn from q(x_s|x_t).

    With :func:`resampling_times` and an inpainting denoiser it is RePaint (Lugmayr et al. 2022).
    """

    def step(key, denoise, schedule, x_t, t, s, memory, noise):
        def up(memory):
            at, to = schedule(t), schedule(s)
            std = safe_sqrt(transition_variance(to, at))
            return to.alpha / at.alpha * x_t + std * noise(key, x_t), x_t, solver.init(x_t)

        def down(memory):
            return solver.step(key, denoise, schedule, x_t, t, s, memory, noise)

        return jax.lax.cond(s > t, up, down, memory)

    def cost(schedule, t, s):
        return 0 if s > t else solver.cost(schedule, t, s)

    def check(schedule: Schedule, times: np.ndarray) -> None:
        for run in np.split(times, np.flatnonzero(np.diff(times) > 0) + 1):
            if len(run) > 1:
                solver.check(schedule, run)

    return replace(solver, step=step, cost=cost, check=check)


def resampling_times(times: np.ndarray, jump: int = 10, repeats: int = 10) -> np.ndarray:
    """``times`` with every stretch of ``jump`` steps gone through ``repeats`` times.

    Lugmayr et al. 2022, algorithm 1 and section 5.6; stretches that end in the last time are gone
    through once, since no noise can be added to clean data twice.
    """
    times, path, i = np.asarray(times), [times[0]], 0
    while i < len(times) - 1:
        stop = min(i + jump, len(times) - 1)
        again = 1 if stop == len(times) - 1 else repeats
        for k in range(again):
            path += list(times[i + 1 : stop + 1])
            if k < again - 1:
                path.append(times[i])
        i = stop
    return np.asarray(path)
