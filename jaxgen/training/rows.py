"""A function over many rows, some at a time, on all devices: the one loop over batches that is not
training."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.training.logging import progress
from jaxgen.training.loop import Advance

AXES = ("rows",)
ROWS = PartitionSpec(*AXES)


class OverRows:
    """``function(weights, key, rows, shared) -> arrays``, compiled once, over any number of rows.

    Rows go through it ``size`` at a time, a chunk to each device. Chunk i draws from
    ``fold_in(key, i)`` and is computed by one device alone, so the result does not depend on how
    many there are. The last chunk is filled up with rows from the beginning.

    Args:
      function: jittable; takes arrays ``[size, ...]`` and answers arrays ``[size, ...]``.
      devices: those of this process where None.
      shared: arrays that all rows share beside the weights. Without them ``function`` takes none.
    """

    def __init__(
        self,
        function: Callable[..., Any],
        devices: Sequence[Any] | None = None,
        shared: Any = None,
    ) -> None:
        self.function, self.shared = function, () if shared is None else (shared,)
        self.devices = list(devices or jax.local_devices())
        self._programs: dict[int, tuple[Any, NamedSharding]] = {}

    def _program(self, width: int) -> tuple[Any, NamedSharding]:
        if width not in self._programs:
            mesh = Mesh(np.asarray(self.devices[:width]), AXES)

            def chunk(weights: Any, keys: Array, rows: Any, shared: Any) -> Any:
                rows = jax.tree.map(lambda x: x[0], rows)
                found = self.function(weights, keys[0], rows, *shared)
                check_rows(found, rows)
                return jax.tree.map(lambda x: x[None], found)

            whole = PartitionSpec()
            specs = (whole, ROWS, ROWS, whole)
            mapped = jax.shard_map(
                chunk, mesh=mesh, in_specs=specs, out_specs=ROWS, check_vma=False
            )
            self._programs[width] = jax.jit(mapped), NamedSharding(mesh, whole)
        return self._programs[width]

    def __call__(
        self,
        weights: Any,
        key: Array,
        rows: Any,
        size: int,
        *,
        activity: str | None = None,
        first: int = 0,
    ) -> Any:
        """All results ``[N, ...]`` as NumPy arrays, for rows ``[N, ...]``.

        ``activity`` names the progress bar; without it there is none. ``first`` is the number of
        the first chunk, for rows that go on where others ended.
        """
        n = len(jax.tree.leaves(rows)[0])
        size = min(size, n)
        chunks = math.ceil(n / size)
        # simulated devices share one processor: none of them computes what is thrown away
        spare = self.devices[0].platform != "cpu" or chunks >= len(self.devices)
        width = len(self.devices) if spare else 1
        index = np.resize(np.arange(n), (math.ceil(chunks / width), width, size))
        program, whole = self._program(width)
        weights, shared = jax.device_put((weights, self.shared), whole)
        parts = []
        with progress(activity, n) if activity else _silence() as advance:
            for i, at in enumerate(index):
                numbers = first + i * width + np.arange(width)
                keys = jax.vmap(lambda c: jax.random.fold_in(key, c))(numbers)
                part = jax.tree.map(lambda x, at=at: x[at], rows)
                out = program(weights, keys, part, shared)
                parts.append(jax.device_get(out))
                advance(min(width * size, n - i * width * size))
        join = lambda *p: np.concatenate(p).reshape(-1, *p[0].shape[2:])[:n]  # noqa: E731
        return jax.tree.map(join, *parts)


class UnevenRows(ValueError):
    """Raised where a function does not answer one result for each row."""


def check_rows(found: Any, rows: Any) -> None:
    """Refuses results that are not one for each row.

    Raises:
      UnevenRows: naming the shapes.
    """
    count = len(jax.tree.leaves(rows)[0])
    for x in jax.tree.leaves(found):
        if x.ndim == 0 or x.shape[0] != count:
            raise UnevenRows(
                f"of {count} rows {count} results are wanted, along the first axis, and their "
                f"shape is {x.shape}."
            )


@contextmanager
def _silence() -> Generator[Advance]:
    yield lambda *args, **kwargs: None
