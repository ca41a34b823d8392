"""Classes from few labels: a VAE whose class is a latent where it is not known (M2).

python -m experiments.semi_supervised                               # digits, 100 labels
python -m experiments.semi_supervised --labels 50
python -m experiments.semi_supervised --data mnist --manual-dir DIR

Kingma et al. 2014 ("Semi-supervised learning with deep generative models"). Every example of a
batch is a pair: one that has a label, and one that has none.

Expect, on digits with 100 labels, seed 0 and --steps 3000 on two CPU cores: 2 minutes, 93.3 % of
the test set right (an SVM of the 100 alone: 90.8 %).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.data.sources import load
from jaxgen.models.mlp import MLP
from jaxgen.systems.semi_supervised import (
    SemiSupervised,
    accuracy,
    classes,
    latents_used,
    with_few_labels,
)

from . import vae


@dataclass(frozen=True)
class Data(runner.Data):
    """Which data, and how many of its labels."""

    labels: runner.Count = 100  # Training examples whose class is known, as many of each.


@dataclass(frozen=True)
class Config:
    """M2 on images."""

    data: Data = field(default_factory=Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    latents: runner.Count = 10  # Dimensions of z.
    hidden: runner.Count = 400  # Units of the hidden layers.
    alpha: runner.NonNegative = 50.0  # Weight of the classifier's cross-entropy.


def build(config: Config, data: DataSet) -> SemiSupervised:
    """M2 of the options."""
    options = vae.Config(latents=config.latents, hidden=config.hidden, conditional=True)
    optimizer = runner.make_optimizer(config.train)
    conditional = replace(vae.build(options, data), optimizer=optimizer)
    classifier = MLP(data.classes, config.hidden, 1)
    return SemiSupervised(data, optimizer, conditional, classifier, config.alpha)


def few_labels(options: Data) -> DataSet:
    """The data of the options."""
    how = {("name" if k == "data" else k): v for k, v in vars(options).items() if k != "labels"}
    return with_few_labels(load(**how), options.labels)


DIGITS = Config(
    train=runner.Train(
        steps=4000, batch=64, ema=0.995, steps_per_call=20, log_every=100, checkpoint_every=1000
    ),
)
MNIST = replace(
    DIGITS,
    train=replace(DIGITS.train, steps=10_000, ema=0.999, checkpoint_every=2500),
    latents=20,
)
EXPERIMENT = runner.Experiment(
    "semi_supervised",
    __doc__,
    runner.by_data(digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST),
    build,
    pictures=(runner.samples, classes),
    measures=(accuracy, latents_used),
    load=few_labels,
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
