"""What a batch, a source and a data set are.

A batch is named arrays with the examples along their first axes. A source answers the batch of any
index. Of a source in memory that is a pure gather from its arrays, the same function for NumPy on
the host and for arrays that live on the devices: rows of a table, windows of one text, point sets
of differing size, or the product of two unpaired sets.
"""

from __future__ import annotations

import difflib
import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

VALIDATION_LIMIT = 5000  # examples that are held out of a training set
HASHED = 2**32  # bytes of arrays that are hashed whole
HASHED_EXAMPLES = 1000  # of a larger set, or of a source that does not know its contents

Batch = dict[str, Any]  # of one example the arrays are [...], of a batch [B, ...]
Gather = Callable[[Batch, Any], Batch]  # (arrays, index of any shape) -> arrays [*index.shape, ...]


class DataError(ValueError):
    """Raised with one sentence that says what is wrong with a data set and how to mend it."""


def did_you_mean(name: str, known: Iterable[str], instead: str | None = None) -> str:
    """A sentence's end: the names nearest to a wrong one, else ``instead``, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": {instead or 'choose one of ' + ', '.join(known)}."


def listed(names: Sequence[str], limit: int = 5) -> str:
    """Names, of many the first: ``a, b, c, d, e and 7 more``."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more


class Source(Protocol):
    """Random access to examples."""

    def __len__(self) -> int: ...

    def fetch(self, index: np.ndarray) -> Batch:
        """The examples of ``index [n]``, each array ``[n, ...]``."""
        ...


# --- sources ---------------------------------------------------------------------------------


def take(arrays: Batch, index: Any) -> Batch:
    """The rows of a table: each array ``[N, ...]`` at ``index``."""
    return {name: x[index] for name, x in arrays.items()}


@dataclass(frozen=True, eq=False)
class Arrays:
    """A source in memory: arrays, and the pure ``gather`` that makes examples of them."""

    arrays: Batch
    gather: Gather = take
    size: int | None = None  # examples; where None, one a row

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values()))) if self.size is None else self.size

    def __getitem__(self, name: str) -> Any:
        return self.arrays[name]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.arrays.values())

    def fetch(self, index: np.ndarray) -> Batch:
        return self.gather(self.arrays, index)

    @cached_property
    def digest(self) -> str:
        """Of all contents."""
        examples = some(self, HASHED_EXAMPLES)  # which tell what gather makes of the arrays
        if self.nbytes > HASHED:
            return hash_of(len(self), examples)
        return hash_of(len(self), self.arrays, hash_of(0, examples))


@dataclass(frozen=True, eq=False)
class Part:
    """The examples of another source that ``index [n]`` names."""

    source: Source
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def fetch(self, index: np.ndarray) -> Batch:
        return self.source.fetch(self.index[index])

    @cached_property
    def digest(self) -> str:
        """Of the whole, and of which examples of it these are."""
        return hash_of(len(self), {"index": self.index}, contents_of(self.source))


def contents_of(source: Source) -> str:
    """A digest of what a source holds: its own ``digest``, else that of examples spread over it."""
    known = getattr(source, "digest", None)
    return known or hash_of(len(source), some(source, HASHED_EXAMPLES))


def hash_of(size: int, arrays: Batch, *more: str) -> str:
    """SHA-256 of so many examples in arrays, by their names, types, shapes and values."""
    digest = hashlib.sha256(" ".join([str(size), *more]).encode())
    for name in sorted(arrays):
        x = np.ascontiguousarray(arrays[name])
        digest.update(f"\n{name} {x.dtype.str} {x.shape}\n".encode())
        digest.update(x.view(np.uint8).reshape(-1).data if x.size else b"")
    return digest.hexdigest()


def _places(index: Any, count: int) -> np.ndarray:
    """``0 .. count - 1`` as the last axis beside those of ``index``."""
    return np.arange(count).reshape(*[1] * index.ndim, count)


def windows(values: np.ndarray, length: int, stride: int = 1) -> Arrays:
    """Every ``stride``-th window of ``values [N]``: ``x [length]``.

    Raises:
      DataError: if not one of them fits.
    """
    size = (len(values) - length) // stride + 1
    if size < 1:
        raise DataError(
            f"{len(values)} tokens hold no window of {length}: lower --length, or give more text."
        )

    def gather(arrays: Batch, index: Any) -> Batch:
        return {"x": arrays["values"][index[..., None] * stride + _places(index, length)]}

    return Arrays({"values": values}, gather, size)


def point_sets(points: Batch, sizes: np.ndarray, largest: int | None = None) -> Arrays:
    """Sets of differing size, padded with zeros: arrays ``[largest, ...]`` and ``mask [largest]``.

    ``points`` holds arrays ``[sum of sizes, ...]``, one set after the other; ``mask`` is true where
    there is a point, and ``size`` counts them.
    """
    largest = int(sizes.max()) if largest is None else largest
    start = np.concatenate([[0], np.cumsum(sizes)[:-1]]).astype(np.int32)
    arrays = {f"points/{name}": x for name, x in points.items()}
    arrays |= {"start": start, "size": sizes.astype(np.int32)}

    def gather(arrays: Batch, index: Any) -> Batch:
        size, place = arrays["size"][index], _places(index, largest)
        mask = place < size[..., None]
        rows = (arrays["start"][index][..., None] + place) * mask
        found = {"mask": mask, "size": size}
        for name in points:
            x = arrays[f"points/{name}"][rows]
            found[name] = x * mask.reshape(*mask.shape, *[1] * (x.ndim - mask.ndim))
        return found

    return Arrays(arrays, gather, len(sizes))


def product(x: Arrays, y: Arrays) -> Arrays:
    """Every pair of an example of ``x`` and one of ``y``, drawn apart: unpaired domains.

    The arrays of ``y`` keep their names, but for its ``x``, which is called ``y``.
    """
    arrays = {f"x/{k}": v for k, v in x.arrays.items()}
    arrays |= {f"y/{k}": v for k, v in y.arrays.items()}

    def of(arrays: Batch, which: str) -> Batch:
        return {k[2:]: v for k, v in arrays.items() if k.startswith(which)}

    def gather(arrays: Batch, index: Any) -> Batch:
        found = y.gather(of(arrays, "y/"), index % len(y))
        found["y"] = found.pop("x")
        return found | x.gather(of(arrays, "x/"), index // len(y))

    return Arrays(arrays, gather, len(x) * len(y))


def spread(size: int, limit: int) -> np.ndarray:
    """Up to ``limit`` of the indices below ``size``, evenly spaced: sorted sets stay balanced."""
    return np.arange(size) if size <= limit else np.linspace(0, size - 1, limit).astype(int)


def some(source: Source, limit: int) -> Batch:
    """Up to ``limit`` examples, evenly spread over the source."""
    return source.fetch(spread(len(source), limit))


def in_chunks(source: Source, size: int, limit: int) -> Iterator[Batch]:
    """The examples of :func:`some`, ``size`` at a time, so that memory holds no more."""
    index = spread(len(source), limit)
    for i in range(0, len(index), size):
        yield source.fetch(index[i : i + size])


def hold_out(source: Source) -> tuple[Source, Source]:
    """A training set without every tenth example, or fewer of a large set, and these examples.

    Fewer than ten give their last; a single one is in both.
    """
    size = len(source)
    every = max(10, math.ceil(size / VALIDATION_LIMIT))
    chosen = np.arange(size) % every == every - 1
    chosen[-1] |= not chosen.any()
    kept = ~chosen if size > 1 else chosen
    if isinstance(source, Arrays) and source.gather is take:
        return Arrays(take(source.arrays, kept)), Arrays(take(source.arrays, chosen))
    return Part(source, np.flatnonzero(kept)), Part(source, np.flatnonzero(chosen))


# --- what an example is ----------------------------------------------------------------------


@dataclass(frozen=True)
class Image:
    """``x [H, W, C]`` holds bin numbers ``0 .. levels - 1``; models see them in [-1, 1]."""

    shape: tuple[int, ...]
    levels: int = 256
    noun = "images"

    def values(self, x: Any) -> Array:
        """What models see: [-1, 1], float32."""
        return to_signed(x, self.levels)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Samples in [-1, 1], rounded to the values that a pixel can take, float32."""
        bins = np.clip(np.round((x + 1) / 2 * (self.levels - 1)), 0, self.levels - 1)
        return np.asarray(2 * bins / (self.levels - 1) - 1, np.float32)


@dataclass(frozen=True)
class Points:
    """``x [D]``, a point, or ``[N, D]``, a set of them with a ``mask [N]``; float32."""

    shape: tuple[int, ...]
    noun = "points"

    def values(self, x: Any) -> Array:
        """What models see: the same."""
        return jnp.asarray(x, jnp.float32)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Samples as they are."""
        return np.asarray(x, np.float32)


def decode_bytes(tokens: np.ndarray) -> str:
    """Bytes ``[L]`` as text; what is no UTF-8 is shown as a mark."""
    return np.asarray(tokens, np.uint8).tobytes().decode(errors="replace")


@dataclass(frozen=True)
class Tokens:
    """``x [L]`` holds tokens ``0 .. vocabulary - 1``."""

    length: int
    vocabulary: int = 256
    decode: Callable[[np.ndarray], str] = decode_bytes
    noun = "text"

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length,)

    def values(self, x: Any) -> Array:
        """What models see: the same, int32."""
        return jnp.asarray(x, jnp.int32)

    def nearest(self, x: np.ndarray) -> np.ndarray:
        """Samples as they are."""
        return np.asarray(x, np.int32)


Kind = Image | Points | Tokens


# --- data sets -------------------------------------------------------------------------------


def labels_in_turn(classes: int, count: int) -> Batch:
    """``label [count]``: 0, 1, ..., classes - 1, and again."""
    return {"label": np.arange(count, dtype=np.int32) % max(classes, 1)}


def conditions_of(source: Source, names: tuple[str, ...], count: int) -> Batch:
    """The named arrays of ``count`` examples, spread over a source and repeated where it has fewer:
    captions, sizes, pictures to translate. Those of a smaller count are the first of a larger one.
    """
    size = len(source)
    stride = next(k for k in range(round(0.618 * size), 2 * size + 2) if math.gcd(k, size) == 1)
    found = source.fetch(np.arange(min(count, size)) * stride % size)
    index = np.arange(count) % size
    return {name: found[name][index] for name in names}


@dataclass(frozen=True)
class Reading:
    """What was read of a folder of pictures. ``dataclasses.asdict`` makes plain JSON of it."""

    counts: Mapping[str, int]  # part, such as "train" -> how many are in it
    sizes: tuple[tuple[int, int], ...]  # (width, height) of the smallest and the largest
    shape: tuple[int, ...]  # [H, W, C] of all of them afterwards
    classes: Mapping[str, int] = field(default_factory=dict)  # name -> how many are of it
    left_out: Mapping[str, int] = field(default_factory=dict)  # why -> how many
    animated: int = 0  # of which the first frame was read
    noun: str = "pictures"

    def lines(self) -> list[str]:
        """It in a few short lines."""
        counts = ", ".join(f"{count} {part}" for part, count in self.counts.items())
        found = [f"{sum(self.counts.values())} {self.noun}: {counts}"]
        sizes = list(dict.fromkeys(f"{w}x{h}" for w, h in self.sizes))
        after = f"{self.shape[1]}x{self.shape[0]}"
        resized = f", cropped and resized to {after}" if sizes != [after] else ""
        found.append(f"{' to '.join(sizes)}{resized}, {'grey' if self.shape[2] == 1 else 'colour'}")
        if self.classes:
            classes = listed([f"{name} {count}" for name, count in self.classes.items()], 10)
            noun = "class" if len(self.classes) == 1 else "classes"
            found.append(f"{len(self.classes)} {noun}: {classes}")
        if self.left_out:
            left_out = ", ".join(f"{count} {why}" for why, count in self.left_out.items())
            found.append(f"left out: {left_out}")
        if self.animated:
            found.append(f"{self.animated} with several frames, of which the first is read")
        # Names of files that are no Unicode could not be printed.
        return [line.encode(errors="replace").decode() for line in found]


@dataclass(frozen=True, eq=False)
class DataSet:
    """Sources for training, validation and test, and what their examples are.

    ``validation`` is what models are selected by, and no training sees it; ``test`` is what they
    are measured on once all is chosen.
    """

    name: str
    kind: Kind
    train: Source
    validation: Source
    test: Source
    classes: int = 1  # labels are 0 .. classes - 1
    ask: Callable[[int], Batch] | None = None  # conditions, where not labels in turn
    log_prob: Callable[[Array], Array] | None = None  # of points [B, D], where it is known
    modes: np.ndarray | None = None  # [K, D], where the density has such
    classes_named: tuple[str, ...] = ()
    reading: Reading | None = None  # what was read of a folder, where it is one
    contents: str | None = None  # a digest of the files, wherever they lie

    @cached_property
    def digest(self) -> str:
        """By which the contents are known again, whatever their name and wherever they lie."""
        parts = (self.train, self.validation, self.test)
        return self.contents or hash_of(0, {}, *(contents_of(source) for source in parts))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.kind.shape

    @property
    def levels(self) -> int:
        """How many values a pixel can take.

        Raises:
          TypeError: for data that are not images.
        """
        if not isinstance(self.kind, Image):
            raise TypeError(f"{self.name} is {self.kind.noun}, and this is for images.")
        return self.kind.levels

    @property
    def class_names(self) -> tuple[str, ...]:
        """What the classes are called: their numbers, where they have no names."""
        return self.classes_named or tuple(str(c) for c in range(self.classes))

    def vectors(self, x: Any) -> np.ndarray:
        """Examples ``[N, ...]`` as models see them, each a vector: ``[N, D]``."""
        return np.asarray(self.kind.values(x)).reshape(len(x), -1)

    def given(self, count: int) -> Batch:
        """What to sample ``count`` examples for: arrays ``[count, ...]``."""
        return (self.ask or partial(labels_in_turn, self.classes))(count)


# --- scales ----------------------------------------------------------------------------------


def to_unit(x: Array | np.ndarray, levels: int) -> Array:
    """Bin numbers ``0 .. levels - 1`` to intensities in [0, 1], float32."""
    return jnp.asarray(x, jnp.float32) / (levels - 1)


def to_signed(x: Array | np.ndarray, levels: int) -> Array:
    """Bin numbers ``0 .. levels - 1`` to [-1, 1], float32."""
    return 2 * to_unit(x, levels) - 1


def to_bytes(x: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] to uint8 0..255, for files and screens."""
    return np.asarray(np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255), np.uint8)


def binarize(key: Array, x: Array | np.ndarray, levels: int) -> Array:
    """Bin numbers ``[B, ...]`` to bits, 1 with the probability of their intensity in [0, 1].

    Each is drawn with 16 random bits (a probability is met within 2^-17). The pixels of an example
    are independent; its neighbours in the batch share a byte of it, as random numbers are dear.
    """
    x = jnp.asarray(x)
    if levels == 2:  # bits already
        return to_unit(x, levels)
    count, size = len(x), math.prod(x.shape[1:])
    words = jax.random.bits(key, (count // 4 + 1, size), jnp.uint32)
    rows = jnp.stack([words >> shift & 0xFF for shift in (0, 8, 16, 24)]).reshape(-1, size)
    drawn = (rows[:count] << 8 | rows[1 : count + 1]).reshape(x.shape)
    below = jnp.round(to_unit(x, levels) * 2**16).astype(jnp.uint32)
    return (drawn < below).astype(jnp.float32)


def random_flip(key: Array, x: Array) -> Array:
    """Mirrors each image of ``[B, H, W, C]`` left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1], x)
