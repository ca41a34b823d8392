"""What a command does: its verbs and options, and the sentence by which it ends.

A command answers with its exit status: 0 done; 2 a mistake, told in one sentence; 3 the loss or
its gradient was not finite; 74 a checkpoint or a log could not be written; 75 stopped by SIGTERM,
130 by Ctrl-C, in training after a step and a save.
"""

from __future__ import annotations

import logging
import math
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import jax

import jaxgen
from jaxgen.data.cache import keep_compiled
from jaxgen.data.records import DataError, DataSet
from jaxgen.evaluation.report import Number, over_seeds, print_report, write_report
from jaxgen.runner import folders, sweeps
from jaxgen.runner.building import loading_once
from jaxgen.runner.captions import Plot, plots_of, write_captions
from jaxgen.runner.diagnosis import diagnose
from jaxgen.runner.fitting import train
from jaxgen.runner.identity import identity_of
from jaxgen.runner.needs import with_references
from jaxgen.runner.options import Run, check_ranges
from jaxgen.runner.parsing import fitting_options, parse
from jaxgen.runner.system import Experiment, Mistake
from jaxgen.runner.trained import open_run
from jaxgen.training.checkpoints import (
    DamagedCheckpoint,
    NoCheckpoint,
    StorageError,
    told_once,
    written_or_told,
)
from jaxgen.training.devices import OutOfMemory, tune_cpu
from jaxgen.training.logging import console
from jaxgen.training.loop import NonFiniteLoss, Preempted
from jaxgen.training.signals import ENDINGS, Stopped, ended_by_signals, leave


def main(experiment: Any, argv: Sequence[str] | None = None) -> int:
    """Runs one command of an experiment or a study; returns the exit status."""
    as_command, words = argv is None, list(sys.argv[1:] if argv is None else argv)
    if words == ["--version"]:
        print(f"jaxgen {jaxgen.__version__}")
        return 0
    alone = isinstance(experiment, Experiment)
    run = partial(run_experiment, experiment) if alone else experiment.run
    remedy = "add --resume" if alone else "run it again"
    try:
        with told_once(), ended_by_signals(as_command, remedy):
            status = in_one_sentence(lambda: run(words), remedy)
        if as_command and status == 74:  # while the interpreter ends, libraries tell what they
            logging.disable()  # gave up
            warnings.simplefilter("ignore")
            sys.unraisablehook = threading.excepthook = lambda _: None
        return status
    except Stopped as stopped:
        if as_command:  # an interpreter that ends would wait for threads, or crash by them
            leave(stopped)
        return _failed(stopped.sentence, stopped.status)


def in_one_sentence(command: Callable[[], None], remedy: str = "add --resume") -> int:
    """Runs a command, and turns whatever ends it into a sentence and an exit status.

    ``remedy`` is what goes on with training.
    """
    try:
        command()
    except (Mistake, DataError, NoCheckpoint, DamagedCheckpoint, OutOfMemory) as error:
        return _failed(f"error: {error}", 2)
    except FloatingPointError as error:
        return _failed(f"error: {_first_operation(error)}", 3)
    except StorageError as error:
        return _failed(f"error: {error}", 74)
    except BrokenPipeError:  # whoever read the output has gone
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return 141
    except Preempted as error:
        how, status = ENDINGS[signal.Signals(error.signal)]
        return _failed(f"{how}: {error} and saved: {remedy} to go on.", status)
    return 0


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


def run_experiment(experiment: Experiment, argv: list[str]) -> None:
    """Trains, samples and measures, as the verb and the options say."""
    verbs, config, run = parse(experiment, argv)
    check_ranges(config)
    check_ranges(run)
    folders.check_out(run.out)
    folders.check_checkpoint(run.checkpoint)
    prepare_jax()
    if run.coordinator is not None:
        join(run, verbs)
    jax.config.update("jax_debug_nans", run.debug_nans)
    fresh = "train" in verbs and not run.resume
    directory = folders.run_directory(experiment.name, config, run, fresh)
    console.print(f"jaxgen {experiment.name}: {', '.join(verbs)} on {config.data.data}")
    console.print(f"results in {directory}")
    if fresh and identity_of(experiment).attribute is None:
        console.print("no module holds this experiment: open_run will need it as experiment=")
    if "train" in verbs and jax.process_index() == 0:
        folders.check_directory(directory, experiment, config, run)
    elif "train" not in verbs:
        folders.check_trained(directory, experiment, config)
    load = loading_once()
    data = load(experiment, config.data)
    resolve = partial(with_references, load=load, find=fresh)
    config = fitting_options(experiment, argv, config, data, resolve) if fresh else resolve(config)
    if "train" in verbs:
        train(experiment, config, data, directory, run)
    if verbs != ("train",):
        with results_written_or_told(run.out or directory):
            look(experiment, verbs, config, data, directory, run)


def prepare_jax() -> None:
    """What makes every command fast; before JAX's first use."""
    keep_compiled()
    tune_cpu()


def join(run: Run, verbs: tuple[str, ...]) -> None:
    """Makes this one of several processes that train together."""
    if verbs != ("train",):
        raise Mistake("several processes only train: say train, then sample and evaluate with one.")
    last = (run.num_processes or 1) - 1
    if run.process_id is not None and run.process_id > last:
        raise Mistake(f"--process-id is in 0..{last} of --num-processes, not {run.process_id}.")
    if run.dir is None:
        raise Mistake("several processes write to one directory: name it with --dir.")
    if run.coordinator == "auto":
        jax.distributed.initialize()
    elif run.num_processes is None or run.process_id is None:
        raise Mistake("--coordinator HOST:PORT needs --num-processes and --process-id.")
    else:
        console.print(f"waiting for {run.num_processes} processes at {run.coordinator}")
        jax.distributed.initialize(run.coordinator, run.num_processes, run.process_id)
    console.quiet = jax.process_index() > 0


# --- what is made of a trained run -----------------------------------------------------------


def look(
    experiment: Experiment,
    verbs: tuple[str, ...],
    config: Any,
    data: DataSet,
    directory: Path,
    run: Run,
) -> None:
    """Samples, measures and diagnoses a run, or every member of a sweep."""
    members = sweeps.members(config)
    groups: dict[str, list[list[Number]]] = {}
    opened: dict[str, Any] = {}
    out = run.out or directory
    table = out / "report.json"
    for name, group, own in [(m.name, m.group, m.config) for m in members] or [(".", "", config)]:
        how = {"experiment": experiment, "config": own, "data": data, "out": out / name}
        trained = opened[name] = open_run(directory / name, run.checkpoint, **how)
        console.print(f"results of step {trained.step} in {trained.results}")
        if "sample" in verbs:
            draw_pictures(experiment.pictures, trained)
        if "evaluate" in verbs:
            numbers = [n for measure in experiment.measures for n in measure(trained)]
            groups.setdefault(group, []).append(numbers)
            if members:
                write_report(trained.results / "report.json", numbers, trained.fingerprint)
            table = out / trained.results.name / "report.json"
        if "diagnose" in verbs:
            report(diagnose(trained), trained.results / "diagnosis.json", [trained])
    if "sample" in verbs and members and experiment.comparisons:
        draw_pictures(experiment.comparisons, opened)
    if "evaluate" in verbs:
        report(over_seeds(groups), table, list(opened.values()))


def results_written_or_told(place: Path) -> AbstractContextManager[None]:
    """What keeps results from being written ends the block in a sentence."""
    out = "name another folder for the results with --out"
    return written_or_told(place, elsewhere=out, with_room=f"or {out}")


def draw_pictures(pictures: Sequence[Callable[..., Any]], *args: Any) -> None:
    """Draws each picture, names its files, and keeps their titles and captions."""
    found: list[Plot] = []
    for picture in pictures:
        found += plots_of(picture, picture(*args))
    write_captions(found)
    console.print(f"pictures: {', '.join(plot.path.name for plot in found)}")


def report(numbers: list[Number], path: Path, runs: Sequence[Any]) -> None:
    """Writes numbers of runs with their protocols, beside those that there are of the same weights,
    and shows them; those that are none are left out."""
    for number in numbers:
        if not math.isfinite(number.value):
            console.print(f"{number.name} is left out: it is {number.value}")
    write_report(path, numbers, folders.together([run.fingerprint for run in runs], limit=16))
    print_report(numbers, path, console)
