"""Training a run: its devices, its batches, its stages, and what is kept of it."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.data.pipeline import index_batches, prefetched, read_batches
from jaxgen.data.records import Arrays, DataSet
from jaxgen.plotting import save_curves
from jaxgen.runner import folders, sweeps
from jaxgen.runner.building import Stage, beginning, build, made, stage_of, stages_of
from jaxgen.runner.frozen import frozen_in
from jaxgen.runner.options import Run, Train
from jaxgen.runner.system import Experiment, Mistake, System, choose, moving_of, weights_of
from jaxgen.training import devices
from jaxgen.training.checkpoints import Checkpoints, fingerprint, written_or_told
from jaxgen.training.diagnosis import profiled
from jaxgen.training.logging import MetricLog, NoLog, console, progress, read_metrics
from jaxgen.training.loop import NonFiniteLoss, Waiting, fit
from jaxgen.training.signals import finishing_steps
from jaxgen.training.stacked import StackedCheckpoints, StackedLogs, part
from jaxgen.training.step import Players, batches_of

RESIDENT_LIMIT = 2**30  # bytes of training data that are kept on the devices


def stages_together(
    experiment: Experiment, members: tuple[sweeps.Member, ...], data: DataSet
) -> list[Stage]:
    """The stages of a sweep: states, batches and keys have a first axis of members."""
    make = lambda config, data: made(experiment, config, data)  # noqa: E731
    each = sweeps.each_member(make, members, data)
    # those that differ in their seed alone are scored by the same systems
    alone: dict[str, tuple[tuple[int, System], ...]] = {}
    for member in members:
        shared = str(member.settings)
        alone[shared] = alone.get(shared) or build(experiment, member.config, data).stages()
    stages = [alone[str(member.settings)] for member in members]

    def stage(i: int, start: int) -> Stage:
        def of(system: System, config: Any) -> Stage:
            return stage_of(system.stages()[i][1], start, config)

        each_frozen = [frozen_in(s[i][1]) for s in stages]
        alike = len({str(fingerprint(frozen)) for frozen in each_frozen}) == 1
        frozen = each_frozen[0] if alike else jax.tree.map(lambda *x: jnp.stack(x), *each_frozen)

        def step(state: Any, batch: Any, key: Array, frozen: Any = None, **how: Any) -> Any:
            def run(s: System, c: Any, *args: Any, frozen: Any = frozen) -> Any:
                return of(s, c).step(*args, frozen=frozen, **how)

            if alike:
                return each(run, state, batch, key)
            own = lambda s, c, *args: run(s, c, *args[:-1], frozen=args[-1])  # noqa: E731
            return each(own, state, batch, key, frozen)  # of each member, as its state is

        def score(state: Players) -> np.ndarray:
            parts = [part(state, m) for m in range(len(members))]
            scored = [
                s[i][1].score(weights_of(p), p.step) for s, p in zip(stages, parts, strict=True)
            ]
            return np.array(scored)

        start_of = lambda s, c, seed: of(s, c).begin(seed)  # noqa: E731
        first = stages[0][i][1]
        begin = lambda seed: each(start_of, seed)  # noqa: E731
        return Stage(start, begin, step, score, batches_of(first.turns()), frozen)

    return [stage(i, start) for i, (start, _) in enumerate(stages[0])]


def make_placement(options: Train) -> devices.Placement:
    """The devices of a run.

    Raises:
      Mistake: for an unknown kind, too many devices, or a batch or state they cannot share.
    """
    kind = choose("kind of parallelism", options.parallel, ("jit", "pmap"))
    try:
        devices.check_divisible(options.batch, options.accumulate)
        part = options.batch // options.accumulate
        return devices.placement_of(kind, options.devices, options.model_devices, part)
    except ValueError as error:
        raise Mistake(str(error)) from error


def train(experiment: Experiment, config: Any, data: DataSet, directory: Path, run: Run) -> None:
    """Trains to ``config.train.steps`` and leaves checkpoints, metrics and curves.

    Raises:
      Mistake: for options that do not fit together, or with the run that is in the directory.
    """
    placement = make_placement(config.train)
    members = sweeps.members(config)
    system = build(experiment, config, data)
    stages = stages_together(experiment, members, data) if members else stages_of(system, config)
    key = sweeps.run_key(config, members)
    jax.eval_shape(stages[0].begin, key)  # what a sweep cannot take is told before a file is there
    check_calls(config.train, stages)
    remedies = {"elsewhere": "give another --dir", "with_room": "then --resume"}
    with written_or_told(directory, **remedies), ExitStack() as held:
        if jax.process_index() == 0:
            held.enter_context(folders.locked(directory))
            # another may have come and gone
            folders.check_directory(directory, experiment, config, run)
            if changed := folders.data_changed(directory, data):
                raise Mistake(f"{changed}: put it back, or train anew with another --dir.")
            for member in members:
                (directory / member.name).mkdir(exist_ok=True)
        checkpoints = held.enter_context(open_checkpoints(directory, config, members))
        Fitting(
            experiment, stages, config, members, data, placement, checkpoints, directory, run
        ).go(key)


def check_calls(options: Train, stages: list[Stage]) -> None:
    """Refuses a number of steps, in all or before a stage, that is no number of whole calls."""
    for steps in (options.steps, *(stage.start for stage in stages)):
        if steps % options.steps_per_call:
            raise Mistake(
                f"steps ({steps}) is not a multiple of steps per call ({options.steps_per_call})."
            )


@dataclass(frozen=True)
class Fitting:
    """A run in training: what its stages share."""

    experiment: Experiment
    stages: list[Stage]
    config: Any
    members: tuple[sweeps.Member, ...]
    data: DataSet
    placement: devices.Placement
    checkpoints: Any
    directory: Path
    run: Run

    @property
    def options(self) -> Train:
        options = self.config.train
        if self.run.debug_nans:  # a scan would be the operation that is named
            return dataclasses.replace(options, steps_per_call=1)
        return options

    def go(self, key: Array) -> None:
        """Trains what is left of the run."""
        start, state = self.resume(key)
        steps, begun, in_one_go = self.options.steps, clocks(), start == 0
        if start >= steps:
            console.print(f"nothing to train: step {start} is done, and --steps is {steps}")
            return
        if (steps - start) % self.options.steps_per_call:
            raise Mistake(
                f"step {start} lies inside of a call of {self.options.steps_per_call} steps: go on "
                "with --debug-nans, which makes them one by one, or train anew."
            )
        log, waited = self.open_log(start), 0.0
        try:
            with progress("compiling", steps, start) as advance:
                for i, stage in enumerate(self.stages):
                    stop = min([s.start for s in self.stages[i + 1 :]] + [steps])
                    if start >= stop:
                        continue
                    if state is None:
                        state = self.begin(stage, key, None)
                    elif stage.start == start:
                        before = devices.on_one_device(self.placement.get_state(state))
                        # bound to no device
                        weights = jax.device_get((weights_of(before), moving_of(before)))
                        state = self.begin(stage, key, weights)
                    how = {"advance": advance, "log": log}
                    state, seconds = self.fit(stage, state, key, start, stop, **how)
                    start, waited = stop, waited + seconds
        except NonFiniteLoss as error:
            kept = self.checkpoints.steps()
            last = f"the last good one is of step {kept[-1]}" if kept else "there is none before it"
            skip = self.options.skip
            above = f" Or its gradients are above {skip:g}: raise --skip." if skip else ""
            raise NonFiniteLoss(
                f"{error}{above} Checkpoints in {self.checkpoints.directory}: {last}."
            ) from error
        finally:
            log.close()
        self.draw_curves()
        seconds, worked = (now - then for now, then in zip(clocks(), begun, strict=True))
        if in_one_go and jax.process_index() == 0:
            spent = {"steps": steps, "seconds": seconds, "processor_seconds": worked}
            folders.write_json(self.directory / "time.json", spent)
        console.print(
            f"trained to step {steps} in {seconds:.0f} s, "
            f"{waited / seconds:.1%} of it waiting for data; curves: curves.png"
        )

    def resume(self, key: Array) -> tuple[int, Any]:
        """The step to go on from and its state; 0 and None for a run that begins."""
        if not (self.run.resume and self.checkpoints.steps()):
            return 0, None

        start, state = self.checkpoints.restore(
            lambda step: self.placement.stored(*beginning(self.stages, step, key))
        )
        self.checkpoints.drop_after(start)
        console.print(f"resuming from step {start}")
        return start, self.placement.put_state(state)

    def begin(self, stage: Stage, key: Array, weights: Any) -> Any:
        """The placed state at the stage's first step."""
        key = sweeps.fold(key, 0)
        if weights is None:
            return self.placement.init(stage.begin, key)
        return self.placement.init(stage.begin, (sweeps.fold(key, stage.start), *weights))

    def fit(
        self, stage: Stage, state: Any, key: Array, start: int, stop: int, *, log: Any, **how: Any
    ) -> tuple[Any, float]:
        """The state after step ``stop``, and the seconds spent waiting for data."""
        options, key = self.options, sweeps.fold(key, 3)
        whole = self.config.train.steps_per_call  # checkpoints lie between calls, also where these
        # are taken apart to find a NaN
        ready = Waiting(self.batches(stage.batches, start))
        place = lambda m: self.directory / m.name  # noqa: E731
        saved: Any = [folders.as_json(m.config, place(m)) for m in self.members]
        saved = saved or folders.as_json(self.config, self.directory)

        def checkpoint(done: int, state: Any) -> None:
            stored = self.placement.get_state(state)
            score = stage.score(devices.on_one_device(stored))
            log.write(done, {"validation": score})
            self.checkpoints.save(done, stored, saved, score)

        step = self.compile(stage, state, ready, key)
        self.write_configs()
        calls = -(-(stop - start) // options.steps_per_call)
        with finishing_steps() as stopping:
            try:
                state = fit(
                    state,
                    profiled(step, self.directory / "profile", calls) if self.run.profile else step,
                    ready,
                    key,
                    start=start,
                    stop=stop,
                    steps_per_call=options.steps_per_call,
                    log=log,
                    log_every=options.log_every,
                    checkpoint=checkpoint,
                    checkpoint_every=math.ceil(options.checkpoint_every / whole) * whole,
                    max_skipped=options.max_skipped,
                    stopping=stopping,
                    last=options.steps,
                    **how,
                )
            finally:
                self.checkpoints.wait()
        return state, ready.seconds

    def write_configs(self) -> None:
        """Makes the directory that of this run; from now on it is resumed with these options."""
        if jax.process_index() == 0:
            folders.write_config(self.directory, self.experiment, self.config)
            folders.write_data(self.directory, self.data)
            for member in self.members:
                folder = self.directory / member.name
                folders.write_config(folder, self.experiment, member.config)
                folders.write_data(folder, self.data)

    def compile(self, stage: Stage, state: Any, ready: Waiting, key: Array) -> Callable:
        """The compiled step, once it is known to fit into the memory of a device."""
        step = stage.step if self.options.steps_per_call == 1 else devices.scan_steps(stage.step)
        # from the host, where devices of other processes have them too
        arrays = self.placement.put_state(jax.device_get(stage.frozen))
        frozen = {"frozen": arrays} if stage.frozen else {}
        if self.run.debug_nans:  # which runs a step again, operation by operation
            return partial(self.placement.compile(step, donate=False), **frozen)
        compiled = self.placement.compile(step)
        program = devices.compile_to_fit(compiled, state, ready.first(), key, **frozen)
        return partial(program, **frozen)

    def batches(self, count: int, start: int) -> Iterator[Any]:
        """Placed batches from step ``start`` on, ``count`` times ``--batch`` examples each.

        They are gathered on the devices where the data fits there.
        """
        options, source, members = self.options, self.data.train, self.members
        size = count * options.batch
        index = index_batches(
            len(source),
            size,
            seed=sweeps.seeds(members) if members else options.seed,
            start=start,
            stride=options.steps_per_call,
            rows=self.placement.rows(size),
        )
        leading = int(options.steps_per_call > 1) + int(bool(members))
        put = lambda x: self.placement.put_batch(x, leading=leading)  # noqa: E731
        if isinstance(source, Arrays) and source.nbytes <= RESIDENT_LIMIT:
            gather = self.placement.resident(source.arrays, source.gather)
            return (gather(put(i)) for i in prefetched(index))
        return (put(batch) for batch in read_batches(source, index))

    def open_log(self, start: int) -> Any:
        """Where the metrics go; the first process alone writes."""
        if jax.process_index() > 0:
            return NoLog()
        if self.members:
            return StackedLogs([self.directory / m.name for m in self.members], start)
        return MetricLog(self.directory, start)

    def draw_curves(self) -> None:
        if jax.process_index() == 0:
            names = [member.name for member in self.members] or ["."]
            for folder in (self.directory / name for name in names):
                save_curves(folder / "curves.png", read_metrics(folder / "metrics.jsonl"))


def clocks() -> tuple[float, float]:
    """The time by the clock, and that of the processor."""
    return time.monotonic(), time.process_time()


def open_checkpoints(directory: Path, config: Any, members: tuple[sweeps.Member, ...]) -> Any:
    """The checkpoints of a run, or of all members of a sweep."""
    folders = [directory / member.name / "checkpoints" for member in members]
    keep = config.train.keep
    return (
        StackedCheckpoints(folders, keep)
        if members
        else Checkpoints(directory / "checkpoints", keep)
    )
