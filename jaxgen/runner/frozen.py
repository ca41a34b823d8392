"""Networks that a system uses and does not train: arguments of its compiled programs.

An array that a function closes over becomes a constant of its program: it is compiled in, counted
nowhere, and takes minutes where it is large. A field of a system that is a :class:`Frozen`, or a
run that was opened (:class:`~jaxgen.runner.trained.Trained`), is none: the runner passes its arrays
to every program, placed and divided over devices as parameters are. They are not saved with the
run, nor averaged.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar, runtime_checkable

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.data.records import DataSet

T = TypeVar("T")


@runtime_checkable
class Held(Protocol):
    """A part of a system with arrays that no step changes."""

    def held_arrays(self) -> Any: ...

    def with_arrays(self, arrays: Any) -> Any:
        """The same part with other arrays: those that a program was given."""
        ...


@dataclass(frozen=True, eq=False)
class Frozen:
    """A function of arrays that are not trained, such as a pretrained encoder.

    ``encoder = Frozen(lambda variables, x: module.apply(variables, x), variables)`` is called as
    ``encoder(x)``.
    """

    function: Callable[..., Any]
    arrays: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self.arrays, *args, **kwargs)

    def held_arrays(self) -> Any:
        return self.arrays

    def with_arrays(self, arrays: Any) -> Frozen:
        return replace(self, arrays=arrays)


def frozen_in(part: Any) -> dict[str, Any]:
    """The frozen arrays of a system, by where they are; {} for most systems."""
    held = _held(part, "")
    return {name: jax.tree.map(jnp.asarray, value.held_arrays()) for name, value in held}


def with_frozen(part: T, arrays: dict[str, Any]) -> T:
    """The system with these in their place."""
    return _with(part, arrays, "") if arrays else part


def _parts(part: Any) -> dict[str, Any]:
    """What a part of a system is made of."""
    if isinstance(part, Mapping):
        return {str(name): value for name, value in part.items()}
    if isinstance(part, (list, tuple)):
        return {str(i): value for i, value in enumerate(part)}
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        return {f.name: getattr(part, f.name) for f in dataclasses.fields(part)}
    return {}


def _held(part: Any, where: str) -> list[tuple[str, Held]]:
    if isinstance(part, (nn.Module, DataSet)):
        return []
    if isinstance(part, Held):
        return [(where, part)]
    parts = _parts(part).items()
    return [found for name, value in parts for found in _held(value, f"{where}/{name}")]


def _with(part: Any, arrays: dict[str, Any], where: str) -> Any:
    if where in arrays:
        return part.with_arrays(arrays[where])
    if not any(name.startswith(f"{where}/") for name in arrays):
        return part
    changed = {
        name: _with(value, arrays, f"{where}/{name}") for name, value in _parts(part).items()
    }
    if isinstance(part, Mapping):
        return {name: changed[str(name)] for name in part}
    if isinstance(part, (list, tuple)):
        values = changed.values()
        return type(part)(*values) if hasattr(part, "_fields") else type(part)(values)
    copied = object.__new__(type(part))  # its __post_init__ saw the arrays, and these may be traced
    for name, value in changed.items():
        object.__setattr__(copied, name, value)
    return copied
