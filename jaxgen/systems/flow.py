"""Normalizing flows: exact densities of points, and bounds on the probability of images.

``experiments.flow`` is its options.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Image, to_signed
from jaxgen.data.records import some as some_of
from jaxgen.distributions import bits_per_dimension
from jaxgen.evaluation.latents import spherical_path
from jaxgen.evaluation.report import Number
from jaxgen.losses import dequantization
from jaxgen.models.flow import Chain
from jaxgen.plotting import save_grid, save_points, save_points_film, save_rows
from jaxgen.runner.pictures import densities
from jaxgen.systems.bounds import likelihoods
from jaxgen.systems.conditions import count_of
from jaxgen.training.step import Metrics, Now

SEEN = 256  # training examples that actnorms are initialized by
TEMPERATURES = (0.0, 0.25, 0.5, 0.7, 0.85, 1.0)


@dataclass(frozen=True)
class Drawing:
    """How to draw, and what to measure."""

    # Of the draws z of N(0, I): the standard deviation, below 1 for what is more likely.
    temperature: runner.NonNegative = 1.0
    bound_samples: runner.Count = 16  # Dequantizations of each image in the bound on log P(x).
    bound_images: runner.Count = 10_000  # Test examples whose likelihood is measured.


@dataclass(frozen=True, eq=False)
class NormalizingFlow(runner.System):
    """``flow`` is the invertible network; ``dequantizer``, where there is one, q(u|x) of images."""

    flow: Chain
    dequantizer: nn.Module | None = None
    temperature: float = 1.0

    @property
    def images(self) -> bool:
        return isinstance(self.data.kind, Image)

    def init(self, key: Array) -> Any:
        """With actnorms by a batch of training examples, the same whatever the devices."""
        key_flow, key_q, key_x, key_eps = jax.random.split(key, 4)
        bins = jnp.asarray(some_of(self.data.train, SEEN)["x"])
        if not self.images:
            return self.flow.init(key_flow, self.data.kind.values(bins), method="forward")
        params = {}
        if self.dequantizer is not None:
            eps, x = jax.random.normal(key_eps, bins.shape), to_signed(bins, self.data.levels)
            params["dequantizer"] = self.dequantizer.init(key_q, eps, x)["params"]
        x, _ = self.dequantize(params)(key_x, bins)
        params["flow"] = self.flow.init(key_flow, x, method="forward")["params"]
        return {"params": params}

    def dequantize(self, params: Any) -> dequantization.Dequantize:
        """q(x|bins) of images."""
        levels, network = self.data.levels, self.dequantizer
        if network is None:
            return dequantization.uniform(levels)

        def draw(key: Array, bins: Array) -> Any:
            eps = jax.random.normal(key, bins.shape)
            return network.apply({"params": params["dequantizer"]}, eps, to_signed(bins, levels))

        return dequantization.variational(levels, draw)

    def log_prob(self, params: Any, x: Array) -> Array:
        """log p(x), ``[B]`` nats, of points or of dequantized images."""
        log_p: Any = self.run("log_prob", params, x)
        return log_p

    def run(self, method: str, params: Any, x: Array) -> Any:
        """A method of the flow."""
        weights = params["flow"] if self.images else params
        return self.flow.apply({"params": weights}, x, method=method)

    def bound(self, params: Any, key: Array, x: Array, samples: int = 1) -> Array:
        """log p(x) of points, and a lower bound on log P(x) of images, bins: ``[B]`` nats."""
        if not self.images:
            return self.log_prob(params, self.data.kind.values(x))
        density = lambda x: self.log_prob(params, x)  # noqa: E731
        how = self.dequantize(params)
        return dequantization.dequantized_bound(key, density, how, jnp.asarray(x, int), samples)

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """-log p(x), or of images minus the bound by one dequantization."""
        value = -self.bound(params, key, batch["x"])
        if not self.images:
            return value, {}
        return value, {"bits_per_dimension": bits_per_dimension(value, math.prod(self.data.shape))}

    def shown(self, x: Array) -> Array:
        """Points as they are; of dequantized images the bins, with values in [-1, 1]."""
        if not self.images:
            return x
        return to_signed(dequantization.bin_of(x, self.data.levels), self.data.levels)

    def decode(self, params: Any, z: Array) -> Array:
        """z to examples, as they are shown."""
        return self.shown(self.run("inverse", params, z))

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        z = jax.random.normal(key, (count_of(given), *self.data.shape))
        return self.decode(weights.params, self.temperature * z)

    def how(self) -> str:
        return f"temperature {self.temperature:g}"


# --- pictures ------------------------------------------------------------------------------------


def codes(trained: runner.Trained[NormalizingFlow], count: int) -> np.ndarray:
    """z of dequantized test images."""
    system = trained.system

    def encode(weights: Any, key: Array, batch: Any) -> Array:
        x, _ = system.dequantize(weights.params)(key, jnp.asarray(batch["x"], int))
        return system.run("forward", weights.params, x)[0]

    return trained.over("codes", encode, trained.test(count), key=2)


def decoded(trained: runner.Trained[NormalizingFlow], z: Any) -> np.ndarray:
    """The examples of z ``[N, ...]``."""
    decode = lambda weights, key, rows: trained.system.decode(weights.params, rows["z"])  # noqa: E731
    return trained.over("decoding", decode, {"z": np.asarray(z)})


def interpolations(trained: runner.Trained[NormalizingFlow]) -> list[Path]:
    """``interpolations.png``: arcs between z of test images."""
    if not trained.system.images:
        return []
    z = codes(trained, 20).reshape(-1, math.prod(trained.data.shape))
    half = len(z) // 2
    if not half:  # a single test image
        return []
    arcs = spherical_path(jnp.asarray(z[:half]), jnp.asarray(z[half : 2 * half]), 10)
    between = decoded(trained, arcs.swapaxes(0, 1).reshape(-1, *trained.data.shape))
    return [save_grid(trained.results / "interpolations.png", between, 10)]


def temperatures(trained: runner.Trained[NormalizingFlow]) -> list[Path]:
    """``temperatures.png``: the same draws of N(0, I) from their middle outwards."""
    if not trained.system.images:
        return []
    z = jax.random.normal(jax.random.fold_in(trained.key, 3), (10, *trained.data.shape))
    rows = decoded(trained, np.concatenate([t * z for t in TEMPERATURES]))
    named = [f"temperature {t:g}" for t in TEMPERATURES]
    rows = dict(zip(named, np.split(rows, len(named)), strict=True))
    return [save_rows(trained.results / "temperatures.png", rows)]


def density(trained: runner.Trained[NormalizingFlow]) -> list[Path]:
    """``density.png``: of points in the plane, beside that of the data."""
    log_prob = lambda weights, key, rows: trained.system.log_prob(weights.params, rows["x"])  # noqa: E731
    return densities(trained, lambda x: trained.over("density", log_prob, {"x": x}, size=len(x)))


def warp(trained: runner.Trained[NormalizingFlow]) -> list[Path]:
    """``warp.png``: the lines of a grid of z, and what the flow makes of them; ``film.gif``: draws
    of N(0, I) on their way through its layers. Of points in the plane."""
    if trained.data.shape != (2,):
        return []

    def path(weights: Any, key: Array, rows: Any) -> Array:
        return jnp.stack(trained.system.run("undone", weights.params, rows["z"]), axis=1)

    line, along = np.linspace(-2.5, 2.5, 11), np.linspace(-2.5, 2.5, 400)
    upright = np.stack(np.meshgrid(line, along), axis=-1).reshape(-1, 2)
    drawn = jax.random.normal(jax.random.fold_in(trained.key, 3), (1000, 2))
    z = np.concatenate([upright, upright[:, ::-1], drawn]).astype(np.float32)
    found = trained.over("path", path, {"z": z}, size=len(z)).swapaxes(0, 1)  # [layers, N, 2]
    lines, clouds = np.split(found, [2 * len(upright)], axis=1)
    between = np.linspace(0, 1, max(1, 100 // len(clouds)), endpoint=False).reshape(-1, 1, 1)
    frames = [a + between * (b - a) for a, b in itertools.pairwise(clouds)]
    panels = {"z": lines[0], "x": lines[-1]}
    return [
        save_points(trained.results / "warp.png", panels, len(lines[0])),
        save_points_film(trained.results / "film.gif", np.concatenate([*frames, clouds[-1:]])),
    ]


# --- measures ------------------------------------------------------------------------------------


def likelihood(trained: runner.Trained[NormalizingFlow]) -> list[Number]:
    """log p(x) of test points, exactly; of test images bounds on log P(x), by one dequantization
    and by several."""
    system, options = trained.system, trained.config.drawing
    batch = trained.test(options.bound_images)

    def mean_of(samples: int) -> float:
        bound = lambda weights, key, batch: system.bound(  # noqa: E731
            weights.params, key, batch["x"], samples
        )
        return float(trained.over("likelihood", bound, batch, key=4, size=100).mean())

    how = f"{len(batch['x'])} test examples, {trained.ema}"
    if not system.images:
        return [Number("log_likelihood", mean_of(1), f"nats a point, exact, {how}")]
    kind = "uniform" if system.dequantizer is None else "variational"
    found = []
    for name, samples in (("elbo", 1), ("log_likelihood", options.bound_samples)):
        about = f"bound, {kind} dequantization, {samples} samples an image, {how}"
        label = "bits_per_dimension" + ("_elbo" if samples == 1 else "")
        found += likelihoods(name, mean_of(samples), trained.data, about, label)
    return found
