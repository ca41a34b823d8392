"""Dense networks of hierarchical VAEs: features from the bottom up, latents from the top down."""

from __future__ import annotations

import math

import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.distributions import Normal


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
        zero = nn.initializers.zeros_init()
        out = 2 * self.latents
        self.prior_net = nn.Sequential([nn.relu, nn.Dense(self.hidden), nn.relu])
        self.prior_out = nn.Dense(out, kernel_init=zero)  # it starts as N(0, I)
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


def normal(maps: Array) -> Normal:
    """Mean and log std from maps ``[B, 2 Z]``; the log std stays within 5 of 0, smoothly."""
    mean, log_std = jnp.split(maps, 2, axis=-1)
    return Normal(mean, 5 * jnp.tanh(log_std / 5))
