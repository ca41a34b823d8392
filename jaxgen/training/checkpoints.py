"""Checkpoints through Orbax: asynchronous, atomic, the last n and the best kept."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers as managers


class NoCheckpoint(FileNotFoundError):
    """Raised where a checkpoint is needed and there is none."""


def _score(metrics: Any) -> float:
    return metrics["score"]


class Checkpoints:
    """The checkpoints of one run: state, data position, config, and a validation score.

    Args:
      directory: holds one folder a step; made on the first save.
      keep: how many of the latest to keep; the one with the lowest score is kept besides.
    """

    def __init__(self, directory: Path | str, keep: int = 3) -> None:
        self.directory = Path(directory).absolute()
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(
                    get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_score, best_mode="min"
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: Any, config: dict, score: float) -> None:
        """Starts to write the state after ``step`` steps; the next save or close waits for it.

        The data position is the step: batch i of a run is a function of (seed, i) alone.
        """
        if step in self._manager.all_steps():
            return
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state),
            about=ocp.args.JsonSave({"config": config, "position": step}),
        )
        self._manager.save(step, args=items, metrics={"score": score})

    def steps(self) -> list[int]:
        """The steps that can be restored, rising."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest score."""
        return self._manager.best_step()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any, int]:
        """The step, its state and its data position; the latest where ``step`` is None.

        ``abstract`` is a tree of arrays or ``ShapeDtypeStruct`` whose shardings say where each
        array goes, so a run may come back on another number of devices.

        Raises:
          NoCheckpoint: where there is none, or not that one.
        """
        steps = self.steps()
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise NoCheckpoint(f"{wanted} in {self.directory} (there: {steps or 'none'}).")
        step = steps[-1] if step is None else step
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        return step, restored["state"], restored["about"]["position"]

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._manager.wait_until_finished()
        self._manager.close()
