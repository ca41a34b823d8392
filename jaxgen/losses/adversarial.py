"""The adversarial objectives of Goodfellow et al. 2014, from logits a = logit D(x).

With D = sigmoid(a): log D = -softplus(-a) and log(1 - D) = -softplus(a). Nothing here forms D
itself, so values and gradients stay exact where D rounds to 0 or 1. All losses are ``[B]``, in
nats, and are minimized by their player.
"""

from __future__ import annotations

import chex
import jax
from jax import Array


def discriminator_loss(real_logits: Array, fake_logits: Array) -> Array:
    """-[log D(x) + log(1 - D(G(z)))], both ``[B]`` (Goodfellow et al. 2014, eq. 1, minimized)."""
    chex.assert_rank([real_logits, fake_logits], 1)
    chex.assert_equal_shape([real_logits, fake_logits])
    return jax.nn.softplus(-real_logits) + jax.nn.softplus(fake_logits)


def minimax_generator_loss(fake_logits: Array) -> Array:
    """log(1 - D(G(z))) ``[B]``: the generator's side of eq. 1. Its gradient fades as D wins."""
    chex.assert_rank(fake_logits, 1)
    return -jax.nn.softplus(fake_logits)


def non_saturating_generator_loss(fake_logits: Array) -> Array:
    """-log D(G(z)) ``[B]``, the "log D trick" of section 3: strong gradients while D wins."""
    chex.assert_rank(fake_logits, 1)
    return jax.nn.softplus(-fake_logits)
