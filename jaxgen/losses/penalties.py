"""Penalties ``[B]`` on how steep a critic is, as functions of ``critic(x [B, ...]) -> [B]``.

Of a critic of patches, ``[B, ...]``, it is the slope of the mean over patches. Each is a
:data:`Penalty`, ``(key, critic, real, fake) -> [B]``, to be weighed by who adds it to the critic's
loss. Slopes are taken of each example by itself: in a critic with batch norm the examples
would share them. A penalty that is added at every n-th step alone weighs n times as much (Karras
et al. 2020, StyleGAN2, appendix B: "lazy").
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.losses.adversarial import over_patches

Critic = Callable[[Array], Array]  # x [B, ...] -> [B], or [B, ...] of patches
Penalty = Callable[[Array, Critic, Array, Array], Array]  # (key, critic, real, fake) -> [B]


def slopes_squared(critic: Critic, x: Array) -> Array:
    """||grad f(x)||^2 ``[B]``."""
    slope = jax.grad(lambda x: over_patches(critic(x)).sum())(x)
    return jnp.sum(slope.reshape(len(x), -1) ** 2, axis=-1)


def slopes(critic: Critic, x: Array) -> Array:
    """||grad f(x)|| ``[B]``, whose own gradient is 0 where there is no slope at all."""
    squared = slopes_squared(critic, x)
    flat = squared == 0
    return jnp.where(flat, 0.0, jnp.sqrt(jnp.where(flat, 1.0, squared)))


def interpolated(key: Array, real: Array, fake: Array) -> Array:
    """u x + (1 - u) G(z), u uniform for each example (Gulrajani et al. 2017, algorithm 1)."""
    chex.assert_equal_shape([real, fake])
    u = jax.random.uniform(key, (len(real), *[1] * (real.ndim - 1)), real.dtype)
    return u * real + (1 - u) * fake


def wgan_gp(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
    """(||grad f|| - 1)^2 between data and samples (Gulrajani et al. 2017, eq. 3; weight 10)."""
    return (slopes(critic, interpolated(key, real, fake)) - 1) ** 2


def wgan_lp(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
    """max(0, ||grad f|| - 1)^2, one-sided: a Lipschitz critic may be flat (Petzka et al. 2018,
    eq. 8)."""
    return jax.nn.relu(slopes(critic, interpolated(key, real, fake)) - 1) ** 2


def zero_centred(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
    """||grad f||^2 between data and samples (Thanh-Tung et al. 2019, eq. 6)."""
    return slopes_squared(critic, interpolated(key, real, fake))


def r1(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
    """||grad f||^2 / 2 at data; gamma is the weight (Mescheder et al. 2018, eq. 9)."""
    return 0.5 * slopes_squared(critic, real)


def r2(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
    """||grad f||^2 / 2 at samples; gamma is the weight (Mescheder et al. 2018, eq. 10)."""
    return 0.5 * slopes_squared(critic, fake)


def dragan(std: float) -> Penalty:
    """(||grad f|| - 1)^2 around data, at x + N(0, std^2) (Kodali et al. 2017, section 2.3)."""

    def penalty(key: Array, critic: Critic, real: Array, fake: Array) -> Array:
        around = real + std * jax.random.normal(key, real.shape, real.dtype)
        return (slopes(critic, around) - 1) ** 2

    return penalty


def consistency(logits: Array, augmented_logits: Array) -> Array:
    """(f(x) - f(T(x)))^2 ``[B]``: a critic should not see what augmentation T changes.

    Zhang et al. 2020 (CR-GAN), eq. 3. Of samples too it is bCR (Zhao et al. 2021).
    """
    chex.assert_equal_shape([logits, augmented_logits])
    return over_patches((logits - augmented_logits) ** 2)
