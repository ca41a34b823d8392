"""What an experiment declares: its options, and the functions that train and measure a model."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import optax
from flax import linen as nn
from jax import Array

from jaxgen.data.sources import DataSet, did_you_mean
from jaxgen.evaluation.features import FeatureSpace
from jaxgen.evaluation.report import Number
from jaxgen.training.devices import Placement
from jaxgen.training.step import Decay, Loss, adam, half_life_decay

Config = TypeVar("Config")


class Mistake(ValueError):
    """A wrong option or state of affairs, said in one sentence that names the fix."""


@dataclass(frozen=True)
class Data:
    """Which data."""

    data: str = "digits"
    """digits, folder:PATH, or an image set of tensorflow-datasets."""
    data_dir: str | None = None
    """Where tensorflow-datasets keeps prepared data (default ~/tensorflow_datasets)."""
    manual_dir: str | None = None
    """A folder with the set's original files, to prepare it from."""
    image_size: int | None = None
    """Crop and resize images to this many pixels a side."""


@dataclass(frozen=True)
class Train:
    """How to train."""

    steps: int = 2000
    """Updates in all."""
    batch: int = 64
    """Examples a step, over all devices."""
    learning_rate: float = 1e-3
    """Of Adam."""
    b1: float = 0.9
    """Of Adam."""
    warmup: int = 0
    """Steps of linear warm-up."""
    decay: str = "none"
    """Of the learning rate after the warm-up: none, or cosine or linear down to 0 at the last
    step."""
    weight_decay: float = 0.0
    """Decoupled, times the learning rate; of kernels alone (AdamW)."""
    clip: float | None = None
    """Global norm to clip the gradient at."""
    ema: float = 0.99
    """Decay of the moving average of the parameters."""
    ema_half_life: float | None = None
    """In images, in place of --ema: what was learned so long ago counts half. It is shorter in the
    beginning, a twentieth of the images seen."""
    seed: int = 0
    """Of initialization, data order, noise and sampling."""
    accumulate: int = 1
    """Parts of a batch whose gradients are taken one after the other, to save memory."""
    parallel: str = "jit"
    """jit (sharded over the devices) or pmap."""
    devices: int | None = None
    """How many devices to use (default: all)."""
    model_devices: int = 1
    """Devices that divide parameters and optimizer state among them (FSDP)."""
    steps_per_call: int = 1
    """Steps in one dispatch; for dense networks, and on accelerators."""
    log_every: int = 50
    """Steps between rows of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the latest checkpoints to keep, beside the best."""
    max_skipped: int = 10
    """Stop after so many steps in a row whose loss or gradient was not finite."""
    sweep: tuple[str, ...] = ()
    """Train several runs in one program: seed=0,1,2 learning_rate=1e-3,2e-3 is six."""


@dataclass(frozen=True)
class Run:
    """Which run."""

    dir: Path | None = None
    """The run's directory (default: a new one, runs/NAME-DATA-001; for sample, evaluate and
    --resume the newest such)."""
    resume: bool = False
    """Go on with the run in the directory, from its last checkpoint."""
    checkpoint: str = "last"
    """Which checkpoint to sample from and evaluate: last, best or a step."""
    debug_nans: bool = False
    """Stop at the first operation that answers NaN, and name it (slow)."""
    profile: bool = False
    """Write a trace of ten steps that TensorBoard and Perfetto open."""
    coordinator: str | None = None
    """HOST:PORT of the first of several processes that train together, or auto where the cluster
    says it (SLURM, TPU pods, Kubernetes, MPI)."""
    num_processes: int | None = None
    """How many processes train together."""
    process_id: int | None = None
    """Which of them this is, from 0."""


@dataclass(frozen=True)
class Probe:
    """What the verb ``diagnose`` looks at in a trained model."""

    networks: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]
    """Each with the arguments, by position and by name, of a call for one example."""
    params: Callable[[Any], Any]  # state -> the parameters that the losses take
    loss: Loss | None = None  # (params, batch, key) -> (scalar, metrics), to find its noise
    losses: Callable[[Array, Any, Any], tuple[Array, Array]] | None = None
    """(key, params, batch) -> times and losses of the examples, each ``[B]``."""


@dataclass(frozen=True)
class System:
    """A model with its data: what the runner needs to train, sample and measure it.

    ``sample`` and ``evaluate`` take the trained state; ``sample`` writes pictures and names them.
    """

    init: Callable[[jax.Array], Any]  # key -> state
    step: Callable  # the step body
    score: Callable[[Any], Any]  # state -> a validation score, lower is better
    sample: Callable[[jax.Array, Any, Path], list[Path]]
    evaluate: Callable[[jax.Array, Any, FeatureSpace], list[Number]]
    probe: Probe | None = None
    batches: int = 1  # how many a step takes: its examples are so many times --batch


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """A system's name, one line about it, its presets by data set, and how to build it."""

    name: str
    about: str
    presets: dict[str, Config]
    build: Callable[[Config, DataSet, Placement], System]
    reads: tuple[str, ...] = ()  # other experiments whose runs it samples and evaluates
    report: str = "report.json"  # another name where it evaluates the runs of another experiment


def choose(kind: str, name: str, table: dict[str, Any]) -> Any:
    """``table[name]``, or a :class:`Mistake` that offers the nearest names."""
    if name not in table:
        raise Mistake(f"unknown {kind} '{name}'{did_you_mean(name, table)}")
    return table[name]


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A (nested) config dataclass from its JSON form; options it lacks keep their defaults.

    Raises:
      KeyError: for an option that ``kind`` does not have.
    """
    hints = typing.get_type_hints(kind)
    for name in values.keys() - hints.keys():
        raise KeyError(name)
    known = {}
    for f in dataclasses.fields(kind):
        if f.name in values:
            value = values[f.name]
            if dataclasses.is_dataclass(hints[f.name]):
                value = from_dict(hints[f.name], value)
            elif isinstance(value, list):
                value = tuple(value)
            known[f.name] = value
    return kind(**known)


def make_optimizer(options: Train) -> optax.GradientTransformation:
    """The optimizer that the options name."""
    return adam(
        options.learning_rate,
        warmup=options.warmup,
        decay=options.decay,
        steps=options.steps,
        clip=options.clip,
        b1=options.b1,
        weight_decay=options.weight_decay,
    )


def make_ema_decay(options: Train) -> Decay:
    """The decay of the moving average that the options name."""
    if options.ema_half_life is None:
        return options.ema
    return half_life_decay(options.ema_half_life, options.batch)
