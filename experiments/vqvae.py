"""Autoencoders with discrete latents (van den Oord et al. 2017).

python -m experiments.vqvae                                  # digits: train, draw, measure
python -m experiments.vqvae --data cifar10 --manual-dir DIR  # 8x8 codes of 512
python -m experiments.vqvae --depth 4 --codes 64             # what is left is quantized again
python -m experiments.vqvae --quantizer scalar               # no codebook: a grid of scalars
python -m experiments.vqvae --quantizer gumbel               # categories, relaxed

A prior over the codes is a model of its own; samples without one are of codes drawn evenly.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.models.vqvae import CodeDecoder, CodeEncoder
from jaxgen.systems.vqvae import (
    Categories,
    Quantizer,
    Scalars,
    Vectors,
    VqVae,
    compression,
    reconstructions,
)

QUANTIZERS = ("vector", "scalar", "gumbel")


@dataclass(frozen=True)
class Config:
    """VQ-VAE on images."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    width: runner.Count = 64  # Channels of the convolutions.
    downs: runner.Natural = 2  # Halvings of the image, down to the map of codes.
    blocks: runner.Count = 2  # Residual blocks on either side.
    quantizer: str = "vector"  # vector (codebooks), scalar (a grid) or gumbel (categories).
    codes: runner.Count = 512  # Of a codebook, or categories.
    latents: runner.Count = 32  # Entries of a codebook's vector.
    depth: runner.Count = 1  # Codebooks one after the other, each for what is left (vector).
    commitment: runner.NonNegative = 0.25  # Weight of the encoder's distance to its vector.
    codebook_decay: runner.Share = 0.99  # Of the averages that the vectors are.
    levels: Annotated[tuple[int, ...], runner.Range(2)] = (8, 8, 8)  # Of each scalar.
    gumbel_kl: runner.NonNegative = 1e-3  # Weight of the categories' KL to even ones.


def build(config: Config, data: DataSet) -> VqVae:
    """The VQ-VAE of the options."""
    quantizer = quantizer_of(config)
    width, blocks = config.width, config.blocks
    return VqVae(
        data,
        runner.make_optimizer(config.train),
        CodeEncoder(quantizer.latents, width, config.downs, blocks),
        CodeDecoder(data.shape, width, config.downs, blocks),
        quantizer,
    )


def quantizer_of(config: Config) -> Quantizer:
    """The quantizer of the options."""
    name = runner.choose("quantizer", config.quantizer, QUANTIZERS)
    if name != "vector" and config.depth > 1:
        raise ValueError("--depth is of --quantizer vector.")
    if name == "scalar":
        return Scalars(tuple(config.levels))
    if name == "gumbel":
        return Categories(config.codes, config.gumbel_kl, steps=config.train.steps)
    return Vectors(
        config.codes, config.latents, config.depth, config.commitment, config.codebook_decay
    )


DIGITS = Config(
    train=runner.Train(steps=2000, batch=64, ema=0.99, log_every=50, checkpoint_every=500),
    width=32,
    downs=1,
    codes=32,
    latents=8,
    levels=(4, 4, 2),
)
MNIST = Config(
    train=runner.Train(steps=4000, batch=64, ema=0.995, log_every=50, checkpoint_every=1000),
    width=32,
    codes=64,
    latents=16,
    levels=(4, 4, 4),
)
CIFAR10 = Config(
    train=runner.Train(
        steps=5000, batch=64, learning_rate=5e-4, ema=0.995, log_every=50, checkpoint_every=1000
    ),
)
PRESETS = runner.by_data(digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, cifar10=CIFAR10)
EXPERIMENT = runner.Experiment(
    "vqvae",
    __doc__,
    PRESETS,
    build,
    pictures=(reconstructions, runner.samples),
    measures=(compression,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
