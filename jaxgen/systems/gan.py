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
from jaxgen.losses.adversarial import Objective
from jaxgen.losses.augmentation import Augmentation
from jaxgen.losses.penalties import Penalty
from jaxgen.losses.regularization import power_vectors, spectrally_normalized
from jaxgen.plotting import save_grid
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Aux, Now, Turn

LATENTS = 100  # Radford et al. 2016, section 4
SCORED = 500  # samples that a checkpoint is selected by
SPECTRAL = "spectral"  # in the discriminator's memory: vectors of the power iteration


@dataclass(frozen=True, eq=False)
class Gan(runner.System):
    """A generator of latents ``[B, Z]`` and its discriminator.

    Batch statistics are memory, and so are the vectors of the power iteration.
    """

    generator: nn.Module
    discriminator: nn.Module
    objective: Objective
    discriminator_optimizer: Any
    discriminator_steps: int = 1
    penalty: Penalty | None = None  # on a discriminator that judges each example by itself
    penalty_weight: float = 1.0
    spectral_norm: bool = False  # of the discriminator's kernels: each divided by its own
    # At a step: what the discriminator sees of data and samples.
    augmentation: Callable[[Array | int], Augmentation] | None = None
    batch: int = 64  # of noise, for statistics

    def init(self, key: Array) -> Any:
        key_g, key_d = jax.random.split(key)
        # Running averages need no axis: the networks are initialized in evaluation mode.
        x, z = jnp.zeros((1, *self.data.shape)), jnp.zeros((1, LATENTS))
        discriminator: Any = self.discriminator.init(key_d, x, train=False)
        if self.spectral_norm:
            vectors = power_vectors(jax.random.fold_in(key_d, 1), discriminator["params"])
            discriminator = {**discriminator, SPECTRAL: vectors}
        return {
            "discriminator": discriminator,
            "generator": self.generator.init(key_g, z, train=False),
        }

    def turns(self) -> tuple[Turn, ...]:
        optimizer, times = self.discriminator_optimizer, self.discriminator_steps
        return (
            Turn("discriminator", self.judging, optimizer, times),
            Turn("generator", self.deceiving, self.optimizer),
        )

    def seen(self, key: Array, x: Array, now: Now) -> Array:
        """What the discriminator is shown of examples."""
        return x if self.augmentation is None else self.augmentation(now.step)(key, x)

    def judging(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The discriminator's loss on data and on as many samples."""
        x, g = self.data.kind.values(batch["x"]), now.players["generator"]
        keys = jax.random.split(jax.random.fold_in(key, 1), 3)
        fake, _ = forward(self.generator, g.params, g.memory, latents(key, len(x)), now)
        x, fake = self.seen(keys[0], x, now), self.seen(keys[1], fake, now)
        params, kept = lipschitz(params, now.memory)
        # Real and fake images are normalized apart: each by the statistics of its own batch.
        real_logits, memory = logits(self.discriminator, params, kept, x, now)
        fake_logits, memory = logits(self.discriminator, params, memory, fake, now)
        values = self.objective.critic(real_logits, fake_logits)
        told, what = self.objective.probability, "probability"
        if told is None:
            told, what = (lambda a: a), "logit"
        metrics = {f"real_{what}": told(real_logits), f"fake_{what}": told(fake_logits)}
        if self.penalty is not None:
            critic = lambda x: logits(self.discriminator, params, kept, x, now)[0]  # noqa: E731
            metrics["penalty"] = self.penalty(keys[2], critic, x, fake)
            values = values + self.penalty_weight * metrics["penalty"]
        return values, Aux(metrics, memory)

    def deceiving(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The generator's loss on as many samples as the batch has examples."""
        x, d = self.data.kind.values(batch["x"]), now.players["discriminator"]
        keys = jax.random.split(jax.random.fold_in(key, 1))
        fake, memory = forward(self.generator, params, now.memory, latents(key, len(x)), now)
        x, fake = self.seen(keys[0], x, now), self.seen(keys[1], fake, now)
        d_params, kept = lipschitz(d.params, d.memory)
        # Only relativistic objectives look at data: of others XLA computes nothing here.
        real_logits, _ = logits(self.discriminator, d_params, kept, x, now)
        fake_logits, _ = logits(self.discriminator, d_params, kept, fake, now)
        return self.objective.generator(real_logits, fake_logits), Aux({}, memory)

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


def logits(module: nn.Module, params: Any, memory: Any, x: Array, now: Now) -> tuple[Array, Any]:
    """What the discriminator says of examples, ``[B]``, and its memory after."""
    statistics = {name: value for name, value in memory.items() if name != SPECTRAL}
    answer, after = forward(module, params, statistics, x, now)
    return answer.reshape(len(x)), {**memory, **after}


def lipschitz(params: Any, memory: Any) -> tuple[Any, Any]:
    """The discriminator's weights as they are applied, by spectral norms where it has these."""
    if SPECTRAL not in memory:
        return params, memory
    params, vectors = spectrally_normalized(params, memory[SPECTRAL])
    return params, {**memory, SPECTRAL: vectors}


def features(system: Gan, weights: Any, key: Array, batch: Any) -> Array:
    """What the averaged discriminator's last layer sees of images, ``[B, F]``.

    Radford et al. 2016, section 5.1, take the maps of all layers; these are the last one's alone.
    """
    d, x = weights["discriminator"], system.data.kind.values(batch["x"])
    params, memory = lipschitz(d.params, d.memory)
    variables = {"params": params, **memory}
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
