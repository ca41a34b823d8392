"""Sets of images: embedded digits, MNIST and CIFAR-10 from their original files, and what all sets
of images share.

An image is uint8 ``[H, W, C]``, grey or RGB. Sets of a few GiB or less are held in memory; a larger
one is read as it is asked for.
"""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgen.data.cache import kept
from jaxgen.data.pictures import fit
from jaxgen.data.records import (
    Arrays,
    Batch,
    DataError,
    DataSet,
    Image,
    Source,
    conditions_of,
    hold_out,
    in_chunks,
    take,
)

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are held in memory
SPLITS = {
    "train": ("train",),
    "validation": ("validation", "valid", "val"),
    "test": ("test",),
}
IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
BINARIZED_FILES = {s: f"binarized_mnist_{s[:5]}.amat" for s in ("train", "validation", "test")}
CIFAR_FILES = {  # archive -> (the folder in it, what file names end in)
    "cifar-10-binary.tar.gz": ("cifar-10-batches-bin", ".bin"),
    "cifar-10-python.tar.gz": ("cifar-10-batches-py", ""),
}
CIFAR_BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ORIGINALS = {  # what a manual_dir holds
    "mnist": ", ".join(f for pair in IDX_FILES.values() for f in pair),
    "fashion_mnist": ", ".join(f for pair in IDX_FILES.values() for f in pair),
    "binarized_mnist": ", ".join(BINARIZED_FILES.values()),
    "cifar10": " or ".join(CIFAR_FILES),
}
SIZES = {  # name -> (values of an image, training images), rising
    "digits": (8 * 8, 1_295),
    "mnist": (28 * 28, 54_000),
    "cifar10": (32 * 32 * 3, 45_000),
}
LEVELS = {"binarized_mnist": 2}  # of a pixel, where not 256
CLASSES = {
    "digits": "0 1 2 3 4 5 6 7 8 9",
    "mnist": "0 1 2 3 4 5 6 7 8 9",
    "fashion_mnist": "top trouser pullover dress coat sandal shirt sneaker bag boot",
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
}

T = TypeVar("T")


# --- from splits to a data set ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lazy:
    """A source whose examples are read as they are asked for."""

    size: int
    read: Callable[[np.ndarray], Batch]  # index [n] -> arrays [n, ...]
    digest: str | None = None  # of the contents, where they are known without reading them all

    def __len__(self) -> int:
        return self.size

    def fetch(self, index: np.ndarray) -> Batch:
        return self.read(index)


def read_all(source: Source) -> Arrays:
    """All examples of a source as arrays."""
    chunks = list(in_chunks(source, 1000, len(source)))
    return Arrays({name: np.concatenate([c[name] for c in chunks]) for name in chunks[0]})


def in_memory(source: Source, keep: str | None = None) -> Source:
    """All examples as arrays where ``MEMORY_LIMIT`` holds them, else the source as it is.

    Arrays are kept for later starts in the cache under the name ``keep``, if one is given.
    """
    one = sum(x.nbytes for x in source.fetch(np.arange(1)).values())
    if len(source) * one > MEMORY_LIMIT:
        return source
    return Arrays(kept(keep, lambda: read_all(source).arrays)) if keep else read_all(source)


def splits_of(found: Mapping[str, T]) -> dict[str, T]:
    """What is there of ``train``, ``validation`` and ``test``, whatever else there is."""
    return {s: found[n] for s, names in SPLITS.items() for n in names if n in found}


def three_parts(splits: Mapping[str, Source]) -> tuple[Source, Source, Source]:
    """Training, validation and test set; what is missing is held out of ``train``.

    A missing ``test`` is ``validation``, else every tenth example, or fewer of a large set.
    """
    train, validation, test = splits["train"], splits.get("validation"), splits.get("test")
    if test is None:
        validation, test = None, validation
    if test is None:
        train, test = hold_out(train)
    if validation is None:
        train, validation = hold_out(train)
    return train, validation, test


def image_set(
    name: str,
    splits: Mapping[str, Source],
    shape: tuple[int, ...],
    *,
    classes: Sequence[str] = (),
    levels: int = 256,
    ask: tuple[str, ...] = (),
) -> DataSet:
    """A data set of images ``x``, sampled for the arrays of its validation set ``ask`` names."""
    train, validation, test = three_parts(splits)
    given = partial(conditions_of, validation, ask) if ask else None
    named, kind = tuple(classes), Image(tuple(shape), levels)
    return DataSet(
        name, kind, train, validation, test, max(len(named), 1), given, classes_named=named
    )


# --- sets as they were published -------------------------------------------------------------


def digits() -> DataSet:
    """scikit-learn's 1,797 digits, 8x8, 17 grey levels: 1,295 to train on, 143 and 359 held out."""

    def read() -> Batch:
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        return {"x": bunch.images.astype(np.uint8), "label": bunch.target.astype(np.int32)}

    arrays = kept("digits", read)  # importing scikit-learn takes most of a second
    arrays["x"] = arrays["x"][..., None]
    tested = np.arange(len(arrays["x"])) % 5 == 4
    splits = {"train": Arrays(take(arrays, ~tested)), "test": Arrays(take(arrays, tested))}
    return image_set("digits", splits, (8, 8, 1), classes=CLASSES["digits"].split(), levels=17)


def original(name: str, folder: Path, image_size: int | None) -> DataSet:
    """One of the sets of ``ORIGINALS`` from a folder with its original files.

    Raises:
      DataError: if a file is missing or corrupt, naming it.
    """
    readers = {"cifar10": _read_cifar, "binarized_mnist": _read_binarized}
    parts = readers.get(name, _read_mnist)(name, folder)
    shape = parts["train"][0].shape[1:]
    if image_size:
        shape = (image_size, image_size, shape[-1])
        parts = {s: (np.stack([fit(i, shape) for i in x]), y) for s, (x, y) in parts.items()}
    splits = {s: Arrays({"x": x, "label": y.astype(np.int32)}) for s, (x, y) in parts.items()}
    classes, levels = CLASSES.get(name, "").split(), LEVELS.get(name, 256)
    return image_set(name, splits, shape, classes=classes, levels=levels)


Parts = dict[str, tuple[np.ndarray, np.ndarray]]  # split -> x uint8 [N, H, W, C], label [N]


def _read_mnist(name: str, folder: Path) -> Parts:
    def read(file: str) -> np.ndarray:
        for path in (folder / file, folder / file.removesuffix(".gz")):
            if path.is_file():
                return read_idx(path)
        raise DataError(f"{folder} lacks {file}, one of the original files of '{name}'.")

    parts = {split: (read(x)[..., None], read(y)) for split, (x, y) in IDX_FILES.items()}
    for split, (x, y) in parts.items():
        if x.shape[:-3] != y.shape:
            raise DataError(f"{folder} holds images and labels that differ in number in '{split}'.")
    return parts


def _read_binarized(name: str, folder: Path) -> Parts:
    """Larochelle & Murray 2011: a line of 784 zeros and ones an image."""

    def read(file: str) -> np.ndarray:
        if not (folder / file).is_file():
            raise DataError(f"{folder} lacks {file}, one of the original files of '{name}'.")
        bits = np.frombuffer((folder / file).read_bytes(), np.uint8)
        bits = bits[(bits == ord("0")) | (bits == ord("1"))] - ord("0")
        if not len(bits) or len(bits) % 784:
            raise DataError(f"{folder / file} is no whole number of binarized images.")
        return bits.reshape(-1, 28, 28, 1)

    parts = {split: read(file) for split, file in BINARIZED_FILES.items()}
    return {split: (x, np.zeros(len(x), np.uint8)) for split, x in parts.items()}


def read_idx(path: Path) -> np.ndarray:
    """An IDX file of unsigned bytes (LeCun's MNIST format), gzipped where it ends in ``.gz``.

    Raises:
      DataError: if it is not one, naming the file.
    """
    zipped = path.suffix == ".gz"
    try:
        raw = gzip.decompress(path.read_bytes()) if zipped else path.read_bytes()
        rank = raw[3]
        if raw[:3] != b"\x00\x00\x08" or not 1 <= rank <= 3:
            raise ValueError("wrong magic number")
        shape = np.frombuffer(raw, ">u4", rank, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(*shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        kind = "a gzipped IDX file" if zipped else "an IDX file"
        raise DataError(f"{path} is not {kind} of bytes ({error}).") from error


def _read_cifar(name: str, folder: Path) -> Parts:
    """CIFAR-10 as records of 3,073 bytes, or as pickles of NumPy arrays."""
    batches = []
    for path, raw in _cifar_files(name, folder).items():
        try:
            if path.suffix == ".bin":
                table = np.frombuffer(raw, np.uint8).reshape(-1, 1 + 3 * 32 * 32)
                x, y = table[:, 1:], table[:, 0]
            else:
                batch = _Plain(io.BytesIO(raw), encoding="bytes").load()
                x, y = batch[b"data"], np.asarray(batch[b"labels"], np.uint8)
            images = np.asarray(x, np.uint8).reshape(len(y), 3, 32, 32).transpose(0, 2, 3, 1)
            if y.max() > 9:
                raise ValueError("its labels exceed 9")
        except (EOFError, LookupError, ValueError, TypeError, pickle.UnpicklingError) as error:
            raise DataError(f"{path} is not a batch of '{name}' ({error}).") from error
        batches.append((np.ascontiguousarray(images), y))
    x, y = (np.concatenate(arrays) for arrays in zip(*batches[:-1], strict=True))
    return {"train": (x, y), "test": batches[-1]}


def _cifar_files(name: str, folder: Path) -> dict[Path, bytes]:
    """The five batches for training and the one for testing: in a folder, or an archive."""
    for archive, (inner, end) in CIFAR_FILES.items():
        wanted = [f"{stem}{end}" for stem in CIFAR_BATCHES]
        for place in (folder / inner, folder, folder / archive):
            found = _contents(place, wanted)
            for file in wanted if found else ():
                if file not in found:
                    raise DataError(f"{place} lacks {file}, an original file of '{name}'.")
            if found:
                return {place / file: found[file] for file in wanted}
    raise DataError(f"{folder} lacks {ORIGINALS[name]}, the original files of '{name}'.")


def _contents(place: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Those of the wanted files that a folder or an archive holds."""
    if not place.is_file():
        return {n: (place / n).read_bytes() for n in wanted if (place / n).is_file()}
    found = {}
    try:
        with tarfile.open(place) as archive:
            for member in archive:  # read in its order, as to go back means to unzip anew
                stem = Path(member.name).name
                if stem in wanted and (file := archive.extractfile(member)):
                    found[stem] = file.read()
        return found
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{place} cannot be read ({error}): fetch it again.") from error


class _Plain(pickle.Unpickler):
    """Reads plain values and NumPy arrays; what names anything else is refused, unread."""

    _array = np.empty(0).__reduce__()[0]
    admitted = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _array,
        ("numpy._core.multiarray", "_reconstruct"): _array,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.admitted:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.admitted[module, name]
