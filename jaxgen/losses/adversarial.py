"""What the two players of a GAN minimize, from logits.

The discriminator answers a logit a for each example, ``[B]``, or for each patch of it,
``[B, H, W]`` (PatchGAN: Isola et al. 2017, section 3.2.2), over which losses are averaged. With
D = sigmoid(a), log D = -softplus(-a) and log(1 - D) = -softplus(a). Nothing here forms D itself, so
values and gradients stay exact where D rounds to 0 or 1. All losses are ``[B]`` (those from log D
in nats), and are minimized by their player. Terms that are added to them, and the divergences of
f-GAN, have files of their own: :mod:`~jaxgen.losses.f_divergences`,
:mod:`~jaxgen.losses.penalties`, and :mod:`~jaxgen.losses.began`, whose critic is no classifier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

Loss = Callable[[Array, Array], Array]  # (real_logits, fake_logits [B, ...]) -> [B]


class Objective(NamedTuple):
    """What each player minimizes, ``(real_logits, fake_logits [B, ...]) -> [B]``.

    The generator is told the logits of data too, which relativistic objectives compare with.
    """

    critic: Loss
    generator: Loss
    probability: Callable[[Array], Array] | None = None  # D(x) of a logit, where it has one


def check_logits(real_logits: Array, fake_logits: Array) -> None:
    """As many logits ``[B, ...]`` of data as of samples."""
    chex.assert_equal_shape([real_logits, fake_logits])


def over_patches(values: Array) -> Array:
    """The mean ``[B]`` of values ``[B, ...]``, one for each patch of an example."""
    chex.assert_axis_dimension_gt(values, 0, 0)
    return values.reshape(values.shape[0], -1).mean(axis=1)


def of_fakes(loss: Callable[[Array], Array]) -> Loss:
    """A generator's loss that does without the logits of data."""
    return lambda real_logits, fake_logits: loss(fake_logits)


# --- Goodfellow et al. 2014 --------------------------------------------------------------------


def discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
    """-[log D(x) + log(1 - D(G(z)))], ``[B]`` (Goodfellow et al. 2014, eq. 1, minimized)."""
    check_logits(real_logits, fake_logits)
    return over_patches(jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits))


def smoothed_discriminator_loss(target: float) -> Loss:
    """The loss whose label of data is ``target`` in place of 1: one-sided label smoothing.

    -[target log D(x) + (1 - target) log(1 - D(x)) + log(1 - D(G(z)))] (Salimans et al. 2016,
    section 3.4), least at D = target p / (p + q).
    """

    def loss(real_logits: Array, fake_logits: Array) -> Array:
        # (1 - target)(log D - log(1 - D)) = (1 - target) a: what the label takes off log D.
        own = discriminator_loss(real_logits, fake_logits)
        return own + (1 - target) * over_patches(real_logits)

    return loss


def minimax_generator_loss(fake_logits: Array) -> Array:
    """log(1 - D(G(z))) ``[B]``: the generator's side of eq. 1. Its gradient fades as D wins."""
    return over_patches(-jax.nn.softplus(fake_logits))


def non_saturating_generator_loss(fake_logits: Array) -> Array:
    """-log D(G(z)) ``[B]``, the "log D trick" of section 3: strong gradients while D wins."""
    return over_patches(jax.nn.softplus(-fake_logits))


MINIMAX = Objective(discriminator_loss, of_fakes(minimax_generator_loss), jax.nn.sigmoid)
NON_SATURATING = Objective(
    discriminator_loss, of_fakes(non_saturating_generator_loss), jax.nn.sigmoid
)


# --- other losses of the same logits -----------------------------------------------------------


def least_squares(fake: float = 0.0, real: float = 1.0, wanted: float = 1.0) -> Objective:
    """Mao et al. 2017 (LSGAN), eq. 2: a, b and c are the labels of fakes, of data, and of fakes by
    the generator.

    The default is eq. 9; a = -1, b = 1, c = 0 (eq. 8) minimizes Pearson's chi^2 between (p + q) / 2
    and q. One-sided label smoothing is a smaller b.
    """

    def critic(real_logits: Array, fake_logits: Array) -> Array:
        check_logits(real_logits, fake_logits)
        return over_patches(0.5 * (real_logits - real) ** 2 + 0.5 * (fake_logits - fake) ** 2)

    return Objective(critic, of_fakes(lambda logits: over_patches(0.5 * (logits - wanted) ** 2)))


def wasserstein_critic_loss(real_logits: Array, fake_logits: Array) -> Array:
    """f(G(z)) - f(x) ``[B]``: where f is 1-Lipschitz minus Kantorovich and Rubinstein's distance.

    Arjovsky et al. 2017 (WGAN), eq. 2 and algorithm 1. It is for another to keep f Lipschitz: a
    penalty, spectral norms, or clipped weights.
    """
    check_logits(real_logits, fake_logits)
    return over_patches(fake_logits - real_logits)


def hinge_critic_loss(real_logits: Array, fake_logits: Array) -> Array:
    """max(0, 1 - f(x)) + max(0, 1 + f(G(z))) ``[B]`` (Lim & Ye 2017; Miyato et al. 2018, 16)."""
    check_logits(real_logits, fake_logits)
    return over_patches(jax.nn.relu(1 - real_logits) + jax.nn.relu(1 + fake_logits))


WASSERSTEIN = Objective(wasserstein_critic_loss, of_fakes(lambda logits: -over_patches(logits)))
HINGE = Objective(hinge_critic_loss, WASSERSTEIN.generator)  # Miyato et al. 2018, eq. 17


# --- relativistic ------------------------------------------------------------------------------


def relativistic_average(critic: Loss) -> Objective:
    """Whether data look more real than the average fake does, and fakes than the average datum.

    The critic's loss of f(x) - E f(G(z)) and f(G(z)) - E f(x), and the generator's with the two
    changed about (Jolicoeur-Martineau 2019, eq. 8 and 9), the means being those of all logits that
    are given (of all patches too): under ``pmap`` of a device's share of the batch. Of
    ``discriminator_loss`` it is RaSGAN, of ``hinge_critic_loss`` RaHingeGAN, and of
    ``least_squares(-1, 1).critic`` RaLSGAN (its appendix; here with the halves of LSGAN).
    """

    def apart(real_logits: Array, fake_logits: Array) -> tuple[Array, Array]:
        check_logits(real_logits, fake_logits)
        return real_logits - fake_logits.mean(), fake_logits - real_logits.mean()

    def critic_loss(real_logits: Array, fake_logits: Array) -> Array:
        real, fake = apart(real_logits, fake_logits)
        return critic(real, fake)

    def generator_loss(real_logits: Array, fake_logits: Array) -> Array:
        real, fake = apart(real_logits, fake_logits)
        return critic(fake, real)

    return Objective(critic_loss, generator_loss)


# --- terms that are added for the generator ----------------------------------------------------


def feature_matching(real_features: Array, fake_features: Array) -> Array:
    """||E f(x) - E f(G(z))||^2 of features ``[B, F]`` of the critic, one number ``[]``.

    Salimans et al. 2016, section 3.1. A distance of means has no value for each example.
    """
    chex.assert_rank([real_features, fake_features], 2)
    return jnp.sum((real_features.mean(axis=0) - fake_features.mean(axis=0)) ** 2)


def mode_seeking(x1: Array, x2: Array, z1: Array, z2: Array) -> Array:
    """1 / (d(x1, x2) / d(z1, z2)) ``[B]``, of what two latents ``[B, Z]`` of one condition make.

    Mao et al. 2019 (MSGAN), eq. 3, whose ratio is maximized; d is the mean absolute difference.
    Minimized is the inverse, as in the authors' code: it is large where modes collapse.
    """
    chex.assert_equal_shape([x1, x2])
    chex.assert_equal_shape([z1, z2])

    def distance(a: Array, b: Array) -> Array:
        return jnp.abs(a - b).reshape(len(a), -1).mean(axis=-1)

    return 1 / (distance(x1, x2) / jnp.maximum(distance(z1, z2), 1e-5) + 1e-5)
