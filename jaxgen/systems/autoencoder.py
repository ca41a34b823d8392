"""Deterministic autoencoders: x -> code -> x, with penalties on the code and corrupted inputs.

``experiments.autoencoder`` is its options. There is no density and no prior: what such a model is
good for is its codes, and the measures hold these to principal components.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Batch, DataSet, Image, some
from jaxgen.evaluation.features import NUMBERS
from jaxgen.evaluation.latents import linear_path
from jaxgen.evaluation.report import Number
from jaxgen.losses.reconstruction import Encode, squared_distance
from jaxgen.models.vae import MLPDecoder
from jaxgen.plotting import save_classes, save_grid, save_points, save_rows
from jaxgen.runner.system import CHUNK
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Metrics, Now

FITTED = 10_000  # training examples that normals and linear probes are fitted to
COMPONENTS = 60_000  # and principal components
SHOWN = 2000  # codes in a picture

Corruption = Callable[[Array, Array], Array]  # (key, x) -> what the encoder sees


def code(h: Array, latents: int) -> Any:
    """The head of an encoder that answers ``[B, Z]``, linear in the features."""
    return nn.Dense(latents)(h)


def linear(h: Array) -> Array:
    """The code as the encoder answers it."""
    return h


class Penalty(NamedTuple):
    """What is added to the error of reconstructions: ``weight * of(encode, x)``."""

    weight: float | Array
    of: Callable[[Encode, Array], Array]  # (x -> what the encoder answers [B, Z], x) -> [B]


@dataclass(frozen=True, eq=False)
class Autoencoder(runner.System):
    """h = encoder(x), the code z = squash(h), and decoder(z) near x in squared distance."""

    encoder: nn.Module
    decoder: nn.Module
    latents: int
    squash: Callable[[Array], Array] = linear
    corrupt: Corruption | None = None
    penalties: Mapping[str, Penalty] = field(default_factory=dict)

    def init(self, key: Array) -> Any:
        key_encoder, key_decoder = jax.random.split(key)
        x, z = jnp.zeros((1, *self.data.shape)), jnp.zeros((1, self.latents))
        encoder, decoder = self.encoder.init(key_encoder, x), self.decoder.init(key_decoder, z)
        return {"params": {"encoder": encoder["params"], "decoder": decoder["params"]}}

    def features(self, params: Any, x: Array) -> Array:
        """h ``[B, Z]``, of which the code is made."""
        h: Any = self.encoder.apply({"params": params["encoder"]}, x)
        return h

    def encode(self, params: Any, x: Array) -> Array:
        """The code ``[B, Z]``."""
        return self.squash(self.features(params, x))

    def decode(self, params: Any, z: Array) -> Array:
        """``[B, ...]`` of codes ``[B, Z]``."""
        x: Any = self.decoder.apply({"params": params["decoder"]}, z)
        return x

    def seen(self, key: Array, x: Array) -> Array:
        """What the encoder sees of x in training."""
        return self.corrupt(key, x) if self.corrupt else x

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """The same in training and in validation, the corruption of inputs included."""
        x = self.data.kind.values(batch["x"])
        seen = self.seen(key, x)
        total = squared_distance(self.decode(params, self.encode(params, seen)), x)
        metrics = {"reconstruction": total}
        for name, (weight, of) in self.penalties.items():
            metrics[name] = of(partial(self.features, params), seen)
            total = total + weight * metrics[name]
        return total, metrics

    @cached_property
    def _features(self) -> OverRows:
        def function(weights: Any, key: Array, batch: Any) -> Array:
            return self.features(weights.params, self.data.kind.values(batch["x"]))

        return OverRows(function, jax.local_devices()[:1])

    def settled(self, weights: Any) -> Any:
        """With a normal fitted to h of training examples, in place of the prior that is not there.

        Its covariance is a full one, as codes are known up to a linear map alone.
        """
        batch = some_of(self.data, FITTED)
        h = np.asarray(self._features(weights, jax.random.key(0), batch, CHUNK), np.float64)
        mean = h.mean(axis=0)
        values, vectors = np.linalg.eigh((h - mean).T @ (h - mean) / len(h))
        root = vectors * np.sqrt(np.maximum(values, 0))
        return weights._replace(memory={"mean": jnp.float32(mean), "root": jnp.float32(root)})

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        eps = jax.random.normal(key, (len(given["label"]), self.latents))
        h = weights.memory["mean"][None] + eps @ weights.memory["root"].T
        return self.decode(weights.params, self.squash(h))

    def how(self) -> str:
        return "z of a normal fitted to training codes"


def some_of(data: DataSet, limit: int) -> Batch:
    """Up to ``limit`` training examples, and not more than fit into 256 MiB as float32."""
    return some(data.train, max(2, min(limit, 4 * NUMBERS // math.prod(data.shape))))


# --- pictures ----------------------------------------------------------------------------------


def codes(system: Autoencoder, weights: Any, key: Array, batch: Any) -> Array:
    """The codes of examples, uncorrupted, ``[B, Z]``."""
    return system.encode(weights.params, system.data.kind.values(batch["x"]))


def reconstruct(
    system: Autoencoder, weights: Any, key: Array, batch: Any
) -> tuple[Array, Array, Array]:
    """Examples, what the encoder sees of them, and what is made of that, at models' scale."""
    x = system.data.kind.values(batch["x"])
    seen = system.seen(key, x)
    return x, seen, system.decode(weights.params, system.encode(weights.params, seen))


def reconstructions(trained: runner.Trained[Autoencoder]) -> list[Path]:
    """``reconstructions.png``: examples, what the encoder saw of them, reconstructions."""
    images, system = isinstance(trained.data.kind, Image), trained.system
    if not images and trained.data.shape != (2,):
        return []
    batch = trained.test(16 if images else SHOWN)
    x, seen, again = trained.over("reconstructions", partial(reconstruct, system), batch, key=1)
    corrupted = {"corrupted": seen} if system.corrupt else {}
    sets = {"test": x, **corrupted, "reconstructed": again}
    save = save_rows if images else save_points
    return [save(trained.results / "reconstructions.png", sets)]


def interpolations(trained: runner.Trained[Autoencoder]) -> list[Path]:
    """``interpolations.png``: the segments between the codes of test images, decoded."""
    if not isinstance(trained.data.kind, Image):
        return []
    system = trained.system
    z = trained.over("codes", partial(codes, system), trained.test(20), key=2)
    half = len(z) // 2
    if not half:  # a single test image
        return []
    path = linear_path(jnp.asarray(z[:half]), jnp.asarray(z[half : 2 * half]), 10).swapaxes(0, 1)
    decode = lambda weights, key, z: system.decode(weights.params, z)  # noqa: E731
    rows = np.asarray(path).reshape(-1, system.latents)
    between = trained.over("decoding", decode, rows, size=100)
    return [save_grid(trained.results / "interpolations.png", between, 10)]


def scatter(trained: runner.Trained[Autoencoder]) -> list[Path]:
    """``codes.png``: the codes of test examples, coloured by class, in their first two principal
    axes where they have more than two."""
    data, batch = trained.data, trained.test(SHOWN)
    z = trained.over("codes", partial(codes, trained.system), batch, key=2)
    if trained.system.latents == 1 or len(z) < 2:
        return []
    if trained.system.latents > 2:
        _, _, axes = np.linalg.svd(z - z.mean(axis=0), full_matrices=False)
        z = (z - z.mean(axis=0)) @ axes[:2].T
    names = data.classes_named or [str(c) for c in range(data.classes)]
    return [save_classes(trained.results / "codes.png", z, batch["label"], names)]


# --- measures ----------------------------------------------------------------------------------


def components(trained: runner.Trained[Autoencoder]) -> Any:
    """scikit-learn's PCA of the training set, of as many components as latents, or all there are.

    Pictures and measures share it.
    """
    from sklearn.decomposition import PCA

    def fit() -> Any:
        x = trained.data.vectors(some_of(trained.data, COMPONENTS)["x"])
        solver = "covariance_eigh" if len(x) > x.shape[1] else "full"  # both are exact
        return PCA(min(trained.system.latents, *x.shape), svd_solver=solver).fit(x)

    return trained.once("pca", fit)


def largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """The largest principal angle between the column spaces of ``a``, ``b [D, K]``, in degrees."""
    from scipy.linalg import subspace_angles  # here, for its import takes time

    return float(np.degrees(subspace_angles(np.float64(a), np.float64(b)).max()))


def errors(trained: runner.Trained[Autoencoder]) -> list[Number]:
    """The error of reconstructions, and that of principal components."""
    system, batch = trained.system, trained.test()
    ema = f"EMA of step {trained.step}"

    def measured(weights: Any, key: Array, batch: Any) -> tuple[Array, Array, Array]:
        x, seen, again = reconstruct(system, weights, key, batch)
        clean = system.decode(weights.params, system.encode(weights.params, x))
        mean = lambda y: squared_distance(y, x) / x[0].size  # noqa: E731
        return mean(clean), mean(again), mean(seen)

    of_clean, of_seen, left = (
        float(e.mean()) for e in trained.over("errors", measured, batch, key=3, size=250)
    )
    how = f"mean squared error an entry, {len(batch['x'])} test examples"
    numbers = [Number("reconstruction_error", of_clean, f"{how}, {ema}")]
    if system.corrupt:
        numbers += [
            Number("denoising_error", of_seen, f"{how}, from the corrupted, {ema}"),
            Number("corruption", left, f"{how}, of the corrupted themselves"),
        ]
    pca, x = components(trained), trained.data.vectors(batch["x"])
    error = float(np.mean((x - pca.inverse_transform(pca.transform(x))) ** 2))
    fitted = f"{pca.n_components_} principal components of {pca.n_samples_} training examples"
    numbers.append(Number("reconstruction_error_of_pca", error, f"{how}, {fitted}"))
    if isinstance(system.decoder, MLPDecoder) and not system.decoder.layers:
        map_of = trained.weights.params["decoder"]["Dense_0"]["kernel"]
        angle = largest_angle(np.asarray(map_of).T, pca.components_.T)
        how = f"degrees, largest principal angle of the decoder's columns and {fitted}, {ema}"
        numbers.append(Number("angle_to_pca", angle, how))
    return numbers


def probes(trained: runner.Trained[Autoencoder]) -> list[Number]:
    """How well a linear classifier does on codes, on pixels, and on principal components."""
    data, train, test = trained.data, some_of(trained.data, FITTED), trained.test()
    if data.classes < 2 or len(np.unique(train["label"])) < 2:
        return []
    coded = [
        trained.over("codes", partial(codes, trained.system), batch, key=2, size=250)
        for batch in (train, test)
    ]
    pixels = [data.vectors(batch["x"]) for batch in (train, test)]
    pca = components(trained)
    rows = {
        "probe_accuracy": (f"{trained.system.latents} frozen latents", *coded),
        "probe_accuracy_of_pca": (
            f"{pca.n_components_} principal components",
            *(pca.transform(x) for x in pixels),
        ),
        "probe_accuracy_of_input": (f"the {pixels[0].shape[1]} entries of an example", *pixels),
    }
    fitted = f"of {len(train['label'])} training examples, share right of {len(test['label'])} test"
    how = f"logistic regression on {{}}, standardized, {fitted}, EMA of step {trained.step}"
    return [
        Number(name, probe(seen, train["label"], other, test["label"]), how.format(what))
        for name, (what, seen, other) in rows.items()
    ]


def probe(x: np.ndarray, label: np.ndarray, test: np.ndarray, of_test: np.ndarray) -> float:
    """A logistic regression fitted to standardized features ``x [n, F]``: the accuracy in test."""
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    return float(judge.fit(x, label).score(test, of_test))
