"""Posterior collapse and its remedies: VAEs whose decoder can do without z.

python -m experiments.collapse                # trains five on digits, then tells them apart
python -m experiments.collapse --decoder pixelcnn  # a PixelCNN in place of a MADE
python -m experiments.collapse evaluate       # of the newest runs that fit
python -m experiments.collapse --data mnist --manual-dir DIR --train='--steps 20000'

The decoder of all makes an image pixel by pixel, each of z and of the pixels before it
(--model made or pixelcnn of experiments.vae), so that it can learn p(x) itself and leave z unused:
the bound is as good, and the codes tell nothing. The remedies are free bits (Kingma et al. 2016), a
KL whose weight rises once (Bowman et al. 2016) or in cycles (Fu et al. 2019), a posterior with a
committed rate (delta-VAE, Razavi et al. 2019), and a PixelCNN that sees little of what is before a
pixel (Chen et al. 2017). `collapse.png` shows the KL of each latent, `collapse-samples.png`
samples, and `reconstructions.png` what is made of the codes of test images.

Expect, on digits with seed 0 on two CPU cores, mutual information of z and x, and -ELBO: plain 0.15
and 22.1 nats; free bits 2.8, 22.4; warm-up 2.7, 22.4; cyclical 4.9, 22.8; committed rate 3.1, 22.3.
Of pixelcnn: plain 0.00, 22.4; free bits 1.8, 23.4; warm-up 1.8, 22.5; limited reach with a
warm-up 1.3, 23.2; and two that are no remedy by themselves in so short a training: committed rate
0.02, 23.1; limited reach 0.00, 23.8.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_rows
from jaxgen.systems.bounds import center
from jaxgen.systems.vae import (
    Vae,
    bound,
    collapse,
    log_likelihood,
    probe_of_means,
    use_of_latents,
)

from . import vae

Runs = dict[str, runner.Trained[Vae]]
# A large rate lets the decoder learn p(x) before z tells it anything.
STRONG = "--layers 2 --hidden 200 --latents 32 --learning-rate 3e-3"
DECODERS = {
    "made": "--model made --steps 6000",
    "pixelcnn": "--model pixelcnn --channels 16 --steps 1200 --batch 64 --steps-per-call 1",
}
REMEDIES = {
    "plain": "",
    "free bits": "--free-bits 0.1",
    "committed rate": "--posterior committed --committed-rate 0.02",
}
OF_DECODER = {
    "made": {"warm-up": "--kl-warmup 3000", "cyclical": "--kl-cycles 4"},
    "pixelcnn": {
        "warm-up": "--kl-warmup 600",
        "limited reach": "--reach 1",
        "limited reach, warm-up": "--reach 1 --kl-warmup 600",
    },
}
DRAWS = 64  # of p(x|z), of which a picture is the mean
COLUMNS = (
    "elbo",
    "log_likelihood",
    "kl",
    "mutual_information",
    "active_units",
    "probe_accuracy",
)


@dataclass(frozen=True)
class Config:
    """VAEs with and without a remedy."""

    data: runner.Data = field(default_factory=runner.Data)
    sampling: runner.Sampling = field(default_factory=lambda: runner.Sampling(100, 100))
    decoder: str = "made"  # made or pixelcnn.


def needs(config: Config) -> dict[str, runner.Need]:
    """A VAE for each remedy that the decoder has."""
    decoder = runner.choose("decoder", config.decoder, DECODERS)
    return {
        name: runner.Need(vae.EXPERIMENT, f"{STRONG} {decoder} {options}")
        for name, options in (REMEDIES | OF_DECODER[config.decoder]).items()
    }


def table(runs: Runs, config: Config) -> list[Number]:
    """Bound, likelihood, and what z tells of x, of every run."""
    found = {
        (number.name, name): number
        for name, trained in runs.items()
        for measure in (bound, log_likelihood, use_of_latents, probe_of_means)
        for number in measure(trained)
    }
    return [
        Number(f"{column}, {name}", found[column, name].value, found[column, name].protocol)
        for column in COLUMNS
        for name in runs
        if (column, name) in found
    ]


def latents(runs: Runs, config: Config, directory: Path) -> list[Path]:
    """``collapse.png`` and ``collapse-samples.png``."""
    return collapse(runs, directory)


def reconstructions(runs: Runs, config: Config, directory: Path) -> Path:
    """``reconstructions.png``: test images, and under them E[x|mean of z] by draws, a row a run.

    A decoder without z answers all of them with one picture.
    """
    rows: dict[str, np.ndarray] = {}
    for name, trained in runs.items():
        system = trained.system

        def look(weights: Any, key: Array, batch: Any, system: Vae = system) -> tuple[Array, Array]:
            key_x, key_z, key_drawn = jax.random.split(key, 3)
            x = system.prepare(key_x, batch["x"])
            model = system.model(weights.params, batch["label"])
            p_x = model.decode(center(key_z, model.encode(x)))
            drawn = jax.lax.map(p_x.sample, jax.random.split(key_drawn, DRAWS))
            return system.shown(x), system.shown(drawn.mean(axis=0))

        x, mean = trained.over("reconstructions", look, trained.test(10), key=1)
        rows.setdefault("test", x)
        rows[name] = mean
    return save_rows(directory / "reconstructions.png", rows)


STUDY = runner.Study(
    "collapse",
    __doc__,
    {"digits": Config()},
    needs,
    pictures=(latents, reconstructions),
    measures=(table,),
)

if __name__ == "__main__":
    raise SystemExit(runner.main(STUDY))
