"""Generative adversarial networks: any objective with any architecture, told the class or not.

python -m experiments.gan                        # digits: DCGAN (Radford et al. 2016)
python -m experiments.gan --objective minimax    # log(1 - D(G(z))) in place of the log-D trick
python -m experiments.gan --objective wasserstein --penalty wgan_gp --discriminator-steps 5
python -m experiments.gan --objective hinge --spectral-norm discriminator
python -m experiments.gan --condition projection # draws the class that is asked for
python -m experiments.gan --architecture small_biggan --latents 60 --condition projection
python -m experiments.gan --architecture progressive --objective wasserstein --penalty wgan_gp
python -m experiments.gan --architecture style --penalty r1 --path-length 0.5
python -m experiments.gan --preset cifar10_sngan --manual-dir DIR
python -m experiments.gan --data 8gaussians      # perceptrons, for points in the plane

Expect, on digits with seed 0 on two CPU cores: 97 s, all ten classes among 500 samples, Frechet
distance 0.21 (test set 0.32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import optax
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points
from jaxgen.losses import adversarial, augmentation, f_divergences, penalties
from jaxgen.losses.adversarial import Objective, least_squares, relativistic_average
from jaxgen.losses.began import BEGAN
from jaxgen.losses.f_divergences import f_gan
from jaxgen.models import began, dcgan, progressive, resnet_gan, style
from jaxgen.models.discriminator import (
    Auxiliary,
    Concatenated,
    Discriminator,
    Linear,
    Minibatch,
    Projection,
    Reconstructing,
)
from jaxgen.models.mlp import MLP, Hidden
from jaxgen.systems import terms
from jaxgen.systems.exploration import arcs, arithmetic, directions, projections, truncation
from jaxgen.systems.gan import Adaptive, Gan, Growth
from jaxgen.training.step import clipped_weights

OBJECTIVES = {
    "non_saturating": adversarial.NON_SATURATING,
    "minimax": adversarial.MINIMAX,
    "least_squares": least_squares(),
    "wasserstein": adversarial.WASSERSTEIN,
    "hinge": adversarial.HINGE,
    "relativistic": relativistic_average(adversarial.discriminator_loss),
    "relativistic_squares": relativistic_average(least_squares(-1, 1).critic),
    "relativistic_hinge": relativistic_average(adversarial.hinge_critic_loss),
    "kl": f_gan(f_divergences.KL),
    "reverse_kl": f_gan(f_divergences.REVERSE_KL),
    "pearson": f_gan(f_divergences.PEARSON),
    "hellinger": f_gan(f_divergences.SQUARED_HELLINGER),
    "jensen_shannon": f_gan(f_divergences.JENSEN_SHANNON),
    "began": BEGAN,
}
PENALTIES = {
    "none": None,
    "wgan_gp": penalties.wgan_gp,
    "wgan_lp": penalties.wgan_lp,
    "zero_centred": penalties.zero_centred,
    "r1": penalties.r1,
    "r2": penalties.r2,
    "dragan": penalties.dragan(0.5),
}
AUGMENTATIONS = {
    "none": (),
    "diff": augmentation.DIFF,
    "colour": (augmentation.colour,),
    "translation": (augmentation.translation,),
    "cutout": (augmentation.cutout,),
}
# Those whose logits are 0 where data and samples are as likely.
EVEN_AT_ZERO = (
    "non_saturating", "minimax", "hinge", "reverse_kl", "pearson", "hellinger", "jensen_shannon",
)  # fmt: skip


@dataclass(frozen=True)
class Config:
    """DCGAN on images, perceptrons on points."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    # non_saturating (the log-D trick), minimax, least_squares, wasserstein, hinge, relativistic,
    # relativistic_squares, relativistic_hinge, of f-GAN kl, reverse_kl, pearson, hellinger or
    # jensen_shannon, or began, whose discriminator is an autoencoder.
    objective: str = "non_saturating"
    # How far below 1 the label of data is in the discriminator's loss (logistic or least squares).
    label_smoothing: runner.Share = 0.0
    # On the discriminator's slopes: none, wgan_gp, wgan_lp (one-sided), zero_centred, r1, r2 or
    # dragan. It takes out the discriminator's batch norm.
    penalty: str = "none"
    penalty_weight: runner.NonNegative = 10.0  # lambda of wgan_gp, gamma of r1 and r2.
    penalty_every: runner.Count = 1  # Steps from one to the next, which weighs as much more.
    # Divide kernels by their largest singular values: none, discriminator (without its batch norm)
    # or both.
    spectral_norm: str = "none"
    # Clip the discriminator's weights to so much after each update (the first WGAN: 0.01).
    clip_weights: Annotated[float | None, runner.Range(0)] = None
    # What the discriminator sees of images: none, diff (the three that follow), colour, translation
    # or cutout.
    augment: str = "none"
    adaptive: bool = False  # By a chance that rises while the discriminator overfits (ADA).
    # Weight of saying the same of images and of these augmented, for which it takes the
    # augmentation.
    consistency: runner.NonNegative = 0.0
    # Std of the noise in all that the discriminator sees, which falls to 0 at the last step.
    instance_noise: runner.NonNegative = 0.0
    minibatch: bool = False  # Let the discriminator see how alike the examples of a batch are.
    pool: runner.Natural = 0  # Samples of before to keep, of which half a batch is shown.
    # Weight of both players' distance to the mean of their past.
    averaging: runner.NonNegative = 0.0
    # Weight of both players' filters that are not orthogonal.
    orthogonality: runner.NonNegative = 0.0
    # Weight of the distance of mean features, for the generator.
    matching: runner.NonNegative = 0.0
    # Weight of making the same of two latents, for the generator.
    seeking: runner.NonNegative = 0.0
    # How both are told the class: none, concatenation, projection (the discriminator by products of
    # features) or auxiliary (it says the class).
    condition: str = "none"
    # Its learning rate, where that is not the generator's (two time scales).
    discriminator_rate: Annotated[float | None, runner.Range(0)] = None
    # k, the discriminator updates for one of the generator, each on a batch of its own.
    discriminator_steps: runner.Count = 1
    # Of images: dcgan, sngan and biggan (of 32x32), sagan (of 128x128), small_biggan (with
    # attention), progressive (which grows) or style (StyleGAN2). Points have perceptrons.
    architecture: str = "dcgan"
    latents: runner.Count = 100  # Size of z.
    # Halvings of the image in the discriminator, doublings in the generator (dcgan, began).
    stages: runner.Count = 2
    # Channels of the largest feature maps, of which smaller ones have more; units of a perceptron.
    channels: runner.Count = 64
    widest: runner.Count = 512  # Feature maps there are at most (progressive, style).
    # Steps from one doubling of the image to the next, half of which fade it in (progressive).
    grow_every: runner.Count = 2000
    mixing: runner.Share = 0.0  # Of samples in training that mix two w, in the paper 0.9 (style).
    # Weight of steps in w that change images unevenly, every fourth step, for the generator
    # (style); in the paper 0.5 for images of 8x8, 0.11 for 1024x1024.
    path_length: runner.NonNegative = 0.0


def build(config: Config, data: DataSet) -> Gan:
    """The GAN of the options."""
    points = isinstance(data.kind, Points)
    of_images = None if points else config.architecture  # points have perceptrons
    if config.train.accumulate > 1 and not points:
        raise runner.Mistake(
            "batch norm and what tells how a batch differs need all of it: leave out --accumulate."
        )
    half = config.train.batch // 2
    if 0 < config.pool < half:
        raise runner.Mistake(f"half a batch is drawn of --pool: use 0, or {half} or more.")
    if config.pool and config.condition != "none":
        raise runner.Mistake("a pool knows no classes: leave out --condition, or --pool.")
    if of_images == "progressive" and config.train.decay != "none":
        raise runner.Mistake("every stage begins with a new optimizer: leave out --decay.")
    if config.condition != "none" and data.classes < 2:
        raise runner.Mistake(f"--condition needs classes, and {data.name} has none of them.")
    scaled = config.spectral_norm != "none" or config.orthogonality
    if scaled and of_images in ("progressive", "style"):
        raise runner.Mistake(
            "equalized layers have their own scale: leave out --spectral-norm and --orthogonality."
        )
    if (config.path_length or config.mixing) and of_images != "style":
        raise runner.Mistake(
            "--path-length and --mixing are of images by --architecture style: leave them out."
        )
    tables = config.architecture in ("sngan", "sagan") and config.condition != "none"
    if config.spectral_norm == "both" and tables:
        raise runner.Mistake("tables of classes have no norm: use --spectral-norm discriminator.")
    networks = networks_of(config, data)
    normed = {"none": (), "discriminator": ("discriminator",)}
    normed["both"] = ("discriminator", "generator")
    generator, discriminator = networks(0)
    return Gan(
        data,
        runner.make_optimizer(config.train),
        generator,
        discriminator,
        objective_of(config),
        discriminator_optimizer(config),
        config.discriminator_steps,
        discriminator_terms(config),
        generator_terms(config),
        runner.choose("spectral norm", config.spectral_norm, normed),
        augmentation_of(config, points),
        Adaptive() if config.adaptive else None,
        config.pool,
        config.condition != "none",
        growth_of(config, data, networks),
        latents=config.latents,
        batch=config.train.batch,
    )


Networks = Callable[[int], tuple[nn.Module, nn.Module]]  # stage -> generator, discriminator


def networks_of(config: Config, data: DataSet) -> Networks:
    """A generator and a discriminator, of a body and a head; or an autoencoder."""
    channels, widest = config.channels, config.widest
    conditions = ("none", "concatenation", "projection", "auxiliary")
    told = runner.choose("condition", config.condition, conditions) != "none"
    points = isinstance(data.kind, Points)
    if config.objective == "began":
        if told or config.minibatch:
            raise runner.Mistake("an autoencoder has no head: leave out --condition, --minibatch.")
        if config.architecture != Config().architecture:
            raise runner.Mistake("began has networks of its own: leave out --architecture.")
        return lambda stage: autoencoding(config, data)
    normed = config.penalty == "none" and config.spectral_norm == "none"
    classes = data.classes if told else None
    of_images: dict[str, Networks] = {
        "dcgan": lambda stage: (
            dcgan.Generator(data.shape, config.stages, channels),
            dcgan.Body(config.stages, channels, normed),
        ),
        "sngan": lambda stage: resnet_gan.sngan(data.shape, classes, channels),
        "sagan": lambda stage: resnet_gan.sagan(data.shape, classes, channels),
        "biggan": lambda stage: resnet_gan.biggan_32(data.shape, classes, channels),
        "small_biggan": lambda stage: resnet_gan.small_biggan(data.shape, classes, channels),
        "progressive": lambda stage: (
            progressive.Generator(data.shape, stage, channels, widest, classes),
            progressive.Body(stage, channels, widest),
        ),
        "style": lambda stage: (
            style.Generator(
                data.shape, channels, widest, widest, num_classes=classes, mixing=config.mixing
            ),
            style.Body(channels, widest),
        ),
    }
    make = runner.choose("architecture", config.architecture, of_images)
    if points:
        make = lambda stage: (MLP(data.shape[-1], channels), Hidden(channels))  # noqa: E731
    # All others tell the class to every block themselves.
    embeds = not points and config.architecture != "dcgan"
    init = dcgan.INIT if not (points or embeds) else nn.initializers.lecun_normal()
    linear = Linear(init)
    heads: dict[str, nn.Module] = {
        "none": linear,
        "concatenation": linear,
        "projection": Projection(data.classes, init),
        "auxiliary": Auxiliary(data.classes, init),
    }

    def networks(stage: int) -> tuple[nn.Module, nn.Module]:
        generator, body = make(stage)
        if told and not embeds:
            generator = Concatenated(generator, data.classes)
        if config.condition == "concatenation":
            body = Concatenated(body, data.classes)
        among = Minibatch() if config.minibatch else None
        return generator, Discriminator(body, heads[config.condition], among)

    return networks


def autoencoding(config: Config, data: DataSet) -> tuple[nn.Module, nn.Module]:
    """BEGAN's networks: the discriminator is an autoencoder of codes as many as latents."""
    if isinstance(data.kind, Points):
        decoder: nn.Module = MLP(data.shape[-1], config.channels)
        encoder: nn.Module = MLP(config.latents, config.channels)
    else:
        decoder = began.Decoder(data.shape, config.stages, config.channels)
        encoder = began.Encoder(config.latents, config.stages, config.channels)
    return decoder, Reconstructing(encoder, decoder.clone())


def growth_of(config: Config, data: DataSet, networks: Networks) -> Growth | None:
    """The stages of what grows, those that the steps of the run come to."""
    if config.architecture != "progressive" or isinstance(data.kind, Points):
        return None
    count, every = len(progressive.map_sizes(data.shape)), config.grow_every
    starts = tuple(range(0, min(config.train.steps, count * every), every))
    return Growth(starts, max(every // 2, 1), networks)


def discriminator_terms(config: Config) -> tuple[terms.Term, ...]:
    """What the discriminator descends beside its objective."""
    penalty = runner.choose("penalty", config.penalty, PENALTIES)
    found = []
    if penalty is not None:
        found.append(terms.slope_penalty(penalty, config.penalty_weight, config.penalty_every))
    if config.consistency:
        if config.augment == "none":
            raise runner.Mistake("--consistency is of augmented images: name them by --augment.")
        augment = augmentation.in_order(*AUGMENTATIONS[config.augment])
        found.append(terms.consistency(augment, config.consistency))
    if config.condition == "auxiliary":
        found.append(terms.classes_of_both(1.0))
    if config.objective == "began":
        found.append(terms.equilibrium())
    return (*found, *either_terms(config))


def generator_terms(config: Config) -> tuple[terms.Term, ...]:
    """What the generator descends beside its objective."""
    found = []
    if config.matching:
        found.append(terms.matching(config.matching))
    if config.seeking:
        found.append(terms.seeking(config.seeking))
    if config.condition == "auxiliary":
        found.append(terms.classes_of_fakes(1.0))
    if config.path_length:
        found.append(terms.paths(config.path_length))
    return (*found, *either_terms(config))


def either_terms(config: Config) -> list[terms.Term]:
    """What both players descend beside their objectives."""
    weights = {terms.averaging: config.averaging, terms.orthogonal: config.orthogonality}
    return [term(weight) for term, weight in weights.items() if weight]


def objective_of(config: Config) -> Objective:
    """What both players minimize."""
    objective = runner.choose("objective", config.objective, OBJECTIVES)
    target = 1 - config.label_smoothing
    if not config.label_smoothing:
        return objective
    if objective.probability is not None:
        return objective._replace(critic=adversarial.smoothed_discriminator_loss(target))
    if config.objective == "least_squares":
        return least_squares(real=target)
    raise runner.Mistake(
        "--label-smoothing is of non_saturating, minimax and least_squares: leave it out."
    )


def discriminator_optimizer(config: Config) -> Any:
    """Adam at a rate of its own, and weights clipped after it, where the options say so."""
    train, k = config.train, config.discriminator_steps
    # its schedule is in updates, of which it makes k a step
    train = replace(train, steps=k * train.steps, warmup=k * train.warmup)
    if config.discriminator_rate is not None:
        train = replace(train, learning_rate=config.discriminator_rate)
    adam = runner.make_optimizer(train)
    if config.clip_weights is None:
        return adam
    return optax.chain(adam, clipped_weights(config.clip_weights))


def augmentation_of(
    config: Config, points: bool
) -> Callable[[Array | int], tuple[augmentation.Augmentation, ...]] | None:
    """What the discriminator sees at a step."""
    augment = runner.choose("augmentation", config.augment, AUGMENTATIONS)
    if augment and points:
        raise runner.Mistake("--augment is of images: use --instance-noise for points.")
    if config.adaptive and (not augment or config.consistency or config.instance_noise):
        raise runner.Mistake(
            "--adaptive is of what --augment names, without --consistency and --instance-noise."
        )
    if config.adaptive and (config.objective not in EVEN_AT_ZERO or config.label_smoothing):
        raise runner.Mistake(
            "--adaptive reads the sign of D's logits, which says something of these objectives "
            f"alone, without --label-smoothing: {', '.join(EVEN_AT_ZERO)}."
        )
    if config.consistency:  # which shows both what is augmented and what is not
        augment = ()
    if not config.instance_noise:
        return (lambda step: augment) if augment else None

    def at(step: Array | int) -> tuple[augmentation.Augmentation, ...]:
        std = augmentation.annealed(config.instance_noise, step, config.train.steps)
        return (*augment, augmentation.instance_noise(std))

    return at


DIGITS = Config(
    train=runner.Train(
        steps=8000, batch=64, learning_rate=2e-4, b1=0.5, ema=0.995, log_every=100,
        checkpoint_every=2000,
    ),
    channels=32,
)  # fmt: skip
MNIST = Config(
    train=runner.Train(
        steps=20_000, batch=128, learning_rate=2e-4, b1=0.5, ema=0.999, checkpoint_every=2000
    ),
)
POINTS = Config(
    train=runner.Train(
        steps=10_000, batch=256, learning_rate=1e-3, b1=0.5, ema=0.999, steps_per_call=50,
        log_every=250, checkpoint_every=2500,
    ),
    sampling=runner.Sampling(2048, 2048),
    channels=128,
)  # fmt: skip
CIFAR10 = replace(MNIST, stages=3)
# Miyato et al. 2018, table 4 and appendix B.2 (5 updates); decay and average are ours.
SNGAN = Config(
    data=runner.Data("cifar10"),
    train=runner.Train(
        steps=100_000, batch=64, learning_rate=2e-4, b1=0.0, b2=0.9, decay="linear", ema=0.9999,
        log_every=100, checkpoint_every=5000,
    ),
    objective="hinge",
    spectral_norm="discriminator",
    discriminator_steps=5,
    architecture="sngan",
    latents=128,
    channels=128,
)  # fmt: skip
# Brock et al. 2019 tell CIFAR-10's in part (appendix C.2); the rest is ours.
BIGGAN = replace(
    SNGAN,
    train=replace(SNGAN.train, steps=125_000, batch=50, b2=0.999, decay="none"),
    condition="projection",
    spectral_norm="both",
    discriminator_steps=4,
    architecture="biggan",
    latents=80,
    channels=64,
)
SMALL = runner.Train(
    steps=4000, batch=32, learning_rate=2e-4, b1=0.0, b2=0.9, ema=0.995, log_every=50,
    checkpoint_every=500,
)  # fmt: skip
PRESETS = runner.by_data(
    digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST, cifar10=CIFAR10, points=POINTS
)
PRESETS |= {
    "cifar10_sngan": SNGAN,
    "cifar10_biggan": BIGGAN,
    "cifar10_small_sngan": replace(SNGAN, train=SMALL, discriminator_steps=1, channels=32),
    "cifar10_small_biggan": replace(
        BIGGAN, train=SMALL, discriminator_steps=1, channels=16, latents=60,
        architecture="small_biggan",
    ),
}  # fmt: skip
EXPERIMENT = runner.Experiment(
    "gan",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, arcs, arithmetic, directions, projections, truncation),
    measures=(runner.quality,),
    kinds=(Image, Points),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
