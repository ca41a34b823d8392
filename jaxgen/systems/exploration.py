"""Looking around in the latents of a trained GAN: arcs, arithmetic, directions, images of data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Image, some
from jaxgen.evaluation.distances import frechet_distance, precision_recall
from jaxgen.evaluation.features import features_of
from jaxgen.evaluation.latents import analogy, projected, semantic_directions, spherical_path
from jaxgen.models.style import truncated
from jaxgen.plotting import save_grid, save_lines, save_rows
from jaxgen.systems.gan import Gan, lipschitz, variables_of

Trained = runner.Trained[Gan]
LIMITS = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)  # of truncation
SHARES = (0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)  # of what w differs from its mean by
MEASURED = 500  # samples for each of them
NEAREST = 3  # neighbours by which a set is known, of more examples than those


def drawn(trained: Trained, z: Array | np.ndarray, labels: Array | np.ndarray) -> np.ndarray:
    """Examples of latents ``[N, Z]`` and classes ``[N]``."""
    generate = lambda weights, key, of: trained.system.generate(weights, *of)  # noqa: E731
    mapped = trained.once("generate", lambda: trained.mapped(generate))  # compiled once
    return trained.over("latents", mapped, (np.asarray(z), np.asarray(labels)), size=100)


def arcs(trained: Trained) -> list[Path]:
    """``interpolations.png``: from one latent to another, of one class where it is told."""
    if not isinstance(trained.data.kind, Image):
        return []
    system = trained.system
    z = system.noise(jax.random.fold_in(trained.key, 5), 20)
    path = spherical_path(z[:10], z[10:], 10).swapaxes(0, 1).reshape(100, -1)
    between = drawn(trained, path, jnp.repeat(system.any_labels(10), 10))
    return [save_grid(trained.results / "interpolations.png", between, 10)]


def arithmetic(trained: Trained) -> list[Path]:
    """``arithmetic.png``: means of latents of classes a, b, c, and "a is to b as c is to ..."."""
    system, classify = trained.system, trained.features.classify
    if not isinstance(trained.data.kind, Image) or classify is None or system.conditional:
        return []
    z = np.asarray(system.noise(jax.random.fold_in(trained.key, 5), 1000))
    classes = classify(drawn(trained, z, system.any_labels(1000)))
    triples = {c: z[classes == c][:3] for c in range(trained.data.classes)}
    found = [zs for zs in triples.values() if len(zs) == 3]
    rows = []
    for a, b, c in list(zip(found, found[1:], found[2:], strict=False))[:5]:
        means = [x.mean(axis=0) for x in (a, b, c)]
        rows += [*means, np.asarray(analogy(*map(jnp.asarray, (a, b, c))))]
    if not rows:
        return []
    x = drawn(trained, np.stack(rows), system.any_labels(len(rows)))
    return [save_grid(trained.results / "arithmetic.png", x, 4)]


def directions(trained: Trained) -> list[Path]:
    """``directions.png``: a latent moved along the directions that the first layer carries furthest
    (Shen & Zhou 2021), one a row, by up to 3 sqrt(Z) / 2 each way.

    Styles are made of w by many linear maps, and the notebook on the lineage moves along these.
    """
    if not isinstance(trained.data.kind, Image) or has_styles(trained.system):
        return []
    kernel = first_kernel(trained.system, trained.weights)
    if kernel is None:
        return []
    moves = semantic_directions(kernel, 5)
    z = np.asarray(trained.system.noise(jax.random.fold_in(trained.key, 6), 1))
    far = np.linspace(-1, 1, 9)[None, :, None] * 1.5 * np.sqrt(z.shape[-1])
    path = (z[0] + far * moves[:, None]).reshape(-1, z.shape[-1]).astype(np.float32)
    x = drawn(trained, path, np.zeros(len(path), np.int32))
    return [save_grid(trained.results / "directions.png", x, 9)]


def first_kernel(system: Gan, weights: Any) -> np.ndarray | None:
    """The kernel ``[Z, F]`` that latents meet first; None where it is of another size, or is one of
    several that meet parts of them."""
    if getattr(system.generator, "skip_z", False):
        return None
    beside = (0, system.data.classes, system.latents) if system.conditional else (0,)
    params = lipschitz(*weights["generator"]).params
    for path, leaf in jax.tree.leaves_with_path(params):
        of_classes = any(word in str(path) for word in ("embedding", "Norm"))
        met = leaf.ndim == 2 and len(leaf) - system.latents in beside and not of_classes
        if met and "kernel" in str(path[-1]):
            return np.asarray(leaf[: system.latents])
    return None


def projections(trained: Trained) -> list[Path]:
    """``projections.png``: test images, and the nearest that the generator makes of any latent."""
    data, system = trained.data, trained.system
    if not isinstance(data.kind, Image):
        return []
    batch = some(data.test, 20)
    x, y = data.kind.values(batch["x"]), jnp.asarray(batch["label"])
    generate = lambda z: system.generate(trained.weights, z, y)  # noqa: E731
    z = projected(generate, x, 0.1 * system.noise(trained.key, len(x)))
    rows = {"test images": np.asarray(x), "from latents": np.asarray(generate(z))}
    return [save_rows(trained.results / "projections.png", rows)]


def truncation(trained: Trained) -> list[Path]:
    """``truncation.png``: quality against variety, of latents within a limit.

    Numbers of z that exceed it are drawn again (Brock et al. 2019, section 3.1); where there is a w
    it is moved towards its mean instead (Karras et al. 2019, appendix B). Precision and recall
    (Kynkaanniemi et al. 2019) are of 500 samples and as many images of the training set; where it
    has three or fewer there is no picture.
    """
    data = trained.data
    if not isinstance(data.kind, Image):
        return []
    real = features_of(data, trained.features, data.train, MEASURED)
    if len(real) <= NEAREST:
        return []
    within, limits, label = within_limit(trained), LIMITS, "|z| at most"
    if has_styles(trained.system):
        within, limits, label = towards_mean(trained), SHARES, "psi"
    found = []
    for limit in limits:
        fake = trained.features.features(within(limit))
        found.append((*precision_recall(real, fake, NEAREST), frechet_distance(fake, real)))
    precision, recall, distance = np.array(found).T
    lines = {"precision": precision, "recall": recall, "Fréchet distance": distance}
    return [save_lines(trained.results / "truncation.png", np.array(limits), lines, label)]


def within_limit(trained: Trained) -> Callable[[float], np.ndarray]:
    """Samples of z within a limit."""
    system, key = trained.system, jax.random.fold_in(trained.key, 7)
    shape, y = (MEASURED, system.latents), system.any_labels(MEASURED)
    return lambda limit: drawn(trained, jax.random.truncated_normal(key, -limit, limit, shape), y)


def has_styles(system: Gan) -> bool:
    """Whether the generator is a mapping to w and a synthesis from w."""
    return hasattr(system.generator, "synthesis")


def towards_mean(trained: Trained) -> Callable[[float], np.ndarray]:
    """Samples of mean + psi (w - mean), by psi."""
    system: Any = trained.system
    z = np.asarray(system.noise(jax.random.fold_in(trained.key, 7), MEASURED))
    labels = np.asarray(system.any_labels(MEASURED))

    def draw(weights: Any, key: Array, of: Any) -> Array:
        z, labels, psi = of
        variables = variables_of(lipschitz(*weights["generator"]))
        part = lambda name, *x: system.generator.apply(variables, *x, method=name)  # noqa: E731
        w = part("mapping", z, system.told(labels))
        return part("synthesis", truncated(w, variables["mapping"]["mean"], psi[:, None]))

    mapped = trained.mapped(draw)

    def samples(psi: float) -> np.ndarray:
        rows = (z, labels, np.full(MEASURED, psi, np.float32))
        return trained.over("latents", mapped, rows, size=100)

    return samples
