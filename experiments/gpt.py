"""A decoder-only transformer over the bytes of a text, or over the pixels of images.

python -m experiments.gpt                                  # the language reference of Python
python -m experiments.gpt --data tiny_shakespeare          # or with --manual-dir DIR: its input.txt
python -m experiments.gpt --data text:PATH                 # a file, or a folder's *.txt
python -m experiments.gpt --data digits                    # pixels, row by row
python -m experiments.gpt sample --prompt "The " "import"  # what follows
python -m experiments.gpt sample --temperature 0.7 --nucleus 0.9

Expect, on tiny_shakespeare with seed 0: 48 minutes of processor time, of which two CPU cores take
about half by the clock; 2.05 bits a byte of the validation text, 2.26 of the test text, in windows
of 256 bytes that are told nothing of what is before them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated

from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Tokens
from jaxgen.decoding import nucleus, top_k
from jaxgen.models.transformer import Transformer
from jaxgen.systems.bounds import vocabulary_of
from jaxgen.systems.language import Language, bits, completions, prompted, speed

POSITIONS = ("rotary", "learned")
PIXELS = ("levels", "bits")


@dataclass(frozen=True)
class Drawing:
    """How to draw tokens."""

    prompt: tuple[str, ...] = ("",)  # What samples begin with, in turn.
    temperature: runner.NonNegative = 1.0  # 0 for the most likely token at every place.
    top_k: Annotated[int | None, runner.Range(1)] = None  # Of the most likely tokens alone.
    nucleus: runner.Share = 1.0  # Of the fewest tokens with so much probability.


@dataclass(frozen=True)
class Config:
    """A transformer over tokens."""

    data: runner.Data = field(default_factory=lambda: runner.Data("python_topics", length=256))
    train: runner.Train = field(default_factory=runner.Train)
    sampling: runner.Sampling = runner.measuring(lambda: runner.Sampling(8, 8))
    drawing: Drawing = runner.measuring(Drawing)
    width: runner.Count = 128  # Of the vectors at each place.
    layers: runner.Count = 4  # Blocks of attention and a perceptron.
    heads: runner.Count = 4  # Of every attention.
    # Heads of keys and values, which groups of the others share (default: as many as --heads).
    key_heads: Annotated[int | None, runner.Range(1)] = None
    positions: str = "rotary"  # rotary or learned.
    pixels: str = "levels"  # What tokens of images are: levels, or bits drawn at random.
    swiglu: bool = False  # A gated perceptron.
    dropout: runner.Share = 0.0  # In the blocks, in training.


def build(config: Config, data: DataSet) -> Language:
    """The language model of the options; in images each place is learned by itself."""
    draw, length = config.drawing, math.prod(data.shape)
    text = isinstance(data.kind, Tokens)
    binary = runner.choose("pixels", config.pixels, PIXELS) == "bits"
    longest = max(len(p.encode()) for p in draw.prompt)
    if longest and not text:
        raise ValueError("a prompt is for text: leave out --prompt.")
    if longest >= length:
        raise ValueError(
            f"a prompt of {longest} bytes fills the {length} of the model: shorten it."
        )

    def keep(logits: Array) -> Array:
        logits = logits if draw.top_k is None else top_k(logits, draw.top_k)
        return logits if draw.nucleus == 1 else nucleus(logits, draw.nucleus)

    network = Transformer(
        vocabulary_of(data, binary) + 1,
        length,
        config.width,
        config.layers,
        config.heads,
        config.key_heads,
        runner.choose("positions", config.positions, POSITIONS) == "rotary",
        config.swiglu,
        config.dropout,
    )
    data = replace(data, ask=partial(prompted, tuple(draw.prompt))) if text else data
    optimizer = runner.make_optimizer(config.train)
    return Language(data, optimizer, network, binary, draw.temperature, keep)


DIGITS = Config(
    data=runner.Data(),
    train=runner.Train(
        steps=1500,
        batch=64,
        learning_rate=2e-3,
        warmup=100,
        decay="cosine",
        weight_decay=0.1,
        clip=1.0,
        ema=0.99,
        steps_per_call=10,
        log_every=50,
        checkpoint_every=250,
    ),
    sampling=runner.Sampling(),
    width=64,
    positions="learned",
    dropout=0.1,
)
MNIST = replace(
    DIGITS,
    train=replace(
        DIGITS.train,
        steps=10_000,
        batch=16,
        learning_rate=1e-3,
        ema=0.999,
        steps_per_call=1,
        checkpoint_every=1000,
    ),
    width=128,
    pixels="bits",
)
TEXT = Config(
    train=runner.Train(
        steps=1000,
        batch=32,
        learning_rate=1e-3,
        warmup=100,
        decay="cosine",
        weight_decay=0.1,
        clip=1.0,
        ema=0.99,
        log_every=20,
        checkpoint_every=250,
    ),
)
SHAKESPEARE = replace(
    TEXT,
    data=runner.Data("tiny_shakespeare", length=256),
    train=replace(
        TEXT.train, steps=3600, batch=16, learning_rate=2e-3, ema=0.995, checkpoint_every=400
    ),
)
PRESETS = runner.by_data(
    python_topics=TEXT,
    tiny_shakespeare=SHAKESPEARE,
    digits=DIGITS,
    mnist=MNIST,
    fashion_mnist=MNIST,
    binarized_mnist=MNIST,
)
EXPERIMENT = runner.Experiment(
    "gpt",
    __doc__,
    PRESETS,
    build,
    pictures=(runner.samples, completions),
    measures=(bits, speed, runner.quality),
    kinds=(Tokens, Image),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
