"""Language models: p(x) = prod_i p(x_i | x_<i) over tokens, and what follows a prompt.

``experiments.gpt`` is its options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

from jaxgen import runner
from jaxgen.data.records import Batch
from jaxgen.decoding import Filter, sample_tokens
from jaxgen.evaluation.report import Number
from jaxgen.models.transformer import Transformer
from jaxgen.systems.autoregressive import seconds_to_draw
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
    """A transformer over the data's tokens and one more, with which every sequence begins."""

    network: Transformer
    temperature: float = 1.0
    keep: Filter = lambda logits: logits

    @property
    def begin(self) -> int:
        """The token with which sequences begin."""
        return self.network.vocabulary - 1

    def init(self, key: Array) -> Any:
        return self.network.init(key, jnp.zeros((1, self.network.length), jnp.int32))

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """Nats a token, the mean over each sequence."""
        x = self.data.kind.values(batch["x"])
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=self.begin)
        how = {"rngs": {"dropout": key}, "train": now.train}
        logits: Any = self.network.apply({"params": params}, before, **how)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, x).mean(axis=1)
        return nats, {"bits_per_token": nats / math.log(2)}

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """Prompts and what follows them, up to the model's length; zeros after that."""
        prompt, length = given["prompt"], given["length"]
        count, known = prompt.shape
        filling = known - length  # before the token that begins
        slots = jnp.arange(known + 1)[None]
        shifted = jnp.pad(prompt, ((0, 0), (1, 0)))
        tokens = jnp.where(slots == filling[:, None], self.begin, shifted)
        variables = {"params": weights.params}

        def extend(tokens: Array, cache: Any, at: Any) -> Any:
            return self.network.apply(variables, tokens, cache, at, filling, method="extend")

        def next_token(cache: Any, token: Array, place: Array) -> tuple[Array, Any]:
            logits, cache = extend(token[:, None], cache, place)
            return self.possible(logits[:, 0]), cache

        logits, cache = extend(tokens, self.network.empty(count), 0)
        drawn = sample_tokens(
            key,
            next_token,
            cache,
            self.possible(logits[:, -1]),
            known + 1,
            self.network.length - known,
            temperature=self.temperature,
            keep=self.keep,
        )
        whole = jnp.concatenate([prompt, drawn], axis=1)
        places = jnp.arange(whole.shape[1])[None] + filling[:, None]
        moved = jnp.take_along_axis(whole, jnp.minimum(places, whole.shape[1] - 1), axis=1)
        return jnp.where(places < whole.shape[1], moved, 0)

    def possible(self, logits: Array) -> Array:
        """Without the token that begins."""
        return logits.at[..., self.begin].set(-jnp.inf)

    def how(self) -> str:
        return f"temperature {self.temperature:g}"


def bits(trained: runner.Trained[Language]) -> list[Number]:
    """How many bits a token of the test text takes."""
    _, found = trained.over("bits", trained.system.measured, trained.test(), size=50)
    value = float(found["bits_per_token"].mean())
    windows = f"{len(found['bits_per_token'])} test windows of {trained.data.shape[0]} tokens"
    how = f"bits a token, {windows}, each without what is before it, EMA of step {trained.step}"
    return [Number("bits_per_token", value, how)]


def speed(trained: runner.Trained[Language]) -> list[Number]:
    """Tokens drawn in a second, compilation apart."""
    new = trained.system.network.length - trained.data.given(1)["prompt"].shape[1]
    how = f"16 sequences at once, with a cache, one {jax.devices()[0].platform} device"
    return [Number("tokens_per_second", 16 * new / seconds_to_draw(trained, 16), how)]
