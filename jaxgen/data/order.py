"""The order in which examples are seen, as a function of (seed, step).

It is an endless sequence of shuffled epochs; batch ``step`` is its elements
``[step * B, (step + 1) * B)``. So the position of a run is its step, a resumed run needs nothing
but the number, and every process knows the whole batch and reads its own rows of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import SupportsIndex

import numpy as np


class ShuffledBatches:
    """Random access to index batches: ``[step] -> int32 [batch]``."""

    def __init__(self, size: int, batch: int, seed: int) -> None:
        self.size, self.batch, self.seed = size, batch, seed
        self._epoch = lru_cache(maxsize=2)(self._shuffle)

    def _shuffle(self, epoch: int) -> np.ndarray:
        # Philox is keyed, so an epoch is reached without drawing those before it.
        generator = np.random.Generator(np.random.Philox(key=[self.seed, epoch]))
        return generator.permutation(self.size).astype(np.int32)

    def __len__(self) -> int:
        return np.iinfo(np.int64).max // self.batch  # endless, for all purposes

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        position = int(index) * self.batch + np.arange(self.batch)
        epoch, offset = np.divmod(position, self.size)
        elements = np.empty(len(position), np.int32)
        for e in np.unique(epoch):
            here = epoch == e
            elements[here] = self._epoch(int(e))[offset[here]]
        return elements


class Together:
    """The batches of several orders, stacked: ``[step] -> int32 [orders, batch]``."""

    def __init__(self, orders: Sequence[ShuffledBatches]) -> None:
        self.orders = orders

    def __len__(self) -> int:
        return len(self.orders[0])

    def __getitem__(self, index: SupportsIndex) -> np.ndarray:
        return np.stack([order[index] for order in self.orders])
