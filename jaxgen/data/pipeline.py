"""Batches through Grain: indices as a function of (seed, step), examples read ahead in threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import grain
import numpy as np

from jaxgen.data.order import ShuffledBatches, Together
from jaxgen.data.records import Source


def index_batches(
    size: int,
    batch: int,
    *,
    seed: int | Sequence[int],
    start: int = 0,
    stride: int = 1,
    rows: slice = slice(None),
) -> grain.MapDataset:
    """The given rows of index batches from step ``start`` on.

    Several seeds are stacked, ``[S, B]``, and ``stride`` > 1 stacks that many steps, ``[n, ...]``.
    """
    if isinstance(seed, int):
        order: Any = ShuffledBatches(size, batch, seed)
    else:
        order = Together([ShuffledBatches(size, batch, each) for each in seed])
    steps = grain.MapDataset.source(order)[start:].map(lambda index: index[..., rows])
    return steps.batch(stride) if stride > 1 else steps


def read_batches(
    source: Source, indices: grain.MapDataset, *, threads: int = 2, buffer: int = 4
) -> Iterator[dict[str, Any]]:
    """Reads the examples of each index batch, ahead of time, in ``threads`` threads.

    Yields dicts of host arrays whose leading axes are those of the index batch.
    """

    def read(index: np.ndarray) -> dict[str, np.ndarray]:
        batch = source.fetch(index.reshape(-1))
        return {k: v.reshape(*index.shape, *v.shape[1:]) for k, v in batch.items()}

    return prefetched(indices.map(read), threads=threads, buffer=buffer)


def prefetched(dataset: grain.MapDataset, *, threads: int = 2, buffer: int = 16) -> Iterator[Any]:
    """Iterates in order, computing up to ``buffer`` elements ahead."""
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=buffer)
    return iter(dataset.to_iter_dataset(options))
