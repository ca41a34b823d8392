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
from jaxgen.evaluation.features import FeatureSpace, feature_space, principal_components
from jaxgen.runner.frozen import frozen_in, with_frozen
from jaxgen.runner.options import make_ema_decay
from jaxgen.runner.system import (
    END,
    ONLY,
    Experiment,
    Mistake,
    System,
    choose,
    moving_of,
    weights_of,
)
from jaxgen.training.checkpoints import FULL, StorageError
from jaxgen.training.logging import console
from jaxgen.training.step import Players, Step, batches_of, init_players, make_turns


def build(experiment: Experiment, config: Any, data: DataSet) -> System:
    """The system of the options, once its shapes are known to fit together.

    Raises:
      Mistake: in place of what its parts raise.
    """
    try:
        system = made(experiment, config, data)
        jax.eval_shape(*beginning(stages_of(system, config), END, jax.random.key(0)))  # and before
    except (ValueError, AssertionError) as error:
        raise Mistake(str(error)) from error
    if len(system.turns()) > 1 and type(system).score is System.score:
        raise Mistake(f"the players of {experiment.name} have no one loss: give it a score.")
    return system


EXTRACTORS = {"classifier": feature_space, "pca": principal_components}


def made(experiment: Experiment, config: Any, data: DataSet) -> System:
    """The system of the options, with the feature extractor that ``--features`` names."""
    system = experiment.build(config, data)
    sampling = getattr(config, "sampling", None)
    name = getattr(sampling, "features", "default")
    if name == "default":
        return system
    extract = choose("feature extractor", name, {**EXTRACTORS, **experiment.features})
    return extracting(system, extract)


def extracting(system: System, extract: Callable[[DataSet], FeatureSpace]) -> System:
    """The system, and those that it is made of, with a feature extractor."""
    parts = {f.name: getattr(system, f.name) for f in dataclasses.fields(system)}
    inner = {n: extracting(part, extract) for n, part in parts.items() if isinstance(part, System)}
    return dataclasses.replace(system, extractor=extract, **inner)


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


Load = Callable[[Experiment, Any], DataSet]


def loading_once() -> Load:
    """What loads data, each once: known by the options, and by what loads them."""
    loaded: dict[Any, DataSet] = {}

    def load(experiment: Experiment, options: Any) -> DataSet:
        source = experiment.load, options
        if source not in loaded:
            loaded[source] = load_data(experiment, options)
        check_kind(experiment.name, experiment.kinds, loaded[source])
        return loaded[source]

    return load


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
    frozen: dict[str, Any]  # arrays that a step is given as ``frozen``


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

    def step(state: Any, batch: Any, key: Array, axis_name: Any = None, frozen: Any = None) -> Any:
        turns = with_frozen(system, frozen or {}).turns()
        make = make_turns(turns, make_ema_decay(config.train), config.train.accumulate)
        return make(state, batch, key, axis_name)

    return Stage(
        start,
        grown if start else lambda key: begin(system, key),
        step,
        lambda state: system.score(weights_of(state), state.step),
        batches_of(system.turns()),
        frozen_in(system),
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
