"""Pictures to translate: paired, or of two domains."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxgen.data.images import (
    Picture,
    common_shape,
    from_files,
    image_set,
    images_below,
    in_memory,
    read_all,
    split_folders,
    three_parts,
)
from jaxgen.data.records import DataError, DataSet, Image, conditions_of, product

ASKED = ("y", "label")  # what is sampled for: pictures y of the validation set


def _pictures(root: Path, half: int | None = None) -> list[Picture]:
    return [Picture(root / path, half) for path in images_below(root)]


def _shape(sets: Sequence[Sequence[Picture]], image_size: int | None) -> tuple[int, int, int]:
    return common_shape((p.header() for pictures in sets for p in pictures), image_size)


def _two_folders(root: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    a, b = split_folders(root, "A"), split_folders(root, "B")
    for found, folder in ((a, "trainA"), (b, "trainB")):
        if "train" not in found:
            raise DataError(f"{root} has no folder {folder}.")
    return a, b


def _matched(a: Path, b: Path) -> dict[str, list[Picture]]:
    """The pictures of two folders, in pairs of the same stem."""
    x, y = ({path.with_suffix(""): root / path for path in images_below(root)} for root in (a, b))
    if alone := sorted(x.keys() ^ y.keys()):
        path, other = (x[alone[0]], b) if alone[0] in x else (y[alone[0]], a)
        raise DataError(f"{path} has no partner of the same name in {other}.")
    return {"x": [Picture(p) for p in x.values()], "y": [Picture(y[stem]) for stem in x]}


def pairs(name: str, root: Path, image_size: int | None) -> DataSet:
    """Paired pictures, ``x`` and ``y``, uint8 ``[H, W, C]`` both.

    They are in folders ``trainA`` and ``trainB``, with the same file stems, or side by side in one
    picture, in ``train`` or in ``root`` itself; so for ``test`` and ``val``, if these are there.

    Raises:
      DataError: for a picture without a partner or of another size, and corrupt ones.
    """
    if split_folders(root, "A"):
        a, b = _two_folders(root)
        if alone := sorted(a.keys() ^ b.keys()):
            raise DataError(f"of {alone[0]}A and {alone[0]}B {root} has only one.")
        splits = {split: _matched(a[split], b[split]) for split in a}
    else:
        folders = split_folders(root)
        folders = folders if "train" in folders else {"train": root}
        splits = {
            split: {"x": _pictures(place, half=0), "y": _pictures(place, half=1)}
            for split, place in folders.items()
        }
    shape = _shape([p for columns in splits.values() for p in columns.values()], image_size)
    sources = {s: in_memory(from_files(columns, shape)) for s, columns in splits.items()}
    return image_set(name, sources, shape, ask=ASKED)


def domains(name: str, root: Path, image_size: int | None) -> DataSet:
    """Unpaired pictures: any ``x`` of ``trainA`` with any ``y`` of ``trainB``; so for testing.

    Raises:
      DataError: if a folder is missing, or pictures are corrupt or differ in size.
    """
    sides = [
        {split: _pictures(place) for split, place in folders.items()}
        for folders in _two_folders(root)
    ]
    shape = _shape([pictures for side in sides for pictures in side.values()], image_size)
    parts: list[Any] = [  # as arrays, however many, which a product is made of
        three_parts({s: read_all(from_files({"x": p}, shape)) for s, p in side.items()})
        for side in sides
    ]
    train, validation, test = (product(x, y) for x, y in zip(*parts, strict=True))
    ask = partial(conditions_of, validation, ASKED)
    return DataSet(name, Image(shape), train, validation, test, ask=ask)
