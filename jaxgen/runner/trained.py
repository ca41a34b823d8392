"""A run that is opened: its weights, what can be drawn with them, and what is measured on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

import jax
import numpy as np
from jax import Array

from jaxgen.data.records import Batch, DataSet, some
from jaxgen.evaluation.features import FeatureSpace, feature_space
from jaxgen.runner.building import beginning, build, load_data, stage_at, stages_of
from jaxgen.runner.folders import check_checkpoint, experiment_in, read_config, results_name
from jaxgen.runner.options import Sampling, options_of, values_of
from jaxgen.runner.system import Experiment, System, weights_of
from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.devices import Sharded
from jaxgen.training.rows import OverRows

S = TypeVar("S", bound=System)
TESTED = 100_000  # examples of a large test set that are measured


@dataclass(frozen=True, eq=False)
class Trained(Generic[S]):
    """A trained system. All that is drawn or mapped uses all devices of this process."""

    system: S
    weights: Any
    config: Any
    directory: Path
    place: Path  # of pictures and numbers: its name tells step, and options of sampling
    step: int
    key: Array
    sampling: Sampling
    kept: dict[Any, Any] = field(default_factory=dict)  # what was drawn so far

    @property
    def data(self) -> DataSet:
        return self.system.data

    @property
    def ema(self) -> str:
        """Whose numbers these are, for protocols."""
        return f"EMA of step {self.step}"

    @property
    def how(self) -> str:
        """How samples are drawn, for protocols."""
        how = self.system.how()
        return self.ema + (f", {how}" if how else "")

    @cached_property
    def results(self) -> Path:
        """The folder for pictures and numbers, made when it is asked for."""
        self.place.mkdir(parents=True, exist_ok=True)
        return self.place

    @property
    def features(self) -> FeatureSpace:
        """The feature space of the data set, trained at its first use."""
        return feature_space(self.data)

    @property
    def seconds(self) -> tuple[float, float]:
        """What training took, by the clock and of the processor; nan unless it was in one go."""
        path = self.directory / "time.json"
        spent: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
        if spent.get("steps") != self.step:
            return math.nan, math.nan
        return spent["seconds"], spent["processor_seconds"]

    @property
    def saved(self) -> list[int]:
        """The steps of which there are checkpoints, rising: :func:`open_run` opens each."""
        with Checkpoints(self.directory / "checkpoints", self.config.train.keep) as checkpoints:
            return checkpoints.steps()

    @property
    def parameters(self) -> int:
        """How many there are, of all players."""
        players = self.weights.values() if isinstance(self.weights, dict) else [self.weights]
        return sum(x.size for w in players for x in jax.tree.leaves(w.params))

    def but(self, **parts: Any) -> Trained[S]:
        """The same weights with other parts of the system: another solver, grid or guidance."""
        return self.with_weights(self.weights, replace(self.system, **parts))

    def with_weights(self, weights: Any, system: Any = None) -> Trained[Any]:
        """Other weights, of this system or another."""
        other: Any = replace(self, system=system or self.system, weights=weights, kept={})
        return other

    @cached_property
    def _devices(self) -> list[Any]:
        return jax.local_devices()[: self.config.train.devices]

    @cached_property
    def _sampler(self) -> OverRows:
        return self.system.sampler(self._devices)

    def draw(self, count: int | None = None, given: Batch | None = None) -> np.ndarray:
        """Samples ``[count, ...]``, for the conditions of the data set or those ``given``.

        Those for the data set's own conditions are kept: asked for again, or for fewer of them,
        they are the same ones.
        """
        if given is not None:
            return self._sample(given)
        count, size = count or self.sampling.samples, self.sampling.sample_batch
        total = math.ceil(count / size) * size  # whole chunks, all of one shape
        wanted, done = self.data.given(total), len(self.kept.get("x", ()))
        if done >= total and _equal(wanted, _rows(self.kept["given"], 0, total)):
            return self.kept["x"][:count]
        if done and _equal(self.kept["given"], _rows(wanted, 0, done)):
            more = self._sample(_rows(wanted, done, total), first=done // size)
            x = np.concatenate([self.kept["x"], more])
        else:
            x = self._sample(wanted)
        self.kept.update(x=x, given=wanted)
        return x[:count]

    def _sample(self, given: Batch, first: int = 0) -> np.ndarray:
        key, size = jax.random.fold_in(self.key, 0), self.sampling.sample_batch
        return self._sampler(self.weights, key, given, size, activity="sampling", first=first)

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` answers, made at the first call: pictures and measures share it."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def labels(self, count: int) -> np.ndarray | None:
        """The classes that the samples were drawn for, where there are such."""
        return self.data.given(count)["label"] if self.data.classes > 1 else None

    def mapped(self, function: Callable[[Any, Array, Any], Any]) -> OverRows:
        """A function over rows, on all devices of the run: compiled at its first call alone."""
        return OverRows(function, self._devices)

    def over(
        self,
        activity: str,
        function: Callable[[Any, Array, Any], Any] | OverRows,
        rows: Any,
        *,
        key: int = 1,
        size: int | None = None,
    ) -> Any:
        """``function(weights, key, rows [size, ...]) -> arrays [size, ...]`` over all rows.

        ``key``, from 1 on, sets its draws apart from those of other measures. What is called for
        more than once is :meth:`mapped` first.
        """
        mapped = function if isinstance(function, OverRows) else self.mapped(function)
        size = size or self.sampling.sample_batch
        return mapped(
            self.weights, jax.random.fold_in(self.key, key), rows, size, activity=activity
        )

    def test(self, limit: int = TESTED) -> Batch:
        """Up to ``limit`` test examples, spread over them."""
        return some(self.data.test, limit)


def _rows(batch: Batch, start: int, stop: int) -> Batch:
    return {name: x[start:stop] for name, x in batch.items()}


def _equal(a: Batch, b: Batch) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)


def open_run(
    directory: Path | str,
    checkpoint: str | int = "last",
    *,
    experiment: Experiment | None = None,
    config: Any = None,
    data: DataSet | None = None,
    out: Path | None = None,
) -> Trained[Any]:
    """Opens the run in a directory, which says itself what it is.

    Args:
      directory: of the run.
      checkpoint: ``last``, ``best`` or a step.
      experiment: where the module that trained it is not found from here.
      config: in place of the run's own, to sample or measure otherwise.
      data: in place of loading it.
      out: where pictures and numbers go, in place of the directory.

    Raises:
      NoCheckpoint: where there is none, or not that one.
      Mistake: for a run of another version, or a checkpoint that has no such name.
    """
    directory = Path(directory)
    experiment = experiment or experiment_in(directory)
    own = read_config(directory, experiment)
    config = config or own
    data = data or load_data(experiment, config.data)
    whole = build(experiment, config, data)
    check_checkpoint(which := str(checkpoint))
    with Checkpoints(directory / "checkpoints", config.train.keep) as checkpoints:
        wanted = checkpoints.best() if which == "best" else int(which) if which.isdigit() else None
        stages, alone = stages_of(whole, config), Sharded((jax.local_devices()[0],))
        step, state = checkpoints.restore(
            lambda step: alone.stored(*beginning(stages, step, jax.random.key(0))), wanted
        )
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    sampling = getattr(config, "sampling", None) or Sampling()
    system = whole.stages()[stage_at([stage.start for stage in stages], step)][1]
    weights = system.settled(weights_of(state))
    trained = {"seed": own.train.seed, "data": own.data.data}
    usual = values_of(experiment.preset(config.data.data)) | trained
    looks = [o for o in options_of(config) if o.measuring or o.name in trained]
    place = (out or directory) / results_name(step, looks, usual)
    return Trained(system, weights, config, directory, place, step, key, sampling)
