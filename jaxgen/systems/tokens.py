"""Diffusion over tokens: bytes of text, or the pixels of images row by row.

``experiments.d3pm`` is its options.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Tokens
from jaxgen.decoding import Filter, everything, warmed
from jaxgen.diffusion.discrete import (
    Alpha,
    Denoiser,
    Step,
    denoised,
    knowing,
    linear,
    sample,
    sample_blocks,
    sample_path,
)
from jaxgen.evaluation.report import Number
from jaxgen.losses.times import stratified_times
from jaxgen.models.transformer import TokenDenoiser
from jaxgen.plotting import save_film
from jaxgen.runner.modalities import columns, save_texts
from jaxgen.systems.autoregressive import save_completions
from jaxgen.systems.bounds import binarized, examples_of, in_bits, likelihoods, tokens_of
from jaxgen.training.step import Metrics, Now

HIDDEN = ord("_")  # what a masked byte is shown as

# (key, denoise, x_0 [B, L], t [B], or of n blocks [B, n]) -> [B] nats, whose mean over t in (0, 1]
# is the bound, or more
Objective = Callable[[Array, Denoiser, Array, Array], Array]


@dataclass(frozen=True, eq=False)
class TokenDiffusion(runner.System):
    """A network of noisy tokens, and the way back from noise.

    Noise ``pi`` has as many entries as there are tokens, or the mask beside them. Where the network
    has a ``block``, blocks of so many tokens come one after the other, and each is a diffusion
    given those before it (Arriola et al. 2025): as the transformer's with blocks of one token, and
    with one block the diffusion of all.
    """

    network: TokenDenoiser
    pi: Array
    objective: Objective  # of training
    bound: Objective
    step: Callable[..., Step]  # by kept, what is kept of log p(x_0|x_t)
    times: np.ndarray  # of sampling, falling from 1 to 0
    alpha: Alpha = linear
    binary: bool = False  # bits of images, drawn at random
    temperature: float = 1.0
    keep: Filter = everything
    draws: int = 32  # of t and x_t, for the bound of each example
    copies: int = 1  # noisy forms of each example in training, beside one clean one

    @property
    def labelled(self) -> bool:
        return self.network.classes is not None

    @property
    def length(self) -> int:
        """L."""
        return math.prod(self.data.shape)

    @property
    def masks(self) -> bool:
        """Whether noise hides tokens."""
        return len(self.pi) > self.network.tokens

    @property
    def blocks(self) -> int | None:
        """n, where there are blocks."""
        return None if self.network.block is None else self.length // self.network.block

    @property
    def evaluations(self) -> int:
        """Of the network, for a draw."""
        blocks = self.blocks or 0
        return max(blocks, 1) * (len(self.times) - 1) + blocks

    def init(self, key: Array) -> Any:
        one, x = jnp.zeros(1, jnp.int32), jnp.zeros((1, self.length), jnp.int32)
        return self.network.init(key, x, jnp.ones(1), one, x_0=x)

    def tokens(self, key: Array, x: Any) -> Array:
        """Examples of the data as tokens ``[B, L]``."""
        return tokens_of(self.data, self.binary, key, x)

    def shown(self, tokens: Array) -> Array:
        """Tokens as samples."""
        return examples_of(self.data, self.network.tokens, tokens)

    def denoise(self, params: Any, labels: Array, x_0: Array | None = None, **how: Any) -> Denoiser:
        """(x_t, t) -> log p(x_0|x_t), told labels ``[B]`` where the network is; a block is told
        those of x_0 before it."""

        def log_p_0(x_t: Array, t: Array) -> Array:
            logits: Any = self.network.apply({"params": params}, x_t, t, labels, x_0=x_0, **how)
            of_tokens = t if t.ndim == 1 else jnp.repeat(t, self.network.block or 1, axis=1)
            return denoised(logits, x_t, self.alpha(of_tokens), self.pi)

        return log_p_0

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """Nats a token, the mean over each example."""
        key_x, key_t, key_drop, key = jax.random.split(key, 4)
        x_0 = self.tokens(key_x, batch["x"])
        how = {"rngs": {"dropout": key_drop}, "train": now.train}
        u = stratified_times(key_t, len(x_0) * (self.blocks or 1), low=0.0)
        denoise = self.denoise(params, labels_of(batch), x_0, **how)
        if not now.train:
            t = self.times_at(u)
            nats = self.bound(key, denoise, x_0, t) / self.length
            return nats, {"t": t} if self.blocks is None else {}
        # of each block the times of its copies are as far apart as can be
        each = [self.times_at(u, i / self.copies) for i in range(self.copies)]
        x = jnp.tile(x_0, (self.copies, 1))
        nats = self.objective(key, denoise, x, jnp.concatenate(each)) / self.length
        return nats.reshape(self.copies, -1).mean(axis=0), {}

    def times_at(self, u: Array, moved: float | Array = 0.0) -> Array:
        """Times in (0, 1] of a batch, ``[B]`` or of its blocks ``[B, n]``, from a row of as many in
        [0, 1), which are ``moved`` on, and from the end to the beginning."""
        t = 1 - (u + moved) % 1.0
        return t if self.blocks is None else t.reshape(self.blocks, -1).T

    def nats(self, params: Any, key: Array, batch: Any) -> Array:
        """The bound on -log p(x) of each example, ``[B]``, by draws at times that are spread."""
        key_x, key_t, key = jax.random.split(key, 3)
        x_0 = self.tokens(key_x, batch["x"])
        denoise = self.denoise(params, labels_of(batch), x_0)
        first = jax.random.uniform(key_t, (len(x_0) * (self.blocks or 1),))

        def one(i: Array) -> Array:
            t = self.times_at(first, i / self.draws)
            return self.bound(jax.random.fold_in(key, i), denoise, x_0, t)

        return jax.lax.map(one, jnp.arange(self.draws)).mean(axis=0)

    def reverse(
        self,
        run: Callable[..., Any],
        key: Array,
        weights: Any,
        given: Any,
        known: tuple[Array, Array] | None = None,
    ) -> Any:
        """``run``, sample or sample_path, from noise; of ``known = (where, x_0)``, ``[B, L]``
        each, the tokens x_0 stay where it says."""
        key_start, key = jax.random.split(key)
        x_T = self.noise(key_start, given)
        denoise = self.denoise(weights.params, labels_of(given))
        if known is not None and self.masks:
            x_T = jnp.where(*known, x_T)
        elif known is not None:
            denoise = knowing(denoise, *known)
        return run(key, denoise, x_T, self.times, self.step(kept=self.kept))

    def in_blocks(
        self, key: Array, weights: Any, given: Any, known: tuple[Array, Array] | None = None
    ) -> Array:
        """:meth:`reverse`, block after block; what is known of later ones is not seen."""
        key_start, key = jax.random.split(key)
        x_T = self.noise(key_start, given)
        x_T = x_T if known is None else jnp.where(*known, x_T)
        labels, variables = labels_of(given), {"params": weights.params}

        def extend(x_t: Array, t: Array, cache: Any, place: Array) -> tuple[Array, Any]:
            told = x_t, t, labels, cache, place
            logits, cache = self.network.apply(variables, *told, method="extend")
            return denoised(logits, x_t, self.alpha(t), self.pi), cache

        cache = self.network.transformer.empty(len(x_T))
        block: Any = self.network.block
        step = self.step(kept=self.kept)
        return sample_blocks(key, extend, cache, x_T, block, self.times, step)

    def noise(self, key: Array, given: Any) -> Array:
        """x_T ``[B, L]``."""
        shape = len(jax.tree.leaves(given)[0]), self.length
        return jax.random.categorical(key, jnp.log(self.pi), shape=shape).astype(jnp.int32)

    def kept(self, log_p_0: Array) -> Array:
        """log p(x_0|x_t) by the temperature, of the tokens that are kept."""
        return jax.nn.log_softmax(self.keep(warmed(log_p_0, self.temperature)))

    def drawn(
        self, key: Array, weights: Any, given: Any, known: tuple[Array, Array] | None = None
    ) -> Array:
        """Tokens x_0 ``[B, L]``, those that are known as they are."""
        if self.blocks is None:
            return self.reverse(sample, key, weights, given, known)
        return self.in_blocks(key, weights, given, known)

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.shown(self.drawn(key, weights, given))

    def how(self) -> str:
        each = "" if self.blocks is None else f" for each of {self.blocks} blocks"
        bits = binarized(self.data, self.binary)
        return f"{len(self.times) - 1} steps{each}, temperature {self.temperature:g}{bits}"

    def likened(self) -> DataSet:
        return in_bits(self.data, self.binary)


def labels_of(batch: Any) -> Array:
    """Those of a batch, or zeros."""
    return batch.get("label", jnp.zeros(len(jax.tree.leaves(batch)[0]), jnp.int32))


# --- pictures ------------------------------------------------------------------------------------


def as_text(kind: Tokens, tokens: np.ndarray) -> str:
    """One example, with what is masked shown as ``_``."""
    return kind.decode(np.where(tokens < kind.vocabulary, tokens, HIDDEN))


def path_of(system: TokenDiffusion, key: Array, weights: Any, given: Any) -> Array:
    """Tokens on their way, ``[n, B, L]``: after each step, or after each block."""
    if system.blocks is None:
        return system.reverse(sample_path, key, weights, given)[1]
    x_0 = system.drawn(key, weights, given)
    block_of = jnp.arange(system.length) * system.blocks // system.length
    done = block_of[None] < jnp.arange(1 + system.blocks)[:, None]
    return jnp.where(done[:, None], x_0[None], len(system.pi) - 1)


def film(trained: runner.Trained[TokenDiffusion]) -> Path:
    """``film.gif``: the way from noise to samples, of about 50 frames; of text, ``film.txt``: one
    sample on its way, eight times."""
    system, kind = trained.system, trained.data.kind
    wide = columns(trained)
    given = trained.data.given(1 if isinstance(kind, Tokens) else 3 * wide)
    draw = jax.jit(lambda key, w: path_of(system, key, w, given))
    path = np.asarray(draw(jax.random.fold_in(trained.key, 2), trained.weights))
    wanted = 8 if isinstance(kind, Tokens) else 50
    frames = path[np.unique(np.linspace(0, len(path) - 1, wanted).astype(int))]
    if isinstance(kind, Tokens):
        return save_texts(trained.results / "film.txt", [as_text(kind, x[0]) for x in frames])
    seen = np.stack([system.shown(x) for x in frames])
    return save_film(trained.results / "film.gif", seen, wide)


def filled(trained: runner.Trained[TokenDiffusion]) -> Path:
    """Tokens that are hidden, drawn given the others: ``completions.png`` of images with their
    upper half; of test texts without their middle quarter, ``infilling.txt``. A block knows the
    others of its own and those before."""
    system, kind = trained.system, trained.data.kind

    def complete(weights: Any, key: Array, batch: Any, known: Array) -> tuple[Array, Array]:
        x_0 = system.tokens(jax.random.key(0), batch["x"])  # the same bits
        known = jnp.broadcast_to(known, batch["x"].shape).reshape(x_0.shape)
        drawn = system.drawn(key, weights, batch, (known, x_0))
        return system.shown(x_0), system.shown(drawn)

    if not isinstance(kind, Tokens):
        return save_completions(trained, complete)
    places = np.arange(kind.length)
    known = np.abs(2 * places + 1 - kind.length)[None] >= kind.length / 4
    fill = lambda w, key, batch: complete(w, key, batch, jnp.asarray(known))  # noqa: E731
    x, drawn = trained.over("infilling", fill, trained.test(4), key=10)
    rows = zip(x, np.where(known, x, HIDDEN), drawn, strict=True)
    told = "filled" if system.blocks is None else "filled, told of what is before"
    texts = [
        "\n\n".join(
            f"{name}:\n{kind.decode(tokens)}"
            for name, tokens in zip(("test", "given", told), row, strict=True)
        )
        for row in rows
    ]
    return save_texts(trained.results / "infilling.txt", texts)


# --- measures ------------------------------------------------------------------------------------


def bits(trained: runner.Trained[TokenDiffusion]) -> list[Number]:
    """The bound on the test set: bits a token, or a dimension of images, and nats of images."""
    system, data = trained.system, trained.data
    measured = lambda w, key, batch: system.nats(w.params, key, batch)  # noqa: E731
    nats = trained.over("bound", measured, trained.test(), key=4, size=50)
    images = isinstance(data.kind, Image)
    noun = "images" if images else "windows of text"
    tested = f"{len(nats)} test {noun}{binarized(data, system.binary)}"
    about = f"bound, {tested}, {system.draws} draws each, {trained.ema}"
    if not images:
        value = float(nats.mean()) / system.length / math.log(2)
        return [Number("bits_per_token", value, f"bits a token, {about}")]
    return likelihoods("elbo", -float(nats.mean()), data, about)
