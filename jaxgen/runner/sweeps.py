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
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.data.records import DataSet, did_you_mean
from jaxgen.runner.options import check_ranges, options_of
from jaxgen.runner.references import RunReference
from jaxgen.runner.system import Mistake, System


@dataclass(frozen=True)
class Member:
    """One run of a sweep: what sets it apart, and its config."""

    values: dict[str, int | float]
    config: Any

    @property
    def name(self) -> str:
        return ",".join(f"{name}={value:.12g}" for name, value in self.values.items())

    @property
    def settings(self) -> dict[str, float]:
        """All that sets it apart but the seed."""
        return {name: value for name, value in self.values.items() if name != "seed"}

    @property
    def group(self) -> str:
        """What it has in common with those that differ in their seed alone."""
        return ",".join(f"{name}={value:g}" for name, value in self.settings.items())


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
    grid = [dict(values) for values in itertools.product(*axes) if axes]
    found = tuple(Member(values, override(alone, values)) for values in grid)
    names = [member.name for member in found]
    if len(set(names)) < len(names):
        raise Mistake(
            f"two members of the sweep are {max(names, key=names.count)}: let them differ."
        )
    for member in found:
        check_ranges(member.config)
    return found


def sweepable(config: Any) -> dict[str, type]:
    """The seed and every option that is a real number, with its type."""
    return {"seed": int} | {o.name: float for o in options_of(config) if isinstance(o.value, float)}


def override(config: Any, values: dict[str, Any]) -> Any:
    """The config with the named options, of whatever section, replaced."""
    changed = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        if f.name in values:
            changed[f.name] = values[f.name]
        elif dataclasses.is_dataclass(value) and not isinstance(value, RunReference):
            changed[f.name] = override(value, values)
    return replace(config, **changed)


def seeds(members: tuple[Member, ...]) -> tuple[int, ...]:
    """The seed of each member."""
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
    """``each(do, *stacked)``: ``do(system, config, part of each argument)`` of a member, stacked.

    Options that training depends on are arguments of the compiled program.

    Raises:
      Mistake: if a swept option decides what is computed, and so cannot be an argument.
    """
    base = members[0].config
    measuring = {option.name for option in options_of(base) if option.measuring}
    traced = {
        name: jnp.array([member.values[name] for member in members], jnp.float32)
        for name in members[0].settings
        if name not in measuring
    }

    def each(do: Callable[..., Any], *stacked: Any) -> Any:
        def one(values: dict[str, Array], *parts: Any) -> Any:
            config = override(base, values)
            return do(build(config, data), config, *parts)

        try:
            return jax.vmap(one)(traced, *stacked)
        except (jax.errors.ConcretizationTypeError, jax.errors.TracerArrayConversionError) as error:
            raise Mistake(
                f"--sweep cannot take one of {', '.join(traced)}: it decides what is computed."
            ) from error

    return each
