"""How each objective of a GAN learns or collapses, on points in the plane.

python -m experiments.objectives                              # 8 and 25 Gaussians: table and films
python -m experiments.objectives --objectives minimax hinge   # some of them
python -m experiments.objectives --sets ring swissroll --seeds 1
python -m experiments.objectives evaluate                     # of the newest runs that fit

Every objective of experiments.gan trains the same perceptrons, four seeds at once; two are seen
again with what keeps their discriminator smooth. What is lacking is trained first.
`objectives.md` is the table: modes covered, the share of samples near a mode, and the reverse KL of
the modes' counts. `samples-SET.png` and `film-SET.gif` show one seed of each.

`saturation.png` is the protocol of Arjovsky & Bottou 2017 (figures 2 and 3): the generator stands
still while its discriminator learns, and the gradient that it would follow is measured. That of
log(1 - D) fades as D grows sure; that of the log-D trick does not.

Expect 21 minutes on one CPU core, and the table in experiments/RESULTS.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxgen import runner
from jaxgen.data.records import Points
from jaxgen.data.toy import DENSITIES
from jaxgen.evaluation.points import (
    mode_coverage,
    mode_precision,
    mode_reverse_kl,
    sliced_wasserstein,
)
from jaxgen.evaluation.report import Number, over_seeds
from jaxgen.files import replacing
from jaxgen.plotting import save_films, save_points, save_together
from jaxgen.systems.gan import Gan
from jaxgen.training.logging import read_metrics

from . import gan

Run = runner.Trained[Gan]
Runs = dict[str, Run]
# An EMA over no more than 100 steps: what is seen is the generator as it is. The clip is for f-GANs
# that exponentiate logits.
ALIKE = (
    "--channels 64 --batch 128 --learning-rate 3e-3 --clip 10 --ema 0.99 --steps 5000 "
    "--steps-per-call 50 --log-every 50 --checkpoint-every 500 --keep 10"
)
ROWS = {name: f"--objective {name}" for name in gan.OBJECTIVES} | {
    "non_saturating+r1": "--objective non_saturating --penalty r1 --penalty-weight 0.1",
    "wasserstein+wgan_gp": (
        "--objective wasserstein --penalty wgan_gp --penalty-weight 0.1 --discriminator-steps 5"
    ),
}
AT_REST = "--learning-rate 0 --discriminator-rate 1e-3 --steps 1000 --checkpoint-every 1000"
SATURATING = ("minimax", "non_saturating")
SHOWN = 1000  # points of a cloud in a film


@dataclass(frozen=True)
class Config:
    """Objectives side by side."""

    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(2500, 2500))
    objectives: tuple[str, ...] = tuple(ROWS)  # Which of them.
    sets: tuple[str, ...] = ("8gaussians", "25gaussians")  # Points to learn: toy densities.
    seeds: runner.Count = 4  # How many, from 0 on, trained at once.


def needs(config: Config) -> dict[str, runner.Need]:
    """A sweep over the seeds for each objective and set, and for each generator at rest."""
    sweep = f"--sweep seed={','.join(map(str, range(config.seeds)))}"
    chosen = {name: runner.choose("objective", name, ROWS) for name in config.objectives}
    sets = [runner.choose("set", points, tuple(DENSITIES)) for points in config.sets]

    def need(options: str, points: str) -> runner.Need:
        options = f"{ALIKE} {options} {sweep}"
        return runner.Need(gan.EXPERIMENT, options, runner.Data(points))

    learning = {
        f"{name} on {points}": need(options, points)
        for points in sets
        for name, options in chosen.items()
    }
    resting = {
        at_rest(name, config): need(f"{ROWS[name]} {AT_REST}", config.sets[0])
        for name in SATURATING
        if name in chosen
    }
    return learning | resting


def at_rest(name: str, config: Config) -> str:
    """What the runs are called whose generator does not learn."""
    return f"{name} at rest on {config.sets[0]}"


def seeds_of(runs: Runs, name: str) -> list[Run]:
    """The members of a sweep, or the one run that was given for it."""
    return [run for key, run in runs.items() if key.split("/")[0] == name]


# --- the table -----------------------------------------------------------------------------------


def learned(run: Run) -> list[Number]:
    """What the samples of a run are worth: by the modes, or by their distance where there are
    none."""
    x, modes = run.draw(), run.data.modes
    drawn = f"{len(x)} samples ({run.how})"
    if modes is None:
        test = run.test(len(x))["x"]
        against = f"{drawn} against {len(test)} test points, in the units of the data"
        return [Number("sliced_wasserstein", sliced_wasserstein(x, test), against)]
    k = len(modes)
    covered = f"modes of {k} with a quarter of their share of {drawn}"
    near = f"share of {drawn} within 1/4 of the smallest distance between two modes of one"
    uneven = f"nats, from 1/{k}, of the modes' shares in the samples near one; {drawn}"
    return [
        Number("modes_covered", round(k * mode_coverage(x, modes)), covered),
        Number("near_a_mode", mode_precision(x, modes), near),
        Number("reverse_kl", mode_reverse_kl(x, modes), uneven),
    ]


def gradients(runs: Runs, config: Config) -> dict[str, list[tuple[float, float]]]:
    """(step, norm of the generator's gradient), the median over the seeds, of those at rest."""
    found = {}
    for name in SATURATING:
        logs = [
            {
                row["step"]: row["generator/grad_norm"]
                for row in rows
                if "generator/grad_norm" in row
            }
            for run in seeds_of(runs, at_rest(name, config))
            for rows in [read_metrics(run.directory / "metrics.jsonl")]
        ]
        if logs:
            found[name] = [(s, float(np.median([log[s] for log in logs]))) for s in logs[0]]
    return found


def rows_of(runs: Runs, config: Config) -> dict[str, dict[str, list[list[Number]]]]:
    """The numbers of each seed of an objective, by objective and set."""
    return {
        name: {
            points: [
                run.once("learned", lambda run=run: learned(run))
                for run in seeds_of(runs, f"{name} on {points}")
            ]
            for points in config.sets
        }
        for name in config.objectives
    }


def table(runs: Runs, config: Config) -> list[Number]:
    """Means over the seeds and the fewest modes covered; and the gradients at rest."""
    numbers = []
    for name, sets in rows_of(runs, config).items():
        for points, each in sets.items():
            numbers += over_seeds({f"{name} on {points}": each})
            fewest = min((seed[0] for seed in each), key=lambda number: number.value)
            if fewest.name == "modes_covered":
                title = f"fewest_{fewest.name}, {name} on {points}"
                numbers.append(Number(title, fewest.value, f"of {len(each)} seeds"))
    for name, line in gradients(runs, config).items():
        for step, norm in (line[0], line[-1]):
            protocol = f"median over seeds; after {step} steps of the discriminator alone"
            numbers.append(Number(f"gradient_norm, {name} at rest, {step}", norm, protocol))
    return numbers


# --- pictures ------------------------------------------------------------------------------------


def data_of(runs: Runs, points: str) -> np.ndarray:
    """Test points of a set."""
    return next(run for run in runs.values() if run.data.name == points).test(SHOWN)["x"]


def first_seeds(runs: Runs, config: Config, points: str) -> dict[str, Run]:
    """One run of each objective on a set."""
    return {name: seeds_of(runs, f"{name} on {points}")[0] for name in config.objectives}


def samples(runs: Runs, config: Config, directory: Path) -> list[Path]:
    """``samples-SET.png``: samples of one seed of each objective, over the data."""
    files = []
    for points in config.sets:
        drawn = {name: run.draw() for name, run in first_seeds(runs, config, points).items()}
        path = directory / f"samples-{points}.png"
        files.append(save_points(path, drawn, SHOWN, behind=data_of(runs, points)))
    return files


def frames(run: Run) -> Mapping[int, np.ndarray]:
    """Samples ``[n, 2]`` of the same latents by the step of each checkpoint."""
    key, given = jax.random.fold_in(run.key, 5), run.data.given(SHOWN)
    draw = jax.jit(lambda weights: run.system.sample(key, weights, given))
    how: dict[str, Any] = {"experiment": gan.EXPERIMENT, "data": run.data}
    return {
        step: np.asarray(draw(runner.open_run(run.directory, step, **how).weights))
        for step in run.saved
    }


def films(runs: Runs, config: Config, directory: Path) -> list[Path]:
    """``film-SET.gif``: one seed of each objective in training, beside the data."""
    files = []
    for points in config.sets:
        data = data_of(runs, points)
        seen = {name: frames(run) for name, run in first_seeds(runs, config, points).items()}
        steps = sorted(set.intersection(*[set(of) for of in seen.values()]))
        shown = {"data": np.stack([data] * len(steps))}
        shown |= {name: np.stack([of[step] for step in steps]) for name, of in seen.items()}
        captions = [f"{points}, after {step} steps" for step in steps]
        files.append(save_films(directory / f"film-{points}.gif", shown, captions, data))
    return files


def saturation(runs: Runs, config: Config, directory: Path) -> list[Path]:
    """``saturation.png``: the gradient of a generator at rest, as its discriminator learns."""
    lines = gradients(runs, config)
    if not lines:
        return []
    title = "gradient norm of a generator that stands still"
    label = "steps of the discriminator"
    return [save_together(directory / "saturation.png", lines, label, title)]


def cell(seeds: list[list[Number]], name: str) -> str:
    """The mean of a number over the seeds, over how many where not all have it, and the worst count
    of modes."""
    values = [n.value for seed in seeds for n in seed if n.name == name]
    if not values or not np.isfinite(values).any():
        return ""
    some = np.isfinite(values).sum()  # a seed may have no sample near a mode
    mean = f"{np.nanmean(values):.3g}" + ("" if some == len(values) else f" of {some}")
    return f"{mean} ({min(values):.0f})" if name == "modes_covered" else mean


def page(runs: Runs, config: Config, directory: Path) -> Path:
    """``objectives.md``: the table, and the pictures under it."""
    rows = rows_of(runs, config)
    columns = [
        (points, number.name)
        for points, seeds in rows[config.objectives[0]].items()
        for number in seeds[0]
    ]
    titles = [f"{points}: {name.replace('_', ' ')}" for points, name in columns]
    first = next(iter(runs.values()))
    lines = [
        "# Objectives of GANs, on points",
        "",
        f"Means over {config.seeds} seeds (modes covered: and the fewest), {first.how}.",
        "",
        f"| objective | {' | '.join(titles)} |",
        "| --- " * (1 + len(columns)) + "|",
        *(
            f"| {name} | {' | '.join(cell(sets[points], what) for points, what in columns)} |"
            for name, sets in rows.items()
        ),
    ]
    pictures = [f for p in config.sets for f in (f"samples-{p}.png", f"film-{p}.gif")]
    pictures += ["saturation.png"] if gradients(runs, config) else []
    lines += [f"\n![{Path(picture).stem}]({picture})" for picture in pictures]
    path = directory / "objectives.md"
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


STUDY = runner.Study(
    "objectives",
    __doc__,
    {"8gaussians": Config()},
    needs,
    pictures=(samples, films, saturation, page),
    measures=(table,),
    kinds=(Points,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
