"""Guidance and control: functions from denoiser to denoiser, so that each works in every sampler."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser


def clip_x_0(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose estimates are clipped to the range of the data (static thresholding)."""
    return lambda x_t, t: jnp.clip(denoise(x_t, t), low, high)
