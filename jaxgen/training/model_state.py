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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax


@dataclass(frozen=True)
class Statistic:
    """The mean of the answers: running averages. What is no real number is the same in every part
    of a batch, and stays what it is."""


@dataclass(frozen=True)
class Counter:
    """What each answer adds to the state before it, added up: examples seen, by class or code."""


@dataclass(frozen=True)
class Storage:
    """Examples that are kept: a replay buffer, vectors of a codebook that begin anew.

    A loss answers what it saw of each of its examples, arrays ``[b, ...]``. Those of all parts and
    devices are put together, in the order of the batch ``[B, ...]``, and
    ``update(before, seen, key)`` is called once for each update of the parameters, with one key for
    all devices.
    """

    update: Callable[[Any, Any, Array], Any]


Rule = Statistic | Counter | Storage
Rules = Mapping[str, Rule]  # by the names of collections
STATISTIC, COUNTER = Statistic(), Counter()


class Answer(NamedTuple):
    """What a loss answered of the state of a model, as it is put together."""

    means: dict[str, Any]  # of statistics, None where they are no real numbers
    same: dict[str, Any]  # these, None where they are
    added: dict[str, Any]  # to counters
    seen: dict[str, Any]  # examples [b, ...] for storage


def answer_of(
    rules: Rules, before: Mapping[str, Any], answered: Mapping[str, Any] | None
) -> Answer:
    """The collections that a loss answered, by their rules.

    Raises:
      ValueError: for a collection, or a rule of one, that the state does not have.
    """
    answered = answered or {}
    for what, names in (("a loss answers", answered), ("a rule is declared for", rules)):
        for name in names.keys() - before.keys():
            raise ValueError(
                f"{what} model state '{name}' that init did not answer: the state holds "
                f"{', '.join(sorted(before)) or 'nothing'}."
            )
    of: dict[type, dict[str, Any]] = {Statistic: {}, Counter: {}, Storage: {}}
    for name in sorted(answered):
        of[type(rules.get(name, STATISTIC))][name] = answered[name]
    means, same = (
        jax.tree.map(lambda x, real=real: x if is_real(x) == real else None, of[Statistic])
        for real in (True, False)
    )
    added = {n: jax.tree.map(jnp.subtract, x, before[n]) for n, x in of[Counter].items()}
    return Answer(means, same, added, of[Storage])


def is_real(x: Any) -> bool:
    """Whether an array is of real (or complex) numbers, which have a mean of their type."""
    return jnp.issubdtype(x.dtype, jnp.inexact)


def over_parts(parts: Answer) -> Answer:
    """One answer of several, whose ``means`` are means already and all else is ``[parts, ...]``."""
    last = jax.tree.map(lambda x: x[-1], parts.same)
    added = jax.tree.map(lambda x: x.sum(axis=0, dtype=x.dtype), parts.added)
    return Answer(parts.means, last, added, together(parts.seen))


def over_devices(answer: Answer, axis_name: str) -> Answer:
    """One answer of those of all devices of an axis."""
    first = jax.tree.map(lambda x: lax.all_gather(x, axis_name)[0], answer.same)
    seen = jax.tree.map(lambda x: lax.all_gather(x, axis_name, tiled=True), answer.seen)
    return Answer(
        lax.pmean(answer.means, axis_name), first, lax.psum(answer.added, axis_name), seen
    )


def updated(rules: Rules, before: Mapping[str, Any], answer: Answer, key: Array) -> dict[str, Any]:
    """The state after an update, of the types that it had."""
    either = lambda a, b: b if a is None else a  # noqa: E731
    after = jax.tree.map(either, answer.means, answer.same, is_leaf=lambda x: x is None)
    after |= {n: jax.tree.map(jnp.add, before[n], x) for n, x in answer.added.items()}
    after |= {n: rules[n].update(before[n], x, key) for n, x in answer.seen.items()}  # pyright: ignore[reportAttributeAccessIssue]
    own = {name: before[name] for name in after}
    return {**before, **jax.tree.map(lambda new, old: new.astype(old.dtype), after, own)}


def divided(batch: Any, parts: int) -> Any:
    """A batch ``[B, ...]`` as so many equal parts, ``[parts, B / parts, ...]``.

    They are strided: each is spread over the devices as the whole is.

    Raises:
      ValueError: unless the parts divide the batch.
    """
    size = jax.tree.leaves(batch)[0].shape[0]
    if size % parts:
        raise ValueError(f"a batch of {size} cannot be divided into {parts} parts: use a multiple.")
    return jax.tree.map(
        lambda x: x.reshape(size // parts, parts, *x.shape[1:]).swapaxes(0, 1), batch
    )


def together(parts: Any) -> Any:
    """The batch ``[B, ...]`` that :func:`divided` took apart."""
    return jax.tree.map(lambda x: x.swapaxes(0, 1).reshape(-1, *x.shape[2:]), parts)
