"""The densities that objectives are built from: ``log_prob``, ``sample``, ``mean`` and KL.

Every density here is a product over the entries of its parameter arrays. ``log_prob`` answers entry
by entry, in nats, with the shape of its argument; :func:`sum_event` turns that into one value per
example. Variances are stored as logarithms so that they stay positive and keep their precision.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

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
    x = x.reshape(x.shape[0], -1)
    # A product, as XLA on CPU would take the exponentials and logarithms of what it sums one by
    # one, in the loop of the sum (a training step of the MNIST VAE: 9.3 ms in place of 6.3).
    return jnp.matmul(x, jnp.ones(x.shape[1:], x.dtype), precision=jax.lax.Precision.HIGHEST)


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

    def draw(self, key: Array) -> tuple[Array, Array]:
        """A sample and its log-density, ``[B]``."""
        z = self.sample(key)
        return z, sum_event(self.log_prob(z))


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


def committed_log_std(rate: float | Array) -> Array:
    """The largest log std t of which KL(N(m, e^2t) || N(0, 1)) is ``rate`` nats or more at every m.

    The root t < 0 of (e^2t - 1)/2 - t = rate, that KL where m = 0 (Razavi et al. 2019, "delta-VAE",
    bound the rate of independent normals by that equation). It falls in t < 0 and is convex, so
    Newton's steps from the left never pass the root: the rate is met wherever they stop.
    """
    rate = jnp.asarray(rate, float)

    def newton(_: Any, t: Array) -> Array:
        return t - (0.5 * jnp.expm1(2 * t) - t - rate) / jnp.expm1(2 * t)

    return jax.lax.fori_loop(0, 20, newton, -rate - 0.5)


@jax.custom_jvp
def bernoulli_log_prob(x: Array, logits: Array) -> Array:
    """x log sigmoid(l) + (1 - x) log sigmoid(-l), entry by entry, in nats.

    By one exponential; in this order no digit is lost where the outcome is sure.
    """
    return x * logits - jnp.maximum(logits, 0) - jnp.log1p(jnp.exp(-jnp.abs(logits)))


@bernoulli_log_prob.defjvp
def _bernoulli_log_prob_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (x, logits), (dx, dlogits) = primals, tangents
    return bernoulli_log_prob(x, logits), dx * logits + dlogits * (x - jax.nn.sigmoid(logits))


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
        return bernoulli_log_prob(x, self.logits)

    def sample(self, key: Array) -> Array:
        return jax.random.bernoulli(key, self.mean).astype(self.logits.dtype)


def log1mexp(x: Array) -> Array:
    """log(1 - exp(-x)) for x > 0, exact at both ends (Maechler 2012)."""
    log_2 = 0.6931472  # each branch is kept on its own side, so that neither gradient is NaN
    small = jnp.log(-jnp.expm1(-jnp.minimum(x, log_2)))
    return jnp.where(x < log_2, small, jnp.log1p(-jnp.exp(-jnp.maximum(x, log_2))))


def bin_log_prob(
    log_cdf: Callable[[Array], Array], x: Array, location: Array, log_scale: Array, levels: int
) -> Array:
    """The log-mass of x's bin under a density symmetric about its location, entry by entry.

    Data are ``levels`` equally spaced values in [-1, 1]; bins are as wide as the spacing, and the
    outermost two are open, so that the masses sum to one (Ho et al. 2020, eq. 13). ``log_cdf`` is
    that of the standard density; far tails keep their digits.
    """
    half = 1.0 / (levels - 1)
    inverse = jnp.exp(-log_scale)
    low, high = (x - half - location) * inverse, (x + half - location) * inverse
    open_low, open_high = x < -1 + half, x > 1 - half
    # A bin right of the location is mirrored: near 1 a CDF has lost the digits its tail still has.
    right = low > 0
    low, high = jnp.where(right, -high, low), jnp.where(right, -low, high)
    open_low, open_high = (
        jnp.where(right, open_high, open_low),
        jnp.where(right, open_low, open_high),
    )
    top = jnp.where(open_high, 0.0, log_cdf(high))
    gap = jnp.where(open_low, jnp.inf, top - log_cdf(low))
    # The floor is for bins too narrow for float32 to tell their edges apart.
    return top + log1mexp(jnp.maximum(gap, 1e-12))


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
        log_cdf = jax.scipy.stats.norm.logcdf
        return bin_log_prob(log_cdf, x, self.mean, self.log_std, self.levels)

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
        log_cdf = jax.nn.log_sigmoid
        return bin_log_prob(log_cdf, x, self.location, self.log_scale, self.levels)

    def sample(self, key: Array) -> Array:
        u = jax.random.logistic(key, self.location.shape, self.location.dtype)
        return quantize(self.location + jnp.exp(self.log_scale) * u, self.levels)


def log_sinhc(x: Array) -> Array:
    """log(sinh(x) / x), even in x, exact near 0 and far from it."""
    a = jnp.abs(x)
    small = jnp.minimum(a, 0.1) ** 2
    far = jnp.maximum(a, 0.1)
    series = small / 6 - small**2 / 180 + small**3 / 2835
    return jnp.where(a < 0.1, series, far + log1mexp(2 * far) - jnp.log(2 * far))


@struct.dataclass
class ContinuousBernoulli:
    """The density proportional to exp(logits u) of u = (x + 1)/2 in [0, 1], for x in [-1, 1].

    Loaiza-Ganem & Cunningham 2019, eq. 5: the cross-entropy as a density, with its constant.
    """

    logits: Array

    @property
    def mean(self) -> Array:
        """2 E[u] - 1 = coth(l/2) - 2/l."""
        half = self.logits / 2
        near = jnp.abs(half) < 0.1
        safe = jnp.where(near, 1.0, half)
        return jnp.where(near, half / 3 - half**3 / 45, 1 / jnp.tanh(safe) - 1 / safe)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.logits])
        return x * self.logits / 2 - log_sinhc(self.logits / 2) - jnp.log(2.0)

    def sample(self, key: Array) -> Array:
        """By the inverse of the distribution function."""
        v = jax.random.uniform(key, self.logits.shape, self.logits.dtype)
        near = jnp.abs(self.logits) < 1e-3
        a = jnp.where(near, 1.0, jnp.abs(self.logits))
        u = 1 + jnp.log(v + (1 - v) * jnp.exp(-a)) / a  # of |l|; mirrored for the other sign
        u = jnp.where(self.logits < 0, 1 - u, u)
        return 2 * jnp.clip(jnp.where(near, v, u), 0, 1) - 1


@struct.dataclass
class Beta:
    """Beta(exp(log_a), exp(log_b)) of u in (0, 1), for x in [-1, 1] on ``levels`` values.

    A density may be infinite at 0 and 1, so u is the middle of x's bin: never either end.
    """

    log_a: Array
    log_b: Array
    levels: int = struct.field(pytree_node=False, default=256)

    @property
    def mean(self) -> Array:
        """(L (2 E[u] - 1) / (L - 1), where u is the middle of a bin), as far as x goes."""
        wide = self.levels / (self.levels - 1)
        return jnp.clip(wide * jnp.tanh((self.log_a - self.log_b) / 2), -1, 1)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.log_a, self.log_b])
        a, b = jnp.exp(self.log_a), jnp.exp(self.log_b)
        u = ((x + 1) / 2 * (self.levels - 1) + 0.5) / self.levels
        log_density = (a - 1) * jnp.log(u) + (b - 1) * jnp.log1p(-u)
        # du/dx; the grid in x is as wide as that of the bins' middles times levels / (levels - 1)
        log_slope = jnp.log((self.levels - 1) / (2 * self.levels))
        return log_density - jax.scipy.special.betaln(a, b) + log_slope

    def sample(self, key: Array) -> Array:
        u = jax.random.beta(key, jnp.exp(self.log_a), jnp.exp(self.log_b))
        return jnp.clip(2 * (self.levels * u - 0.5) / (self.levels - 1) - 1, -1, 1)


@struct.dataclass
class LogisticMixture:
    """Pixels as a mixture of discretized logistics, whose channels are coupled.

    Salimans et al. 2017 ("PixelCNN++"), section 2.1 and 2.2: one component for all channels of a
    pixel; a channel's location moves linearly with the channels before it. ``logits [..., M]``,
    ``location`` and ``log_scale [..., C, M]``, ``coupling [..., C, C, M]``, of which the part
    below the diagonal counts. ``log_prob`` of ``x [..., C]`` is one value a pixel, ``[...]``.
    """

    logits: Array
    location: Array
    log_scale: Array
    coupling: Array
    levels: int = struct.field(pytree_node=False, default=256)

    def _located(self, x: Array) -> Array:
        """The location of each channel given those before it in ``x [..., C]``: ``[..., C, M]``."""
        channels = x.shape[-1]
        below = jnp.tril(jnp.ones((channels, channels), x.dtype), -1)
        below = below.reshape((1,) * (x.ndim - 1) + (channels, channels, 1))
        return self.location + jnp.sum(self.coupling * below * x[..., None, :, None], axis=-2)

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([self.location, self.log_scale])
        each = bin_log_prob(
            jax.nn.log_sigmoid, x[..., None], self._located(x), self.log_scale, self.levels
        )
        return jax.nn.logsumexp(each.sum(axis=-2) + jax.nn.log_softmax(self.logits), axis=-1)

    @property
    def mean(self) -> Array:
        """The mean of the locations, each component's followed through the channels."""
        found = jnp.zeros_like(self.location)
        for c in range(found.shape[-2]):
            along = jnp.sum(self.coupling[..., c, :c, :] * found[..., :c, :], axis=-2)
            found = found.at[..., c, :].set(jnp.clip(self.location[..., c, :] + along, -1, 1))
        return jnp.sum(found * jax.nn.softmax(self.logits)[..., None, :], axis=-1)

    def sample(self, key: Array) -> Array:
        key_k, key_x = jax.random.split(key)
        k = jax.random.categorical(key_k, self.logits)[..., None]
        of = lambda a: jnp.take_along_axis(a, k, axis=-1)[..., 0]  # noqa: E731
        x = jnp.zeros(self.location.shape[:-1])
        noise = jax.random.logistic(key_x, x.shape)
        for c in range(x.shape[-1]):
            location = of(self._located(x)[..., c, :])
            drawn = location + jnp.exp(of(self.log_scale[..., c, :])) * noise[..., c]
            x = x.at[..., c].set(quantize(drawn, self.levels))
        return x


@struct.dataclass
class Levels:
    """One of the equally spaced values in [-1, 1], by ``logits [..., levels]``."""

    logits: Array

    @property
    def levels(self) -> int:
        return self.logits.shape[-1]

    @property
    def mean(self) -> Array:
        values = jnp.linspace(-1.0, 1.0, self.levels, dtype=self.logits.dtype)
        return jax.nn.softmax(self.logits) @ values

    def log_prob(self, x: Array) -> Array:
        chex.assert_shape(self.logits, (*x.shape, None))
        level = jnp.round((x + 1) / 2 * (self.levels - 1)).astype(jnp.int32)
        log_p = jax.nn.log_softmax(self.logits)
        return jnp.take_along_axis(log_p, level[..., None], axis=-1)[..., 0]

    def sample(self, key: Array) -> Array:
        level = jax.random.categorical(key, self.logits)
        return 2 * level.astype(self.logits.dtype) / (self.levels - 1) - 1


@struct.dataclass
class InOrder:
    """prod_i p(x_i | x_<i): each entry has the ``density`` of parameters made of those before it.

    ``maps(x)``, for x ``[B, ...]``, answers the parameters of all entries in one pass, those of
    entry i by the entries before it alone, in whatever order. ``start [B, ...]`` is any x: what
    the first pass of a draw sees.
    """

    density: Callable[[Array], Any] = struct.field(pytree_node=False)
    maps: Callable[[Array], Array]
    start: Array

    def log_prob(self, x: Array) -> Array:
        chex.assert_equal_shape([x, self.start])
        return self.density(self.maps(x)).log_prob(x)

    def sample(self, key: Array) -> Array:
        """Drawn by the noise of ``key``; without a gradient in reverse mode."""
        return self._settled(lambda p: p.sample(key))

    def complete(self, key: Array, x: Array, known: Array) -> Array:
        """x where it is ``known``, the rest drawn in order: from p(rest | known) where what is
        known comes first."""
        return self._settled(lambda p: jnp.where(known, x, p.sample(key)))

    @property
    def mean(self) -> Array:
        """Each entry's mean given the *means* of those before it, in place of their values.

        It is the mean of x where ``maps`` are linear and the mean is linear in them, and otherwise
        none, but a picture of the density that takes no key. Draws are what x looks like.
        """
        return self._settled(lambda p: p.mean)

    def _settled(self, answer: Callable[[Any], Array]) -> Array:
        """The x that is the answer to itself.

        Pass i makes entry i right and leaves those before it, so as many passes as entries do, and
        fewer where nothing changes any more (Wiggers & Hoogeboom 2020, fixed-point iteration).
        """
        one_pass = lambda x: answer(self.density(self.maps(x)))  # noqa: E731

        def unsettled(found: Any) -> Array:
            passes, before, x = found
            return (passes < x[0].size) & jnp.any(before != x)

        first = one_pass(self.start)
        begun = (1, self.start.astype(first.dtype), first)
        again = lambda found: (found[0] + 1, found[2], one_pass(found[2]))  # noqa: E731
        return jax.lax.while_loop(unsettled, again, begun)[2]


def quantize(x: Array, levels: int) -> Array:
    """Rounds x to the nearest of ``levels`` equally spaced values in [-1, 1]."""
    step = 2.0 / (levels - 1)
    return jnp.clip(jnp.round((x + 1) / step) * step - 1, -1, 1)


def bits_per_dimension(nats: Array, dimensions: int) -> Array:
    """Nats per example to bits per dimension: nats / (D log 2)."""
    return nats / (dimensions * jnp.log(2.0))
