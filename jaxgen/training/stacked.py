"""Checkpoints and logs of several runs that are trained as one, their states stacked.

Each run's are in its own directory, as those of a run that is trained alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import SingleDeviceSharding

from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.logging import MetricLog


def part(stacked: Any, i: int) -> Any:
    """Run i of stacked states."""
    return jax.tree.map(lambda x: x[i], stacked)


class StackedCheckpoints:
    """The checkpoints of several runs, as one set of stacked states."""

    def __init__(self, directories: Sequence[Path], keep: int) -> None:
        self.directory = directories[0]
        self._each = [Checkpoints(directory, keep) for directory in directories]

    def steps(self) -> list[int]:
        """The steps of which every run has a checkpoint, rising."""
        return sorted(set.intersection(*[set(each.steps()) for each in self._each]))

    def save(self, step: int, state: Any, config: Sequence[dict], score: Any) -> None:
        """As :meth:`.Checkpoints.save`, with the config and the score of each run."""
        for i, each in enumerate(self._each):
            each.save(step, part(state, i), config[i], float(score[i]))

    def restore(self, abstract: Callable[[int], Any], step: int | None = None) -> tuple[int, Any]:
        """The step of which every run has a whole checkpoint, and the stacked states."""
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
        """Removes the checkpoints of later steps."""
        for each in self._each:
            each.drop_after(step)

    def wait(self) -> None:
        """Waits for the saves under way."""
        for each in self._each:
            each.wait()

    def __enter__(self) -> StackedCheckpoints:
        return self

    def __exit__(self, *error: Any) -> None:
        for each in self._each:
            each.__exit__(*error)


class StackedLogs:
    """The metrics of several runs, each in its own directory."""

    def __init__(self, directories: Sequence[Path], start: int) -> None:
        self._each = [MetricLog(directory, start) for directory in directories]

    def write(self, step: int, metrics: Any) -> None:
        """Writes to each log its part of metrics ``[runs]``."""
        for i, each in enumerate(self._each):
            each.write(step, {name: values[i] for name, values in metrics.items()})

    def close(self) -> None:
        """Ends the files."""
        for each in self._each:
            each.close()
