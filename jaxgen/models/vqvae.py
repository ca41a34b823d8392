"""Convolutional encoders and decoders of maps of codes (van den Oord et al. 2017, section 4.1)."""

from __future__ import annotations

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.convolution import Doubling


def half(width: int) -> int:
    """Half as many channels, and one at least."""
    return max(width // 2, 1)


class Residual(nn.Module):
    """x + conv1x1(relu(conv3x3(relu(x)))), ``[B, H, W, width]``."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.Conv(half(self.width), (3, 3))(nn.relu(x))
        return x + nn.Conv(self.width, (1, 1))(nn.relu(h))


class CodeEncoder(nn.Module):
    """x ``[B, H, W, C]`` -> ``[B, h, w, latents]``: ``downs`` strided convolutions, then blocks."""

    latents: int
    width: int = 64
    downs: int = 2
    blocks: int = 2

    @nn.compact
    def __call__(self, x: Array) -> Array:
        for i in range(self.downs):
            features = self.width if i == self.downs - 1 else half(self.width)
            x = nn.Conv(features, (4, 4), strides=2)(x)
            x = nn.relu(x)
        x = nn.Conv(self.width, (3, 3))(x)
        for _ in range(self.blocks):
            x = Residual(self.width)(x)
        return nn.Conv(self.latents, (1, 1))(nn.relu(x))


class CodeDecoder(nn.Module):
    """z ``[B, h, w, Z]`` -> maps ``[B, *shape]``: the mirror of :class:`CodeEncoder`, cropped."""

    shape: tuple[int, ...]
    width: int = 64
    ups: int = 2
    blocks: int = 2

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        x = nn.Conv(self.width, (3, 3))(z)
        for _ in range(self.blocks):
            x = Residual(self.width)(x)
        for i in range(self.ups):
            last = i == self.ups - 1
            features = channels if last else half(self.width)
            x = Doubling(features)(nn.relu(x))
        if not self.ups:
            x = nn.Conv(channels, (3, 3))(nn.relu(x))
        return jnp.asarray(x[:, :height, :width])
