"""Autoencoders: linear, deep, denoising, sparse and contractive (Hinton & Salakhutdinov 2006).

python -m experiments.autoencoder                         # digits: train, measure, draw
python -m experiments.autoencoder --layers 0 --learning-rate 0.02  # linear: the space of PCA
python -m experiments.autoencoder --masking 0.3           # denoising (Vincent et al. 2008)
python -m experiments.autoencoder --code sigmoid --latents 100 --sparse 1  # (Ng 2011)
python -m experiments.autoencoder --code sigmoid --contractive 1  # (Rifai et al. 2011)
python -m experiments.autoencoder --data mnist --manual-dir DIR
python -m experiments.autoencoder --data moons            # a curve through points in the plane

`codes.png` shows test examples by their codes, by PCA and by kernel PCA.

There is no prior: samples are decoded draws of a normal fitted to the training set's codes, and
show why a VAE has one (`experiments.representations` has the two side by side). Penalties can be
evaded by small codes that a large decoder undoes: --weight-decay holds against that.

Expect, on digits with seed 0 on two CPU cores: 30 s, test error 0.041 an entry (10 principal
components 0.078) and 94% of the test set by a linear probe of 10 latents (components 93%, pixels
97%); linear: 0.078, the space of PCA within 0.2 degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points
from jaxgen.losses.reconstruction import (
    absolute_sum,
    add_noise,
    contraction,
    mask,
    mean_activation_kl,
)
from jaxgen.models.vae import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from jaxgen.systems.autoencoder import (
    Autoencoder,
    Corruption,
    Penalty,
    code,
    errors,
    interpolations,
    linear,
    probes,
    reconstructions,
    scatter,
)

MODELS = {"mlp": (MLPEncoder, MLPDecoder), "conv": (ConvEncoder, ConvDecoder)}
CODES = {"linear": linear, "sigmoid": jax.nn.sigmoid}


@dataclass(frozen=True)
class Config:
    """Autoencoder of images or points."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    model: str = "mlp"  # mlp or conv.
    latents: runner.Count = 10  # Entries of the code.
    hidden: runner.Count = 400  # Units of the hidden layers.
    # Hidden layers of the encoder and of the decoder (mlp); 0 is a linear autoencoder.
    layers: runner.Natural = 1
    code: str = "linear"  # linear, or sigmoid: in (0, 1).
    masking: runner.Share = 0.0  # Share of entries that are hidden from the encoder: denoising.
    noise: runner.NonNegative = 0.0  # Std of normal noise on what the encoder sees: denoising.
    sparse: runner.NonNegative = 0.0  # Weight of the KL of mean activations (of a sigmoid code).
    sparsity: runner.Share = 0.05  # Mean activation that sparse asks for.
    absolute: runner.NonNegative = 0.0  # Weight of the sum of the code's absolute values (L1).
    contractive: runner.NonNegative = 0.0  # Weight of the encoder's squared Jacobian.


def build(config: Config, data: DataSet) -> Autoencoder:
    """The autoencoder of the options."""
    encoder_type, decoder_type = runner.choose("model", config.model, MODELS)
    if config.model == "conv" and not isinstance(data.kind, Image):
        raise ValueError("--model conv is for images: use mlp.")
    layers = {"layers": config.layers} if config.model == "mlp" else {}
    size = {"hidden": config.hidden, **layers}
    squash = runner.choose("code", config.code, CODES)
    return Autoencoder(
        data,
        runner.make_optimizer(config.train),
        encoder_type(config.latents, head=code, **size),
        decoder_type(data.shape, **size),
        config.latents,
        squash,
        corruption_of(config, data),
        penalties_of(config, squash),
    )


def asked(weight: float | Array) -> bool:
    """Whether it is not zero; one that is swept has no one value, and is."""
    return not isinstance(weight, int | float) or weight > 0


def corruption_of(config: Config, data: DataSet) -> Corruption | None:
    """What is done to the inputs in training: noise is added, then entries are hidden."""
    blank = -1.0 if isinstance(data.kind, Image) else 0.0  # black
    if not asked(config.noise) and not asked(config.masking):
        return None

    def corrupt(key: Array, x: Array) -> Array:
        key_noise, key_mask = jax.random.split(key)
        return mask(key_mask, add_noise(key_noise, x, config.noise), config.masking, blank)

    return corrupt


def penalties_of(config: Config, squash: Callable[[Array], Array]) -> dict[str, Penalty]:
    """What is added to the error."""
    if asked(config.sparse) and config.code != "sigmoid":
        raise ValueError("--sparse is of activations in (0, 1): use --code sigmoid, or --absolute.")
    found = {
        "sparse": Penalty(
            config.sparse, lambda features, x: mean_activation_kl(features(x), config.sparsity)
        ),
        "absolute": Penalty(config.absolute, lambda features, x: absolute_sum(squash(features(x)))),
        "contractive": Penalty(
            config.contractive,
            lambda features, x: contraction(lambda x: squash(features(x)), x),
        ),
    }
    return {name: penalty for name, penalty in found.items() if asked(penalty.weight)}


DIGITS = Config(
    train=runner.Train(
        steps=4000,
        batch=128,
        decay="cosine",
        ema=0.995,
        steps_per_call=50,
        log_every=200,
        checkpoint_every=2000,
    )
)
MNIST = replace(
    DIGITS,
    train=replace(DIGITS.train, steps=8600, ema=0.999, steps_per_call=20, checkpoint_every=2140),
    latents=20,
)
CIFAR10 = Config(
    train=runner.Train(
        steps=20_000, batch=128, decay="cosine", ema=0.999, log_every=100, checkpoint_every=2000
    ),
    model="conv",
    latents=128,
)
POINTS = replace(
    DIGITS,
    latents=1,
    hidden=200,
    layers=2,
    sampling=runner.Sampling(2048, 2048),
)
PRESETS = runner.by_data(
    digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, cifar10=CIFAR10, points=POINTS
)
EXPERIMENT = runner.Experiment(
    "autoencoder",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, reconstructions, interpolations, scatter),
    measures=(errors, probes, runner.quality),
    kinds=(Image, Points),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
