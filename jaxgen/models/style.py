"""Networks of StyleGAN2 (Karras et al. 2019, 2020): w = f(z), x = g(w), and a residual body.

The mapping network f takes a normal z to a w that need not be normal; in the synthesis network g
every convolution is modulated by a linear map of w, and the image is the sum of what maps of all
sizes add to it. So w says what is in an image, layer by layer, and noise the rest.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array, lax

from jaxgen.models.equalized import (
    GAIN,
    EqualizedConv,
    EqualizedDense,
    convolved,
    equalized,
    leaky,
    on_sphere,
)
from jaxgen.models.progressive import LastBlock, map_sizes, map_widths, padded

# --- pure functions ------------------------------------------------------------------------------


def modulated(x: Array, kernel: Array, s: Array) -> Array:
    """x ``[B, H, W, in]`` convolved with s_i w_ijk of its own styles s ``[B, in]``.

    Karras et al. 2020, eq. 1. To scale the kernel's inputs is to scale those of the map.
    """
    return convolved(x * s[:, None, None], kernel)


def demodulated(x: Array, kernel: Array, s: Array) -> Array:
    """:func:`modulated` by a kernel of norm 1 for every output: std 1 of inputs of std 1.

    Karras et al. 2020, eq. 2 and 3. To divide the kernel's outputs is to divide those of the map.
    """
    squares = s**2 @ jnp.sum(kernel**2, axis=(0, 1))  # sum over i and k of (s_i w_ijk)^2: [B, out]
    return modulated(x, kernel, s) * lax.rsqrt(squares + 1e-8)[:, None, None]


def truncated(w: Array, mean: Array, psi: float | Array) -> Array:
    """mean + psi (w - mean), of w ``[..., W]`` (Karras et al. 2019, appendix B)."""
    mean = jnp.broadcast_to(mean, w.shape)
    return mean + psi * (w - mean)


def mixed(w: Array, other: Array, crossover: Array | int, layers: int) -> Array:
    """w ``[B, W]`` for the layers before ``crossover``, another w from there on.

    Karras et al. 2019, section 3.1. ``crossover`` is one for all or one an example ``[B]``; the
    result ``[B, layers, W]``.
    """
    first = jnp.arange(layers)[None] < jnp.reshape(crossover, (-1, 1))
    return jnp.where(first[..., None], w[:, None], other[:, None])


def resized(x: Array, size: tuple[int, int]) -> Array:
    """``[B, H, W, C]`` in height and width ``size``, by a triangle of the coarser grid's width."""
    return jax.image.resize(x, (x.shape[0], *size, x.shape[-1]), "bilinear")


# --- the generator -------------------------------------------------------------------------------


class Mapping(nn.Module):
    """f: z ``[B, Z]`` and labels ``[B]`` -> w ``[B, width]``, at a hundredth of the learning rate.

    Karras et al. 2019, figure 1 and appendix C.
    """

    width: int
    depth: int
    num_classes: int | None

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None) -> Array:
        w = on_sphere(z, labels, self.num_classes)
        for _ in range(self.depth):
            w = leaky(EqualizedDense(self.width, rate=0.01)(w))
        return w


class StyledConv(nn.Module):
    """x ``[B, H, W, C]``, w ``[B, W]`` -> ``[B, H, W, width]`` (Karras et al. 2020, figure 2d)."""

    width: int

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        kernel = equalized(self, (3, 3, x.shape[-1], self.width))
        strength = self.param("strength", nn.initializers.zeros_init(), ())
        bias = self.param("bias", nn.initializers.zeros_init(), (self.width,))
        s = EqualizedDense(x.shape[-1], gain=1.0, start=1.0)(w)
        x = demodulated(x, kernel, s)
        if self.has_rng("noise"):
            x = x + strength * jax.random.normal(self.make_rng("noise"), (*x.shape[:-1], 1))
        return GAIN * leaky(x + bias[None, None, None])  # the gain that demodulation took out


class StyledColours(nn.Module):
    """x ``[B, H, W, C]``, w ``[B, W]`` -> ``[B, H, W, channels]``, modulated alone."""

    channels: int

    @nn.compact
    def __call__(self, x: Array, w: Array) -> Array:
        kernel = equalized(self, (1, 1, x.shape[-1], self.channels), gain=1.0)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.channels,))
        s = EqualizedDense(x.shape[-1], gain=1.0, start=1.0)(w)
        return modulated(x, kernel, s) + bias[None, None, None]


class Synthesis(nn.Module):
    """g: w ``[B, layers, W]`` -> images ``[B, *shape]`` (Karras et al. 2020, figure 7b)."""

    shape: tuple[int, ...]
    channels: int
    widest: int

    @nn.compact
    def __call__(self, w: Array) -> Array:
        sizes, (height, width, channels) = map_sizes(self.shape), self.shape
        widths = map_widths(len(sizes), self.channels, self.widest)
        constant = self.param("constant", nn.initializers.normal(1.0), (*sizes[0], widths[0]))
        x = jnp.broadcast_to(constant, (len(w), *constant.shape))
        image = jnp.zeros((len(w), *sizes[0], channels))
        for level, size in enumerate(sizes):
            if level > 0:
                x, image = resized(x, size), resized(image, size)
                x = StyledConv(widths[level])(x, w[:, 2 * level - 1])
            x = StyledConv(widths[level])(x, w[:, 2 * level])
            # The layer that comes after sees the same w.
            image = image + StyledColours(channels)(x, w[:, 2 * level + 1])
        return image[:, :height, :width]


class Generator(nn.Module):
    """z ``[B, Z]`` and labels ``[B]`` -> images ``[B, *shape]``, which nothing bounds.

    It does not grow (Karras et al. 2020, section 4): there is no stage. Who applies it with
    ``rngs={"noise": key}`` gets noise, in training and out of it; without, noise is its mean, 0.
    ``mapping`` and ``synthesis`` are methods for ``apply(..., method=...)``. The mean of w, which
    :func:`truncated` takes, is ``variables["mapping"]["mean"]`` ``[width]``: a moving average that
    moves in training where ``mapping`` is mutable.

    Attributes:
      shape: of the images, ``(H, W, C)``.
      channels: of the largest map; twice as many a halving, up to ``widest``.
      width: of w and of the mapping network, which has ``depth`` layers.
      num_classes: if given, so are labels.
      decay: of the mean of w, which some dozens of batches make anew.
      mixing: share of the images of a training step (with noise) whose layers beyond one, drawn at
        random, have the w of another z (Karras et al. 2019, section 3.1; there 0.9).
    """

    shape: tuple[int, ...]
    channels: int = 16
    widest: int = 512
    width: int = 512
    depth: int = 8
    num_classes: int | None = None
    decay: float = 0.9
    mixing: float = 0.0

    @property
    def layers(self) -> int:
        """That have a w of their own: two a size of map (Karras et al. 2019, figure 1)."""
        return 2 * len(map_sizes(self.shape))

    def setup(self) -> None:
        self.f = Mapping(self.width, self.depth, self.num_classes)
        self.g = Synthesis(self.shape, self.channels, self.widest)
        self.mean = self.variable("mapping", "mean", jnp.zeros, (self.width,))

    def mapping(self, z: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        """w ``[B, width]``."""
        w = self.f(z, labels)
        if train and self.is_mutable_collection("mapping"):
            mean = lax.stop_gradient(w).mean(axis=0)
            self.mean.value = self.decay * self.mean.value + (1 - self.decay) * mean
        return w

    def synthesis(self, w: Array) -> Array:
        """Images of one w for all layers ``[B, width]``, or of one for each ``[B, layers, width]``.

        Raises:
          ValueError: for another number of layers.
        """
        w = w[:, None] if w.ndim == 2 else w
        return self.g(jnp.broadcast_to(w, (len(w), self.layers, self.width)))

    def __call__(self, z: Array, labels: Array | None = None, *, train: bool) -> Array:
        w = self.mapping(z, labels, train=train)
        if not (train and self.mixing and self.has_rng("noise")):
            return self.synthesis(w)
        key_z, key_mix, key_layer = jax.random.split(self.make_rng("noise"), 3)
        other = self.f(jax.random.normal(key_z, z.shape), labels)
        mixes = jax.random.bernoulli(key_mix, self.mixing, (z.shape[0],))
        crossover = jax.random.randint(key_layer, (z.shape[0],), 1, self.layers)
        crossover = jnp.where(mixes, crossover, self.layers)
        return self.synthesis(mixed(w, other, crossover, self.layers))


# --- the body of the discriminator ---------------------------------------------------------------


class ResidualBlock(nn.Module):
    """``[B, 2 H, 2 W, C]`` -> ``[B, H, W, width]`` (Karras et al. 2020, figure 7c)."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        size = (x.shape[1] // 2, x.shape[2] // 2)
        h = leaky(EqualizedConv(x.shape[-1])(x))
        h = leaky(EqualizedConv(self.width)(h))
        shortcut = EqualizedConv(self.width, 1, gain=1.0)(resized(x, size))
        return (resized(h, size) + shortcut) / math.sqrt(2)  # which keeps the variance


class Body(nn.Module):
    """Images ``[B, H, W, C]`` -> features ``[B, F]``, of which a linear map is the critic.

    As :class:`jaxgen.models.progressive.Body`, which is not residual and grows.
    """

    channels: int = 16
    widest: int = 512
    group: int = 4

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool) -> Array:
        del labels, train  # the contract of all bodies
        sizes = map_sizes(x.shape[1:])
        widths = map_widths(len(sizes), self.channels, self.widest)
        h = leaky(EqualizedConv(widths[-1], 1)(padded(x, sizes[-1])))
        for width in reversed(widths[:-1]):
            h = ResidualBlock(width)(h)
        return LastBlock(self.group)(h)
