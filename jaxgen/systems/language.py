"""Language models: p(x) = prod_i p(x_i | x_<i) over tokens, and what follows a prompt.

An image is a text whose tokens are the levels of its pixels, row by row.

``experiments.gpt`` is its options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Batch, DataSet, Image
from jaxgen.decoding import Filter, continued, everything
from jaxgen.evaluation.report import Number
from jaxgen.models.transformer import Transformer
from jaxgen.systems.autoregressive import (
    TIMED_TEXTS,
    save_completions,
    seconds_to_draw,
    time_to_draw,
)
from jaxgen.systems.bounds import binarized, examples_of, in_bits, likelihoods, tokens_of
from jaxgen.training.step import Metrics, Now


def prompted(prompts: tuple[str, ...], count: int) -> Batch:
    """``count`` prompts in turn, as bytes that end at the same place, and their lengths."""
    encoded = [np.frombuffer(p.encode(), np.uint8) for p in prompts]
    longest = max(map(len, encoded))
    rows = np.zeros((len(encoded), longest), np.int32)
    for row, tokens in zip(rows, encoded, strict=True):
        row[longest - len(tokens) :] = tokens
    turn = np.arange(count) % len(encoded)
    return {"prompt": rows[turn], "length": np.array([*map(len, encoded)], np.int32)[turn]}


@dataclass(frozen=True, eq=False)
class Language(runner.System):
    """A transformer over tokens, bytes of text or pixels row by row, and one token more, with which
    every sequence begins."""

    network: Transformer
    binary: bool = False  # bits of images, drawn at random
    temperature: float = 1.0
    keep: Filter = everything

    @property
    def begin(self) -> int:
        """The token with which sequences begin."""
        return self.network.vocabulary - 1

    def init(self, key: Array) -> Any:
        return self.network.init(key, jnp.zeros((1, self.network.length), jnp.int32))

    def tokens(self, key: Array, x: Any) -> Array:
        """Examples of the data as tokens ``[B, L]``."""
        return tokens_of(self.data, self.binary, key, x)

    def shown(self, tokens: Array) -> Array:
        """Tokens as samples."""
        return examples_of(self.data, self.begin, tokens)

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """Nats a token, the mean over each sequence."""
        key_x, key = jax.random.split(key)
        x = self.tokens(key_x, batch["x"])
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=self.begin)
        how = {"rngs": {"dropout": key}, "train": now.train}
        logits: Any = self.network.apply({"params": params}, before, **how)
        nats = optax.softmax_cross_entropy_with_integer_labels(self.possible(logits), x)
        return nats.mean(axis=1), {"bits_per_token": nats.mean(axis=1) / math.log(2)}

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """Images; of text prompts and what follows them, as much after each as after the longest:
        zeros after that."""
        if "prompt" in given:
            return self.followed(key, weights.params, given["prompt"], given["length"])
        nothing = jnp.zeros((len(given["label"]), 0), jnp.int32)
        return self.shown(self.followed(key, weights.params, nothing, jnp.zeros(len(nothing), int)))

    def followed(self, key: Array, params: Any, prompt: Array, length: Array) -> Array:
        """Tokens ``[B, L]``: prompts, the last ``length [B]`` of ``[B, < L]``, and what follows."""
        count, known = prompt.shape
        filling = known - length  # before the token that begins
        slots = jnp.arange(known + 1)[None]
        shifted = jnp.pad(prompt, ((0, 0), (1, 0)))
        tokens = jnp.where(slots == filling[:, None], self.begin, shifted)

        def extend(tokens: Array, cache: Any, at: Any) -> Any:
            how: Any = {"method": "extend"}
            found = self.network.apply({"params": params}, tokens, cache, at, filling, **how)
            return self.possible(found[0]), found[1]

        cache, new = self.network.empty(count), self.network.length - known
        how = {"temperature": self.temperature, "keep": self.keep}
        drawn = continued(key, extend, cache, tokens, new, **how)
        whole = jnp.concatenate([prompt, drawn], axis=1)
        places = jnp.arange(whole.shape[1])[None] + filling[:, None]
        moved = jnp.take_along_axis(whole, jnp.minimum(places, whole.shape[1] - 1), axis=1)
        return jnp.where(places < whole.shape[1], moved, 0)

    def possible(self, logits: Array) -> Array:
        """Without the token that begins."""
        return logits.at[..., self.begin].set(-jnp.inf)

    def how(self) -> str:
        bits = binarized(self.data, self.binary)
        return f"token by token, temperature {self.temperature:g}{bits}"

    def likened(self) -> DataSet:
        return in_bits(self.data, self.binary)


def completions(trained: runner.Trained[Language]) -> list[Path]:
    """``completions.png``: test images, their upper halves, and draws of the rest."""
    system = trained.system
    if not isinstance(trained.data.kind, Image):
        return []

    def complete(weights: Any, key: Array, batch: Any, known: Array) -> tuple[Array, Array]:
        x = system.tokens(jax.random.key(0), batch["x"])  # the same bits
        before = x[:, : x.shape[1] * (known.shape[1] // 2) // known.shape[1]]
        length = jnp.full(len(x), before.shape[1])
        return system.shown(x), system.shown(system.followed(key, weights.params, before, length))

    return [save_completions(trained, complete)]


def bits(trained: runner.Trained[Language]) -> list[Number]:
    """How many bits a token of the test set takes; of images also nats of each."""
    data, batch = trained.data, trained.test()
    _, found = trained.over("bits", trained.system.measured, batch, key=4, size=50)
    value, length = float(found["bits_per_token"].mean()), math.prod(data.shape)
    if not isinstance(data.kind, Image):
        windows = f"{len(batch['x'])} test windows of {length} tokens"
        how = f"bits a token, {windows}, each without what is before it, {trained.ema}"
        return [Number("bits_per_token", value, how)]
    tested = f"{len(batch['x'])} test images{binarized(data, trained.system.binary)}"
    nats = -value * length * math.log(2)
    return likelihoods("log_likelihood", nats, data, f"{tested}, exact, {trained.ema}")


def speed(trained: runner.Trained[Language]) -> list[Number]:
    """Seconds to draw images, and of text the tokens a second, compilation apart."""
    if isinstance(trained.data.kind, Image):
        return time_to_draw(trained)
    new = trained.system.network.length - trained.data.given(1)["prompt"].shape[1]
    rate = TIMED_TEXTS * new / seconds_to_draw(trained, TIMED_TEXTS)
    device = f"on one {jax.devices()[0].platform} device"
    how = f"{TIMED_TEXTS} sequences at once, with a cache, {device}"
    return [Number("tokens_per_second", rate, how)]
