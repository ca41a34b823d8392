"""Solvers at equal cost: what the samples of one DDPM are worth after few evaluations.

python -m experiments.solvers                                     # trains a DDPM on digits first
python -m experiments.solvers evaluate --dir runs/ddpm-digits-001 # of a run of experiments.ddpm

Every solver starts from the same noise, so a row of the table differs from the next by the solver
alone. `solvers.png` shows ten of these noises, a row a solver.

Expect, on digits with seed 0 on two CPU cores: 2 minutes of training and 4 of sampling. Frechet
distance of 2000 samples by DDIM with 10, 20, 50, 100 evaluations: 0.125, 0.072, 0.056, 0.054; by
DPM-Solver++(2M) with 10: 0.047; by ancestral sampling with 100: 0.108.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jaxgen import runner
from jaxgen.diffusion.samplers import Solver, ancestral, ddim, evaluations
from jaxgen.diffusion.schedules import respaced_times
from jaxgen.diffusion.solvers import dpm_solver_2m, dpm_solver_3m, unipc
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_rows
from jaxgen.systems.diffusion import Diffusion

from . import ddpm

EVEN, QUADRATIC = 1.0, 2.0  # powers: quadratic times are closer to each other near the data
Row = tuple[str, Solver, float, int]
COMPARED: list[Row] = [
    *(("DDIM", ddim(), EVEN, n) for n in (10, 20, 50, 100)),
    *(("DDIM, quadratic", ddim(), QUADRATIC, n) for n in (10, 20)),
    *(("DPM-Solver++(2M), quadratic", dpm_solver_2m(), QUADRATIC, n) for n in (5, 10, 20)),
    *(("DPM-Solver++(3M), quadratic", dpm_solver_3m(), QUADRATIC, n) for n in (5, 10)),
    *(("UniPC, quadratic", unipc(), QUADRATIC, n) for n in (5, 10)),
    ("DPM-Solver++(2M SDE), quadratic", dpm_solver_2m(1.0), QUADRATIC, 20),
    *(("ancestral", ancestral(), EVEN, n) for n in (20, 100)),
]


@dataclass(frozen=True)
class Config:
    """Solvers of one DDPM."""

    data: runner.Data = field(default_factory=runner.Data)
    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(2000, 250))


def rows(trained: runner.Trained[Diffusion]) -> dict[str, runner.Samples]:
    """For each solver its name and cost, and samples."""
    schedule, found = trained.system.chain, {}
    for name, solver, power, steps in COMPARED:
        times = respaced_times(schedule.steps, steps, power=power)
        drawn = trained.but(schedule=schedule, solver=solver, times=times).samples()
        found[f"{name}, {evaluations(solver, schedule, times)}"] = drawn
    return found


def picture(runs: dict[str, runner.Trained[Diffusion]], config: Any, directory: Path) -> Path:
    """``solvers.png``: a row a solver, from the same ten noises."""
    trained = runs["ddpm"]
    drawn = trained.once("rows", lambda: rows(trained))
    shown = {name: samples.x[:10] for name, samples in drawn.items()}
    return save_rows(directory / "solvers.png", shown)


def table(runs: dict[str, runner.Trained[Diffusion]], config: Any) -> list[Number]:
    """The Frechet distance and class agreement of each solver."""
    trained = runs["ddpm"]
    how = f"network evaluations, {trained.ema}"
    return runner.compared(trained, trained.once("rows", lambda: rows(trained)), how)


STUDY = runner.Study(
    "solvers",
    __doc__,
    {"digits": Config()},
    lambda config: {"ddpm": runner.Need(ddpm.EXPERIMENT)},
    pictures=(picture,),
    measures=(table,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
