"""Folders of pictures: which files they hold, how these are laid out, and the sources they make."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
import posixpath
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from jaxgen.data import images
from jaxgen.data.cache import kept_rows
from jaxgen.data.images import SPLITS
from jaxgen.data.pictures import (
    READER,
    SUFFIXES,
    Known,
    Picture,
    Shape,
    common_shape,
    decode,
    digest_of,
    inspect,
    one_form,
    read_one,
)
from jaxgen.data.records import Arrays, Batch, DataError, DataSet, Reading, Source, listed, take
from jaxgen.data.text import captions

CAPTIONS = "metadata.jsonl"
HIDDEN = {"__macosx", "thumbs.db", "desktop.ini"}  # beside all names that begin with a dot


# --- which files there are -------------------------------------------------------------------


@dataclass(frozen=True)
class Listing:
    """What lies below a folder: names relative to it, ``/`` between their parts, in order."""

    root: Path
    pictures: tuple[str, ...]  # by their suffix
    folders: tuple[str, ...]
    others: Mapping[str, int]  # suffix, or metadata.jsonl -> how many files that are no pictures
    hidden: int  # files and folders

    def inside(self, folder: str) -> list[str]:
        """The pictures in a sub-folder, or of the whole for ``""``.

        Raises:
          DataError: if there are fewer than two.
        """
        found = [name for name in self.pictures if is_inside(name, folder)]
        return at_least_two(self.root / folder, found)

    def top(self, folder: str = "") -> list[str]:
        """The names of the folders directly in a sub-folder, or in the root."""
        inner = [within(f, folder) for f in self.folders if is_inside(f, folder)]
        return [f for f in inner if "/" not in f]

    def left_out(self, read: Iterable[str], captions: bool) -> dict[str, int]:
        """How many files are not among the pictures that are read, and why."""
        lost = len(set(self.pictures).difference(read))
        others = [(n, suffix) for suffix, n in self.others.items() if suffix != CAPTIONS]
        suffixes = listed([f"{n} {suffix}" for n, suffix in sorted(others, reverse=True)])
        return {
            "hidden": self.hidden,
            f"not pictures ({suffixes})": sum(n for n, _ in others),
            f"not in {CAPTIONS}" if captions else "beside the folders that are read": lost,
        }


def is_inside(name: str, folder: str) -> bool:
    """Whether a name is below a folder; all are below the root, ``""``."""
    return not folder or name.startswith(f"{folder}/")


def within(name: str, folder: str) -> str:
    """A name as it is seen from a folder that it is inside of."""
    return name[len(folder) + 1 :] if folder else name


def at_least_two(place: Path, found: list[str]) -> list[str]:
    """The pictures that were found in a place.

    Raises:
      DataError: if there are fewer than two.
    """
    if len(found) < 2:
        raise DataError(f"{place} holds {len(found)} images; at least two are needed.")
    return found


def list_pictures(root: Path) -> Listing:
    """What lies below a folder. Symbolic links are followed, but not into a folder from itself.

    Raises:
      DataError: if there is no such folder, or one in it cannot be opened.
    """
    if root.is_file():
        raise DataError(f"{root} is a file: give a folder of pictures.")
    if not root.is_dir():
        near = nearest(root)
        meant = f": did you mean {near}?" if near else "."
        raise DataError(f"there is no folder {root}{meant}")
    pictures, folders, others, hidden = [], [], Counter(), 0

    def walk(place: str, before: str, above: frozenset[tuple[int, int]]) -> None:
        nonlocal hidden
        here = os.stat(place)
        if (here.st_dev, here.st_ino) in above:
            return
        with os.scandir(place) as entries:
            ordered = sorted(entries, key=lambda entry: entry.name)
        for entry in ordered:
            name, suffix = before + entry.name, os.path.splitext(entry.name)[1].lower()
            linked = entry.is_symlink()
            if entry.name.startswith(".") or entry.name.lower() in HIDDEN:
                hidden += 1
            elif os.path.isdir(entry.path) if linked else entry.is_dir():
                folders.append(name)
                walk(entry.path, f"{name}/", above | {(here.st_dev, here.st_ino)})
            elif suffix in SUFFIXES and (linked or entry.is_file()):  # no pipe, which never ends
                pictures.append(name)
            else:
                others[CAPTIONS if entry.name == CAPTIONS else suffix or "no suffix"] += 1

    try:
        walk(str(root), "", frozenset())
    except OSError as error:
        raise DataError(f"{error.filename} cannot be opened ({error.strerror}).") from error
    return Listing(root, tuple(pictures), tuple(folders), dict(others), hidden)


def nearest(path: Path) -> Path | None:
    """What lies where a path is not, and has nearly its name."""
    there = next((p for p in path.parents if p.is_dir()), Path())
    names = []
    with suppress(OSError):
        names = os.listdir(there)
    near = difflib.get_close_matches(path.relative_to(there).parts[0], names, n=1)
    return there / near[0] if near else None


def split_folders(listing: Listing, end: str = "") -> dict[str, str]:
    """The folders of splits: named like one in any letter case, and then ``end``.

    Raises:
      DataError: if two are of one split.
    """
    found = {}
    for split, names in SPLITS.items():
        wanted = {(name + end).lower() for name in names}
        spelled = [folder for folder in listing.top() if folder.lower() in wanted]
        if len(spelled) > 1:
            raise DataError(f"{listing.root} holds both {' and '.join(spelled)}: keep one of them.")
        if spelled:
            found[split] = spelled[0]
    return found


def layout(listing: Listing) -> dict[str, str]:
    """Split -> its folder; ``{"train": ""}`` where a folder is not divided into splits.

    It is where there is ``train`` and another split, or ``train`` and no other folder. So a class
    among others may be called ``train``. Folders that hold no picture do not count.

    Raises:
      DataError: if two folders are of one split, or there are others but none to learn from.
    """
    filled = {name.split("/")[0] for name in listing.pictures if "/" in name}
    splits = {s: folder for s, folder in split_folders(listing).items() if folder in filled}
    others = filled - set(splits.values())
    if "train" in splits and (len(splits) > 1 or not others):
        return splits
    if splits and not others:
        there = " and ".join(splits.values())
        raise DataError(f"{listing.root} holds {there} but no folder train to learn from.")
    return {"train": ""}


def in_natural_order(name: str) -> tuple[list[Any], str]:
    """A key that sorts ``9`` before ``10``."""
    parts = re.split(r"(\d+)", name)
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], name


# --- from files to sources ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Album:
    """Pictures of one shape as sources, and what is known of their files."""

    sources: dict[str, Source]
    shape: Shape
    sizes: tuple[tuple[int, int], ...]  # (width, height) of the smallest and the largest
    animated: int
    known: Mapping[str, Known]


def album(
    root: Path,
    splits: Mapping[str, Mapping[str, Sequence[Picture]]],
    image_size: int | None,
    others: Mapping[str, Batch] | None = None,
) -> Album:
    """Of each split the pictures under their names, and arrays beside them.

    They are decoded once, into the cache, and read from there; where there is no room, they are
    held in memory, or are opened as they are asked for. ``label`` is 0 if none is given.

    Raises:
      DataError: if some cannot be read, or they differ in size and are not to be resized.
    """
    pictures = [p for columns in splits.values() for column in columns.values() for p in column]
    known = inspect(root, sorted({p.name for p in pictures}))
    headers = [p.header(root, known[p.name]) for p in pictures]
    shape = common_shape(headers, image_size)
    size = len(pictures) * math.prod(shape)
    contents = "".join(f"{known[p.name].content} {p.half}\n" for p in pictures)
    name = hashlib.sha256(f"{READER} {shape}\n{contents}".encode()).hexdigest()[:32]
    rows = kept_rows(
        f"pictures-{name}", (len(pictures), *shape), lambda: decode(root, pictures, shape)
    )
    if rows is None and size <= images.MEMORY_LIMIT:
        rows = np.stack(list(decode(root, pictures, shape)))
    sources, start = {}, 0
    for split, columns in splits.items():
        count = len(next(iter(columns.values())))
        beside = {"label": np.zeros(count, np.int32)} | (others or {}).get(split, {})
        if rows is None:
            sources[split] = images.Lazy(count, partial(_from_files, root, columns, shape, beside))
            continue
        arrays = {c: rows[start + i * count :][:count] for i, c in enumerate(columns)} | beside
        start += count * len(columns)
        held = size <= images.MEMORY_LIMIT
        sources[split] = Arrays(arrays) if held else images.Lazy(count, partial(take, arrays))
    sizes = sorted({header.size for header in headers}, key=lambda s: (s[0] * s[1], s))
    animated = sum(k.animated for k in known.values())
    return Album(sources, shape, (sizes[0], sizes[-1]), animated, known)


def _from_files(
    root: Path,
    columns: Mapping[str, Sequence[Picture]],
    shape: Shape,
    beside: Batch,
    index: np.ndarray,
) -> Batch:
    read = {
        column: np.stack([read_one(root, pictures[i], shape) for i in index.tolist()])
        for column, pictures in columns.items()
    }
    return read | take(beside, index)


def told(
    data: DataSet,
    album: Album,
    listing: Listing,
    *,
    counts: Mapping[str, int] | None = None,
    classes: Mapping[str, int] | None = None,
    empty: Sequence[str] = (),
    captions: Sequence[bytes] = (),
    noun: str = "pictures",
) -> DataSet:
    """A data set that knows what was read of its folder; ``counts`` are those of its parts."""
    parts = {"train": data.train, "validation": data.validation, "test": data.test}
    left_out = listing.left_out(album.known, bool(captions))
    left_out[f"empty ({listed(empty)})"] = len(empty)
    reading = Reading(
        counts=counts or {part: len(source) for part, source in parts.items()},
        sizes=album.sizes,
        shape=album.shape,
        classes=classes or {},
        left_out={why: count for why, count in left_out.items() if count},
        animated=album.animated,
        noun=noun,
    )
    return replace(data, reading=reading, contents=digest_of(album.known, captions))


# --- folders of images -----------------------------------------------------------------------


def _captioned(root: Path) -> tuple[list[str], list[str]]:
    """The images that a ``metadata.jsonl`` names, and their captions."""
    path = root / CAPTIONS
    files, texts = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            file, text = Path(entry["file_name"]).as_posix(), entry["text"]
            if not isinstance(text, str):
                raise TypeError("the text is none")
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(
                f"line {number} of {path} is no JSON object with file_name and text ({error!r})."
            ) from error
        if not (root / file).is_file():
            raise DataError(f"line {number} of {path} names {file}, which is not there.")
        files.append(file)
        texts.append(text)
    if len(files) < 2:
        raise DataError(f"{path} names {len(files)} images; at least two are needed.")
    return files, texts


def _class_of(file: str) -> str:
    """The folder that a file is below, as seen from its split; none for a loose one."""
    return one_form(file.split("/")[0]) if "/" in file else ""


def folder(name: str, root: Path, image_size: int | None) -> DataSet:
    """Images of a folder; sub-folders are classes, and every tenth image is for testing.

    Sub-folders ``train`` and ``test``, and ``validation``, hold these parts. Where there are
    classes, pictures that lie beside their folders are left out; so are hidden files, and folders
    without a picture. ``reading`` tells how many.

    Where there is a ``metadata.jsonl``, whose lines hold ``file_name`` and ``text``, the images are
    those it names and each has its caption, ``text [L]``: uint8 UTF-8.

    Raises:
      DataError: for missing or corrupt images, images that differ in size, or bad metadata.
    """
    listing = list_pictures(root)
    folders = layout(listing)
    with_text = [s for s, place in folders.items() if (root / place / CAPTIONS).is_file()]
    if with_text and len(with_text) < len(folders):
        lacking = next(root / place for s, place in folders.items() if s not in with_text)
        raise DataError(f"{lacking} lacks {CAPTIONS}, which the other parts of the set have.")
    if with_text:
        read = {split: _captioned(root / place) for split, place in folders.items()}
        files = {split: names for split, (names, _) in read.items()}
        text, empty = captions({split: texts for split, (_, texts) in read.items()}), []
    else:
        files, text, empty = _sorted_out(listing, folders), {}, _empty(listing, folders)
    counts = Counter(_class_of(f) for names in files.values() for f in names)
    # Where captions name loose pictures too, the folders beside them are no classes.
    classes = [] if "" in counts else sorted(counts, key=in_natural_order)
    number = {c: i for i, c in enumerate(classes)}

    def label(names: Sequence[str]) -> np.ndarray:
        return np.asarray([number.get(_class_of(f), 0) for f in names], np.int32)

    others = {s: {"label": label(names)} for s, names in files.items()}
    if text:
        others = {s: arrays | {"text": text[s]} for s, arrays in others.items()}
    pictures = {
        split: {"x": [Picture(posixpath.join(folders[split], f)) for f in names]}
        for split, names in files.items()
    }
    found = album(root, pictures, image_size, others)
    asked = ("text", "label") if text else ()
    data = images.image_set(name, found.sources, found.shape, classes=classes, ask=asked)
    return told(
        data,
        found,
        listing,
        classes={c: counts[c] for c in classes},
        empty=empty,
        captions=[(root / folders[split] / CAPTIONS).read_bytes() for split in with_text],
    )


def _sorted_out(listing: Listing, folders: Mapping[str, str]) -> dict[str, list[str]]:
    """The pictures of each split, as seen from its folder: where there are classes, those of them.

    Raises:
      DataError: if a split has less than two.
    """
    files = {s: [within(n, f) for n in listing.inside(f)] for s, f in folders.items()}
    classed = {s: [f for f in names if "/" in f] for s, names in files.items()}
    if not any(classed.values()):
        return files
    for split, names in classed.items():
        if not names:
            other = next(folders[s] for s, found in classed.items() if found)
            raise DataError(
                f"{listing.root / folders[split]} has no folders of classes, as {other} has: sort "
                "its pictures into such folders, or move it away."
            )
        at_least_two(listing.root / folders[split], names)
    return classed


def _empty(listing: Listing, folders: Mapping[str, str]) -> list[str]:
    """The folders of splits and of classes that hold no picture in any split."""
    places = {"", *folders.values()}
    top = {one_form(f) for place in places for f in listing.top(place)}
    inner = {within(n, f) for f in places for n in listing.pictures if is_inside(n, f)}
    return sorted(top - {_class_of(name) for name in inner}, key=in_natural_order)
