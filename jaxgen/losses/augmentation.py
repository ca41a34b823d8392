"""What critics are shown in place of images: moved, cut, coloured, noisy; of data and of samples.

An :data:`Augmentation` is differentiable in the images, so that the generator learns through it,
and draws for every image ``[B, H, W, C]`` (in [-1, 1]) on its own.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

Augmentation = Callable[[Array, Array], Array]  # (key, x [B, ...]) -> [B, ...]


def in_order(*augmentations: Augmentation) -> Augmentation:
    """One after the other, each with a key of its own."""

    def augment(key: Array, x: Array) -> Array:
        for k, one in zip(jax.random.split(key, len(augmentations)), augmentations, strict=True):
            x = one(k, x)
        return x

    return augment


def with_probability(p: Array | float, augmentation: Augmentation) -> Augmentation:
    """Each example as it is, or with probability p augmented."""

    def augment(key: Array, x: Array) -> Array:
        key_p, key_x = jax.random.split(key)
        chosen = jax.random.bernoulli(key_p, p, (len(x), *[1] * (x.ndim - 1)))
        return jnp.where(chosen, augmentation(key_x, x), x)

    return augment


# --- DiffAugment (Zhao et al. 2020, section 4) -------------------------------------------------


def shifted(image: Array, shift: Array) -> Array:
    """``image [H, W, C]`` moved by ``shift [2]`` pixels, down and to the right; 0 comes in."""
    rows, columns = (jnp.arange(n) - s for n, s in zip(image.shape[:2], shift, strict=True))
    beyond = {"mode": "fill", "fill_value": 0, "wrap_negative_indices": False}
    return image.at[rows[:, None], columns[None]].get(**beyond)


def holed(image: Array, middle: Array, size: tuple[int, int]) -> Array:
    """``image [H, W, C]`` with 0 in a box of ``size`` around the pixel ``middle [2]``."""
    inside = [
        (jnp.arange(n) >= m - s // 2) & (jnp.arange(n) < m - s // 2 + s)
        for n, m, s in zip(image.shape[:2], middle, size, strict=True)
    ]
    return jnp.where((inside[0][:, None] & inside[1][None])[..., None], 0.0, image)


def translation(key: Array, x: Array) -> Array:
    """Moved by up to an eighth of the side, each way."""
    chex.assert_rank(x, 4)
    reach = jnp.asarray([round(n / 8) for n in x.shape[1:3]])
    shift = jax.random.randint(key, (len(x), 2), -reach[None], reach[None] + 1)
    return jax.vmap(shifted)(x, shift)


def cutout(key: Array, x: Array) -> Array:
    """A box of half the side, anywhere, is 0."""
    chex.assert_rank(x, 4)
    height, width = x.shape[1:3]
    size = (round(height / 2), round(width / 2))
    # as far as the border, over which an even box reaches from one pixel more
    most = jnp.asarray([height + 1 - size[0] % 2, width + 1 - size[1] % 2])
    middle = jax.random.randint(key, (len(x), 2), 0, most[None])
    return jax.vmap(lambda image, middle: holed(image, middle, size))(x, middle)


def colour(key: Array, x: Array) -> Array:
    """Brightness, saturation and contrast: values may leave [-1, 1]."""
    chex.assert_rank(x, 4)
    one = (len(x), 1, 1, 1)
    brightness, saturation, contrast = (
        jax.random.uniform(k, one, x.dtype, low, high)
        for k, (low, high) in zip(
            jax.random.split(key, 3), ((-0.5, 0.5), (0, 2), (0.5, 1.5)), strict=True
        )
    )
    x = x + brightness
    grey = x.mean(axis=-1, keepdims=True)
    x = grey + saturation * (x - grey)
    mean = x.mean(axis=(1, 2, 3), keepdims=True)
    return mean + contrast * (x - mean)


DIFF = (colour, translation, cutout)


def adapted_probability(
    p: Array, real_logits: Array, shown: float, target: float = 0.6, images: float = 500_000
) -> Array:
    """p of :func:`with_probability` after ``shown`` images more: a little up while D overfits.

    r_t = E[sign D(x)] of training data is held at its target; p could go from 0 to 1 within
    ``images`` (Karras et al. 2020, ADA, eq. 1 and section 3). For logits that are 0 where
    data and samples are as likely.
    """
    r_t = jnp.sign(real_logits).mean()
    return jnp.clip(p + jnp.sign(r_t - target) * shown / images, 0, 1)


# --- instance noise ----------------------------------------------------------------------------


def instance_noise(std: Array | float) -> Augmentation:
    """x + N(0, std^2): densities that overlap (Sonderby et al. 2017, section 2.3; Arjovsky & Bottou
    2017, section 3)."""
    return lambda key, x: x + std * jax.random.normal(key, x.shape, x.dtype)


def annealed(std: float, step: Array | int, steps: int) -> Array:
    """The std of instance noise at a step from 0 on: linearly down to 0 at the last of
    ``steps``."""
    return std * jnp.maximum(1 - jnp.asarray(step) / max(steps - 1, 1), 0)
