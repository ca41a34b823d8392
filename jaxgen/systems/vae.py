"""An encoder and a decoder: q(z|x), p(x|z) and the bound between them (Kingma & Welling 2014).

``experiments.vae`` is its options; studies and cascades vary its parts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array
from jax.scipy.stats import norm

from jaxgen import runner
from jaxgen.data.records import Image, Points, binarize
from jaxgen.evaluation.latents import spherical_path
from jaxgen.evaluation.report import Number
from jaxgen.losses import elbo
from jaxgen.plotting import save_grid
from jaxgen.systems.bounds import Model, NegativeElbo, Objective, center
from jaxgen.training.step import Metrics, Now


@dataclass(frozen=True)
class Likelihoods:
    """How well to measure the likelihood."""

    importance_samples: runner.Count = 500  # K of the importance-sampled log-likelihood.
    likelihood_images: runner.Count = 1000  # Test examples whose log-likelihood is estimated.


@dataclass(frozen=True, eq=False)
class Vae(runner.System):
    """q(z|x), p(x|z) and p(z); images are binarized at random where the likelihood is of bits."""

    encoder: nn.Module
    decoder: nn.Module
    prior: nn.Module
    likelihood: elbo.Likelihood
    latents: int
    binary: bool
    objective: Objective

    def init(self, key: Array) -> Any:
        key_encoder, key_decoder, key_prior = jax.random.split(key, 3)
        x, z = jnp.zeros((1, *self.data.shape)), jnp.zeros((1, self.latents))
        encoder, decoder = self.encoder.init(key_encoder, x), self.decoder.init(key_decoder, z)
        encode = lambda x: self.encoder.apply(encoder, x)  # noqa: E731
        prior = self.prior.init(key_prior, encode)
        found = {"encoder": encoder, "decoder": decoder, "prior": prior}
        return {"params": {name: v["params"] for name, v in found.items() if "params" in v}}

    def model(self, params: Any) -> Model:
        """Its densities with these parameters."""

        def encode(x: Array) -> Any:
            return self.encoder.apply({"params": params["encoder"]}, x)

        def decode(z: Array) -> Any:
            maps: Any = self.decoder.apply({"params": params["decoder"]}, z)
            return self.likelihood.density(maps)

        prior: Any = self.prior.apply({"params": params.get("prior", {})}, encode)
        return Model(encode, decode, prior)

    def prepare(self, key: Array, x: Any) -> Array:
        """Examples at the scale of the likelihood: bits drawn at random, or as models see them."""
        if not self.binary:
            return self.data.kind.values(x)
        return binarize(key, x, self.data.levels)

    def shown(self, x: Any) -> Array:
        """The scale of the likelihood as that of models."""
        return 2 * x - 1 if self.binary else x

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """The objective in training, and -ELBO by one draw where it is measured."""
        key_data, key_z = jax.random.split(key)
        x, model = self.prepare(key_data, batch["x"]), self.model(params)
        if now.train:
            return self.objective(key_z, model, x, now.step)
        return NegativeElbo()(key_z, model, x, now.step)

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        key_z, key_x = jax.random.split(key)
        model = self.model(weights.params)
        p_x = model.decode(model.prior.sample(key_z, len(given["label"])))
        return p_x.sample(key_x) if isinstance(self.data.kind, Points) else self.shown(p_x.mean)

    def decode(self, weights: Any, z: Array) -> Any:
        """p(x|z)."""
        return self.model(weights.params).decode(z)

    def how(self) -> str:
        return "p(x|z)" if isinstance(self.data.kind, Points) else "means of p(x|z), z of the prior"


# --- pictures of images ------------------------------------------------------------------------


def reconstruct(system: Vae, weights: Any, key: Array, batch: Any) -> tuple[Array, Array]:
    """Examples and the means of p(x|mean of z), at the scale of the likelihood."""
    key_x, key_z = jax.random.split(key)
    x, model = system.prepare(key_x, batch["x"]), system.model(weights.params)
    return x, model.decode(center(key_z, model.encode(x))).mean


def codes(system: Vae, weights: Any, key: Array, batch: Any) -> Array:
    """The means of q(z|x), ``[B, Z]``."""
    key_x, key_z = jax.random.split(key)
    x = system.prepare(key_x, batch["x"])
    return center(key_z, system.model(weights.params).encode(x))


def reconstructions(trained: runner.Trained[Vae]) -> list[Path]:
    """``reconstructions.png``: original, reconstruction, original, ..."""
    if not isinstance(trained.data.kind, Image):
        return []
    rows = partial(reconstruct, trained.system)
    pairs = np.stack(trained.over("reconstructions", rows, trained.test(50), key=1), axis=1)
    pairs = np.asarray(trained.system.shown(pairs)).reshape(-1, *trained.data.shape)
    return [save_grid(trained.results / "reconstructions.png", pairs, 10)]


def decoded(trained: runner.Trained[Vae], z: Array | np.ndarray) -> np.ndarray:
    """Pictures of z ``[N, Z]``."""
    system = trained.system
    mean = lambda weights, key, z: system.shown(system.decode(weights, z).mean)  # noqa: E731
    return trained.over("decoding", mean, np.asarray(z), size=100)


def interpolations(trained: runner.Trained[Vae]) -> list[Path]:
    """``interpolations.png``: the arcs between the codes of test images; the latent manifold."""
    if not isinstance(trained.data.kind, Image):
        return []
    system, batch = trained.system, trained.test(20)
    means = trained.over("codes", partial(codes, system), batch, key=7)
    half = len(means) // 2
    if not half:  # a single test image
        return []
    ends = jnp.asarray(means[:half]), jnp.asarray(means[half : 2 * half])
    path = spherical_path(*ends, 10).swapaxes(0, 1)
    between = decoded(trained, path.reshape(-1, system.latents))
    files = [save_grid(trained.results / "interpolations.png", between, 10)]
    if system.latents == 2:  # K&W 2014, figure 4: the prior's quantiles, decoded
        quantiles = norm.ppf(jnp.linspace(0.025, 0.975, 20))
        z = jnp.stack(jnp.meshgrid(quantiles, -quantiles), axis=-1).reshape(-1, 2)
        files.append(save_grid(trained.results / "manifold.png", decoded(trained, z), 20))
    return files


def conditionals(trained: runner.Trained[Vae]) -> list[Path]:
    """``conditionals.png``: the means of p(x|z) for ten z of the prior, and four draws of each."""
    if not isinstance(trained.data.kind, Image):
        return []
    system = trained.system
    prior = system.model(trained.weights.params).prior
    z = np.asarray(prior.sample(jax.random.fold_in(trained.key, 6), 10))

    def draw(weights: Any, key: Array, z: Array) -> Array:
        return system.shown(system.decode(weights, z).sample(key))

    x = trained.over("p(x|z)", draw, np.tile(z, (4, 1)), key=6, size=40)
    rows = np.concatenate([decoded(trained, z), x])
    return [save_grid(trained.results / "conditionals.png", rows, 10)]


# --- measures ----------------------------------------------------------------------------------


def bound(trained: runner.Trained[Vae]) -> list[Number]:
    """The ELBO of the test set, its terms, and the error of reconstructions."""
    batch, system = trained.test(), trained.system
    scale = "binarized at random" if system.binary else "at models' scale"
    _, terms = trained.over("bound", system.measured, batch, key=2, size=250)
    elbos, ema = terms["reconstruction"] - terms["kl"], f"EMA of step {trained.step}"
    tested = f"nats an example, {len(elbos)} test examples, {scale}, one draw of z, {ema}"

    def error(weights: Any, key: Array, batch: Any) -> Array:
        x, mean = reconstruct(system, weights, key, batch)
        return jnp.mean((x - mean) ** 2, axis=tuple(range(1, x.ndim)))

    errors = trained.over("reconstructions", error, batch, key=3, size=250)
    how = f"mean squared error an entry, mean of p(x|mean of z), {len(errors)} test examples, {ema}"
    return [
        Number("elbo", float(elbos.mean()), tested),
        Number("reconstruction", float(terms["reconstruction"].mean()), tested),
        Number("kl", float(terms["kl"].mean()), tested),
        Number("reconstruction_error", float(errors.mean()), how),
    ]


def log_likelihood(trained: runner.Trained[Vae]) -> list[Number]:
    """log p(x) of test examples by importance sampling."""
    system, options = trained.system, trained.config.measured
    k = options.importance_samples

    def estimate(weights: Any, key: Array, batch: Any) -> Array:
        key_data, key_z = jax.random.split(key)
        x, model = system.prepare(key_data, batch["x"]), system.model(weights.params)
        encode, decode, prior = model
        how = {"samples": k, "chunk": math.gcd(k, 10), "prior": prior}
        return elbo.importance_log_likelihood(key_z, encode, decode, x, **how)

    batch = trained.test(options.likelihood_images)
    nats = trained.over("likelihood", estimate, batch, key=4, size=250)
    how = f"nats an example, {k} importance samples, {len(nats)} test examples"
    return [Number("log_likelihood", float(nats.mean()), f"{how}, EMA of step {trained.step}")]
