"""What every experiment does alike: options, run directories, training, reports.

An experiment is an :class:`Experiment`: presets of its config, and a function that builds a
:class:`System` from a config and a data set. This module is the rest of the command.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import optax
import tyro

from jaxgen.data.pipeline import index_batches, prefetched, read_batches
from jaxgen.data.sources import Arrays, DataError, DataSet, did_you_mean, load
from jaxgen.evaluation.features import FeatureSpace, cache_dir, feature_space
from jaxgen.evaluation.report import Number, write_report
from jaxgen.plotting import save_curves
from jaxgen.training.checkpoints import Checkpoints, NoCheckpoint
from jaxgen.training.devices import PLACEMENTS, Placement, check_divisible, scan_steps
from jaxgen.training.logging import MetricLog, console, progress, read_metrics
from jaxgen.training.loop import NonFiniteLoss, fit
from jaxgen.training.step import adam

VERBS = ("train", "sample", "evaluate")
RESIDENT_LIMIT = 2**30  # bytes of training data that are kept on the devices


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
    clip: float | None = None
    """Global norm to clip the gradient at."""
    ema: float = 0.99
    """Decay of the moving average of the parameters."""
    seed: int = 0
    """Of initialization, data order, noise and sampling."""
    parallel: str = "jit"
    """jit (sharded over the devices) or pmap."""
    devices: int | None = None
    """How many devices to use (default: all)."""
    steps_per_call: int = 1
    """Steps in one dispatch; for dense networks, and on accelerators."""
    log_every: int = 50
    """Steps between rows of metrics."""
    checkpoint_every: int = 500
    """Steps between checkpoints."""
    keep: int = 3
    """How many of the latest checkpoints to keep, beside the best."""


# What --resume may change: none of it alters a step that was already made.
FREE_ON_RESUME = {"steps", "parallel", "devices", "log_every", "checkpoint_every", "keep"}

# Sections of a config that say how to measure a trained model, and change nothing in training.
MEASURING = ("sampling", "applications")

Config = TypeVar("Config")


@dataclass(frozen=True)
class System:
    """A model with its data: what the runner needs to train, sample and measure it.

    ``sample`` and ``evaluate`` take the trained state; ``sample`` writes pictures and names them.
    """

    init: Callable[[jax.Array], Any]  # key -> state
    step: Callable  # the step body
    score: Callable[[Any], float]  # state -> a validation score, lower is better
    sample: Callable[[jax.Array, Any, Path], list[Path]]
    evaluate: Callable[[jax.Array, Any, FeatureSpace], list[Number]]


@dataclass(frozen=True)
class Experiment(Generic[Config]):
    """A system's name, one line about it, its presets by data set, and how to build it."""

    name: str
    about: str
    presets: dict[str, Config]
    build: Callable[[Config, DataSet, Placement], System]
    report: str = "report.json"  # another name where it evaluates the runs of another experiment


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


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Mistakes are one sentence and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(experiment, argv)
    except (Mistake, DataError, NoCheckpoint) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except NonFiniteLoss as error:
        print(f"error: {error}", file=sys.stderr)
        return 3
    except KeyboardInterrupt:
        print("interrupted: add --resume to go on from the last checkpoint.", file=sys.stderr)
        return 130


def _main(experiment: Experiment, argv: list[str]) -> int:
    verbs, config, run = parse(experiment, argv)
    directory = _directory(experiment, config, run, fresh="train" in verbs and not run.resume)
    console.print(f"jaxgen {experiment.name}: {', '.join(verbs)} on {config.data.data}")
    console.print(f"results in {directory}")
    enable_compilation_cache()
    if "train" in verbs:
        _check_steps(config.train)
        _check_directory(directory, config, run)
    elif not (directory / "config.json").exists():
        raise NoCheckpoint(f"no checkpoint in {directory}: train first, or give another --dir.")

    data = load(**{("name" if k == "data" else k): v for k, v in vars(config.data).items()})
    if not data.is_image:
        raise Mistake(f"{experiment.name} trains on images; {data.name} is a set of points.")
    placement = make_placement(config.train)
    try:
        system = experiment.build(config, data, placement)
        abstract = jax.eval_shape(system.init, jax.random.key(0))
    except (ValueError, AssertionError) as error:
        raise Mistake(str(error)) from error

    with Checkpoints(directory / "checkpoints", config.train.keep) as checkpoints:
        state = None
        if "train" in verbs:
            state = train(directory, config, data, placement, system, checkpoints, run.resume)
        if state is None or run.checkpoint != "last":
            step, state = restore(checkpoints, abstract, run.checkpoint)
            console.print(f"checkpoint of step {step}")
    key = jax.random.key(config.train.seed)
    if "sample" in verbs:
        files = system.sample(jax.random.fold_in(key, 1), state, directory)
        names = ", ".join(path.name for path in files)
        console.print(f"pictures: {names}")
    if "evaluate" in verbs:
        space = _feature_space(data)
        numbers = system.evaluate(jax.random.fold_in(key, 2), state, space)
        write_report(directory / experiment.report, numbers)
        _print_report(numbers, directory / experiment.report)
    return 0


def enable_compilation_cache() -> None:
    """Compiled programs are kept between runs, so that only the first start compiles."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


# --- options ---------------------------------------------------------------------------------


def parse(experiment: Experiment, argv: list[str]) -> tuple[tuple[str, ...], Any, Run]:
    """Reads the verb, the preset and the options into (verbs, config, run).

    The preset is ``--preset``, else the one named as ``--data``, else digits; where a run exists
    and is not begun anew, its own config takes the preset's place.
    """
    verbs: tuple[str, ...] = VERBS
    if argv and not argv[0].startswith("-"):
        if argv[0] not in VERBS:
            raise Mistake(f"unknown verb '{argv[0]}'{did_you_mean(argv[0], VERBS)}")
        verbs, argv = (argv[0],), argv[1:]
    preset, argv = _take(argv, "--preset")
    name = preset or _peek(argv, "--data") or "digits"
    if preset and preset not in experiment.presets:
        raise Mistake(f"unknown preset '{preset}'{did_you_mean(preset, experiment.presets)}")
    default = experiment.presets.get(name, experiment.presets["digits"])
    if "train" not in verbs or "--resume" in argv:
        directory = _peek(argv, "--dir")
        found = Path(directory) if directory else _newest(experiment.name, name)
        if found and (found / "config.json").exists():
            default = from_dict(type(default), json.loads((found / "config.json").read_text()))

    options = dataclasses.make_dataclass(
        "Options",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(default)], field(default=default)),
            ("run", tyro.conf.OmitArgPrefixes[Run], field(default=Run())),
        ],
    )
    description = (
        f"{experiment.about}\n\n"
        f"Usage: python -m experiments.{experiment.name} [{'|'.join(VERBS)}] [options]; "
        "without a verb, all three in order. --preset NAME starts from the options for "
        f"{', '.join(experiment.presets)} (default: the one named as --data)."
    )
    prog = f"python -m experiments.{experiment.name}"
    chosen: Any = tyro.cli(options, args=argv, prog=prog, description=description)
    return verbs, chosen.config, chosen.run


def _peek(argv: list[str], flag: str) -> str | None:
    """The value of ``flag value`` or ``flag=value``."""
    for i, word in enumerate(argv):
        if word == flag and i + 1 < len(argv):
            return argv[i + 1]
        if word.startswith(f"{flag}="):
            return word.partition("=")[2]
    return None


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """:func:`_peek`, and the words without it."""
    value = _peek(argv, flag)
    if flag in argv:
        i = argv.index(flag)
        return value, argv[:i] + argv[i + 2 :]
    return value, [word for word in argv if not word.startswith(f"{flag}=")]


def choose(kind: str, name: str, table: dict[str, Any]) -> Any:
    """``table[name]``, or a :class:`Mistake` that offers the nearest names."""
    if name not in table:
        raise Mistake(f"unknown {kind} '{name}'{did_you_mean(name, table)}")
    return table[name]


def from_dict(kind: type, values: dict[str, Any]) -> Any:
    """A (nested) config dataclass from its JSON form; options it lacks keep their defaults."""
    hints = typing.get_type_hints(kind)
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


# --- run directories -------------------------------------------------------------------------


def _stem(experiment: str, data: str) -> str:
    return f"{experiment}-" + "".join(c if c.isalnum() or c in "_-" else "_" for c in data)


def _existing(experiment: str, data: str) -> list[Path]:
    return sorted(Path("runs").glob(f"{_stem(experiment, data)}-[0-9][0-9][0-9]"))


def _newest(experiment: str, data: str) -> Path | None:
    return next(reversed(_existing(experiment, data)), None)


def _directory(experiment: Experiment, config: Any, run: Run, fresh: bool) -> Path:
    if run.dir is not None:
        return run.dir
    existing = _existing(experiment.name, config.data.data)
    if fresh:
        number = 1 + (int(existing[-1].name[-3:]) if existing else 0)
        return Path("runs") / f"{_stem(experiment.name, config.data.data)}-{number:03d}"
    if not existing:
        raise NoCheckpoint(
            f"there is no run of {experiment.name} on {config.data.data} under runs/: "
            "train first, or give its --dir."
        )
    return existing[-1]


def _check_steps(options: Train) -> None:
    if options.steps % options.steps_per_call:
        raise Mistake(
            f"steps ({options.steps}) is not a multiple of steps per call "
            f"({options.steps_per_call})."
        )


def _check_directory(directory: Path, config: Any, run: Run) -> None:
    """Refuses to train over another run, before anything is compiled or overwritten."""
    path = directory / "config.json"
    if not path.exists():
        if run.resume:
            raise NoCheckpoint(f"no run to resume in {directory}: leave out --resume.")
        return
    if not run.resume:
        raise Mistake(f"{directory} already holds a run: add --resume, or give another --dir.")
    saved = from_dict(type(config), json.loads(path.read_text()))
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(saved)
    for options in (ours, theirs):
        for section in MEASURING:
            options.pop(section, None)
        for name in FREE_ON_RESUME:
            options["train"].pop(name)
    different = sorted(_differences(theirs, ours))
    if different:
        raise Mistake(
            f"{directory} holds a run with other options ({'; '.join(different)}): "
            "resume it with its own, or give another --dir."
        )


def _differences(theirs: dict, ours: dict) -> list[str]:
    found = []
    for name, value in ours.items():
        if isinstance(value, dict):
            found += _differences(theirs[name], value)
        elif theirs[name] != value:
            found.append(f"{name} is {theirs[name]}, not {value}")
    return found


# --- training --------------------------------------------------------------------------------


def make_placement(options: Train) -> Placement:
    """The devices of a run.

    Raises:
      Mistake: for an unknown kind, too many devices, or a batch they cannot share.
    """
    kind = choose("kind of parallelism", options.parallel, PLACEMENTS)
    available = jax.devices()
    count = options.devices or len(available)
    if count > len(available):
        raise Mistake(f"there are {len(available)} devices, not {count}: lower --devices.")
    try:
        check_divisible(options.batch, count)
    except ValueError as error:
        raise Mistake(str(error)) from error
    return kind(tuple(available[:count]))


def make_optimizer(options: Train) -> optax.GradientTransformation:
    """The optimizer that the options name."""
    return adam(options.learning_rate, warmup=options.warmup, clip=options.clip, b1=options.b1)


def train(
    directory: Path,
    config: Any,
    data: DataSet,
    placement: Placement,
    system: System,
    checkpoints: Checkpoints,
    resume: bool,
) -> Any:
    """Trains to ``config.train.steps`` and returns the state; writes the run directory."""
    options: Train = config.train
    key = jax.random.key(options.seed)
    state, start = jax.jit(system.init)(jax.random.fold_in(key, 0)), 0
    if resume:
        _, state, start = checkpoints.restore(state)
        console.print(f"resuming from step {start}")
        if start >= options.steps:
            return state
    saved = dataclasses.asdict(config)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(saved, indent=2, default=str) + "\n")

    step = system.step if options.steps_per_call == 1 else scan_steps(system.step)
    log = MetricLog(directory, start)

    def checkpoint(done: int, state: Any) -> None:
        state = placement.get_state(state)
        score = system.score(state)
        log.write(done, {"validation": score})
        checkpoints.save(done, state, saved, score)

    begun = time.monotonic()
    try:
        with progress("compiling", options.steps, start) as advance:
            state = fit(
                placement.put_state(state),
                placement.compile(step),
                batches(data, options, placement, start),
                jax.random.fold_in(key, 3),
                start=start,
                stop=options.steps,
                steps_per_call=options.steps_per_call,
                log=log,
                log_every=options.log_every,
                checkpoint=checkpoint,
                checkpoint_every=options.checkpoint_every,
                advance=advance,
            )
    except NonFiniteLoss as error:
        kept = checkpoints.steps()
        last = f"the last good one is of step {kept[-1]}" if kept else "there is none before it"
        raise NonFiniteLoss(f"{error} Checkpoints in {checkpoints.directory}: {last}.") from error
    finally:
        log.close()
    save_curves(directory / "curves.png", read_metrics(directory / "metrics.jsonl"))
    seconds = time.monotonic() - begun
    console.print(f"trained {options.steps - start} steps in {seconds:.0f} s; curves: curves.png")
    return placement.get_state(state)


def batches(data: DataSet, options: Train, placement: Placement, start: int):
    """Placed batches from step ``start`` on: gathered on the devices where the data fits there."""
    index = index_batches(
        len(data.train),
        options.batch,
        seed=options.seed,
        start=start,
        stride=options.steps_per_call,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
    )
    many = options.steps_per_call > 1
    if isinstance(data.train, Arrays) and data.train.x.nbytes <= RESIDENT_LIMIT:
        gather = placement.resident({"x": data.train.x, "label": data.train.label})
        return (gather(placement.put_batch(i, many=many)) for i in prefetched(index))
    return (placement.put_batch(b, many=many) for b in read_batches(data.train, index))


def restore(checkpoints: Checkpoints, abstract: Any, which: str) -> tuple[int, Any]:
    """The state of a checkpoint named ``last``, ``best`` or by its step, on the first device."""
    if which not in ("last", "best") and not which.isdigit():
        raise Mistake(f"--checkpoint is last, best or a step, not '{which}'.")
    step = {"last": None, "best": checkpoints.best()}.get(which, 0)
    step = int(which) if which.isdigit() else step
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), abstract
    )
    step, state, _ = checkpoints.restore(abstract, step)
    return step, state


# --- reports ---------------------------------------------------------------------------------


def _feature_space(data: DataSet) -> FeatureSpace:
    with progress("features", 1) as advance:
        space = feature_space(data)
        advance(1)
    return space


def _print_report(numbers: list[Number], path: Path) -> None:
    from rich.table import Table

    table = Table(title=str(path), title_justify="left")
    for column in ("number", "value", "protocol"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for n in numbers:
        table.add_row(n.name, f"{n.value:.4g}", n.protocol)
    console.print(table)
