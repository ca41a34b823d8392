"""A generator and its discriminator, who move in turns (Goodfellow et al. 2014).

``experiments.gan`` is its options, :mod:`~jaxgen.systems.exploration` looks around in its latents.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Points, labels_in_turn, some
from jaxgen.evaluation.distances import frechet_distance
from jaxgen.evaluation.features import FeatureSpace, features_of
from jaxgen.evaluation.points import mode_coverage, sliced_wasserstein
from jaxgen.losses.adversarial import Objective
from jaxgen.losses.augmentation import (
    Augmentation,
    adapted_probability,
    in_order,
    with_probability,
)
from jaxgen.losses.regularization import power_vectors, spectrally_normalized
from jaxgen.models.discriminator import Reconstructing
from jaxgen.models.progressive import faded
from jaxgen.models.progressive import grown as carried
from jaxgen.runner.system import END
from jaxgen.systems.conditions import count_of
from jaxgen.systems.terms import Scene, Term, added, memories
from jaxgen.training.logging import console
from jaxgen.training.model_state import Storage
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Aux, Now, Turn

SCORED = 500  # samples that a checkpoint is selected by
SURE = 0.99  # a mean of D from which on it is told
STEEP = 10.0  # a weighed penalty, as values of the loss, from which on it is told

# What a player remembers beside the collections of its network.
SPECTRAL = "spectral"  # vectors of the power iteration
TERMS = "terms"  # by the names of the terms that remember
CHANCE = "chance"  # of an example to be augmented
POOL = "pool"  # samples of before
OWN = {SPECTRAL, TERMS, CHANCE, POOL}
GROWTH = "growth"  # a collection of networks that grow


@dataclass(frozen=True)
class Adaptive:
    """How often examples are augmented, by how D overfits (Karras et al. 2020, ADA).

    The chance rises while E[sign D(x)] of training data is above ``target``, and could reach 1
    within ``images``.
    """

    target: float = 0.6
    images: float = 500_000


@dataclass(frozen=True)
class Growth:
    """Networks of several stages, each faded in for ``fade`` steps (Karras et al. 2018, section 2).

    They read ``alpha``, in [0, 1], of the collection ``growth``.
    """

    starts: tuple[int, ...]  # the first step of each stage, from 0 on
    fade: int
    networks: Callable[[int], tuple[nn.Module, nn.Module]]  # stage -> generator, discriminator

    def alpha(self, stage: int, step: Array | int) -> Array:
        """How much of a stage's newest layers is there at a step: all of the first's."""
        if stage == 0:
            return jnp.ones(())
        since = jnp.asarray(step, jnp.float32) - self.starts[stage]
        return jnp.clip(since / self.fade, 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Gan(runner.System):
    """A generator of latents ``[B, Z]`` and its discriminator, both told the class or neither.

    What is no parameter is memory: batch statistics, vectors of the power iteration, what terms
    remember, the chance of augmentation, a pool of samples, what the step says to networks.
    """

    generator: nn.Module  # (z, labels, train=) -> x
    discriminator: nn.Module  # (x, labels, train=) -> Judged
    objective: Objective
    discriminator_optimizer: Any
    discriminator_steps: int = 1
    discriminator_terms: tuple[Term, ...] = ()
    generator_terms: tuple[Term, ...] = ()
    # The players whose every kernel is divided by its largest singular value.
    spectral_norm: tuple[str, ...] = ()
    # At a step: what the discriminator sees of data and samples, by one after the other.
    augmentation: Callable[[Array | int], tuple[Augmentation, ...]] | None = None
    adaptive: Adaptive | None = None  # each by chance
    pool: int = 0  # samples of before, which are half of what the discriminator sees as samples
    conditional: bool = False
    growth: Growth | None = None
    stage: int = 0  # of the growth
    latents: int = 100  # Radford et al. 2016, section 4
    batch: int = 64  # of noise, for statistics

    def init(self, key: Array) -> Any:
        key_g, key_d, key_pool, key_vectors = jax.random.split(key, 4)
        # Running averages need no axis: the networks are initialized in evaluation mode.
        x, y = jnp.zeros((1, *self.data.shape)), self.told(jnp.zeros(1, jnp.int32))
        variables: dict[str, Any] = {
            "discriminator": self.discriminator.init(key_d, x, y, train=False),
            "generator": self.generator.init(key_g, jnp.zeros((1, self.latents)), y, train=False),
        }
        terms = {"discriminator": self.discriminator_terms, "generator": self.generator_terms}
        for i, (name, of) in enumerate(variables.items()):
            own = {}
            if name in self.spectral_norm:
                of_player = jax.random.fold_in(key_vectors, i)
                own[SPECTRAL] = self.vectors(name, of_player, of["params"])
            if remembered := memories(terms[name], of["params"]):
                own[TERMS] = remembered
            variables[name] = {**of, **own}
        if self.adaptive:
            variables["discriminator"][CHANCE] = jnp.zeros(())
        if self.pool:
            z = self.noise(key_pool, self.pool)
            g = public(variables["generator"])
            variables["discriminator"][POOL] = self.generator.apply(g, z, None, train=False)
        return variables

    def vectors(self, player: str, key: Array, params: Any) -> Any:
        """Where the power iteration starts; a generator's embedding of classes is left as it is."""
        vectors = power_vectors(key, params)
        if player == "discriminator":
            return vectors
        kept = lambda path, v: None if "embedding" in str(path[-1]) else v  # noqa: E731
        return jax.tree_util.tree_map_with_path(kept, vectors)

    def stages(self) -> tuple[tuple[int, Gan], ...]:
        if self.growth is None:
            return ((0, self),)
        grown = []
        for stage, start in enumerate(self.growth.starts):
            generator, discriminator = self.growth.networks(stage)
            system = replace(self, generator=generator, discriminator=discriminator, stage=stage)
            grown.append((start, system))
        return tuple(grown)

    def grow(self, key: Array, weights: Any) -> Any:
        """What layers of the same name had learned and what was remembered, and new ones, which are
        not seen yet."""
        return {
            name: {
                **carried({**weights[name].memory, "params": weights[name].params}, of),
                GROWTH: jax.tree.map(jnp.zeros_like, of[GROWTH]),
            }
            for name, of in self.init(key).items()
        }

    def turns(self) -> tuple[Turn, ...]:
        optimizer, times = self.discriminator_optimizer, self.discriminator_steps
        rules = {POOL: Storage(renewed)} if self.pool else {}
        return (
            Turn("discriminator", self.judging, optimizer, times, rules),
            Turn("generator", self.deceiving, self.optimizer),
        )

    def noise(self, key: Array, count: int) -> Array:
        """z ``[count, Z]``."""
        return jax.random.normal(key, (count, self.latents))

    def told(self, labels: Array) -> Array | None:
        """What networks are told of classes ``[B]``."""
        return labels if self.conditional else None

    def any_labels(self, count: int) -> Array:
        """Classes in turn, ``[count]``."""
        return jnp.asarray(labels_in_turn(self.data.classes, count)["label"])

    def applied(self, of: Any, now: Now, params: Any = None) -> Applied:
        """A player's weights, or those that move, as they are applied at a step."""
        memory = of.memory
        if self.growth is not None:
            alpha = self.growth.alpha(self.stage, now.step)
            memory = {**memory, GROWTH: jax.tree.map(lambda _: alpha, memory[GROWTH])}
        return lipschitz(of.params if params is None else params, memory)

    def seen(self, key: Array, x: Array, now: Now) -> Array:
        """What the discriminator is shown of examples."""
        if self.augmentation is None:
            return x
        augmentations = self.augmentation(now.step)
        if self.adaptive:
            chance = now.players["discriminator"].memory[CHANCE]
            augmentations = [with_probability(chance, one) for one in augmentations]
        return in_order(*augmentations)(key, x)

    def scene(
        self, key: Array, params: Any, batch: Any, g: Applied, d: Applied, now: Now, pool: Any
    ) -> tuple[Scene, Applied, Applied]:
        """A move of who has these ``params``, and both networks with their memories after."""
        x, y = self.data.kind.values(batch["x"]), self.told(batch["label"])
        if self.growth is not None and self.stage > 0:
            x = faded(x, self.stage, self.growth.alpha(self.stage, now.step))
        key_z, *keys = jax.random.split(key, 6 if pool is not None else 5)
        z = self.noise(key_z, len(x))
        generate = lambda z: forward(self.generator, g, z, y, now, keys[3])  # noqa: E731
        critic = lambda x: forward(self.discriminator, d, x, y, now)[0]  # noqa: E731
        made, g_after = generate(z)
        among = made if pool is None else from_pool(keys[4], pool, made)
        shown, fake = self.seen(keys[0], x, now), self.seen(keys[1], among, now)
        # Real and fake images are normalized apart: each by the statistics of its own batch.
        real, d_after = forward(self.discriminator, d, shown, y, now)
        of_fake, d_after = forward(self.discriminator, d_after, fake, y, now)
        part = lambda name, *x: self.generator.apply(variables_of(g), *x, method=name)  # noqa: E731
        scene = Scene(
            key=keys[2], params=params, critic=critic, generate=lambda z: generate(z)[0], part=part,
            labels=batch["label"], told=y, z=z, made=made, x=shown, fake=fake,
            real_judged=real, fake_judged=of_fake,
        )  # fmt: skip
        return scene, g_after, d_after

    def judging(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The discriminator's loss on data and on as many samples."""
        g, before = self.applied(now.players["generator"], now), now.memory
        d = self.applied(now, now, params)
        scene, _, d = self.scene(key, params, batch, g, d, now, before.get(POOL))
        real, fake = scene.real_judged.logits, scene.fake_judged.logits
        told, what = self.objective.probability, "probability"
        if told is None:
            told, what = (lambda a: a), "logit"
        metrics = {f"real_{what}": told(real), f"fake_{what}": told(fake)}
        after = d.memory
        if self.pool:
            after = {**after, POOL: scene.made}
        if self.adaptive:
            how = self.adaptive.target, self.adaptive.images
            chance = adapted_probability(before[CHANCE], real, self.batch, *how)
            after, metrics = {**after, CHANCE: chance}, {**metrics, "chance": chance}
        return self.descended(
            self.objective.critic(real, fake), self.discriminator_terms, scene, after, metrics, now
        )

    def deceiving(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        """The generator's loss on as many samples as the batch has examples."""
        d = self.applied(now.players["discriminator"], now)
        g = self.applied(now, now, params)
        # Few look at data: where nobody does, XLA computes nothing of it.
        scene, g, _ = self.scene(key, params, batch, g, d, now, None)
        values = self.objective.generator(scene.real_judged.logits, scene.fake_judged.logits)
        return self.descended(values, self.generator_terms, scene, g.memory, {}, now)

    def descended(
        self, values: Array, terms: tuple[Term, ...], scene: Scene, memory: Any, metrics: Any,
        now: Now,
    ) -> tuple[Array, Aux]:  # fmt: skip
        """An objective and the terms of its player."""
        more, remembered, said = added(terms, scene, now.memory.get(TERMS, {}), now.step)
        if remembered:
            memory = {**memory, TERMS: remembered}
        return values + more, Aux({**metrics, **said}, memory)

    def settled(self, weights: Any) -> Any:
        """Running averages for the EMA parameters, which no training batch went through.

        Brock et al. 2019, appendix C.1: forward passes in training mode, on noise alone. The power
        iteration settles on them too.
        """
        g, d = weights["generator"], weights["discriminator"]
        return {
            "generator": g._replace(memory=self._settle(g.params, g.memory)),
            "discriminator": d._replace(memory=settled_norms(d.params, d.memory)),
        }

    @cached_property
    def _settle(self) -> Callable[[Any, Any], Any]:
        def settle(params: Any, memory: Any) -> Any:
            g = lipschitz(params, settled_norms(params, memory))
            y = self.told(self.any_labels(self.batch))

            def one(g: Applied, key: Array) -> tuple[Applied, None]:
                key_z, key = jax.random.split(key)
                z = self.noise(key_z, self.batch)
                return forward(self.generator, g, z, y, Now(0, g.memory), key)[1], None

            return jax.lax.scan(one, g, jax.random.split(jax.random.key(0), 50))[0].memory

        return jax.jit(settle)

    def generate(self, weights: Any, z: Array, labels: Array) -> Array:
        """Examples of latents ``[N, Z]`` and classes ``[N]`` by the averaged generator."""
        return evaluated(self.generator, weights["generator"], z, self.told(labels))

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.generate(weights, self.noise(key, count_of(given)), given["label"])

    @property
    def labelled(self) -> bool:
        return self.conditional

    def how(self) -> str:
        return "statistics of 50 batches of noise" if self._statistics else ""

    @cached_property
    def _statistics(self) -> bool:
        """Whether the generator's norms keep running averages."""
        return "batch_stats" in jax.eval_shape(self.init, jax.random.key(0))["generator"]

    @cached_property
    def _sampler(self) -> OverRows:
        return self.sampler(jax.local_devices()[:1])

    @cached_property
    def _space(self) -> FeatureSpace:
        return self.extractor(self.data)

    @cached_property
    def _real_features(self) -> np.ndarray:
        return features_of(self.data, self._space, self.data.train, 10_000)

    def score(self, weights: Any, step: Any = END) -> float:
        """The distance of 500 samples: Frechet's of images, sliced Wasserstein of points; it is
        infinite where a sample is not finite."""
        given, key = self.data.given(SCORED), jax.random.key(1)
        x = self._sampler(self.settled(weights), key, given, SCORED)
        if not np.isfinite(x).all():
            console.print("warning: samples are not finite: see --clip and --learning-rate.")
            return math.inf
        for line in [*self.lost(x), *self.out_of_balance(weights, step)]:
            what = line.partition("see --")[2]  # the numbers in it change, what to try does not
            if what not in self._told:
                console.print(f"warning: {line}")
            self._told.add(what)
        if isinstance(self.data.kind, Points):
            return sliced_wasserstein(x, some(self.data.validation, 5000)["x"])
        features = self._space.features(x)
        return frechet_distance(features, self._real_features)

    @cached_property
    def _told(self) -> set[str]:
        return set()

    def lost(self, x: np.ndarray) -> list[str]:
        """What samples ``[N, ...]`` never show: a sentence, where there is such."""
        if isinstance(self.data.kind, Points):
            modes = self.data.modes
            noun, count = "modes", 0 if modes is None else len(modes)
            found = count if modes is None else round(count * mode_coverage(x, modes))
        else:
            classify, noun, count = self._space.classify, "classes", self.data.classes
            found = count if classify is None else len(np.unique(classify(x)))
        if found == count or len(x) < 20 * count:
            return []
        head = "" if isinstance(self.discriminator, Reconstructing) else "--minibatch, "
        return [
            f"{count - found} of {count} {noun} are lost, among {len(x)} samples: see --penalty "
            f"r1, {head}--seeking and --discriminator-steps."
        ]

    def out_of_balance(self, weights: Any, step: Any) -> list[str]:
        """Whether D tells all apart, or its penalty outweighs all else: sentences."""
        told = {k: float(v) for k, v in self._judgement(weights, step).items()}
        augmented = "" if isinstance(self.data.kind, Points) else "--augment "
        lines = []
        if told.get("real_probability", 0) > SURE and told["fake_probability"] < 1 - SURE:
            lines.append(
                f"D tells data (D = {told['real_probability']:.3f}) and samples "
                f"({told['fake_probability']:.3f}) apart: see --instance-noise, --penalty r1, "
                f"{augmented}and --discriminator-rate."
            )
        weight = sum(t.weight for t in self.discriminator_terms if t.name == "penalty")
        if weight * told.get("penalty", 0) > STEEP:
            lines.append(
                f"D is steep (penalty {told['penalty']:.3g}, weight {weight:.3g}): see "
                "--penalty-weight and --discriminator-rate."
            )
        return lines

    @cached_property
    def _judgement(self) -> Callable[[Any, Any], dict[str, Array]]:
        batch = jax.tree.map(jnp.asarray, some(self.data.validation, self.batch))
        at_once = tuple(term._replace(every=1) for term in self.discriminator_terms)
        system = replace(self, discriminator_terms=at_once)

        def judge(weights: Any, step: Array) -> dict[str, Array]:
            d = weights["discriminator"]
            now = Now(step, d.memory, weights)
            told = system.judging(d.params, batch, jax.random.key(0), now)[1].metrics
            return jax.tree.map(jnp.mean, told)

        return jax.jit(judge)


# --- the networks, as they are applied ---------------------------------------------------------


def public(variables: Any) -> Any:
    """The collections of a network, of all that its player has."""
    return {name: value for name, value in variables.items() if name not in OWN}


def over_axis(module: nn.Module, axis_name: str | None) -> nn.Module:
    """A network whose batch statistics are those of all devices of an axis, its parts' too."""
    if axis_name is None:
        return module
    fields: dict[str, Any] = {
        f.name: over_axis(value, axis_name)
        for f in dataclasses.fields(module)
        if f.name != "parent" and isinstance(value := getattr(module, f.name), nn.Module)
    }
    if hasattr(module, "axis_name"):
        fields["axis_name"] = axis_name
    return module.clone(**fields)


class Applied(NamedTuple):
    """A player's weights as they are applied, and its memory."""

    params: Any
    memory: Any


def forward(
    module: nn.Module, of: Applied, x: Array, labels: Array | None, now: Now, key: Any = None
) -> tuple[Any, Applied]:
    """What a network answers under the statistics of its batch, and itself with new averages.

    ``key`` is of the noise in its layers, where it has such.
    """
    seen, rngs = list(public(of.memory)), {} if key is None else {"noise": key}
    answer, after = over_axis(module, now.axis_name).apply(
        variables_of(of), x, labels, train=True, mutable=seen, rngs=rngs
    )
    return answer, of._replace(memory={**of.memory, **after})


def evaluated(module: nn.Module, weights: Any, x: Array, labels: Array | None) -> Any:
    """What a trained network answers, by averages of batches that it kept: each example by itself,
    but for a discriminator that looks at how examples of a batch differ."""
    return module.apply(variables_of(lipschitz(*weights)), x, labels, train=False)


def variables_of(of: Applied) -> Any:
    """What a network is applied with."""
    return {"params": of.params, **public(of.memory)}


def lipschitz(params: Any, memory: Any) -> Applied:
    """A player's weights as they are applied: by spectral norms, where it has these."""
    if SPECTRAL not in memory:
        return Applied(params, memory)
    params, vectors = spectrally_normalized(params, memory[SPECTRAL])
    return Applied(params, {**memory, SPECTRAL: vectors})


def settled_norms(params: Any, memory: Any) -> Any:
    """The memory with singular vectors of these very parameters."""
    if SPECTRAL not in memory:
        return memory
    turned = lambda memory, _: (lipschitz(params, memory).memory, None)  # noqa: E731
    return jax.lax.scan(turned, memory, length=30)[0]


def from_pool(key: Array, pool: Array, made: Array) -> Array:
    """Samples ``[B, ...]`` of which half are of a pool ``[P, ...]`` (Shrivastava et al. 2017,
    section 2.3)."""
    half = len(made) // 2
    return jnp.concatenate([pool[places(key, pool, half)], made[half:]])


def renewed(pool: Array, made: Array, key: Array) -> Array:
    """The pool with half a batch of new samples in the place of others."""
    fresh = made[: len(made) // 2]
    return pool.at[places(key, pool, len(fresh))].set(fresh)


def places(key: Array, pool: Array, count: int) -> Array:
    """So many of a pool's, at random, each once."""
    return jax.random.permutation(key, len(pool))[:count]


def features(system: Gan, weights: Any, key: Array, batch: Any) -> Array:
    """What the averaged discriminator's last layer sees of images, ``[B, F]``.

    Radford et al. 2016, section 5.1, take the maps of all layers; these are the last one's alone.
    """
    x: Any = system.data.kind.values(batch["x"])
    return evaluated(system.discriminator, weights["discriminator"], x, batch["label"]).features
