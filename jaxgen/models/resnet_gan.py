"""Residual generators and discriminators of GANs: SNGAN, SAGAN and BigGAN.

One generator and one body of discriminators, of which the networks of Miyato et al. 2018, Zhang et
al. 2019 and Brock et al. 2019 are settings: :func:`sngan`, :func:`sagan`, :func:`biggan`. Spectral
norms are taken of their parameters from outside
(:func:`jaxgen.losses.regularization.spectrally_normalized`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.unet import double

Init = nn.initializers.Initializer
Layer = Callable[..., Any]  # a class of modules with some of its fields
GLOROT, ZERO = nn.initializers.glorot_uniform(), nn.initializers.zeros_init()


class ConditionalNorm(nn.Module):
    """Batch norm of x ``[B, H, W, C]`` with gain 1 + W c and bias V c of a condition c ``[B, D]``.

    Of classes, one-hot, W and V are tables (Dumoulin et al. 2017), of an embedding linear maps
    (Brock et al. 2019, appendix B). Without a condition gain and bias are parameters themselves.
    """

    train: bool
    axis_name: str | None = None
    kernel_init: Init = ZERO
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, condition: Array | None) -> Array:
        own = {"use_scale": condition is None, "use_bias": condition is None, "dtype": self.dtype}
        x = nn.BatchNorm(not self.train, momentum=0.9, axis_name=self.axis_name, **own)(x)
        if condition is None:
            return x
        linear = partial(nn.Dense, x.shape[-1], use_bias=False, dtype=self.dtype)
        gain, bias = (
            linear(kernel_init=self.kernel_init, name=name)(condition)[:, None, None]
            for name in ("gain", "bias")
        )
        return x * (1 + gain) + bias


class Attention(nn.Module):
    """x + gamma o(softmax(g(x) f(x)^T) h(x)), over the pixels of ``[B, H, W, C]``.

    Zhang et al. 2019, section 3, by 1x1 convolutions f, g, h, o; gamma starts at 0. As in their
    code and in BigGAN, f(x) and h(x) are maxima over squares of 2x2, of C/8 and C/2 channels.
    """

    conv: Layer = nn.Conv

    @nn.compact
    def __call__(self, x: Array) -> Array:
        b, height, width, c = x.shape
        narrow, half = max(1, c // 8), max(1, c // 2)
        conv = partial(self.conv, kernel_size=(1, 1), use_bias=False)
        q = conv(narrow, name="g")(x).reshape(b, -1, narrow)
        k, v = (
            nn.max_pool(conv(n, name=name)(x), (2, 2), (2, 2), "SAME").reshape(b, -1, n)
            for name, n in (("f", narrow), ("h", half))
        )
        scores = jnp.einsum("bqc,bkc->bqk", q, k, preferred_element_type=jnp.float32)
        found = nn.softmax(scores).astype(v.dtype) @ v
        gamma = self.param("gamma", ZERO, ()).astype(v.dtype)
        return x + gamma * conv(c, name="o")(found.reshape(b, height, width, half))


class UpBlock(nn.Module):
    """norm-ReLU-double-conv, norm-ReLU-conv, plus a 1x1 convolution, doubled, as the shortcut.

    ``[B, h, w, C]`` -> ``[B, *size, width]``, of 2h or 2h - 1 pixels (Gulrajani et al. 2017).
    """

    width: int
    conv: Layer
    norm: Layer

    @nn.compact
    def __call__(self, x: Array, size: tuple[int, int], condition: Array | None) -> Array:
        h = double(nn.relu(self.norm()(x, condition)), size)
        h = self.conv(self.width, (3, 3))(h)
        h = self.conv(self.width, (3, 3))(nn.relu(self.norm()(h, condition)))
        return h + double(self.conv(self.width, (1, 1))(x), size)


class DownBlock(nn.Module):
    """ReLU-conv-ReLU-conv plus a shortcut, halved where it is ``down``: ``[B, .., width]``.

    The shortcut is a 1x1 convolution where the map is halved or the width another. Both 3x3 ones
    have ``width`` filters (Brock et al. 2019, appendix B); of pixels (``first``) there is no ReLU.
    """

    width: int
    conv: Layer
    down: bool
    first: bool = False

    @nn.compact
    def __call__(self, x: Array) -> Array:
        h = self.conv(self.width, (3, 3))(x if self.first else nn.relu(x))
        h = self.conv(self.width, (3, 3))(nn.relu(h))
        if self.down:
            h, x = halve(h), halve(x)
        if self.down or x.shape[-1] != self.width:
            x = self.conv(self.width, (1, 1))(x)
        return h + x


def halve(x: Array) -> Array:
    """Means over squares of 2x2, at an odd edge over the pixels there are: ``[B, H/2, W/2, C]``."""
    return nn.avg_pool(x, (2, 2), (2, 2), "SAME", count_include_pad=False)


class ResNetGenerator(nn.Module):
    """z ``[B, Z]`` -> images ``[B, *shape]`` in [-1, 1], by a linear map and doubling blocks.

    Before the last s blocks maps have ceil(side / 2^s) pixels a side, so any size will do.

    Attributes:
      shape: of the images, (H, W, C).
      widths: channels of the maps from the smallest up: the linear map's, then one a block.
      attention: heights of maps that get self-attention after their block.
      classes: if given, the norms of the blocks are told ``labels [B]``.
      shared_embedding: width of an embedding of classes that all norms share, each with linear maps
        of its own (Brock et al. 2019, section 3.1); of None each has tables of classes.
      skip_z: whether z is cut into ``len(widths)`` equal chunks, the first for the linear map, the
        others for the norms of a block each (hierarchical latents: appendix B there).
      kernel_init: of all kernels but tables of classes, which start at gain 1 and bias 0.
      axis_name: of the devices that share batch statistics.
      dtype: of the computation; parameters and images are float32.

    Raises:
      ValueError: if labels and ``classes`` do not go together, or z cannot be cut.
    """

    shape: tuple[int, ...]
    widths: Sequence[int] = (256, 256, 256, 256)
    attention: Sequence[int] = ()
    classes: int | None = None
    shared_embedding: int | None = None
    skip_z: bool = False
    kernel_init: Init = GLOROT
    axis_name: str | None = None
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None, *, train: bool) -> Array:
        z, *conditions = self._told(z, labels)
        tables = self.shared_embedding is None and not self.skip_z
        maps = ZERO if tables else self.kernel_init
        norm = partial(ConditionalNorm, train, self.axis_name, maps, self.dtype)
        conv = partial(nn.Conv, kernel_init=self.kernel_init, dtype=self.dtype)
        height, width, channels = self.shape
        scales = [2**s for s in reversed(range(len(self.widths)))]
        (h, w), *sizes = [(math.ceil(height / s), math.ceil(width / s)) for s in scales]
        if lacking := set(self.attention) - {height for height, _ in sizes}:
            raise ValueError(
                f"images of {height} pixels a side have no maps of {min(lacking)}, where attention "
                "is: use another architecture, or --image-size."
            )
        first = nn.Dense(h * w * self.widths[0], kernel_init=self.kernel_init, dtype=self.dtype)
        x = first(z).reshape(z.shape[0], h, w, -1)
        for features, size, condition in zip(self.widths[1:], sizes, conditions, strict=True):
            x = UpBlock(features, conv, norm)(x, size, condition)
            if size[0] in self.attention:
                x = Attention(conv)(x)
        x = conv(channels, (3, 3))(nn.relu(norm()(x, None)))
        return jnp.tanh(x.astype(jnp.float32))

    def _told(self, z: Array, labels: Array | None) -> list[Any]:
        """What the linear map is told, ``[B, Z]``, and the norms of each block, [B, D] or None."""
        if (labels is None) != (self.classes is None):
            raise ValueError("labels are given if and only if classes is set.")
        parts = len(self.widths)
        if self.skip_z and z.shape[1] % parts:
            less = z.shape[1] // parts * parts
            near = f"{less} or {less + parts}" if less else parts
            raise ValueError(
                f"latents are cut into {parts} chunks, not {z.shape[1]}: use {near} --latents."
            )
        first, *chunks = jnp.split(z, parts if self.skip_z else 1, axis=1)
        told: list[Any] = chunks or [None] * (parts - 1)
        if labels is None or self.classes is None:
            return [first, *told]
        if self.shared_embedding is None:
            label = jax.nn.one_hot(labels, self.classes)
        else:
            size = self.classes, self.shared_embedding
            label = nn.Embed(*size, embedding_init=self.kernel_init)(labels)
        return [first] + [label if c is None else jnp.concatenate([label, c], 1) for c in told]


class ResNetBody(nn.Module):
    """Images ``[B, H, W, C]`` -> features ``[B, F]``: residual blocks, ReLU, sums over the pixels.

    No norm is in it: each example is judged by itself, in training too.

    Attributes:
      widths: channels of the blocks; F is the last.
      downs: how many blocks, from the first on, halve the map; half of an odd side is rounded up.
      attention: heights of maps that get self-attention after the block that halves to them.
      kernel_init: of all kernels.
      dtype: of the computation; parameters and features are float32.
    """

    widths: Sequence[int] = (128, 128, 128, 128)
    downs: int = 2
    attention: Sequence[int] = ()
    kernel_init: Init = GLOROT
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool) -> Array:
        del labels, train  # the contract of all bodies
        conv = partial(nn.Conv, kernel_init=self.kernel_init, dtype=self.dtype)
        for i, width in enumerate(self.widths):
            down = i < self.downs
            x = DownBlock(width, conv, down, first=i == 0)(x)
            if down and x.shape[1] in self.attention:
                x = Attention(conv)(x)
        return nn.relu(x).astype(jnp.float32).sum(axis=(1, 2))


Networks = tuple[ResNetGenerator, ResNetBody]
UP_TO_128 = (16, 16, 8, 4, 2, 1)  # times channels, of maps from 4x4 to 128x128


def sngan(shape: tuple[int, ...], classes: int | None = None, channels: int = 128) -> Networks:
    """Of 32x32 images, z ``[B, 128]``: Miyato et al. 2018, appendix B.4, table for CIFAR-10."""
    generator = ResNetGenerator(shape, (2 * channels,) * 4, classes=classes)
    return generator, ResNetBody((channels,) * 4)


def sagan(shape: tuple[int, ...], classes: int | None = None, channels: int = 64) -> Networks:
    """Of 128x128 images, z ``[B, 128]``: Zhang et al. 2019, layers as in their code."""
    widths = tuple(channels * m for m in UP_TO_128)
    generator = ResNetGenerator(shape, widths, (32,), classes)
    return generator, ResNetBody(widths[::-1], len(widths) - 1, (32,))


def biggan(
    shape: tuple[int, ...],
    classes: int | None = None,
    channels: int = 96,
    multipliers: Sequence[int] = UP_TO_128,
    attention: Sequence[int] = (64,),
    embedding: int = 128,
) -> Networks:
    """Of 128x128 images, z ``[B, 120]``, 20 a chunk: Brock et al. 2019, appendix B, table 4.

    By the 70.4 million parameters told there the linear map sees a chunk alone, not the class.
    """
    widths, init = tuple(channels * m for m in multipliers), nn.initializers.orthogonal()
    shared = None if classes is None else embedding
    generator = ResNetGenerator(shape, widths, attention, classes, shared, True, init)
    return generator, ResNetBody(widths[::-1], len(widths) - 1, attention, init)


def biggan_32(shape: tuple[int, ...], classes: int | None = None, channels: int = 64) -> Networks:
    """Of 32x32 images, z ``[B, 80]``: :func:`biggan` of 256 channels in the layers of SNGAN.

    The paper has no table for CIFAR-10 (appendix C.2): widths, two halvings and no attention are
    those of the first author's code.
    """
    generator, body = biggan(shape, classes, channels, (4, 4, 4, 4), attention=())
    return generator, body.clone(downs=2)


def small_biggan(
    shape: tuple[int, ...], classes: int | None = None, channels: int = 32
) -> Networks:
    """Of 8x8 to 32x32 images, z ``[B, 60]``, attention at half the height: not published."""
    half = math.ceil(shape[0] / 2)
    return biggan(shape, classes, channels, (4, 2, 1), attention=(half,), embedding=32)
