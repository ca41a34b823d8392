"""The reversal of the process in continuous time: vector fields made from a denoiser.

Times run from data to noise, so a step of sampling has negative dt. :mod:`jaxgen.diffusion.solvers`
takes these steps on a fixed grid, :func:`jaxgen.diffusion.ode.solve_ode` by an adaptive method.
"""

from __future__ import annotations

from collections.abc import Callable

from jax import Array

from jaxgen.diffusion.parameterization import Denoiser, from_x_0, x_0_of
from jaxgen.diffusion.process import Schedule

Field = Callable[[Array, Array], Array]  # (x [B, ...], t [B] or scalar) -> a vector at x, [B, ...]


def score(denoise: Denoiser, schedule: Schedule) -> Field:
    """grad log q(x_t) = (alpha E[x_0|x_t] - x_t) / sigma^2."""
    return lambda x_t, t: from_x_0(x_0_of(denoise)(x_t, t), x_t, schedule, t, "score")


def probability_flow(denoise: Denoiser, schedule: Schedule) -> Field:
    """dx/dt of the ODE with the marginals of the SDE: f x - g^2/2 score (Song et al. 2021, eq. 13).

    It is (d alpha/dt) x_0 + (d sigma/dt) eps with the denoiser's x_0 and eps, the velocity of
    flow matching, which needs no division by alpha.
    """
    return lambda x_t, t: from_x_0(x_0_of(denoise)(x_t, t), x_t, schedule, t, "velocity")
