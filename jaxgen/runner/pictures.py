"""Pictures of a run that any system has, by the kind of its data."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from jaxgen.data.records import Image, Tokens, some
from jaxgen.plotting import save_grid, save_points
from jaxgen.runner.trained import Trained

SHOWN = 2000  # points of a cloud


def columns(trained: Trained) -> int:
    """Of a grid of samples: one a class, where samples are drawn for classes."""
    return trained.data.classes if trained.system.labelled and trained.data.classes <= 20 else 10


def samples(trained: Trained) -> Path:
    """``samples.png``: a grid of images, or points beside those of the data; ``samples.txt``."""
    kind, directory = trained.data.kind, trained.directory
    if isinstance(kind, Image):
        wide = columns(trained)
        return save_grid(directory / "samples.png", trained.draw(10 * wide), wide)
    if isinstance(kind, Tokens):
        path = directory / "samples.txt"
        texts = [kind.decode(x) for x in np.asarray(trained.draw(10))]
        path.write_text(("\n\n" + "-" * 40 + "\n\n").join(texts) + "\n")
        return path
    x = trained.draw(SHOWN)
    real = some(trained.data.test, SHOWN)
    if x.ndim == 3:  # sets of points: all of them at once
        x, real = x[trained.data.given(len(x))["mask"]], {"x": real["x"][real["mask"]]}
    return save_points(directory / "samples.png", {"data": real["x"], "samples": x})
