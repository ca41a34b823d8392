"""Normalizing flows: networks that are invertible, with the volume that they change.

A layer maps arrays ``[B, ...]`` to others of the same shape: ``forward(x, context)`` answers z and
log |dz/dx| ``[B]``, and ``inverse(z, context)`` answers x. ``context [B, ..., F]``, where it is not
None, is told to its networks. A flow is a :class:`Chain` of layers: p(x) = N(z; 0, I) |dz/dx|.

Dinh et al. 2017 ("Density estimation using Real NVP"); Kingma & Dhariwal 2018 ("Glow"); Durkan et
al. 2019 ("Neural spline flows"); Ho et al. 2019 ("Flow++").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen.bijections import Bijection, affine
from jaxgen.distributions import standard_normal, sum_event
from jaxgen.models.blocks import squeeze, unsqueeze
from jaxgen.models.mlp import MLP

ZEROS = nn.initializers.zeros_init()
NARROWEST = 1e-3  # the standard deviation below which data are not stretched to 1


class Layer(Protocol):
    """An invertible map of arrays ``[B, ...]``."""

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]: ...

    def inverse(self, z: Array, context: Array | None = None) -> Array: ...


# --- layers -------------------------------------------------------------------------------------


def places(x: Array) -> int:
    """How many pixels an example ``[..., C]`` has; 1 of a point."""
    return math.prod(x.shape[1:-1])


class ActNorm(nn.Module):
    """A shift and a scale of each channel, with which the batch of ``init`` has mean 0 and std 1.

    Kingma & Dhariwal 2018, section 3.1. They are parameters like any others from then on.
    """

    @nn.compact
    def affine(self, like: Array) -> tuple[Array, Array]:
        """Shift and log scale, of the shape ``[1, ..., 1, C]``."""
        axes = tuple(range(like.ndim - 1))
        std = lambda: jnp.maximum(like.std(axis=axes), NARROWEST)  # noqa: E731
        shift = self.param("shift", lambda _: -like.mean(axis=axes))
        log_scale = self.param("log_scale", lambda _: -jnp.log(std()))
        return jnp.expand_dims(shift, axes), jnp.expand_dims(log_scale, axes)

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        shift, log_scale = self.affine(x)
        log_det = jnp.full(x.shape[0], places(x) * log_scale.sum())
        return (x + shift) * jnp.exp(log_scale), log_det

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        shift, log_scale = self.affine(z)
        return z * jnp.exp(-log_scale) - shift


class Mixing(nn.Module):
    """A matrix over the channels of a pixel, at first a rotation: the invertible 1x1 convolution.

    Kingma & Dhariwal 2018, section 3.2, in its plain form. On accelerators, too, the products are
    exact to float32: what is not so is not undone by the inverse.
    """

    @nn.compact
    def matrix(self, channels: int) -> Array:
        return self.param("kernel", nn.initializers.orthogonal(), (channels, channels))

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        w = self.matrix(x.shape[-1])
        log_det = jnp.full(x.shape[0], places(x) * jnp.linalg.slogdet(w).logabsdet)
        return jnp.matmul(x, w, precision=jax.lax.Precision.HIGHEST), log_det

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        inverse = jnp.linalg.inv(self.matrix(z.shape[-1]))
        return jnp.matmul(z, inverse, precision=jax.lax.Precision.HIGHEST)


Known = Callable[[tuple[int, ...]], np.ndarray]  # the shape of an example -> a mask like it


def first_half(shape: tuple[int, ...]) -> np.ndarray:
    """The first half of the channels ``[1, ..., C]``."""
    channel = np.arange(shape[-1]) < shape[-1] // 2
    return channel.reshape((1,) * (len(shape) - 1) + (-1,))


def second_half(shape: tuple[int, ...]) -> np.ndarray:
    """The others."""
    return ~first_half(shape)


def even_squares(shape: tuple[int, ...]) -> np.ndarray:
    """Every other pixel, as on a board of chess ``[H, W, 1]`` (Dinh et al. 2017, figure 3)."""
    height, width, _ = shape
    return np.add.outer(np.arange(height), np.arange(width))[..., None] % 2 == 0


def odd_squares(shape: tuple[int, ...]) -> np.ndarray:
    """The others."""
    return ~even_squares(shape)


class Coupling(nn.Module):
    """The entries that are not ``known`` move by a bijection whose parameters the known ones make.

    Dinh et al. 2017, eq. 7 to 9. ``network(outputs)`` is the module that makes them, at first zero:
    the layer begins as the identity.
    """

    bijection: Bijection
    network: Callable[[int], nn.Module]
    known: Known = first_half

    @nn.compact
    def parameters(self, x: Array, context: Array | None) -> tuple[Array, Array]:
        """The mask ``[1, ...]`` of what is known, and what that makes ``[*x.shape, maps]``."""
        known = jnp.asarray(self.known(x.shape[1:]))[None]
        seen = jnp.where(known, x, 0.0)
        told = seen if context is None else jnp.concatenate([seen, context], axis=-1)
        maps: Any = self.network(self.bijection.maps * x.shape[-1])
        return known, maps(told).reshape(*x.shape, self.bijection.maps)

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        known, parameters = self.parameters(x, context)
        z, log_slope = self.bijection.forward(x, parameters)
        return jnp.where(known, x, z), sum_event(jnp.where(known, 0.0, log_slope))

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        known, parameters = self.parameters(z, context)
        return jnp.where(known, z, self.bijection.inverse(z, parameters))


# --- of other layers ----------------------------------------------------------------------------


class Chain(nn.Module):
    """Layers one after the other."""

    layers: Sequence[Any]

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        log_det = jnp.zeros(x.shape[0])
        for layer in self.layers:
            x, more = layer.forward(x, context)
            log_det = log_det + more
        return x, log_det

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        return self.undone(z, context)[-1]

    def undone(self, z: Array, context: Array | None = None) -> list[Array]:
        """From z to x: what is there before and after each layer is undone."""
        found = [z]
        for layer in reversed(self.layers):
            found.append(layer.inverse(found[-1], context))
        return found

    def log_prob(self, x: Array) -> Array:
        """log p(x) ``[B]`` where z is of N(0, I), in nats."""
        z, log_det = self.forward(x)
        return sum_event(standard_normal(z.shape).log_prob(z)) + log_det


class Squeezed(nn.Module):
    """A layer over squares of 2x2 pixels, whose values are the channels of one.

    Dinh et al. 2017, section 3.6.

    Raises:
      ValueError: if a side of the image is odd.
    """

    inner: Any

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        context = None if context is None else squeeze(context)
        z, log_det = self.inner.forward(squeeze(x), context)
        return unsqueeze(z), log_det

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        context = None if context is None else squeeze(context)
        return unsqueeze(self.inner.inverse(squeeze(z), context))


class OnHalf(nn.Module):
    """A layer of the first half of the channels; the others are left as they are.

    Behind a coupling that knows this half, the others are N(0, I) where the model is right: they
    are factored out (Dinh et al. 2017, section 3.6; Kingma & Dhariwal 2018, section 3).
    """

    inner: Any

    def forward(self, x: Array, context: Array | None = None) -> tuple[Array, Array]:
        half, rest = jnp.split(x, [x.shape[-1] // 2], axis=-1)
        z, log_det = self.inner.forward(half, context)
        return jnp.concatenate([z, rest], axis=-1), log_det

    def inverse(self, z: Array, context: Array | None = None) -> Array:
        half, rest = jnp.split(z, [z.shape[-1] // 2], axis=-1)
        return jnp.concatenate([self.inner.inverse(half, context), rest], axis=-1)


# --- flows --------------------------------------------------------------------------------------

Network = Callable[[int], nn.Module]  # of a coupling, by the number of its outputs


def steps(count: int, bijection: Bijection, network: Network) -> list[Layer]:
    """``count`` steps of actnorm, mixing and coupling (Kingma & Dhariwal 2018, figure 2a)."""
    step = lambda: (ActNorm(), Mixing(), Coupling(bijection, network))  # noqa: E731
    return [layer for _ in range(count) for layer in step()]


def alternating(
    count: int,
    bijection: Bijection,
    network: Network,
    known: tuple[Known, Known] = (first_half, second_half),
) -> list[Layer]:
    """``count`` couplings that know what one mask and what the other has, after actnorms."""
    pair = lambda i: (ActNorm(), Coupling(bijection, network, known[i % 2]))  # noqa: E731
    return [layer for i in range(count) for layer in pair(i)]


def factored(network: Network, inner: Layer) -> list[Layer]:
    """``inner`` of the first half of the channels, and a normal of the others given that half."""
    return [Coupling(affine(), network), OnHalf(inner)]


def glow(levels: int, count: int, bijection: Bijection, network: Network) -> Chain:
    """Images: ``count`` steps a level, between which images are squeezed and half is factored out.

    Kingma & Dhariwal 2018, figure 2b. With a spline it is the flow of Durkan et al. 2019.
    """
    layers = steps(count, bijection, network)
    if levels > 1:
        layers += factored(network, glow(levels - 1, count, bijection, network))
    return Chain([Squeezed(Chain(layers))])


def realnvp(levels: int, count: int, bijection: Bijection, network: Network) -> Chain:
    """Images: ``count`` couplings of pixels, and as many of channels before half is factored out.

    Dinh et al. 2017, section 3.6, where ``count`` is 3 and the last level has one coupling of
    pixels more; with actnorms for batch norms.
    """
    squares = even_squares, odd_squares
    if levels == 1:
        return Chain(alternating(count + 1, bijection, network, squares))
    channels = alternating(count, bijection, network)
    channels += factored(network, realnvp(levels - 1, count, bijection, network))
    pixels = alternating(count, bijection, network, squares)
    return Chain([*pixels, Squeezed(Chain(channels))])


class ConvNet(nn.Module):
    """Images ``[B, H, W, C]`` -> ``[B, H, W, outputs]``, at first 0: convolutions 3x3, 1x1 and 3x3.

    Kingma & Dhariwal 2018, section 5 ("NN").
    """

    outputs: int
    width: int = 64
    last: nn.initializers.Initializer = ZEROS

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(self.width, (1, 1))(x))
        return nn.Conv(self.outputs, (3, 3), kernel_init=self.last)(x)


def perceptron(outputs: int, width: int, depth: int) -> MLP:
    """The network of a coupling of points."""
    return MLP(outputs, width, depth, last=ZEROS)


class Dequantizer(nn.Module):
    """q(u|x) of the place u in (0, 1) of each value within its bin (Ho et al. 2019, section 3.1).

    Noise ``eps [B, H, W, C]`` of N(0, I) becomes u by a flow that is told of x, with its values in
    [-1, 1], and a sigmoid: ``(u, log q(u|x))``.
    """

    width: int = 32
    count: int = 2

    def setup(self) -> None:
        network = lambda outputs: ConvNet(outputs, self.width)  # noqa: E731
        self.features = ConvNet(max(self.width // 2, 1), self.width, nn.initializers.lecun_normal())
        self.flow = Squeezed(Chain(steps(self.count, affine(), network)))

    def __call__(self, eps: Array, x: Array) -> tuple[Array, Array]:
        v, log_det = self.flow.forward(eps, self.features(x))
        log_q = sum_event(standard_normal(eps.shape).log_prob(eps)) - log_det
        # du/dv = u (1 - u), by its logarithm
        return nn.sigmoid(v), log_q - sum_event(nn.log_sigmoid(v) + nn.log_sigmoid(-v))
