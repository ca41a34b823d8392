"""Pictures of a run that any system has, by the modality of its data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.files import replacing
from jaxgen.plotting import save_density
from jaxgen.runner.captions import Plot
from jaxgen.runner.modalities import NoArray, as_saved, draw_samples
from jaxgen.runner.trained import Samples, Trained
from jaxgen.training.logging import console

HALF = 4.8  # of the square on which densities are drawn


def samples(trained: Trained) -> list[Plot]:
    """``samples.png``: a grid of images, or points beside those of the data; ``samples.txt``; and
    ``samples.npz`` with all that were drawn, ``x`` (images uint8 0..255), and their conditions."""
    kind, drawn = trained.data.kind, trained.samples()
    table = trained.results / "samples.npz"
    arrays: dict[str, Any] = arrays_of(kind, drawn)
    with replacing(table) as file:
        np.savez_compressed(file, **arrays)
    count = len(jax.tree.leaves(drawn.x)[0])
    about = f"samples of a model of {trained.data.name} ({trained.how})"
    kept = Plot(table, "Samples", f"All {count} {about}, and their conditions.")
    try:
        pictures = draw_samples(kind, trained, drawn)
    except NoArray as error:
        console.print(f"samples are not drawn: {error}")
        return [kept]
    return [*(Plot(path, "Samples", f"Of {count} {about}.") for path in pictures), kept]


def arrays_of(kind: Any, drawn: Samples) -> dict[str, np.ndarray]:
    """Samples and conditions by their names, an array within a dict of a dict as ``outer/inner``; a
    condition with a name that is taken is told by ``condition/``."""
    x = named(drawn.x) if isinstance(drawn.x, Mapping) else {"x": drawn.x}
    if "x" in x:
        x["x"] = as_saved(kind, x["x"])
    taken = x.keys() | {"file", "allow_pickle"}  # of what was drawn, and of NumPy's function
    name_of = lambda name: f"condition/{name}" if name in taken else name  # noqa: E731
    return x | {name_of(name): value for name, value in named(drawn.given).items()}


def named(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree by their paths in it."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in leaves}


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
