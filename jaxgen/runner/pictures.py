"""Pictures of a run that any system has, by the kind of its data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxgen.data.records import Image, Tokens, some, to_bytes
from jaxgen.files import replacing
from jaxgen.plotting import save_density, save_grid, save_points
from jaxgen.runner.trained import Trained

SHOWN = 2000  # points of a cloud
HALF = 4.8  # of the square on which densities are drawn


def columns(trained: Trained) -> int:
    """Of a grid of samples: one a class, where samples are drawn for classes."""
    return trained.data.classes if trained.system.labelled and trained.data.classes <= 20 else 10


def samples(trained: Trained) -> list[Path]:
    """``samples.png``: a grid of images, or points beside those of the data; ``samples.txt``; and
    ``samples.npz`` with all that were drawn, ``x`` (images uint8 0..255), and their conditions."""
    kind, x = trained.data.kind, trained.draw()
    given = trained.data.given(len(x))
    table = trained.results / "samples.npz"
    with replacing(table) as file:
        np.savez_compressed(file, x=to_bytes(x) if isinstance(kind, Image) else x, **given)
    if isinstance(kind, Image):
        wide = columns(trained)
        return [save_grid(trained.results / "samples.png", x[: 10 * wide], wide), table]
    if isinstance(kind, Tokens):
        texts = [kind.decode(tokens) for tokens in np.asarray(x[:10])]
        return [save_texts(trained.results / "samples.txt", texts), table]
    x, real = x[:SHOWN], some(trained.data.test, SHOWN)
    if x.ndim == 3:  # sets of points: all of them at once
        x, real = x[given["mask"][:SHOWN]], {"x": real["x"][real["mask"]]}
    clouds = {"data": real["x"], "samples": x}
    return [save_points(trained.results / "samples.png", clouds), table]


def save_texts(path: Path, texts: list[str]) -> Path:
    """Writes texts with lines between them."""
    with replacing(path) as file:
        file.write((("\n\n" + "-" * 40 + "\n\n").join(texts) + "\n").encode())
    return path


def densities(trained: Trained, log_prob: Callable[[np.ndarray], Any]) -> list[Path]:
    """``density.png``: of points in the plane, by ``log_prob [N, 2] -> [N]``, beside the data's."""
    if trained.data.shape != (2,):
        return []
    side = np.linspace(-HALF, HALF, 64, dtype=np.float32)
    x = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)
    panels = {}
    if trained.data.log_prob is not None:
        panels["data"] = np.exp(trained.data.log_prob(jnp.asarray(x)))
    panels["model"] = np.exp(log_prob(x))
    panels = {name: np.asarray(p).reshape(len(side), len(side)) for name, p in panels.items()}
    return [save_density(trained.results / "density.png", panels, HALF)]
