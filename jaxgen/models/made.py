"""A perceptron whose outputs know only the inputs before their own (Germain et al. 2015, MADE)."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class MADE(nn.Module):
    """x ``[B, D]`` -> ``[B, D, maps]``, whose entry i depends on the entries of x before i alone.

    ``context [B, F]``, if given, is seen by all. With ``backward`` the order is the reverse, and
    with ``direct`` outputs also see inputs without the hidden units between. A ``seed`` (an
    integer, which may be traced) draws order and connections at random instead: one network is then
    many models (there order- and connectivity-agnostic training).
    """

    maps: int = 2
    hidden: int = 100
    layers: int = 2
    backward: bool = False
    direct: bool = False

    @nn.compact
    def __call__(
        self, x: Array, context: Array | None = None, seed: Array | int | None = None
    ) -> Array:
        entries, zeros = x.shape[-1], nn.initializers.zeros_init()
        if seed is None:
            order = jnp.arange(entries)[:: -1 if self.backward else 1]
            # Evenly over the entries, however many units there are.
            even = jnp.arange(self.hidden) * max(entries - 1, 1) // self.hidden
            degrees = [even] * self.layers
        else:
            order, degrees = random_degrees(seed, entries, self.hidden, self.layers)
        h, seen = x, order
        for of_hidden in degrees:  # a hidden unit of degree d sees the entries up to the d-th
            h = Masked(self.hidden)(h, seen[:, None] <= of_hidden[None])
            if context is not None:
                h = h + nn.Dense(self.hidden, use_bias=False)(context)
            h, seen = nn.elu(h), of_hidden
        # The maps of an entry are neighbours; they start as 0.
        last = jnp.repeat(order, self.maps)
        out = Masked(entries * self.maps, zeros)(h, seen[:, None] < last[None])
        if self.direct:
            out = out + Masked(entries * self.maps, zeros)(x, order[:, None] < last[None])
        if context is not None:
            out = out + nn.Dense(entries * self.maps, use_bias=False, kernel_init=zeros)(context)
        return out.reshape(*x.shape, self.maps)


def random_degrees(
    seed: Array | int, entries: int, hidden: int, layers: int
) -> tuple[Array, list[Array]]:
    """An order of the entries, and the degrees of hidden units: none is below all of those before
    it, whose units it would not see."""
    key_order, *keys = jax.random.split(jax.random.key(seed), 1 + layers)
    degrees, least = [], jnp.zeros((), jnp.int32)
    for key in keys:
        degrees.append(jax.random.randint(key, (hidden,), least, max(entries - 1, 1)))
        least = degrees[-1].min()
    return jax.random.permutation(key_order, entries), degrees


def maps_of(each: Array, shape: tuple[int, ...]) -> Array:
    """Maps of vectors ``[B, D, maps]`` as those of images of ``shape [B, H, W, C]``.

    ``[B, H, W, maps * C]``, all C of a map together, as likelihoods read them.
    """
    return jnp.moveaxis(each.reshape(*shape, -1), -1, -2).reshape(*shape[:-1], -1)


class OfVectors(nn.Module):
    """A network of vectors ``[B, D] -> [B, D, maps]`` as one of images ``[B, H, W, C]``."""

    network: nn.Module

    @nn.compact
    def __call__(self, x: Array, *told: Any) -> Array:
        found: Any = self.network(x.reshape(x.shape[0], -1), *told)  # pyright: ignore[reportCallIssue]
        return maps_of(found, x.shape)


class Masked(nn.Module):
    """A linear map with the connections ``mask [inputs, features]`` alone."""

    features: int
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array, mask: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x @ (kernel * mask) + bias[None]
