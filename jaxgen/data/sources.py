"""Data sets by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from jaxgen.data import folders, images, pairs, prepared, text, toy
from jaxgen.data.records import Arrays, DataError, DataSet, Points, did_you_mean

FILES = ("folder", "text", "pairs", "domains")  # of a path, known by their contents
PLACES = (*(f"{kind}:PATH" for kind in FILES), "hf:NAME_OR_PATH")


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
      name: ``digits``, ``python_topics`` (the language reference of Python, a text), a toy density
        (``8gaussians``, ``25gaussians``, ``ring``, ``moons``, ``swissroll``, ``checkerboard``),
        ``folder:PATH`` of images, ``text:PATH``, ``pairs:PATH`` and ``domains:PATH`` of pictures to
        translate, ``hf:NAME_OR_PATH`` for the library datasets, or the name of any set of images or
        text of tensorflow-datasets.
      data_dir: where tensorflow-datasets keeps prepared data (``~/tensorflow_datasets``).
      manual_dir: a folder with a set's original files; ``mnist``, ``fashion_mnist``,
        ``binarized_mnist``, ``cifar10`` and ``tiny_shakespeare`` are read straight from them.
      image_size: crops images to squares and resizes them; needed where sizes differ.
      length: of the windows of a text, in bytes.

    Raises:
      DataError: in one sentence, for an unknown name (with the nearest ones), data that is not
        prepared, a missing or corrupt file (which one), or images that differ in size.
    """
    prefix, colon, place = name.partition(":")
    if colon and not place:
        raise DataError(f"'{name}' names no place: write {prefix}:PATH.")
    if image_size and (what := _of_one_size(name)):
        raise DataError(f"{what}: leave out --image-size.")
    path = Path(place).expanduser()
    match prefix if colon else None:
        case "folder":
            return folders.folder(name, path, image_size)
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
    if name == "python_topics":
        return text.python_topics(length)
    if name in toy.DENSITIES:
        return _toy(name)
    if name in images.ORIGINALS and manual_dir:
        return images.original(name, Path(manual_dir), image_size)
    if name in text.ORIGINALS and manual_dir:
        return text.original(name, Path(manual_dir), length)
    known = prepared.names(data_dir)
    # after a colon a version, not the name of a namespace that sets are fetched from
    if prefix.split("/")[0] not in known or not re.fullmatch(r"[\d.*]*", place):
        raise DataError(_misnamed(name, known))
    return prepared.of_tensorflow(name, data_dir, manual_dir, image_size, length)


def _of_one_size(name: str) -> str | None:
    """What a set is whose examples cannot be resized."""
    if name == "digits":
        return "digits are 8x8"
    if name in toy.DENSITIES:
        return f"{name} is points"
    texts = name.startswith("text:") or name in ("python_topics", *text.ORIGINALS)
    return f"{name} is text" if texts else None


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


def _misnamed(name: str, known: Iterable[str]) -> str:
    """A sentence about a name that is no data set's: the path that it is, or the nearest names."""
    path = Path(name).expanduser()
    if path.is_dir():
        return f"'{name}' is a folder: write {' or '.join(_readable_as(path))}."
    if path.is_file():
        return f"'{name}' is a file: write text:{name} if it is text to model."
    base = name.partition(":")[0].split("/")[0]
    ours = ["digits", *toy.DENSITIES, "python_topics", *PLACES]
    known = [*ours, *known]
    if "/" in name and not (base and difflib.get_close_matches(base, known)):
        near = folders.nearest(path)
        instead = f"did you mean folder:{near}?" if near else f"write folder:{name} once it is."
        return f"'{name}' is not there: {instead}"
    instead = f"choose {', '.join(ours)}, or an image set or text of tensorflow-datasets"
    return f"unknown data set '{name}'{did_you_mean(base, known, instead)}"


def _readable_as(path: Path) -> list[str]:
    """The names of the data sets that a folder can be read as."""
    below = {entry.name.lower() for entry in path.iterdir()}
    if {"traina", "trainb"} <= below:
        return [f"pairs:{path}", f"domains:{path}"]
    texts = any(entry.endswith(".txt") for entry in below)
    return [f"text:{path}", f"folder:{path}"] if texts else [f"folder:{path}"]
