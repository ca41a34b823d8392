"""What a player of a GAN may descend beside its objective: penalties, constraints, other tasks.

A :class:`Term` looks at one :class:`Scene`, a move of its player, and may keep a memory. The
formulas are in :mod:`jaxgen.losses`; here they are told where to look.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array, lax

from jaxgen.losses import began, penalties
from jaxgen.losses.adversarial import feature_matching, mode_seeking
from jaxgen.losses.augmentation import Augmentation
from jaxgen.losses.path_length import path_length, path_mean, path_penalty
from jaxgen.losses.penalties import Penalty
from jaxgen.losses.regularization import historical_averaging, orthogonality, running_mean
from jaxgen.models.discriminator import Judged


class Scene(NamedTuple):
    """One move of a player, who may differentiate all of it in its parameters."""

    key: Array
    params: Any  # of who moves
    critic: Callable[[Array], Judged]  # examples of the batch's classes
    generate: Callable[[Array], Array]  # latents [B, Z], of the batch's classes
    part: Callable[..., Any]  # a method of the generator, by name, of what comes after
    labels: Array  # [B]
    told: Array | None  # the same, where networks are told
    z: Array  # [B, Z]
    made: Array  # [B, ...], of these latents
    x: Array  # [B, ...], data as they were shown
    fake: Array  # [B, ...], samples as they were shown
    real_judged: Judged
    fake_judged: Judged


class Said(NamedTuple):
    """What a term comes to."""

    values: Array  # [B] or []
    memory: Any = None
    metrics: dict[str, Array] | None = None  # else the values, by the term's name


class Term(NamedTuple):
    """``weight`` times what it says of a scene, at every step or ``every`` so many steps.

    Taken at every n-th step alone it weighs n times as much ("lazy": Karras et al. 2020, StyleGAN2,
    appendix B). Between them it costs nothing on an accelerator; on CPU the gradient of a
    convolution is slower in a branch than all it saves.
    """

    name: str
    value: Callable[[Scene, Any], Said]  # (scene, memory)
    weight: float | Array = 1.0
    start: Callable[[Any], Any] = lambda params: None  # params of the player -> memory
    every: int = 1


def memories(terms: Sequence[Term], params: Any) -> dict[str, Any]:
    """What the terms of a player remember at first, of those that remember anything."""
    started = {term.name: term.start(params) for term in terms}
    return {name: memory for name, memory in started.items() if memory is not None}


def added(
    terms: Sequence[Term], scene: Scene, memory: dict[str, Any], step: Array | int
) -> tuple[Array, dict[str, Any], dict[str, Array]]:
    """The weighted sum of the means of the terms, their memory after, and their metrics."""
    total, after, metrics = jnp.zeros(()), dict(memory), {}
    for i, term in enumerate(terms):
        before = memory.get(term.name)
        here = scene._replace(key=jax.random.fold_in(scene.key, i))
        said = taken(term, here, before, step)
        total = total + term.weight * said.values.mean()
        if said.memory is not None:
            after[term.name] = lax.stop_gradient(said.memory)
        metrics |= said.metrics or {term.name: said.values}
    return total, after, metrics


def taken(term: Term, scene: Scene, memory: Any, step: Array | int) -> Said:
    """What a term says at a step, ``every`` times it: nothing between those that are its, so that
    its mean over steps, and that of its metrics, is that of a term of every step."""
    if term.every == 1:
        return term.value(scene, memory)

    def often() -> Said:
        said = term.value(scene, memory)
        values, metrics = jax.tree.map(lambda a: term.every * a, (said.values, said.metrics))
        return Said(values, said.memory, metrics)

    nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), jax.eval_shape(often))
    if memory is not None:
        nothing = nothing._replace(memory=memory)
    return lax.cond(jnp.asarray(step) % term.every == 0, often, lambda: nothing)


# --- of the discriminator ----------------------------------------------------------------------


def slope_penalty(penalty: Penalty, weight: float, every: int = 1) -> Term:
    """How steep it may be: a penalty of :mod:`jaxgen.losses.penalties`."""

    def value(scene: Scene, memory: Any) -> Said:
        critic = lambda x: scene.critic(x).logits  # noqa: E731
        return Said(penalty(scene.key, critic, scene.x, scene.fake))

    return Term("penalty", value, weight, every=every)


def consistency(augment: Augmentation, weight: float) -> Term:
    """To say of an image what it says of it augmented: of data and of samples (Zhao et al. 2021,
    balanced consistency; Zhang et al. 2020 have data alone)."""

    def value(scene: Scene, memory: Any) -> Said:
        keys = jax.random.split(scene.key)

        def apart(key: Array, x: Array, judged: Judged) -> Array:
            return penalties.consistency(judged.logits, scene.critic(augment(key, x)).logits)

        of_data = apart(keys[0], scene.x, scene.real_judged)
        return Said(of_data + apart(keys[1], scene.fake, scene.fake_judged))

    return Term("consistency", value, weight)


def equilibrium(gamma: float = 0.5, rate: float = 1e-3) -> Term:
    """BEGAN's -k L(G(z)), for a discriminator whose logits are errors, and which is to keep
    E L(G(z)) = gamma E L(x) by its k (Berthelot et al. 2017, section 3.4). A metric is its
    ``convergence``.
    """

    def value(scene: Scene, memory: Any) -> Said:
        real, fake, k = scene.real_judged.logits, scene.fake_judged.logits, memory["k"]
        after = {"k": began.equilibrium(k, real, fake, gamma, rate)}
        metrics = {"k": k, "convergence": began.convergence(real, fake, gamma)}
        return Said(-k[None] * fake, after, metrics)  # L(x) itself is the objective

    return Term("equilibrium", value, start=lambda params: {"k": jnp.zeros(())})


# --- of the generator --------------------------------------------------------------------------


def matching(weight: float) -> Term:
    """To have the mean features of data (Salimans et al. 2016, section 3.1)."""

    def value(scene: Scene, memory: Any) -> Said:
        real, fake = scene.real_judged.features, scene.fake_judged.features
        return Said(feature_matching(lax.stop_gradient(real), fake))

    return Term("matching", value, weight)


def seeking(weight: float) -> Term:
    """To make of other latents other things (Mao et al. 2019, MSGAN)."""

    def value(scene: Scene, memory: Any) -> Said:
        z = jax.random.normal(scene.key, scene.z.shape)
        return Said(mode_seeking(scene.made, scene.generate(z), scene.z, z))

    return Term("seeking", value, weight)


def paths(weight: float, every: int = 4) -> Term:
    """Steps in w that change images by as much everywhere (Karras et al. 2020, section 3.2).

    Of a generator in two parts, z to w by ``mapping`` and w to images by ``synthesis``.
    """

    def value(scene: Scene, memory: Any) -> Said:
        w = scene.part("mapping", scene.z, scene.told)
        lengths = path_length(scene.key, lambda w: scene.part("synthesis", w), w)
        mean = path_mean(memory["mean"], lengths)
        return Said(path_penalty(lengths, mean), {"mean": mean}, {"path_length": lengths})

    return Term("paths", value, weight, lambda params: {"mean": jnp.zeros(())}, every)


# --- of either ---------------------------------------------------------------------------------


def classes_of_fakes(weight: float) -> Term:
    """-log p(y|G(z, y)) ``[B]`` by the auxiliary classifier (Odena et al. 2017)."""

    def value(scene: Scene, memory: Any) -> Said:
        return Said(cross_entropy(scene.fake_judged, scene.labels))

    return Term("classes", value, weight)


def classes_of_both(weight: float) -> Term:
    """-log p(y|x) - log p(y|G(z, y)) ``[B]``, what the auxiliary classifier learns by."""

    def value(scene: Scene, memory: Any) -> Said:
        real, fake = scene.real_judged, scene.fake_judged
        return Said(cross_entropy(real, scene.labels) + cross_entropy(fake, scene.labels))

    return Term("classes", value, weight)


def cross_entropy(judged: Judged, labels: Array) -> Array:
    """-log p(y|x) ``[B]``, in nats."""
    classes: Any = judged.classes
    return optax.softmax_cross_entropy_with_integer_labels(classes, labels)


def orthogonal(weight: float) -> Term:
    """Filters at right angles to one another (Brock et al. 2019, eq. 3)."""
    return Term("orthogonality", lambda scene, memory: Said(orthogonality(scene.params)), weight)


def averaging(weight: float) -> Term:
    """Parameters near the mean of what they were (Salimans et al. 2016, section 3.3)."""

    def start(params: Any) -> Any:
        return {"mean": jax.tree.map(jnp.copy, params), "count": jnp.ones(())}

    def value(scene: Scene, memory: Any) -> Said:
        mean, count = memory["mean"], memory["count"]
        after = {"mean": running_mean(mean, scene.params, count), "count": count + 1}
        return Said(historical_averaging(scene.params, mean), after)

    return Term("averaging", value, weight, start)
