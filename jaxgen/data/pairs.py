"""Pictures to translate: paired, or of two domains."""

from __future__ import annotations

import posixpath
from functools import partial
from pathlib import Path

import numpy as np

from jaxgen.data.folders import (
    Listing,
    album,
    layout,
    list_pictures,
    split_folders,
    told,
    within,
)
from jaxgen.data.images import Lazy, image_set, three_parts
from jaxgen.data.pictures import Picture, one_form
from jaxgen.data.records import (
    Arrays,
    Batch,
    DataError,
    DataSet,
    Image,
    Source,
    conditions_of,
    product,
)

ASKED = ("y", "label")  # what is sampled for: pictures y of the validation set


def _pictures(listing: Listing, folder: str, half: int | None = None) -> list[Picture]:
    return [Picture(name, half) for name in listing.inside(folder)]


def _two_folders(listing: Listing) -> tuple[dict[str, str], dict[str, str]]:
    a, b = split_folders(listing, "A"), split_folders(listing, "B")
    for found, folder in ((a, "trainA"), (b, "trainB")):
        if "train" not in found:
            raise DataError(f"{listing.root} has no folder {folder}.")
    return a, b


def _by_stem(listing: Listing, folder: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for name in listing.inside(folder):
        stem = one_form(posixpath.splitext(within(name, folder))[0])
        if stem in found:
            both = f"{found[stem]} and {name}"
            raise DataError(f"{both} in {listing.root} have one name: which is to be paired?")
        found[stem] = name
    return found


def _matched(listing: Listing, a: str, b: str) -> dict[str, list[Picture]]:
    """The pictures of two folders, in pairs of the same stem."""
    x, y = _by_stem(listing, a), _by_stem(listing, b)
    if alone := sorted(x.keys() ^ y.keys()):
        name, other = (x[alone[0]], b) if alone[0] in x else (y[alone[0]], a)
        more = f" (nor have {len(alone) - 1} others)" if len(alone) > 1 else ""
        root = listing.root
        raise DataError(f"{root / name} has no partner of the same name in {root / other}{more}.")
    return {"x": [Picture(name) for name in x.values()], "y": [Picture(y[stem]) for stem in x]}


def pairs(name: str, root: Path, image_size: int | None) -> DataSet:
    """Paired pictures, ``x`` and ``y``, uint8 ``[H, W, C]`` both.

    They are in folders ``trainA`` and ``trainB``, with the same file stems, or side by side in one
    picture, in ``train`` or in ``root`` itself; so for ``test`` and ``val``, if these are there.

    Raises:
      DataError: for a picture without a partner or of another size, and corrupt ones.
    """
    listing = list_pictures(root)
    if split_folders(listing, "A"):
        a, b = _two_folders(listing)
        if alone := sorted(a.keys() ^ b.keys()):
            raise DataError(f"of {alone[0]}A and {alone[0]}B {root} has only one.")
        splits = {split: _matched(listing, a[split], b[split]) for split in a}
    else:
        folders = layout(listing)
        splits = {
            split: {"x": _pictures(listing, f, half=0), "y": _pictures(listing, f, half=1)}
            for split, f in folders.items()
        }
    found = album(root, splits, image_size)
    data = image_set(name, found.sources, found.shape, ask=ASKED)
    return told(data, found, listing, noun="pairs of pictures")


def domains(name: str, root: Path, image_size: int | None) -> DataSet:
    """Unpaired pictures: any ``x`` of ``trainA`` with any ``y`` of ``trainB``; so for testing.

    Raises:
      DataError: if a folder is missing, or pictures are corrupt or differ in size.
    """
    listing = list_pictures(root)
    sides = _two_folders(listing)
    columns = {f: {"x": _pictures(listing, f)} for side in sides for f in side.values()}
    found = album(root, columns, image_size)
    parts = [three_parts({s: found.sources[f] for s, f in side.items()}) for side in sides]
    train, validation, test = (_every_pair(x, y) for x, y in zip(*parts, strict=True))
    ask = partial(conditions_of, validation, ASKED)
    data = DataSet(name, Image(found.shape), train, validation, test, ask=ask)
    names = ("train", "validation", "test")
    counts = {
        f"{part} {side}": len(source)
        for side, sources in zip("xy", parts, strict=True)
        for part, source in zip(names, sources, strict=True)
    }
    return told(data, found, listing, counts=counts)


def _every_pair(x: Source, y: Source) -> Source:
    """The product of two sources, which may be too large for memory."""
    if isinstance(x, Arrays) and isinstance(y, Arrays):
        return product(x, y)

    def read(index: np.ndarray) -> Batch:
        found = y.fetch(index % len(y))
        found["y"] = found.pop("x")
        return found | x.fetch(index // len(y))

    return Lazy(len(x) * len(y), read)
