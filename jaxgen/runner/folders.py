"""Run directories: their names, what they hold, and who may write to them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import filelock

from jaxgen.data.records import DataSet
from jaxgen.data.sources import FILES
from jaxgen.files import replacing
from jaxgen.runner.identity import (
    Identity,
    command_of,
    find_experiment,
    identity_of,
    is_own,
)
from jaxgen.runner.options import Option, Run, check_ranges, from_dict, options_of
from jaxgen.runner.references import RunReference, declared, same_run
from jaxgen.runner.system import Experiment, Mistake
from jaxgen.training.checkpoints import NoCheckpoint

# What --resume may change: none of it alters a step that was already made.
FREE_ON_RESUME = {
    "steps", "parallel", "devices", "model_devices", "log_every", "checkpoint_every", "keep",
    "max_skipped", "data_dir", "manual_dir",
}  # fmt: skip

LONGEST = 150  # letters of the runs in the name of a folder, of which file systems take 255


def _stem(name: str, data: str) -> str:
    return f"{name}-" + "".join(c if c.isalnum() or c in "_-" else "_" for c in data)


def existing(name: str, data: str) -> list[Path]:
    """The directories of an experiment's runs on a data set, the newest last."""
    return sorted(Path("runs").glob(f"{_stem(name, data)}-[0-9][0-9][0-9]"))


def new_directory(name: str, data: str) -> Path:
    """The first of these names that is free: runs/NAME-DATA-001, ..."""
    found = existing(name, data)
    return (
        Path("runs") / f"{_stem(name, data)}-{1 + (int(found[-1].name[-3:]) if found else 0):03d}"
    )


def run_directory(name: str, config: Any, run: Run, fresh: bool) -> Path:
    """The directory that the options name, a new one, or the newest that there is.

    Raises:
      NoCheckpoint: where one is wanted and there is none.
    """
    if run.dir is not None:
        return run.dir
    data = config.data.data
    if fresh:
        return new_directory(name, data)
    found = existing(name, data)
    if not found:
        raise NoCheckpoint(
            f"there is no run of {name} on {data} under runs/: train first, or give its --dir."
        )
    return found[-1]


# --- what a run is ---------------------------------------------------------------------------


def write_config(directory: Path, experiment: Experiment, config: Any) -> None:
    """Writes the config and whose it is, at once or not at all."""
    whose = {"experiment": experiment.name, **identity_of(experiment)._asdict()}
    write_json(directory / "config.json", whose | as_json(config, directory))


def as_json(config: Any, home: Path) -> dict[str, Any]:
    """A config as it is kept in a file of the folder ``home``."""
    kept = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if isinstance(value, RunReference):
            kept[f.name] = value.as_json(home)
        elif dataclasses.is_dataclass(value):
            kept[f.name] = as_json(value, home)
        else:
            kept[f.name] = json.loads(json.dumps(value, default=str))
    return kept


def write_json(path: Path, values: dict) -> None:
    """Writes a file at once or not at all."""
    with replacing(path) as file:
        file.write((json.dumps(values, indent=2, default=str) + "\n").encode())


def results_name(step: int, options: Iterable[Option], usual: Mapping[str, Any]) -> str:
    """What made the results: the step, and the options that are not as usual."""
    unusual = [f"{o.name}={o.value}" for o in options if o.value != usual[o.name]]
    return re.sub(r"[^\w.,=+-]+", "_", ",".join([f"step-{step}", *unusual]))[:200]


def together(names: list[str], limit: int = LONGEST) -> str:
    """One name for runs that are looked at together, of few letters."""
    whole = "+".join(names)
    if len(whole) <= limit:
        return whole
    return f"{len(names)}-runs-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def is_run(directory: Path) -> bool:
    """Whether a run was begun there."""
    return (directory / "config.json").exists()


def read_config(directory: Path, experiment: Experiment) -> Any:
    """The config of the run in a directory; the runs that it refers to are not opened yet.

    Raises:
      NoCheckpoint: where there is no run.
      Mistake: if it is a run of another experiment, or of a version with other options.
    """
    values = _read(directory)
    name, where = values.pop("experiment"), _identity_in(values)
    if name != experiment.name:
        own = is_own(where) and where.attribute == "EXPERIMENT"
        alone = "it by open_run(..., experiment=...)"
        use = command_of(where) if own else str(where) if where.attribute else alone
        raise Mistake(
            f"{directory} holds a run of {name}, not of {experiment.name}: use {use}, or give "
            "another --dir."
        )
    try:
        config = from_dict(type(experiment.default), values, directory)
        check_ranges(config)
        return declared(config, experiment.preset(config.data.data))
    except KeyError as error:
        raise Mistake(
            f"{directory}/config.json was written by another version of {name}, with an option "
            f"{error.args[0]} there: train it anew with another --dir."
        ) from error
    except Mistake as error:
        raise Mistake(f"{directory}/config.json: {error}") from error
    except (TypeError, ValueError) as error:
        raise Mistake(
            f"{directory}/config.json is not one of {name} ({error}): train anew with another "
            "--dir."
        ) from error


def _identity_in(values: dict[str, Any]) -> Identity:
    """Where the experiment of a run was; earlier versions kept the path of a script, and had one
    name for its attribute."""
    module, attribute = str(values.pop("module")), values.pop("attribute", "EXPERIMENT")
    module = Path(module).stem if module.endswith(".py") else module
    module = module.removeprefix("jaxgen.") if module.startswith("jaxgen.experiments.") else module
    return Identity(module, None if attribute is None else str(attribute))


def _read(directory: Path) -> dict[str, Any]:
    path = directory / "config.json"
    if not is_run(directory):
        raise NoCheckpoint(f"no checkpoint in {directory}: train first, or give another --dir.")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise Mistake(f"{path} is not whole ({error}): train anew with another --dir.") from error
    if not isinstance(values, dict) or not {"experiment", "module"} <= values.keys():
        raise Mistake(
            f"{directory} holds a run of an earlier version: train it anew with another --dir."
        )
    return values


def experiment_name_in(directory: Path) -> str:
    """The name of the experiment whose run is in a directory.

    Raises:
      NoCheckpoint: where there is no run.
    """
    return str(_read(directory)["experiment"])


def experiment_in(directory: Path) -> Experiment:
    """The experiment whose run is in a directory, if it is one of jaxgen's or imported here.

    Raises:
      NoCheckpoint: where there is no run.
      Mistake: where it is neither.
    """
    values = _read(directory)
    try:
        return find_experiment(str(values["experiment"]), _identity_in(values))
    except Mistake as error:
        raise Mistake(f"{directory}: {error}") from error


# --- who may write ---------------------------------------------------------------------------


def check_out(out: Path | None) -> None:
    """Refuses a file as the folder of results, before anything is drawn."""
    while out and not out.exists():
        out = out.parent
    if out and not out.is_dir():
        raise Mistake(f"--out {out} is a file: name a folder.")


def check_checkpoint(which: str) -> None:
    """Refuses what names no checkpoint."""
    if which not in ("last", "best") and not which.isdigit():
        raise Mistake(f"--checkpoint is last, best or a step, not '{which}'.")


def check_directory(directory: Path, experiment: Experiment, config: Any, run: Run) -> None:
    """Refuses to train over another run, before anything is compiled or overwritten."""
    if not is_run(directory):
        if run.resume:
            raise NoCheckpoint(f"no run to resume in {directory}: leave out --resume.")
        return
    different = differences(read_config(directory, experiment), config)
    if not run.resume:
        raise Mistake(f"{directory} already holds a run: add --resume, or give another --dir.")
    if different:
        raise Mistake(
            f"{directory} holds a run with other options ({'; '.join(different)}): "
            "resume it with its own, or give another --dir."
        )


def data_changed(directory: Path, data: DataSet) -> str | None:
    """How the data differ from those that the run was begun with, by their contents.

    Raises:
      Mistake: if they are of another shape, which no network of the run takes.
    """
    path = directory / "data.json"
    if not path.exists():
        return None
    try:
        then = dict(json.loads(path.read_text()))
    except (OSError, ValueError, TypeError, RecursionError):
        return f"{path} cannot be read, which tells what {directory} was trained on"
    if then.get("digest") in (None, data.digest):  # of an earlier version, or the same
        return None
    shape = shape_of(data)
    if then.get("shape", shape) != shape:
        raise Mistake(
            f"{directory} was trained on examples of {then['shape']}, and those of {data.name} are "
            f"of {shape}: name the data that it was trained on, or such, with --data."
        )
    return f"{data.name} does not hold what {directory} was trained on"


def shape_of(data: DataSet) -> str:
    """The shape of an example, as it is kept and told."""
    return "x".join(map(str, data.shape))


def write_data(directory: Path, data: DataSet) -> None:
    """Writes what was read of the data, by whose contents they are known again."""
    reading = dataclasses.asdict(data.reading) if data.reading else None
    about = {"name": data.name, "shape": shape_of(data), "digest": data.digest, "reading": reading}
    write_json(directory / "data.json", about)


def check_trained(directory: Path, experiment: Experiment, config: Any) -> None:
    """Refuses to look at a run with other options than it was trained with."""
    different = differences(read_config(directory, experiment), config)
    different = [d for d in different if not d.startswith("seed ")]  # that of sampling
    if different:
        raise Mistake(
            f"{directory} was trained with other options ({'; '.join(different)}): leave these out."
        )


def differences(theirs: Any, ours: Any) -> list[str]:
    """What sets two configs apart that a run could not go on with."""
    # not the steps where the rate decays to 0 at them
    free = FREE_ON_RESUME - ({"steps"} if ours.train.decay != "none" else set())
    pairs = zip(options_of(theirs), options_of(ours), strict=True)
    return sorted(
        f"{a.name} is {a.value}, not {b.value}"
        for a, b in pairs
        if not (a.measuring or a.name in free or same_option(a, b))
    )


def same_option(a: Option, b: Option) -> bool:
    """Whether two values of an option may be of one run."""
    if isinstance(a.value, RunReference):
        return same_run(a.value, b.value)
    return a.value == b.value or (a.name == "data" and moved(a.value, b.value))


def moved(then: str, now: str) -> bool:
    """Whether two names may be of the same files, which their contents decide."""
    kind, colon, _ = then.partition(":")
    return bool(colon) and kind in FILES and now.startswith(f"{kind}:")


@contextmanager
def locked(directory: Path) -> Generator[None]:
    """Makes the directory and holds it for one run; the system frees it when the process ends.

    Raises:
      Mistake: if another run holds it.
    """
    lock = filelock.FileLock(directory / ".lock")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except filelock.Timeout as error:
        raise Mistake(
            f"another run is writing to {directory}: wait for it, or give another --dir."
        ) from error
    try:
        yield
    finally:
        lock.release()
