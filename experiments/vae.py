"""Variational autoencoders (Kingma & Welling 2014).

python -m experiments.vae                                # digits: train, sample, measure, draw
python -m experiments.vae --data mnist --manual-dir DIR  # 400 units, 20 latents, 20 epochs
python -m experiments.vae --latents 2                    # also draws the latent manifold
python -m experiments.vae --data moons                   # points in the plane

Expect, with seed 0 on two CPU cores: digits, 21 s, test ELBO -22.6 nats and 500-sample
log-likelihood -22.4; MNIST, 2 minutes, test ELBO -99.1 and log-likelihood -94.9 (binarized).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points
from jaxgen.losses import elbo
from jaxgen.models.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from jaxgen.systems.vae import (
    Likelihoods,
    Vae,
    bound,
    conditionals,
    interpolations,
    log_likelihood,
    reconstructions,
)

MODELS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}
LIKELIHOODS = ("bernoulli", "gaussian", "learned_gaussian", "logistic")


@dataclass(frozen=True)
class Config:
    """VAE on images or points."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    measured: Likelihoods = runner.measuring(Likelihoods)
    model: str = "mlp"  # mlp or conv.
    latents: runner.Count = 10  # Dimensions of z.
    hidden: runner.Count = 400  # Units of the hidden layers.
    # bernoulli (of images binarized at random), gaussian, learned_gaussian or logistic (default:
    # bernoulli for grey images, logistic for coloured ones, learned_gaussian for points).
    likelihood: str = "default"
    std: runner.NonNegative = 0.2  # Of the gaussian likelihood.
    beta: runner.NonNegative = 1.0  # Weight of the KL term.
    latent_samples: runner.Count = 1  # Draws of z a training example.


def build(config: Config, data: DataSet) -> Vae:
    """The VAE of the options."""
    points = isinstance(data.kind, Points)
    usual = "learned_gaussian" if points else "logistic" if data.shape[-1] > 1 else "bernoulli"
    name = usual if config.likelihood == "default" else config.likelihood
    runner.choose("likelihood", name, LIKELIHOODS)
    if points and name in ("bernoulli", "logistic"):
        raise ValueError("points have a density: use --likelihood learned_gaussian or gaussian.")
    likelihoods = {
        "bernoulli": elbo.bernoulli,
        "gaussian": partial(elbo.gaussian, config.std),
        "learned_gaussian": elbo.learned_gaussian,
        "logistic": lambda: elbo.discretized_logistic(data.levels),
    }
    likelihood = likelihoods[name]()
    encoder_type, decoder_type = runner.choose("model", config.model, MODELS)
    return Vae(
        data,
        runner.make_optimizer(config.train),
        encoder_type(config.latents, hidden=config.hidden),
        decoder_type(data.shape, maps=likelihood.maps, hidden=config.hidden),
        likelihood,
        config.latents,
        name == "bernoulli",
        config.beta,
        config.latent_samples,
    )


DIGITS = Config(
    train=runner.Train(
        steps=12_000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=3000
    )
)
MNIST = Config(
    train=runner.Train(
        steps=8600, batch=128, ema=0.999, steps_per_call=20, log_every=100, checkpoint_every=2140
    ),
    latents=20,
)
CIFAR10 = Config(
    train=runner.Train(steps=20_000, batch=128, ema=0.999, log_every=100, checkpoint_every=2000),
    model="conv",
    latents=64,
)
POINTS = replace(
    DIGITS,
    latents=2,
    hidden=200,
    sampling=runner.Sampling(2048, 2048),
)
PRESETS = runner.by_data(
    digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, cifar10=CIFAR10, points=POINTS
)
EXPERIMENT = runner.Experiment(
    "vae",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, conditionals, reconstructions, interpolations),
    measures=(bound, log_likelihood, runner.quality),
    kinds=(Image, Points),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
