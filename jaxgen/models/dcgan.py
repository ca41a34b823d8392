"""The generator and the discriminator's body of DCGAN (Radford et al. 2016, section 3).

Strided convolutions in the discriminator and fractionally-strided ones in the generator, batch norm
in both except at the generator's output and the discriminator's input, ReLU and Tanh against
LeakyReLU of slope 0.2, weights from N(0, 0.02). Running averages live in ``batch_stats``; under
``pmap``, ``axis_name`` makes the batch statistics those of the whole batch.
"""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.convolution import Doubling

INIT = nn.initializers.normal(0.02)
KERNEL = (4, 4)


def gamma_init(key: Array, shape: tuple[int, ...], dtype=jnp.float32) -> Array:
    """Batch-norm scales start at N(1, 0.02)."""
    return 1.0 + INIT(key, shape, dtype)


def batch_norm(train: bool, axis_name: str | None) -> functools.partial:
    """The batch norm of both networks, its mode and its axis bound."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        axis_name=axis_name,
        scale_init=gamma_init,
    )


class Generator(nn.Module):
    """z ``[B, Z]`` -> images ``[B, *shape]`` in [-1, 1], doubling a small map ``stages`` times."""

    shape: tuple[int, ...]
    stages: int = 2
    channels: int = 64  # of the last hidden map; doubled at every earlier one
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None, *, train: bool) -> Array:
        norm = batch_norm(train, self.axis_name)
        double = functools.partial(Doubling, kernel_init=INIT)
        height, width, channels = self.shape
        h, w = math.ceil(height / 2**self.stages), math.ceil(width / 2**self.stages)
        # No bias before a norm: it would be taken out again, and drift by rounding alone.
        first = self.channels * 2 ** (self.stages - 1)
        x = nn.Dense(h * w * first, kernel_init=INIT, use_bias=False)(z)
        x = nn.relu(norm()(x.reshape(z.shape[0], h, w, -1)))
        for stage in reversed(range(self.stages - 1)):
            x = nn.relu(norm()(double(self.channels * 2**stage, use_bias=False)(x)))
        x = double(channels)(x)
        return jnp.tanh(x[:, :height, :width])


class Body(nn.Module):
    """Images ``[B, H, W, C]`` -> features ``[B, F]`` of a discriminator, halving ``stages`` times.

    Without batch norm each example is judged by itself, as penalties on slopes need it.
    """

    stages: int = 2
    channels: int = 64  # of the first map; doubled at every later one
    batch_norm: bool = True
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool) -> Array:
        norm = batch_norm(train, self.axis_name)
        for stage in range(self.stages):
            normed = self.batch_norm and stage > 0
            conv = nn.Conv(
                self.channels * 2**stage, KERNEL, strides=2, kernel_init=INIT, use_bias=not normed
            )
            x = conv(x)
            x = nn.leaky_relu(norm()(x) if normed else x, 0.2)
        return x.reshape(x.shape[0], -1)
