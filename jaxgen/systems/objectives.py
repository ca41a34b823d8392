"""What a network of noisy data descends: (key, network, x_0, noise) -> (times drawn, loss)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.data.records import Image, Kind
from jaxgen.diffusion.parameterization import Network, Target
from jaxgen.diffusion.process import Noise, standard_normal
from jaxgen.diffusion.schedules import ContinuousSchedule, DiscreteSchedule, Shifted, Sigma
from jaxgen.distributions import Normal
from jaxgen.losses import denoising as losses
from jaxgen.losses import times

Objective = Callable[[Array, Network, Array, Noise], tuple[Array, Array]]  # both [B]


def simple(schedule: DiscreteSchedule) -> Objective:
    """L_simple (Ho et al. 2020, eq. 14)."""

    def objective(
        key: Array, network: Network, x_0: Array, noise: Noise = standard_normal
    ) -> tuple[Array, Array]:
        key_t, key = jax.random.split(key)
        t = losses.uniform_times(key_t, len(x_0), schedule.steps)
        return t, losses.denoising_loss(key, network, schedule, x_0, t, noise=noise)

    return objective


def hybrid(schedule: DiscreteSchedule, kind: Kind) -> Objective:
    """L_hybrid of a network that learns its variance (Nichol & Dhariwal 2021, eq. 16)."""
    decoder = losses.discretized_decoder(kind.levels) if isinstance(kind, Image) else Normal

    def objective(
        key: Array, network: Network, x_0: Array, noise: Noise = standard_normal
    ) -> tuple[Array, Array]:
        key_t, key = jax.random.split(key)
        t = losses.uniform_times(key_t, len(x_0), schedule.steps)
        if noise is not standard_normal:
            raise ValueError("the bound in L_hybrid is of standard normal noise: use L_simple.")
        return t, losses.hybrid_loss(key, eps_and_nu(network), schedule, x_0, t, decoder=decoder)

    return objective


def eps_and_nu(network: Network) -> Network:
    """Twice as many outputs as the pair (eps, nu) of a learned variance."""

    def pair(x_t: Array, t: Array) -> tuple[Array, Array]:
        eps, nu = jnp.split(network(x_t, t), 2, axis=-1)
        return eps, jax.nn.sigmoid(nu)

    return pair


def weighted(
    schedule: ContinuousSchedule,
    prediction: str | Target,
    weighting: losses.Weighting | None,
    scaled: Callable[[Network], Network],
    integrated: bool = False,
) -> Objective:
    """The error of the prediction of ``scaled(network)``, weighted.

    ``integrated`` weightings are densities over time, so that times are uniform.
    """

    def objective(
        key: Array, network: Network, x_0: Array, noise: Noise = standard_normal
    ) -> tuple[Array, Array]:
        key_t, key = jax.random.split(key)
        t, weight = training_times(key_t, len(x_0), schedule, integrated)
        how: Any = {"target": prediction, "weighting": weighting, "noise": noise}
        return t, weight * losses.denoising_loss(key, scaled(network), schedule, x_0, t, **how)

    return objective


def training_times(
    key: Array, batch: int, schedule: ContinuousSchedule, integrated: bool
) -> tuple[Array, Array]:
    """Times ``[B]`` and the weights that make up for how they were drawn.

    Stratified over [0, 1]. Where time is sigma: log-normal noise levels, or for a weighting that is
    integrated over time even ones in log(sigma), divided by their density.
    """
    inner = schedule.schedule if isinstance(schedule, Shifted) else schedule
    if not isinstance(inner, Sigma):
        t = times.stratified_times(key, batch, low=1e-3)
        return t, jnp.ones_like(t)
    if integrated:
        t = times.log_uniform_times(key, batch, schedule)
        return t, 1 / times.log_uniform_density(t, schedule)
    t = times.log_normal_times(key, batch, schedule)
    return t, jnp.ones_like(t)
