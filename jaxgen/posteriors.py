"""Posteriors q(z|x) beyond the diagonal normal, and priors p(z) beyond N(0, I).

A posterior is drawn from together with its log-density, which is all that a bound needs of it; a
prior answers its log-density. The density of a flow is known at what it drew alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax import Array

from jaxgen.distributions import LOG_2PI, Normal, sum_event


class Posterior(Protocol):
    """q(z|x) over ``[B, Z]``."""

    def draw(self, key: Array) -> tuple[Array, Array]:
        """z ``[B, Z]`` and log q(z|x) ``[B]``."""
        ...


class Prior(Protocol):
    """p(z) over ``[Z]``."""

    def log_prob(self, z: Array) -> Array:
        """log p(z) ``[B]`` of ``z [B, Z]``."""
        ...

    def sample(self, key: Array, count: int) -> Array:
        """Draws ``[count, Z]``."""
        ...


# --- posteriors ------------------------------------------------------------------------------


@struct.dataclass
class FullNormal:
    """N(mean, L L^T), L = diag(exp(log_std)) + the part of ``lower`` below the diagonal.

    Kingma & Welling 2019, section 2.5.1. ``mean`` and ``log_std`` are ``[B, Z]``, ``lower``
    ``[B, Z, Z]``.
    """

    mean: Array
    log_std: Array
    lower: Array

    @property
    def root(self) -> Array:
        """L, ``[B, Z, Z]``."""
        return jnp.tril(self.lower, -1) + jax.vmap(jnp.diag)(jnp.exp(self.log_std))

    def draw(self, key: Array) -> tuple[Array, Array]:
        eps = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        z = self.mean + jnp.einsum("bij,bj->bi", self.root, eps)
        return z, -sum_event(0.5 * (eps**2 + LOG_2PI) + self.log_std)

    def log_prob(self, z: Array) -> Array:
        """log q(z|x) ``[B]``."""
        solve = lambda root, d: jax.scipy.linalg.solve_triangular(root, d, lower=True)  # noqa: E731
        eps = jax.vmap(solve)(self.root, z - self.mean)
        return -sum_event(0.5 * (eps**2 + LOG_2PI) + self.log_std)


Step = Callable[[Array], tuple[Array, Array]]  # z [B, Z] -> z' [B, Z], log |dz'/dz| [B]


@struct.dataclass
class Flow:
    """What becomes of a posterior's draws by invertible ``steps``, one after the other.

    Rezende & Mohamed 2015, eq. 7.
    """

    base: Posterior
    steps: tuple[Step, ...]

    def draw(self, key: Array) -> tuple[Array, Array]:
        z, log_q = self.base.draw(key)
        for step in self.steps:
            z, log_det = step(z)
            log_q = log_q - log_det
        return z, log_q


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1)


@struct.dataclass
class Planar:
    """z + u tanh(w . z + b), with u ``[B, Z]`` moved along w ``[B, Z]`` so that it is invertible.

    Rezende & Mohamed 2015, eq. 10 to 12 and appendix A.1; ``b [B]``. There 1 + u . w is moved to
    log(1 + exp(u . w)), which shrinks by 0.69 where u is 0; here a constant more in the exponent
    leaves u = 0 the identity. Where w is 0 it does nothing.
    """

    u: Array
    w: Array
    b: Array

    def __call__(self, z: Array) -> tuple[Array, Array]:
        chex.assert_equal_shape([z, self.u, self.w])
        some = _dot(self.w, self.w) > 1e-12
        slope = jax.nn.softplus(_dot(self.w, self.u) + np.log(np.e - 1))  # 1 + u . w, moved
        slope = jnp.where(some, slope, 1.0)
        along = (slope - 1 - _dot(self.w, self.u)) / jnp.where(some, _dot(self.w, self.w), 1.0)
        u = jnp.where(some[:, None], self.u + along[:, None] * self.w, 0.0)
        h = jnp.tanh(_dot(self.w, z) + self.b)
        return z + u * h[:, None], jnp.log(h**2 + (1 - h**2) * jnp.maximum(slope, 1e-30))


@struct.dataclass
class Householder:
    """The reflection z - 2 v (v . z) / |v|^2, ``v [B, Z]``: a diagonal normal becomes a full one.

    Tomczak & Welling 2016, eq. 6. Where v is 0 it does nothing.
    """

    v: Array

    def __call__(self, z: Array) -> tuple[Array, Array]:
        squared = _dot(self.v, self.v)
        some = squared > 1e-12
        share = jnp.where(some, _dot(self.v, z) / jnp.where(some, squared, 1.0), 0.0)
        return z - 2 * share[:, None] * self.v, jnp.zeros(len(z), z.dtype)


# An autoregressive network: (its weights, z [B, Z]) -> two maps [B, Z], of which entry i depends on
# the entries of z before it alone, in some order.
Autoregressive = Callable[[Any, Array], tuple[Array, Array]]


@struct.dataclass
class InverseAutoregressive:
    """sigma z + (1 - sigma) m with (m, s) = ``network(weights, z)`` and sigma = sigmoid(s).

    Kingma et al. 2016, eq. 14.
    """

    network: Autoregressive = struct.field(pytree_node=False)
    weights: Any = ()

    def __call__(self, z: Array) -> tuple[Array, Array]:
        m, s = self.network(self.weights, z)
        chex.assert_equal_shape([z, m, s])
        gate = jax.nn.sigmoid(s)
        return gate * z + (1 - gate) * m, sum_event(jax.nn.log_sigmoid(s))


# --- priors ----------------------------------------------------------------------------------


@struct.dataclass
class StandardNormal:
    """N(0, I) over ``[Z]``."""

    latents: int = struct.field(pytree_node=False)

    def log_prob(self, z: Array) -> Array:
        return -0.5 * sum_event(z**2 + LOG_2PI)

    def sample(self, key: Array, count: int) -> Array:
        return jax.random.normal(key, (count, self.latents))


@struct.dataclass
class Mixture:
    """sum_c softmax(logits)_c N(mean_c, exp(log_std_c)^2): ``logits [C]``, the others ``[C, Z]``.

    With the posteriors of learned pseudo-inputs u_c as its components it is the VampPrior (Tomczak
    & Welling 2018, eq. 9): :func:`vamp_prior`.
    """

    logits: Array
    mean: Array
    log_std: Array

    def log_prob(self, z: Array) -> Array:
        def component(mean: Array, log_std: Array) -> Array:
            like = lambda a: jnp.broadcast_to(a, z.shape)  # noqa: E731
            return sum_event(Normal(like(mean), like(log_std)).log_prob(z))

        each = jax.vmap(component)(self.mean, self.log_std)  # [C, B]
        return jax.nn.logsumexp(each + jax.nn.log_softmax(self.logits)[:, None], axis=0)

    def sample(self, key: Array, count: int) -> Array:
        key_c, key_z = jax.random.split(key)
        c = jax.random.categorical(key_c, self.logits, shape=(count,))
        return Normal(self.mean[c], self.log_std[c]).sample(key_z)


@struct.dataclass
class AutoregressiveFlow:
    """z_i = m_i + exp(s_i) z'_i with (m, s) = ``network(weights, z)``, step by step from N(0, I).

    A density takes one pass of each network, a draw as many as there are latents (Papamakarios et
    al. 2017; as a prior Chen et al. 2017). The last of ``networks`` is nearest to z.
    """

    latents: int = struct.field(pytree_node=False)
    networks: tuple[Autoregressive, ...] = struct.field(pytree_node=False)
    weights: tuple[Any, ...]

    def log_prob(self, z: Array) -> Array:
        log_det = jnp.zeros(len(z), z.dtype)
        for network, weights in reversed(list(zip(self.networks, self.weights, strict=True))):
            m, s = network(weights, z)
            z, log_det = (z - m) * jnp.exp(-s), log_det - sum_event(s)
        return StandardNormal(self.latents).log_prob(z) + log_det

    def sample(self, key: Array, count: int) -> Array:
        z = StandardNormal(self.latents).sample(key, count)
        for network, weights in zip(self.networks, self.weights, strict=True):

            def right(_: Any, found: Array, base=z, network=network, weights=weights) -> Array:
                """One entry more, in the network's order, is what it should be."""
                m, s = network(weights, found)
                return m + jnp.exp(s) * base

            z = jax.lax.fori_loop(0, self.latents, right, z)
        return z


def vamp_prior(encode: Callable[[Array], Normal], inputs: Array) -> Mixture:
    """1/C sum_c q(z|u_c), with learned ``inputs [C, ...]`` at the scale of the data."""
    q = encode(inputs)
    return Mixture(jnp.zeros(len(inputs), q.mean.dtype), q.mean, q.log_std)
