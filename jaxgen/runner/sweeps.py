"""Sweeps: several runs of one experiment, trained in one program.

The members differ in their seed and in scalar options. Their states, batches and keys are stacked
along a first axis, and ``vmap`` trains them together. Each member is written as an ordinary run, in
its own directory, and equals the run that would have been trained alone, up to rounding.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import SingleDeviceSharding

from jaxgen.data.records import DataSet
from jaxgen.data.sources import did_you_mean
from jaxgen.evaluation.report import Number
from jaxgen.runner.folders import write_config
from jaxgen.runner.options import is_measuring
from jaxgen.runner.system import Experiment, Mistake, System
from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.logging import MetricLog


@dataclass(frozen=True)
class Member:
    """One run of a sweep: what sets it apart, and its config."""

    values: dict[str, int | float]
    config: Any

    @property
    def name(self) -> str:
        return ",".join(f"{name}={value:g}" for name, value in self.values.items())

    @property
    def settings(self) -> dict[str, float]:
        """All that sets it apart but the seed."""
        return {name: value for name, value in self.values.items() if name != "seed"}


def members(config: Any) -> tuple[Member, ...]:
    """The grid that ``config.train.sweep`` spans, the last option fastest; empty without one.

    Raises:
      Mistake: for a word that is not NAME=VALUE,VALUE,..., or an option that cannot be swept.
    """
    axes = []
    for word in config.train.sweep:
        name, _, values = word.partition("=")
        name = name.strip("-").replace("-", "_")
        known = sweepable(config)
        if name not in known:
            raise Mistake(f"'{name}' cannot be swept{did_you_mean(name, known)}")
        try:
            axes.append([(name, known[name](value)) for value in values.split(",")])
        except ValueError as error:
            raise Mistake(f"--sweep takes NAME=VALUE,VALUE,..., not '{word}'.") from error
    alone = replace(config, train=replace(config.train, sweep=()))
    return tuple(
        Member(dict(values), override(alone, dict(values)))
        for values in itertools.product(*axes)
        if axes
    )


def sweepable(config: Any) -> dict[str, type]:
    """The seed and every option that is a real number, with its type."""
    found: dict[str, type] = {"seed": int}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if dataclasses.is_dataclass(value):
            found |= {name: kind for name, kind in sweepable(value).items() if kind is float}
        elif isinstance(value, float):
            found[f.name] = float
    return found


def override(config: Any, values: dict[str, Any]) -> Any:
    """The config with the named options, of whatever section, replaced."""
    changed = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in values:
            changed[f.name] = values[f.name]
        elif dataclasses.is_dataclass(value):
            changed[f.name] = override(value, values)
    return replace(config, **changed)


def measured(config: Any) -> set[str]:
    """The options that change nothing in training."""
    sections = [getattr(config, f.name) for f in dataclasses.fields(config) if is_measuring(f)]
    return {f.name for section in sections for f in dataclasses.fields(section)}


def seeds(members: tuple[Member, ...]) -> tuple[int, ...]:
    return tuple(member.config.train.seed for member in members)


def run_key(config: Any, members: tuple[Member, ...]) -> Array:
    """The key of a run, or those of a sweep's members ``[S]``."""
    if not members:
        return jax.random.key(config.train.seed)
    return jnp.stack([jax.random.key(seed) for seed in seeds(members)])


def fold(key: Array, data: int) -> Array:
    """``fold_in`` for one key or for each of several."""
    return (
        jax.random.fold_in(key, data) if key.ndim == 0 else jax.vmap(lambda k: fold(k, data))(key)
    )


def each_member(
    build: Callable[[Any, DataSet], System], members: tuple[Member, ...], data: DataSet
) -> Callable[..., Any]:
    """``each(do, *stacked)``: ``do(system of a member, its part of each argument)``, stacked.

    Options that training depends on are arguments of the compiled program.

    Raises:
      Mistake: if a swept option decides what is computed, and so cannot be an argument.
    """
    base = members[0].config
    traced = {
        name: jnp.array([member.values[name] for member in members], jnp.float32)
        for name in members[0].settings
        if name not in measured(base)
    }

    def each(do: Callable[..., Any], *stacked: Any) -> Any:
        def one(values: dict[str, Array], *parts: Any) -> Any:
            return do(build(override(base, values), data), *parts)

        try:
            return jax.vmap(one)(traced, *stacked)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise Mistake(
                f"--sweep cannot take one of {', '.join(traced)}: it decides what is computed."
            ) from error

    return each


def part(stacked: Any, i: int) -> Any:
    """Member i of stacked states."""
    return jax.tree.map(lambda x: x[i], stacked)


def summary(members: tuple[Member, ...], numbers: list[list[Number]]) -> list[Number]:
    """Each number's mean and standard deviation over the seeds, a row for each setting."""
    groups: dict[str, list[list[Number]]] = {}
    for member, found in zip(members, numbers, strict=True):
        name = ",".join(f"{k}={v:g}" for k, v in member.settings.items())
        groups.setdefault(name, []).append(found)
    rows = []
    for name, group in groups.items():
        for same in zip(*group, strict=True):
            values = [number.value for number in same]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            seeds = f"mean of {len(values)} seeds; " if len(values) > 1 else ""
            title = f"{same[0].name}, {name}" if name else same[0].name
            rows.append(Number(title, float(np.mean(values)), seeds + same[0].protocol, std))
    return rows


class MemberCheckpoints:
    """The checkpoints of each member, in its own directory, as one set of stacked states."""

    def __init__(
        self, directory: Path, experiment: Experiment, members: tuple[Member, ...], keep: int
    ) -> None:
        self.directory, self.experiment, self.members = directory, experiment, members
        self._each = [Checkpoints(directory / m.name / "checkpoints", keep) for m in members]

    def steps(self) -> list[int]:
        """The steps of which every member has a checkpoint, rising."""
        return sorted(set.intersection(*[set(each.steps()) for each in self._each]))

    def save(self, step: int, state: Any, config: dict, score: Any) -> None:
        del config  # each has its own
        for i, (member, each) in enumerate(zip(self.members, self._each, strict=True)):
            write_config(self.directory / member.name, self.experiment, member.config)
            each.save(step, part(state, i), dataclasses.asdict(member.config), float(score[i]))

    def restore(self, abstract: Callable[[int], Any], step: int | None = None) -> tuple[int, Any]:
        """The step of which every member has a whole checkpoint, and the stacked states."""
        here = SingleDeviceSharding(jax.local_devices()[0])

        def one(step: int) -> Any:
            return jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=here), abstract(step)
            )

        if step is None:
            step = min(each.restore(one)[0] for each in self._each)
        states = [each.restore(one, step)[1] for each in self._each]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
        placed = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), stacked, abstract(step))
        return step, placed

    def drop_after(self, step: int) -> None:
        for each in self._each:
            each.drop_after(step)

    def close(self) -> None:
        for each in self._each:
            each.close()

    def __enter__(self) -> MemberCheckpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        for each in self._each:
            each.__exit__(*error)


class MemberLogs:
    """The metrics of each member, in its own directory."""

    def __init__(self, directory: Path, members: tuple[Member, ...], start: int) -> None:
        self._each = [MetricLog(directory / member.name, start) for member in members]

    def write(self, step: int, metrics: Any) -> None:
        for i, each in enumerate(self._each):
            each.write(step, {name: values[i] for name, values in metrics.items()})

    def close(self) -> None:
        for each in self._each:
            each.close()
