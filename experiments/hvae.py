"""Hierarchical VAEs: levels of latents, inferred from the top down.

python -m experiments.hvae                                     # digits: train, draw, measure
python -m experiments.hvae --data mnist --manual-dir DIR       # five levels, binarized at random
python -m experiments.hvae --inference ladder                  # Sonderby et al. 2016
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.losses import elbo
from jaxgen.losses.hierarchy import precision_weighted, residual
from jaxgen.losses.latents import warm_up
from jaxgen.models.ladder import BottomUp, LevelNet, StateDecoder
from jaxgen.systems.hvae import HVae, bound, held_by_levels, log_likelihood, reconstructions
from jaxgen.systems.vae import Likelihoods

INFERENCES = {"residual": residual, "ladder": precision_weighted}


@dataclass(frozen=True)
class Config:
    """Hierarchical VAE on images."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    measured: Likelihoods = runner.measuring(Likelihoods)
    latents: Annotated[tuple[int, ...], runner.Range(1)] = (4, 8, 16)  # A level, the top first.
    hidden: runner.Count = 128  # Units of the networks, and of the state that goes down.
    # How q(z|x) of a level is made: residual (moved from p, as NVAE has it) or ladder (the product
    # of what comes from above and from below).
    inference: str = "residual"
    beta: runner.NonNegative = 1.0  # Weight of the KL.
    kl_warmup: runner.Natural = 0  # Steps in which the KL's weight rises to beta.
    free_bits: runner.NonNegative = 0.0  # Nats of a level's KL that cost nothing.


def build(config: Config, data: DataSet) -> HVae:
    """The hierarchical VAE of the options."""
    binary = data.shape[-1] == 1
    likelihood = elbo.bernoulli() if binary else elbo.logistic_mixture(data.levels, data.shape[-1])
    hidden = config.hidden
    return HVae(
        data,
        runner.make_optimizer(config.train),
        BottomUp(len(config.latents), hidden),
        tuple(LevelNet(latents, hidden) for latents in config.latents),
        StateDecoder(data.shape, likelihood.maps, hidden),
        likelihood,
        binary,
        hidden,
        runner.choose("inference", config.inference, INFERENCES),
        lambda step: config.beta * warm_up(step, config.kl_warmup),
        config.free_bits,
    )


DIGITS = Config(
    train=runner.Train(
        steps=8000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=2000
    ),
    kl_warmup=4000,
)
MNIST = Config(
    train=runner.Train(
        steps=120_000,
        batch=128,
        learning_rate=1e-3,
        decay="cosine",
        clip=100.0,
        ema=0.999,
        steps_per_call=50,
        log_every=500,
        checkpoint_every=10_000,
    ),
    measured=Likelihoods(1000, 1000),
    latents=(4, 8, 16, 32, 64),
    hidden=256,
    kl_warmup=20_000,
)
PRESETS = runner.by_data(digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, binarized_mnist=MNIST)
EXPERIMENT = runner.Experiment(
    "hvae",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, reconstructions, held_by_levels),
    measures=(bound, log_likelihood, runner.quality),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
