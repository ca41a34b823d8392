"""A perceptron whose outputs know only the inputs before their own (Germain et al. 2015, MADE)."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array


class MADE(nn.Module):
    """x ``[B, D]`` -> ``[B, D, maps]``, whose entry i depends on the entries of x before i alone.

    ``context [B, F]``, if given, is seen by all. With ``backward`` the order is the reverse, and
    with ``direct`` outputs also see inputs without the hidden units between (there section 4.3).
    """

    maps: int = 2
    hidden: int = 100
    layers: int = 2
    backward: bool = False
    direct: bool = False

    @nn.compact
    def __call__(self, x: Array, context: Array | None = None) -> Array:
        entries = x.shape[-1]
        order = np.arange(entries)[:: -1 if self.backward else 1]
        # A hidden unit of degree d sees the entries up to the d-th.
        degrees = np.arange(self.hidden) % max(entries - 1, 1)
        h, seen = x, order
        for _ in range(self.layers):
            h = Masked(self.hidden, _mask(seen[:, None] <= degrees))(h)
            if context is not None:
                h = h + nn.Dense(self.hidden, use_bias=False)(context)
            h, seen = nn.elu(h), degrees
        allowed = _mask(np.repeat(seen[:, None] < order, self.maps, axis=1))
        # The maps of an entry are neighbours; they start as 0.
        out = Masked(entries * self.maps, allowed, nn.initializers.zeros_init())(h)
        if self.direct:
            before = _mask(np.repeat(order[:, None] < order, self.maps, axis=1))
            out = out + Masked(entries * self.maps, before, nn.initializers.zeros_init())(x)
        if context is not None:
            zero = nn.initializers.zeros_init()
            out = out + nn.Dense(entries * self.maps, use_bias=False, kernel_init=zero)(context)
        return out.reshape(*x.shape, self.maps)


def _mask(allowed: np.ndarray) -> tuple[tuple[bool, ...], ...]:
    return tuple(map(tuple, allowed.tolist()))


class Masked(nn.Module):
    """A linear map with the connections ``mask [inputs, features]`` alone."""

    features: int
    mask: tuple[tuple[bool, ...], ...]
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        mask = jnp.asarray(np.asarray(self.mask, np.float32))
        kernel = self.param("kernel", self.kernel_init, mask.shape)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return x @ (kernel * mask) + bias[None]
