"""What is drawn and measured of samples, by the modality of the data: the place that lists all.

A modality of a user's own is a class like those of :mod:`jaxgen.data.records`; its picture and its
metrics are registered beside these, ``draw_samples.register(Molecule, draw_molecules)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import singledispatch
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data.records import Image, Points, Tokens, some, to_bytes
from jaxgen.evaluation.points import mask_or_all, point_numbers, point_set_numbers
from jaxgen.evaluation.report import Number, sample_numbers
from jaxgen.files import replacing
from jaxgen.plotting import save_grid, save_points
from jaxgen.runner.trained import Samples, Trained
from jaxgen.training.logging import console

SHOWN = 2000  # points of a cloud


class NoArray(ValueError):
    """Raised where a modality finds no array among those of a sample that it could show."""


def array_of(samples: Samples) -> np.ndarray:
    """What stands for the ``x`` of the data: of several arrays the one of that name.

    Raises:
      NoArray: if there is none.
    """
    if not isinstance(samples.x, Mapping):
        return samples.x
    if "x" not in samples.x:
        raise NoArray(
            f"none of {', '.join(samples.x)} is called x, as in the data: call one so, or register "
            "draw_samples and measure_samples for a modality of your own."
        )
    return samples.x["x"]


def mask_of(samples: Samples) -> np.ndarray:
    """Which points of sets are there: by a ``mask`` that was drawn or asked for, else all."""
    drawn = samples.x if isinstance(samples.x, Mapping) else {}
    return mask_or_all(array_of(samples), drawn.get("mask", samples.given.get("mask")))


def columns(trained: Trained) -> int:
    """Of a grid of samples: one a class, where samples are drawn for classes."""
    return trained.data.classes if trained.system.labelled and trained.data.classes <= 20 else 10


@singledispatch
def as_saved(kind: Any, x: np.ndarray) -> np.ndarray:
    """Samples as files hold them: images as bytes, all others as they are."""
    return x


@singledispatch
def draw_samples(kind: Any, trained: Trained, samples: Samples) -> list[Path]:
    """The picture of samples of a modality; none where there is no way to draw it."""
    return []


@singledispatch
def measure_samples(kind: Any, trained: Trained, samples: Samples) -> list[Number]:
    """What samples of a modality are worth beside data."""
    console.print(f"no metrics of samples are known for {kind.noun}: register them, or measure.")
    return []


@as_saved.register(Image)
def _(kind: Image, x: np.ndarray) -> np.ndarray:
    return to_bytes(x)


@draw_samples.register(Image)
def _(kind: Image, trained: Trained, samples: Samples) -> list[Path]:
    wide = columns(trained)
    return [save_grid(trained.results / "samples.png", array_of(samples)[: 10 * wide], wide)]


@measure_samples.register(Image)
def _(kind: Image, trained: Trained, samples: Samples) -> list[Number]:
    labels = samples.labels if trained.system.labelled else None
    data, x = trained.system.likened(), array_of(samples)
    return sample_numbers(data, trained.features, x, labels, trained.how)


@draw_samples.register(Tokens)
def _(kind: Tokens, trained: Trained, samples: Samples) -> list[Path]:
    texts = [kind.decode(tokens) for tokens in np.asarray(array_of(samples)[:10])]
    return [save_texts(trained.results / "samples.txt", texts)]


@measure_samples.register(Tokens)
def _(kind: Tokens, trained: Trained, samples: Samples) -> list[Number]:
    return []  # a text is measured by its likelihood


@draw_samples.register(Points)
def _(kind: Points, trained: Trained, samples: Samples) -> list[Path]:
    x, real = array_of(samples)[:SHOWN], some(trained.data.test, SHOWN)
    data = real["x"]
    if x.ndim == 3:  # sets of points: all of them at once
        x = x[mask_of(samples)[:SHOWN]]
        data = data[mask_or_all(data, real.get("mask"))]
    return [save_points(trained.results / "samples.png", in_plane({"data": data, "samples": x}))]


@measure_samples.register(Points)
def _(kind: Points, trained: Trained, samples: Samples) -> list[Number]:
    data, x = trained.system.likened(), array_of(samples)
    if x.ndim == 2:
        return point_numbers(data, x, trained.how)
    return point_set_numbers(data, x, mask_of(samples), trained.how)


def in_plane(clouds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Clouds ``[n, D]`` as they are where D is 2; of more dimensions along the two in which the
    first cloud is widest, of one against zeros."""
    first = next(iter(clouds.values()))
    if first.shape[1] == 2:
        return clouds
    if first.shape[1] == 1:
        return {name: np.pad(x, ((0, 0), (0, 1))) for name, x in clouds.items()}
    mean = first.mean(axis=0)
    _, _, axes = np.linalg.svd(first - mean, full_matrices=False)
    return {name: (x - mean) @ axes[:2].T for name, x in clouds.items()}


def save_texts(path: Path, texts: list[str]) -> Path:
    """Writes texts with lines between them."""
    with replacing(path) as file:
        file.write((("\n\n" + "-" * 40 + "\n\n").join(texts) + "\n").encode())
    return path
