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

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import sum_event
from jaxgen.losses.elbo import Decoder, Encoder, draws, log_joint
from jaxgen.posteriors import Posterior, Prior


def _bound(log_w: Array) -> Array:
    """log 1/K sum_k w_k, ``[K, B] -> [B]``."""
    return jax.nn.logsumexp(log_w, axis=0) - jnp.log(len(log_w))


def _fixed_log_prob(q: Posterior) -> Callable[[Array], Array]:
    """log q(z|x) ``[B]`` as a function of z alone, whose parameters stay."""
    fixed: Any = jax.lax.stop_gradient(q)
    if not hasattr(fixed, "log_prob"):
        raise ValueError(
            f"the density of a {type(q).__name__} is known at its draws alone: use iwae_loss."
        )
    return lambda z: sum_event(fixed.log_prob(z))


def iwae_loss(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int,
    prior: Prior | None = None,
) -> Array:
    """-log 1/K sum_k w_k, ``[B]``; K = ``samples``. It is the negative ELBO where K = 1.

    The prior is N(0, I) where None, for all three.
    """
    z, log_q = draws(key, encode(x), samples)
    return -_bound(jax.vmap(log_joint(decode, x, prior))(z) - log_q)


def stl_loss(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int,
    prior: Prior | None = None,
) -> Array:
    """As :func:`iwae_loss`, of which the gradient leaves out the parameters of log q (``[B]``).

    Raises:
      ValueError: for a posterior without ``log_prob``, such as a flow; so does the next.
    """
    q = encode(x)
    z, _ = draws(key, q, samples)
    log_q = jax.vmap(_fixed_log_prob(q))(z)
    return -_bound(jax.vmap(log_joint(decode, x, prior))(z) - log_q)


def dreg_loss(
    key: Array,
    encode: Encoder,
    decode: Decoder,
    x: Array,
    *,
    samples: int,
    prior: Prior | None = None,
) -> Array:
    """As :func:`iwae_loss`, with Tucker et al.'s gradient (2019), ``[B]``.

    With the normalized weights v_k the encoder's gradient is sum_k v_k^2 (d log w_k/dz) dz_k/dphi,
    and that of decoder and prior, as for the others, sum_k v_k d log w_k/dtheta.
    """
    q = encode(x)
    z, _ = draws(key, q, samples)
    joint, log_q = log_joint(decode, x, prior), _fixed_log_prob(q)
    weigh = jax.vmap(lambda z_k: joint(z_k) - log_q(z_k))
    fixed = jax.lax.stop_gradient(z)
    log_w = weigh(fixed)  # in it theta alone moves
    slope = jax.grad(lambda z: weigh(z).sum())(fixed)  # d log w_k/dz_k, [K, B, Z]
    v, slope = jax.lax.stop_gradient((jax.nn.softmax(log_w, axis=0), slope))
    through_z = jnp.sum(v[..., None] ** 2 * slope * (z - fixed), axis=(0, 2))  # of value 0
    return -_bound(log_w) - through_z
