"""A VAE of many levels, inferred from the top down (Sonderby et al. 2016; Vahdat & Kautz 2020).

``experiments.hvae`` is its options.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.data.records import some
from jaxgen.distributions import Normal, kl_normal, standard_normal
from jaxgen.evaluation.latents import ACTIVE
from jaxgen.evaluation.report import Number
from jaxgen.losses import elbo, hierarchy
from jaxgen.losses.hierarchy import Level, LevelTerms, Step
from jaxgen.losses.latents import free_bits
from jaxgen.losses.regularization import power_vectors, spectral_norms
from jaxgen.plotting import save_pairs, save_rows, save_together
from jaxgen.runner.system import CHUNK, END, SCORED
from jaxgen.systems.bounds import Over, prepared, shown
from jaxgen.systems.conditions import count_of
from jaxgen.training.logging import console
from jaxgen.training.step import Aux, Metrics, Now


@dataclass(frozen=True)
class Measuring:
    """How well to measure the likelihood, and how to draw."""

    importance_samples: runner.Count = 500  # K of the importance-sampled log-likelihood.
    likelihood_images: runner.Count = 1000  # Test examples whose log-likelihood is estimated.
    temperature: runner.NonNegative = 1.0  # Of the noise in samples, less than 1 for clearer ones.


# (p(z|state), what x adds) -> q(z|state, x)
Combine = Callable[[Normal, Normal], Normal]


@dataclass(frozen=True, eq=False)
class HVae(runner.System):
    """``levels`` from the top down, told x by the features of ``bottom``."""

    bottom: nn.Module
    levels: tuple[Any, ...]  # modules with the methods of models.ladder.LevelNet
    decoder: nn.Module
    likelihood: elbo.Likelihood
    binary: bool
    combine: Combine
    beta: Over
    free: float = 0.0  # nats of each level that cost nothing
    sizes: tuple[int, ...] = ()  # of z by level: balances their KL while its weight rises
    spectral: float = 0.0  # weight of the kernels' largest singular values
    temperature: float = 1.0  # of samples

    def init(self, key: Array) -> Any:
        key, key_bottom, key_decoder, key_spectral = jax.random.split(key, 4)
        x = jnp.zeros((1, *self.data.shape))
        features, bottom = self.bottom.init_with_output(key_bottom, x)
        top_first: Any = list(features)[::-1]  # pyright: ignore[reportArgumentType]
        state: Any = jnp.zeros_like(top_first[0])
        params = {"bottom": bottom["params"], "start": state[0]}
        for i, (net, h) in enumerate(zip(self.levels, top_first, strict=True)):
            state, level = net.init_with_output(jax.random.fold_in(key, i), state, h)
            params[f"level_{i}"] = level["params"]
        params["decoder"] = self.decoder.init(key_decoder, state)["params"]
        if not self.spectral:
            return {"params": params}
        return {"params": params, "spectral": power_vectors(key_spectral, params)}

    def steps(self, params: Any, x: Array | None = None) -> list[Step]:
        """The levels from the top down; they know q where x is given."""
        features: list[Any] = [None] * len(self.levels)
        if x is not None:
            found: Any = self.bottom.apply({"params": params["bottom"]}, x)
            features = found[::-1]

        def step(i: int, h: Array | None) -> Step:
            net = partial(self.levels[i].apply, {"params": params[f"level_{i}"]})

            def level(state: Array) -> Level:
                p: Any = net(state, method="prior") if i else self.top(state)
                then: Any = lambda z: net(state, z, method="descend")  # noqa: E731
                if h is None:
                    return Level(p, then)
                below: Any = net(state, h, method="below")
                return Level(p, then, self.combine(p, below))

            return level

        return [step(i, h) for i, h in enumerate(features)]

    def top(self, state: Array) -> Normal:
        """p of the topmost level, N(0, I).

        A scale that is learned would close the way at first: it is easier to shrink what the
        decoder sees of z than to learn from it.
        """
        return standard_normal((*state.shape[:-1], self.levels[0].latents))

    def decode(self, params: Any, state: Array) -> Any:
        """p(x|z), from the last state."""
        maps: Any = self.decoder.apply({"params": params["decoder"]}, state)
        return self.likelihood.density(maps)

    def start(self, params: Any, count: int) -> Array:
        """What the topmost level sees: a state that is learned."""
        return jnp.repeat(params["start"][None], count, axis=0)

    def terms(self, params: Any, key: Array, x: Array) -> LevelTerms:
        """The terms of the bound."""
        steps, decode = self.steps(params, x), partial(self.decode, params)
        return hierarchy.level_terms(key, steps, self.start(params, len(x)), decode, x)

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics | Aux]:
        key_data, key_z = jax.random.split(key)
        terms = self.terms(params, key_z, prepared(self.data, self.binary, key_data, batch["x"]))
        metrics = {"reconstruction": terms.reconstruction, "kl": terms.kl.sum(axis=0)}
        metrics |= {f"kl_{len(terms.kl) - i}": kl for i, kl in enumerate(terms.kl)}
        if not now.train:
            return -terms.elbo(), metrics
        beta = self.beta(now.step)
        loss = beta * self.weighed(terms.kl, beta) - terms.reconstruction
        if not self.spectral:
            return loss, metrics
        norms, vectors = spectral_norms(params, now.memory["spectral"])
        metrics["spectral"] = norms
        return loss + self.spectral * norms, Aux(metrics, {"spectral": vectors})

    def weighed(self, kl: Array, beta: Array) -> Array:
        """The KL ``[L, B]`` of all levels together, as training sees it."""
        if self.free:
            return free_bits(kl.T, self.free)
        if self.sizes:
            weights = jnp.where(beta < 1, hierarchy.balanced(kl, self.sizes), 1.0)
            kl = weights[:, None] * kl
        return kl.sum(axis=0)

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.drawn(key, weights, count_of(given), self.temperature)

    def drawn(self, key: Array, weights: Any, count: int, temperature: float) -> Array:
        """Means of p(x|z) for z of the prior, cooled."""
        steps, start = self.steps(weights.params), self.start(weights.params, count)
        state, _ = hierarchy.draw_levels(key, steps, start, temperature=temperature)
        return shown(self.binary, self.decode(weights.params, state).mean)

    def score(self, weights: Any, step: Any = END) -> float:
        """The bound in validation; levels that are not used are told."""
        batch = some(self.data.validation, SCORED)
        values, terms = self.losses(weights, jax.random.key(0), batch, CHUNK)
        kl = {i: terms[f"kl_{i}"].mean() for i in range(len(self.levels), 0, -1)}
        dead = [str(i) for i, nats in kl.items() if nats < ACTIVE * self.levels[-i].latents]
        if dead:
            console.print(
                f"warning: level {', '.join(dead)} is not used (its KL is below {ACTIVE} nats a "
                "latent): see --kl-warmup, --kl-balance and --free-bits."
            )
        return float(values.mean())

    def how(self) -> str:
        cooled = "" if self.temperature == 1 else f" at temperature {self.temperature:g}"
        return f"means of p(x|z), z of the prior{cooled}"


# --- pictures and measures -----------------------------------------------------------------------


def reconstructions(trained: runner.Trained[HVae]) -> list[Path]:
    """``reconstructions.png``: original, reconstruction by the means of q, original, ..."""
    system = trained.system

    def both(weights: Any, key: Array, batch: Any) -> tuple[Array, Array]:
        x = prepared(system.data, system.binary, key, batch["x"])
        state: Any = system.start(weights.params, len(x))
        for step in system.steps(weights.params, x):
            level = step(state)
            state = level.then((level.q or level.p).mean)
        mean = system.decode(weights.params, state).mean
        return shown(system.binary, x), shown(system.binary, mean)

    pairs = trained.over("reconstructions", both, trained.test(50))
    return [save_pairs(trained.results / "reconstructions.png", *pairs)]


def held_by_levels(trained: runner.Trained[HVae]) -> list[Path]:
    """``levels.png``: samples of which the first levels are kept, and those below drawn anew.

    What stays the same along a row is what the levels named beside it hold.
    """
    system, count = trained.system, len(trained.system.levels)
    rows = {}
    for kept in range(count + 1):

        def draw(weights: Any, key: Array, row: Any, kept: int = kept) -> Array:
            steps, one = system.steps(weights.params), jax.random.key(7)
            _, z = hierarchy.draw_levels(one, steps, system.start(weights.params, 1))
            known = [jnp.repeat(z_l, len(row), axis=0) for z_l in z[:kept]]
            start = system.start(weights.params, len(row))
            state, _ = hierarchy.draw_levels(key, steps, start, known=known)
            return shown(system.binary, system.decode(weights.params, state).mean)

        name = (
            "all drawn"
            if not kept
            else f"kept: {count}" + (f" to {count - kept + 1}" if kept > 1 else "")
        )
        rows[name] = trained.over("levels", draw, np.arange(10), key=10 + kept, size=10)
    return [save_rows(trained.results / "levels.png", rows)]


def temperatures(trained: runner.Trained[HVae]) -> list[Path]:
    """``temperatures.png``: samples of which the noise of every level is made smaller."""
    system, rows = trained.system, {}
    for temperature in (1.0, 0.85, 0.7, 0.5):

        def draw(weights: Any, key: Array, row: Any, temperature: float = temperature) -> Array:
            return system.drawn(key, weights, len(row), temperature)

        rows[f"temperature {temperature:g}"] = trained.over(
            "temperatures", draw, np.arange(10), key=30, size=10
        )
    return [save_rows(trained.results / "temperatures.png", rows)]


def kl_by_latent(trained: runner.Trained[HVae]) -> list[np.ndarray]:
    """The KL of each latent over test examples, in nats, by level from the top down."""
    system = trained.system

    def kl(weights: Any, key: Array, batch: Any) -> list[Array]:
        key_x, key_z = jax.random.split(key)
        x = prepared(system.data, system.binary, key_x, batch["x"])
        start = system.start(weights.params, len(x))
        _, levels = hierarchy.infer_levels(key_z, system.steps(weights.params, x), start)
        return [kl_normal(level.q, level.p).reshape(len(x), -1) for level in levels]

    over = lambda: trained.over("latents", kl, trained.test(1000), key=9, size=250)  # noqa: E731
    return [found.mean(axis=0) for found in trained.once("kl by latent", over)]


def latents(trained: runner.Trained[HVae]) -> list[Path]:
    """``latents.png``: the KL of each latent, in falling order, level by level."""
    levels = kl_by_latent(trained)
    lines = {
        f"level {len(levels) - i}": [*enumerate(np.sort(kl)[::-1].tolist(), 1)]
        for i, kl in enumerate(levels)
    }
    path = trained.results / "latents.png"
    return [save_together(path, lines, "latents in falling order", "KL, nats")]


def use_of_latents(trained: runner.Trained[HVae]) -> list[Number]:
    """How many latents of each level are used."""
    levels = kl_by_latent(trained)
    return [
        Number(
            f"active_units_{len(levels) - i}",
            float((kl > ACTIVE).sum()),
            f"of {len(kl)}: KL(q||p) above {ACTIVE} nats, {len(trained.test(1000)['x'])} test "
            f"examples, {trained.ema}",
        )
        for i, kl in enumerate(levels)
    ]


def bound(trained: runner.Trained[HVae]) -> list[Number]:
    """The ELBO of the test set, and the KL by level."""
    _, terms = trained.over("bound", trained.system.measured, trained.test(), key=2, size=250)
    elbos = terms["reconstruction"] - terms["kl"]
    how = f"nats an example, {len(elbos)} test examples, one draw of z, {trained.ema}"
    names = ["reconstruction", "kl", *(f"kl_{i}" for i in range(len(trained.system.levels), 0, -1))]
    found = [Number("elbo", float(elbos.mean()), how)]
    return found + [Number(name, float(terms[name].mean()), how) for name in names]


def log_likelihood(trained: runner.Trained[HVae]) -> list[Number]:
    """log p(x) of test examples by importance sampling over all levels."""
    system, options = trained.system, trained.config.measured
    k: int = options.importance_samples

    def estimate(weights: Any, key: Array, batch: Any) -> Array:
        key_data, key_z = jax.random.split(key)
        x = prepared(system.data, system.binary, key_data, batch["x"])
        steps, decode = system.steps(weights.params, x), partial(system.decode, weights.params)
        start = system.start(weights.params, len(x))

        def weigh(key: Array) -> Array:
            return hierarchy.level_log_weight(key, steps, start, decode, x)

        log_w = jax.lax.map(weigh, jax.random.split(key_z, k), batch_size=math.gcd(k, 10))
        return jax.nn.logsumexp(log_w, axis=0) - jnp.log(k)

    nats = trained.over(
        "likelihood", estimate, trained.test(options.likelihood_images), key=4, size=250
    )
    how = f"nats an example, {k} importance samples, {len(nats)} test examples"
    return [Number("log_likelihood", float(nats.mean()), f"{how}, {trained.ema}")]
