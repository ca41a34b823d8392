"""What a bound asks of q(z) besides: KL by its parts, free bits, a discrepancy, weights over time.

Values are in nats. q(z) = E_x q(z|x) is the aggregate posterior.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import Normal, standard_normal


class KLParts(NamedTuple):
    """E_x KL(q(z|x) || p(z)) as a sum of three, estimates ``[B]`` (Chen et al. 2018, eq. 2)."""

    mutual_information: Array  # KL(q(z, x) || q(z) p(x))
    total_correlation: Array  # KL(q(z) || prod_j q(z_j)): how dependent the latents are
    dimension_wise: Array  # sum_j KL(q(z_j) || p(z_j))

    def weighted(self, alpha: float = 1.0, beta: float | Array = 1.0, gamma: float = 1.0) -> Array:
        """The KL term of beta-TC-VAE (eq. 4), ``[B]``; with weights of 1 that of the ELBO."""
        mi, tc, dw = self
        return alpha * mi + beta * tc + gamma * dw


def _of_each(q: Normal, z: Array) -> Array:
    """log q(z_i|x_j) of every pair, latent by latent: ``[i, j, Z]``."""
    return jax.vmap(lambda z_i: q.log_prob(jnp.broadcast_to(z_i, q.mean.shape)))(z)


def kl_parts(q: Normal, z: Array, size: int) -> KLParts:
    """The parts of the KL from a batch of N = ``size`` examples, with z ``[B, Z]`` drawn from q.

    q(z_i) is taken as q(z_i|x_i) / N + (1 - 1/N) mean_{j != i} q(z_i|x_j): its expectation over
    batches drawn without return is q(z_i) itself, and of a batch that is the whole set it is exact.
    (Chen et al.'s stratified estimate, appendix C.2, gives one of the others another weight.)
    """
    chex.assert_equal_shape([z, q.mean, q.log_std])
    batch = len(z)
    if not 1 < batch <= size:
        raise ValueError(f"a batch of 2 to {size} examples is needed, not of {batch}.")
    each = _of_each(q, z)
    same = jnp.eye(batch, dtype=bool)
    log_share = jnp.where(same, -jnp.log(size), jnp.log1p(-1 / size) - jnp.log(batch - 1))
    log_q_given = each.sum(-1).diagonal()
    log_q = jax.nn.logsumexp(each.sum(-1) + log_share, axis=1)
    log_q_each = jax.nn.logsumexp(each + log_share[..., None], axis=1).sum(-1)
    log_p = standard_normal(z.shape).log_prob(z).sum(-1)
    return KLParts(log_q_given - log_q, log_q - log_q_each, log_q_each - log_p)


def information_by_latent(q: Normal, z: Array) -> Array:
    """I(z_j; i) of every latent and of which of the N examples it is of, ``[Z]`` nats.

    An estimate by one draw ``z [N, Z]`` of each q(z|x_i), with q(z_j) = mean_i q(z_j|x_i); it is at
    most log N, and the first of :class:`KLParts`, latent by latent.
    """
    chex.assert_equal_shape([z, q.mean, q.log_std])
    log_q = jax.nn.logsumexp(_of_each(q, z), axis=1) - jnp.log(len(z))
    return (q.log_prob(z) - log_q).mean(axis=0)


def free_bits(kl: Array, least: float) -> Array:
    """The KL of groups of latents ``[B, G]`` as a loss ``[B]`` that leaves ``least`` nats of each.

    Its mean is sum_g max(least, E_x KL_g): what is below costs nothing more, and is not pushed
    down (Kingma et al. 2016, eq. 15).
    """
    chex.assert_rank(kl, 2)
    return jnp.where(kl.mean(axis=0, keepdims=True) <= least, least, kl).sum(axis=1)


Kernel = Callable[[Array, Array], Array]  # [n, Z], [m, Z] -> [n, m]


def inverse_multiquadratic(scale: float = 2.0) -> Kernel:
    """sum_s C/(C + |a - b|^2), C = s Z ``scale`` (Tolstikhin et al. 2018, section 4).

    ``scale`` is twice the variance of an entry of the prior, and s, as in the authors' code, is
    0.1, 0.2, 0.5, 1, 2, 5 and 10.
    """

    def kernel(a: Array, b: Array) -> Array:
        squared = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        widths = [s * a.shape[-1] * scale for s in (0.1, 0.2, 0.5, 1, 2, 5, 10)]
        return jnp.stack([c / (c + squared) for c in widths]).sum(axis=0)

    return kernel


def mmd(z: Array, prior: Array, kernel: Kernel | None = None) -> Array:
    """The share of each example in the squared maximum mean discrepancy of q(z) and p(z), ``[B]``.

    Of ``z [B, Z]`` and as many draws of the prior. The mean is the unbiased estimate, which may be
    negative (Gretton et al. 2012, eq. 3); it is the term of InfoVAE (Zhao et al. 2019) and of the
    Wasserstein autoencoder.

    Raises:
      ValueError: for a batch of one.
    """
    chex.assert_equal_shape([z, prior])
    if len(z) < 2:
        raise ValueError("a discrepancy needs two examples or more.")
    k = kernel or inverse_multiquadratic()

    def among(a: Array) -> Array:
        gram = k(a, a)
        return (gram.sum(axis=1) - gram.diagonal()) / (len(a) - 1)

    return among(z) + among(prior) - 2 * k(z, prior).mean(axis=1)


# --- weights of the KL over the steps of training ----------------------------------------------


def warm_up(step: Array, steps: int) -> Array:
    """From 0 to 1 in ``steps`` (Bowman et al. 2016; Sonderby et al. 2016)."""
    return jnp.minimum(step / steps, 1.0) if steps else jnp.ones(jnp.shape(step))


def cyclical(step: Array, period: int, rising: float = 0.5) -> Array:
    """Warm-up over ``rising`` of every period, then 1 to its end (Fu et al. 2019, eq. 6).

    Raises:
      ValueError: if ``rising`` is not in (0, 1].
    """
    if not 0 < rising <= 1:
        raise ValueError(f"rising is a share of the period, in (0, 1], not {rising}.")
    return jnp.minimum((step % period) / (rising * period), 1.0)
