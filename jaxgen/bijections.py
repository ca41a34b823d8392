"""Rising maps of the line onto itself, entry by entry: forwards with their slopes, and backwards.

What they are made of may be anything: parameters as large as 1e18 do not break them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

LEAST = 1e-3  # the smallest share of a bin, and the smallest slope at a knot


class Bijection(NamedTuple):
    """A map with so many parameters an entry: of ``x [...]`` they are ``[..., maps]``.

    Where all of them are 0 it is the identity.
    """

    maps: int
    forward: Callable[[Array, Array], tuple[Array, Array]]  # x, parameters -> y, log dy/dx
    inverse: Callable[[Array, Array], Array]  # y, parameters -> x


# --- affine ----------------------------------------------------------------------------------


def affine(bound: float = 2.0) -> Bijection:
    """exp(s) x + m, with s kept within +-``bound`` by a tanh (Dinh et al. 2017, section 3.2)."""

    def read(parameters: Array) -> tuple[Array, Array]:
        m, s = parameters[..., 0], parameters[..., 1]
        return m, bound * jnp.tanh(s / bound)

    def forward(x: Array, parameters: Array) -> tuple[Array, Array]:
        m, s = read(parameters)
        return jnp.exp(s) * x + m, s

    def inverse(y: Array, parameters: Array) -> Array:
        m, s = read(parameters)
        return (y - m) * jnp.exp(-s)

    return Bijection(2, forward, inverse)


# --- rational-quadratic splines --------------------------------------------------------------


class _Bin(NamedTuple):
    """The bin that an entry is in: its lower corner, its sides, and the slopes at its ends."""

    x: Array
    y: Array
    width: Array
    height: Array
    slope_0: Array
    slope_1: Array

    @property
    def slope(self) -> Array:
        """Of the bin's diagonal: s of the paper."""
        return self.height / self.width


def _edges(logits: Array, half: float) -> Array:
    """Edges ``[..., K + 1]`` of K bins that share [-half, half] by their ``logits [..., K]``."""
    bins = logits.shape[-1]
    share = LEAST + (1 - LEAST * bins) * jax.nn.softmax(logits)
    inner = 2 * half * jnp.cumsum(share, axis=-1)[..., :-1] - half
    end = jnp.full((*inner.shape[:-1], 1), half, inner.dtype)
    return jnp.concatenate([-end, inner, end], axis=-1)


def _bin_of(
    at: Array, along: str, widths: Array, heights: Array, slopes: Array, half: float
) -> _Bin:
    """The bin in which ``at`` lies along "x" or "y"."""
    bins = widths.shape[-1]
    chex.assert_shape([widths, heights], (*at.shape, bins))
    chex.assert_shape(slopes, (*at.shape, bins - 1))
    xs, ys = _edges(widths, half), _edges(heights, half)
    inner = LEAST + jax.nn.softplus(slopes + np.log(np.expm1(1 - LEAST)))
    one = jnp.ones((*at.shape, 1), inner.dtype)
    slopes = jnp.concatenate([one, inner, one], axis=-1)
    inside = (xs if along == "x" else ys)[..., 1:-1]
    # Sums with a mask have a gradient that is as fast as they are, which a gather has not.
    here = jax.nn.one_hot(jnp.sum(at[..., None] >= inside, axis=-1), bins, dtype=at.dtype)
    pick = lambda a: jnp.sum(here * a, axis=-1)  # noqa: E731
    return _Bin(
        pick(xs[..., :-1]),
        pick(ys[..., :-1]),
        pick(jnp.diff(xs)),
        pick(jnp.diff(ys)),
        pick(slopes[..., :-1]),
        pick(slopes[..., 1:]),
    )


def rational_quadratic(
    x: Array, widths: Array, heights: Array, slopes: Array, half: float = 3.0
) -> tuple[Array, Array]:
    """A rising spline of [-half, half], the identity beyond, and the logarithm of its slope.

    Durkan et al. 2019 ("Neural spline flows"), eq. 4 and 5. Of ``x [...]`` the K bins share the
    interval by the logits ``widths [..., K]``, and its image by ``heights``; those of the slopes at
    the inner knots are before a softplus, ``[..., K - 1]``. Where all are 0 it is the identity.
    """
    inside = jnp.abs(x) < half
    b = _bin_of(jnp.where(inside, x, 0.0), "x", widths, heights, slopes, half)
    t = jnp.clip((jnp.where(inside, x, 0.0) - b.x) / b.width, 0, 1)
    both, s = t * (1 - t), b.slope
    below = s * (1 - 2 * both) + (b.slope_0 + b.slope_1) * both  # s + (d_1 + d_0 - 2 s) t (1 - t)
    y = b.y + b.height * (s * t**2 + b.slope_0 * both) / below
    above = b.slope_1 * t**2 + 2 * s * both + b.slope_0 * (1 - t) ** 2
    log_slope = 2 * jnp.log(s) + jnp.log(above) - 2 * jnp.log(below)
    return jnp.where(inside, y, x), jnp.where(inside, log_slope, 0.0)


def inverse_rational_quadratic(
    y: Array, widths: Array, heights: Array, slopes: Array, half: float = 3.0
) -> Array:
    """The x whose :func:`rational_quadratic` is y: the root of a quadratic (there eq. 6 to 8)."""
    inside = jnp.abs(y) < half
    b = _bin_of(jnp.where(inside, y, 0.0), "y", widths, heights, slopes, half)
    # in units of the bin's height, so that the terms are of the size of slopes
    v = jnp.clip((jnp.where(inside, y, 0.0) - b.y) / b.height, 0, 1)
    curve = v * (b.slope_0 + b.slope_1 - 2 * b.slope)
    a_2, a_1, a_0 = b.slope - b.slope_0 + curve, b.slope_0 - curve, -b.slope * v
    root = jnp.sqrt(jnp.maximum(a_1**2 - 4 * a_2 * a_0, 1e-30))
    falls = a_1 < 0  # then a_2 = s - a_1 > 0; of either form that which subtracts no equal numbers
    rises = 2 * a_0 / jnp.where(falls, -1.0, -a_1 - root)
    t = jnp.where(falls, (root - a_1) / jnp.where(falls, 2 * a_2, 1.0), rises)
    return jnp.where(inside, b.x + b.width * jnp.clip(t, 0, 1), y)


def spline(bins: int = 8, half: float = 3.0) -> Bijection:
    """:func:`rational_quadratic` splines of so many bins.

    Raises:
      ValueError: for less than two bins, or so many that the smallest ones are too many.
    """
    if not 2 <= bins <= 1 / (2 * LEAST):
        raise ValueError(f"a spline has 2 to {1 / (2 * LEAST):g} bins, not {bins}.")

    def read(parameters: Array) -> tuple[Array, Array, Array]:
        widths, heights, slopes = jnp.split(parameters, [bins, 2 * bins], axis=-1)
        return widths, heights, slopes

    return Bijection(
        3 * bins - 1,
        lambda x, parameters: rational_quadratic(x, *read(parameters), half=half),
        lambda y, parameters: inverse_rational_quadratic(y, *read(parameters), half=half),
    )
