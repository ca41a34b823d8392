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
from jaxgen.evaluation.latents import linear_path, principal_axes, turned
from jaxgen.evaluation.probes import probe
from jaxgen.evaluation.report import Number
from jaxgen.losses.reconstruction import Encode, squared_distance
from jaxgen.models.vae import MLPDecoder
from jaxgen.plotting import save_classes, save_grid, save_points, save_rows, save_values
from jaxgen.runner.system import CHUNK
from jaxgen.systems.conditions import count_of
from jaxgen.training.rows import OverRows
from jaxgen.training.step import Metrics, Now

FITTED = 10_000  # training examples that normals and linear probes are fitted to
COMPONENTS = 60_000  # and principal components
SHOWN = 2000  # codes in a picture, and examples that kernel components are fitted to

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
        eps = jax.random.normal(key, (count_of(given), self.latents))
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


def decoded(trained: runner.Trained[Autoencoder], z: Array | np.ndarray) -> np.ndarray:
    """What is made of codes ``[N, Z]``."""
    decode = lambda weights, key, z: trained.system.decode(weights.params, z)  # noqa: E731
    return trained.over("decoding", decode, np.asarray(z), size=100)


def interpolations(trained: runner.Trained[Autoencoder]) -> list[Path]:
    """``interpolations.png``: the segments between the codes of test images, decoded."""
    if not isinstance(trained.data.kind, Image):
        return []
    z = trained.over("codes", partial(codes, trained.system), trained.test(20), key=2)
    half = len(z) // 2
    if not half:  # a single test image
        return []
    path = linear_path(jnp.asarray(z[:half]), jnp.asarray(z[half : 2 * half]), 10).swapaxes(0, 1)
    between = decoded(trained, path.reshape(-1, trained.system.latents))
    return [save_grid(trained.results / "interpolations.png", between, 10)]


def scatter(trained: runner.Trained[Autoencoder]) -> list[Path]:
    """``codes.png``: test examples by their codes, by PCA and by kernel PCA.

    Of images the first two axes of each, coloured by class; of points in the plane the first as a
    colour. The codes' axes are the principal ones, turned to lie as near to PCA's as they can: as
    an autoencoder's code is known up to a linear map, there may be a stretch between the two.
    """
    data, batch = trained.data, trained.test(SHOWN)
    images = isinstance(data.kind, Image)
    count = min(2, trained.system.latents) if images else 1
    if len(batch["x"]) < 2 or (images and count < 2) or (not images and data.shape != (2,)):
        return []
    z, x = trained.over("codes", partial(codes, trained.system), batch, key=2), batch["x"]
    mean, axes = principal_axes(z, count)
    by_pca = components(trained).transform(data.vectors(x))[:, :count]
    by_kernel = kernel_components(data, count).transform(data.vectors(x))
    panels = {
        "codes": turned((z - mean) @ axes, by_pca),
        "PCA": by_pca,
        "kernel PCA": turned(by_kernel, by_pca),
    }
    path = trained.results / "codes.png"
    if images:
        return [save_classes(path, panels, batch["label"], data.class_names)]
    return [save_values(path, x, {name: values[:, 0] for name, values in panels.items()})]


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


def kernel_components(data: DataSet, count: int) -> Any:
    """scikit-learn's kernel PCA of training examples (Schoelkopf et al. 1998).

    The kernel is exp(-|x - y|^2 / (D var)) for examples of D entries with a variance of ``var``.
    """
    from sklearn.decomposition import KernelPCA

    x = data.vectors(some_of(data, SHOWN)["x"])
    width = x.shape[1] * float(x.var()) or 1.0
    return KernelPCA(count, kernel="rbf", gamma=1 / width, random_state=0).fit(x)


def largest_angle(a: np.ndarray, b: np.ndarray) -> float:
    """The largest principal angle between the column spaces of ``a``, ``b [D, K]``, in degrees."""
    from scipy.linalg import subspace_angles  # here, for its import takes time

    return float(np.degrees(subspace_angles(np.float64(a), np.float64(b)).max()))


def errors(trained: runner.Trained[Autoencoder]) -> list[Number]:
    """The error of reconstructions, and that of principal components."""
    system, batch = trained.system, trained.test()

    def measured(weights: Any, key: Array, batch: Any) -> tuple[Array, Array, Array]:
        x, seen, again = reconstruct(system, weights, key, batch)
        clean = system.decode(weights.params, system.encode(weights.params, x))
        mean = lambda y: squared_distance(y, x) / x[0].size  # noqa: E731
        return mean(clean), mean(again), mean(seen)

    of_clean, of_seen, left = (
        float(e.mean()) for e in trained.over("errors", measured, batch, key=3, size=250)
    )
    how = f"mean squared error an entry, {len(batch['x'])} test examples"
    numbers = [Number("reconstruction_error", of_clean, f"{how}, {trained.ema}")]
    if system.corrupt:
        numbers += [
            Number("denoising_error", of_seen, f"{how}, from the corrupted, {trained.ema}"),
            Number("corruption", left, f"{how}, of the corrupted themselves"),
        ]
    pca, x = components(trained), trained.data.vectors(batch["x"])
    error = float(np.mean((x - pca.inverse_transform(pca.transform(x))) ** 2))
    fitted = f"{pca.n_components_} principal components of {pca.n_samples_} training examples"
    numbers.append(Number("reconstruction_error_of_pca", error, f"{how}, {fitted}"))
    if isinstance(system.decoder, MLPDecoder) and not system.decoder.layers:
        map_of = trained.weights.params["decoder"]["Dense_0"]["kernel"]
        angle = largest_angle(np.asarray(map_of).T, pca.components_.T)
        how = (
            f"degrees, largest principal angle of the decoder's columns and {fitted}, {trained.ema}"
        )
        numbers.append(Number("angle_to_pca", angle, how))
    return numbers


def probes(trained: runner.Trained[Autoencoder]) -> list[Number]:
    """How well a linear classifier does on codes, on pixels, and on principal components."""
    data, system, pca = trained.data, trained.system, components(trained)
    train, test = some_of(data, FITTED), trained.test()
    if data.classes < 2 or len(np.unique(train["label"])) < 2:
        return []
    pixels = lambda batch: data.vectors(batch["x"])  # noqa: E731
    coded = lambda batch: trained.over("codes", partial(codes, system), batch, key=2, size=250)  # noqa: E731
    rows = {
        "probe_accuracy": ("frozen latents", coded),
        "probe_accuracy_of_pca": ("principal components", lambda b: pca.transform(pixels(b))),
        "probe_accuracy_of_input": ("entries of an example", pixels),
    }
    numbers = []
    for name, (what, features) in rows.items():
        found = probe(features, train, test)
        how = f"{found.dimension} {what}, {found.protocol}, {trained.ema}"
        numbers.append(Number(name, found.accuracy, how))
    return numbers
