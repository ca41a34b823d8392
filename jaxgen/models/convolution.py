"""Convolutions whose gradients are fast on CPU: inside ``lax.scan``, and of maps that double.

:func:`convolve` goes into ``nn.Conv(..., conv_general_dilated=convolve)``. Its values are those of
``lax.conv_general_dilated``. The two derivatives are equal to that function's, but written anew,
as inside a loop XLA on CPU has fast kernels for few ways to write a convolution (measured on two
CPU cores, JAX 0.10, 3x3 kernels, 128 channels, 16x16x16 pixels):

- the kernel's gradient is one matrix product with shifted copies of the input or of the output's
  gradient. In a scan it takes as long as outside, where XLA's own takes 30 to 100 times as long;
- the input's gradient is a convolution like the forward one, with a transposed kernel. In a scan
  XLA's own takes 9 times as long. The price: forward mode (``jax.jvp``) with respect to the input
  takes that long in a scan instead.

A training step of a U-Net of 6.5 million parameters took 1.3 seconds in a scan, and 27 with XLA's
own. Outside it took 1.6 times as long as with those (more is computed again for the shifted
copies), so this is for steps in loops only: several a call, or accumulated gradients; and for
kernels of 2x2 (:class:`Doubling`), whose gradient XLA has no fast way for.

Both are linear maps that JAX transposes itself, so every transformation works as ever. On
accelerators, ``convolve`` is ``lax.conv_general_dilated``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array, lax
from jax.custom_derivatives import SymbolicZero

Padding = str | Sequence[tuple[int, int]]


def convolve(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding, **options: Any
) -> Array:
    """``x [B, H, W, C]`` and ``kernel [h, w, C, O]`` to ``[B, H', W', O]``.

    The arguments are those with which Flax calls ``lax.conv_general_dilated``; anything but a plain
    two-dimensional convolution (dilated, grouped) goes there.
    """
    dilations = {d for name in ("lhs_dilation", "rhs_dilation") for d in options.get(name) or ()}
    plain = x.ndim == 4 and dilations <= {1} and options.get("feature_group_count", 1) == 1
    if not plain or jax.default_backend() != "cpu":
        return lax.conv_general_dilated(x, kernel, strides, padding, **options)
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    return _convolve(x, kernel, tuple(strides), tuple(map(tuple, padding)))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, strides, pads):
    return _general(x, kernel, strides, pads, "HWIO")


@partial(_convolve.defjvp, symbolic_zeros=True)
def _convolve_jvp(strides, pads, primals, tangents):
    (x, kernel), (dx, dkernel) = primals, tangents
    terms = []
    if not isinstance(dx, SymbolicZero):
        # JAX transposes this to a convolution of kernel layout HWIO, which is the fast one.
        terms.append(_general(dx, kernel.swapaxes(2, 3), strides, pads, "HWOI"))
    if not isinstance(dkernel, SymbolicZero):
        narrows = kernel.shape[3] <= kernel.shape[2] and strides == (1, 1)
        product = _multiply_then_shift if narrows else _shift_then_multiply
        terms.append(product(x, dkernel, strides, pads))
    return _convolve(x, kernel, strides, pads), sum(terms)


def _general(x, kernel, strides, pads, layout):
    numbers = ("NHWC", layout, "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, pads, dimension_numbers=numbers)


def _shifted(x, size, strides, pads, i, j):
    """What entry (i, j) of a kernel of that size is multiplied with: ``[B, H', W', C]``."""
    x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
    height, width = (n - k + 1 for n, k in zip(x.shape[1:3], size, strict=True))
    return x[:, i : i + height : strides[0], j : j + width : strides[1]]


@partial(jax.checkpoint, prevent_cse=False, static_argnums=(2, 3))  # keeps x, not its copies
def _shift_then_multiply(x, kernel, strides, pads):
    """The convolution as [.., h w C] times [h w C, O]. Of its transpose in the kernel, the widest
    array is ``[B, H', W', h w C]``."""
    size = kernel.shape[:2]
    taps = [(i, j) for i in range(size[0]) for j in range(size[1])]
    copies = jnp.concatenate([_shifted(x, size, strides, pads, *tap) for tap in taps], axis=-1)
    return copies @ kernel.reshape(-1, kernel.shape[-1])


def _multiply_then_shift(x, kernel, strides, pads):
    """The convolution as [.., C] times [C, h w O], whose parts are shifted and added. Of its
    transpose in the kernel, the widest array is ``[B, H, W, h w O]``."""
    size, outputs = kernel.shape[:2], kernel.shape[-1]
    taps = [(i, j) for i in range(size[0]) for j in range(size[1])]
    products = x @ kernel.transpose(2, 0, 1, 3).reshape(-1, len(taps) * outputs)
    parts = jnp.split(products, len(taps), axis=-1)
    return sum(
        _shifted(part, size, strides, pads, *tap) for part, tap in zip(parts, taps, strict=True)
    )


class Doubling(nn.Module):
    """A fractionally-strided 4x4 convolution, ``[B, h, w, C]`` -> ``[B, 2h, 2w, O]``.

    As ``nn.ConvTranspose`` with padding SAME, written as a plain one: pixels 2n - 1 and 2n of the
    answer see pixels n - 1 and n alone, by kernels of 2x2 of their own. On CPU the gradient of a
    generator takes a fifth of the time.
    """

    features: int
    use_bias: bool = True
    kernel_init: nn.initializers.Initializer = nn.initializers.lecun_normal()

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = self.param("kernel", self.kernel_init, (4, 4, x.shape[-1], self.features))
        out = doubled(*promote_dtype(x, kernel))
        if self.use_bias:
            bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
            out = out + bias[None, None, None]
        return out


def doubled(x: Array, kernel: Array) -> Array:
    """x ``[B, h, w, C]`` by a kernel ``[4, 4, C, O]``: ``[B, 2h, 2w, O]``."""
    (b, h, w, c), o = x.shape, kernel.shape[-1]
    # Entry 2 t + 1 - s along an axis takes the t-th of two pixels to the s-th of two.
    taps = kernel.reshape(2, 2, 2, 2, c, o)[:, ::-1, :, ::-1].transpose(0, 2, 4, 1, 3, 5)
    dimensions = ("NHWC", "HWIO", "NHWC")
    taps = taps.reshape(2, 2, c, 4 * o)
    squares = convolve(x, taps, (1, 1), ((1, 1), (1, 1)), dimension_numbers=dimensions)
    pixels = squares.reshape(b, h + 1, w + 1, 2, 2, o).transpose(0, 1, 3, 2, 4, 5)
    return pixels.reshape(b, 2 * h + 2, 2 * w + 2, o)[:, 1:-1, 1:-1]
