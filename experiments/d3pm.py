"""Diffusion over tokens: masks that hide them, or tokens drawn anew (D3PM: Austin et al. 2021).

python -m experiments.d3pm                                # digits, as tokens of 17 levels: masks
python -m experiments.d3pm --noise uniform --auxiliary 0.01
python -m experiments.d3pm --conditional                  # p(x|y)
python -m experiments.d3pm --data python_topics           # text, of the size of experiments.gpt
python -m experiments.d3pm --data tiny_shakespeare        # or with --manual-dir DIR: its input.txt
python -m experiments.d3pm --data tiny_shakespeare --block 2 --copies 2  # blocks, one after another
python -m experiments.d3pm --data text:PATH               # a file, or all *.txt of a folder
python -m experiments.d3pm --data binarized_mnist --manual-dir DIR
python -m experiments.d3pm sample --sampler confident --sample-steps 16

Expect, on tiny_shakespeare with --block 2 --copies 2 --batch 4 --steps 4800 and seed 0: 49 minutes
of processor time, as experiments.gpt takes; at most 2.36 bits a byte of the validation text (1.15
times the transformer's), 2.53 of the test text (1.12 times). With --block 4 --batch 8 it is 2.67
and 2.75 in as long.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Tokens
from jaxgen.decoding import everything, nucleus
from jaxgen.diffusion.discrete import absorbing, ancestral, confident, cosine, linear, uniform
from jaxgen.losses.discrete import counted_loss, discrete_loss
from jaxgen.models.transformer import TokenDenoiser, Transformer
from jaxgen.systems.autoregressive import time_to_draw
from jaxgen.systems.bounds import vocabulary_of
from jaxgen.systems.tokens import TokenDiffusion, bits, filled, film

from . import gpt

NOISES = ("masked", "uniform")
SAMPLERS = ("ancestral", "confident")
ALPHAS = {"linear": linear, "cosine": cosine}
PIXELS = ("levels", "bits")


@dataclass(frozen=True)
class Drawing:
    """How to draw tokens, and what to measure."""

    sampler: str = "ancestral"  # ancestral, or confident: what is surest first (masked).
    # Evaluations of the network, of all blocks together; each block needs one more for the cache.
    sample_steps: runner.Count = 64
    choice: runner.NonNegative = 4.5  # Of confident: how much of the order is left to chance.
    temperature: runner.NonNegative = 1.0  # 0 for the most likely token.
    nucleus: runner.Share = 1.0  # Of the fewest tokens with so much probability.
    bound_draws: runner.Count = 32  # Noisy forms of each test example, for its bound.


@dataclass(frozen=True)
class Config:
    """Diffusion over tokens."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(runner.Sampling)
    drawing: Drawing = runner.measuring(Drawing)
    noise: str = "masked"  # masked or uniform.
    alpha: str = "linear"  # The share of tokens that are not noise, over time: linear or cosine.
    # Tokens of a block: each is drawn given those before it (masked; default: all are one).
    block: Annotated[int | None, runner.Range(1)] = None
    copies: runner.Count = 1  # Noisy forms of each example in training, beside one clean (block).
    diffusion_steps: runner.Count = 1000  # T (uniform).
    auxiliary: runner.NonNegative = 0.0  # lambda, of -log p(x_0|x_t) beside the bound (uniform).
    pixels: str = "levels"  # What tokens of images are: levels, or bits drawn at random.
    conditional: bool = False  # Tell the class.
    width: runner.Count = 128  # Of the vectors at each place.
    layers: runner.Count = 4  # Blocks of attention and a perceptron.
    heads: runner.Count = 4  # Of every attention.
    swiglu: bool = False  # A gated perceptron.
    dropout: runner.Share = 0.0  # In the blocks, in training.


def make_network(config: Config, data: DataSet, tokens: int, masked: bool) -> TokenDenoiser:
    """The transformer of the options; in images each place is learned by itself."""
    transformer = Transformer(
        tokens + masked,
        math.prod(data.shape),
        config.width,
        config.layers,
        config.heads,
        rotary=isinstance(data.kind, Tokens),
        swiglu=config.swiglu,
        dropout=config.dropout,
    )
    classes = runner.classes_told(config.conditional, data)
    return TokenDenoiser(transformer, tokens, not masked, classes, config.block)


def build(config: Config, data: DataSet) -> TokenDiffusion:
    """The diffusion of the options."""
    masked = runner.choose("noise", config.noise, NOISES) == "masked"
    binary = runner.choose("pixels", config.pixels, PIXELS) == "bits"
    alpha, draw = runner.choose("alpha", config.alpha, ALPHAS), config.drawing
    sure = runner.choose("sampler", draw.sampler, SAMPLERS) == "confident"
    if sure and not masked:
        raise ValueError("--sampler confident is of --noise masked.")
    if masked and config.auxiliary:
        raise ValueError("--auxiliary is of --noise uniform.")
    length = math.prod(data.shape)
    if config.block is not None and not masked:
        raise ValueError("--block is of --noise masked.")
    if config.copies > 1 and config.block is None:
        raise ValueError(
            "--copies lie beside clean tokens, as blocks do: leave it out, or use --block."
        )
    if config.block is not None and length % config.block:
        raise ValueError(f"--block {config.block} is no divisor of the {length} tokens: use one.")
    blocks = length // (config.block or length)
    if draw.sample_steps < blocks:
        raise ValueError(f"{blocks} blocks need as many --sample-steps, or more.")
    tokens = vocabulary_of(data, binary)
    pi = absorbing(tokens) if masked else uniform(tokens)
    steps = draw.sample_steps // blocks

    def bound(key: Array, denoise: Any, x_0: Array, t: Array, auxiliary: float = 0.0) -> Array:
        if masked:
            return counted_loss(key, denoise, x_0, t, tokens)
        return discrete_loss(key, denoise, x_0, t, pi, config.diffusion_steps, alpha, auxiliary)

    return TokenDiffusion(
        data,
        runner.make_optimizer(config.train),
        make_network(config, data, tokens, masked),
        pi,
        partial(bound, auxiliary=config.auxiliary),
        bound,
        partial(confident, tokens, alpha, draw.choice) if sure else partial(ancestral, pi, alpha),
        np.linspace(1, 0, steps + 1, dtype=np.float32),
        alpha,
        binary,
        draw.temperature,
        everything if draw.nucleus == 1 else partial(nucleus, p=draw.nucleus),
        draw.bound_draws,
        config.copies,
    )


DIGITS = Config(
    train=runner.Train(
        steps=3000,
        batch=64,
        learning_rate=1e-3,
        warmup=100,
        decay="cosine",
        clip=1.0,
        ema=0.995,
        steps_per_call=20,
        log_every=100,
        checkpoint_every=500,
    ),
    width=64,
)
MNIST = Config(
    train=runner.Train(
        steps=20_000,
        batch=64,
        learning_rate=5e-4,
        warmup=500,
        decay="cosine",
        clip=1.0,
        ema=0.999,
        log_every=100,
        checkpoint_every=2000,
    ),
    sampling=runner.Sampling(sample_batch=20),
    drawing=Drawing(sample_steps=196),
    pixels="bits",
)
# As experiments.gpt has them, so that both take the same steps.
TEXT = Config(
    data=gpt.TEXT.data,
    train=gpt.TEXT.train,
    sampling=runner.Sampling(8, 8),
    drawing=Drawing(sample_steps=256),
)
SHAKESPEARE = replace(TEXT, data=gpt.SHAKESPEARE.data, train=gpt.SHAKESPEARE.train)
PRESETS = runner.by_data(
    digits=DIGITS,
    mnist=MNIST,
    fashion_mnist=MNIST,
    binarized_mnist=MNIST,
    python_topics=TEXT,
    tiny_shakespeare=SHAKESPEARE,
)
PRESETS["text"] = TEXT
EXPERIMENT = runner.Experiment(
    "d3pm",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, film, filled),
    measures=(bits, time_to_draw, runner.quality),
    kinds=(Image, Tokens),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
