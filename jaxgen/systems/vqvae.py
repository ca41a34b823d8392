"""Autoencoders whose latents are codes, and a prior over these (van den Oord et al. 2017).

``experiments.vqvae`` is its options.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.decoding import continued
from jaxgen.evaluation.compression import quantized_pca
from jaxgen.evaluation.report import Number
from jaxgen.losses import quantization
from jaxgen.losses.quantization import Codebook, Quantized
from jaxgen.models.transformer import Transformer
from jaxgen.plotting import save_pairs
from jaxgen.runner.system import END
from jaxgen.systems.autoencoder import FITTED, some_of
from jaxgen.systems.autoregressive import save_drawn
from jaxgen.systems.conditions import count_of
from jaxgen.training.model_state import Rules, Storage
from jaxgen.training.step import Aux, Metrics, Now


class Found(NamedTuple):
    """What a quantizer answers."""

    quantized: Quantized
    loss: Array  # [B], beside the error of the reconstruction
    seen: Any = ()  # [B, ...], what codebooks are moved by


class Quantizer(Protocol):
    """From what is encoded, ``z [B, h, w, latents]``, to codes and what is decoded of them."""

    @property
    def latents(self) -> int:
        """Entries of z at a place."""
        ...

    @property
    def sizes(self) -> tuple[int, ...]:
        """How many codes there are; of several quantizers one after the other, of each."""
        ...

    def init(self, key: Array) -> Any:
        """What it remembers: codebooks."""
        ...

    def __call__(self, key: Array, memory: Any, z: Array, now: Now) -> Found: ...

    def update(self, memory: Any, seen: Any, key: Array) -> Any:
        """The codebooks after a batch was ``seen``."""
        ...

    def vectors(self, memory: Any, code: Array) -> Array:
        """What codes are decoded as, ``[..., vectors' size]``."""
        ...


@dataclass(frozen=True)
class Vectors:
    """The nearest vectors of codebooks, ``depth`` one after the other on what is left."""

    codes: int
    latents: int
    depth: int = 1
    commitment: float = 0.25
    decay: float = 0.99

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.codes,) * self.depth

    def init(self, key: Array) -> Any:
        keys = jax.random.split(key, self.depth)
        return tuple(quantization.codebook(k, self.codes, self.latents) for k in keys)

    def __call__(self, key: Array, memory: Any, z: Array, now: Now) -> Found:
        books: tuple[Codebook, ...] = memory
        quantized = quantization.residual_quantize(z, [book.vectors for book in books])
        rest, seen = jax.lax.stop_gradient(z), []
        for i, book in enumerate(books):
            code = quantized.code[..., i]
            seen.append((rest, code))
            rest = rest - book.vectors[code]
        loss = self.commitment * quantization.commitment(z, quantized.z)
        return Found(quantized, loss, tuple(seen))

    def update(self, memory: Any, seen: Any, key: Array) -> Any:
        return tuple(
            quantization.assigned(jax.random.fold_in(key, i), book, z, code, decay=self.decay)
            for i, (book, (z, code)) in enumerate(zip(memory, seen, strict=True))
        )

    def vectors(self, memory: Any, code: Array) -> Array:
        found = [book.vectors[code[..., i]] for i, book in enumerate(memory)]
        return jnp.stack(found).sum(axis=0)


@dataclass(frozen=True)
class Scalars:
    """Grids of scalars, which need no codebook and no loss (Mentzer et al. 2024)."""

    levels: tuple[int, ...]

    @property
    def latents(self) -> int:
        return len(self.levels)

    @property
    def sizes(self) -> tuple[int, ...]:
        return (int(np.prod(self.levels)),)

    def init(self, key: Array) -> Any:
        return ()

    def __call__(self, key: Array, memory: Any, z: Array, now: Now) -> Found:
        found = quantization.finite_scalar(z, self.levels)
        return Found(Quantized(found.z, found.code[..., None]), jnp.zeros(len(z)))

    def update(self, memory: Any, seen: Any, key: Array) -> Any:
        return memory

    def vectors(self, memory: Any, code: Array) -> Array:
        return quantization.scalars_of(code[..., 0], self.levels)


@dataclass(frozen=True)
class Categories:
    """Draws of categories, relaxed for their gradient; the most likely one where it is measured.

    The loss is their KL to even ones, in nats a place, times ``kl``. The
    ``temperature`` falls to its end over ``steps``, geometrically (Jang et al. 2017, section 4).
    """

    codes: int
    kl: float = 1e-3
    temperature: tuple[float, float] = (1.0, 0.3)
    steps: int = 1

    @property
    def latents(self) -> int:
        return self.codes

    @property
    def sizes(self) -> tuple[int, ...]:
        return (self.codes,)

    def init(self, key: Array) -> Any:
        return ()

    def __call__(self, key: Array, memory: Any, z: Array, now: Now) -> Found:
        start, end = self.temperature
        share = jnp.minimum(now.step / self.steps, 1.0)
        loss = self.kl * quantization.kl_uniform(z).reshape(len(z), -1).mean(axis=1)
        if now.train:
            found = quantization.gumbel_softmax(key, z, start * (end / start) ** share)
        else:
            code = jnp.argmax(z, axis=-1).astype(jnp.int32)
            found = Quantized(jax.nn.one_hot(code, self.codes), code)
        return Found(Quantized(found.z, found.code[..., None]), loss)

    def update(self, memory: Any, seen: Any, key: Array) -> Any:
        return memory

    def vectors(self, memory: Any, code: Array) -> Array:
        return jax.nn.one_hot(code[..., 0], self.codes)


@dataclass(frozen=True, eq=False)
class VqVae(runner.System):
    """x -> z -> codes -> x. The loss is the mean squared error an entry, in [-1, 1]."""

    encoder: nn.Module
    decoder: nn.Module
    quantizer: Quantizer

    def init(self, key: Array) -> Any:
        key_encoder, key_decoder, key_books = jax.random.split(key, 3)
        x = jnp.zeros((1, *self.data.shape))
        z, encoder = self.encoder.init_with_output(key_encoder, x)
        books = self.quantizer.init(key_books)
        code = jnp.zeros((*z.shape[:-1], len(self.quantizer.sizes)), jnp.int32)  # pyright: ignore
        decoder = self.decoder.init(key_decoder, self.quantizer.vectors(books, code))
        params = {"encoder": encoder["params"], "decoder": decoder["params"]}
        return {"params": params} | ({"books": books} if books else {})

    def encode(self, params: Any, x: Array) -> Array:
        """z, ``[B, h, w, latents]``."""
        z: Any = self.encoder.apply({"params": params["encoder"]}, x)
        return z

    def decode(self, params: Any, z: Array) -> Array:
        """Images of quantized z."""
        x: Any = self.decoder.apply({"params": params["decoder"]}, z)
        return x

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Aux]:
        x, books = self.data.kind.values(batch["x"]), now.memory.get("books", ())
        found = self.quantizer(key, books, self.encode(params, x), now)
        apart = (x - self.decode(params, found.quantized.z)) ** 2
        error = apart.reshape(len(x), -1).mean(axis=1)
        used = [
            quantization.perplexity(found.quantized.code[..., i], size)
            for i, size in enumerate(self.quantizer.sizes)
        ]
        metrics = {"error": error, "beside": found.loss, "perplexity": jnp.stack(used).mean()}
        seen = {"books": found.seen} if now.train and now.memory else None
        return error + found.loss, Aux(metrics, seen)

    @property
    def state_rules(self) -> Rules:
        books = jax.eval_shape(self.quantizer.init, jax.random.key(0))
        return {"books": Storage(self.quantizer.update)} if books else {}

    def codes(self, weights: Any, key: Array, batch: Any) -> Array:
        """The codes of examples, ``[B, h, w, depth]``."""
        x, books = self.data.kind.values(batch["x"]), weights.memory.get("books", ())
        now = Now(0, weights.memory, train=False)
        return self.quantizer(key, books, self.encode(weights.params, x), now).quantized.code

    def decoded(self, weights: Any, code: Array) -> Array:
        """Images of codes ``[B, h, w, depth]``."""
        books = weights.memory.get("books", ())
        return self.decode(weights.params, self.quantizer.vectors(books, code))

    def places(self) -> tuple[int, int, int]:
        """(h, w, depth) of the codes of an image."""
        x, key = jnp.zeros((1, *self.data.shape)), jax.random.key(0)
        z: Any = jax.eval_shape(lambda: self.encoder.init_with_output(key, x)[0])
        return (*z.shape[1:3], len(self.quantizer.sizes))

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """Images of codes drawn evenly and apart, as a model without a prior has them."""
        shape = (count_of(given), *self.places())
        most = jnp.array(self.quantizer.sizes).reshape(1, 1, 1, -1)
        code = jax.random.randint(key, shape, 0, most)
        return self.decoded(weights, code)

    def how(self) -> str:
        return "codes drawn evenly and apart, without a prior"


@dataclass(frozen=True, eq=False)
class CodePrior(runner.System):
    """p(codes) = prod_i p(code_i | codes before it), learned once the VQ-VAE no longer moves.

    Codes are read row by row, those of one place one after the other, as tokens of which each depth
    has its own. A sequence begins with one token more or, of data with that many ``classes``, with
    that of its class. The memory holds the parameters and codebooks of the first stage.
    """

    autoencoder: VqVae  # the first stage
    network: Transformer
    start: int  # steps of the first stage
    classes: int | None = None

    def stages(self) -> tuple[tuple[int, runner.System], ...]:
        return ((0, self.autoencoder), (self.start, self))

    def init(self, key: Array) -> Any:
        return self.network.init(key, jnp.zeros((1, self.network.length), jnp.int32))

    def grow(self, key: Array, weights: runner.Weights) -> Any:
        """A prior at its beginning, and what is left of the first stage."""
        return {**self.init(key), "autoencoder": weights.params, **weights.memory}

    @staticmethod
    def frozen(memory: Any) -> runner.Weights:
        """The weights of the first stage."""
        return runner.Weights(memory["autoencoder"], memory)

    @property
    def sizes(self) -> np.ndarray:
        """The number of codes of each depth."""
        return np.array(self.autoencoder.quantizer.sizes)

    @property
    def first(self) -> np.ndarray:
        """The token of code 0 of each depth, ``[1, 1, 1, depth]``."""
        return (np.cumsum(self.sizes) - self.sizes).reshape(1, 1, 1, -1)

    def tokens(self, code: Array, labels: Array) -> Array:
        """What begins, and then the codes ``[B, h, w, depth]``: ``[B, 1 + T]``."""
        begin = self.sizes.sum() + (labels if self.classes else jnp.zeros_like(labels))
        each = (code + self.first).reshape(len(code), -1)
        return jnp.concatenate([begin[:, None], each], axis=1)

    def possible(self, logits: Array, place: Array | int) -> Array:
        """Logits ``[B, T, vocabulary]`` of what stands from ``place`` on: codes of its depth."""
        depths = np.repeat(np.arange(len(self.sizes)), self.sizes)
        depths = np.append(depths, [-1] * (logits.shape[-1] - len(depths)))  # of what begins
        here = (place + jnp.arange(logits.shape[1])) % len(self.sizes)
        return jnp.where((depths[None] == here[:, None])[None], logits, -jnp.inf)

    def log_prob(self, params: Any, code: Array, labels: Array, **how: Any) -> Array:
        """log p of each code, given those before it, ``[B, T]`` nats."""
        tokens = self.tokens(code, labels)
        logits: Any = self.network.apply({"params": params}, tokens[:, :-1], **how)
        log_p = jax.nn.log_softmax(self.possible(logits, 0))
        return jnp.take_along_axis(log_p, tokens[:, 1:, None], axis=2)[:, :, 0]

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """Nats a code, the mean over each image."""
        key_code, key = jax.random.split(key)
        code = self.autoencoder.codes(self.frozen(now.memory), key_code, batch)
        how = {"train": now.train, "rngs": {"dropout": key}}
        nats = -self.log_prob(params, code, batch["label"], **how).mean(axis=1)
        return nats, {"bits_per_code": nats / math.log(2)}

    @property
    def carries(self) -> bool:
        return False

    def score(self, weights: Any, step: Any = END) -> float:
        """Less than that of even codes, so that it is below the error of every first stage."""
        return super().score(weights, step) - float(np.log(self.sizes).mean())

    def drawn(self, key: Array, params: Any, known: Array, labels: Array) -> Array:
        """Codes ``[B, h, w, depth]`` whose first rows ``[B, < h, w, depth]`` are ``known``."""
        tokens, filling = self.tokens(known, labels), jnp.zeros(len(known), jnp.int32)

        def extend(tokens: Array, cache: Any, at: Any) -> Any:
            how: Any = {"method": "extend"}
            found = self.network.apply({"params": params}, tokens, cache, at, filling, **how)
            return self.possible(found[0], at), found[1]

        new = math.prod(self.autoencoder.places()) + 1 - tokens.shape[1]
        rest = continued(key, extend, self.network.empty(len(known)), tokens, new)
        drawn = jnp.concatenate([tokens[:, 1:], rest], axis=1)
        return drawn.reshape(-1, *self.autoencoder.places()) - self.first

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """Images of codes that are drawn one after the other."""
        _, *places = self.autoencoder.places()
        nothing = jnp.zeros((count_of(given), 0, *places), jnp.int32)
        code = self.drawn(key, weights.params, nothing, given["label"])
        return self.autoencoder.decoded(self.frozen(weights.memory), code)

    @property
    def labelled(self) -> bool:
        return self.classes is not None

    def how(self) -> str:
        return "codes drawn from the prior, one after the other"


# --- pictures and measures -----------------------------------------------------------------------


def of_codes(trained: runner.Trained[Any]) -> runner.Trained[VqVae]:
    """The VQ-VAE alone of a run of either stage."""
    system: Any = trained.system
    if isinstance(system, CodePrior):
        return trained.with_weights(system.frozen(trained.weights.memory), system.autoencoder)
    return trained


def _reconstruct(system: VqVae, weights: Any, key: Array, batch: Any) -> tuple[Array, Array]:
    x = system.data.kind.values(batch["x"])
    return x, system.decoded(weights, system.codes(weights, key, batch))


def reconstructions(trained: runner.Trained[Any]) -> list[Path]:
    """``reconstructions.png``: original, reconstruction, original, ..."""
    trained = of_codes(trained)
    rows = partial(_reconstruct, trained.system)
    pairs = trained.over("reconstructions", rows, trained.test(50))
    return [save_pairs(trained.results / "reconstructions.png", *pairs)]


def completions(trained: runner.Trained[Any]) -> list[Path]:
    """``completions.png``: test images, what is made of their codes, and of the upper half of these
    with the rest drawn."""
    system = trained.system
    if not isinstance(system, CodePrior):
        return []

    def complete(weights: Any, key: Array, batch: Any) -> tuple[Array, ...]:
        vae, first = system.autoencoder, system.frozen(weights.memory)
        code = vae.codes(first, key, batch)
        known = code[:, : code.shape[1] // 2]
        drawn = system.drawn(key, weights.params, known, batch["label"])
        return vae.data.kind.values(batch["x"]), vae.decoded(first, code), vae.decoded(first, drawn)

    return [save_drawn(trained, complete, ("test", "reconstruction"))]


def bits(trained: runner.Trained[Any]) -> list[Number]:
    """How many bits a code takes under the prior."""
    if not isinstance(trained.system, CodePrior):
        return []
    _, found = trained.over("bits", trained.system.measured, trained.test(), key=5, size=100)
    each, count = found["bits_per_code"], math.prod(trained.system.autoencoder.places())
    even = float(np.log2(trained.system.sizes).mean())
    how = f"bits a code (even ones: {even:g}), {count} an image, {len(each)} test images"
    return [Number("bits_per_code", float(each.mean()), f"{how}, {trained.ema}")]


def compression(trained: runner.Trained[Any]) -> list[Number]:
    """The error of reconstructions beside that of principal components with as many bits."""
    trained = of_codes(trained)
    system, data, batch = trained.system, trained.data, trained.test()

    def error(weights: Any, key: Array, batch: Any) -> Array:
        x, found = _reconstruct(system, weights, key, batch)
        return jnp.mean((x - found) ** 2, axis=(1, 2, 3))

    errors = trained.over("reconstructions", error, batch, key=3, size=100)
    codes = trained.over("codes", system.codes, batch, key=4, size=100)
    places = int(np.prod(codes.shape[1:3]))
    bits = round(places * sum(np.log2(size) for size in system.quantizer.sizes))
    x = data.vectors(batch["x"])
    kept = quantized_pca(data.vectors(some_of(data, FITTED)["x"]), x, bits)
    tested = f"{len(x)} test images"
    how = f"mean squared error an entry in [-1, 1], {bits} bits an image, {tested}"
    found = [
        Number("reconstruction_error", float(errors.mean()), f"{how}, {trained.ema}"),
        Number("pca_error", float(np.mean((x - kept) ** 2)), f"{how}, principal components"),
    ]
    for i, size in enumerate(system.quantizer.sizes):
        suffix = f"_{i + 1}" if len(system.quantizer.sizes) > 1 else ""
        share = len(np.unique(codes[..., i])) / size
        each = f"of {size} codes, {tested}, {trained.ema}"
        used = float(quantization.perplexity(jnp.asarray(codes[..., i]), size))
        found.append(Number(f"codes_used{suffix}", share, f"share {each}"))
        found.append(Number(f"perplexity{suffix}", used, each))
    return found
