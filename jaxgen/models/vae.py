"""Encoders and decoders of variational autoencoders (Kingma & Welling 2014, appendix C).

An encoder answers q(z|x); a decoder answers the parameter maps of p(x|z), ``[B, ..., maps * C]``,
which a likelihood of ``jaxgen.losses.elbo`` turns into a density.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.distributions import Normal


def latent_normal(h: Array, latents: int) -> Normal:
    """q(z|x) over ``[B, latents]`` from features ``[B, F]``: two linear maps, mean and log std."""
    mean, log_std = jnp.split(nn.Dense(2 * latents)(h), 2, axis=-1)
    return Normal(mean, log_std)


class MLPEncoder(nn.Module):
    """Flattens x and applies ``hidden`` units, ``layers`` times."""

    latents: int
    hidden: int = 400
    layers: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Normal:
        h = x.reshape(x.shape[0], -1)
        for _ in range(self.layers):
            h = nn.relu(nn.Dense(self.hidden)(h))
        return latent_normal(h, self.latents)


class MLPDecoder(nn.Module):
    """z ``[B, Z]`` -> ``[B, *shape[:-1], shape[-1] * maps]`` through ``hidden`` units."""

    shape: tuple[int, ...]
    maps: int = 1
    hidden: int = 400
    layers: int = 1

    @nn.compact
    def __call__(self, z: Array) -> Array:
        h = z
        for _ in range(self.layers):
            h = nn.relu(nn.Dense(self.hidden)(h))
        out = nn.Dense(math.prod(self.shape) * self.maps)(h)
        return out.reshape(z.shape[0], *self.shape[:-1], self.shape[-1] * self.maps)


class ConvEncoder(nn.Module):
    """Two strided 3x3 convolutions, then ``hidden`` units."""

    latents: int
    channels: int = 32
    hidden: int = 256

    @nn.compact
    def __call__(self, x: Array) -> Normal:
        h = nn.relu(nn.Conv(self.channels, (3, 3), strides=2)(x))
        h = nn.relu(nn.Conv(2 * self.channels, (3, 3), strides=2)(h))
        h = nn.relu(nn.Dense(self.hidden)(h.reshape(h.shape[0], -1)))
        return latent_normal(h, self.latents)


class ConvDecoder(nn.Module):
    """The mirror of :class:`ConvEncoder`, cropped to ``shape`` where it is not a multiple of 4."""

    shape: tuple[int, ...]
    maps: int = 1
    channels: int = 32
    hidden: int = 256

    @nn.compact
    def __call__(self, z: Array) -> Array:
        height, width, channels = self.shape
        h, w = math.ceil(height / 4), math.ceil(width / 4)
        x = nn.relu(nn.Dense(self.hidden)(z))
        x = nn.relu(nn.Dense(h * w * 2 * self.channels)(x)).reshape(z.shape[0], h, w, -1)
        x = nn.relu(nn.ConvTranspose(self.channels, (4, 4), strides=(2, 2))(x))
        x = nn.ConvTranspose(channels * self.maps, (4, 4), strides=(2, 2))(x)
        return x[:, :height, :width]
