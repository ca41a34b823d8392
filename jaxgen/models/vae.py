"""Encoders and decoders of variational autoencoders (Kingma & Welling 2014, appendix C).

An encoder answers q(z|x); a decoder answers the parameter maps of p(x|z), ``[B, ..., maps * C]``,
which a likelihood of ``jaxgen.losses.elbo`` turns into a density; :class:`MADEDecoder` and
:class:`PixelCNNDecoder` answer them as a function of x.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.distributions import Normal, committed_log_std
from jaxgen.models.convolution import Doubling
from jaxgen.models.made import MADE, maps_of
from jaxgen.models.pixelcnn import GatedPixelCNN
from jaxgen.posteriors import (
    Autoregressive,
    AutoregressiveFlow,
    Flow,
    FullNormal,
    Householder,
    InverseAutoregressive,
    Mixture,
    Planar,
    Posterior,
    Prior,
    StandardNormal,
    vamp_prior,
)

# --- from features to a posterior ---------------------------------------------------------------

# (features h [B, F], latents) -> q(z|x) over [B, latents]; called inside of a module's ``__call__``
Head = Callable[[Array, int], Posterior]


def latent_normal(h: Array, latents: int) -> Normal:
    """A diagonal normal by two linear maps of the features, mean and log std."""
    mean, log_std = jnp.split(nn.Dense(2 * latents)(h), 2, axis=-1)
    return Normal(mean, log_std)


def committed_normal(h: Array, latents: int, rate: float | Array = 0.5) -> Normal:
    """A diagonal normal whose KL to N(0, I) is at least ``rate`` nats a latent, whatever h.

    delta-VAE (Razavi et al. 2019) of independent latents: the std is kept below that of the rate,
    and the mean is free. A mean that follows x is then cheap: one of variance v costs v/2 nats
    and tells up to log(1 + v/std^2)/2.
    """
    base = latent_normal(h, latents)
    return Normal(base.mean, committed_log_std(rate) + jax.nn.log_sigmoid(base.log_std))


def full_normal(h: Array, latents: int) -> FullNormal:
    """A normal with every covariance."""
    base = latent_normal(h, latents)
    lower = nn.Dense(latents * latents, kernel_init=nn.initializers.normal(1e-3))(h)
    return FullNormal(base.mean, base.log_std, lower.reshape(-1, latents, latents))


def planar_flow(h: Array, latents: int, steps: int = 4) -> Flow:
    """A diagonal normal moved by planar steps, whose parameters are linear in the features."""
    base = latent_normal(h, latents)
    maps = nn.Dense(steps * (2 * latents + 1), kernel_init=nn.initializers.normal(1e-2))(h)
    found = []
    for each in jnp.split(maps, steps, axis=-1):
        u, w, b = jnp.split(each, [latents, 2 * latents], axis=-1)
        found.append(Planar(u, w, b[:, 0]))
    return Flow(base, tuple(found))


def householder_flow(h: Array, latents: int, steps: int = 4) -> Flow:
    """A diagonal normal turned by reflections, each v linear in the one before it.

    Tomczak & Welling 2016, eq. 8.
    """
    base, found, v = latent_normal(h, latents), [], h
    for _ in range(steps):
        v = nn.Dense(latents)(v)
        found.append(Householder(v))
    return Flow(base, tuple(found))


def autoregressive_flow(h: Array, latents: int, steps: int = 2, hidden: int = 320) -> Flow:
    """A diagonal normal moved by inverse autoregressive steps, which see the features.

    Their order turns from step to step, and they begin nearly as the identity (Kingma et al. 2016,
    section 4).
    """
    base, context = latent_normal(h, latents), nn.elu(nn.Dense(latents)(h))
    found = []
    for i in range(steps):
        made = MADE(2, hidden, layers=1, backward=i % 2 == 1)
        network, weights = unbound(made, base.mean, context)

        def maps(weights: Any, z: Array, network: Any = network) -> tuple[Array, Array]:
            weights, context = weights
            m, s = jnp.moveaxis(network(weights, z, context), -1, 0)
            return m, s + 2.0

        found.append(InverseAutoregressive(maps, (weights, context)))
    return Flow(base, tuple(found))


def unbound(module: nn.Module, *inputs: Any) -> tuple[Callable[..., Any], Any]:
    """A submodule as a pure function of its variables, and these, for use outside of its parent."""
    module(*inputs)  # makes its parameters
    alone, variables = module.unbind()
    return alone.apply, variables


# --- priors -------------------------------------------------------------------------------------


class StandardPrior(nn.Module):
    """N(0, I)."""

    latents: int

    def __call__(self, encode: Callable[[Array], Any]) -> Prior:
        return StandardNormal(self.latents)


class MixturePrior(nn.Module):
    """A mixture of learned normals."""

    latents: int
    components: int = 100

    @nn.compact
    def __call__(self, encode: Callable[[Array], Any]) -> Prior:
        shape, zeros = (self.components, self.latents), nn.initializers.zeros_init()
        return Mixture(
            self.param("logits", zeros, shape[:1]),
            self.param("mean", nn.initializers.normal(1.0), shape),
            self.param("log_std", zeros, shape),
        )


class VampPrior(nn.Module):
    """The mean of the posteriors of learned inputs (Tomczak & Welling 2018).

    ``low`` and ``high`` are the ends of the data's scale, inside of which the inputs stay.
    """

    shape: tuple[int, ...]
    components: int = 500
    low: float = 0.0
    high: float = 1.0

    @nn.compact
    def __call__(self, encode: Callable[[Array], Any]) -> Prior:
        free = self.param("inputs", nn.initializers.normal(1.0), (self.components, *self.shape))
        return vamp_prior(encode, self.low + (self.high - self.low) * jax.nn.sigmoid(free - 1.0))


class FlowPrior(nn.Module):
    """N(0, I) moved by autoregressive steps, whose order turns (Chen et al. 2017)."""

    latents: int
    steps: int = 2
    hidden: int = 100

    @nn.compact
    def __call__(self, encode: Callable[[Array], Any]) -> Prior:
        networks: list[Autoregressive] = []
        found = []
        for i in range(self.steps):
            made = MADE(2, self.hidden, backward=i % 2 == 1)
            network, weights = unbound(made, jnp.zeros((1, self.latents)))

            def maps(weights: Any, z: Array, network: Any = network) -> tuple[Array, Array]:
                m, s = jnp.moveaxis(network(weights, z), -1, 0)
                return m, 3 * jnp.tanh(s / 3)  # exp(s) stays in range far from the data

            networks.append(maps)
            found.append(weights)
        return AutoregressiveFlow(self.latents, tuple(networks), tuple(found))


# --- encoders and decoders ----------------------------------------------------------------------


def joined(h: Array, y: Array | None) -> Array:
    """Features ``[B, F]`` with what else is known of the examples, ``y [B, K]``."""
    return h if y is None else jnp.concatenate([h, y], axis=-1)


class MLPEncoder(nn.Module):
    """Flattens x and applies ``hidden`` units, ``layers`` times; ``head`` makes q(z|x) of them.

    All encoders and decoders take a class y ``[B, K]``, one-hot, beside.
    """

    latents: int
    hidden: int = 400
    layers: int = 1
    head: Head = latent_normal

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Any:
        h = joined(x.reshape(x.shape[0], -1), y)
        for _ in range(self.layers):
            h = nn.relu(nn.Dense(self.hidden)(h))
        return self.head(h, self.latents)


class MLPDecoder(nn.Module):
    """z ``[B, Z]`` -> ``[B, *shape[:-1], shape[-1] * maps]`` through ``hidden`` units."""

    shape: tuple[int, ...]
    maps: int = 1
    hidden: int = 400
    layers: int = 1

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None) -> Array:
        h = joined(z, y)
        for _ in range(self.layers):
            h = nn.relu(nn.Dense(self.hidden)(h))
        out = nn.Dense(math.prod(self.shape) * self.maps)(h)
        return out.reshape(z.shape[0], *self.shape[:-1], self.shape[-1] * self.maps)


class MADEDecoder(nn.Module):
    """z ``[B, Z]`` -> the maps of p(x_i | x_<i, z) as a function of x, and an x to begin with.

    For ``elbo.in_order``. The entries of x are in the order of the rows of an image; all maps are
    made in one pass of a :class:`MADE` (Germain et al. 2015) whose context is z. It can describe x
    without z, as PixelVAE (Gulrajani et al. 2017) and the variational lossy autoencoder (Chen et
    al. 2017) can, and is what latents collapse with.
    """

    shape: tuple[int, ...]
    maps: int = 1
    hidden: int = 400
    layers: int = 1

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None) -> tuple[Callable[[Array], Array], Array]:
        context, start = joined(z, y), jnp.zeros((z.shape[0], *self.shape))
        made = MADE(self.maps, self.hidden, self.layers, direct=True)
        network, weights = unbound(made, start.reshape(z.shape[0], -1), context)

        def maps(weights: Any, context: Array, x: Array) -> Array:
            return maps_of(network(weights, x.reshape(x.shape[0], -1), context), x.shape)

        return jax.tree_util.Partial(maps, weights, context), start


class PixelCNNDecoder(nn.Module):
    """The same by a :class:`GatedPixelCNN` of ``reach`` layers 3x3, which is told a map of z.

    An entry sees ``reach`` pixels to its left, and one row more above; the map, of an
    :class:`MLPDecoder`, tells each pixel something else of z (van den Oord et al. 2016, section
    2.3; PixelVAE, Gulrajani et al. 2017). The less it sees the more z must tell (Chen et al. 2017,
    section 3.1). With ``coupled`` channels a pixel is one entry.
    """

    shape: tuple[int, ...]
    maps: int = 1
    hidden: int = 400
    layers: int = 1
    channels: int = 32
    reach: int = 5
    coupled: bool = False

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None) -> tuple[Callable[[Array], Array], Array]:
        *sides, colours = self.shape
        spread = MLPDecoder((*sides, self.channels), 1, self.hidden, self.layers)
        context, start = nn.relu(spread(z, y)), jnp.zeros((z.shape[0], *self.shape))
        groups = 1 if self.coupled else colours
        network = GatedPixelCNN(self.maps, groups, self.channels, self.reach)
        apply, weights = unbound(network, start, context)

        def maps(weights: Any, context: Array, x: Array) -> Array:
            return apply(weights, x, context)

        return jax.tree_util.Partial(maps, weights, context), start


class ConvEncoder(nn.Module):
    """Two strided 3x3 convolutions, then ``hidden`` units."""

    latents: int
    channels: int = 32
    hidden: int = 256
    head: Head = latent_normal

    @nn.compact
    def __call__(self, x: Array, y: Array | None = None) -> Any:
        h = nn.relu(nn.Conv(self.channels, (3, 3), strides=2)(x))
        h = nn.relu(nn.Conv(2 * self.channels, (3, 3), strides=2)(h))
        h = nn.relu(nn.Dense(self.hidden)(joined(h.reshape(h.shape[0], -1), y)))
        return self.head(h, self.latents)


class ConvDecoder(nn.Module):
    """The mirror of :class:`ConvEncoder`, cropped to ``shape`` where it is not a multiple of 4."""

    shape: tuple[int, ...]
    maps: int = 1
    channels: int = 32
    hidden: int = 256

    @nn.compact
    def __call__(self, z: Array, y: Array | None = None) -> Array:
        height, width, channels = self.shape
        h, w = math.ceil(height / 4), math.ceil(width / 4)
        x = nn.relu(nn.Dense(self.hidden)(joined(z, y)))
        x = nn.relu(nn.Dense(h * w * 2 * self.channels)(x)).reshape(z.shape[0], h, w, -1)
        x = nn.relu(Doubling(self.channels)(x))
        x = Doubling(channels * self.maps)(x)
        return x[:, :height, :width]
