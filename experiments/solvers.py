"""Solvers at equal cost: what the samples of one DDPM are worth after few evaluations.

python -m experiments.solvers                                     # trains a DDPM on digits first
python -m experiments.solvers evaluate --dir runs/ddpm-digits-001 # of a run of experiments.ddpm

Every solver starts from the same noise, so a row of the table differs from the next by the solver
alone. `solvers.png` shows ten of these noises, a row a solver.

Expect, on digits with seed 0 on two CPU cores: 2 minutes of training and 4 of sampling. Frechet
distance of 2000 samples by DDIM with 10, 20, 50, 100 evaluations: 0.132, 0.081, 0.064, 0.060; by
DPM-Solver++(2M) with 10: 0.053; by ancestral sampling with 100: 0.101.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import numpy as np

from experiments import ddpm
from experiments.images import in_batches
from experiments.runner import main
from experiments.system import Experiment, System
from jaxgen.data.sources import DataSet
from jaxgen.diffusion.samplers import Solver, ancestral, ddim, evaluations, sample
from jaxgen.diffusion.schedules import respaced_times
from jaxgen.diffusion.solvers import dpm_solver_2m, dpm_solver_3m, unipc
from jaxgen.evaluation.features import FeatureSpace
from jaxgen.evaluation.report import Number, compare
from jaxgen.plotting import save_rows
from jaxgen.training.devices import Placement
from jaxgen.training.step import TrainState


def even(steps: int, count: int) -> np.ndarray:
    """Times evenly spaced."""
    return respaced_times(steps, count)


def quadratic(steps: int, count: int) -> np.ndarray:
    """Times closer to each other near the data."""
    return respaced_times(steps, count, power=2.0)


Row = tuple[str, Solver, Callable[[int, int], np.ndarray], int]
COMPARED: list[Row] = [
    *(("DDIM", ddim(), even, n) for n in (10, 20, 50, 100)),
    *(("DDIM, quadratic", ddim(), quadratic, n) for n in (10, 20)),
    *(("DPM-Solver++(2M), quadratic", dpm_solver_2m(), quadratic, n) for n in (5, 10, 20)),
    *(("DPM-Solver++(3M), quadratic", dpm_solver_3m(), quadratic, n) for n in (5, 10)),
    *(("UniPC, quadratic", unipc(), quadratic, n) for n in (5, 10)),
    ("DPM-Solver++(2M SDE), quadratic", dpm_solver_2m(1.0), quadratic, 20),
    *(("ancestral", ancestral(), even, n) for n in (20, 100)),
]


def build(config: ddpm.Config, data: DataSet, placement: Placement) -> System:
    system, parts = ddpm.build(config, data, placement), ddpm.make_ddpm(config, data)
    schedule = parts.chain

    @partial(jax.jit, static_argnames=("solver",))
    def draw(key, params, labels, times, solver):
        clip = config.sampling.clip_samples
        return parts.reverse(sample, key, params, labels, times, solver, clip)

    def rows(key: jax.Array, state: TrainState, count: int):
        """For each solver its name and cost, and samples with their labels."""
        found = {}
        for name, solver, grid, steps in COMPARED:
            times = grid(schedule.steps, steps)
            one = lambda key, labels, t=times, s=solver: draw(key, state.ema, labels, t, s)  # noqa: E731
            x, labels = in_batches(one, key, count, config.sampling.sample_batch, data.classes)
            cost = evaluations(solver, schedule, times)
            found[f"{name}, {cost}"] = x, labels if parts.model.classes else None
        return found

    def make_pictures(key: jax.Array, state: TrainState, directory: Path) -> list[Path]:
        shown = {name: x for name, (x, _) in rows(key, state, 10).items()}
        return [save_rows(directory / "solvers.png", shown)]

    def evaluate(key: jax.Array, state: TrainState, space: FeatureSpace) -> list[Number]:
        drawn = rows(key, state, config.sampling.samples)
        return compare(data, space, drawn, f"network evaluations, EMA of step {int(state.step)}")

    return replace(system, sample=make_pictures, evaluate=evaluate)


PRESETS = {
    name: replace(preset, sampling=replace(preset.sampling, samples=2000, sample_batch=500))
    for name, preset in ddpm.PRESETS.items()
}
EXPERIMENT = Experiment(
    "solvers", __doc__ or "", PRESETS, build, reads=("ddpm",), report="solvers.json"
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
