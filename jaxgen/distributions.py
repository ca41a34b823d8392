"""The densities that objectives are built from: ``log_prob``, ``sample``, ``mean`` and KL.

Every density here is a product over the entries of its parameter arrays. ``log_prob`` answers entry
by entry, in nats, with the shape of its argument; :func:`sum_event` turns that into one value per
example. Variances are stored as logarithms so that they stay positive and keep their precision.
"""

from __future__ import annotations

from typing import Protocol

import chex
import jax
import jax.numpy as jnp
from flax import struct
from jax import Array

LOG_2PI = 1.8378770664093453


class Distribution(Protocol):
    """What a decoder returns: a density over data of one fixed shape."""

    @property
    def mean(self) -> Array: ...

    def log_prob(self, x: Array) -> Array: ...

    def sample(self, key: Array) -> Array: ...


def sum_event(x: Array) -> Array:
    """Sums every axis but the first: ``[B, ...] -> [B]``."""
    return x.reshape(x.shape[0], -1).sum(axis=1)


@struct.dataclass
class Normal:
    """N(mean, exp(log_std)^2), entry by entry. ``mean`` and ``log_std`` share one shape."""

    mean: Array
    log_std: Array

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.mean, self.log_std])
        z = (x - self.mean) * jnp.exp(-self.log_std)
        return -0.5 * (z**2 + LOG_2PI) - self.log_std

    def sample(self, key: Array) -> Array:
        eps = jax.random.normal(key, self.mean.shape, self.mean.dtype)
        return self.mean + jnp.exp(self.log_std) * eps


def standard_normal(shape: tuple[int, ...]) -> Normal:
    """N(0, I) over arrays of ``shape``."""
    return Normal(jnp.zeros(shape), jnp.zeros(shape))


def kl_normal(q: Normal, p: Normal) -> Array:
    """KL(q || p) of two normals, entry by entry, in nats (Kingma & Welling 2014, appendix B)."""
    chex.assert_equal_shape([q.mean, q.log_std, p.mean, p.log_std])
    log_ratio = q.log_std - p.log_std
    z = (q.mean - p.mean) * jnp.exp(-p.log_std)
    # expm1 keeps the difference of two nearly equal variances: KL is quadratic in it.
    return 0.5 * (jnp.expm1(2 * log_ratio) - 2 * log_ratio + z**2)


@struct.dataclass
class Bernoulli:
    """P(x = 1) = sigmoid(logits) for x in {0, 1}.

    For x strictly between 0 and 1 ``log_prob`` is the cross-entropy, which is not a normalized
    likelihood: binarize the data before quoting it.
    """

    logits: Array

    @property
    def mean(self) -> Array:
        return jax.nn.sigmoid(self.logits)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.logits])
        return x * jax.nn.log_sigmoid(self.logits) + (1 - x) * jax.nn.log_sigmoid(-self.logits)

    def sample(self, key: Array) -> Array:
        return jax.random.bernoulli(key, self.mean).astype(self.logits.dtype)


def bin_edges(x: Array, levels: int) -> tuple[Array, Array]:
    """The two edges of the bin that x in [-1, 1] lies in, for ``levels`` equally spaced values.

    The bins are as wide as the spacing, 2 / (levels - 1), and the outermost two are open, so that a
    density integrated over the bins is a probability over the values (Ho et al. 2020, eq. 13).
    """
    half = 1.0 / (levels - 1)
    low = jnp.where(x < -1 + half, -jnp.inf, x - half)
    high = jnp.where(x > 1 - half, jnp.inf, x + half)
    return low, high


def log_diff_exp(a: Array, b: Array) -> Array:
    """log(exp(a) - exp(b)) for a > b, also where b is -inf."""
    # The branch that is not taken must stay finite too, or its gradient would be NaN.
    finite = jnp.where(jnp.isneginf(b), a - 1.0, b)
    return jnp.where(jnp.isneginf(b), a, a + jnp.log(-jnp.expm1(finite - a)))


def _log_interval(log_cdf, low: Array, high: Array) -> Array:
    """log P(low < z <= high) for a density symmetric about 0, from its log-CDF.

    An interval right of 0 is mirrored: near 1 a CDF has lost the digits that its tail still has.
    """
    right = low > 0
    low, high = jnp.where(right, -high, low), jnp.where(right, -low, high)
    open_low, open_high = jnp.isneginf(low), jnp.isposinf(high)
    top = jnp.where(open_high, 0.0, log_cdf(jnp.where(open_high, 0.0, high)))
    bottom = jnp.where(open_low, -jnp.inf, log_cdf(jnp.where(open_low, 0.0, low)))
    # Far in a tail two neighbouring log-CDFs can round to the same float.
    bottom = jnp.minimum(bottom, jnp.nextafter(top, -jnp.inf))
    return log_diff_exp(top, bottom)


@struct.dataclass
class DiscretizedNormal:
    """A normal integrated over the ``levels`` bins of data in [-1, 1] (Ho et al. 2020, eq. 13).

    ``log_prob`` is the log-probability of a value, in nats, so it is at most 0.
    """

    mean: Array
    log_std: Array
    levels: int = struct.field(pytree_node=False, default=256)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.mean, self.log_std])
        low, high = bin_edges(x, self.levels)
        scale = jnp.exp(-self.log_std)
        low, high = (low - self.mean) * scale, (high - self.mean) * scale
        return _log_interval(jax.scipy.stats.norm.logcdf, low, high)

    def sample(self, key: Array) -> Array:
        return quantize(Normal(self.mean, self.log_std).sample(key), self.levels)


@struct.dataclass
class DiscretizedLogistic:
    """A logistic integrated over the ``levels`` bins of data in [-1, 1] (Kingma et al. 2016).

    ``log_scale`` is the logarithm of the logistic's scale s, whose variance is (pi s)^2 / 3.
    """

    location: Array
    log_scale: Array
    levels: int = struct.field(pytree_node=False, default=256)

    @property
    def mean(self) -> Array:
        return self.location

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.location, self.log_scale])
        low, high = bin_edges(x, self.levels)
        inverse = jnp.exp(-self.log_scale)
        low, high = (low - self.location) * inverse, (high - self.location) * inverse
        return _log_interval(jax.nn.log_sigmoid, low, high)

    def sample(self, key: Array) -> Array:
        u = jax.random.logistic(key, self.location.shape, self.location.dtype)
        return quantize(self.location + jnp.exp(self.log_scale) * u, self.levels)


def quantize(x: Array, levels: int) -> Array:
    """Rounds x to the nearest of ``levels`` equally spaced values in [-1, 1]."""
    step = 2.0 / (levels - 1)
    return jnp.clip(jnp.round((x + 1) / step) * step - 1, -1, 1)


def bits_per_dimension(nats: Array, dimensions: int) -> Array:
    """Nats per example to bits per dimension: nats / (D log 2)."""
    return nats / (dimensions * jnp.log(2.0))
