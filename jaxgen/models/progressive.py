"""Networks that grow (Karras et al. 2018, "Progressive growing of GANs").

Maps double from 4x4 or less to the size of the image. At stage s of a network s doublings are
there, and the image is in as many pixels; but what a generator answers and what a body is given is
as large as the data at every stage, each pixel repeated and squares of pixels averaged: data,
samples and measures have one shape, and every stage is a program of its own.

A new block is faded in by ``alpha``, a scalar in [0, 1] of the collection ``growth``
(``variables["growth"]["alpha"]``; 1 at first), which networks read and never write: with 0 a
network is what it was one stage before, with 1 the new block is all there (figure 2). Layers are
named by the height of their maps, and :func:`grown` takes them over to the next stage.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.equalized import (
    EqualizedConv,
    EqualizedDense,
    leaky,
    minibatch_std,
    on_sphere,
    pixel_norm,
)


def map_sizes(shape: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width of the maps of every stage, for images ``[H, W, C]``.

    The smallest is of 4x4 pixels at most. The largest may exceed the image, which is its upper left
    part: 28 pixels are cropped from 32.
    """
    doublings = max(0, math.ceil(math.log2(max(shape[:2]) / 4)))
    h, w = (math.ceil(n / 2**doublings) for n in shape[:2])
    return [(h * 2**level, w * 2**level) for level in range(doublings + 1)]


def map_widths(levels: int, channels: int, widest: int) -> list[int]:
    """Channels of the maps of every level: half as many a doubling, down to ``channels``."""
    return [min(channels * 2**i, widest) for i in reversed(range(levels))]


def padded(x: Array, size: tuple[int, int]) -> Array:
    """Images ``[B, H, W, C]`` with their last pixels repeated up to height and width ``size``."""
    (_, height, width, _), (h, w) = x.shape, size
    return jnp.pad(x, ((0, 0), (0, h - height), (0, w - width), (0, 0)), mode="edge")


def repeated(x: Array, times: int) -> Array:
    """``[B, H, W, C]`` with every pixel a square of ``times`` x ``times``."""
    return jnp.repeat(jnp.repeat(x, times, axis=1), times, axis=2)


def averaged(x: Array, times: int) -> Array:
    """``[B, H, W, C]`` with the mean of every square of ``times`` x ``times`` for a pixel."""
    b, h, w, c = x.shape
    return x.reshape(b, h // times, times, w // times, times, c).mean(axis=(2, 4))


def faded(x: Array, stage: int, alpha: Array | float) -> Array:
    """Images ``[B, H, W, C]`` as a stage beyond the first has them, in their own size.

    While a block is faded in data are too: (1 - alpha) times what the stage before sees of them and
    alpha times what this one does (figure 2, of real images), or a body would know samples by the
    detail that they lack.
    """
    _, height, width, _ = x.shape
    sizes = map_sizes(x.shape[1:])
    times = 2 ** (len(sizes) - 1 - stage)
    fine = averaged(padded(x, sizes[-1]), times)
    coarse = repeated(averaged(fine, 2), 2)
    return repeated((1 - alpha) * coarse + alpha * fine, times)[:, :height, :width]


def grown(old: Any, fresh: Any) -> Any:
    """The tree ``fresh`` of a stage, with whatever ``old``, of the stage before, has by that name.

    Trees are parameters, or what has these in it: their EMA, the state of an optimizer.

    Raises:
      AssertionError: if the two have arrays of one name and different shapes.
    """
    kept = dict(jax.tree_util.tree_flatten_with_path(old)[0])
    keep = lambda path, new: kept.get(path, new)  # noqa: E731
    tree = jax.tree_util.tree_map_with_path(keep, fresh)
    chex.assert_trees_all_equal_shapes(tree, fresh)
    return tree


def check_stage(stage: int, sizes: Sequence[tuple[int, int]]) -> None:
    """Raises a ValueError for a stage that images do not have."""
    if not 0 <= stage < len(sizes):
        raise ValueError(f"stage is {stage}, and maps up to {sizes[-1]} have 0 to {len(sizes) - 1}")


class UpBlock(nn.Module):
    """``[B, H, W, C]`` -> ``[B, 2 H, 2 W, width]`` (table 2)."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = repeated(x, 2)
        for _ in range(2):
            x = pixel_norm(leaky(EqualizedConv(self.width)(x)))
        return x


class DownBlock(nn.Module):
    """``[B, 2 H, 2 W, C]`` -> ``[B, H, W, width]`` (table 2)."""

    width: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        x = leaky(EqualizedConv(x.shape[-1])(x))
        return averaged(leaky(EqualizedConv(self.width)(x)), 2)


class FirstBlock(nn.Module):
    """z ``[B, Z]`` -> ``[B, *size, width]`` (table 2)."""

    size: tuple[int, int]
    width: int

    @nn.compact
    def __call__(self, z: Array) -> Array:
        x = EqualizedDense(math.prod(self.size) * self.width)(z)
        x = pixel_norm(leaky(x.reshape(z.shape[0], *self.size, self.width)))
        return pixel_norm(leaky(EqualizedConv(self.width)(x)))


class LastBlock(nn.Module):
    """``[B, h, w, C]`` -> features ``[B, C]``, told how examples of a group differ (table 2)."""

    group: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        width = x.shape[-1]
        x = leaky(EqualizedConv(width)(minibatch_std(x, self.group)))
        return leaky(EqualizedDense(width)(x.reshape(x.shape[0], -1)))


class Generator(nn.Module):
    """z ``[B, Z]`` and labels ``[B]`` -> images ``[B, *shape]``, which nothing bounds.

    Attributes:
      shape: of the images of the last stage, ``(H, W, C)``.
      stage: from 0 to ``len(map_sizes(shape)) - 1``.
      channels: of the largest map of the last stage; twice as many a halving, up to ``widest``.
      num_classes: if given, so are labels.

    Raises:
      ValueError: for a stage that there is not, or if labels do not go with ``num_classes``.
    """

    shape: tuple[int, ...]
    stage: int
    channels: int = 16
    widest: int = 512
    num_classes: int | None = None

    @nn.compact
    def __call__(self, z: Array, labels: Array | None = None, *, train: bool) -> Array:
        del train  # the contract of all networks; nothing here is different in training
        sizes, (height, width, channels) = map_sizes(self.shape), self.shape
        check_stage(self.stage, sizes)
        widths = map_widths(len(sizes), self.channels, self.widest)
        alpha = self.variable("growth", "alpha", lambda: jnp.ones(())).value

        def to_rgb(stage: int, x: Array) -> Array:
            return EqualizedConv(channels, 1, gain=1.0, name=f"to_rgb_{sizes[stage][0]}")(x)

        z = on_sphere(z, labels, self.num_classes)
        before = x = FirstBlock(sizes[0], widths[0], name=f"block_{sizes[0][0]}")(z)
        for level in range(1, self.stage + 1):
            before, x = x, UpBlock(widths[level], name=f"block_{sizes[level][0]}")(x)
        image = to_rgb(self.stage, x)
        if self.stage > 0:
            image = (1 - alpha) * repeated(to_rgb(self.stage - 1, before), 2) + alpha * image
        image = repeated(image, 2 ** (len(sizes) - 1 - self.stage))
        return image[:, :height, :width]


class Body(nn.Module):
    """Images ``[B, H, W, C]`` -> features ``[B, F]``, of which a linear map is the critic.

    The features of an example depend on its group too (:func:`~jaxgen.models.equalized.
    minibatch_std`), and on no label. Attributes are those of the generator; ``group`` is the number
    of examples that are compared.

    Raises:
      ValueError: for a stage that there is not.
    """

    stage: int
    channels: int = 16
    widest: int = 512
    group: int = 4

    @nn.compact
    def __call__(self, x: Array, labels: Array | None = None, *, train: bool) -> Array:
        del labels, train  # the contract of all bodies
        sizes = map_sizes(x.shape[1:])
        check_stage(self.stage, sizes)
        widths = map_widths(len(sizes), self.channels, self.widest)
        alpha = self.variable("growth", "alpha", lambda: jnp.ones(())).value

        def from_rgb(stage: int, x: Array) -> Array:
            return leaky(EqualizedConv(widths[stage], 1, name=f"from_rgb_{sizes[stage][0]}")(x))

        x = averaged(padded(x, sizes[-1]), 2 ** (len(sizes) - 1 - self.stage))
        h = from_rgb(self.stage, x)
        for level in range(self.stage, 0, -1):
            h = DownBlock(widths[level - 1], name=f"block_{sizes[level][0]}")(h)
            if level == self.stage:
                h = (1 - alpha) * from_rgb(level - 1, averaged(x, 2)) + alpha * h
        return LastBlock(self.group, name=f"block_{sizes[0][0]}")(h)
