"""A run that is opened: its weights, what can be drawn with them, and what is measured on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import jax
import numpy as np
from jax import Array

from jaxgen.data.records import Batch, DataSet, hash_of, some
from jaxgen.evaluation.features import FeatureSpace, signed
from jaxgen.runner.building import Load, beginning, build, loading_once, stage_at, stages_of
from jaxgen.runner.folders import (
    check_checkpoint,
    data_changed,
    experiment_in,
    experiment_name_in,
    read_config,
    results_name,
)
from jaxgen.runner.frozen import frozen_in, with_frozen
from jaxgen.runner.options import Sampling, options_of, values_of
from jaxgen.runner.references import RunReference, resolved, weights_fingerprint
from jaxgen.runner.system import Experiment, Mistake, System, weights_of
from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.devices import Sharded
from jaxgen.training.logging import console
from jaxgen.training.rows import OverRows, UnevenRows

S = TypeVar("S", bound=System)
# The runs that are being opened for those that refer to them.
OPENING: ContextVar[tuple[Path, ...]] = ContextVar("OPENING", default=())
TESTED = 100_000  # examples of a large test set that are measured


class Samples(NamedTuple):
    """What was drawn, and what for."""

    x: Any  # [N, ...], or a dict of such arrays
    given: Batch  # the conditions, arrays [N, ...]

    def first(self, count: int) -> Samples:
        """The first of them."""
        return Samples(*jax.tree.map(lambda x: x[:count], tuple(self)))

    @property
    def labels(self) -> np.ndarray | None:
        """The classes that they were drawn for, where a ``label`` is among their conditions."""
        return self.given.get("label")


@dataclass(frozen=True, eq=False, repr=False)
class Trained(Generic[S]):
    """A trained system. All that is drawn or mapped uses all devices of this process.

    As a part of another system it is not trained further: its weights are arguments of that one's
    programs (:mod:`~jaxgen.runner.frozen`).
    """

    system: S
    weights: Any
    config: Any
    directory: Path
    place: Path  # of pictures and numbers: its name tells step, and options of sampling
    step: int
    key: Array
    sampling: Sampling
    fingerprint: str = ""  # of the weights, as the checkpoint holds them
    kept: dict[Any, Any] = field(default_factory=dict)  # what was drawn so far

    def __repr__(self) -> str:
        return f"Trained({type(self.system).__name__} of {self.directory}, step {self.step})"

    def held_arrays(self) -> Any:
        return self.weights, frozen_in(self.system)

    def with_arrays(self, arrays: Any) -> Trained[S]:
        weights, frozen = arrays
        return replace(self, weights=weights, system=with_frozen(self.system, frozen), kept={})

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
        """What samples are compared with data by, made at its first use.

        Of an extractor without a digest it is that of the features of 16 test images.
        """
        data = self.system.likened()

        def make() -> FeatureSpace:
            space = self.system.extractor(data)
            if space.digest:
                return space
            x = space.features(signed(data, some(data.test, 16)["x"]))
            return replace(space, digest=hash_of(0, {"features": np.round(x, 3)}))

        return self.once("features", make)

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
    def devices(self) -> list[Any]:
        """Those that draw and measure."""
        return jax.local_devices()[: self.config.train.devices]

    @cached_property
    def _sampler(self) -> OverRows:
        return self.system.sampler(self.devices)

    def draw(self, count: int | None = None, given: Batch | None = None, seed: int = 0) -> Any:
        """:meth:`samples` without their conditions: ``[count, ...]``, or a dict of such arrays."""
        return self.samples(count, given, seed).x

    def samples(
        self, count: int | None = None, given: Batch | None = None, seed: int = 0
    ) -> Samples:
        """``count`` samples with the conditions that they were drawn for.

        Args:
          count: where None one for each row of ``given``, else as many as the run's options say.
          given: named arrays ``[N, ...]``, N at least ``count``; where None the data set's own.
          seed: of the noise, beside that of the run.

        Samples for the data set's own conditions are kept: asked for again, or for fewer of them,
        they are the same ones.

        Raises:
          Mistake: for fewer conditions than samples, or a ``sample`` that answers another number.
        """
        if count is not None and count < 1:
            raise Mistake(f"there is nothing to draw: ask for one sample or more, not {count}.")
        if given is not None:
            shapes = {np.shape(x)[:1] for x in jax.tree.leaves(given)}
            if len(shapes) != 1 or () in shapes:
                found = ", ".join(f"{name} {np.shape(x)}" for name, x in given.items())
                raise Mistake(
                    "conditions are arrays [N, ...] of one length, one row for each sample, and "
                    f"these are {found or 'none'}."
                )
            ((rows,),) = shapes
            if count is not None and count > rows:
                raise Mistake(f"{count} samples need as many conditions, and {rows} are given.")
            given = _rows(given, 0, rows if count is None else count)
            return Samples(self._sample(given, seed=seed), given)
        count, size = count or self.sampling.samples, self.sampling.sample_batch
        total = math.ceil(count / size) * size  # whole chunks, all of one shape
        wanted, drawn = self.data.given(total), self.kept.get(("samples", seed))
        done = 0 if drawn is None else len(jax.tree.leaves(drawn.x)[0])
        if drawn is not None and done >= total and _equal(wanted, _rows(drawn.given, 0, total)):
            return drawn.first(count)
        if drawn is not None and _equal(drawn.given, _rows(wanted, 0, done)):
            more = self._sample(_rows(wanted, done, total), first=done // size, seed=seed)
            x = jax.tree.map(lambda *parts: np.concatenate(parts), drawn.x, more)
        else:
            x = self._sample(wanted, seed=seed)
        self.kept["samples", seed] = Samples(x, wanted)
        return Samples(x, wanted).first(count)

    def _sample(self, given: Batch, first: int = 0, seed: int = 0) -> Any:
        key, size = jax.random.fold_in(self.key, 0), self.sampling.sample_batch
        key = jax.random.fold_in(key, seed) if seed else key
        how: Any = {"activity": "sampling", "first": first}
        try:
            return self._sampler(self.weights, key, given, size, **how)
        except UnevenRows as error:
            raise Mistake(f"sample of {type(self.system).__name__}: {error}") from error

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """What ``make()`` answers, made at the first call: pictures and measures share it."""
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def mapped(self, function: Callable[[Any, Array, Any], Any]) -> OverRows:
        """A function over rows, on all devices of the run: compiled at its first call alone."""
        return OverRows(function, self.devices)

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
        more than once is :meth:`mapped` first. Arrays that the function closes over are constants
        of its program: where a system has frozen ones, map ``system.over_rows(f, self.devices)``.
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
    return jax.tree.map(lambda x: x[start:stop], batch)


def _equal(a: Batch, b: Batch) -> bool:
    alike = jax.tree.structure(a) == jax.tree.structure(b)
    return alike and all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


def open_run(
    directory: Path | str,
    checkpoint: str | int = "last",
    *,
    experiment: Experiment | None = None,
    config: Any = None,
    data: DataSet | None = None,
    out: Path | None = None,
    load: Load | None = None,
) -> Trained[Any]:
    """Opens the run in a directory, which says itself what it is.

    Nothing is executed that the directory holds or names: its experiment is one of jaxgen's, one
    that the running program has imported, or the one that is given.

    Args:
      directory: of the run.
      checkpoint: ``last``, ``best`` or a step.
      experiment: that trained it, where it is neither jaxgen's nor imported.
      config: in place of the run's own, to sample or measure otherwise.
      data: in place of loading it.
      out: where pictures and numbers go, in place of the directory.
      load: what loads data, of this run and of those that it refers to.

    Raises:
      NoCheckpoint: where there is none, or not that one.
      Mistake: for a run of another version or of an experiment that is not known here, for a
        checkpoint that has no such name, and where a run that it refers to is not the one that it
        was trained on.
    """
    with jax.ensure_compile_time_eval():  # where a build opens it inside of a trace, as sweeps do
        return _open(Path(directory), str(checkpoint), experiment, config, data, out, load)


def _open(
    directory: Path,
    which: str,
    experiment: Experiment | None,
    config: Any,
    data: DataSet | None,
    out: Path | None,
    load: Load | None,
) -> Trained[Any]:
    load = load or loading_once()
    experiment = experiment or experiment_in(directory)
    own = read_config(directory, experiment)
    config = resolved(config or own, partial(open_reference, load=load))
    data = data or load(experiment, config.data)
    if changed := data_changed(directory, data):
        console.print(f"warning: {changed}: numbers are of what it holds now.")
    whole = build(experiment, config, data)
    check_checkpoint(which)
    with Checkpoints(directory / "checkpoints", config.train.keep) as checkpoints:
        wanted = checkpoints.best() if which == "best" else int(which) if which.isdigit() else None
        stages, alone = stages_of(whole, config), Sharded((jax.local_devices()[0],))
        step, state = checkpoints.restore(
            lambda step: alone.stored(*beginning(stages, step, jax.random.key(0))), wanted
        )
    key = jax.random.fold_in(jax.random.key(config.train.seed), 1)
    sampling = getattr(config, "sampling", None) or Sampling()
    system = whole.stages()[stage_at([stage.start for stage in stages], step)][1]
    weights = weights_of(state)
    found, weights = weights_fingerprint(weights), system.settled(weights)
    trained = {"seed": own.train.seed, "data": own.data.data}
    usual = values_of(experiment.preset(config.data.data)) | trained
    looks = [o for o in options_of(config) if o.measuring or o.name in trained]
    place = (out or directory) / results_name(step, looks, usual)
    return Trained(system, weights, config, directory, place, step, key, sampling, found)


def open_reference(reference: RunReference, load: Load) -> Trained[Any]:
    """Opens a run that another one refers to.

    Raises:
      NoCheckpoint: where there is none, or not that one.
      Mistake: as :func:`open_run`.
    """
    directory: Any = reference.directory
    experiment, chain = reference.experiment, OPENING.get()
    if directory.resolve() in chain:
        raise Mistake(f"{directory} refers to itself, by way of {len(chain)} runs: train it anew.")
    if experiment and experiment.name != experiment_name_in(directory):
        experiment = None  # another one that serves as well
    token = OPENING.set((*chain, directory.resolve()))
    try:
        return open_run(directory, reference.checkpoint, experiment=experiment, load=load)
    finally:
        OPENING.reset(token)
