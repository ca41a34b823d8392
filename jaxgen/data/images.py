"""Sets of images: embedded digits, folders, MNIST and CIFAR-10 from their original files.

An image is uint8 ``[H, W, C]``, grey or RGB. Sets of a few GiB or less are held in memory; of a
larger one the files are opened as they are asked for.
"""

from __future__ import annotations

import gzip
import io
import json
import pickle
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgen.data.cache import kept
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
from jaxgen.data.text import captions

MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are held in memory
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
SPLITS = {"train": ("train",), "validation": ("validation", "val"), "test": ("test",)}
IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}
CIFAR_FILES = {  # archive -> (the folder in it, what file names end in)
    "cifar-10-binary.tar.gz": ("cifar-10-batches-bin", ".bin"),
    "cifar-10-python.tar.gz": ("cifar-10-batches-py", ""),
}
CIFAR_BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
ORIGINALS = {  # what a manual_dir holds
    "mnist": ", ".join(f for pair in IDX_FILES.values() for f in pair),
    "fashion_mnist": ", ".join(f for pair in IDX_FILES.values() for f in pair),
    "cifar10": " or ".join(CIFAR_FILES),
}
CLASSES = {
    "digits": "0 1 2 3 4 5 6 7 8 9",
    "mnist": "0 1 2 3 4 5 6 7 8 9",
    "fashion_mnist": "top trouser pullover dress coat sandal shirt sneaker bag boot",
    "cifar10": "airplane automobile bird cat deer dog frog horse ship truck",
}

Shape = tuple[int, int, int]  # H, W, C
T = TypeVar("T")


# --- from splits to a data set ---------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Lazy:
    """A source whose examples are read as they are asked for."""

    size: int
    read: Callable[[np.ndarray], Batch]  # index [n] -> arrays [n, ...]

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


def split_folders(root: Path, end: str = "") -> dict[str, Path]:
    """The sub-folders of ``root`` that hold splits: named like one, and then ``end``.

    Raises:
      DataError: if there is no such ``root``.
    """
    if not root.is_dir():
        raise DataError(f"there is no folder {root}.")
    named = {p.name.removesuffix(end): p for p in root.iterdir() if p.name.endswith(end)}
    return splits_of({name: p for name, p in named.items() if p.is_dir()})


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


# --- pictures --------------------------------------------------------------------------------


def fit(image: Any, shape: Shape) -> np.ndarray:
    """A Pillow image or an array as uint8 ``[H, W, C]``: cropped and resized where it differs."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image = image.convert("L" if shape[-1] == 1 else "RGB")
    lanczos = PIL.Image.Resampling.LANCZOS
    return np.asarray(PIL.ImageOps.fit(image, (shape[1], shape[0]), lanczos)).reshape(shape)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    import PIL.Image

    try:
        with PIL.Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as an image ({error}): remove it.") from error


Header = tuple[Any, tuple[int, int], str]  # name, (width, height), Pillow's mode


@dataclass(frozen=True)
class Picture:
    """A picture in a file, or its left (0) or right (1) half."""

    path: Path
    half: int | None = None

    def header(self) -> Header:
        """What is known of it without decoding."""
        with _opened(self.path) as image:
            (w, h), mode = image.size, image.mode
        if self.half is not None and w % 2:
            raise DataError(f"{self.path} is {w} pixels wide: two halves need an even width.")
        return self.path, (w if self.half is None else w // 2, h), mode

    def read(self, shape: Shape) -> np.ndarray:
        """Its pixels, uint8 ``[H, W, C]``."""
        with _opened(self.path) as image:
            if self.half is not None:
                w, h = image.size[0] // 2, image.size[1]
                image = image.crop((self.half * w, 0, (self.half + 1) * w, h))
            return fit(image, shape)


def common_shape(headers: Iterable[Header], image_size: int | None) -> Shape:
    """The shape of pictures: of one channel where all are grey, and resized where that is asked.

    Raises:
      DataError: if they differ in size and are not to be resized.
    """
    channels, first = 1, None
    for name, size, mode in headers:
        first = first or (name, size)
        channels = channels if mode in ("1", "L") else 3
        if size != first[1] and not image_size:
            raise DataError(
                f"{name} is {size[0]}x{size[1]} but {first[0]} is {first[1][0]}x{first[1][1]}: "
                "give an image size to resize to."
            )
    assert first is not None, "no pictures"
    w, h = (image_size, image_size) if image_size else first[1]
    return h, w, channels


def from_files(pictures: Mapping[str, Sequence[Picture]], shape: Shape, **others: Any) -> Lazy:
    """Pictures under their names and arrays beside them; ``label`` is 0 if none is given."""
    size = len(next(iter(pictures.values())))
    others = {"label": np.zeros(size, np.int32)} | others

    def read(index: np.ndarray) -> Batch:
        rows = index.tolist()
        x = {k: np.stack([row[i].read(shape) for i in rows]) for k, row in pictures.items()}
        return x | take(others, index)

    return Lazy(size, read)


# --- folders ---------------------------------------------------------------------------------


def images_below(root: Path) -> list[Path]:
    """Every image below ``root``, relative to it, in order.

    Raises:
      DataError: if there are fewer than two.
    """
    found = sorted(p.relative_to(root) for p in root.rglob("*") if p.suffix.lower() in SUFFIXES)
    if len(found) < 2:
        raise DataError(f"{root} holds {len(found)} images; at least two are needed.")
    return found


def _captioned(root: Path) -> tuple[list[Path], list[str] | None]:
    """The images of a folder and their captions, where a ``metadata.jsonl`` tells them."""
    path = root / "metadata.jsonl"
    if not path.is_file():
        return images_below(root), None
    files, texts = [], []
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            entry = json.loads(line)
            file, text = Path(entry["file_name"]), entry["text"]
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


def _class_of(file: Path) -> str:
    return file.parts[0] if len(file.parts) > 1 else ""


def folder(name: str, root: Path, image_size: int | None) -> DataSet:
    """Images of a folder; sub-folders are classes, and every tenth image is for testing.

    Sub-folders ``train`` and ``test``, and ``validation``, hold these parts. Where there is a
    ``metadata.jsonl``, whose lines hold ``file_name`` and ``text``, the images are those it names
    and each has its caption, ``text [L]``: uint8 UTF-8.

    Raises:
      DataError: for a missing or corrupt image, images that differ in size, or bad metadata.
    """
    folders = split_folders(root)
    if "train" not in folders or len(folders) < 2:
        folders = {"train": root}
    found = {split: _captioned(place) for split, place in folders.items()}
    told = {split: texts for split, (_, texts) in found.items() if texts is not None}
    if told and len(told) < len(found):
        lacking = next(place for split, place in folders.items() if split not in told)
        raise DataError(f"{lacking} lacks metadata.jsonl, which the other parts of the set have.")
    pictures = {s: [Picture(folders[s] / f) for f in files] for s, (files, _) in found.items()}
    shape = common_shape((p.header() for part in pictures.values() for p in part), image_size)
    names = sorted({_class_of(f) for files, _ in found.values() for f in files} - {""})
    number = {"": 0} | {c: i for i, c in enumerate(names)}
    text = captions(told)

    def source(split: str) -> Source:
        labels = [number[_class_of(f)] for f in found[split][0]]
        others = {"label": np.asarray(labels, np.int32)}
        others |= {"text": text[split]} if told else {}
        return in_memory(from_files({"x": pictures[split]}, shape, **others))

    sources = {split: source(split) for split in found}
    return image_set(name, sources, shape, classes=names, ask=("text", "label") if told else ())


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
    """``mnist``, ``fashion_mnist`` or ``cifar10`` from a folder with its original files.

    Raises:
      DataError: if a file is missing or corrupt, naming it.
    """
    parts = (_read_cifar if name == "cifar10" else _read_mnist)(name, folder)
    shape = parts["train"][0].shape[1:]
    if image_size:
        shape = (image_size, image_size, shape[-1])
        parts = {s: (np.stack([fit(i, shape) for i in x]), y) for s, (x, y) in parts.items()}
    splits = {s: Arrays({"x": x, "label": y.astype(np.int32)}) for s, (x, y) in parts.items()}
    return image_set(name, splits, shape, classes=CLASSES[name].split())


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
