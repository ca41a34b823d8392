"""What deterministic autoencoders descend: the error of reconstructions, penalties, corruption.

An encoder is any function from x ``[B, ...]`` to ``[B, Z]`` that treats examples one by one (no
statistics of the batch).
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy.special import entr

from jaxgen.distributions import sum_event

Encode = Callable[[Array], Array]  # [B, ...] -> [B, Z]


def squared_distance(prediction: Array, target: Array) -> Array:
    """|prediction - target|^2, the sum over entries and not halved, ``[B]``.

    A linear autoencoder at its least value spans the principal subspace (Baldi & Hornik 1989).
    """
    chex.assert_equal_shape([prediction, target])
    return sum_event((prediction - target) ** 2)


# --- penalties ----------------------------------------------------------------------------------


def mean_activation_kl(logits: Array, rho: float | Array) -> Array:
    """sum_j KL(Bernoulli(rho) || Bernoulli(a_j)), a_j the mean of sigmoid(``logits [B, Z]``), nats.

    Ng 2011 (CS294A, "Sparse autoencoder"). A mean over the batch has no parts: each of its examples
    gets the whole, ``[B]``. It is computed from logits, so that units which are always on or off
    have their exact value and slope.
    """
    chex.assert_rank(logits, 2)
    log_mean = lambda x: jax.nn.logsumexp(x, axis=0) - jnp.log(len(logits))  # noqa: E731
    log_on, log_off = (log_mean(jax.nn.log_sigmoid(sign * logits)) for sign in (1, -1))
    kl = -entr(rho) - entr(1 - rho) - rho * log_on - (1 - rho) * log_off
    return jnp.full(len(logits), kl.sum())


def absolute_sum(z: Array) -> Array:
    """|z|_1 of codes ``[B, Z]``: ``[B]``, with slope 0 at 0, where it is least."""
    chex.assert_rank(z, 2)
    return sum_event(z * jax.lax.stop_gradient(jnp.sign(z)))  # the slope of jnp.abs at 0 is 1


def contraction(encode: Encode, x: Array) -> Array:
    """|J(x)|_F^2, J the Jacobian of the encoder at x, exactly: ``[B]`` (Rifai et al. 2011, eq. 5).

    By one backward pass for each of the Z entries of the code.
    """
    z, pull = jax.vjp(encode, x)
    chex.assert_rank(z, 2)

    def row(direction: Array) -> Array:
        (slope,) = pull(jnp.broadcast_to(direction[None], z.shape))
        return sum_event(slope**2)

    return jax.vmap(row)(jnp.eye(z.shape[1], dtype=z.dtype)).sum(axis=0)


# --- corruption ---------------------------------------------------------------------------------


def mask(key: Array, x: Array, share: float | Array, blank: float = 0.0) -> Array:
    """x with each entry put to ``blank`` with probability ``share``, by itself.

    Vincent et al. 2008, section 2.3, who blank a fixed number of entries of each example.
    """
    kept = jax.random.bernoulli(key, 1 - share, x.shape)
    return jnp.where(kept, x, jnp.asarray(blank, x.dtype))


def add_noise(key: Array, x: Array, std: float | Array) -> Array:
    """x + std eps with eps ~ N(0, I) (Vincent et al. 2010, section 3.3)."""
    return x + std * jax.random.normal(key, x.shape, x.dtype)
