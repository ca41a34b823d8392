"""Convolutions that see what comes before a pixel: PixelCNN, its gated form, the row LSTM, and ++.

Images ``[B, H, W, C]`` are read row by row, and the channels of a pixel one after the other. Every
network answers the parameter maps ``[B, H, W, maps * C]`` of p(x_i | x_<i), those of all C channels
of a map together. Of ``channels`` groups of features, group c knows the channels of its own pixel
before the c-th, and so does what is made of it (van den Oord et al. 2016, "Pixel recurrent neural
networks", section 3.4); with one group a pixel is one entry, for a likelihood that couples its
channels. What else is known is told as ``y``: to all pixels alike, as labels are, ``[B, K]``, or to
each its own, ``[B, H, W, K]``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array

from jaxgen.models.blocks import unsqueeze

HE, ZEROS = nn.initializers.he_normal(), nn.initializers.zeros_init()
# A tenth of HE. Not zero: equal components of a mixture would stay equal for ever.
SMALL = nn.initializers.variance_scaling(0.02, "fan_in", "normal")


# --- masked convolutions ------------------------------------------------------------------------


def groups(features: int, channels: int) -> np.ndarray:
    """The group that each of some features is of, ``[features]``: neighbours share one."""
    return np.arange(features) * channels // features


class Causal(nn.Module):
    """A convolution of the pixels up to its own: rows above, and of its row what is at the left.

    The kernel ``[rows, left + 1 + right]`` ends at the pixel's own row. Of the pixel itself
    features of group g see those of the groups before g, and with ``own`` those of group g: masks
    A and B of the paper. ``sources`` and ``targets`` are the groups of what goes in and comes out.
    """

    features: int
    sources: tuple[int, ...]
    targets: tuple[int, ...]
    own: bool
    rows: int = 1
    left: int = 0
    right: int = 0
    stride: int = 1
    kernel_init: nn.initializers.Initializer = HE

    @nn.compact
    def __call__(self, x: Array) -> Array:
        before, at = np.asarray(self.sources)[:, None], np.asarray(self.targets)
        shape = (self.rows, self.left + 1 + self.right, x.shape[-1], self.features)
        seen = np.ones(shape, np.float32)
        seen[-1, self.left + 1 :] = 0
        seen[-1, self.left] = before <= at if self.own else before < at
        kernel = self.param("kernel", self.kernel_init, shape) * seen
        bias = self.param("bias", ZEROS, (self.features,))
        padding = ((self.rows - 1, 0), (self.left, self.right))
        strides, layout = (self.stride, self.stride), ("NHWC", "HWIO", "NHWC")
        x, kernel = promote_dtype(x, kernel)
        x = jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=layout)
        return x + bias.reshape(1, 1, 1, -1)


def causal(
    features: int,
    channels: int,
    sources: int | None = None,
    own: bool = True,
    halves: int = 1,
    **options: Any,
) -> Causal:
    """:class:`Causal` of ``sources`` features (or as many), to ``halves`` times ``features``."""
    to = tuple(groups(features, channels).tolist()) * halves
    return Causal(
        halves * features,
        tuple(groups(sources or features, channels).tolist()),
        to,
        own,
        **options,
    )


class Readout(nn.Module):
    """Features ``[B, H, W, F]`` -> maps ``[B, H, W, maps * C]``, pixel by pixel."""

    maps: int
    colours: int  # C
    channels: int

    @nn.compact
    def __call__(self, h: Array) -> Array:
        width = h.shape[-1]
        h = nn.relu(causal(width, self.channels)(nn.relu(h)))
        of = tuple(groups(width, self.channels).tolist())
        to = tuple(groups(self.colours, self.channels).tolist()) * self.maps
        return Causal(len(to), of, to, own=True, kernel_init=SMALL)(h)


# --- networks -----------------------------------------------------------------------------------


class PixelCNN(nn.Module):
    """A convolution 7x7 that does not see its pixel, then residual blocks 3x3 that may.

    van den Oord et al. 2016, table 1. What lies above at the right is seen too little: there is a
    blind spot, which :class:`GatedPixelCNN` does not have.
    """

    maps: int
    channels: int = 1
    width: int = 32
    blocks: int = 5

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        colours, width, channels = x.shape[-1], self.width, self.channels
        window = {"rows": 4, "left": 3, "right": 3}
        h = causal(width, channels, colours, own=False, **window)(x) + told(y, width)
        for _ in range(self.blocks):
            r = causal(width // 2, channels, width)(nn.relu(h))
            r = causal(width // 2, channels, rows=2, left=1, right=1)(nn.relu(r))
            h = h + causal(width, channels, width // 2)(nn.relu(r)) + told(y, width)
        return Readout(self.maps, colours, channels)(h)


class GatedPixelCNN(nn.Module):
    """Two stacks: one of the rows above, one of the pixels at the left, which is told of the first.

    van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders", figure 2. With
    ``places`` every layer learns a map beside its filters, of images of one size: what is usual
    where, of things that stand in the middle.
    """

    maps: int
    channels: int = 1
    width: int = 32
    layers: int = 7
    kernel: int = 3
    places: bool = False

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        colours, width, channels, reach = x.shape[-1], self.width, self.channels, self.kernel // 2
        above, h = shifted_down(x), x
        for i in range(self.layers):
            first = i == 0
            # of all rows that are above, with their whole width
            padding = ((reach, 0), (reach, reach))
            v = nn.Conv(2 * width, (reach + 1, self.kernel), padding=padding, kernel_init=HE)(above)
            source = colours if first else width
            left = causal(width, channels, source, own=not first, halves=2, left=reach)(h)
            left = left + nn.Dense(2 * width)(v)
            if self.places:
                v, left = Places()(v), Places()(left)
            above = gated(v + told(y, 2 * width))
            out = causal(width, channels)(gated(left + told(y, 2 * width)))
            h = out if first else h + out
        return Readout(self.maps, colours, channels)(h)


class Places(nn.Module):
    """``[B, H, W, F]`` plus a learned map ``[H, W, F]``."""

    @nn.compact
    def __call__(self, x: Array) -> Array:
        return x + self.param("map", ZEROS, x.shape[1:])[None]


class PixelRNN(nn.Module):
    """A convolution 7x7, then residual LSTMs that go down row by row (van den Oord et al. 2016)."""

    maps: int
    channels: int = 1
    width: int = 32
    layers: int = 3

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        colours, channels = x.shape[-1], self.channels
        window = {"rows": 4, "left": 3, "right": 3}
        h = causal(self.width, channels, colours, own=False, **window)(x) + told(y, self.width)
        for _ in range(self.layers):
            h = h + RowLSTM(self.width, channels)(h)
        return Readout(self.maps, colours, channels)(h)


class PixelCNNpp(nn.Module):
    """Two streams, of the rows above and of what is before a pixel, that are halved and doubled.

    Salimans et al. 2017, "PixelCNN++", section 2.4, figure 2: ``blocks`` at each of the
    ``resolutions`` on the way down, and on the way up as many, which are told of the first by short
    cuts. Not as there: plain kernels in place of weight norm, and a pixel becomes four by a matrix.
    Dropout is on where a key ``dropout`` is given.

    Raises:
      ValueError: for sides that cannot be halved as often.
    """

    maps: int
    channels: int = 1
    width: int = 32
    blocks: int = 2
    resolutions: int = 2
    dropout: float = 0.0

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Array:
        (_, *sides, colours), width, channels = x.shape, self.width, self.channels
        halvings = self.resolutions - 1
        if any(side % 2**halvings for side in sides):
            raise ValueError(
                f"images of {sides[0]}x{sides[1]} pixels cannot be halved {halvings} times: "
                "use fewer --resolutions, of which 1 halves none."
            )
        block = partial(BothStreams, width, channels, self.dropout)

        def at(level: int) -> Array | None:
            return y if y is None or y.ndim == 2 else y[:, :: 2**level, :: 2**level]

        first = causal(width, channels, colours, own=False, rows=2, left=1, right=1)
        streams = above_conv(width)(shifted_down(x)), first(x)
        kept = [streams]
        for level in range(self.resolutions):
            if level:
                above, h = streams
                halved = causal(width, channels, rows=2, left=1, stride=2)(h)
                streams = above_conv(width, strides=2)(above), halved
                kept.append(streams)
            for _ in range(self.blocks):
                streams = block()(streams, at(level))
                kept.append(streams)
        kept.pop()
        for level in range(self.resolutions):
            if level:
                above, h = streams
                doubled = causal(width, channels, halves=4)(h)
                streams = unsqueeze(nn.Dense(4 * width)(above)), unsqueeze(doubled)
            for _ in range(self.blocks + min(level, 1)):
                streams = block()(streams, at(halvings - level), kept.pop())
        return Readout(self.maps, colours, channels)(streams[1])


class BothStreams(nn.Module):
    """A gated residual block of each stream; the second is told of the first.

    ``short`` are the two streams of an earlier block, at the same pixels.
    """

    width: int
    channels: int
    dropout: float

    @nn.compact
    def __call__(
        self,
        streams: tuple[Array, Array],
        y: Array | None = None,
        short: tuple[Array, Array] | None = None,
    ) -> tuple[Array, Array]:
        (above, h), width, channels = streams, self.width, self.channels
        at = partial(causal, width, sources=2 * width)  # pixel by pixel

        def conv(halves: int, kernel_init: nn.initializers.Initializer = HE) -> nn.Module:
            return above_conv(halves * width, kernel_init=kernel_init)

        def conv_before(halves: int, kernel_init: nn.initializers.Initializer = HE) -> nn.Module:
            window = {"rows": 2, "left": 1, "kernel_init": kernel_init}
            return causal(width, channels, 2 * width, halves=halves, **window)

        told_above = at(1)(concat_elu(short[0])) if short else 0.0
        above = GatedResidual(conv, 1, self.dropout)(above, told_above, y)
        told_h = at(1)(concat_elu(above))
        if short:
            told_h = told_h + at(channels)(concat_elu(short[1], channels))
        return above, GatedResidual(conv_before, channels, self.dropout)(h, told_h, y)


class GatedResidual(nn.Module):
    """h + a sigmoid(b) of two halves that two convolutions make; ``beside`` is added between them.

    ``conv`` makes a convolution to so many halves.
    """

    conv: Callable[..., nn.Module]
    channels: int
    dropout: float

    @nn.compact
    def __call__(self, h: Array, beside: Array | float, y: Array | None) -> Array:
        r = self.conv(1)(concat_elu(h, self.channels)) + beside
        r = concat_elu(r, self.channels)
        r = nn.Dropout(self.dropout, deterministic=not self.has_rng("dropout"))(r)
        r = self.conv(2, kernel_init=SMALL)(r) + told(y, 2 * h.shape[-1])
        a, b = jnp.split(r, 2, axis=-1)
        return h + a * nn.sigmoid(b)


class RowLSTM(nn.Module):
    """h, c of a row from those of the row above, around each column, and from the row's inputs.

    There section 3.1, eq. 3: both convolutions are ``2 reach + 1`` wide, that of the inputs masked.
    """

    width: int
    channels: int = 1
    reach: int = 1

    @nn.compact
    def __call__(self, x: Array) -> Array:
        inputs = causal(self.width, self.channels, halves=4, left=self.reach)(x)
        size = 2 * self.reach + 1
        kernel = self.param("kernel", HE, (size, self.width, 4 * self.width))

        def row(state: tuple[Array, Array], inputs: Array) -> tuple[tuple[Array, Array], Array]:
            h, c = state
            layout = ("NWC", "WIO", "NWC")
            above = jax.lax.conv_general_dilated(h, kernel, (1,), "SAME", dimension_numbers=layout)
            o, f, i, g = jnp.split(inputs + above, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((x.shape[0], x.shape[2], self.width), inputs.dtype)
        _, found = jax.lax.scan(row, (zeros, zeros), jnp.swapaxes(inputs, 0, 1))
        return jnp.swapaxes(found, 0, 1)


# --- parts --------------------------------------------------------------------------------------


def gated(h: Array) -> Array:
    """tanh(a) sigmoid(b) of two halves (there eq. 2)."""
    a, b = jnp.split(h, 2, axis=-1)
    return jnp.tanh(a) * nn.sigmoid(b)


def above_conv(
    features: int, strides: int = 1, kernel_init: nn.initializers.Initializer = HE
) -> nn.Conv:
    """A convolution 2x3 of features of the rows above: its own row may be seen with its width."""
    return nn.Conv(features, (2, 3), strides, ((1, 0), (1, 1)), kernel_init=kernel_init)


def concat_elu(h: Array, channels: int = 1) -> Array:
    """elu of h and of -h, side by side within each of the groups, by one exponential."""
    h = h.reshape(*h.shape[:-1], channels, -1)
    positive = h > 0
    below = jnp.expm1(jnp.where(positive, -h, h))
    both = [jnp.where(positive, h, below), jnp.where(positive, below, -h)]
    return jnp.concatenate(both, axis=-1).reshape(*h.shape[:-2], -1)


def told(y: Array | None, features: int) -> Array | float:
    """What y adds at every pixel, ``[B, 1 or H, 1 or W, features]``.

    van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders", section 2.3.
    """
    if y is None:
        return 0.0
    found = nn.Dense(features, use_bias=False)(y)
    return found if found.ndim == 4 else found[:, None, None]


def shifted_down(x: Array) -> Array:
    """Every row in the place of the one below it."""
    return jnp.pad(x, ((0, 0), (1, 0), (0, 0), (0, 0)))[:, :-1]
