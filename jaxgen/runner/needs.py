"""Runs that a study or another run needs: found where they are, and trained first where not."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax

from jaxgen.runner import folders, sweeps
from jaxgen.runner.building import Load
from jaxgen.runner.fitting import open_checkpoints, train
from jaxgen.runner.options import Data, Run, check_ranges
from jaxgen.runner.parsing import fitting_options, parse
from jaxgen.runner.references import RunReference, resolved
from jaxgen.runner.system import Experiment, Mistake
from jaxgen.runner.trained import open_reference
from jaxgen.training.checkpoints import NoCheckpoint
from jaxgen.training.logging import console


@dataclass(frozen=True)
class Need:
    """A run that is looked at: of which experiment, with what options, on which data.

    With ``--sweep`` among the options it is several, NAME/MEMBER each; with ``--dir`` it is the run
    in that directory. Runs that it refers to itself are found, or trained, before it.
    """

    experiment: Experiment
    options: str = ""  # as on the command line, over the preset of the data
    data: Data | None = None  # the study's where None


def ready(need: Need, words: Sequence[str], load: Load, which: str = "") -> tuple[Path, Any]:
    """The directory of the newest run that fits the need, trained to its end, and its options.

    ``words`` are options for a training, which is announced as that of ``which`` run.

    Raises:
      Mistake: if the directory that is named holds another run.
    """
    data: Any = need.data
    argv = ["train", "--data", data.data, *shlex.split(need.options), *words]
    _, config, run = parse(need.experiment, argv)
    check_ranges(config)
    resolve = lambda config: with_references(replace(config, data=data), load)  # noqa: E731
    config = fitting_options(need.experiment, argv, config, load(need.experiment, data), resolve)
    places = folders.existing(need.experiment.name, data.data) if run.dir is None else [run.dir]
    for directory in reversed(places):
        try:
            found = folders.read_config(directory, need.experiment)
            changed = folders.data_changed(directory, load(need.experiment, data))
        except (Mistake, NoCheckpoint):  # of another version or of other shapes, or not begun
            continue
        different = [*folders.differences(found, config), *([changed] if changed else [])]
        if found.train.steps == config.train.steps and not different:
            with open_checkpoints(directory, config, sweeps.members(config)) as checkpoints:
                if checkpoints.steps()[-1:] >= [config.train.steps]:
                    return directory, config
            break
        if run.dir is not None:
            raise Mistake(
                f"{directory} holds a run with other options ({'; '.join(different) or 'steps'}): "
                "name another directory."
            )
    else:
        directory = run.dir or folders.new_directory(need.experiment.name, data.data)
    which = f" ({which})" if which else ""
    console.print(f"{need.experiment.name} is trained first, in {directory}{which}")
    how = Run(resume=folders.is_run(directory))
    train(need.experiment, config, load(need.experiment, data), directory, how)
    return directory, config


def with_references(config: Any, load: Load, find: bool = True) -> Any:
    """The config with the runs that it refers to opened; those that are declared and not named are
    found on the same data, or trained first, if there is something to ``find``. Several processes
    that train together would each find one of its own: to these a run is named.

    Raises:
      Mistake: where one is not there, or not the one that it is pinned to.
    """
    finds = finding(config.data, load) if find and jax.process_count() == 1 else None
    return resolved(config, partial(open_reference, load=load), finds)


def finding(data: Data, load: Load) -> Callable[[RunReference], Path]:
    """What finds a declared run on the same data."""

    def find(reference: RunReference) -> Path:
        experiment: Any = reference.experiment
        return ready(Need(experiment, reference.options, data), (), load)[0]

    return find
