"""From options to a system with its data, and the states that it is trained in."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
from jax import Array

from jaxgen.data.records import DataSet
from jaxgen.data.sources import load
from jaxgen.runner.options import make_ema_decay
from jaxgen.runner.system import END, ONLY, Experiment, Mistake, System, moving_of, weights_of
from jaxgen.training.checkpoints import FULL, StorageError
from jaxgen.training.logging import console
from jaxgen.training.step import Players, Step, batches_of, init_players, make_turns


def build(experiment: Experiment, config: Any, data: DataSet) -> System:
    """The system of the options, once its shapes are known to fit together.

    Raises:
      Mistake: in place of what its parts raise.
    """
    try:
        system = experiment.build(config, data)
        jax.eval_shape(*beginning(stages_of(system, config), END, jax.random.key(0)))  # and before
    except (ValueError, AssertionError) as error:
        raise Mistake(str(error)) from error
    if len(system.turns()) > 1 and type(system).score is System.score:
        raise Mistake(f"the players of {experiment.name} have no one loss: give it a score.")
    return system


def begin(system: System, key: Array) -> Players:
    """The state at the first step."""
    return players(system, system.init(key))


def players(system: System, variables: Any) -> Players:
    """The state at step 0, from the variables of the one network or of every player."""
    return init_players({ONLY: variables} if "params" in variables else variables, system.turns())


def load_data(experiment: Experiment, options: Any) -> DataSet:
    """The data of the options.

    Raises:
      DataError: from the source.
      Mistake: if the experiment does not take such data.
      StorageError: if the disk is too full to prepare it.
    """
    how = {("name" if k == "data" else k): v for k, v in vars(options).items()}
    try:
        data = experiment.load(options) if experiment.load else load(**how)
    except OSError as error:
        if error.errno not in FULL:
            raise
        what = f"{error.filename or options.data} ({error.strerror})"
        raise StorageError(f"cannot write {what}: make room there, then run it again.") from error
    check_kind(experiment.name, experiment.kinds, data)
    for line in data.reading.lines() if data.reading else ():
        console.print(line)
    return data


def check_kind(name: str, kinds: tuple[type, ...], data: DataSet) -> None:
    """Refuses data of another kind than an experiment or a study takes."""
    if not isinstance(data.kind, kinds):
        taken = " or ".join(kind.noun for kind in kinds)
        raise Mistake(f"{name} takes {taken}, and {data.name} is {data.kind.noun}.")


@dataclass(frozen=True)
class Stage:
    """One compiled program of a run: it makes the steps after ``start``."""

    start: int
    # key, or (key, weights of the stage before, these as they move) -> state
    begin: Callable[[Any], Players]
    step: Step
    score: Callable[[Players], Any]  # lower is better
    batches: int  # that a step takes


def stage_of(system: System, start: int, config: Any) -> Stage:
    """A stage of a run that is trained alone."""

    def grown(key_and_weights: Any) -> Players:
        key, averaged, moving = key_and_weights
        state = players(system, system.grow(key, averaged))
        moved = players(system, system.grow(key, moving))
        before = start if system.carries else 0  # the steps that averages are of
        times = {turn.player: turn.times for turn in system.turns()}
        of = {
            k: dataclasses.replace(s, params=moved[k].params, step=s.step + times[k] * before)
            for k, s in state.of.items()
        }
        return Players(state.step + start, of)

    return Stage(
        start,
        grown if start else lambda key: begin(system, key),
        make_turns(system.turns(), make_ema_decay(config.train), config.train.accumulate),
        lambda state: system.score(weights_of(state), state.step),
        batches_of(system.turns()),
    )


def stages_of(system: System, config: Any) -> list[Stage]:
    """The stages of a run that is trained alone."""
    return [stage_of(stage, start, config) for start, stage in system.stages()]


def stage_at(starts: Sequence[int], step: int) -> int:
    """Which of the stages that begin after these steps makes step ``step`` (from 1 on)."""
    return max(i for i, start in enumerate(starts) if start < max(step, 1))


def beginning(stages: Sequence[Stage], step: int, key: Array) -> tuple[Callable[[Any], Any], Any]:
    """What begins the stage of a step, and an argument of the shape that it takes."""
    argument: Any = key
    for stage, after in itertools.pairwise(stages):
        if after.start >= max(step, 1):
            return stage.begin, argument
        before = jax.eval_shape(stage.begin, argument)
        argument = (key, weights_of(before), moving_of(before))
    return stages[-1].begin, argument
