"""The importance-weighted bound as an objective, by three estimators of its gradient.

L_K = E log 1/K sum_k w_k with w_k = p(x, z_k) / q(z_k|x) and K draws of q (Burda et al. 2016). All
three estimate the gradient of the decoder alike. That of the encoder is, by

- :func:`iwae_loss`, the gradient of the bound itself, whose signal vanishes against its noise as K
  grows (Rainforth et al. 2018, theorem 1);
- :func:`stl_loss`, without the score of q (Roeder et al. 2017): where q is the exact posterior it
  is 0 in every draw; of K > 1 it is biased (Tucker et al. 2019);
- :func:`dreg_loss`, reparameterized twice: unbiased, and its signal grows against its noise with K
  (Tucker et al. 2019).

Values are in nats.
"""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import Normal
from jaxgen.losses.elbo import Decoder, Encoder, log_weight, sample_latents


def _bound(log_w: Array) -> Array:
    """log 1/K sum_k w_k, ``[K, B] -> [B]``."""
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(len(log_w))


def _draws(key: Array, encode: Encoder, x: Array, samples: int) -> tuple[Normal, Array]:
    q = encode(x)
    chex.assert_rank(q.mean, 2)
    chex.assert_equal_shape_prefix([x, q.mean], 1)
    return q, sample_latents(key, q, samples)


def iwae_loss(key: Array, encode: Encoder, decode: Decoder, x: Array, *, samples: int) -> Array:
    """-log 1/K sum_k w_k, ``[B]``; K = ``samples``. It is the negative ELBO where K = 1."""
    q, z = _draws(key, encode, x, samples)
    return -_bound(jax.vmap(log_weight(q, decode, x))(z))


def stl_loss(key: Array, encode: Encoder, decode: Decoder, x: Array, *, samples: int) -> Array:
    """As :func:`iwae_loss`, of which the gradient leaves out the parameters of log q (``[B]``)."""
    q, z = _draws(key, encode, x, samples)
    return -_bound(jax.vmap(log_weight(jax.lax.stop_gradient(q), decode, x))(z))


def dreg_loss(key: Array, encode: Encoder, decode: Decoder, x: Array, *, samples: int) -> Array:
    """As :func:`iwae_loss`, with Tucker et al.'s gradient (2019), ``[B]``.

    With the normalized weights v_k the encoder's gradient is sum_k v_k^2 (d log w_k/dz) dz_k/dphi,
    and the decoder's, as for the others, sum_k v_k d log w_k/dtheta.
    """
    q, z = _draws(key, encode, x, samples)
    weigh = jax.vmap(log_weight(jax.lax.stop_gradient(q), decode, x))
    fixed = jax.lax.stop_gradient(z)
    log_w = weigh(fixed)  # in it theta alone moves
    slope = jax.grad(lambda z: weigh(z).sum())(fixed)  # d log w_k/dz_k, [K, B, Z]
    v, slope = jax.lax.stop_gradient((jax.nn.softmax(log_w, axis=0), slope))
    through_z = jnp.sum(v[..., None] ** 2 * slope * (z - fixed), axis=(0, 2))  # of value 0
    return -_bound(log_w) - through_z
