"""Noise schedules: which (alpha_t, sigma_t) belongs to a time, and which time to a log-SNR.

A discrete schedule is its betas, beta_1..beta_T. The products alpha-bar_t are formed in float64 on
the host, where T of them lose nothing, and kept as float32 tables indexed by t = 0..T, where t = 0
is clean data.

A continuous schedule is a formula over t in [0, end], where end is 1 (or t = sigma,
:class:`Sigma`), with its inverse ``time(log_snr)``. The drift and the diffusion of its SDE are
derivatives of it (:mod:`jaxgen.diffusion.sde`), so that no formula is written twice. A schedule may
begin with clean data (log-SNR of +inf) and end in pure noise (-inf).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array
from jax.core import Tracer

from jaxgen.diffusion.process import Level, Schedule


@struct.dataclass
class DiscreteSchedule:
    """The levels of t = 0..T of a variance-preserving chain: alpha_t^2 = alpha-bar_t."""

    alpha: Array | np.ndarray  # [T + 1], alpha[0] = 1
    sigma: Array | np.ndarray  # [T + 1], sigma[0] = 0

    @property
    def steps(self) -> int:
        """T."""
        return self.alpha.shape[0] - 1

    @property
    def end(self) -> int:
        """The time of the prior: T."""
        return self.steps

    def __call__(self, t: Array) -> Level:
        """The level of integer times t in 0..T, of t's shape.

        Raises:
          TypeError: if t is not an integer.
          ValueError: if a t that is known while tracing is not in 0..T; one that is not known
            answers NaN.
        """
        if not jnp.issubdtype(jnp.result_type(t), jnp.integer):
            raise TypeError(
                f"a discrete schedule has the times 0..{self.steps}: give integers, or use "
                "schedules.Interpolated(schedule), which takes times in [0, 1]."
            )
        if not isinstance(t, Tracer):
            known = np.asarray(t)
            if known.size and (known.min() < 0 or known.max() > self.steps):
                raise ValueError(
                    f"a time must be in 0..{self.steps}, got {known.min()}..{known.max()}."
                )
        inside = {"mode": "fill", "fill_value": jnp.nan, "wrap_negative_indices": False}
        alpha, sigma = (jnp.asarray(table).at[t] for table in (self.alpha, self.sigma))
        return Level(alpha.get(**inside), sigma.get(**inside))


def steps_of(schedule: Schedule, instead: str) -> int:
    """T of a discrete schedule.

    Raises:
      TypeError: for a continuous one, which has no steps, with what to use ``instead``.
    """
    steps = getattr(schedule, "steps", None)
    if steps is None:
        raise TypeError(
            f"this is for schedules with steps 1..T, as from_betas makes them, and "
            f"{type(schedule).__name__} is one of continuous time: {instead}."
        )
    return steps


def from_betas(beta: np.ndarray) -> DiscreteSchedule:
    """The schedule of the transition variances beta_1..beta_T (Ho et al. 2020, section 2).

    Raises:
      ValueError: if a beta is not in (0, 1).
    """
    beta = np.asarray(beta, np.float64)
    if beta.ndim != 1 or not np.all((beta > 0) & (beta < 1)):
        raise ValueError("beta must be a vector of values strictly between 0 and 1.")
    log_alpha_bar = np.concatenate([[0.0], np.cumsum(np.log1p(-beta))])
    alpha, sigma = np.exp(log_alpha_bar / 2), np.sqrt(-np.expm1(log_alpha_bar))
    return DiscreteSchedule(alpha.astype(np.float32), sigma.astype(np.float32))


def linear_betas(
    steps: int = 1000, first: float | None = None, last: float | None = None
) -> np.ndarray:
    """beta_t linear in t from ``first`` to ``last``, ``[T]`` (Ho et al. 2020, section 4).

    By default 0.1/T and 20/T, at most 0.999: the paper's 1e-4 and 0.02 where T is 1000, and as much
    noise at the end of a chain of any other length.
    """
    first = 0.1 / steps if first is None else first
    last = 20 / steps if last is None else last
    return np.minimum(np.linspace(first, last, steps), 0.999)


def scaled_linear_betas(
    steps: int = 1000, first: float | None = None, last: float | None = None
) -> np.ndarray:
    """sqrt(beta_t) linear in t, ``[T]``, as in latent diffusion (Rombach et al. 2022).

    By default from 0.85/T to 12/T, at most 0.999, as in :func:`linear_betas`.
    """
    first = 0.85 / steps if first is None else first
    last = 12 / steps if last is None else last
    return np.minimum(np.linspace(first**0.5, last**0.5, steps) ** 2, 0.999)


def betas_of(
    alpha_bar: Callable[[np.ndarray], np.ndarray], steps: int, largest: float = 0.999
) -> np.ndarray:
    """beta_t = 1 - alpha-bar(t/T) / alpha-bar((t - 1)/T), at most ``largest``, ``[T]``."""
    values = alpha_bar(np.arange(steps + 1) / steps)
    return np.minimum(1 - values[1:] / values[:-1], largest)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """alpha-bar(t) proportional to cos^2((t + s)/(1 + s) pi/2), t in [0, 1]: ``[T]``.

    Nichol & Dhariwal 2021, eq. 17; beta_t is clipped at ``largest`` near t = T.
    """
    return betas_of(lambda t: np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2, steps, largest)


def sigmoid_betas(
    steps: int = 1000, start: float = -3.0, end: float = 3.0, temperature: float = 1.0
) -> np.ndarray:
    """alpha-bar(t) falling like a logistic from ``start`` to ``end``, rescaled to 1..0: ``[T]``.

    Jabri et al. 2022, algorithm in the appendix; beta_t is clipped at 0.999 near t = T.
    """
    logistic = lambda t: 1 / (1 + np.exp(-(t * (end - start) + start) / temperature))  # noqa: E731
    low, high = logistic(0.0), logistic(1.0)
    return betas_of(lambda t: (high - logistic(t)) / (high - low), steps)


def respaced_times(steps: int, count: int, power: float = 1.0) -> np.ndarray:
    """``count + 1`` integer times from T = ``steps`` down to 0, all different.

    They are spaced like i^``power``: 1 for even spacing, 2 for the quadratic spacing of Song et
    al. 2021a (appendix D.2), which lets more of the steps fall near the data.

    Raises:
      ValueError: if there are fewer than ``count`` steps to choose from.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"the number of sampling steps must be in 1..{steps}, got {count}.")
    times = np.round(steps * np.linspace(1, 0, count + 1) ** power).astype(np.int32)
    # Times fall by at least one where times + index do not rise: where rounding would repeat one,
    # those before it move up to the next free ones, and from T on down again.
    index = np.arange(count + 1, dtype=np.int32)
    falling = np.maximum.accumulate((times + index)[::-1])[::-1]
    return np.minimum(falling, steps) - index


class ContinuousSchedule(Schedule, Protocol):
    """A schedule over real times in [0, ``end``], and its inverse (all of any shape).

    ``time`` answers the time at which the schedule has a log-SNR. ``curve`` answers the one level
    on the schedule's curve, such as alpha^2 + sigma^2 = 1, of the same log-SNR as a given pair
    (alpha, sigma): unlike a log-SNR, such a pair is finite at both ends of time.
    """

    @property
    def end(self) -> Any: ...

    def time(self, log_snr: Array) -> Array: ...

    def curve(self, level: Level) -> Level: ...


def real(t: Any) -> Array:
    """Times of a continuous schedule, as an array.

    Raises:
      TypeError: for an array of integers, which are the times of a discrete schedule.
    """
    if not isinstance(t, int) and not jnp.issubdtype(jnp.result_type(t), jnp.floating):
        raise TypeError(
            "a continuous schedule has real times, got integers: divide those of a discrete "
            "schedule by its number of steps."
        )
    return jnp.asarray(t, None if not isinstance(t, int) else jnp.result_type(float))


def preserving(level: Level) -> Level:
    """The curve alpha^2 + sigma^2 = 1: variance-preserving."""
    alpha, sigma = level
    size = jnp.sqrt(alpha**2 + sigma**2)
    return Level(alpha / size, sigma / size)


def exploding(level: Level) -> Level:
    """The curve alpha = 1: variance-exploding."""
    return Level(jnp.ones_like(level.alpha), level.sigma / level.alpha)


def straight(level: Level) -> Level:
    """The curve alpha + sigma = 1: straight paths."""
    alpha, sigma = level
    return Level(alpha / (alpha + sigma), sigma / (alpha + sigma))


def variance_preserving(log_snr: Array) -> Level:
    """The level of a log-SNR with alpha^2 + sigma^2 = 1: alpha^2 = sigmoid(log_snr)."""
    return Level(
        jnp.exp(0.5 * jax.nn.log_sigmoid(log_snr)), jnp.exp(0.5 * jax.nn.log_sigmoid(-log_snr))
    )


@struct.dataclass
class VP:
    """The variance-preserving SDE, beta(t) linear from beta_min to beta_max.

    Song et al. 2021, eq. 11 and 33: the limit of DDPM's linear schedule. Clean data at t = 0.
    """

    beta_min: float = 0.1
    beta_max: float = 20.0

    end = 1.0
    curve = staticmethod(preserving)

    def mean_beta(self, t: Array) -> Array:
        """The mean of beta from 0 to t."""
        return self.beta_min + 0.5 * t * (self.beta_max - self.beta_min)

    def log_alpha(self, t: Array) -> Array:
        """-1/2 times the integral of beta from 0 to t."""
        return -0.5 * t * self.mean_beta(t)

    def time_of_log_alpha(self, log_alpha: Array) -> Array:
        """The positive root of the quadratic above, in the form that does not cancel."""
        slope, bend = self.beta_min, self.beta_max - self.beta_min
        log_alpha = jnp.maximum(log_alpha, -1e30)  # pure noise has a time too, far beyond the end
        return -4 * log_alpha / (slope + jnp.sqrt(slope**2 - 4 * bend * log_alpha))

    def __call__(self, t: Array) -> Level:
        t = real(t)
        # sigma^2 = 1 - e^-B with B = t mean_beta(t). The root of t is taken by itself, so that at
        # t = 0 only the derivative in t is infinite, and not those in beta_min and beta_max.
        B = t * self.mean_beta(t)
        small = B < 1e-2
        ratio = jnp.where(  # (1 - e^-B) / B
            small,
            1 - B / 2 + B**2 / 6 - B**3 / 24,
            -jnp.expm1(-B) / jnp.where(small, 1.0, B),
        )
        return Level(jnp.exp(-0.5 * B), jnp.sqrt(t) * jnp.sqrt(self.mean_beta(t) * ratio))

    def time(self, log_snr: Array) -> Array:
        return self.time_of_log_alpha(-0.5 * jax.nn.softplus(-log_snr))


@struct.dataclass
class SubVP:
    """The sub-VP SDE: VP's alpha, but sigma = 1 - alpha^2 (Song et al. 2021, eq. 12 and 29)."""

    beta_min: float = 0.1
    beta_max: float = 20.0
    end = 1.0

    def __call__(self, t: Array) -> Level:
        log_alpha = VP(self.beta_min, self.beta_max).log_alpha(real(t))
        return Level(jnp.exp(log_alpha), -jnp.expm1(2 * log_alpha))

    def curve(self, level: Level) -> Level:
        # sigma/alpha = r and sigma = 1 - alpha^2, solved for sigma = 2 r/(r + sqrt(r^2 + 4))
        alpha, sigma = level
        total = sigma + jnp.sqrt(sigma**2 + 4 * alpha**2)
        return Level(2 * alpha / total, 2 * sigma / total)

    def time(self, log_snr: Array) -> Array:
        ratio = jnp.exp(-0.5 * log_snr)
        total = 1 + jnp.sqrt(1 + 4 / ratio**2)  # sigma = 2/total, alpha = sigma/ratio
        log_alpha = jnp.where(
            ratio < 1, 0.5 * jnp.log1p(-2 / total), jnp.log(2 / total) + 0.5 * log_snr
        )
        return VP(self.beta_min, self.beta_max).time_of_log_alpha(log_alpha)


@struct.dataclass
class VE:
    """The variance-exploding SDE: alpha = 1, sigma from sigma_min to sigma_max geometrically.

    Song et al. 2021, eq. 30. At t = 0 the noise sigma_min is left.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    end = 1.0
    curve = staticmethod(exploding)

    def __call__(self, t: Array) -> Level:
        sigma = self.sigma_min * jnp.exp(real(t) * jnp.log(self.sigma_max / self.sigma_min))
        return Level(jnp.ones_like(sigma), sigma)

    def time(self, log_snr: Array) -> Array:
        span = jnp.log(self.sigma_max / self.sigma_min)
        return (-0.5 * log_snr - jnp.log(self.sigma_min)) / span


@struct.dataclass
class Sigma:
    """alpha = 1 and time is sigma itself, up to ``end`` (Karras et al. 2022).

    To be used with their grid of it, :func:`karras_grid`.
    """

    end: float = 80.0
    curve = staticmethod(exploding)

    def __call__(self, t: Array) -> Level:
        t = real(t)
        return Level(jnp.ones_like(t), t)

    def time(self, log_snr: Array) -> Array:
        return jnp.exp(-0.5 * log_snr)


@struct.dataclass
class FlowMatching:
    """The straight line alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023).

    It ends in pure noise: at t = 1 ``velocity``, ``v``, ``x_0`` and ``edm`` say what x_0 is, while
    ``eps`` and ``score`` know nothing of it.
    """

    end = 1.0
    curve = staticmethod(straight)

    def __call__(self, t: Array) -> Level:
        t = real(t)
        return Level(1 - t, t)

    def time(self, log_snr: Array) -> Array:
        return jax.nn.sigmoid(-0.5 * log_snr)


@struct.dataclass
class LogSNR:
    """The variance-preserving schedule of any strictly falling ``log_snr(t)`` over [0, 1].

    With a network it is the learned schedule of Kingma et al. 2021 (section 4.1). Its inverse is
    found by bisection, has the derivative of an inverse, and answers 0 or 1 beyond the ends.
    """

    log_snr: Callable[[Array], Array] = struct.field(pytree_node=False)
    end = 1.0
    curve = staticmethod(preserving)

    def __call__(self, t: Array) -> Level:
        return variance_preserving(self.log_snr(real(t)))

    def time(self, log_snr: Array) -> Array:
        log_snr = 1.0 * jnp.asarray(log_snr)

        def bisect(excess: Callable[[Array], Array], start: Array) -> Array:
            def halve(_, bounds):
                low, high = bounds
                middle = 0.5 * (low + high)
                cleaner = excess(middle) > 0  # the time sought is later
                return jnp.where(cleaner, middle, low), jnp.where(cleaner, high, middle)

            return jax.lax.fori_loop(0, 40, halve, (0 * start, 0 * start + 1))[0]

        return jax.lax.custom_root(
            lambda t: self.log_snr(t) - log_snr,
            jnp.zeros_like(log_snr),
            bisect,
            lambda slope, y: y / slope(jnp.ones_like(y)),
        )


def log_snr_of_levels(levels: int) -> float:
    """The log-SNR at which data of ``levels`` values in [-1, 1] are as good as known.

    Half a bin, 1/(levels - 1), is then three standard deviations of the noise sigma/alpha: 13.3 for
    256 levels, the start of Kingma et al. 2021. A schedule that starts far beyond it pays in its
    bound for pixels that were decided long ago.
    """
    return float(2 * np.log(3 * (levels - 1)))


@struct.dataclass
class LinearLogSNR:
    """log-SNR linear in t, variance-preserving (Kingma et al. 2021, the fixed schedule)."""

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    end = 1.0
    curve = staticmethod(preserving)

    def __call__(self, t: Array) -> Level:
        fall = self.log_snr_min - self.log_snr_max
        return variance_preserving(self.log_snr_max + real(t) * fall)

    def time(self, log_snr: Array) -> Array:
        return (self.log_snr_max - log_snr) / (self.log_snr_max - self.log_snr_min)


@struct.dataclass
class CosineLogSNR:
    """alpha = cos(pi t/2) in continuous time, cut at log_snr_max and log_snr_min.

    log_snr(t) = -2 log tan(a + t (b - a)) (Salimans & Ho 2022, section 2; Hoogeboom et al. 2023).
    """

    log_snr_max: float = 15.0
    log_snr_min: float = -15.0
    end = 1.0
    curve = staticmethod(preserving)

    def __call__(self, t: Array) -> Level:
        # The angle, and its complement, which is that of -log_snr: both ends may be infinite.
        angle, complement = (
            first + real(t) * (last - first)
            for first, last in (
                (self._angle(self.log_snr_max), self._angle(self.log_snr_min)),
                (self._angle(-self.log_snr_max), self._angle(-self.log_snr_min)),
            )
        )
        return Level(jnp.sin(complement), jnp.sin(angle))

    def time(self, log_snr: Array) -> Array:
        first, last = self._angle(self.log_snr_max), self._angle(self.log_snr_min)
        return (self._angle(log_snr) - first) / (last - first)

    def _angle(self, log_snr: Array | float) -> Array:
        return jnp.arctan(jnp.exp(-0.5 * jnp.asarray(log_snr)))


@struct.dataclass
class Shifted:
    """Another schedule with ``shift`` added to its log-SNR at every time.

    For images d pixels wide and a schedule made for d_0, 2 log(d_0/d) keeps the noise of the
    coarse pixels (Hoogeboom et al. 2023, eq. 4). On :class:`FlowMatching` it is the time shift
    t' = m t / (1 + (m - 1) t) of Esser et al. 2024 (eq. 23) with shift = -2 log m.
    """

    schedule: ContinuousSchedule
    shift: Array | float

    @property
    def end(self) -> Any:
        return self.schedule.end

    def __call__(self, t: Array) -> Level:
        alpha, sigma = self.schedule(t)
        return self.curve(Level(alpha * jnp.exp(0.5 * jnp.asarray(self.shift)), sigma))

    def curve(self, level: Level) -> Level:
        return self.schedule.curve(level)

    def time(self, log_snr: Array) -> Array:
        return self.schedule.time(log_snr - self.shift)


@struct.dataclass
class Interpolated:
    """A discrete schedule in continuous time: t = i/T has the level of step i.

    Between the steps (and beyond the ends) the angle arctan(sigma/alpha) is linear, so that all
    levels are on the curve alpha^2 + sigma^2 = 1 of the table, and, unlike with the log-SNR, the
    first step, which begins with clean data, and one that ends in pure noise are like the others.
    With it a network that was trained at T steps (see :meth:`network`) serves the solvers and the
    likelihood of the probability-flow ODE (Lu et al. 2022, section 3.5; Karras et al. 2022,
    appendix C.3.4).
    """

    schedule: DiscreteSchedule
    end = 1.0
    curve = staticmethod(preserving)

    def __call__(self, t: Array) -> Level:
        # The angle and its complement, so that neither alpha nor sigma loses digits near 0.
        angle, complement = (self._at(real(t), table) for table in self._angles())
        return Level(jnp.sin(complement), jnp.sin(angle))

    def time(self, log_snr: Array) -> Array:
        angle = jnp.arctan(jnp.exp(-0.5 * jnp.asarray(log_snr)))
        steps = self.schedule.steps
        return jnp.interp(angle, self._angles()[0], jnp.arange(steps + 1.0)) / steps

    def _at(self, t: Array, table: Array) -> Array:
        position = t * self.schedule.steps
        i = jnp.clip(position.astype(jnp.int32), 0, self.schedule.steps - 1)
        return table[i] + (position - i) * (table[i + 1] - table[i])

    def _angles(self) -> tuple[Array, Array]:
        with jax.ensure_compile_time_eval():  # once, not in every step of a sampler
            alpha, sigma = jnp.asarray(self.schedule.alpha), jnp.asarray(self.schedule.sigma)
            return jnp.arctan2(sigma, alpha), jnp.arctan2(alpha, sigma)

    def network(self, network: Callable[..., Any]) -> Callable[..., Any]:
        """A network of (x_t, step in 0..T) as one of (x_t, t in [0, 1])."""
        return lambda x_t, t: network(x_t, t * self.schedule.steps)


# --- grids of sampling times, falling, [n + 1] ---------------------------------------------------


def uniform_grid(count: int, first: float = 1.0, last: float = 0.0) -> np.ndarray:
    """``count`` steps of equal length."""
    return np.linspace(first, last, count + 1)


def log_snr_grid(
    schedule: ContinuousSchedule, count: int, first: float | None = None, last: float = 1e-3
) -> Array:
    """``count`` steps of equal length in log-SNR (Lu et al. 2022), from ``first`` to ``last``.

    ``first`` is the schedule's end where it is not given. An end whose log-SNR is infinite takes
    the place of noise sigma/alpha of 80 or 0.002, the range of Karras et al. 2022.
    """
    return _spaced(schedule, count, first, last, lambda ratio: -2 * jnp.log(ratio), lambda u: u)


def noise_grid(
    schedule: ContinuousSchedule,
    count: int,
    first: float | None = None,
    last: float = 0.0,
    rho: float = 7.0,
) -> Array:
    """``count`` steps of equal length in (sigma/alpha)^(1/rho), for any schedule.

    The spacing of Karras et al. 2022, eq. 5; ends are treated as in :func:`log_snr_grid`.
    """
    space, back = lambda ratio: ratio ** (1 / rho), lambda u: -2 * rho * jnp.log(u)
    return _spaced(schedule, count, first, last, space, back)


def _spaced(
    schedule: ContinuousSchedule,
    count: int,
    first: float | None,
    last: float,
    space: Callable[[Array], Array],
    log_snr_of: Callable[[Array], Array],
) -> Array:
    """``count`` steps of equal length in ``space(sigma/alpha)``, from ``first`` to ``last``."""
    ends = jnp.asarray([schedule.end if first is None else first, last], jnp.result_type(float))
    alpha, sigma = schedule(ends)
    ratio = jnp.where(alpha > 0, sigma / jnp.where(alpha > 0, alpha, 1.0), 80.0)
    ratio = jnp.where(sigma > 0, ratio, 0.002)
    start, stop = space(ratio)
    times = schedule.time(log_snr_of(jnp.linspace(start, stop, count + 1)))
    return times.at[0].set(ends[0]).at[-1].set(ends[1])


def karras_grid(
    count: int, sigma_max: float = 80.0, sigma_min: float = 0.002, rho: float = 7.0
) -> np.ndarray:
    """Times of :class:`Sigma`: sigma^(1/rho) falls evenly over ``count`` levels, and then 0.

    Karras et al. 2022, eq. 5.
    """
    ends = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return np.append(np.linspace(*ends, count) ** rho, 0.0)
