"""Hierarchical VAEs: levels of latents, inferred from the top down.

python -m experiments.hvae                                     # digits: train, draw, measure
python -m experiments.hvae --data mnist --manual-dir DIR       # binarized at random
python -m experiments.hvae --inference ladder                  # Sonderby et al. 2016
python -m experiments.hvae --model conv                        # maps of latents, as in NVAE, VDVAE
python -m experiments.hvae sample --temperature 0.7            # clearer samples, less various

Expect, with seed 0 on two CPU cores: digits, 2.5 minutes, test ELBO -22.5 nats and 500-sample
log-likelihood -22.1; MNIST, 55 minutes, test ELBO -88.2 and 5000-sample log-likelihood -84.0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Annotated

from flax import linen as nn

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.losses import elbo
from jaxgen.losses.hierarchy import precision_weighted, residual
from jaxgen.losses.latents import warm_up
from jaxgen.models.ladder import (
    BottomUp,
    ConvBottomUp,
    ConvStateDecoder,
    LevelNet,
    StateDecoder,
    conv,
    halved,
)
from jaxgen.systems.hvae import (
    HVae,
    Measuring,
    bound,
    held_by_levels,
    latents,
    log_likelihood,
    reconstructions,
    temperatures,
    use_of_latents,
)

MODELS = ("mlp", "conv")
LIKELIHOODS = ("bernoulli", "logistic_mixture")
INFERENCES = {"residual": residual, "ladder": precision_weighted}


@dataclass(frozen=True)
class Config:
    """Hierarchical VAE on images."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    measured: Measuring = runner.measuring(Measuring)
    model: str = "mlp"  # mlp or conv.
    # A level, the top first; with conv they are the channels of a map.
    latents: Annotated[tuple[int, ...], runner.Range(1)] = (4, 8, 16)
    # How often the image is halved for the map of a level, the top first (conv).
    halvings: Annotated[tuple[int, ...], runner.Range(0)] = (2, 1, 1)
    hidden: runner.Count = (
        128  # Units or channels of the networks, and of the state that goes down.
    )
    # bernoulli (of images binarized at random) or logistic_mixture (default: the first for grey
    # images, the second for coloured ones).
    likelihood: str = "default"
    # How q(z|x) of a level is made: residual (moved from p, as NVAE has it) or ladder (the product
    # of what comes from above and from below).
    inference: str = "residual"
    beta: runner.NonNegative = 1.0  # Weight of the KL.
    kl_warmup: runner.Natural = 0  # Steps in which the KL's weight rises to beta.
    kl_balance: bool = False  # Weigh the levels' KL by their size meanwhile, so that none dies.
    free_bits: runner.NonNegative = 0.0  # Nats of a level's KL that cost nothing.
    spectral: runner.NonNegative = 0.0  # Weight of the kernels' largest singular values.


def build(config: Config, data: DataSet) -> HVae:
    """The hierarchical VAE of the options."""
    usual = "bernoulli" if data.shape[-1] == 1 else "logistic_mixture"
    name = usual if config.likelihood == "default" else config.likelihood
    binary = runner.choose("likelihood", name, LIKELIHOODS) == "bernoulli"
    if binary and data.shape[-1] != 1:
        raise ValueError("bits are of grey images: use --likelihood logistic_mixture.")
    likelihood = elbo.bernoulli() if binary else elbo.logistic_mixture(data.levels, data.shape[-1])
    if config.kl_balance and (config.free_bits or not config.kl_warmup):
        raise ValueError("--kl-balance goes with --kl-warmup, and without --free-bits.")
    nets, sizes = networks(config, data, likelihood.maps)
    return HVae(
        data,
        runner.make_optimizer(config.train),
        *nets,
        likelihood,
        binary,
        runner.choose("inference", config.inference, INFERENCES),
        lambda step: config.beta * warm_up(step, config.kl_warmup),
        config.free_bits,
        sizes if config.kl_balance else (),
        config.spectral,
        config.measured.temperature,
    )


Networks = tuple[nn.Module, tuple[nn.Module, ...], nn.Module]


def networks(config: Config, data: DataSet, maps: int) -> tuple[Networks, tuple[int, ...]]:
    """From the bottom up, the levels, the decoder; and how large z of each level is."""
    latents, hidden, shape = config.latents, config.hidden, data.shape
    if runner.choose("model", config.model, MODELS) == "mlp":
        levels = tuple(LevelNet(n, hidden) for n in latents)
        return (BottomUp(len(latents), hidden), levels, StateDecoder(shape, maps, hidden)), latents
    times = config.halvings
    if len(times) != len(latents) or list(times) != sorted(times, reverse=True):
        raise ValueError(
            f"--halvings has a number for each of the {len(latents)} levels, none larger than the "
            f"one before: not {', '.join(map(str, times))}."
        )
    sides = [halved((shape[0], shape[1]), n) for n in times]
    levels = tuple(
        LevelNet(n, hidden, conv, below)
        for n, below in zip(latents, [*sides[1:], sides[-1]], strict=True)
    )
    bottom, decoder = ConvBottomUp(times[::-1], hidden), ConvStateDecoder(shape, maps, hidden)
    sizes = tuple(n * math.prod(side) for n, side in zip(latents, sides, strict=True))
    return (bottom, levels, decoder), sizes


DIGITS = Config(
    train=runner.Train(
        steps=8000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=2000
    ),
    kl_warmup=4000,
)
MNIST = Config(
    train=runner.Train(
        steps=100_000,
        batch=128,
        learning_rate=2e-3,
        decay="cosine",
        ema=0.999,
        steps_per_call=50,
        log_every=500,
        checkpoint_every=10_000,
    ),
    measured=Measuring(5000, 2000),
    latents=(4, 8, 32),
    hidden=256,
    kl_warmup=10_000,
)
# For an accelerator: maps of latents, as NVAE and VDVAE have them.
CIFAR10 = Config(
    train=runner.Train(
        steps=200_000,
        batch=64,
        learning_rate=1e-3,
        warmup=1000,
        decay="cosine",
        skip=1e6,  # of nats an image
        ema=0.9995,
        log_every=200,
        checkpoint_every=10_000,
    ),
    measured=Measuring(100, 1000),
    model="conv",
    latents=(16,) * 12,
    halvings=(4,) * 2 + (3,) * 3 + (2,) * 4 + (1,) * 3,
    hidden=128,
    kl_warmup=20_000,
    kl_balance=True,
    spectral=1e-2,
)
PRESETS = runner.by_data(
    digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, binarized_mnist=MNIST, cifar10=CIFAR10
)
EXPERIMENT = runner.Experiment(
    "hvae",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, reconstructions, held_by_levels, temperatures, latents),
    measures=(bound, log_likelihood, use_of_latents, runner.quality),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
