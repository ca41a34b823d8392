"""The options that experiments share, their ranges, and their form on disk."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import optax

from jaxgen.data.images import SIZES
from jaxgen.data.records import DataSet
from jaxgen.data.toy import DENSITIES
from jaxgen.runner.references import RunReference, reference_in
from jaxgen.runner.system import Mistake
from jaxgen.training.step import Decay, adam, half_life_decay

T = TypeVar("T")


class Range(NamedTuple):
    """Which values an option may have; written into its type."""

    low: float
    high: float = float("inf")


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
NonNegative = Annotated[float, Range(0)]
Share = Annotated[float, Range(0, 1)]


def measuring(kind: Callable[[], T]) -> T:
    """A section of a config that says how to sample and measure, and changes nothing in training:
    it may differ from one look at a run to the next."""
    return field(default_factory=kind, metadata={"measuring": True})


@dataclass(frozen=True)
class Data:
    """Which data."""

    # digits; a toy density (8gaussians, 25gaussians, ring, moons, swissroll, checkerboard);
    # folder:PATH, pairs:PATH, domains:PATH or text:PATH; hf:NAME_OR_PATH; or an image set or text
    # of tensorflow-datasets.
    data: str = "digits"
    # Where tensorflow-datasets keeps prepared data (default ~/tensorflow_datasets).
    data_dir: str | None = None
    manual_dir: str | None = None  # A folder with the set's original files.
    # Crop and resize images to this many pixels a side.
    image_size: Annotated[int | None, Range(1)] = None
    length: Count = 128  # Bytes in an example of text.


@dataclass(frozen=True)
class Train:
    """How to train."""

    steps: Count = 2000  # Updates in all.
    batch: Count = 64  # Examples a step, over all devices.
    learning_rate: NonNegative = 1e-3  # Of Adam.
    b1: Share = 0.9  # Adam's decay of the mean gradient.
    b2: Share = 0.999  # Adam's decay of the mean square.
    warmup: Natural = 0  # Steps of linear warm-up.
    # Of the learning rate after the warm-up: none, or cosine or linear down to 0 at the last step.
    decay: str = "none"
    weight_decay: NonNegative = 0.0  # Decoupled, times the learning rate; of kernels alone (AdamW).
    clip: Annotated[float | None, Range(0)] = None  # Global norm to clip the gradient at.
    # Global norm above which a gradient makes no update: far above what is usual after the first
    # steps, as it is skipped like one that is not finite.
    skip: Annotated[float | None, Range(0)] = None
    ema: Share = 0.99  # Decay of the moving average of the parameters.
    # In examples, in place of --ema: what was learned so long ago counts half. It is shorter in the
    # beginning, a twentieth of the examples seen.
    ema_half_life: Annotated[float | None, Range(0)] = None
    # Of initialization, data order, noise and sampling.
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    # Parts of a batch whose gradients are taken one after the other, to save memory.
    accumulate: Count = 1
    parallel: str = "jit"  # jit (sharded over the devices) or pmap.
    devices: Annotated[int | None, Range(1)] = None  # How many devices to use (default: all).
    # Devices that divide parameters and optimizer state among them (FSDP).
    model_devices: Count = 1
    steps_per_call: Count = 1  # Steps in one dispatch; for dense networks, and on accelerators.
    log_every: Count = 50  # Steps between rows of metrics.
    checkpoint_every: Count = 500  # Steps between checkpoints.
    keep: Count = 3  # How many of the latest checkpoints to keep, beside the best.
    # Stop after so many steps in a row whose loss or gradient was not finite.
    max_skipped: Count = 10
    # Train several runs in one program: seed=0,1,2 learning_rate=1e-3,2e-3 is six.
    sweep: tuple[str, ...] = ()

    @property
    def looped(self) -> bool:
        """Whether gradients are taken inside a loop of the compiled program."""
        return self.steps_per_call > 1 or self.accumulate > 1


@dataclass(frozen=True)
class Sampling:
    """How many samples to draw."""  # which changes nothing in training

    samples: Count = 500  # Samples to measure.
    sample_batch: Count = 100  # Samples at a time on a device.
    # Features of images that Fréchet distances are of: classifier (trained on the data set), pca,
    # or one of the experiment's own (default: the system's, else classifier, or pca without
    # classes).
    features: str = "default"


@dataclass(frozen=True)
class Run:
    """Which run."""

    # The run's directory (default: a new one, runs/NAME-DATA-001; for sample, evaluate and --resume
    # the newest such).
    dir: Path | None = None
    # Where pictures and numbers go (default: the run's directory).
    out: Path | None = None
    resume: bool = False  # Go on with the run in the directory, from its last checkpoint.
    checkpoint: str = "last"  # Which checkpoint to sample from and evaluate: last, best or a step.
    debug_nans: bool = False  # Stop at the first operation that answers NaN, and name it (slow).
    # Write a trace of ten dispatches that TensorBoard and Perfetto open.
    profile: bool = False
    # HOST:PORT of the first of several processes that train together, or auto where the cluster
    # says it (SLURM, TPU pods, Kubernetes, MPI).
    coordinator: str | None = None
    num_processes: Annotated[int | None, Range(1)] = None  # How many processes train together.
    process_id: Annotated[int | None, Range(0)] = None  # Which of them this is, from 0.


def by_data(**configs: T) -> dict[str, T]:
    """Presets by the name of the data that each is for; ``points`` are all toy densities."""
    presets: dict[str, Any] = {}
    for name, config in configs.items():
        for data in DENSITIES if name == "points" else (name,):
            options: Any = config
            presets[data] = replace(options, data=replace(options.data, data=data))
    return presets


def carried(presets: Mapping[str, Any], data: DataSet) -> list[str]:
    """The names of the first preset of images, and of the larger ones that a set of images carries,
    rising.

    Those are the ones whose own images have at most twice as many values, and are at most ten times
    as many.
    """
    values, count = math.prod(data.shape), len(data.train)
    first = next((name for name in presets if name in SIZES), next(iter(presets)))
    return [first] + [
        name
        for name, (own_values, own_count) in SIZES.items()
        if name in presets and name != first
        if own_values <= 2 * values and own_count <= 10 * count
    ]


class Option(NamedTuple):
    """One option of a config, of whatever section."""

    name: str
    value: Any
    range: Range | None
    measuring: bool  # it changes nothing in training
    several: bool  # it has one value at least


def options_of(config: Any, measuring: bool = False) -> Iterator[Option]:
    """All options of a (nested) config."""
    hints = typing.get_type_hints(type(config), include_extras=True)
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        looked_at = measuring or "measuring" in f.metadata or isinstance(value, Sampling)
        if dataclasses.is_dataclass(value) and not isinstance(value, RunReference):
            yield from options_of(value, looked_at)
        else:
            several = isinstance(f.default, tuple) and f.default != ()
            yield Option(f.name, value, range_in(hints[f.name]), looked_at, several)


def range_in(hint: Any) -> Range | None:
    """The range in a type, or in that of its entries."""
    found = [m for m in getattr(hint, "__metadata__", ()) if isinstance(m, Range)]
    found += [r for part in typing.get_args(hint) if (r := range_in(part))]
    return found[0] if found else None


def values_of(config: Any) -> dict[str, Any]:
    """Each option's value by its name."""
    return {option.name: option.value for option in options_of(config)}


def flag_of(name: str) -> str:
    """An option's name on the command line."""
    return f"--{name.replace('_', '-')}"


def check_ranges(config: Any) -> None:
    """Holds every option to the range in its type.

    Raises:
      Mistake: naming the option and its range.
    """
    for name, value, allowed, _, several in options_of(config):
        flag = flag_of(name)
        if several and value == ():
            raise Mistake(f"{flag} takes one value or more: name them, or leave it out.")
        for x in value if isinstance(value, tuple) else (value,):
            if not isinstance(x, int | float):
                continue
            low, high = allowed or Range(-math.inf)
            if not math.isfinite(x):
                raise Mistake(f"{flag} is a finite number, not {x:g}.")
            if not low <= x <= high:
                least = f"at least {low:g}" if high == math.inf else f"in {low:g}..{high:g}"
                raise Mistake(f"{flag} is {least}, not {x:g}.")


def from_dict(kind: type, values: dict[str, Any], home: Path) -> Any:
    """A (nested) config dataclass from its JSON form; options it lacks keep their defaults.

    Runs that it refers to lie where they do relative to ``home``, the folder of the config.

    Raises:
      KeyError: for an option that ``kind`` does not have.
      ValueError: for a value that is none of its option.
    """
    hints = typing.get_type_hints(kind)
    for name in values.keys() - hints.keys():
        raise KeyError(name)
    known = {}
    for f in dataclasses.fields(kind):
        if f.name in values:
            value = values[f.name]
            if hints[f.name] is RunReference:
                value = reference_in(value, home)
            elif dataclasses.is_dataclass(hints[f.name]):
                if not isinstance(value, dict):
                    raise ValueError(f"{f.name} is no section of options")
                value = from_dict(hints[f.name], value, home)
            elif not may_be(hints[f.name], value):
                raise ValueError(f"{f.name} is {value!r}")
            elif isinstance(value, list):
                value = tuple(value)
            elif Path in (kind_of := hints[f.name], *typing.get_args(kind_of)) and value:
                value = Path(value)
            known[f.name] = value
    return kind(**known)


def may_be(hint: Any, value: Any) -> bool:
    """Whether a value of a JSON file may be one of an option of this type."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(may_be(part, value) for part in parts)
    if origin is Annotated:
        return may_be(parts[0], value)
    if origin is Literal:
        return value in parts
    if origin is tuple:
        one = parts[0] if parts else Any
        return isinstance(value, list) and all(may_be(one, x) for x in value)
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if hint in (int, float):
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole or (hint is float and isinstance(value, float))
    return isinstance(value, str) if hint is Path else True


def make_optimizer(options: Train) -> optax.GradientTransformation:
    """The optimizer that the options name."""
    return adam(
        options.learning_rate,
        warmup=options.warmup,
        decay=options.decay,
        steps=options.steps,
        clip=options.clip,
        skip=options.skip,
        b1=options.b1,
        b2=options.b2,
        weight_decay=options.weight_decay,
    )


def make_ema_decay(options: Train) -> Decay:
    """The decay of the moving average that the options name."""
    if options.ema_half_life is None:
        return options.ema
    return half_life_decay(options.ema_half_life, options.batch)
