"""Autoencoders whose latents are codes (van den Oord et al. 2017).

``experiments.vqvae`` is its options. A prior over the codes is an autoregressive model of its own.
"""

from __future__ import annotations

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
from jaxgen.data.records import some
from jaxgen.evaluation.compression import quantized_pca
from jaxgen.evaluation.report import Number
from jaxgen.losses import quantization
from jaxgen.losses.quantization import Codebook, Quantized
from jaxgen.plotting import save_pairs
from jaxgen.training.step import Aux, Now

FITTED = 10_000  # training images that principal components are taken of


class Found(NamedTuple):
    """What a quantizer answers."""

    quantized: Quantized
    loss: Array  # [B], beside the error of the reconstruction
    memory: Any  # after the batch


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
        rest, after = jax.lax.stop_gradient(z), []
        for i, book in enumerate(books):
            code = quantized.code[..., i]
            how = {"decay": self.decay}
            after.append(quantization.assigned(jax.random.fold_in(key, i), book, rest, code, **how))
            rest = rest - book.vectors[code]
        loss = self.commitment * quantization.commitment(z, quantized.z)
        return Found(quantized, loss, tuple(after))

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
        return Found(Quantized(found.z, found.code[..., None]), jnp.zeros(len(z)), memory)

    def vectors(self, memory: Any, code: Array) -> Array:
        return quantization.scalars_of(code[..., 0], self.levels)


@dataclass(frozen=True)
class Categories:
    """Draws of categories, relaxed for their gradient; the most likely one where it is measured.

    The loss is their KL to even ones, a bound on -log p(x) with the reconstruction's. The
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
        return Found(Quantized(found.z, found.code[..., None]), loss, memory)

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
        after = {"books": found.memory} if now.train and now.memory else None
        return error + found.loss, Aux(metrics, after)

    def codes(self, weights: Any, key: Array, batch: Any) -> Array:
        """The codes of examples, ``[B, h, w, depth]``."""
        x, books = self.data.kind.values(batch["x"]), weights.memory.get("books", ())
        now = Now(0, weights.memory, train=False)
        return self.quantizer(key, books, self.encode(weights.params, x), now).quantized.code

    def decoded(self, weights: Any, code: Array) -> Array:
        """Images of codes ``[B, h, w, depth]``."""
        books = weights.memory.get("books", ())
        return self.decode(weights.params, self.quantizer.vectors(books, code))

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        """Images of codes drawn evenly and apart, as a model without a prior has them."""
        x = jnp.zeros((1, *self.data.shape))
        places = jax.eval_shape(lambda x: self.encode(weights.params, x), x).shape[1:3]
        shape = (len(given["label"]), *places)
        keys = jax.random.split(key, len(self.quantizer.sizes))
        drawn = [
            jax.random.randint(k, shape, 0, n)
            for k, n in zip(keys, self.quantizer.sizes, strict=True)
        ]
        return self.decoded(weights, jnp.stack(drawn, axis=-1))

    def how(self) -> str:
        return "codes drawn evenly and apart: a prior over them is not a part of this model"


# --- pictures and measures -----------------------------------------------------------------------


def _reconstruct(system: VqVae, weights: Any, key: Array, batch: Any) -> tuple[Array, Array]:
    x = system.data.kind.values(batch["x"])
    return x, system.decoded(weights, system.codes(weights, key, batch))


def reconstructions(trained: runner.Trained[VqVae]) -> list[Path]:
    """``reconstructions.png``: original, reconstruction, original, ..."""
    rows = partial(_reconstruct, trained.system)
    pairs = trained.over("reconstructions", rows, trained.test(50))
    return [save_pairs(trained.results / "reconstructions.png", *pairs)]


def compression(trained: runner.Trained[VqVae]) -> list[Number]:
    """The error of reconstructions beside that of principal components with as many bits."""
    system, data, batch = trained.system, trained.data, trained.test()

    def error(weights: Any, key: Array, batch: Any) -> Array:
        x, found = _reconstruct(system, weights, key, batch)
        return jnp.mean((x - found) ** 2, axis=(1, 2, 3))

    errors = trained.over("reconstructions", error, batch, key=3, size=100)
    codes = trained.over("codes", system.codes, batch, key=4, size=100)
    places = int(np.prod(codes.shape[1:3]))
    bits = round(places * sum(np.log2(size) for size in system.quantizer.sizes))
    x = data.vectors(batch["x"])
    kept = quantized_pca(data.vectors(some(data.train, FITTED)["x"]), x, bits)
    ema, tested = f"EMA of step {trained.step}", f"{len(x)} test images"
    how = f"mean squared error an entry in [-1, 1], {bits} bits an image, {tested}"
    found = [
        Number("reconstruction_error", float(errors.mean()), f"{how}, {ema}"),
        Number("pca_error", float(np.mean((x - kept) ** 2)), f"{how}, principal components"),
    ]
    for i, size in enumerate(system.quantizer.sizes):
        suffix = f"_{i + 1}" if len(system.quantizer.sizes) > 1 else ""
        share = len(np.unique(codes[..., i])) / size
        each = f"of {size} codes, {tested}, {ema}"
        used = float(quantization.perplexity(jnp.asarray(codes[..., i]), size))
        found.append(Number(f"codes_used{suffix}", share, f"share {each}"))
        found.append(Number(f"perplexity{suffix}", used, each))
    return found
