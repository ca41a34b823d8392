"""Which GANs converge, where it can be seen: the Dirac-GAN (Mescheder et al. 2018).

python -m experiments.dirac                # writes runs/dirac.png
python -m experiments.dirac --out FOLDER

Data are the point 0, samples the point theta, the critic is psi x. `dirac.png` shows where both
players would go from every (theta, psi), and the path of descent in turns from (1, 0.5): minimax
and WGAN go in circles, log D in a slow spiral, WGAN-GP on a cycle of its own; the R1 penalty and
instance noise come to (0, 0). It needs no run and takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.evaluation.dirac import DiracGan
from jaxgen.losses import penalties
from jaxgen.losses.adversarial import (
    MINIMAX,
    NON_SATURATING,
    WASSERSTEIN,
    discriminator_loss,
    relativistic_average,
)
from jaxgen.plotting import save_fields

GAMES = {
    "minimax": DiracGan(MINIMAX),
    "log D": DiracGan(NON_SATURATING),
    "relativistic": DiracGan(relativistic_average(discriminator_loss)),
    "WGAN": DiracGan(WASSERSTEIN),
    "WGAN-GP": DiracGan(WASSERSTEIN, penalties.wgan_gp, 0.3),
    "log D, R1": DiracGan(NON_SATURATING, penalties.r1, 0.4),
    "log D, instance noise": DiracGan(NON_SATURATING, noise=0.9),
    "WGAN, R1": DiracGan(WASSERSTEIN, penalties.r1, 0.4),
}
START = (1.0, 0.5)
HALF = 1.8  # of the square that is shown


def draw(directory: Path) -> Path:
    """``dirac.png``: the fields of all games and a path in each."""
    at = np.linspace(-HALF, HALF, 17)
    grid = np.stack(np.meshgrid(at, at), axis=-1)  # [y, x] -> (theta, psi)

    @jax.jit
    def fields_and_paths(grid: jax.Array) -> dict:
        return {
            name: (
                jax.vmap(jax.vmap(game.field))(grid),
                game.path(jnp.asarray(START), 0.05, 600),
            )
            for name, game in GAMES.items()
        }

    panels = jax.tree.map(np.asarray, fields_and_paths(jnp.asarray(grid, jnp.float32)))
    return save_fields(
        directory / "dirac.png", {name: panels[name] for name in GAMES}, HALF, ("theta", "psi")
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m experiments.dirac", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("runs"), help="the folder to write to")
    folder = parser.parse_args().out
    from jaxgen.runner.folders import Mistake, check_out  # which takes longer than the help

    try:
        check_out(folder)
    except Mistake as mistake:
        parser.error(str(mistake))
    folder.mkdir(parents=True, exist_ok=True)
    print(draw(folder))
