"""The learned noise schedule of variational diffusion models: a monotone network of one number."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class PositiveDense(nn.Module):
    """A linear map with positive weights, ``[..., I] -> [..., features]``: it rises in each input.

    The inputs are averaged, not summed: positive terms do not cancel, so a sum would grow with I.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        shape = (x.shape[-1], self.features)
        kernel = self.param("kernel", nn.initializers.normal(1.0), shape)
        y = x @ jnp.exp(kernel) / x.shape[-1]
        if self.use_bias:
            bias = self.param("bias", nn.initializers.normal(1.0), (self.features,))
            y = y + jnp.broadcast_to(bias, y.shape)
        return y


class MonotoneLogSNR(nn.Module):
    """log SNR(t) = -gamma(t) of times t of any shape, strictly falling on [0, 1], learned.

    gamma is l1(t) + l3(sigmoid(l2(l1(t)))), with positive weights in all three linear maps, moved
    and scaled to the two endpoints, which are learned too: Kingma et al. 2021, appendix H. At
    initialisation log SNR falls almost evenly from ``log_snr_max`` at t = 0 to ``log_snr_min`` at
    t = 1; the defaults are those of the authors' code.

    Attributes:
      log_snr_max: at t = 0, at initialisation.
      log_snr_min: at t = 1, at initialisation.
      hidden: outputs of l2.
    """

    log_snr_max: float = 13.3
    log_snr_min: float = -5.0
    hidden: int = 1024

    @nn.compact
    def __call__(self, t: Array) -> Array:
        # Biases of l1 and l3 would be taken out again, by that of l2 and by the endpoints.
        l1, l2 = PositiveDense(1, use_bias=False), PositiveDense(self.hidden)
        l3 = PositiveDense(1, use_bias=False)
        rise = lambda t: l1(t) + l3(nn.sigmoid(l2(l1(t))))  # noqa: E731

        fall = math.log(self.log_snr_max - self.log_snr_min)
        top = self.param("log_snr_max", nn.initializers.constant(self.log_snr_max), ())
        # A logarithm, so that no step of training can turn the schedule around.
        log_fall = self.param("log_fall", nn.initializers.constant(fall), ())
        start, end = rise(jnp.zeros(1)), rise(jnp.ones(1))
        t = jnp.asarray(t, jnp.float32)
        fraction = (rise(t[..., None])[..., 0] - start[0]) / (end[0] - start[0])
        return top - jnp.exp(log_fall) * fraction
