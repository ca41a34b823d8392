"""Schedules with what goes with them in the papers that introduced them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from jax import Array

from jaxgen.diffusion.schedules import (
    VE,
    VP,
    ContinuousSchedule,
    CosineLogSNR,
    FlowMatching,
    LinearLogSNR,
    Sigma,
    SubVP,
    karras_grid,
    log_snr_grid,
    log_snr_of_levels,
    uniform_grid,
)


class Recipe(NamedTuple):
    """A schedule, and the prediction, solver and grid that it is used with."""

    schedule: Callable[[int], ContinuousSchedule]  # of the number of values an entry can take
    prediction: str  # a name of parameterization.TARGETS, or edm
    solver: str  # a name of solvers.SOLVERS
    grid: Callable[[ContinuousSchedule, int], Any]  # (schedule, steps) -> falling times


def even(schedule: ContinuousSchedule, steps: int) -> np.ndarray:
    """Steps of equal length in t."""
    return uniform_grid(steps)


def even_log_snr(schedule: ContinuousSchedule, steps: int) -> Array:
    """Steps of equal length in the log-SNR."""
    return log_snr_grid(schedule, steps, last=0.0)


def karras(schedule: ContinuousSchedule, steps: int) -> np.ndarray:
    """The grid of Karras et al. 2022; time is sigma."""
    return karras_grid(steps)


def cosine(levels: int) -> ContinuousSchedule:
    """It starts where the values of the pixels are decided, and pays for no more in its bound."""
    return CosineLogSNR(log_snr_of_levels(levels), -12.0)


def linear(levels: int) -> ContinuousSchedule:
    """As :func:`cosine`."""
    return LinearLogSNR(log_snr_of_levels(levels), -9.0)


RECIPES = {
    "cosine": Recipe(cosine, "v", "dpm_solver_2m", even),
    "linear": Recipe(linear, "eps", "dpm_solver_2m", even_log_snr),
    "vp": Recipe(lambda levels: VP(), "eps", "ddim", even),
    "sub_vp": Recipe(lambda levels: SubVP(), "eps", "ddim", even),
    "ve": Recipe(lambda levels: VE(0.01, 30.0), "edm", "ddim", even),
    "flow": Recipe(lambda levels: FlowMatching(), "velocity", "heun", even),
    "edm": Recipe(lambda levels: Sigma(), "edm", "heun", karras),
}
