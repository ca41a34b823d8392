"""Variational autoencoders (Kingma & Welling 2014).

python -m experiments.vae                                # digits: train, sample, measure, draw
python -m experiments.vae --data mnist --manual-dir DIR  # 400 units, 20 latents, 20 epochs
python -m experiments.vae --latents 2                    # also draws the latent manifold

Expect, with seed 0 on two CPU cores: digits, 21 s, test ELBO -22.7 nats and 500-sample
log-likelihood -22.4; MNIST, 2 minutes, test ELBO -99.1 and log-likelihood -94.9 (binarized).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.stats import norm

from experiments.runner import main
from experiments.system import (
    Data,
    Experiment,
    Probe,
    System,
    Train,
    choose,
    make_ema_decay,
    make_optimizer,
)
from jaxgen.data.sources import DataSet, Source, in_chunks, some, to_signed, to_unit
from jaxgen.evaluation.features import FeatureSpace, map_batches
from jaxgen.evaluation.latents import spherical_path
from jaxgen.evaluation.report import Number, sample_numbers
from jaxgen.losses import elbo
from jaxgen.models.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from jaxgen.plotting import save_grid
from jaxgen.training.devices import Placement
from jaxgen.training.logging import progress
from jaxgen.training.step import TrainState, init_state, make_step

MODELS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}


@dataclass(frozen=True)
class Sampling:
    """How to measure."""

    samples: int = 500
    """Samples to measure."""
    importance_samples: int = 500
    """K of the importance-sampled log-likelihood."""
    likelihood_images: int = 1000
    """Test images whose log-likelihood is estimated."""


@dataclass(frozen=True)
class Config:
    """VAE on images."""

    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    sampling: Sampling = field(default_factory=Sampling)
    model: str = "mlp"
    """mlp or conv."""
    latents: int = 10
    """Dimensions of z."""
    hidden: int = 400
    """Units of the hidden layers."""
    likelihood: str = "bernoulli"
    """bernoulli (on images binarized at random), gaussian, learned_gaussian or logistic."""
    std: float = 0.2
    """Of the gaussian likelihood."""
    beta: float = 1.0
    """Weight of the KL term."""
    latent_samples: int = 1
    """Draws of z a training example."""


DIGITS = Config(
    train=Train(
        steps=12_000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=3000
    )
)
MNIST = Config(
    data=Data("mnist"),
    train=Train(
        steps=8600, batch=128, ema=0.999, steps_per_call=20, log_every=100, checkpoint_every=2140
    ),
    latents=20,
)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": replace(MNIST, data=Data("fashion_mnist")),
    "cifar10": Config(
        data=Data("cifar10"),
        train=Train(steps=20_000, batch=128, ema=0.999, log_every=100, checkpoint_every=2000),
        model="conv",
        latents=64,
        likelihood="logistic",
    ),
}


def build(config: Config, data: DataSet, placement: Placement) -> System:
    levels, options, shape = data.levels or 256, config.train, data.shape
    binary = config.likelihood == "bernoulli"
    likelihoods = {
        "bernoulli": elbo.bernoulli,
        "gaussian": partial(elbo.gaussian, config.std),
        "learned_gaussian": elbo.learned_gaussian,
        "logistic": partial(elbo.discretized_logistic, levels),
    }
    likelihood = choose("likelihood", config.likelihood, likelihoods)()
    encoder_type, decoder_type = choose("model", config.model, MODELS)
    encoder = encoder_type(config.latents, hidden=config.hidden)
    decoder = decoder_type(shape, maps=likelihood.maps, hidden=config.hidden)
    optimizer = make_optimizer(options)

    def init(key: jax.Array) -> TrainState:
        key_encoder, key_decoder = jax.random.split(key)
        params = {
            "encoder": encoder.init(key_encoder, jnp.zeros((1, *shape)))["params"],
            "decoder": decoder.init(key_decoder, jnp.zeros((1, config.latents)))["params"],
        }
        return init_state({"params": params}, optimizer)

    def coder(params):
        encode = partial(encoder.apply, {"params": params["encoder"]})
        decode = lambda z: likelihood.density(decoder.apply({"params": params["decoder"]}, z))  # noqa: E731
        return encode, decode

    def prepare(key: jax.Array, x: jax.Array | np.ndarray) -> jax.Array:
        """Bin numbers to the scale of the likelihood: {0, 1} drawn at random, or [-1, 1]."""
        if binary:
            return jax.random.bernoulli(key, to_unit(x, levels)).astype(jnp.float32)
        return to_signed(x, levels)

    def to_picture(x: jax.Array) -> np.ndarray:
        return np.asarray(2 * x - 1 if binary else x)

    def loss_fn(params, batch, key):
        key_data, key_z = jax.random.split(key)
        x = prepare(key_data, batch["x"])
        terms = elbo.elbo_terms(key_z, *coder(params), x, samples=config.latent_samples)
        metrics = {"reconstruction": terms.reconstruction.mean(), "kl": terms.kl.mean()}
        return -terms.elbo(config.beta).mean(), metrics

    @jax.jit
    def bound_terms(key, params, x):
        key_data, key_z = jax.random.split(key)
        return elbo.elbo_terms(key_z, *coder(params), prepare(key_data, x))

    @jax.jit
    def log_likelihood(key, params, x):
        key_data, key_z = jax.random.split(key)
        return elbo.importance_log_likelihood(
            key_z,
            *coder(params),
            prepare(key_data, x),
            samples=config.sampling.importance_samples,
            chunk=math.gcd(config.sampling.importance_samples, 10),
        )

    @jax.jit
    def reconstruct(key, params, x):
        encode, decode = coder(params)
        x = prepare(key, x)
        return x, decode(encode(x).mean).mean

    @jax.jit
    def decode_mean(params, z):
        return coder(params)[1](z).mean

    @jax.jit
    def reconstruction_error(key, params, x):
        x, mean = reconstruct(key, params, x)
        return jnp.mean((x - mean) ** 2, axis=(1, 2, 3))

    def over(source: Source, function, key, params, count: int):
        """A jitted ``function(key, params, x)`` of up to ``count`` images, 250 with a key each."""
        size = min(250, count, len(source))
        parts = [
            map_batches(
                lambda x, i=i: function(jax.random.fold_in(key, i), params, x), b["x"], size
            )
            for i, b in enumerate(in_chunks(source, size, count))
        ]
        return jax.tree.map(lambda *p: np.concatenate(p), *parts)

    def score(state: TrainState) -> float:
        terms = over(data.validation, bound_terms, jax.random.key(0), state.ema, 1000)
        return float(-(terms.reconstruction - terms.kl).mean())

    def make_pictures(key: jax.Array, state: TrainState, directory: Path) -> list[Path]:
        keys = jax.random.split(key, 3)
        z = jax.random.normal(keys[0], (100, config.latents))
        files = [save_grid(directory / "samples.png", to_picture(decode_mean(state.ema, z)), 10)]
        x = some(data.test, 50)["x"]
        pairs = np.stack([to_picture(p) for p in reconstruct(keys[1], state.ema, x)], axis=1)
        pairs = pairs.reshape(-1, *shape)  # original, reconstruction, original, ...
        files.append(save_grid(directory / "reconstructions.png", pairs, 10))
        encode, _ = coder(state.ema)
        means = encode(prepare(keys[2], x)).mean
        half = len(means) // 2
        path = spherical_path(means[:half][:10], means[half : 2 * half][:10], 10).swapaxes(0, 1)
        path = path.reshape(-1, config.latents)
        between = to_picture(decode_mean(state.ema, path))
        files.append(save_grid(directory / "interpolations.png", between, 10))
        if config.latents == 2:  # K&W 2014, figure 4: the prior's quantiles, decoded
            quantiles = norm.ppf(jnp.linspace(0.025, 0.975, 20))
            z = jnp.stack(jnp.meshgrid(quantiles, -quantiles), axis=-1).reshape(-1, 2)
            manifold = to_picture(decode_mean(state.ema, z))
            files.append(save_grid(directory / "manifold.png", manifold, 20))
        return files

    def evaluate(key: jax.Array, state: TrainState, space: FeatureSpace) -> list[Number]:
        key_elbo, key_likelihood, key_x, key_z = jax.random.split(key, 4)
        scale = "binarized at random" if binary else f"{levels} levels in [-1, 1]"
        ema = f"EMA of step {int(state.step)}"
        terms = over(data.test, bound_terms, key_elbo, state.ema, len(data.test))
        bound = terms.reconstruction - terms.kl
        count = min(config.sampling.likelihood_images, len(data.test))
        with progress("likelihood", 1) as advance:
            log_p = over(data.test, log_likelihood, key_likelihood, state.ema, count)
            advance(1)
        errors = over(data.test, reconstruction_error, key_x, state.ema, len(data.test))
        tested = f"nats an image, {len(bound)} test images, {scale}, one draw of z, {ema}"
        numbers = [
            Number("elbo", float(bound.mean()), tested),
            Number("reconstruction", float(terms.reconstruction.mean()), tested),
            Number("kl", float(terms.kl.mean()), tested),
            Number(
                "log_likelihood",
                float(log_p.mean()),
                f"nats an image, {config.sampling.importance_samples} importance samples, "
                f"{count} test images, {scale}, {ema}",
            ),
            Number(
                "reconstruction_error",
                float(errors.mean()),
                f"mean squared error a pixel, mean of p(x|mean of z), {len(errors)} test images, "
                f"{ema}",
            ),
        ]
        z = jax.random.normal(key_z, (config.sampling.samples, config.latents))
        samples = to_picture(decode_mean(state.ema, z))
        how = f"means of p(x|z), z from the prior, {ema}"
        return [*numbers, *sample_numbers(data, space, samples, None, how)]

    return System(
        init=init,
        step=make_step(loss_fn, optimizer, make_ema_decay(options), options.accumulate),
        score=score,
        sample=make_pictures,
        evaluate=evaluate,
        probe=Probe(
            {
                "encoder": (encoder, (jnp.zeros((1, *shape)),), {}),
                "decoder": (decoder, (jnp.zeros((1, config.latents)),), {}),
            },
            lambda state: state.params,
            loss_fn,
        ),
    )


EXPERIMENT = Experiment("vae", __doc__ or "", PRESETS, build)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
