"""A feature space trained on the data set itself, so that measuring needs no download.

It is the last hidden layer of a small classifier, trained once a data set and cached; a set without
classes falls back on principal components of its pixels.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import serialization

from jaxgen.data.cache import cache_dir
from jaxgen.data.order import ShuffledBatches
from jaxgen.data.sources import DataSet, Source, fetch, to_signed
from jaxgen.models.classifier import Classifier
from jaxgen.training.step import init_state, make_step

BATCH = 128
ENTRIES = 100_000  # enough of a large set to fit a Gaussian to its features


@dataclass(frozen=True)
class FeatureSpace:
    """Maps images in [-1, 1] ``[N, H, W, C]`` to features ``[N, F]`` and, with classes, labels."""

    name: str
    features: Callable[[np.ndarray], np.ndarray]
    classify: Callable[[np.ndarray], np.ndarray] | None = None
    accuracy: float | None = None  # on the test set


def spread(size: int, limit: int) -> np.ndarray:
    """Up to ``limit`` of the indices below ``size``, evenly spaced: sorted sets stay balanced."""
    return np.arange(size) if size <= limit else np.linspace(0, size - 1, limit).astype(int)


def signed_images(data: DataSet, source: Source, limit: int = ENTRIES) -> np.ndarray:
    """Up to ``limit`` images of a source, evenly spread over it, in [-1, 1], float32."""
    assert data.levels is not None
    x = fetch(source, spread(len(source), limit))["x"]
    return np.asarray(2.0 * x / (data.levels - 1) - 1.0, np.float32)


def feature_space(data: DataSet, *, steps: int = 600, seed: int = 0) -> FeatureSpace:
    """The feature space of an image set: trained at its first use, then read from the cache."""
    if data.classes < 2:
        return _principal_components(data)
    model = Classifier(data.classes)
    x = jnp.zeros((1, *data.shape))
    variables = model.init(jax.random.key(seed), x)
    path = cache_dir() / "features" / f"{_fingerprint(data, steps, seed)}.msgpack"
    if path.exists():
        variables = serialization.from_bytes(variables, path.read_bytes())
    else:
        variables = {"params": _train(model, variables, data, steps, seed)}
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        partial.write_bytes(serialization.to_bytes(variables))
        partial.replace(path)  # atomic: another run may be reading

    apply = jax.jit(model.apply)

    def run(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return map_batches(lambda b: apply(variables, b), x, BATCH)

    # Distances are quoted in units in which a real feature has mean square 1.
    scale = np.sqrt(np.mean(run(signed_images(data, data.train, 10_000))[1] ** 2))

    def classify(x: np.ndarray) -> np.ndarray:
        return run(x)[0].argmax(axis=1)

    test = fetch(data.test, spread(len(data.test), ENTRIES))
    accuracy = np.mean(classify(signed_images(data, data.test)) == test["label"])
    return FeatureSpace("classifier", lambda x: run(x)[1] / scale, classify, float(accuracy))


def map_batches(function, x, batch: int):
    """Applies ``function`` to x ``[N, ...]`` in batches of one shape; returns NumPy arrays."""
    pad = -len(x) % batch
    padded = np.concatenate([x, np.repeat(x[:1], pad, axis=0)])
    parts = [jax.device_get(function(padded[i : i + batch])) for i in range(0, len(padded), batch)]
    return jax.tree.map(lambda *p: np.concatenate(p)[: len(x)], *parts)


def _fingerprint(data: DataSet, steps: int, seed: int) -> str:
    sample = fetch(data.train, np.linspace(0, len(data.train) - 1, 64).astype(int))
    digest = hashlib.sha256(sample["x"].tobytes() + sample["label"].tobytes()).hexdigest()[:12]
    name = "".join(c if c.isalnum() else "_" for c in data.name)[-40:]
    return f"{name}-{len(data.train)}-{digest}-{steps}-{seed}"


def _train(model: Classifier, variables, data: DataSet, steps: int, seed: int):
    levels = data.levels
    assert levels is not None

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
        state, _ = step(state, fetch(data.train, order[i]), jax.random.key(seed))
    return state.params


def _principal_components(data: DataSet, count: int = 64) -> FeatureSpace:
    x = signed_images(data, data.train, 10_000)
    x = x.reshape(len(x), -1)
    mean = x.mean(axis=0)
    _, _, axes = np.linalg.svd(x - mean, full_matrices=False)
    axes = axes[:count].T
    axes = axes / np.sqrt(np.mean(((x - mean) @ axes) ** 2))
    return FeatureSpace("pixel PCA", lambda x: (x.reshape(len(x), -1) - mean) @ axes)
