"""From options to a system with its data, and the states that it is trained in."""

from __future__ import annotations

from typing import Any

import jax
from jax import Array

from jaxgen.data.records import DataSet
from jaxgen.data.sources import load
from jaxgen.runner.system import ONLY, Experiment, Mistake, System, weights_of
from jaxgen.training.step import Players, init_players


def build(experiment: Experiment, config: Any, data: DataSet) -> System:
    """The system of the options, once its shapes are known to fit together.

    Raises:
      Mistake: in place of what its parts raise.
    """
    try:
        system = experiment.build(config, data)
        for _, stage in system.stages()[:1]:
            jax.eval_shape(lambda key: begin(stage, key), jax.random.key(0))  # noqa: B023
    except (ValueError, AssertionError) as error:
        raise Mistake(str(error)) from error
    if len(system.turns()) > 1 and type(system).score is System.score:
        raise Mistake(f"the players of {experiment.name} have no one loss: give it a score.")
    return system


def stage_at(system: System, step: int) -> System:
    """The stage of a system that makes step ``step`` (from 1 on)."""
    return next(stage for start, stage in reversed(system.stages()) if start < max(step, 1))


def abstract_state(system: System, step: int) -> Players:
    """The shapes and types of the state after so many steps, on the first device."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    (_, first), *later = system.stages()
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda key: begin(first, key), key)
    for start, stage in later:
        if start < step:
            grow = lambda key, weights, s=stage: players(s, s.grow(key, weights))  # noqa: E731
            shapes = jax.eval_shape(grow, key, weights_of(shapes))
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)


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
    """
    how = {("name" if k == "data" else k): v for k, v in vars(options).items()}
    data = experiment.load(options) if experiment.load else load(**how)
    check_kind(experiment.name, experiment.kinds, data)
    return data


def check_kind(name: str, kinds: tuple[type, ...], data: DataSet) -> None:
    """Refuses data of another kind than an experiment or a study takes."""
    if not isinstance(data.kind, kinds):
        taken = " or ".join(kind.noun for kind in kinds)
        raise Mistake(f"{name} takes {taken}, and {data.name} is {data.kind.noun}.")
