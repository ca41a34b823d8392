"""The decoder and the encoder of BEGAN (Berthelot et al. 2017, section 3.5 and figure 1).

3x3 convolutions and ELUs in pairs, without any norm; the decoder doubles its map by nearest
neighbours, the encoder halves it by strides and grows by as many channels at each map. The
generator and the discriminator's decoder are alike, but for their weights.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

KERNEL = (3, 3)


class Decoder(nn.Module):
    """Codes ``[B, Z]`` -> images ``[B, *shape]``, doubling a map ``stages`` times."""

    shape: tuple[int, ...]
    stages: int = 2
    channels: int = 64  # of every map

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        del labels, train  # the contract of all networks; nothing here is different in training
        height, width, channels = self.shape
        h, w = math.ceil(height / 2**self.stages), math.ceil(width / 2**self.stages)
        x = nn.Dense(h * w * self.channels)(z).reshape(z.shape[0], h, w, self.channels)
        for stage in range(self.stages + 1):
            if stage:
                x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            for _ in range(2):
                x = jax.nn.elu(nn.Conv(self.channels, KERNEL)(x))
        return nn.Conv(channels, KERNEL)(x[:, :height, :width])


class Encoder(nn.Module):
    """Images ``[B, H, W, C]`` -> codes ``[B, codes]``, halving the map ``stages`` times."""

    codes: int
    stages: int = 2
    channels: int = 64  # of the first map; the k-th has k times as many

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        del labels, train
        x = jax.nn.elu(nn.Conv(self.channels, KERNEL)(x))
        for stage in range(1, self.stages + 2):
            width = self.channels * stage
            for _ in range(2):
                x = jax.nn.elu(nn.Conv(width, KERNEL)(x))
            if stage <= self.stages:
                x = jax.nn.elu(nn.Conv(width + self.channels, KERNEL, strides=2)(x))
        return nn.Dense(self.codes)(x.reshape(x.shape[0], -1))
