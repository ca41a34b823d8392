"""How training times are drawn: functions of a key that return t ``[B]``.

Those of continuous schedules draw float32 times; which density is best depends on the weight of
the loss. Those of importance sampling draw t in 1..T for a discrete schedule, as
:func:`jaxgen.losses.denoising.uniform_times` does, with the weight that undoes their choice.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

from jaxgen.diffusion.schedules import ContinuousSchedule


def continuous_times(key: Array, batch: int, low: float = 1e-5, high: float = 1.0) -> Array:
    """t ~ Uniform[low, high), ``[B]``; ``low`` keeps targets that divide by sigma finite."""
    return jax.random.uniform(key, (batch,), minval=low, maxval=high)


def stratified_times(key: Array, batch: int, low: float = 1e-5, high: float = 1.0) -> Array:
    """One time in each of B equal cells of [low, high), each uniform by itself, ``[B]``.

    (u_0 + i/B) mod 1 with one u_0 for the batch (Kingma et al. 2021, appendix I.1): the mean loss
    of a batch stays unbiased, and most of its variance over t goes.
    """
    u = (jax.random.uniform(key) + jnp.arange(batch) / batch) % 1.0
    return low + (high - low) * u


def log_normal_times(
    key: Array,
    batch: int,
    schedule: ContinuousSchedule,
    mean: float = -1.2,
    std: float = 1.2,
) -> Array:
    """The times at which ln(sigma/alpha) ~ N(mean, std^2), ``[B]`` (Karras et al. 2022, table 1).

    A level beyond the ends of the schedule has a time beyond them too, where it has a formula. One
    that is found by a search (:class:`~.schedules.LogSNR`, :class:`~.schedules.Interpolated`) has
    the end itself in its place: choose ``mean`` and ``std`` so that few are.
    """
    log_ratio = mean + std * jax.random.normal(key, (batch,))
    return schedule.time(-2 * log_ratio)


def log_normal_density(
    t: Array, schedule: ContinuousSchedule, mean: float = -1.2, std: float = 1.2
) -> Array:
    """The density of :func:`log_normal_times` at ``t [B]``, per unit of time.

    A weighting that is meant for uniform times, as those of the likelihood are
    (:func:`~jaxgen.losses.denoising.bound_weighting`), is divided by it. That has a large variance
    where the loss does not fall as fast as the density: see :func:`log_uniform_times`.
    """
    log_ratio, slope = _log_ratio(schedule, t)
    return jax.scipy.stats.norm.pdf(log_ratio, mean, std) * slope


def log_uniform_times(
    key: Array, batch: int, schedule: ContinuousSchedule, low: float = 0.002, high: float = 80.0
) -> Array:
    """The times at which ln(sigma/alpha) is uniform between those of ``low`` and ``high``, ``[B]``.

    The likelihood's weighting divided by their density is the same at every time, on the error of
    eps (Kingma & Gao 2023, section 4).
    """
    u = jax.random.uniform(key, (batch,))
    return schedule.time(-2 * (jnp.log(low) + u * jnp.log(high / low)))


def log_uniform_density(
    t: Array, schedule: ContinuousSchedule, low: float = 0.002, high: float = 80.0
) -> Array:
    """The density of :func:`log_uniform_times` at ``t [B]``, per unit of time."""
    _, slope = _log_ratio(schedule, t)
    return slope / jnp.log(high / low)


def _log_ratio(schedule: ContinuousSchedule, t: Array) -> tuple[Array, Array]:
    """ln(sigma/alpha) and its derivative in time."""
    return jax.jvp(lambda t: -0.5 * schedule(t).log_snr, (t,), (jnp.ones_like(t),))


def logit_normal_times(key: Array, batch: int, mean: float = 0.0, std: float = 1.0) -> Array:
    """log(t/(1 - t)) ~ N(mean, std^2), ``[B]`` (Esser et al. 2024, eq. 19); large t is noise."""
    return jax.nn.sigmoid(mean + std * jax.random.normal(key, (batch,)))


# --- importance sampling by the loss ----------------------------------------------------------


@struct.dataclass
class LossHistory:
    """The last K losses seen at each t = 1..T."""

    losses: Array  # [T, K], in no order
    counts: Array  # [T] int32, how many were ever seen

    @classmethod
    def init(cls, steps: int, length: int = 10) -> LossHistory:
        """An empty history of T = ``steps`` times; K = 10 is the paper's."""
        return cls(jnp.zeros((steps, length)), jnp.zeros(steps, jnp.int32))

    def update(self, t: Array, losses: Array) -> LossHistory:
        """With the losses ``[B]`` at t ``[B]`` in 1..T, unweighted; a t may occur many times.

        On several devices, gather both first, so that all keep the same history.
        """
        chex.assert_rank([t, losses], 1)
        chex.assert_equal_shape([t, losses])
        steps, length = self.losses.shape
        same = t[:, None] == t[None, :]
        earlier = jnp.tril(same, -1).sum(axis=1)  # entries of the batch before this one, at its t
        later = jnp.triu(same, 1).sum(axis=1)
        slot = (self.counts[t - 1] + earlier) % length
        # Of more than K at one t the last K stay: two writes to one slot would have no order.
        row = jnp.where(later < length, t - 1, steps)
        return LossHistory(
            self.losses.at[row, slot].set(losses, mode="drop"), self.counts.at[t - 1].add(1)
        )

    def probabilities(self, uniform: float = 0.001) -> Array:
        """p_t proportional to sqrt(E[L_t^2]), ``[T]`` (Nichol & Dhariwal 2021, eq. 18).

        Uniform until every t has K losses. A share ``uniform`` of it is always uniform, so that a
        t with losses near 0 is still visited.
        """
        even = jnp.full(self.counts.shape, 1 / self.counts.size)
        root = jnp.sqrt((self.losses**2).mean(axis=1))
        full = (self.counts >= self.losses.shape[1]).all() & (root.sum() > 0)
        share = root / jnp.where(full, root.sum(), 1.0)
        return jnp.where(full, uniform * even + (1 - uniform) * share, even)


def importance_times(
    key: Array, history: LossHistory, batch: int, uniform: float = 0.001
) -> tuple[Array, Array]:
    """t in 1..T with probability p_t ``[B]`` int32, and the weights 1 / (T p_t) ``[B]``.

    Nichol & Dhariwal 2021, section 3.3; p_t is :meth:`LossHistory.probabilities`. The mean of
    weight times loss is that of the loss over uniform t, with the least variance that a choice of
    p_t can give. Keep the losses without their weights in the history.
    """
    p = history.probabilities(uniform)
    t = jax.random.categorical(key, jnp.log(p), shape=(batch,))
    return t + 1, 1 / (p.size * p[t])
