"""Data sets by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxgen.data import images, pairs, prepared, text, toy
from jaxgen.data.records import Arrays, DataError, DataSet, Points

PLACES = ("folder:PATH", "text:PATH", "pairs:PATH", "domains:PATH", "hf:NAME_OR_PATH")


def load(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
    length: int = 128,
) -> DataSet:
    """Loads a data set by name.

    Args:
      name: ``digits``, a toy density (``8gaussians``, ``moons``, ``swissroll``, ``checkerboard``),
        ``folder:PATH`` of images, ``text:PATH``, ``pairs:PATH`` and ``domains:PATH`` of pictures to
        translate, ``hf:NAME_OR_PATH`` for the library datasets, or the name of any image set of
        tensorflow-datasets.
      data_dir: where tensorflow-datasets keeps prepared data (``~/tensorflow_datasets``).
      manual_dir: a folder with a set's original files; ``mnist``, ``fashion_mnist`` and ``cifar10``
        are read straight from them.
      image_size: crops images to squares and resizes them; needed where sizes differ.
      length: of the windows of a text, in bytes.

    Raises:
      DataError: in one sentence, for an unknown name (with the nearest ones), data that is not
        prepared, a missing or corrupt file (which one), or images that differ in size.
    """
    prefix, colon, place = name.partition(":")
    path = Path(place).expanduser()
    match prefix if colon else None:
        case "folder":
            return images.folder(name, path, image_size)
        case "text":
            return text.text(name, path, length)
        case "pairs":
            return pairs.pairs(name, path, image_size)
        case "domains":
            return pairs.domains(name, path, image_size)
        case "hf":
            return prepared.of_hugging_face(name, place, image_size, length)
    if name == "digits":
        return images.digits()
    if name in toy.DENSITIES:
        return _toy(name)
    if name in images.ORIGINALS and manual_dir:
        return images.original(name, Path(manual_dir), image_size)
    known, base = prepared.names(data_dir), prefix.split("/")[0]
    if base not in known:
        known = ["digits", *toy.DENSITIES, *PLACES, *known]
        instead = f"choose {', '.join(known[:10])}, or an image set of tensorflow-datasets"
        raise DataError(f"unknown data set '{name}'{did_you_mean(base, known, instead)}")
    return prepared.of_tensorflow(name, data_dir, manual_dir, image_size)


SCALE = 4.0  # toy densities as data: points in [-4, 4]^2, as flows and diffusion mostly see them


def _toy(name: str) -> DataSet:
    density = toy.DENSITIES[name].scaled(SCALE)

    def draw(seed: int, n: int) -> Arrays:
        x = density.sample(np.random.default_rng(seed), n)
        return Arrays({"x": x, "label": np.zeros(n, np.int32)})

    return DataSet(
        name,
        Points((2,)),
        train=draw(0, 50_000),
        validation=draw(2, 5_000),
        test=draw(1, 10_000),
        log_prob=density.log_prob,
        modes=density.modes,
    )


def did_you_mean(name: str, known: Iterable[str], instead: str | None = None) -> str:
    """A sentence's end: the names nearest to a wrong one, else ``instead``, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": {instead or 'choose one of ' + ', '.join(known)}."
