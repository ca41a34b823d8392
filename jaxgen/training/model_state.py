"""How what a model keeps beside parameters is put together from devices and parts of a batch.

Model state (batch statistics, codebooks, replay buffers, counts) has a rule for each collection,
:data:`STATISTIC` unless another is declared. Under ``pmap`` a loss sees one device's share of a
batch, and with gradient accumulation one part of that; a rule says what is made of their answers,
so that the state is that of the whole batch on every device. A collection that a loss does not
answer stays as it was. Networks that are never trained are no state: see
:class:`jaxgen.runner.Frozen`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax


@dataclass(frozen=True)
class Statistic:
    """The mean of the answers: running averages, and what is the same in every part."""

    def after(self, before: Any, mean: Any, parts: int, key: Array) -> Any:
        return jax.tree.map(_as_before, mean, before)


@dataclass(frozen=True)
class Counter:
    """What each answer adds to the state before it, added up: examples seen, by class or code."""

    def after(self, before: Any, mean: Any, parts: int, key: Array) -> Any:
        """``mean`` is that of what was added."""
        return jax.tree.map(lambda m, b: b + _as_before(parts * m, b), mean, before)


@dataclass(frozen=True)
class Storage:
    """Examples that are kept: a replay buffer, vectors of a codebook that begin anew.

    A loss answers what it saw of each of its examples, arrays ``[b, ...]``. Those of all parts and
    devices are put together, in the order of the batch ``[B, ...]``, and
    ``update(before, seen, key)`` is called once for each update of the parameters, with one key for
    all devices.
    """

    update: Callable[[Any, Any, Array], Any]

    def after(self, before: Any, seen: Any, parts: int, key: Array) -> Any:
        return jax.tree.map(_as_before, self.update(before, seen, key), before)


Rule = Statistic | Counter | Storage
Rules = Mapping[str, Rule]  # by the names of collections
STATISTIC, COUNTER = Statistic(), Counter()


def stored(rules: Rules, answered: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Collections to be averaged, and those whose examples are to be gathered."""
    kept = {name for name in answered if isinstance(rules.get(name), Storage)}
    averaged = {name: value for name, value in answered.items() if name not in kept}
    return averaged, {name: answered[name] for name in sorted(kept)}


def told(rules: Rules, before: Mapping[str, Any], answered: Mapping[str, Any]) -> dict[str, Any]:
    """What of an answer the rules are given: of a counter what was added.

    Raises:
      ValueError: for a collection that the state does not have.
    """
    for name in answered.keys() - before.keys():
        raise ValueError(
            f"a loss answers model state '{name}' that init did not: the state holds "
            f"{', '.join(sorted(before)) or 'nothing'}."
        )
    return {
        name: jax.tree.map(jnp.subtract, value, before[name])
        if isinstance(rules.get(name), Counter)
        else value
        for name, value in answered.items()
    }


def combined(
    rules: Rules,
    before: Mapping[str, Any],
    averaged: Mapping[str, Any],
    seen: Mapping[str, Any],
    parts: int,
    key: Array,
) -> dict[str, Any]:
    """The state after an update, from means over ``parts`` and from all examples."""
    answers = {**averaged, **seen}
    after = {n: rules.get(n, STATISTIC).after(before[n], x, parts, key) for n, x in answers.items()}
    return {**before, **after}


def gathered(seen: Any, axis_name: str) -> Any:
    """Each device's examples ``[b, ...]``, those of all devices one after the other."""
    return jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), seen)


def _as_before(new: Array, old: Array) -> Array:
    """Of the type that it had: the mean of whole numbers is one."""
    whole = jnp.issubdtype(old.dtype, jnp.integer)
    return (jnp.round(new) if whole else new).astype(old.dtype)
