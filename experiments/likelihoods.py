"""One table over the families: likelihood, quality of samples, and speed.

python -m experiments.likelihoods                                   # digits, 17 levels
python -m experiments.likelihoods --data binarized_mnist --manual-dir DIR
python -m experiments.likelihoods --families MADE VAE DDPM          # some of them
python -m experiments.likelihoods evaluate                          # of the newest runs that fit

What is lacking is trained first. `likelihoods.md` is the table as a page, `trade-off.png` its
picture, and `samples.png` a row of samples of each. All see the same test images; a likelihood is
exact, a bound, or an estimate, and which it is stands beside it.

Expect, on digits with seed 0: 40 minutes on two CPU cores beside other work. On binarized MNIST:
four and a half hours of one core to train them all (two of these for the gated PixelCNN), one and a
half to measure. README has both tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen import runner
from jaxgen.evaluation.report import Number
from jaxgen.files import replacing
from jaxgen.plotting import save_named_points, save_rows
from jaxgen.systems import autoregressive, diffusion, flow, hvae, language, tokens
from jaxgen.systems import vae as variational
from jaxgen.systems.autoregressive import TIMED, seconds_to_draw

from . import d3pm, ddpm, gpt, made, pixelcnn, vae
from . import flow as flows
from . import hvae as hierarchical

Run = runner.Trained[Any]
Runs = dict[str, Run]
SHOWN = 20  # samples in a row
# What a likelihood is, and the measure and its number that tells it.
Found = Mapping[str, tuple[Callable[[Run], list[Number]], str]]
EXACT: Found = {"exact": (autoregressive.likelihood, "log_likelihood")}
ESTIMATED: Found = {
    "bound": (variational.bound, "elbo"),
    "estimate": (variational.log_likelihood, "log_likelihood"),
}


@dataclass(frozen=True)
class Family:
    """A run of a family, what tells its likelihood, and its passes through the network a draw."""

    experiment: runner.Experiment
    levels: str  # options for images of levels
    bits: str  # for images of bits, of 2 to 20 minutes on a core, or as its preset has it
    found: Found
    passes: Callable[[Run], int]


def entries(run: Run) -> int:
    """A pass for each entry of x."""
    return math.prod(run.data.shape)


def once(run: Run) -> int:
    """One pass."""
    return 1


SHORT = "--batch 8 --steps 700"
SAMPLED = "--importance-samples 1000"  # of each of all test images
FAMILIES = {
    "FVBN": Family(
        made.EXPERIMENT,
        "--model fvbn --likelihood softmax",
        "--model fvbn --steps 4000 --learning-rate 1e-2",
        EXACT,
        entries,
    ),
    "NADE": Family(
        made.EXPERIMENT,
        "--model nade --likelihood softmax",
        "--preset binarized_mnist_nade",
        EXACT,
        entries,
    ),
    "MADE": Family(made.EXPERIMENT, "--likelihood softmax", "", EXACT, entries),
    "PixelCNN": Family(
        pixelcnn.EXPERIMENT,
        "--model plain --likelihood softmax",
        "--model plain --steps 12000",
        EXACT,
        entries,
    ),
    "GatedPixelCNN": Family(pixelcnn.EXPERIMENT, "--likelihood softmax", "", EXACT, entries),
    "PixelCNN++": Family(
        pixelcnn.EXPERIMENT,
        "--model plusplus --likelihood softmax --layers 1 --width 24 --steps 600"
        " --learning-rate 2e-3 --decay cosine",
        "--model plusplus --layers 1 --width 24 --steps 2000",
        EXACT,
        entries,
    ),
    "Transformer": Family(
        gpt.EXPERIMENT,
        "--pixels levels",
        f"{SHORT} --width 64 --layers 3",
        {"exact": (language.bits, "log_likelihood")},
        entries,
    ),
    "VAE": Family(vae.EXPERIMENT, "--likelihood logistic", SAMPLED, ESTIMATED, once),
    "IWAE": Family(
        vae.EXPERIMENT,
        "--likelihood logistic --objective iwae --latent-samples 10",
        f"{SAMPLED} --objective iwae --latent-samples 10 --steps 12000",
        ESTIMATED,
        once,
    ),
    "VampPrior": Family(
        vae.EXPERIMENT,
        "--likelihood logistic --prior vamp",
        f"{SAMPLED} --prior vamp --steps 40000",
        ESTIMATED,
        once,
    ),
    "HVAE": Family(
        hierarchical.EXPERIMENT,
        "--likelihood logistic_mixture",
        f"{SAMPLED} --likelihood-images 10000 --steps 20000 --kl-warmup 2000",
        {"bound": (hvae.bound, "elbo"), "estimate": (hvae.log_likelihood, "log_likelihood")},
        once,
    ),
    "Flow": Family(
        flows.EXPERIMENT,
        "--dequantization variational",
        "--preset mnist --dequantization variational --width 64 --batch 32 --steps 1200",
        {"bound": (flow.likelihood, "elbo"), "estimate": (flow.likelihood, "log_likelihood")},
        once,
    ),
    "MaskedDiffusion": Family(
        d3pm.EXPERIMENT,
        "--pixels levels",
        f"{SHORT} --width 64 --layers 3 --bound-draws 1 --sample-steps 49",
        {"bound": (tokens.bits, "elbo")},
        lambda run: run.system.evaluations,
    ),
    "DDPM": Family(
        ddpm.EXPERIMENT,
        "--variance learned",
        "--preset digits --variance learned --batch 32 --steps 1000 --bound-images 20",
        {
            "bound": (diffusion.likelihoods, "bits_per_dimension"),
            "estimate": (diffusion.likelihoods, "ode_bits_per_dimension"),
        },
        lambda run: len(run.system.times) - 1,
    ),
}
KINDS = ("exact", "bound", "estimate")


@dataclass(frozen=True)
class Config:
    """Families side by side."""

    data: runner.Data = field(default_factory=runner.Data)
    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(500, 100))
    families: tuple[str, ...] = tuple(FAMILIES)  # Which of them.


def needs(config: Config) -> dict[str, runner.Need]:
    """A run of each family."""
    binary = config.data.data == "binarized_mnist"
    chosen = {
        runner.choose("family", name, tuple(FAMILIES)): FAMILIES[name] for name in config.families
    }
    return {
        name: runner.Need(family.experiment, family.bits if binary else family.levels)
        for name, family in chosen.items()
    }


def rows_of(runs: Runs) -> dict[str, dict[str, Number]]:
    """What stands in the row of each family, by the column; measured once."""
    return {
        name: run.once("row", lambda name=name, run=run: measured(FAMILIES[name], run))
        for name, run in runs.items()
    }


def measured(family: Family, run: Run) -> dict[str, Number]:
    """The row of a family."""
    size, row = math.prod(run.data.shape), {}
    measures = {measure for measure, _ in family.found.values()}  # one may tell both numbers
    of_measure = {measure: measure(run) for measure in measures}
    for kind, (measure, wanted) in family.found.items():
        (number,) = [n for n in of_measure[measure] if n.name == wanted]
        nats = number.value if "bits" not in wanted else -number.value * size * math.log(2)
        value = nats if run.data.levels == 2 else -nats / (size * math.log(2))
        protocol = number.protocol.removeprefix("nats an example, ")
        row[kind] = replace(number, value=value, protocol=f"{unit(run)}, {protocol}")
    compared = runner.compared(run, {run.directory.name: run.samples()}, run.how)
    (distance,) = [n for n in compared if n.name.startswith("frechet_distance")]
    seconds, worked = run.seconds
    passes = family.passes(run)
    row["frechet distance"] = distance
    row["seconds to draw 100"] = Number("", seconds_to_draw(run, TIMED), "at once, by the clock")
    how = "at most, through the network that draws"  # bits that are settled end it sooner
    row["passes a draw"] = Number("", passes, how)
    row["parameters"] = Number("", run.parameters, "of all networks")
    row["training seconds"] = Number("", seconds, f"by the clock; of the processor {worked:.0f}")
    return row


def table(runs: Runs, config: Config) -> list[Number]:
    """Every column of every family."""
    rows = rows_of(runs)
    columns = list(dict.fromkeys([*KINDS, *(c for row in rows.values() for c in row)]))
    return [
        replace(rows[name][column], name=f"{column}, {name}")
        for column in columns
        for name in rows
        if column in rows[name]
    ]


# --- pictures ------------------------------------------------------------------------------------


def unit(run: Run) -> str:
    """Of likelihoods."""
    return "log p(x) in nats" if run.data.levels == 2 else "bits a dimension"


def best(row: Mapping[str, Number]) -> tuple[str, float]:
    """The kind of likelihood that says most, and its value."""
    kind = next(kind for kind in ("exact", "estimate", "bound") if kind in row)
    return kind, row[kind].value


def trade_off(runs: Runs, config: Config, directory: Path) -> Path:
    """``trade-off.png``: likelihood and distance of samples, coloured by the time to draw."""
    rows = rows_of(runs)
    points = {
        f"{name} ({best(row)[0]})": (
            best(row)[1],
            row["frechet distance"].value,
            row["seconds to draw 100"].value,
        )
        for name, row in rows.items()
    }
    labels = unit(next(iter(runs.values()))), "Frechet distance", "seconds to draw 100"
    return save_named_points(directory / "trade-off.png", points, labels)


def samples(runs: Runs, config: Config, directory: Path) -> Path:
    """``samples.png``: test images, and a row of samples of each family."""
    first = next(iter(runs.values()))
    rows = {"test": np.asarray(first.data.kind.values(first.test(SHOWN)["x"]))}
    rows |= {name: run.draw(SHOWN) for name, run in runs.items()}
    return save_rows(directory / "samples.png", rows)


def page(runs: Runs, config: Config, directory: Path) -> Path:
    """``likelihoods.md``: the table, the better likelihoods first."""
    first = next(iter(runs.values()))
    rows = rows_of(runs)
    sign = -1 if first.data.levels == 2 else 1
    order = sorted(rows, key=lambda name: sign * best(rows[name])[1])
    columns = [*KINDS, *(c for c in rows[order[0]] if c not in KINDS)]
    shown = lambda row, c: f"{row[c].value:.4g}" if c in row else ""  # noqa: E731
    lines = [
        f"# Likelihoods of {first.data.name}, in {unit(first)}",
        "",
        f"| family | {' | '.join(columns)} |",
        "| --- " * (1 + len(columns)) + "|",
        *(f"| {n} | {' | '.join(shown(rows[n], c) for c in columns)} |" for n in order),
        "",
        "![Likelihood against the distance of samples](trade-off.png)",
        "",
        "![Samples of each family](samples.png)",
    ]
    path = directory / "likelihoods.md"
    with replacing(path) as file:
        file.write(("\n".join(lines) + "\n").encode())
    return path


STUDY = runner.Study(
    "likelihoods",
    __doc__,
    {"digits": Config(), "binarized_mnist": Config()},
    needs,
    pictures=(trade_off, samples, page),
    measures=(table,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
