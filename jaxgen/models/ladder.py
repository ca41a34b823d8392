"""Networks of hierarchical VAEs: features from the bottom up, latents from the top down.

States are vectors ``[B, width]``, or maps ``[B, H, W, width]`` that grow on their way down; the
levels are the same of both, but for the ``layer`` that mixes them. Layers start at He et al.'s
scale: were what z adds to the state small, it would be given up at once for its KL.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.distributions import Normal
from jaxgen.models.convolution import Doubling

Layer = Callable[..., nn.Module]  # (features, kernel_init=...) -> a layer
Side = tuple[int, int]  # height and width of a map
ZERO, HE = nn.initializers.zeros_init(), nn.initializers.he_normal()
dense: Layer = partial(nn.Dense, kernel_init=HE)  # of maps, a convolution 1x1
conv: Layer = partial(nn.Conv, kernel_size=(3, 3), kernel_init=HE)


class Block(nn.Module):
    """x + layer(relu(layer(relu(x)))), ``[B, ..., width]``; it starts as the identity."""

    width: int
    layer: Layer = dense

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.layer(self.width)(nn.relu(x))
        return x + self.layer(self.width, kernel_init=ZERO)(nn.relu(h))


class BottomUp(nn.Module):
    """x -> features ``[B, width]`` for each of ``levels``, the one nearest to x first."""

    levels: int
    width: int = 256

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        h, found = dense(self.width)(x.reshape(x.shape[0], -1)), []
        for _ in range(self.levels):
            h = Block(self.width)(h)
            found.append(h)
        return found


class ConvBottomUp(nn.Module):
    """x -> maps of features ``[B, h, w, width]`` for each level, the one nearest to x first.

    ``halvings`` says, for each of them in that order, how often the image is halved by then.
    """

    halvings: tuple[int, ...]
    width: int = 32

    @nn.compact
    def __call__(self, x: Array) -> list[Array]:
        h, found, at = conv(self.width)(x), [], 0
        for to in self.halvings:
            for _ in range(to - at):
                h = conv(self.width, kernel_size=(4, 4), strides=2)(nn.relu(h))
            at, h = to, Block(self.width, conv)(h)
            found.append(h)
        return found


class LevelNet(nn.Module):
    """One level: p(z|state), what x adds to it, and the state below.

    The state goes around the level, so that no level is needed for what others have said (Vahdat &
    Kautz 2020, figure 2; Child 2021, figure 3). A map is grown to the ``side`` of the state below.
    """

    latents: int
    width: int = 256
    layer: Layer = dense
    side: Side | None = None

    def setup(self) -> None:
        width, layer, out = self.width, self.layer, 2 * self.latents
        self.prior_net = nn.Sequential([nn.relu, layer(width), nn.relu])
        self.prior_out = dense(out, kernel_init=ZERO)  # it starts as N(0, I)
        self.below_net = nn.Sequential([nn.relu, layer(width), nn.relu, dense(out)])
        self.merge, self.block = dense(width), Block(width, layer)

    def prior(self, state: Array) -> Normal:
        """p(z|state)."""
        return normal(self.prior_out(self.prior_net(state)), 1.0)

    def below(self, state: Array, h: Array) -> Normal:
        """What the features ``h`` of x add, a normal."""
        return normal(self.below_net(jnp.concatenate([state, h], axis=-1)))

    def descend(self, state: Array, z: Array) -> Array:
        """The state below."""
        state = self.block(state + self.merge(z))
        return state if self.side is None else grown(state, self.side)

    def __call__(self, state: Array, h: Array) -> Array:
        """All of it, for parameters to be made."""
        self.below(state, h)
        return self.descend(state, self.prior(state).mean)


class StateDecoder(nn.Module):
    """The last state -> maps ``[B, *shape[:-1], shape[-1] * maps]`` of p(x|z)."""

    shape: tuple[int, ...]
    maps: int = 1
    width: int = 256

    @nn.compact
    def __call__(self, state: Array) -> Array:
        h = nn.relu(dense(self.width)(nn.relu(state)))
        out = nn.Dense(math.prod(self.shape) * self.maps)(h)
        return out.reshape(state.shape[0], *self.shape[:-1], self.shape[-1] * self.maps)


class ConvStateDecoder(nn.Module):
    """The last state, a map -> maps ``[B, H, W, C * maps]`` of p(x|z)."""

    shape: tuple[int, ...]
    maps: int = 1
    width: int = 32

    @nn.compact
    def __call__(self, state: Array) -> Array:
        height, width, channels = self.shape
        h = nn.relu(Block(self.width, conv)(state))
        while h.shape[1] < height or h.shape[2] < width:
            up = Doubling(self.width, kernel_init=HE)
            h = nn.relu(up(h))
        return jnp.asarray(nn.Conv(channels * self.maps, (3, 3))(h)[:, :height, :width])


def normal(maps: Array, most: float = 5.0) -> Normal:
    """Mean and log std from maps ``[..., 2 Z]``; the log std within ``most`` of 0."""
    mean, log_std = jnp.split(maps, 2, axis=-1)
    return Normal(mean, most * jnp.tanh(log_std / most))


def halved(side: Side, times: int) -> Side:
    """The height and width left after so many halvings, rounded up."""
    height, width = (-(-n // 2**times) for n in side)
    return height, width


def grown(x: Array, side: Side) -> Array:
    """A map with every pixel repeated as often as the side asks, cropped to it."""
    for axis, to in zip((1, 2), side, strict=True):
        x = jnp.repeat(x, -(-to // x.shape[axis]), axis=axis)
        x = jax.lax.slice_in_dim(x, 0, to, axis=axis)
    return x
