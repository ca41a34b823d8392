"""A feature space trained on the data set itself, so that measuring needs no download.

It is the last hidden layer of a small classifier, trained once a data set and cached; a set without
classes falls back on principal components of its pixels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jaxgen.data.cache import cache_dir
from jaxgen.data.order import ShuffledBatches
from jaxgen.data.records import DataSet, Source, hash_of, in_chunks, some, to_signed
from jaxgen.files import replacing
from jaxgen.models.classifier import Classifier
from jaxgen.training.rows import OverRows
from jaxgen.training.step import init_state, make_step

BATCH = 128
ENTRIES = 100_000  # images of a large set: enough to fit a Gaussian to their features
NUMBERS = 2**24  # numbers in the images that are held at a time, 64 MiB


@dataclass(frozen=True)
class FeatureSpace:
    """Maps images in [-1, 1] ``[N, H, W, C]`` to features ``[N, F]`` and, with classes, labels."""

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None
    accuracy: float | None = None  # on the test set
    digest: str = ""  # of its weights

    def __str__(self) -> str:
        """How protocols name it."""
        return f"{self.name} ({self.digest[:8]})" if self.digest else self.name


def signed(data: DataSet, x: np.ndarray) -> np.ndarray:
    """Bin numbers ``[N, H, W, C]`` to [-1, 1], float32, on the host."""
    return np.float32(2) * x.astype(np.float32) / np.float32(data.levels - 1) - np.float32(1)


def image_chunks(
    data: DataSet, source: Source, limit: int = ENTRIES
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Up to ``limit`` images of a source, evenly spread over it, in [-1, 1], and their labels.

    A part of them at a time, so that no set of images is ever held whole.
    """
    size = max(1, NUMBERS // (math.prod(data.shape) * BATCH)) * BATCH
    for records in in_chunks(source, size, limit):
        yield signed(data, records["x"]), records["label"]


def features_of(
    data: DataSet, space: FeatureSpace, source: Source, limit: int = ENTRIES
) -> np.ndarray:
    """The features of up to ``limit`` images of a source ``[n, F]``."""
    return np.concatenate([space.features(x) for x, _ in image_chunks(data, source, limit)])


@lru_cache(maxsize=8)
def feature_space(data: DataSet, *, steps: int = 600, seed: int = 0) -> FeatureSpace:
    """The feature space of an image set: trained at its first use, then read from the cache."""
    if data.classes < 2:
        return principal_components(data)
    model = Classifier(data.classes)
    x = jnp.zeros((1, *data.shape))
    variables = model.init(jax.random.key(seed), x)
    path = cache_dir() / "features" / f"{_fingerprint(data, steps, seed)}.msgpack"
    if path.exists():
        variables = serialization.from_bytes(variables, path.read_bytes())
    else:
        variables = {"params": _train(model, variables, data, steps, seed)}
        with suppress(OSError), replacing(path) as file:  # one that cannot be written is none
            file.write(serialization.to_bytes(variables))

    apply = OverRows(lambda variables, key, x: model.apply(variables, x))

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return apply(variables, jax.random.key(seed), x, BATCH)

    def classify(x: np.ndarray) -> np.ndarray:
        return run(x)[0].argmax(axis=1)

    digest = hash_of(0, {str(i): np.asarray(w) for i, w in enumerate(jax.tree.leaves(variables))})
    unscaled = FeatureSpace("classifier", lambda x: run(x)[1], classify, digest=digest)
    # Distances are quoted in units in which a real feature has mean square 1.
    scale = np.sqrt(np.mean(features_of(data, unscaled, data.train, 10_000) ** 2))
    right = [classify(x) == label for x, label in image_chunks(data, data.test)]
    return replace(
        unscaled,
        features=lambda x: run(x)[1] / scale,
        accuracy=float(np.mean(np.concatenate(right))),
    )


def _fingerprint(data: DataSet, steps: int, seed: int) -> str:
    name = "".join(c if c.isalnum() else "_" for c in data.name)[-40:]
    return f"{name}-{len(data.train)}-{data.digest[:16]}-{steps}-{seed}"


def _train(model: Classifier, variables, data: DataSet, steps: int, seed: int):
    levels = data.levels

    def loss_fn(params, batch, key):
        x = to_signed(batch["x"], levels)
        logits, _ = model.apply({"params": params}, x, train=True, rngs={"dropout": key})
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return loss.mean(), {}

    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))
    state = init_state(variables, optimizer)
    step = jax.jit(make_step(loss_fn, optimizer, ema_decay=0.0), donate_argnums=0)
    order = ShuffledBatches(len(data.train), min(BATCH, len(data.train)), seed)
    for i in range(steps):
        state, _ = step(state, data.train.fetch(order[i]), jax.random.key(seed))
    return state.params


def principal_components(data: DataSet, count: int = 64) -> FeatureSpace:
    """The first principal components of the pixels, scaled to mean square 1."""
    pixels = math.prod(data.shape)
    limit = min(10_000, max(4 * count, 4 * NUMBERS // pixels))
    x = signed(data, some(data.train, limit)["x"]).reshape(-1, pixels)
    mean = x.mean(axis=0)
    _, _, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes[:count].T
    axes = axes / np.sqrt(np.mean(((x - mean) @ axes) ** 2))
    digest = hash_of(0, {"mean": mean, "axes": axes})
    project = lambda x: (x.reshape(len(x), -1) - mean) @ axes  # noqa: E731
    return FeatureSpace("pixel PCA", project, digest=digest)
