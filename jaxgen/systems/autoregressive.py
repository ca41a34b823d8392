"""p(x) = prod_i p(x_i | x_<i): exact likelihoods, one entry after the other.

``experiments.made`` and ``experiments.pixelcnn`` are its options.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Tokens
from jaxgen.distributions import InOrder, sum_event
from jaxgen.evaluation.report import Number
from jaxgen.losses.elbo import Likelihood
from jaxgen.plotting import save_grid, save_rows
from jaxgen.systems.bounds import binarized, in_bits, likelihoods, prepared, shown
from jaxgen.training.step import Metrics, Now

TIMED, TIMED_TEXTS = 100, 16  # samples that are drawn by the clock


@dataclass(frozen=True, eq=False)
class Autoregressive(runner.System):
    """``network(x, *told)`` answers the maps of p(x_i | x_<i), which the ``likelihood`` reads.

    It is told y ``[B, classes]`` of data with that many ``classes``, or, of several ``orders``,
    which of them to take: the model is then their even mixture (Germain et al. 2015).
    """

    network: nn.Module
    likelihood: Likelihood
    binary: bool
    classes: int | None = None
    orders: int = 0

    @property
    def labelled(self) -> bool:
        return self.classes is not None

    def told(self, labels: Array, order: Array | int) -> tuple[Any, ...]:
        """What the network is told beside x."""
        if self.orders:
            return None, order
        return (jax.nn.one_hot(labels, self.classes),) if self.classes else ()

    def init(self, key: Array) -> Any:
        x = jnp.zeros((1, *self.data.shape))
        return self.network.init(key, x, *self.told(jnp.zeros(1, jnp.int32), 0))

    def density(
        self, params: Any, labels: Array, order: Array | int = 0, dropout: Array | None = None
    ) -> InOrder:
        """p(x) of as many examples as there are ``labels``; in training with a key for dropout."""
        told, rngs = self.told(labels, order), None if dropout is None else {"dropout": dropout}
        maps = lambda x: self.network.apply({"params": params}, x, *told, rngs=rngs)  # noqa: E731
        start = jnp.zeros((labels.shape[0], *self.data.shape))
        return InOrder(self.likelihood.density, maps, start)  # pyright: ignore[reportArgumentType]

    def log_prob(self, params: Any, x: Array, labels: Array) -> Array:
        """log p(x), ``[B]`` nats: of several orders, that of their mixture."""
        one = lambda i: sum_event(self.density(params, labels, i).log_prob(x))  # noqa: E731
        if not self.orders:
            return one(0)
        each = jax.lax.map(one, jnp.arange(self.orders))
        return jax.nn.logsumexp(each, axis=0) - jnp.log(self.orders)

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """-log p(x); in training of one order, which changes from step to step."""
        key_x, key = jax.random.split(key)
        x, labels = prepared(self.data, self.binary, key_x, batch["x"]), batch["label"]
        if not now.train:
            return -self.log_prob(params, x, labels), {}
        order = jnp.asarray(now.step) % self.orders if self.orders else 0
        p = self.density(params, labels, order, dropout=key)
        return -sum_event(p.log_prob(x)), {}

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """By each of the orders as many, up to one, in places that the key draws."""
        params, labels = weights.params, given["label"]
        if not self.orders:
            return shown(self.binary, self.density(params, labels).sample(key))
        key_place, key = jax.random.split(key)
        some = labels[: -(-labels.shape[0] // self.orders)]
        one = lambda i: self.density(params, some, i).sample(jax.random.fold_in(key, i))  # noqa: E731
        drawn = jax.lax.map(one, jnp.arange(self.orders)).reshape(-1, *self.data.shape)
        place = jax.random.permutation(key_place, len(drawn))[: labels.shape[0]]
        return shown(self.binary, drawn[place])

    def how(self) -> str:
        return f"draws of p(x), entry by entry{binarized(self.data, self.binary)}"

    def likened(self) -> DataSet:
        return in_bits(self.data, self.binary)


# --- pictures and measures -----------------------------------------------------------------------


def completions(trained: runner.Trained[Autoregressive]) -> list[Path]:
    """``completions.png``: test images, their upper halves, and draws of the rest."""
    system = trained.system
    if system.orders:  # what is known would have to come first
        return []

    def complete(weights: Any, key: Array, batch: Any, known: Array) -> tuple[Array, Array]:
        x = prepared(system.data, system.binary, jax.random.key(0), batch["x"])  # the same bits
        p = system.density(weights.params, batch["label"])
        return shown(system.binary, x), shown(system.binary, p.complete(key, x, known))

    return [save_completions(trained, complete)]


def save_completions(trained: runner.Trained[Any], complete: Callable[..., Any]) -> Path:
    """``completions.png``, of ``complete(weights, key, batch, known [1, H, 1, 1]) -> (x, drawn)``,
    in [-1, 1]."""
    height = trained.data.shape[0]
    known = (jnp.arange(height) < height // 2).reshape(1, -1, 1, 1)

    def both(weights: Any, key: Array, batch: Any) -> tuple[Array, Array, Array]:
        x, drawn = complete(weights, key, batch, known)
        return x, jnp.where(known, x, -1.0), drawn

    return save_drawn(trained, both, ("test", "given"))


def save_drawn(
    trained: runner.Trained[Any], complete: Callable[..., Any], first: tuple[str, ...]
) -> Path:
    """``completions.png``: of ten test images what ``complete(weights, key, batch)`` answers by the
    names of ``first``, and four draws of the last."""
    rows, batch = {}, trained.test(10)
    for i in range(4):
        *found, drawn = trained.over("completions", complete, batch, key=10 + i)
        rows = rows or dict(zip(first, found, strict=True))
        rows[f"drawn, {i + 1}"] = drawn
    return save_rows(trained.results / "completions.png", rows)


def receptive_field(trained: runner.Trained[Autoregressive]) -> list[Path]:
    """``receptive-field.png``: how much the pixel in the middle hangs on each other one.

    The mean of |d maps / d x| over test images, its root, the largest white.
    """
    system, shape = trained.system, trained.data.shape
    if system.orders:  # each has its own
        return []
    middle = shape[0] // 2, shape[1] // 2

    def field(weights: Any, key: Array, batch: Any) -> Array:
        x = prepared(system.data, system.binary, key, batch["x"])
        maps = system.density(weights.params, batch["label"]).maps
        of_middle, pull = jax.vjp(lambda x: maps(x)[:, middle[0], middle[1]], x)
        # of each map by itself: slopes of several could cancel out
        one = lambda row: jnp.abs(pull(jnp.broadcast_to(row, of_middle.shape))[0])  # noqa: E731
        slopes = jax.lax.map(one, jnp.eye(of_middle.shape[1]))
        return slopes.sum(axis=(0, -1))[..., None]

    found = trained.over("receptive field", field, trained.test(100), size=50).mean(axis=0)
    seen = np.sqrt(found / max(found.max(), 1e-30))
    return [save_grid(trained.results / "receptive-field.png", 2 * seen[None] - 1, 1)]


def likelihood(trained: runner.Trained[Autoregressive]) -> list[Number]:
    """log p(x) of the test set, exactly."""
    system, batch = trained.system, trained.test()

    def log_prob(weights: Any, key: Array, batch: Any) -> Array:
        x = prepared(system.data, system.binary, key, batch["x"])
        return system.log_prob(weights.params, x, batch["label"])

    nats = float(trained.over("likelihood", log_prob, batch, key=4, size=100).mean())
    tested = f"{len(batch['label'])} test examples{binarized(trained.data, system.binary)}"
    orders = f", {system.orders} orders" if system.orders else ""
    how = f"{tested}, exact{orders}, {trained.ema}"
    return likelihoods("log_likelihood", nats, trained.data, how)


def seconds_to_draw(trained: runner.Trained[Any], count: int) -> float:
    """Of so many samples at once, compilation apart."""
    given, draw = trained.data.given(count), jax.jit(trained.system.sample)
    jax.block_until_ready(draw(jax.random.key(0), trained.weights, given))
    begun = time.perf_counter()
    jax.block_until_ready(draw(jax.random.key(1), trained.weights, given))
    return time.perf_counter() - begun


def time_to_draw(trained: runner.Trained[Any]) -> list[Number]:
    """Seconds for a hundred images or points, or for 16 texts."""
    kind = trained.data.kind
    count = TIMED_TEXTS if isinstance(kind, Tokens) else TIMED
    drawn = f"{count} {kind.noun} at once, {trained.system.how()}"
    how = f"seconds for {drawn}, on one {jax.devices()[0].platform} device"
    return [Number("time_to_draw", seconds_to_draw(trained, count), how)]
