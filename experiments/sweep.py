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

from experiments.folders import MEASURING, write_config
from experiments.system import Mistake, System
from jaxgen.data.sources import DataSet, did_you_mean
from jaxgen.evaluation.report import Number
from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.devices import Placement
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


def together(
    build: Callable[[Any, DataSet, Placement], System],
    members: tuple[Member, ...],
    data: DataSet,
    placement: Placement,
) -> System:
    """The members as one system, whose states, batches and keys have a first axis of members.

    Options that training depends on are arguments of the compiled program; each member is scored,
    drawn and measured by a system of its own, shared by those that differ in their seed alone.

    Raises:
      Mistake: if a swept option decides what is computed, and so cannot be an argument.
    """
    base = members[0].config
    measured = {
        f.name
        for section in MEASURING
        if hasattr(base, section)
        for f in dataclasses.fields(getattr(base, section))
    }
    traced = {
        name: jnp.array([member.values[name] for member in members], jnp.float32)
        for name in members[0].settings
        if name not in measured
    }

    def each(do: Callable[..., Any], *stacked: Any) -> Any:
        """``do(system of a member, its part of each stacked argument)``, for all members."""

        def one(values: dict[str, Array], *parts: Any) -> Any:
            return do(build(override(base, values), data, placement), *parts)

        try:
            return jax.vmap(one)(traced, *stacked)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise Mistake(
                f"--sweep cannot take one of {', '.join(traced)}: it decides what is computed."
            ) from error

    def init(key: Array) -> Any:
        return each(lambda system, key: system.init(key), key)

    def step(state: Any, batch: Any, key: Array, axis_name: str | None = None) -> Any:
        kwargs = {} if axis_name is None else {"axis_name": axis_name}
        return each(lambda system, *parts: system.step(*parts, **kwargs), state, batch, key)

    alone: dict[str, System] = {}
    systems = []
    for member in members:
        shared = str(member.settings)
        if shared not in alone:
            alone[shared] = build(member.config, data, placement)
        systems.append(alone[shared])

    def score(state: Any) -> Any:
        return np.array([s.score(part) for s, part in zip(systems, split(state), strict=True)])

    def sample(key: Array, state: Any, directory: Path) -> list[Path]:
        files = []
        for i, (member, part) in enumerate(zip(members, split(state), strict=True)):
            files += systems[i].sample(key[i], part, directory / member.name)
        return files

    def evaluate(key: Array, state: Any, space: Any) -> list[Number]:
        return summary(
            members,
            [systems[i].evaluate(key[i], part, space) for i, part in enumerate(split(state))],
        )

    def split(state: Any) -> list[Any]:
        return [jax.tree.map(lambda x, i=i: x[i], state) for i in range(len(members))]

    return System(
        init=init,
        step=step,
        score=score,
        sample=sample,
        evaluate=evaluate,
        batches=systems[0].batches,
    )


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
        self, directory: Path, experiment: str, members: tuple[Member, ...], keep: int
    ) -> None:
        self.directory, self.experiment, self.members = directory, experiment, members
        self._each = [Checkpoints(directory / m.name / "checkpoints", keep) for m in members]

    def steps(self) -> list[int]:
        """The steps of which every member has a checkpoint, rising."""
        return sorted(set.intersection(*[set(each.steps()) for each in self._each]))

    def best(self) -> None:
        """There is none of all members together."""
        raise Mistake("each member of a sweep has its own best checkpoint: name a step.")

    def save(self, step: int, state: Any, config: dict, score: Any) -> None:
        del config  # each has its own
        for i, (member, each) in enumerate(zip(self.members, self._each, strict=True)):
            write_config(self.directory / member.name, self.experiment, member.config)
            part = jax.tree.map(lambda x, i=i: x[i], state)
            each.save(step, part, dataclasses.asdict(member.config), float(score[i]))

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
        """The step of which every member has a whole checkpoint, and the stacked states."""
        here = SingleDeviceSharding(jax.local_devices()[0])
        one = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=here), abstract
        )
        if step is None:
            step = min(each.restore(one)[0] for each in self._each)
        states = [each.restore(one, step)[1] for each in self._each]
        stacked = jax.tree.map(lambda *parts: jnp.stack(parts), *states)
        stacked = jax.tree.map(lambda x, a: jax.device_put(x, a.sharding), stacked, abstract)
        return step, stacked

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
