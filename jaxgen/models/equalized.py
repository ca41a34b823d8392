"""Layers whose learning rate is equalized, and what is normalized between them.

Weights start at N(0, 1), and are scaled at run time by what He et al. 2015 would start them with:
an optimizer that divides an update by its own size (Adam) then moves every layer at one speed
(Karras et al. 2018, Progressive GAN, section 4.1).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jax import Array, lax

GAIN = math.sqrt(2)  # of a layer before a rectifier (He et al. 2015, section 2.2); 1 before none


def leaky(x: Array) -> Array:
    """Leaky ReLU of slope 0.2 (Karras et al. 2018, appendix A.1)."""
    return nn.leaky_relu(x, 0.2)


def convolved(x: Array, kernel: Array) -> Array:
    """x ``[B, H, W, in]`` and a kernel ``[h, w, in, out]`` to ``[B, H, W, out]``."""
    x, kernel = promote_dtype(x, kernel)
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def equalized(
    module: nn.Module, shape: tuple[int, ...], gain: float = GAIN, rate: float = 1.0
) -> Array:
    """A module's kernel ``[..., in, out]``, of std ``gain / sqrt(fan in)`` at first.

    The parameter is from N(0, 1 / rate^2), so that its learning rate is ``rate`` times the others'.
    """
    kernel = module.param("kernel", nn.initializers.normal(1 / rate), shape)
    return kernel * (rate * gain / math.sqrt(math.prod(shape[:-1])))


class EqualizedDense(nn.Module):
    """``[B, in]`` -> ``[B, features]``; the bias, ``start`` at first, has the kernel's ``rate``."""

    features: int
    gain: float = GAIN
    rate: float = 1.0
    start: float = 0.0

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = equalized(self, (x.shape[-1], self.features), self.gain, self.rate)
        start = nn.initializers.constant(self.start / self.rate)
        return x @ kernel + self.rate * self.param("bias", start, (self.features,))[None]


class EqualizedConv(nn.Module):
    """``[B, H, W, in]`` -> ``[B, H, W, features]`` by a kernel of ``size`` x ``size``."""

    features: int
    size: int = 3
    gain: float = GAIN

    @nn.compact
    def __call__(self, x: Array) -> Array:
        kernel = equalized(self, (self.size, self.size, x.shape[-1], self.features), self.gain)
        bias = self.param("bias", nn.initializers.zeros_init(), (self.features,))
        return convolved(x, kernel) + bias[None, None, None]


def pixel_norm(x: Array) -> Array:
    """x / sqrt(mean of x^2 over the channels), ``[..., C]`` (Karras et al. 2018, section 4.2)."""
    return x * lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-8)


def minibatch_std(x: Array, size: int = 4) -> Array:
    """x ``[B, H, W, C]`` and one channel more, which tells how much the examples differ.

    It is the std over a group of examples, averaged over all entries of x: one number a group
    (Karras et al. 2018, section 3). A group is ``size`` examples, one after the other, or fewer
    where these do not divide the batch: all of it where nothing does.
    """
    size = max((n for n in range(2, size + 1) if len(x) % n == 0), default=len(x))
    groups = x.reshape(len(x) // size, size, -1)
    variance = groups.var(axis=1)
    same = variance == 0  # where the root has no derivative
    std = jnp.where(same, 0.0, jnp.sqrt(jnp.where(same, 1.0, variance))).mean(axis=-1)
    told = jnp.repeat(std, size)[:, None, None, None]
    return jnp.concatenate([x, jnp.broadcast_to(told, (*x.shape[:-1], 1))], axis=-1)


def on_sphere(z: Array, labels: Array | None, classes: int | None) -> Array:
    """Latents ``[B, Z]``, normalized, and beside them an embedding of the labels: ``[B, 2 Z]``.

    Without classes the latents alone ``[B, Z]``. To be called in a compact method. Karras et al.
    2018, appendix A.1; the embedding, normalized too, as in Karras et al. 2020 (ADA), appendix.

    Raises:
      ValueError: unless labels ``[B]`` are given if and only if there are classes.
    """
    if (labels is None) != (classes is None):
        raise ValueError("labels are given if and only if num_classes is set.")
    if labels is None or classes is None:
        return pixel_norm(z)
    embedding = EqualizedDense(z.shape[-1], gain=1.0, name="embedding")(
        jax.nn.one_hot(labels, classes)
    )
    return jnp.concatenate([pixel_norm(z), pixel_norm(embedding)], axis=-1)
