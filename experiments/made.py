"""Exact models of images as vectors: FVBN, NADE and MADE.

python -m experiments.made                                    # digits: MADE
python -m experiments.made --model fvbn --reach 5             # each pixel of the five before it
python -m experiments.made --model nade                       # Larochelle & Murray 2011
python -m experiments.made --orders 8                         # an ensemble of orders and masks
python -m experiments.made --data binarized_mnist --manual-dir DIR
python -m experiments.made --preset binarized_mnist_nade --manual-dir DIR
python -m experiments.made --preset binarized_mnist_made --manual-dir DIR  # as published: a GPU

Expect, on digits with seed 0 on two CPU cores: 30 s, log p(x) of the binarized test set -22.7 nats.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.losses import elbo
from jaxgen.models.made import MADE, OfVectors
from jaxgen.models.nade import FVBN, NADE
from jaxgen.systems.autoregressive import (
    Autoregressive,
    completions,
    likelihood,
    receptive_field,
    time_to_draw,
)

MODELS = ("made", "nade", "fvbn")
LIKELIHOODS = ("bernoulli", "softmax")


@dataclass(frozen=True)
class Config:
    """An exact model of images as vectors."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    model: str = "made"  # made, nade or fvbn (a fully visible belief network).
    hidden: runner.Count = 500  # Units of the hidden layers (made, nade).
    layers: runner.Count = 1  # Hidden layers (made).
    orders: runner.Natural = 0  # Random orders and masks, of which the model is a mixture (made).
    # How many pixels back each pixel sees (default: all; fvbn).
    reach: Annotated[int | None, runner.Range(1)] = None
    # bernoulli (of images binarized at random) or softmax (over levels of grey or colour).
    likelihood: str = "bernoulli"


def build(config: Config, data: DataSet) -> Autoregressive:
    """The model of the options."""
    name = runner.choose("model", config.model, MODELS)
    binary = runner.choose("likelihood", config.likelihood, LIKELIHOODS) == "bernoulli"
    if binary and data.shape[-1] != 1:
        raise ValueError("bits are of grey images: use --likelihood softmax.")
    if config.orders and name != "made":
        raise ValueError("--orders are of --model made.")
    of_entry = elbo.bernoulli() if binary else elbo.softmax(data.levels)
    networks: dict[str, Any] = {
        "made": MADE(of_entry.maps, config.hidden, config.layers, direct=True),
        "nade": NADE(of_entry.maps, config.hidden),
        "fvbn": FVBN(of_entry.maps, config.reach),
    }
    return Autoregressive(
        data,
        runner.make_optimizer(config.train),
        OfVectors(networks[name]),
        of_entry,
        binary,
        orders=config.orders,
    )


DIGITS = Config(
    train=runner.Train(
        steps=6000, batch=128, ema=0.995, steps_per_call=50, log_every=200, checkpoint_every=1500
    ),
    hidden=200,
)
MNIST = Config(
    train=runner.Train(
        steps=10_000,
        batch=128,
        decay="cosine",
        ema=0.999,
        steps_per_call=20,
        log_every=200,
        checkpoint_every=2000,
    ),
    hidden=4000,
)
NADE_MNIST = replace(
    MNIST,
    data=runner.Data("binarized_mnist"),
    train=replace(MNIST.train, learning_rate=2e-3),
    model="nade",
    hidden=500,
)
PRESETS = runner.by_data(digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, binarized_mnist=MNIST)
PRESETS["binarized_mnist_nade"] = NADE_MNIST
# Germain et al. 2015, on binarized MNIST: two layers of 8000 units, 32 masks; for an accelerator.
PRESETS["binarized_mnist_made"] = replace(
    MNIST,
    data=runner.Data("binarized_mnist"),
    train=replace(MNIST.train, steps=100_000, batch=100, learning_rate=5e-4),
    hidden=8000,
    layers=2,
    orders=32,
)
EXPERIMENT = runner.Experiment(
    "made",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, completions, receptive_field),
    measures=(likelihood, time_to_draw, runner.quality),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
