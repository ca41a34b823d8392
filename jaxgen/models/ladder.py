"""Networks of hierarchical VAEs: features from the bottom up, latents from the top down.

Dense ones, whose states are vectors, and convolutional ones, whose states are maps that grow on
their way down.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.distributions import Normal

ZERO = nn.initializers.zeros_init()


class BottomUp(nn.Module):
    """x -> features ``[B, hidden]`` of each of ``levels``, the one nearest to x first."""

    levels: int
    hidden: int = 256

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        h, found = x.reshape(x.shape[0], -1), []
        for i in range(self.levels):
            h = (0.0 if i == 0 else h) + nn.Dense(self.hidden)(nn.relu(nn.Dense(self.hidden)(h)))
            found.append(h)
        return found


class LevelNet(nn.Module):
    """One level: p(z|state), what x adds to it, and the state below.

    The state ``[B, hidden]`` goes around the level, so that no level is needed for what others
    have said (Vahdat & Kautz 2020, figure 2).
    """

    latents: int
    hidden: int = 256

    def setup(self) -> None:
        out = 2 * self.latents
        self.prior_net = nn.Sequential([nn.relu, nn.Dense(self.hidden), nn.relu])
        self.prior_out = nn.Dense(out, kernel_init=ZERO)  # it starts as N(0, I)
        self.below_net = nn.Sequential([nn.relu, nn.Dense(self.hidden), nn.relu, nn.Dense(out)])
        self.merge = nn.Sequential([nn.Dense(self.hidden), nn.relu, nn.Dense(self.hidden)])

    def prior(self, state: Array) -> Normal:
        """p(z|state)."""
        return normal(self.prior_out(self.prior_net(state)))

    def below(self, state: Array, h: Array) -> Normal:
        """What the features ``h`` of x add, a normal."""
        return normal(self.below_net(jnp.concatenate([state, h], axis=-1)))

    def descend(self, state: Array, z: Array) -> Array:
        """The state below."""
        return state + self.merge(jnp.concatenate([nn.relu(state), z], axis=-1))

    def __call__(self, state: Array, h: Array) -> Array:
        """All of it, for parameters to be made."""
        self.below(state, h)
        return self.descend(state, self.prior(state).mean)


class StateDecoder(nn.Module):
    """The last state -> maps ``[B, *shape[:-1], shape[-1] * maps]`` of p(x|z)."""

    shape: tuple[int, ...]
    maps: int = 1
    hidden: int = 256

    @nn.compact
    def __call__(self, state: Array) -> Array:
        h = nn.relu(nn.Dense(self.hidden)(nn.relu(state)))
        out = nn.Dense(math.prod(self.shape) * self.maps)(h)
        return out.reshape(len(state), *self.shape[:-1], self.shape[-1] * self.maps)


Side = tuple[int, int]  # height and width of a map


def halved(side: Side, times: int) -> Side:
    """The height and width left after so many halvings, rounded up."""
    height, width = (-(-n // 2**times) for n in side)
    return height, width


class ConvBlock(nn.Module):
    """x + conv(swish(conv(swish(x)))), ``[B, H, W, width]``; it starts as the identity."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = nn.Conv(self.width, (3, 3))(nn.swish(x))
        return x + nn.Conv(self.width, (3, 3), kernel_init=ZERO)(nn.swish(h))


class ConvBottomUp(nn.Module):
    """x -> maps of features for each level, the one nearest to x first.

    ``halvings`` says, for each of them in that order, how often the image is halved by then.
    """

    halvings: tuple[int, ...]
    width: int = 32

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        h, found, at = x, [], 0
        if not self.halvings[0]:
            h = nn.Conv(self.width, (3, 3))(x)
        for to in self.halvings:
            for _ in range(to - at):
                h = nn.Conv(self.width, (4, 4), strides=2)(h)
            at, h = to, ConvBlock(self.width)(h)
            found.append(h)
        return found


class ConvLevelNet(nn.Module):
    """:class:`LevelNet` whose state is a map ``[B, H, W, width]`` and z ``[B, H, W, latents]``.

    The state below has the height and width of ``below_side``.
    """

    latents: int
    below_side: Side
    width: int = 32

    def setup(self) -> None:
        conv, out, point = nn.Conv, 2 * self.latents, (1, 1)
        self.prior_net = nn.Sequential([nn.swish, conv(self.width, (3, 3)), nn.swish])
        self.prior_out = conv(out, point, kernel_init=ZERO)  # it starts as N(0, I)
        self.below_in = conv(self.width, point)
        self.below_net = nn.Sequential([nn.swish, conv(self.width, (3, 3)), nn.swish])
        self.below_out = conv(out, point)
        self.merge_in, self.merge = conv(self.width, point), ConvBlock(self.width)

    def prior(self, state: Array) -> Normal:
        """p(z|state)."""
        return normal(self.prior_out(self.prior_net(state)))

    def below(self, state: Array, h: Array) -> Normal:
        """What the features ``h`` of x add, a normal."""
        both = self.below_in(jnp.concatenate([state, h], axis=-1))
        return normal(self.below_out(self.below_net(both)))

    def descend(self, state: Array, z: Array) -> Array:
        """The state below, grown by nearest neighbours."""
        return grown(self.merge(state + self.merge_in(z)), self.below_side)

    def __call__(self, state: Array, h: Array) -> Array:
        """All of it, for parameters to be made."""
        self.below(state, h)
        return self.descend(state, self.prior(state).mean)


class ConvStateDecoder(nn.Module):
    """The last state, a map -> maps ``[B, H, W, C * maps]`` of p(x|z)."""

    shape: tuple[int, ...]
    maps: int = 1
    width: int = 32

    @nn.compact
    def __call__(self, state: Array) -> Array:
        height, width, channels = self.shape
        h = nn.swish(ConvBlock(self.width)(state))
        while h.shape[1] < height or h.shape[2] < width:
            h = nn.swish(nn.ConvTranspose(self.width, (4, 4), strides=(2, 2))(h))
        return jnp.asarray(nn.Conv(channels * self.maps, (3, 3))(h)[:, :height, :width])


def grown(x: Array, side: Side) -> Array:
    """A map with every pixel repeated as often as the side asks, cropped to it."""
    for axis, to in zip((1, 2), side, strict=True):
        times = -(-to // x.shape[axis])
        x = x if times == 1 else jnp.repeat(x, times, axis=axis)
        x = jax.lax.slice_in_dim(x, 0, to, axis=axis)
    return x


def normal(maps: Array) -> Normal:
    """Mean and log std from maps ``[..., 2 Z]``; the log std stays within 5 of 0, smoothly."""
    mean, log_std = jnp.split(maps, 2, axis=-1)
    return Normal(mean, 5 * jnp.tanh(log_std / 5))
