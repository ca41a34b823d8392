"""Run directories: their names, what they hold, and who may write to them."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from experiments.system import Experiment, Mistake, Run, from_dict
from jaxgen.training.checkpoints import NoCheckpoint, StorageError

# What --resume may change: none of it alters a step that was already made.
FREE_ON_RESUME = {
    "steps", "parallel", "devices", "model_devices", "log_every", "checkpoint_every", "keep",
    "max_skipped",
}  # fmt: skip

# Sections of a config that say how to measure a trained model, and change nothing in training.
MEASURING = ("sampling", "applications")


def _stem(experiment: str, data: str) -> str:
    return f"{experiment}-" + "".join(c if c.isalnum() or c in "_-" else "_" for c in data)


def _existing(experiment: str, data: str) -> list[Path]:
    return sorted(Path("runs").glob(f"{_stem(experiment, data)}-[0-9][0-9][0-9]"))


def newest(experiment: str, data: str) -> Path | None:
    return next(reversed(_existing(experiment, data)), None)


def run_directory(experiment: str, config: Any, run: Run, fresh: bool) -> Path:
    if run.dir is not None:
        return run.dir
    existing = _existing(experiment, config.data.data)
    if fresh:
        number = 1 + (int(existing[-1].name[-3:]) if existing else 0)
        return Path("runs") / f"{_stem(experiment, config.data.data)}-{number:03d}"
    if not existing:
        raise NoCheckpoint(
            f"there is no run of {experiment} on {config.data.data} under runs/: "
            "train first, or give its --dir."
        )
    return existing[-1]


def check_directory(directory: Path, experiment: Experiment, config: Any, run: Run) -> None:
    """Refuses to train over another run, before anything is compiled or overwritten."""
    saved = read_config(experiment, directory)
    if saved is None:
        if run.resume:
            raise NoCheckpoint(f"no run to resume in {directory}: leave out --resume.")
        return
    if not run.resume:
        raise Mistake(f"{directory} already holds a run: add --resume, or give another --dir.")
    ours, theirs = dataclasses.asdict(config), dataclasses.asdict(saved)
    for options in (ours, theirs):
        for section in MEASURING:
            options.pop(section, None)
        for name in free_on_resume(config):
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


def free_on_resume(config: Any) -> set[str]:
    """The options of training that may change; not the steps where the rate decays to 0 at them."""
    return FREE_ON_RESUME - ({"steps"} if config.train.decay != "none" else set())


def read_config(
    experiment: Experiment, directory: Path, others: tuple[str, ...] = ()
) -> Any | None:
    """The config of the run in a directory; None where there is no run.

    Raises:
      Mistake: if it is a run of neither this experiment nor one of the ``others``, or was written
        with options that are no longer there.
    """
    path = directory / "config.json"
    if not path.exists():
        return None
    values = json.loads(path.read_text())
    name = values.pop("experiment", experiment.name)  # runs of before did not say
    if name != experiment.name and name not in others:
        raise Mistake(
            f"{directory} holds a run of {name}, not of {experiment.name}: use python -m "
            f"experiments.{name}, or give another --dir."
        )
    try:
        return from_dict(type(next(iter(experiment.presets.values()))), values)
    except KeyError as error:
        raise Mistake(
            f"{path} was written by another version of {name}, with an option {error.args[0]} "
            "there: train it anew with another --dir."
        ) from error


def write_config(directory: Path, experiment: str, config: Any) -> None:
    """Writes the config and whose it is, at once or not at all."""
    path, part = directory / "config.json", directory / "config.json.part"
    values = {"experiment": experiment, **dataclasses.asdict(config)}
    part.write_text(json.dumps(values, indent=2, default=str) + "\n")
    os.replace(part, path)


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Makes the directory and holds it for one run; the system frees it when the process ends.

    Raises:
      Mistake: if another run holds it.
      StorageError: if it cannot be written to.
    """
    lock = filelock.FileLock(directory / ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Mistake(
            f"another run is writing to {directory}: wait for it, or give another --dir."
        ) from error
    except OSError as error:
        raise StorageError(
            f"cannot write to {directory} ({error.strerror or error}): give another --dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
