"""A class that is a latent where it is not known: M2 of Kingma et al. 2014 (section 3.1.2).

p(x, y, z) = p(y) p(z) p(x|z, y) and q(y, z|x) = q(y|x) q(z|x, y). Values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

# (key, y [B], int32) -> a lower bound on log p(x|y), [B]: the ELBO of a conditional VAE
Bound = Callable[[Array, Array], Array]


def labelled_bound(key: Array, bound: Bound, y: Array, classes: int) -> Array:
    """The bound on log p(x, y) for even p(y), ``[B]`` (eq. 6)."""
    return bound(key, y) - jnp.log(classes)


def unlabelled_bound(key: Array, bound: Bound, logits: Array) -> Array:
    """The bound on log p(x), ``[B]``: the mean over q(y|x) of eq. 6, plus its entropy (eq. 7).

    ``logits [B, C]`` are those of q(y|x). Every class is tried, so there is no noise but that of z.
    """
    chex.assert_rank(logits, 2)
    count, classes = logits.shape
    log_q = jax.nn.log_softmax(logits)

    def of(y: Array) -> Array:
        return labelled_bound(
            jax.random.fold_in(key, y), bound, jnp.full(count, y, jnp.int32), classes
        )

    each = jax.vmap(of)(jnp.arange(classes)).T  # [B, C]
    return jnp.sum(jnp.exp(log_q) * (each - log_q), axis=1)


def labelled_loss(
    key: Array, bound: Bound, logits: Array, y: Array, alpha: float | Array = 0.1
) -> Array:
    """What M2 descends where the class ``y [B]`` is known, ``[B]``: -eq. 6, and alpha times the
    cross-entropy of the classifier's ``logits [B, C]`` (eq. 9). Elsewhere it is -eq. 7.

    alpha is 0.1 times the number of examples over that of labelled ones in the paper.
    """
    cross_entropy = -jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=1)[:, 0]
    return alpha * cross_entropy - labelled_bound(key, bound, y, logits.shape[1])
