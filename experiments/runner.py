"""What every experiment does alike: commands, training, reports.

A command answers with its exit status: 0 done; 2 a mistake, told in one sentence; 3 the loss or
its gradient was not finite; 74 a checkpoint or a log could not be written; 75 stopped by SIGTERM
after saving, to be resumed; 130 interrupted.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import signal
import sys
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import field
from pathlib import Path
from typing import Any

import jax
import tyro
from jax import Array
from jax.experimental import multihost_utils

from experiments import sweep
from experiments.diagnosis import diagnose
from experiments.folders import (
    check_directory,
    locked,
    newest,
    read_config,
    run_directory,
    write_config,
)
from experiments.system import Experiment, Mistake, Run, System, Train, choose
from jaxgen.data.cache import cache_dir
from jaxgen.data.pipeline import index_batches, prefetched, read_batches
from jaxgen.data.sources import Arrays, DataError, DataSet, did_you_mean, load
from jaxgen.evaluation.features import FeatureSpace, feature_space
from jaxgen.evaluation.report import Number, write_report
from jaxgen.plotting import save_curves
from jaxgen.training.checkpoints import Checkpoints, DamagedCheckpoint, NoCheckpoint, StorageError
from jaxgen.training.devices import (
    Placement,
    Pmapped,
    Sharded,
    check_divisible,
    compile_lowered,
    memory_available,
    memory_needed,
    on_one_device,
    scan_steps,
    tune_cpu,
)
from jaxgen.training.logging import MetricLog, NoLog, console, progress, read_metrics
from jaxgen.training.loop import NonFiniteLoss, Preempted, fit

VERBS = ("train", "sample", "evaluate")
ALONE = ("diagnose",)  # verbs that are only run when asked for
RESIDENT_LIMIT = 2**30  # bytes of training data that are kept on the devices


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns the exit status. Mistakes are one sentence and status 2."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(experiment, argv)
    except (Mistake, DataError, NoCheckpoint, DamagedCheckpoint) as error:
        return _failed(f"error: {error}", 2)
    except FloatingPointError as error:
        return _failed(f"error: {_first_operation(error)}", 3)
    except StorageError as error:
        return _failed(f"error: {error}", 74)
    except PermissionError as error:
        where = f"{error.filename} ({error.strerror})"
        return _failed(f"error: cannot write to {where}: give another --dir.", 74)
    except Preempted as error:
        return _failed(f"preempted: {error} and saved: add --resume to go on.", 75)
    except KeyboardInterrupt:
        return _failed("interrupted: add --resume to go on from the last checkpoint.", 130)


def _failed(sentence: str, status: int) -> int:
    print(sentence, file=sys.stderr)
    return status


def _first_operation(error: FloatingPointError) -> str:
    """What --debug-nans found: the operation, and the innermost line outside the framework."""
    if isinstance(error, NonFiniteLoss):
        return str(error)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not any(f"/{package}/" in frame.filename for package in ("jax", "flax", "optax"))
    ]
    return f"{error}, first at {frames[-1].filename}:{frames[-1].lineno}: {frames[-1].line}"


def _main(experiment: Experiment, argv: list[str]) -> int:
    verbs, config, run = parse(experiment, argv)
    enable_compilation_cache()
    tune_cpu()
    if run.coordinator is not None:
        _join(run, verbs)
    first = jax.process_index() == 0
    fresh = "train" in verbs and not run.resume
    directory = run_directory(experiment.name, config, run, fresh)
    console.print(f"jaxgen {experiment.name}: {', '.join(verbs)} on {config.data.data}")
    console.print(f"results in {directory}")
    jax.config.update("jax_debug_nans", run.debug_nans)
    if "train" in verbs:
        _check_steps(config.train)
        if first:
            check_directory(directory, experiment, config, run)
    elif not (directory / "config.json").exists():
        raise NoCheckpoint(f"no checkpoint in {directory}: train first, or give another --dir.")

    data = load(**{("name" if k == "data" else k): v for k, v in vars(config.data).items()})
    if not data.is_image:
        raise Mistake(f"{experiment.name} trains on images; {data.name} is a set of points.")
    placement = make_placement(config.train)
    members = sweep.members(config)
    key = sweep.run_key(config, members)
    try:
        system = (
            sweep.together(experiment.build, members, data, placement)
            if members
            else experiment.build(config, data, placement)
        )
        jax.eval_shape(system.init, key)
    except (ValueError, AssertionError) as error:
        raise Mistake(str(error)) from error

    with ExitStack() as held:
        if "train" in verbs and first:
            held.enter_context(locked(directory))
            check_directory(
                directory, experiment, config, run
            )  # again: another run may have come and gone
            write_config(directory, experiment.name, config)
        checkpoints = held.enter_context(open_checkpoints(directory, experiment, config, members))
        state = None
        if "train" in verbs:
            state = train(
                directory, config, members, data, placement, system, checkpoints, key, run
            )
        if jax.process_count() > 1:
            checkpoints.close()
            jax.distributed.shutdown()  # what follows is work for one process
            if not first:
                return 0
        if state is None or run.checkpoint != "last":
            step, state = restore(checkpoints, system, key, run.checkpoint)
            console.print(f"checkpoint of step {step}")
    if "sample" in verbs:
        files = system.sample(sweep.fold(key, 1), state, directory)
        console.print(f"pictures: {', '.join(path.name for path in files)}")
    if "evaluate" in verbs:
        space = _feature_space(data)
        numbers = system.evaluate(sweep.fold(key, 2), state, space)
        write_report(directory / experiment.report, numbers)
        _print_report(numbers, directory / experiment.report)
    if "diagnose" in verbs:
        numbers = diagnose(system, data, config.train, sweep.fold(key, 4), state, directory)
        if numbers:
            write_report(directory / "diagnosis.json", numbers)
            _print_report(numbers, directory / "diagnosis.json")
    return 0


def enable_compilation_cache() -> None:
    """Compiled programs are kept between runs, so that only the first start compiles."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def _join(run: Run, verbs: tuple[str, ...]) -> None:
    """Makes this one of several processes that train together."""
    if "train" not in verbs or run.checkpoint != "last":
        raise Mistake("several processes only train: sample and evaluate with one.")
    if run.dir is None:
        raise Mistake("several processes write to one directory: name it with --dir.")
    if run.coordinator == "auto":
        jax.distributed.initialize()
    elif run.num_processes is None or run.process_id is None:
        raise Mistake("--coordinator HOST:PORT needs --num-processes and --process-id.")
    else:
        jax.distributed.initialize(run.coordinator, run.num_processes, run.process_id)
    console.quiet = jax.process_index() > 0


# --- options ---------------------------------------------------------------------------------


def parse(experiment: Experiment, argv: list[str]) -> tuple[tuple[str, ...], Any, Run]:
    """Reads the verb, the preset and the options into (verbs, config, run).

    The preset is ``--preset``, else the one named as ``--data``, else digits; where a run exists
    and is not begun anew, its own config takes the preset's place.
    """
    verbs: tuple[str, ...] = VERBS
    if argv and not argv[0].startswith("-"):
        if argv[0] not in VERBS + ALONE:
            raise Mistake(f"unknown verb '{argv[0]}'{did_you_mean(argv[0], VERBS + ALONE)}")
        verbs, argv = (argv[0],), argv[1:]
    preset, argv = _take(argv, "--preset")
    name = preset or _peek(argv, "--data") or "digits"
    if preset and preset not in experiment.presets:
        raise Mistake(f"unknown preset '{preset}'{did_you_mean(preset, experiment.presets)}")
    default = experiment.presets.get(name, experiment.presets["digits"])
    if "train" not in verbs or "--resume" in argv:
        directory = _peek(argv, "--dir")
        found = Path(directory) if directory else newest(experiment.name, name)
        others = () if "train" in verbs else experiment.reads
        default = (read_config(experiment, found, others) if found else None) or default

    options = dataclasses.make_dataclass(
        "Options",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(default)], field(default=default)),
            ("run", tyro.conf.OmitArgPrefixes[Run], field(default=Run())),
        ],
    )
    description = (
        f"{experiment.about}\n\n"
        f"Usage: python -m experiments.{experiment.name} [{'|'.join(VERBS + ALONE)}] [options]; "
        "without a verb, the first three in order. --preset NAME starts from the options for "
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


def _check_steps(options: Train) -> None:
    if options.steps % options.steps_per_call:
        raise Mistake(
            f"steps ({options.steps}) is not a multiple of steps per call "
            f"({options.steps_per_call})."
        )


# --- training --------------------------------------------------------------------------------


def make_placement(options: Train) -> Placement:
    """The devices of a run.

    Raises:
      Mistake: for an unknown kind, too many devices, or a batch or state they cannot share.
    """
    choose("kind of parallelism", options.parallel, {"jit": 0, "pmap": 0})
    available, model = jax.devices(), options.model_devices
    count = options.devices or len(available)
    if count > len(available):
        raise Mistake(f"there are {len(available)} devices, not {count}: lower --devices.")
    if jax.process_count() > 1 and (options.parallel != "jit" or count < len(available)):
        raise Mistake("several processes use jit and all devices: drop --parallel and --devices.")
    if options.parallel != "jit" and model > 1:
        raise Mistake("pmap keeps the state whole on every device: use --parallel jit.")
    if count % model:
        raise Mistake(f"--model-devices ({model}) does not divide the {count} devices.")
    try:
        check_divisible(options.batch, count * options.accumulate)
    except ValueError as error:
        raise Mistake(str(error)) from error
    devices = tuple(available[:count])
    return Pmapped(devices) if options.parallel == "pmap" else Sharded(devices, model)


def train(
    directory: Path,
    config: Any,
    members: tuple[sweep.Member, ...],
    data: DataSet,
    placement: Placement,
    system: System,
    checkpoints: Checkpoints | sweep.MemberCheckpoints,
    key: Array,
    run: Run,
) -> Any:
    """Trains to ``config.train.steps`` and returns the state, whole on one device."""
    options: Train = config.train
    if run.debug_nans:  # a scan would be the operation that is named
        options = dataclasses.replace(options, steps_per_call=1)
    if run.resume and checkpoints.steps():
        start, state = checkpoints.restore(placement.stored(system.init, key))
        checkpoints.drop_after(start)
        state = placement.put_state(state)
        console.print(f"resuming from step {start}")
    else:
        start, state = 0, placement.init(system.init, sweep.fold(key, 0))
    if start >= options.steps:
        return on_one_device(placement.get_state(state))
    key = sweep.fold(key, 3)
    calls = math.ceil((options.steps - start) / options.steps_per_call)
    saved, begun = dataclasses.asdict(config), time.monotonic()
    ready = Waiting(batches(data, options, system.batches, members, placement, start))
    log = open_log(directory, members, start)

    def checkpoint(done: int, state: Any) -> None:
        stored = placement.get_state(state)
        score = system.score(on_one_device(stored))
        log.write(done, {"validation": score})
        checkpoints.save(done, stored, saved, score)

    try:
        with progress("compiling", options.steps, start) as advance, preemption() as stopping:
            advance(activity="compiling")
            step = compile_step(system.step, state, ready, key, placement, options, run)
            state = fit(
                state,
                profiled(step, directory / "profile", calls) if run.profile else step,
                ready,
                key,
                start=start,
                stop=options.steps,
                steps_per_call=options.steps_per_call,
                log=log,
                log_every=options.log_every,
                checkpoint=checkpoint,
                checkpoint_every=options.checkpoint_every,
                advance=advance,
                max_skipped=options.max_skipped,
                stopping=stopping,
            )
    except NonFiniteLoss as error:
        kept = checkpoints.steps()
        last = f"the last good one is of step {kept[-1]}" if kept else "there is none before it"
        raise NonFiniteLoss(f"{error} Checkpoints in {checkpoints.directory}: {last}.") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        reason = error.strerror or error
        raise StorageError(
            f"cannot write to {directory} ({reason}): make room, then --resume."
        ) from error
    finally:
        log.close()
    if jax.process_index() == 0:
        for folder in [directory / member.name for member in members] or [directory]:
            save_curves(folder / "curves.png", read_metrics(folder / "metrics.jsonl"))
    seconds = time.monotonic() - begun
    console.print(
        f"trained {options.steps - start} steps in {seconds:.0f} s, "
        f"{ready.seconds / seconds:.1%} of it waiting for data; curves: curves.png"
    )
    return on_one_device(placement.get_state(state))


def compile_step(
    step: Callable,
    state: Any,
    ready: Waiting,
    key: Array,
    placement: Placement,
    options: Train,
    run: Run,
) -> Callable:
    """The compiled step, once it is known to fit into the memory of a device.

    Raises:
      Mistake: if it does not.
    """
    step = step if options.steps_per_call == 1 else scan_steps(step)
    if run.debug_nans:  # which runs a step again, operation by operation, on the same state
        return placement.compile(step, donate=False)
    device = jax.local_devices()[0]
    try:
        program = compile_lowered(placement.compile(step).lower(state, ready.first(), key))
        needed = memory_needed(program)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        program, needed = None, None
    available = memory_available(device)
    if needed is not None:
        console.print(
            f"memory: a step needs {needed / 2**20:,.0f} MiB of {available / 2**20:,.0f} MiB "
            f"on each of {options.devices or jax.device_count()} devices"
        )
    if program is None or (needed is not None and needed > available):
        raise Mistake(
            f"a step does not fit into the {available / 2**30:.1f} GiB of a {device.device_kind}: "
            "lower --batch, or try --accumulate 2, --remat, --bfloat16 or more --model-devices."
        )
    return program


class Waiting(Iterator):
    """An iterator that counts the seconds spent waiting for it."""

    def __init__(self, batches: Iterator) -> None:
        self._batches, self.seconds = batches, 0.0

    def first(self) -> Any:
        """The next element, which stays the next."""
        element = next(self)
        self._batches = itertools.chain([element], self._batches)
        return element

    def __next__(self) -> Any:
        begun = time.perf_counter()
        element = next(self._batches)
        self.seconds += time.perf_counter() - begun
        return element


@contextmanager
def preemption() -> Generator[Callable[[int], bool]]:
    """Answers, inside the block, whether SIGTERM has asked this run to stop after a step.

    Of several processes it may reach one alone; all then stop after the same step.
    """
    if jax.process_count() > 1:
        calls = itertools.count()
        yield lambda done: multihost_utils.reached_preemption_sync_point(next(calls))
        return
    asked = []
    before = signal.signal(signal.SIGTERM, lambda *_: asked.append(True))
    try:
        yield lambda done: bool(asked)
    finally:
        signal.signal(signal.SIGTERM, before)


def profiled(step: Callable, directory: Path, calls: int) -> Callable:
    """The step, of whose ``calls`` ten are traced: ``tensorboard --logdir`` or ui.perfetto.dev.

    The first ten are passed over, or half of them in a run of less than twenty.
    """
    first = min(10, calls // 2)
    last = min(first + 10, calls) - 1
    count = itertools.count()

    def traced(state: Any, batch: Any, key: Array) -> Any:
        call = next(count)
        if call == first:
            jax.profiler.start_trace(directory, create_perfetto_trace=True)
        state, metrics = step(state, batch, key)
        if call == last:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            console.print(f"profile of {last - first + 1} calls in {directory}")
        return state, metrics

    return traced


def batches(
    data: DataSet,
    options: Train,
    count: int,
    members: tuple[sweep.Member, ...],
    placement: Placement,
    start: int,
) -> Iterator[Any]:
    """Placed batches from step ``start`` on, ``count`` times ``--batch`` examples each.

    They are gathered on the devices where the data fits there.
    """
    size = count * options.batch
    index = index_batches(
        len(data.train),
        size,
        seed=sweep.seeds(members) if members else options.seed,
        start=start,
        stride=options.steps_per_call,
        rows=placement.rows(size),
    )
    leading = int(options.steps_per_call > 1) + int(bool(members))
    if isinstance(data.train, Arrays) and data.train.x.nbytes <= RESIDENT_LIMIT:
        gather = placement.resident({"x": data.train.x, "label": data.train.label})
        return (gather(placement.put_batch(i, leading=leading)) for i in prefetched(index))
    return (placement.put_batch(b, leading=leading) for b in read_batches(data.train, index))


def restore(
    checkpoints: Checkpoints | sweep.MemberCheckpoints, system: System, key: Array, which: str
) -> tuple[int, Any]:
    """The state of a checkpoint named ``last``, ``best`` or by its step, on the first device."""
    if which not in ("last", "best") and not which.isdigit():
        raise Mistake(f"--checkpoint is last, best or a step, not '{which}'.")
    step = checkpoints.best() if which == "best" else None
    step = int(which) if which.isdigit() else step
    alone = Sharded((jax.local_devices()[0],))
    return checkpoints.restore(alone.stored(system.init, key), step)


def open_checkpoints(
    directory: Path, experiment: Experiment, config: Any, members: tuple[sweep.Member, ...]
) -> Checkpoints | sweep.MemberCheckpoints:
    if members:
        return sweep.MemberCheckpoints(directory, experiment.name, members, config.train.keep)
    return Checkpoints(directory / "checkpoints", config.train.keep)


def open_log(directory: Path, members: tuple[sweep.Member, ...], start: int) -> Any:
    """Where the metrics go; the first process alone writes."""
    if jax.process_index() > 0:
        return NoLog()
    if members:
        return sweep.MemberLogs(directory, members, start)
    return MetricLog(directory, start)


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
        spread = "" if n.std is None else f" ± {n.std:.2g}"
        table.add_row(n.name, f"{n.value:.4g}{spread}", n.protocol)
    console.print(table)
