"""What a VAE descends: its densities, and objectives over them.

An objective is a function of key, :class:`Model`, x and the steps so far; its parts are the pure
functions of ``jaxgen.losses``. All values are in nats.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.data.records import DataSet, Image, Source, Tokens, binarize, to_signed
from jaxgen.distributions import Normal, bits_per_dimension, kl_normal, standard_normal, sum_event
from jaxgen.evaluation.report import Number
from jaxgen.losses import elbo
from jaxgen.losses.latents import free_bits, kl_parts, mmd
from jaxgen.posteriors import FullNormal, Posterior, Prior, StandardNormal
from jaxgen.training.step import Metrics


def prepared(data: DataSet, binary: bool, key: Array, x: Any) -> Array:
    """Examples at the scale of a likelihood: bits drawn at random, or as models see them."""
    return binarize(key, x, data.levels) if binary else data.kind.values(x)


@dataclass(frozen=True, eq=False)
class Bits:
    """A source of images of bits, each drawn once: black or white of as many levels."""

    source: Source
    levels: int

    def __len__(self) -> int:
        return len(self.source)

    def fetch(self, index: np.ndarray) -> Any:
        batch = self.source.fetch(index)
        keys = jax.vmap(jax.random.key)(jnp.asarray(index, jnp.uint32))
        bits = jax.vmap(lambda key, x: binarize(key, x[None], self.levels)[0])(keys, batch["x"])
        return {**batch, "x": np.asarray(bits * (self.levels - 1), batch["x"].dtype)}


def in_bits(data: DataSet, binary: bool) -> DataSet:
    """The data as samples look: where they are bits of grey images, each drawn once."""
    if not binary or data.levels == 2:
        return data
    train, validation, test = (
        Bits(s, data.levels) for s in (data.train, data.validation, data.test)
    )
    return replace(data, train=train, validation=validation, test=test)


def shown(binary: bool, x: Any) -> Array:
    """The scale of a likelihood as that of models."""
    return 2 * x - 1 if binary else x


def tokens_of(data: DataSet, binary: bool, key: Array, x: Any) -> Array:
    """Examples of the data as tokens ``[B, L]``, images row by row; bits are drawn at random."""
    x = binarize(key, x, data.levels) if binary else jnp.asarray(x)
    return x.astype(jnp.int32).reshape(len(x), -1)


def examples_of(data: DataSet, levels: int, tokens: Array) -> Array:
    """Tokens ``[B, L]`` as samples: of images, of so many levels, in [-1, 1].

    What is no level, a mask, lies in the middle.
    """
    if not isinstance(data.kind, Image):
        return tokens
    x = jnp.where(tokens < levels, to_signed(tokens, levels), 0.0)
    return x.reshape(-1, *data.shape)


def vocabulary_of(data: DataSet, binary: bool) -> int:
    """How many tokens the data have, as :func:`tokens_of` makes them.

    Raises:
      ValueError: for bits of what is no grey image.
    """
    if isinstance(data.kind, Tokens):
        levels, grey = data.kind.vocabulary, False
    else:
        levels, grey = data.levels, data.shape[-1] == 1
    if binary and not grey:
        raise ValueError("bits are of grey images: use --pixels levels.")
    return 2 if binary else levels


def binarized(data: DataSet, binary: bool) -> str:
    """For protocols: that bits are drawn at random, where they are."""
    return ", binarized at random" if binary and data.levels > 2 else ""


def likelihoods(
    name: str, nats: float, data: DataSet, how: str, label: str = "bits_per_dimension"
) -> list[Number]:
    """A mean log p(x) of images, or a bound on it, in nats and in bits a dimension."""
    bits = float(bits_per_dimension(jnp.asarray(-nats), math.prod(data.shape)))
    return [
        Number(name, nats, f"nats an example, {how}"),
        Number(label, bits, how),
    ]


class Model(NamedTuple):
    """x -> q(z|x), z -> p(x|z), and p(z)."""

    encode: elbo.Encoder
    decode: elbo.Decoder
    prior: Prior

    def terms(self, key: Array, x: Array, samples: int = 1) -> elbo.ElboTerms:
        """The terms of the bound."""
        return elbo.elbo_terms(key, self.encode, self.decode, x, samples=samples, kl=self.kl)

    def kl(self, q: Posterior, z: Array, log_q: Array) -> Array:
        """KL(q(z|x) || p(z)) ``[B]``, in closed form where there is one."""
        exact = isinstance(q, Normal) and isinstance(self.prior, StandardNormal)
        kl = elbo.kl_closed_form if exact else elbo.kl_monte_carlo(self.prior)
        return kl(q, z, log_q)


def center(key: Array, q: Posterior, draws: int = 16) -> Array:
    """The mean of q(z|x) ``[B, Z]``: known, or by some draws of a flow."""
    if isinstance(q, Normal | FullNormal):
        return q.mean
    return elbo.draws(key, q, draws)[0].mean(axis=0)


# (key, model, x, steps so far)-> what is descended [B], and metrics
Objective = Callable[[Array, Model, Array, Array | int], tuple[Array, Metrics]]
Over = Callable[[Any], Any]  # the steps so far -> a weight


@dataclass(frozen=True, eq=False)
class NegativeElbo:
    """-ELBO with the KL weighted by ``beta``, and at least ``free`` nats of each latent for free.

    Of a KL without a closed form the nats are of all latents together.
    """

    beta: Over = lambda step: 1.0
    samples: int = 1
    free: float = 0.0

    def __call__(
        self, key: Array, model: Model, x: Array, step: Array | int
    ) -> tuple[Array, Metrics]:
        terms, beta = model.terms(key, x, self.samples), self.beta(step)
        metrics = {"reconstruction": terms.reconstruction, "kl": terms.kl}
        if not self.free:
            return -terms.elbo(beta), metrics
        q = model.encode(x)
        if isinstance(q, Normal) and isinstance(model.prior, StandardNormal):
            kl = free_bits(kl_normal(q, standard_normal(q.mean.shape)), self.free)
        else:
            kl = free_bits(terms.kl[:, None], self.free * q_latents(key, q))
        return beta * kl - terms.reconstruction, metrics


def q_latents(key: Array, q: Posterior) -> int:
    """How many latents q is over."""
    return jax.eval_shape(q.draw, key)[0].shape[-1]


@dataclass(frozen=True, eq=False)
class Importance:
    """The importance-weighted bound of ``samples`` draws, by one of its three gradients."""

    loss: Callable[..., Array]
    samples: int

    def __call__(
        self, key: Array, model: Model, x: Array, step: Array | int
    ) -> tuple[Array, Metrics]:
        return self.loss(
            key, model.encode, model.decode, x, samples=self.samples, prior=model.prior
        ), {}


@dataclass(frozen=True, eq=False)
class TotalCorrelation:
    """-ELBO whose KL has its total correlation weighted by ``beta`` (Chen et al. 2018)."""

    beta: Over
    size: int  # of the training set

    def __call__(
        self, key: Array, model: Model, x: Array, step: Array | int
    ) -> tuple[Array, Metrics]:
        q: Any = model.encode(x)
        if not (isinstance(q, Normal) and isinstance(model.prior, StandardNormal)):
            raise ValueError("the total correlation is of --posterior normal and --prior normal.")
        z = q.sample(key)
        reconstruction, parts = sum_event(model.decode(z).log_prob(x)), kl_parts(q, z, self.size)
        metrics = {"reconstruction": reconstruction, **parts._asdict()}
        return parts.weighted(beta=self.beta(step)) - reconstruction, metrics


@dataclass(frozen=True, eq=False)
class Discrepancy:
    """-reconstruction + ``beta`` KL + ``weight`` MMD(q(z), p(z)) (Zhao et al. 2019, eq. 6).

    In their terms beta = 1 - alpha and weight = alpha + lambda - 1. With beta = 0 it is the
    Wasserstein autoencoder.
    """

    beta: Over
    weight: float

    def __call__(
        self, key: Array, model: Model, x: Array, step: Array | int
    ) -> tuple[Array, Metrics]:
        key, key_prior, key_z = jax.random.split(key, 3)
        terms = model.terms(key, x)
        z, _ = model.encode(x).draw(key_z)
        apart = mmd(z, model.prior.sample(key_prior, len(z)))
        metrics = {"reconstruction": terms.reconstruction, "kl": terms.kl, "mmd": apart}
        return self.weight * apart - terms.elbo(self.beta(step)), metrics
