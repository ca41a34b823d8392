"""Noise schedules: which (alpha_t, sigma_t) belongs to a time.

A discrete schedule is its betas, beta_1..beta_T. The products alpha-bar_t are formed in float64 on
the host, where T of them lose nothing, and kept as float32 tables indexed by t = 0..T, where t = 0
is clean data.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxgen.diffusion.process import Level


@struct.dataclass
class DiscreteSchedule:
    """The levels of t = 0..T of a variance-preserving chain: alpha_t^2 = alpha-bar_t."""

    alpha: Array | np.ndarray  # [T + 1], alpha[0] = 1
    sigma: Array | np.ndarray  # [T + 1], sigma[0] = 0

    @property
    def steps(self) -> int:
        """T."""
        return self.alpha.shape[0] - 1

    def __call__(self, t: Array) -> Level:
        """The level of integer times t in 0..T, of t's shape."""
        return Level(jnp.asarray(self.alpha)[t], jnp.asarray(self.sigma)[t])


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


def linear_betas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> np.ndarray:
    """beta_t linear in t from ``first`` to ``last``, ``[T]`` (Ho et al. 2020, section 4)."""
    return np.linspace(first, last, steps)


def cosine_betas(steps: int = 1000, offset: float = 0.008, largest: float = 0.999) -> np.ndarray:
    """alpha-bar_t = f(t)/f(0) with f(t) = cos^2((t/T + s)/(1 + s) pi/2), ``[T]``.

    Nichol & Dhariwal 2021, eq. 17. The ratio of neighbouring values gives beta_t, clipped
    at ``largest`` near t = T.
    """
    t = np.arange(steps + 1) / steps
    f = np.cos((t + offset) / (1 + offset) * np.pi / 2) ** 2
    return np.minimum(1 - f[1:] / f[:-1], largest)


def respaced_times(steps: int, count: int) -> np.ndarray:
    """``count + 1`` times from T = ``steps`` down to 0, evenly spaced and rounded, all different.

    Raises:
      ValueError: if there are fewer than ``count`` steps to choose from.
    """
    if not 1 <= count <= steps:
        raise ValueError(f"the number of sampling steps must be in 1..{steps}, got {count}.")
    return np.round(np.linspace(steps, 0, count + 1)).astype(np.int32)
