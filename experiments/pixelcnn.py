"""Exact models of images by masked convolutions: PixelCNN, gated PixelCNN, PixelRNN, PixelCNN++.

python -m experiments.pixelcnn                                # digits: the gated one
python -m experiments.pixelcnn --model plain                  # with its blind spot
python -m experiments.pixelcnn --model rnn                    # LSTMs that go down row by row
python -m experiments.pixelcnn --model plusplus --layers 1    # at two resolutions (PixelCNN++)
python -m experiments.pixelcnn --conditional                  # p(x|y)
python -m experiments.pixelcnn --data binarized_mnist --manual-dir DIR
python -m experiments.pixelcnn --preset binarized_mnist_pixelcnn --manual-dir DIR  # a GPU
python -m experiments.pixelcnn --data cifar10                 # PixelCNN++ as published: a GPU
python -m experiments.pixelcnn --preset cifar10_small         # a small one, for two CPU cores

Expect, on digits (17 levels) with seed 0 on two CPU cores: 2.11 bits a dimension, Frechet distance
0.37. Of binarized_mnist -82.45 nats, after 123 minutes of one core (in validation -83.4 after 28
minutes; without its maps of places -86.1 after 49). Of cifar10_small 3.77 bits a dimension after 38
minutes of one core.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.losses import elbo
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN, PixelCNNpp, PixelRNN
from jaxgen.systems.autoregressive import (
    Autoregressive,
    completions,
    likelihood,
    receptive_field,
    time_to_draw,
)

LIKELIHOODS = ("bernoulli", "softmax", "logistic_mixture")


@dataclass(frozen=True)
class Config:
    """An exact model of images by masked convolutions."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    model: str = "gated"  # gated, plain, rnn or plusplus.
    width: runner.Count = 32  # Channels of the features.
    layers: runner.Count = 5  # Layers; of plusplus at each resolution, down and up.
    kernel: runner.Count = 3  # Side of the convolutions, an odd number (gated).
    places: bool = False  # Learn what is usual at each place of the image (gated).
    resolutions: runner.Count = 2  # Each half of the one before (plusplus).
    dropout: runner.Share = 0.0  # In the residual blocks (plusplus).
    conditional: bool = False  # Tell the class.
    # bernoulli (of images binarized at random), softmax (over levels) or logistic_mixture (whose
    # channels are coupled, so that the network takes a pixel as one).
    likelihood: str = "softmax"
    components: runner.Count = 5  # Of logistic_mixture.


def build(config: Config, data: DataSet) -> Autoregressive:
    """The model of the options."""
    name = runner.choose("likelihood", config.likelihood, LIKELIHOODS)
    if name == "bernoulli" and data.shape[-1] != 1:
        raise ValueError("bits are of grey images: use --likelihood softmax.")
    colours = data.shape[-1]
    of_entry = {
        "bernoulli": elbo.bernoulli,
        "softmax": lambda: elbo.softmax(data.levels),
        "logistic_mixture": lambda: elbo.logistic_mixture(data.levels, colours, config.components),
    }[name]()
    channels = 1 if name == "logistic_mixture" else colours
    if config.width % (2 * channels):
        raise ValueError(f"--width is divided among {2 * channels}: use a multiple of it.")
    if config.kernel % 2 == 0 or config.kernel == 1:
        raise ValueError(f"a kernel has a middle and sides: use --kernel 3, not {config.kernel}.")
    size = (of_entry.maps, channels, config.width, config.layers)
    networks: dict[str, Any] = {
        "gated": GatedPixelCNN(*size, config.kernel, config.places),
        "plain": PixelCNN(*size),
        "rnn": PixelRNN(*size),
        "plusplus": PixelCNNpp(*size, config.resolutions, config.dropout),
    }
    return Autoregressive(
        data,
        runner.make_optimizer(config.train),
        runner.choose("model", config.model, networks),
        of_entry,
        name == "bernoulli",
        runner.classes_told(config.conditional, data),
    )


DIGITS = Config(
    train=runner.Train(steps=2000, batch=64, ema=0.99, log_every=50, checkpoint_every=500),
)
MNIST = Config(
    train=runner.Train(
        steps=26_000,
        batch=16,
        learning_rate=2e-3,
        decay="cosine",
        ema=0.999,
        log_every=100,
        checkpoint_every=2000,
    ),
    kernel=5,
    places=True,
    likelihood="bernoulli",
)
# Salimans et al. 2017, section 3.1, but for the learning rate, which falls by 5e-6 of itself a step
# there.
CIFAR10 = Config(
    train=runner.Train(
        steps=300_000,
        batch=64,
        decay="cosine",
        ema=0.9995,
        log_every=100,
        checkpoint_every=5000,
    ),
    model="plusplus",
    width=160,
    layers=5,
    resolutions=3,
    dropout=0.5,
    likelihood="logistic_mixture",
    components=10,
)
CIFAR10_SMALL = Config(
    data=runner.Data(data="cifar10"),
    train=runner.Train(
        steps=3000,
        batch=16,
        learning_rate=2e-3,
        decay="cosine",
        ema=0.998,
        log_every=50,
        checkpoint_every=500,
    ),
    model="plusplus",
    layers=1,
    resolutions=3,
    likelihood="logistic_mixture",
)
PRESETS = runner.by_data(
    digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, binarized_mnist=MNIST, cifar10=CIFAR10
)
PRESETS["cifar10_small"] = CIFAR10_SMALL
# van den Oord et al. 2016, table 4: 81.3 nats. The sizes are those of the 7-layer diagonal BiLSTM
# there, in batches of 16 (section 5.1): those of the PixelCNN on MNIST are not told.
PRESETS["binarized_mnist_pixelcnn"] = replace(
    MNIST,
    data=runner.Data("binarized_mnist"),
    train=replace(MNIST.train, steps=300_000, learning_rate=1e-3, ema=0.9995),
    model="plain",
    layers=7,
    kernel=3,
    places=False,
)
EXPERIMENT = runner.Experiment(
    "pixelcnn",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, completions, receptive_field),
    measures=(likelihood, time_to_draw, runner.quality),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
