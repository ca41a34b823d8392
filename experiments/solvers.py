"""Solvers at equal cost: what the samples of one DDPM are worth after few evaluations.

python -m experiments.solvers                                     # trains a DDPM on digits first
python -m experiments.solvers evaluate --dir runs/ddpm-digits-001 # of a run of experiments.ddpm

Every solver starts from the same noise, so a row of the table differs from the next by the solver
alone. `solvers.png` shows ten of these noises, a row a solver.

Expect, on digits with seed 0 on two CPU cores: EXPECT
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import jax

from experiments import ddpm
from experiments.images import in_batches
from experiments.runner import Experiment, System, main
from jaxgen.data.sources import DataSet
from jaxgen.diffusion.guidance import clip_x_0
from jaxgen.diffusion.samplers import Solver, ancestral, ddim, evaluations, sample
from jaxgen.diffusion.schedules import respaced_times
from jaxgen.diffusion.solvers import dpm_solver_2m, dpm_solver_3m, unipc
from jaxgen.evaluation.features import FeatureSpace
from jaxgen.evaluation.report import Number, sample_numbers
from jaxgen.plotting import save_rows
from jaxgen.training.devices import Placement
from jaxgen.training.step import TrainState

COMPARED: list[tuple[str, Solver, int]] = [
    *(("DDIM", ddim(), steps) for steps in (10, 20, 50, 100)),
    *(("DPM-Solver++(2M)", dpm_solver_2m(), steps) for steps in (5, 10, 20)),
    *(("DPM-Solver++(3M)", dpm_solver_3m(), steps) for steps in (5, 10)),
    *(("UniPC", unipc(), steps) for steps in (5, 10)),
    *(("DPM-Solver++(2M SDE)", dpm_solver_2m(1.0), steps) for steps in (20,)),
    *(("ancestral", ancestral(), steps) for steps in (20, 100)),
]


def build(config: ddpm.Config, data: DataSet, placement: Placement) -> System:
    system, parts = ddpm.build(config, data, placement), ddpm.make_ddpm(config, data)
    schedule, size = parts.schedule, config.sampling.sample_batch
    times = [respaced_times(schedule.steps, steps) for _, _, steps in COMPARED]

    def draw(which: int, key: jax.Array, params, labels) -> jax.Array:
        denoise = parts.denoise(params, labels)
        denoise = clip_x_0(denoise) if config.sampling.clip_samples else denoise
        key_start, key = jax.random.split(key)
        x_T = parts.start(key_start, len(labels))
        return sample(key, denoise, schedule, x_T, times[which], COMPARED[which][1])

    draws = jax.jit(draw, static_argnums=0)

    def rows(key: jax.Array, state: TrainState, count: int):
        for i, (name, solver, _) in enumerate(COMPARED):
            one = lambda key, labels, i=i: draws(i, key, state.ema, labels)  # noqa: E731
            x, labels = in_batches(one, key, count, size, data.classes)
            yield name, evaluations(solver, schedule, times[i]), x, labels

    def make_pictures(key: jax.Array, state: TrainState, directory: Path) -> list[Path]:
        shown = {f"{name}, {cost}": x for name, cost, x, _ in rows(key, state, 10)}
        return [save_rows(directory / "solvers.png", shown)]

    def evaluate(key: jax.Array, state: TrainState, space: FeatureSpace) -> list[Number]:
        numbers = []
        for name, cost, x, labels in rows(key, state, config.sampling.samples):
            how = f"EMA of step {int(state.step)}, {name}, {cost} network evaluations"
            given = labels if parts.model.classes else None
            for number in sample_numbers(data, space, x, given, how):
                if number.name in ("frechet_distance", "svm_class_agreement"):
                    numbers.append(replace(number, name=f"{number.name}, {name}, {cost}"))
        return numbers

    return replace(system, sample=make_pictures, evaluate=evaluate)


PRESETS = {
    name: replace(preset, sampling=replace(preset.sampling, samples=2000, sample_batch=500))
    for name, preset in ddpm.PRESETS.items()
}
EXPERIMENT = Experiment("solvers", __doc__ or "", PRESETS, build)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
