"""Generative adversarial networks (Goodfellow et al. 2014) with DCGAN (Radford et al. 2016).

python -m experiments.gan                    # digits: train, sample, measure, draw
python -m experiments.gan --loss minimax     # log(1 - D(G(z))) in place of the log-D trick
python -m experiments.gan --discriminator-steps 2
python -m experiments.gan --data 8gaussians  # perceptrons, for points in the plane

Expect, on digits with seed 0 on two CPU cores: 45 s, all ten classes among 500 samples, Frechet
distance 0.14 (of other 500 samples 0.10 to 0.26; test set 0.32).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points, some
from jaxgen.data.toy import DENSITIES
from jaxgen.evaluation.distances import frechet_distance
from jaxgen.evaluation.features import feature_space, features_of
from jaxgen.evaluation.latents import analogy, spherical_path
from jaxgen.evaluation.points import sliced_wasserstein
from jaxgen.losses import adversarial
from jaxgen.models.dcgan import Discriminator, Generator
from jaxgen.models.mlp import MLP
from jaxgen.plotting import save_grid
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Aux, Now, Turn

GENERATOR_LOSSES = {
    "non_saturating": adversarial.non_saturating_generator_loss,
    "minimax": adversarial.minimax_generator_loss,
}
LATENTS = 100  # Radford et al. 2016, section 4
SCORED = 500  # samples that a checkpoint is selected by


@dataclass(frozen=True)
class Config:
    """DCGAN on images, perceptrons on points."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    loss: str = "non_saturating"
    """The generator's: non_saturating (the log-D trick) or minimax."""
    discriminator_steps: runner.Count = 1
    """k, the discriminator updates for one of the generator, each on a batch of its own."""
    stages: runner.Count = 2
    """Halvings of the image in the discriminator, doublings in the generator."""
    channels: runner.Count = 64
    """Of the largest feature maps, doubled at every smaller one; units of a perceptron."""


@dataclass(frozen=True, eq=False)
class Gan(runner.System):
    """A generator of latents ``[B, Z]`` and its discriminator; batch statistics are memory."""

    generator: nn.Module
    discriminator: nn.Module
    generator_loss: Callable[[Array], Array]
    discriminator_steps: int = 1
    batch: int = 64  # of noise, for statistics

    def init(self, key: Array) -> Any:
        key_g, key_d = jax.random.split(key)
        # Running averages need no axis: the networks are initialized in evaluation mode.
        x, z = jnp.zeros((1, *self.data.shape)), jnp.zeros((1, LATENTS))
        return {
            "discriminator": self.discriminator.init(key_d, x, train=False),
            "generator": self.generator.init(key_g, z, train=False),
        }

    def turns(self) -> tuple[Turn, ...]:
        return (
            Turn("discriminator", self.judging, self.optimizer, self.discriminator_steps),
            Turn("generator", self.deceiving, self.optimizer),
        )

    def judging(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The discriminator's loss on data and on as many samples."""
        x, g = self.data.kind.values(batch["x"]), now.players["generator"]
        fake, _ = forward(self.generator, g.params, g.memory, latents(key, len(x)), now)
        # Real and fake images are normalized apart: each by the statistics of its own batch.
        real_logits, memory = forward(self.discriminator, params, now.memory, x, now)
        fake_logits, memory = forward(self.discriminator, params, memory, fake, now)
        real_logits, fake_logits = real_logits.reshape(len(x)), fake_logits.reshape(len(x))
        metrics = {
            "real_probability": jax.nn.sigmoid(real_logits),
            "fake_probability": jax.nn.sigmoid(fake_logits),
        }
        return adversarial.discriminator_loss(real_logits, fake_logits), Aux(metrics, memory)

    def deceiving(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The generator's loss on as many samples as the batch has examples."""
        count, d = len(batch["x"]), now.players["discriminator"]
        fake, memory = forward(self.generator, params, now.memory, latents(key, count), now)
        logits, _ = forward(self.discriminator, d.params, d.memory, fake, now)
        return self.generator_loss(logits.reshape(count)), Aux({}, memory)

    def settled(self, weights: Any) -> Any:
        """Running averages for the EMA parameters, which no training batch went through.

        Brock et al. 2019, appendix D: forward passes in training mode, on noise alone.
        """

        g = weights["generator"]
        return {**weights, "generator": g._replace(memory=self._settle(g.params, g.memory))}

    @cached_property
    def _settle(self) -> Callable[[Any, Any], Any]:
        def settle(params: Any, memory: Any) -> Any:
            def one(memory: Any, key: Array) -> tuple[Any, None]:
                z = latents(key, self.batch)
                return forward(self.generator, params, memory, z, Now(0, memory))[1], None

            return jax.lax.scan(one, memory, jax.random.split(jax.random.key(0), 50))[0]

        return jax.jit(settle)

    def generate(self, weights: Any, z: Array) -> Array:
        """Examples of latents ``[N, Z]`` by the averaged generator."""
        g = weights["generator"]
        x: Any = self.generator.apply({"params": g.params, **g.memory}, z, train=False)
        return x

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.generate(weights, latents(key, len(given["label"])))

    def how(self) -> str:
        return "statistics of 50 batches of noise"

    @cached_property
    def _sampler(self) -> OverRows:
        return self.sampler(jax.local_devices()[:1])

    @cached_property
    def _real_features(self) -> np.ndarray:
        return features_of(self.data, feature_space(self.data), self.data.train, 10_000)

    def score(self, weights: Any) -> float:
        """The distance of 500 samples: Frechet's of images, sliced Wasserstein of points."""
        given, key = self.data.given(SCORED), jax.random.key(1)
        x = self._sampler(self.settled(weights), key, given, SCORED)
        if isinstance(self.data.kind, Points):
            return sliced_wasserstein(x, some(self.data.validation, 5000)["x"])
        features = feature_space(self.data).features(x)
        return frechet_distance(features, self._real_features)


def latents(key: Array, count: int) -> Array:
    """z ``[count, Z]``."""
    return jax.random.normal(key, (count, LATENTS))


def forward(module: nn.Module, params: Any, memory: Any, x: Array, now: Now) -> tuple[Any, Any]:
    """What a network answers under the statistics of its batch, and new averages of these."""
    if memory:
        module = module.clone(axis_name=now.axis_name)
    return module.apply({"params": params, **memory}, x, train=True, mutable=list(memory))


def build(config: Config, data: DataSet) -> Gan:
    """The GAN of the options."""
    points = isinstance(data.kind, Points)
    if config.train.accumulate > 1 and not points:
        raise runner.Mistake("batch norm needs the whole batch: leave out --accumulate.")
    generator_loss = runner.choose("loss", config.loss, GENERATOR_LOSSES)
    if points:
        networks = MLP(data.shape[-1], config.channels), MLP(1, config.channels)
    else:
        networks = (
            Generator(data.shape, config.stages, config.channels),
            Discriminator(config.stages, config.channels),
        )
    optimizer = runner.make_optimizer(config.train)
    steps, batch = config.discriminator_steps, config.train.batch
    return Gan(data, optimizer, *networks, generator_loss, steps, batch)


# --- pictures of images ------------------------------------------------------------------------


def walks(trained: runner.Trained[Gan]) -> list[Path]:
    """``interpolations.png``: arcs between latents; ``arithmetic.png``: a is to b as c is to ..."""
    if not isinstance(trained.data.kind, Image):
        return []
    system, z = trained.system, np.asarray(latents(jax.random.fold_in(trained.key, 5), 1000))
    generate = lambda weights, key, z: system.generate(weights, z)  # noqa: E731
    draw = lambda z: trained.over("latents", generate, np.asarray(z), size=100)  # noqa: E731
    path = spherical_path(jnp.asarray(z[:10]), jnp.asarray(z[10:20]), 10).swapaxes(0, 1)
    between = draw(path.reshape(-1, LATENTS))
    files = [save_grid(trained.directory / "interpolations.png", between, 10)]
    if trained.features.classify is None:
        return files
    classes = trained.features.classify(draw(z))
    triples = {c: z[classes == c][:3] for c in range(trained.data.classes)}
    found = [zs for zs in triples.values() if len(zs) == 3]
    rows = []
    for a, b, c in list(zip(found, found[1:], found[2:], strict=False))[:5]:
        rows += [
            a.mean(axis=0),
            b.mean(axis=0),
            c.mean(axis=0),
            analogy(*map(jnp.asarray, (a, b, c))),
        ]
    if rows:
        files.append(save_grid(trained.directory / "arithmetic.png", draw(np.stack(rows)), 4))
    return files


DIGITS = Config(
    train=runner.Train(
        steps=8000, batch=64, learning_rate=2e-4, b1=0.5, ema=0.995, log_every=100,
        checkpoint_every=2000,
    ),
    channels=32,
)  # fmt: skip
MNIST = Config(
    data=runner.Data("mnist"),
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
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": replace(MNIST, data=runner.Data("fashion_mnist")),
    "cifar10": replace(MNIST, data=runner.Data("cifar10"), stages=3),
    **{name: replace(POINTS, data=runner.Data(name)) for name in DENSITIES},
}
EXPERIMENT = runner.Experiment(
    "gan",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, walks),
    measures=(runner.quality,),
    kinds=(Image, Points),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
