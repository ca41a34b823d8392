"""What a network may predict about x_t, and how each prediction gives every other.

All of them are linear in each other given x_t and the level (alpha, sigma):

    eps    the noise                        x_t = alpha x_0 + sigma eps
    x_0    the clean data
    v      alpha eps - sigma x_0            (Salimans & Ho 2022, section 4)
    score  grad log q(x_t) = -eps / sigma   (Song et al. 2021)
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.process import Level, Schedule, expand

Denoiser = Callable[[Array, Array], Array]  # (x_t [B, ...], t [B]) -> an estimate of x_0 [B, ...]

TO_X_0: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "x_0": lambda x_0, x_t, alpha, sigma: x_0,
    "eps": lambda eps, x_t, alpha, sigma: (x_t - sigma * eps) / alpha,
    "v": lambda v, x_t, alpha, sigma: (alpha * x_t - sigma * v) / (alpha**2 + sigma**2),
    "score": lambda score, x_t, alpha, sigma: (x_t + sigma**2 * score) / alpha,
}
FROM_X_0: dict[str, Callable[[Array, Array, Array, Array], Array]] = {
    "x_0": lambda x_0, x_t, alpha, sigma: x_0,
    "eps": lambda x_0, x_t, alpha, sigma: (x_t - alpha * x_0) / sigma,
    "v": lambda x_0, x_t, alpha, sigma: (alpha * x_t - (alpha**2 + sigma**2) * x_0) / sigma,
    "score": lambda x_0, x_t, alpha, sigma: (alpha * x_0 - x_t) / sigma**2,
}


def convert(prediction: Array, x_t: Array, level: Level, source: str, target: str) -> Array:
    """Turns a prediction of ``source`` into one of ``target``, both named as in the table above."""
    chex.assert_equal_shape([prediction, x_t])
    if source == target:
        return prediction
    alpha, sigma = expand(level.alpha, x_t), expand(level.sigma, x_t)
    x_0 = TO_X_0[source](prediction, x_t, alpha, sigma)
    return FROM_X_0[target](x_0, x_t, alpha, sigma)


def denoiser(
    network: Callable[[Array, Array], Array], schedule: Schedule, prediction: str = "eps"
) -> Denoiser:
    """Makes a network ``(x_t, t) -> prediction`` into a denoiser ``(x_t, t) -> x_0``."""

    def denoise(x_t: Array, t: Array) -> Array:
        return convert(network(x_t, t), x_t, schedule(t), prediction, "x_0")

    return denoise


def clip_x_0(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose estimates are clipped to the range of the data."""
    return lambda x_t, t: jnp.clip(denoise(x_t, t), low, high)
