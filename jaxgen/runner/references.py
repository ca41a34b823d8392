"""Options whose value is another run: the first stage of a cascade, an autoencoder, a teacher.

A :class:`RunReference` names a run's directory. It is opened once, before anything is traced, and
pinned: the config of the run that refers to it holds the step of its checkpoint and a fingerprint
of its weights, and is held to both whenever it is opened or resumed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import typing
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from jaxgen.runner.system import Experiment, Mistake
from jaxgen.training.checkpoints import DamagedCheckpoint, NoCheckpoint, fingerprint


@dataclass(frozen=True)
class RunReference:
    """A run that another one uses, as an option: ``--base DIR``, or ``DIR@STEP``, ``DIR@best``.

    ``base: RunReference = RunReference(COARSE)`` in a config: where ``--base`` is left out, a run
    of that experiment, on the same data and with these ``options`` besides, is looked for under
    ``runs/`` and trained first where there is none. In ``build`` the config holds the opened run
    as ``config.base.trained``.
    """

    experiment: Experiment | None = None  # of the run, where any run of its cannot be told
    options: str = ""  # as on the command line, to train it with where it is lacking
    directory: Path | None = None
    checkpoint: str = "last"  # or best, or a step
    fingerprint: str | None = None  # of the weights that it is pinned to
    opened: Any = field(default=None, repr=False, compare=False)  # the Trained
    required: bool = True  # else it may be left out, and nothing is opened

    @property
    def trained(self) -> Any:
        """The opened run.

        Raises:
          Mistake: before it was opened.
        """
        if self.opened is None:
            raise Mistake("a run that is referred to is not open: build systems by the runner.")
        return self.opened

    def __str__(self) -> str:
        if self.directory is None:
            return f"{self.experiment.name}, trained first" if self.experiment else "none"
        return f"{self.directory}@{self.checkpoint}"

    def as_json(self, home: Path) -> dict[str, Any] | None:
        """What a config in the directory ``home`` keeps of it."""
        if self.directory is None:
            return None
        place = os.path.relpath(self.directory.absolute(), home.absolute())
        return {
            "run": Path(place).as_posix(),
            "checkpoint": self.checkpoint,
            "fingerprint": self.fingerprint,
        }


def reference_from(text: str) -> RunReference:
    """The reference of ``DIR`` or ``DIR@CHECKPOINT``."""
    place, at, checkpoint = text.rpartition("@")
    if at and (checkpoint in ("last", "best") or checkpoint.isdigit()):
        return RunReference(directory=Path(place), checkpoint=checkpoint)
    return RunReference(directory=Path(text), checkpoint="")


def reference_in(values: Any, home: Path) -> RunReference:
    """The reference that a config in the directory ``home`` keeps.

    Raises:
      ValueError: for what is no such thing.
    """
    if values is None:
        return RunReference()
    if not isinstance(values, dict) or not isinstance(values.get("run"), str):
        raise ValueError("a reference to a run that names none")
    directory = Path(os.path.normpath(home / values["run"]))
    return RunReference(
        None, "", directory, str(values.get("checkpoint", "last")), values.get("fingerprint")
    )


Change = Callable[[str, RunReference, Any], RunReference]


def changed(config: Any, change: Change, beside: Any = None) -> Any:
    """The (nested) config with ``change(option, reference, counterpart)`` in the place of every
    reference, its counterpart being that of the config ``beside``."""
    changes = {}
    for f in dataclasses.fields(config):
        value, other = getattr(config, f.name), getattr(beside, f.name, None)
        if isinstance(value, RunReference):
            changes[f.name] = change(f.name, value, other)
        elif dataclasses.is_dataclass(value):
            changes[f.name] = changed(value, change, other)
    return replace(config, **changes) if changes else config


def merged(config: Any, default: Any) -> Any:
    """A config as it was typed, over the default that it was typed over: a reference keeps what it
    was declared as, and one that is pinned stays so at another place."""

    def change(name: str, typed: RunReference, usual: RunReference) -> RunReference:
        checkpoint = typed.checkpoint or (usual.checkpoint if usual.fingerprint else "last")
        return replace(usual, directory=typed.directory, checkpoint=checkpoint, opened=typed.opened)

    return changed(config, change, default)


def declared(config: Any, default: Any) -> Any:
    """A config from a file, its references declared as those of the default are."""

    def change(name: str, read: RunReference, usual: RunReference) -> RunReference:
        how = {name: getattr(usual, name) for name in ("experiment", "options", "required")}
        return replace(read, **how)

    return changed(config, change, default)


def check_declared(kind: Any) -> None:
    """Refuses a config whose references are within other types, where nothing would open them.

    Raises:
      TypeError: naming the option.
    """
    hints = typing.get_type_hints(kind)
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        if hint is not RunReference and dataclasses.is_dataclass(hint):
            check_declared(hint)
        elif "RunReference" in str(hint) and hint is not RunReference:
            raise TypeError(
                f"the option {f.name} is a RunReference, not {hint}: name several one by one, and "
                "one that may be left out as RunReference(required=False)."
            )


def resolved(
    config: Any,
    open_: Callable[[RunReference], Any],
    find: Callable[[RunReference], Path] | None = None,
) -> Any:
    """The config with every reference opened and pinned.

    Args:
      open_: opens a run that is named.
      find: the directory of a run that is declared and not named, which trains it where it is
        lacking.

    Raises:
      Mistake: where there is no such run, or not the one that it is pinned to.
    """
    return changed(config, lambda name, reference, _: pinned(name, reference, open_, find))


def pinned(
    name: str,
    reference: RunReference,
    open_: Callable[[RunReference], Any],
    find: Callable[[RunReference], Path] | None,
) -> RunReference:
    """A reference that is opened, and pinned to what was opened."""
    flag = f"--{name.replace('_', '-')}"
    if reference.opened is not None:
        return reference
    if reference.directory is None:
        if not reference.required and reference.experiment is None:
            return reference
        if reference.experiment is None or find is None:
            raise Mistake(f"a run is needed to build on: name its directory with {flag} DIR.")
        reference = replace(reference, directory=find(reference))
    place, step = reference.directory, reference.checkpoint
    try:
        trained = open_(reference)
    except (NoCheckpoint, DamagedCheckpoint) as error:
        if reference.fingerprint is None:
            raise Mistake(f"{flag} {place}: {error}") from error
        state = "is not there" if isinstance(error, NoCheckpoint) else "is damaged"
        raise Mistake(
            f"step {step} of {place}, which this run was trained on, {state}: put it back, or say "
            f"with {flag} DIR where it is now."
        ) from error
    if reference.fingerprint not in (None, trained.fingerprint):
        raise Mistake(
            f"{place} is not the run that this one was trained on: its weights at step {step} are "
            f"others. Put that run back, or say with {flag} DIR where it is now."
        )
    pin = {"checkpoint": str(trained.step), "fingerprint": trained.fingerprint}
    return replace(reference, **pin, opened=trained)


def weights_fingerprint(weights: Any) -> str:
    """By which weights are known again, wherever they are kept."""
    return hashlib.sha256(str(fingerprint(weights)).encode()).hexdigest()[:16]


def same_run(theirs: RunReference, ours: RunReference) -> bool:
    """Whether two references are of one run, as far as is known before it is opened."""
    if theirs.fingerprint and ours.fingerprint:
        return theirs.fingerprint == ours.fingerprint
    return ours.directory is None or theirs.directory is None
