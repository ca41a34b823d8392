"""What a command does: its verbs and options, and the sentence by which it ends.

A command answers with its exit status: 0 done; 2 a mistake, told in one sentence; 3 the loss or
its gradient was not finite; 74 a checkpoint or a log could not be written; 75 stopped by SIGTERM,
130 by Ctrl-C, in training after a step and a save.
"""

from __future__ import annotations

import argparse
import dataclasses
import inspect
import logging
import math
import os
import re
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any

import jax
import tyro

import jaxgen
from jaxgen.data.cache import keep_compiled
from jaxgen.data.records import DataError, DataSet, Image, did_you_mean
from jaxgen.evaluation.report import Number, over_seeds, print_report, write_report
from jaxgen.runner import folders, sweeps
from jaxgen.runner.building import build, load_data
from jaxgen.runner.diagnosis import diagnose
from jaxgen.runner.fitting import train
from jaxgen.runner.options import Run, carried, check_ranges
from jaxgen.runner.system import Experiment, Mistake, choose
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

VERBS = ("train", "sample", "evaluate")
ALONE = ("diagnose",)  # verbs that are only run when asked for


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
    if "train" in verbs and jax.process_index() == 0:
        folders.check_directory(directory, experiment, config, run)
    elif "train" not in verbs:
        folders.check_trained(directory, experiment, config)
    data = load_data(experiment, config.data)
    if fresh:
        config = fitting_options(experiment, argv, config, data)
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
    if changed := folders.data_changed(directory, data):
        console.print(f"warning: {changed}: numbers are of what it holds now.")
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
                write_report(trained.results / "report.json", numbers)
            table = out / trained.results.name / "report.json"
        if "diagnose" in verbs:
            report(diagnose(trained), trained.results / "diagnosis.json")
    if "sample" in verbs and members and experiment.comparisons:
        draw_pictures(experiment.comparisons, opened)
    if "evaluate" in verbs:
        report(over_seeds(groups), table)


def results_written_or_told(place: Path) -> AbstractContextManager[None]:
    """What keeps results from being written ends the block in a sentence."""
    out = "name another folder for the results with --out"
    return written_or_told(place, elsewhere=out, with_room=f"or {out}")


def draw_pictures(pictures: Sequence[Callable[..., Any]], *args: Any) -> None:
    """Draws each picture and names its files."""
    found: list[Path] = []
    for picture in pictures:
        files = picture(*args)
        found += [files] if isinstance(files, Path) else files
    console.print(f"pictures: {', '.join(path.name for path in found)}")


def report(numbers: list[Number], path: Path) -> None:
    """Writes numbers with their protocols, and shows them; those that are none are left out."""
    for number in numbers:
        if not math.isfinite(number.value):
            console.print(f"{number.name} is left out: it is {number.value}")
    write_report(path, numbers)
    print_report(numbers, path, console)


# --- options ---------------------------------------------------------------------------------


def fitting_options(experiment: Experiment, argv: list[str], config: Any, data: DataSet) -> Any:
    """The options of the largest preset that images carry and that fits them, if none is named."""
    named = early(argv, "--preset")[0].preset or config.data.data in experiment.presets
    if named or not isinstance(data.kind, Image):
        return config
    first, *larger = carried(experiment.presets, data)
    for name in reversed(larger):
        _, config, _ = parse(experiment, argv, name)
        try:
            build(experiment, config, data)
            break
        except Mistake:  # for networks of other sizes
            continue
    else:
        name, (_, config, _) = first, parse(experiment, argv, first)
    console.print(f"options: those for {name}, by the size and number of images, or --preset")
    return config


def parse(
    experiment: Experiment, argv: list[str], preset: str | None = None
) -> tuple[tuple[str, ...], Any, Run]:
    """Reads the verb, the preset and the options into (verbs, config, run).

    The preset is ``--preset``, else that of the argument, else the one named as ``--data``, else
    the first; where a run exists and is not begun anew, its own config takes the preset's place.
    """
    verbs, argv = take_verb(argv, VERBS, ALONE)
    first, _ = early(argv, "--data", "--dir")
    of, argv = early(argv, "--preset")
    if first.dir == "":
        raise Mistake("--dir is empty: name a directory, or leave it out.")
    if of.preset is not None:
        choose("preset", of.preset, experiment.presets)
    name = of.preset or preset or first.data or experiment.default.data.data
    default = experiment.preset(name)
    if "train" not in verbs or "--resume" in argv:
        known = folders.existing(experiment.name, first.data or default.data.data)
        known = [Path(first.dir)] if first.dir else known
        if known and folders.is_run(known[-1]):
            default = folders.read_config(known[-1], experiment)
    description = (
        f"{experiment.about}\n\n"
        f"Usage: [{'|'.join(VERBS + ALONE)}] [options]; without a verb, the first three in order. "
        f"--preset NAME starts from the options for {', '.join(experiment.presets)} (default: the "
        f"one named as --data).\n\n{drawn_by(experiment.pictures)}"
    )
    prog = folders.command_of(folders.module_of(experiment.build))
    config, run = read_options(default, Run(), argv, prog, description)
    return verbs, config, run


def drawn_by(pictures: Sequence[Callable[..., Any]]) -> str:
    """What is drawn, a line a picture: the first sentences of what each says of itself."""
    told = [inspect.getdoc(getattr(picture, "func", picture)) or "" for picture in pictures]
    lines = [" ".join(text.split("\n\n")[0].split()).replace("`", "") for text in told]
    return "\n".join(["It draws:", *(f"    {line}" for line in lines if line)])


def read_options(
    default: Any, run: Any, argv: list[str], prog: str, description: str
) -> tuple[Any, Any]:
    """The config and what goes with it, each option by its own name, without its section's."""
    options = dataclasses.make_dataclass(
        "Options",
        [
            ("config", tyro.conf.OmitArgPrefixes[type(default)], field(default=default)),
            ("run", tyro.conf.OmitArgPrefixes[type(run)], field(default=run)),
        ],
    )
    # lines of examples stay lines
    description = re.sub(r"^python ", "    python ", description, flags=re.MULTILINE)
    chosen: Any = tyro.cli(options, args=argv, prog=prog, description=description)
    return chosen.config, chosen.run


def take_verb(
    argv: list[str], verbs: tuple[str, ...], alone: tuple[str, ...] = ()
) -> tuple[tuple[str, ...], list[str]]:
    """The verbs to do, and the words after them; all of ``verbs`` where none is named."""
    if not argv or argv[0].startswith("-"):
        return verbs, argv
    if argv[0] not in verbs + alone:
        raise Mistake(f"unknown verb '{argv[0]}'{did_you_mean(argv[0], verbs + alone)}")
    if argv[1:2] and argv[1] in verbs + alone:
        raise Mistake(f"a command has one verb, or none for all: leave out {argv[0]} or {argv[1]}.")
    return (argv[0],), argv[1:]


def early(argv: list[str], *flags: str) -> tuple[argparse.Namespace, list[str]]:
    """The values of options that decide the defaults of others, and the words without them."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for flag in flags:
        parser.add_argument(flag, nargs="?", const="")
    return parser.parse_known_args(argv)
