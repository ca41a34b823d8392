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

from jaxgen.models.convolution import convolve

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


class Doubling(nn.Module):
    """A fractionally-strided 4x4 convolution, ``[B, h, w, C]`` -> ``[B, 2h, 2w, O]``.

    As ``nn.ConvTranspose`` with padding SAME, written as a plain one: pixels 2n - 1 and 2n of the
    answer see pixels n - 1 and n alone, by kernels of 2x2 of their own. On CPU the gradient of a
    generator takes a fifth of the time.
    """

    features: int
    use_bias: bool = True

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", INIT, (*KERNEL, x.shape[-1], self.features))
        out = doubled(x, kernel)
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            out = out + bias[None, None, None]
        return out


def doubled(x: Array, kernel: Array) -> Array:
    """x ``[B, h, w, C]`` by a kernel ``[4, 4, C, O]``: ``[B, 2h, 2w, O]``."""
    (b, h, w, c), o = x.shape, kernel.shape[-1]
    # Entry 2 t + 1 - s along an axis takes the t-th of two pixels to the s-th of two.
    taps = kernel.reshape(2, 2, 2, 2, c, o)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    dimensions = ("NHWC", "HWIO", "NHWC")
    taps = taps.reshape(2, 2, c, 4 * o)
    squares = convolve(x, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dimensions)
    pixels = squares.reshape(b, h + 1, w + 1, 2, 2, o).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, 2 * h + 2, 2 * w + 2, o)[:, 1:-1, 1:-1]


class Generator(nn.Module):
    """z ``[B, Z]`` -> images ``[B, *shape]`` in [-1, 1], doubling a small map ``stages`` times."""

    shape: tuple[int, ...]
    stages: int = 2
    channels: int = 64  # of the last hidden map; doubled at every earlier one
    axis_name: str | None = None

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None, *, train: bool) -> Array:
        norm = batch_norm(train, self.axis_name)
        height, width, channels = self.shape
        h, w = math.ceil(height / 2**self.stages), math.ceil(width / 2**self.stages)
        # No bias before a norm: it would be taken out again, and drift by rounding alone.
        first = self.channels * 2 ** (self.stages - 1)
        x = nn.Dense(h * w * first, kernel_init=INIT, use_bias=False)(z)
        x = nn.relu(norm()(x.reshape(z.shape[0], h, w, -1)))
        for stage in reversed(range(self.stages - 1)):
            x = nn.relu(norm()(Doubling(self.channels * 2**stage, use_bias=False)(x)))
        x = Doubling(channels)(x)
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
