"""What a GAN's critic descends, on images: five ways, one architecture, several seeds.

python -m experiments.critics                 # trains ten on digits, then tells them apart
python -m experiments.critics --data mnist --manual-dir DIR --seeds 2 --train='--steps 4000'
python -m experiments.critics evaluate        # of the newest runs that fit

DCGAN, with the steps, the batch and the learning rate of experiments.gan's preset: the log-D trick
(Goodfellow et al. 2014), least squares (Mao et al. 2017), Wasserstein's distance with a gradient
penalty and five updates of the critic (Gulrajani et al. 2017), hinge with spectral norms (Miyato et
al. 2018), and log D with R1 (Mescheder et al. 2018). `critics.md` is the table, `critics.png` shows
samples of each.

Expect, on MNIST with --train='--channels 32 --batch 64 --steps 3000': one and a half hours of one
core, and the table of RESULTS.md: all classes are covered, WGAN-GP is nearest at eight times the
cost, hinge with spectral norms next at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from jaxgen import runner
from jaxgen.evaluation.report import Number
from jaxgen.files import replacing
from jaxgen.plotting import save_rows
from jaxgen.systems.gan import Gan

from . import gan

Run = runner.Trained[Gan]
Runs = dict[str, Run]
ROWS = {
    "log D": "",
    "least squares": "--objective least_squares",
    "WGAN-GP": "--objective wasserstein --penalty wgan_gp --discriminator-steps 5",
    "hinge, spectral norms": "--objective hinge --spectral-norm discriminator",
    "log D, R1": "--penalty r1 --penalty-weight 1",
}
SHOWN = 20  # samples of a row
COLUMNS = ("frechet_distance", "classes_covered")


@dataclass(frozen=True)
class Config:
    """Objectives and penalties on images."""

    data: runner.Data = field(default_factory=runner.Data)
    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(2000, 250))
    seeds: runner.Count = 2  # How many, from 0 on.


def needs(config: Config) -> dict[str, runner.Need]:
    """A GAN for each row and seed."""
    return {
        f"{name}, seed {seed}": runner.Need(gan.EXPERIMENT, f"{options} --seed {seed}")
        for name, options in ROWS.items()
        for seed in range(config.seeds)
    }


def seeds_of(runs: Runs, name: str) -> list[Run]:
    """The runs of a row."""
    return [run for key, run in runs.items() if key.rpartition(", seed ")[0] == name]


def numbers_of(run: Run) -> dict[str, Number]:
    """What is measured of a run, by name."""
    return run.once("quality", lambda: {number.name: number for number in runner.quality(run)})


def table(runs: Runs, config: Config) -> list[Number]:
    """Distance, classes and the time of training, of every run."""
    found = []
    for name, run in runs.items():
        numbers = numbers_of(run)
        for column in COLUMNS:
            if column in numbers:
                found.append(replace(numbers[column], name=f"{column}, {name}"))
        seconds = run.seconds[1]
        if np.isfinite(seconds):
            how = f"of the processor, {run.step} steps"
            found.append(Number(f"training_seconds, {name}", seconds, how))
    return found


def samples(runs: Runs, config: Config, directory: Path) -> Path:
    """``critics.png``: samples of the first seed of each row."""
    rows = {name: seeds_of(runs, name)[0].draw()[:SHOWN] for name in ROWS}
    return save_rows(directory / "critics.png", rows)


def page(runs: Runs, config: Config, directory: Path) -> Path:
    """``critics.md``: means over the seeds, and in brackets each of them."""
    first = next(iter(runs.values()))
    lines = [
        f"# What a critic descends, on {first.data.name}",
        "",
        f"{config.sampling.samples} samples, {first.how}; means, and in brackets each seed.",
        "",
        "| critic | Fréchet distance | classes covered | training, seconds of the processor |",
        "| --- | --- | --- | --- |",
    ]
    for name in ROWS:
        seeds = seeds_of(runs, name)
        cells = [
            [numbers_of(run)[column].value for run in seeds if column in numbers_of(run)]
            for column in COLUMNS
        ]
        cells.append([run.seconds[1] for run in seeds])
        lines.append(f"| {name} | {' | '.join(map(told, cells))} |")
    path = directory / "critics.md"
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n\n![samples](critics.png)\n").encode())
    return path


def told(values: list[float]) -> str:
    """A mean and what it is of."""
    each = [value for value in values if np.isfinite(value)]
    if not each:
        return ""
    shown = lambda value: f"{value:.0f}" if value >= 100 else f"{value:.3g}"  # noqa: E731
    return f"{shown(np.mean(each))} ({', '.join(map(shown, each))})"


STUDY = runner.Study(
    "critics",
    __doc__,
    {"digits": Config()},
    needs,
    pictures=(samples, page),
    measures=(table,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
