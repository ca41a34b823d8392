"""What a network is conditioned on: named arrays, each with a null that stands for its absence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Conditions = Mapping[str, Any]  # by name, arrays [B, ...]


@dataclass(frozen=True)
class Condition:
    """A named array ``[B, *shape]`` of batches and of what is sampled for.

    A label, a vector, a sequence and its mask, a picture, a size. The network is called with it
    under the name ``argument``.
    """

    name: str
    shape: tuple[int, ...] = ()
    dtype: Any = jnp.float32
    # What takes its place where the condition is dropped; None where it never is.
    null: float | bool | Array | None = None
    argument: str | None = None  # where it is not the name

    def empty(self, count: int) -> Array:
        """Zeros of its shape, to initialize a network with."""
        return jnp.zeros((count, *self.shape), self.dtype)


def label(classes: int) -> Condition:
    """A class 0 .. classes - 1, and ``classes`` for none."""
    return Condition("label", (), jnp.int32, classes, "labels")


def selected(declared: tuple[Condition, ...], given: Mapping[str, Any]) -> dict[str, Any]:
    """The declared conditions among named arrays.

    Raises:
      ValueError: naming one that is lacking.
    """
    if missing := [c.name for c in declared if c.name not in given]:
        raise ValueError(
            f"the network is conditioned on {missing[0]}, and there are only "
            f"{', '.join(given) or 'no conditions'}."
        )
    return {c.name: given[c.name] for c in declared}


def nulled(declared: tuple[Condition, ...], given: Conditions) -> dict[str, Any]:
    """The conditions with the null of each that has one."""
    found = dict(given)
    for c in declared:
        if c.null is not None and c.name in found:
            x = jnp.asarray(found[c.name])
            found[c.name] = jnp.broadcast_to(jnp.asarray(c.null, x.dtype), x.shape)
    return found


def dropped(
    key: Array, declared: tuple[Condition, ...], given: Conditions, share: float
) -> dict[str, Any]:
    """The conditions of a batch, a ``share`` of its examples with nulls in the place of all that
    have one (Ho & Salimans 2022, algorithm 1)."""
    kept, null = dict(given), nulled(declared, given)
    drop = jax.random.bernoulli(key, share, (count_of(given),))
    choose = lambda none, x: jnp.where(drop.reshape(-1, *[1] * (x.ndim - 1)), none, x)  # noqa: E731
    return {name: choose(null[name], jnp.asarray(x)) for name, x in kept.items()}


def count_of(given: Mapping[str, Any]) -> int:
    """How many examples there are conditions for; a symbol where a program is exported for any."""
    return jax.tree.leaves(given)[0].shape[0]
