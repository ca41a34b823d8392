"""What guidance buys and costs: class agreement and Frechet distance against its weight.

python -m experiments.guidance       # trains a score_sde on digits first
python -m experiments.guidance evaluate --dir runs/score_sde-digits-001

Classifier-free guidance (Ho & Salimans 2022) of one network, every weight from the same noise.
`guidance.png` shows both curves, `weights.png` a row of samples for each weight.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from jaxgen import runner
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_lines, save_rows
from jaxgen.systems.diffusion import Diffusion

from . import score_sde


@dataclass(frozen=True)
class Config:
    """Weights of guidance."""

    data: runner.Data = field(default_factory=runner.Data)
    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(1000, 250))
    # Of guidance: -1 is the model without classes, 0 the one with them.
    weights: tuple[float, ...] = (-1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)


def rows(trained: runner.Trained[Diffusion], config: Config) -> dict[str, runner.Samples]:
    """The samples of every weight: one program, the weight being an argument."""
    try:
        trained.system.network.check_guidance(1.0)
    except ValueError as error:
        raise runner.Mistake(str(error)) from error
    given, found = trained.data.given(config.sampling.samples), {}
    for w in config.weights:
        weight = np.full(len(given["label"]), w, np.float32)
        found[f"{w:g}"] = trained.samples(given={**given, "guidance": weight})
    return found


def table(runs: dict[str, runner.Trained[Diffusion]], config: Config) -> list[Number]:
    """The Frechet distance and class agreement of each weight."""
    trained = runs["score_sde"]
    how = f"weight of guidance, {trained.ema}"
    drawn = trained.once("rows", lambda: rows(trained, config))
    return trained.once("table", lambda: runner.compared(trained, drawn, how))


def curve(
    runs: dict[str, runner.Trained[Diffusion]], config: Config, directory: Path
) -> list[Path]:
    """``guidance.png``: both measures over the weight; ``weights.png``: samples, a row a weight."""
    value = {number.name: number.value for number in table(runs, config)}
    lines = {
        name: np.array([value[f"{name}, {w:g}"] for w in config.weights])
        for name in ("class_agreement", "frechet_distance")
    }
    label, at = "weight of guidance", np.array(config.weights)
    shown = {w: drawn.x[:10] for w, drawn in runs["score_sde"].kept["rows"].items()}
    return [
        save_lines(directory / "guidance.png", at, lines, label),
        save_rows(directory / "weights.png", shown),
    ]


STUDY = runner.Study(
    "guidance",
    __doc__,
    {"digits": Config()},
    lambda config: {"score_sde": runner.Need(score_sde.EXPERIMENT)},
    pictures=(curve,),
    measures=(table,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
