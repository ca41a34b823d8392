"""A generator and its discriminator, who move in turns (Goodfellow et al. 2014).

``experiments.gan`` is its options.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Image, Points, some
from jaxgen.evaluation.distances import frechet_distance
from jaxgen.evaluation.features import feature_space, features_of
from jaxgen.evaluation.latents import analogy, spherical_path
from jaxgen.evaluation.points import sliced_wasserstein
from jaxgen.losses import adversarial
from jaxgen.plotting import save_grid
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Aux, Now, Turn

LATENTS = 100  # Radford et al. 2016, section 4
SCORED = 500  # samples that a checkpoint is selected by


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


def features(system: Gan, weights: Any, key: Array, batch: Any) -> Array:
    """What the averaged discriminator's last layer sees of images, ``[B, F]``.

    Radford et al. 2016, section 5.1, take the maps of all layers; these are the last one's alone.
    """
    d, x = weights["discriminator"], system.data.kind.values(batch["x"])
    variables = {"params": d.params, **d.memory}
    kept: Any
    _, kept = system.discriminator.apply(variables, x, train=False, mutable=["intermediates"])
    (found,) = kept["intermediates"]["features"]
    return found


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
    files = [save_grid(trained.results / "interpolations.png", between, 10)]
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
        files.append(save_grid(trained.results / "arithmetic.png", draw(np.stack(rows)), 4))
    return files
