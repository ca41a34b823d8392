"""Data sets by name: embedded digits, tensorflow-datasets, folders of images, toy densities.

A data set is three random-access sources: to train on, to select models by, and to measure on once
all is chosen. A record is ``{"x": ..., "label": int}``: x is a uint8
image ``[H, W, C]`` holding bin numbers ``0 .. levels - 1``, or a float32 point ``[D]``. Images of
a few GiB or less are held in memory as arrays; larger sets are read record by record.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, SupportsIndex

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.data import toy
from jaxgen.data.cache import kept

VALIDATION_LIMIT = 5000  # records that are held out of a training set
MEMORY_LIMIT = 2 * 2**30  # bytes of decoded images that are held in memory
IMAGE_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif"}
IDX_SETS = {"mnist": "MNIST", "fashion_mnist": "FashionMNIST"}
IDX_FILES = {
    "train": ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    "test": ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
}


class DataError(ValueError):
    """Raised with one sentence that says what is wrong with a data set and how to mend it."""


class Source(Protocol):
    """Random access to records."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]: ...


@dataclass(frozen=True)
class Arrays:
    """A source in memory: ``x [N, ...]`` and ``label [N]`` int32."""

    x: np.ndarray
    label: np.ndarray

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return {"x": self.x[index], "label": self.label[index]}


@dataclass(frozen=True)
class Part:
    """The records of another source that ``index`` names."""

    source: Source
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self.source[int(self.index[index])]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return records(self.source, self.index[np.asarray(indices)])


@dataclass(frozen=True)
class DataSet:
    """Sources for training, validation and test, and what their records look like."""

    name: str
    train: Source
    validation: Source  # by which models are selected, and which no training sees
    test: Source
    shape: tuple[int, ...]  # of one x
    classes: int  # labels are 0 .. classes - 1
    levels: int | None  # values a pixel can take; None for points

    @property
    def is_image(self) -> bool:
        return self.levels is not None


def fetch(source: Source, index: np.ndarray) -> dict[str, np.ndarray]:
    """The records of ``index [n]``, stacked: ``{"x": [n, ...], "label": [n]}``."""
    if isinstance(source, Arrays):
        return {"x": source.x[index], "label": source.label[index]}
    found = records(source, index)
    return {
        "x": np.stack([r["x"] for r in found]),
        "label": np.asarray([r["label"] for r in found], np.int32),
    }


def records(source: Source, index: np.ndarray) -> list[dict[str, Any]]:
    """The records of ``index [n]``, read together where the source can."""
    many = getattr(source, "__getitems__", None)
    return many(index.tolist()) if many else [source[int(i)] for i in index]


def spread(size: int, limit: int) -> np.ndarray:
    """Up to ``limit`` of the indices below ``size``, evenly spaced: sorted sets stay balanced."""
    return np.arange(size) if size <= limit else np.linspace(0, size - 1, limit).astype(int)


def some(source: Source, limit: int) -> dict[str, np.ndarray]:
    """Up to ``limit`` records, evenly spread over the source."""
    return fetch(source, spread(len(source), limit))


def in_chunks(source: Source, size: int, limit: int) -> Iterator[dict[str, np.ndarray]]:
    """The records of :func:`some`, ``size`` at a time, so that memory holds no more."""
    index = spread(len(source), limit)
    for i in range(0, len(index), size):
        yield fetch(source, index[i : i + size])


def hold_out(source: Source) -> tuple[Source, Source]:
    """A training set without every tenth record, or fewer of a large set, and these records.

    Fewer than ten records give their last; a single one is in both.
    """
    size = len(source)
    every = max(10, math.ceil(size / VALIDATION_LIMIT))
    chosen = np.arange(size) % every == every - 1
    chosen[-1] |= not chosen.any()
    kept = ~chosen if size > 1 else chosen
    if isinstance(source, Arrays):
        train, held = (Arrays(source.x[mask], source.label[mask]) for mask in (kept, chosen))
        return train, held
    return Part(source, np.flatnonzero(kept)), Part(source, np.flatnonzero(chosen))


def to_unit(x: Array | np.ndarray, levels: int) -> Array:
    """Bin numbers ``0 .. levels - 1`` to intensities in [0, 1], float32."""
    return jnp.asarray(x, jnp.float32) / (levels - 1)


def to_signed(x: Array | np.ndarray, levels: int) -> Array:
    """Bin numbers ``0 .. levels - 1`` to [-1, 1], float32."""
    return 2 * to_unit(x, levels) - 1


def to_bytes(x: Array | np.ndarray) -> np.ndarray:
    """Images in [-1, 1] to uint8 0..255, for files and screens."""
    return np.asarray(np.clip(np.round((np.asarray(x) + 1) * 127.5), 0, 255), np.uint8)


def random_flip(key: Array, x: Array) -> Array:
    """Mirrors each image of ``[B, H, W, C]`` left to right with probability 1/2."""
    flip = jax.random.bernoulli(key, shape=(x.shape[0], 1, 1, 1))
    return jnp.where(flip, x[:, :, ::-1], x)


def load(
    name: str,
    *,
    data_dir: str | None = None,
    manual_dir: str | None = None,
    image_size: int | None = None,
) -> DataSet:
    """Loads a data set by name.

    Args:
      name: ``digits``, a toy density (``8gaussians``, ``moons``, ``swissroll``, ``checkerboard``),
        ``folder:PATH``, or the name of any image set of tensorflow-datasets.
      data_dir: where tensorflow-datasets keeps prepared data (``~/tensorflow_datasets``).
      manual_dir: a folder with a set's original files, to prepare it from without a network.
      image_size: crops images to squares and resizes them; needed where sizes differ.

    Raises:
      DataError: in one sentence, for an unknown name (with the nearest ones), data that is not
        prepared, a missing or corrupt image (which file), or images that differ in size.
    """
    if name == "digits":
        return _digits()
    if name in toy.DENSITIES:
        return _toy(name)
    if name.startswith("folder:"):
        return _folder(Path(name.removeprefix("folder:")).expanduser(), image_size)
    return _tfds(name, data_dir, manual_dir, image_size)


def _digits() -> DataSet:
    """scikit-learn's 1,797 digits, 8x8, 17 grey levels: 1,295 to train on, 143 and 359 held out."""

    def read() -> dict[str, np.ndarray]:
        from sklearn.datasets import load_digits

        bunch: Any = load_digits()
        return {"x": bunch.images.astype(np.uint8), "label": bunch.target.astype(np.int32)}

    arrays = kept("digits", read)  # importing scikit-learn takes most of a second
    x, label = arrays["x"][..., None], arrays["label"]
    held_out = np.arange(len(x)) % 5 == 4
    train, validation = hold_out(Arrays(x[~held_out], label[~held_out]))
    return DataSet(
        name="digits",
        train=train,
        validation=validation,
        test=Arrays(x[held_out], label[held_out]),
        shape=(8, 8, 1),
        classes=10,
        levels=17,
    )


def _toy(name: str) -> DataSet:
    def draw(seed: int, n: int) -> Arrays:
        return Arrays(toy.DENSITIES[name](np.random.default_rng(seed), n), np.zeros(n, np.int32))

    return DataSet(
        name,
        train=draw(0, 50_000),
        validation=draw(2, 5_000),
        test=draw(1, 10_000),
        shape=(2,),
        classes=1,
        levels=None,
    )


def _resize(image: Any, size: int) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.fit(image, (size, size), Image.Resampling.LANCZOS)


def _folder(root: Path, image_size: int | None) -> DataSet:
    """Every image below ``root``; sub-folders are classes; every tenth image is for testing."""
    from PIL import Image

    if not root.is_dir():
        raise DataError(f"there is no folder {root}.")
    paths = sorted(p for p in root.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES)
    if len(paths) < 2:
        raise DataError(f"{root} holds {len(paths)} images; at least two are needed.")
    names = sorted({p.relative_to(root).parts[0] for p in paths if p.parent != root})

    def read(path: Path) -> np.ndarray:
        try:
            with Image.open(path) as image:
                image = image.convert("L" if image.mode in ("1", "L") else "RGB")
                return np.asarray(_resize(image, image_size) if image_size else image)
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path} cannot be read as an image ({error}): remove it.") from error

    images = [read(p) for p in paths]
    images = [x[..., None] if x.ndim == 2 else x for x in images]
    if any(x.shape[-1] == 3 for x in images):
        images = [np.repeat(x, 3, axis=-1) if x.shape[-1] == 1 else x for x in images]
    for path, x in zip(paths, images, strict=True):
        if x.shape != images[0].shape:
            raise DataError(
                f"{path} is {x.shape[1]}x{x.shape[0]} but {paths[0]} is "
                f"{images[0].shape[1]}x{images[0].shape[0]}: give an image size to resize to."
            )
    x = np.stack(images)
    label = np.asarray(
        [names.index(p.relative_to(root).parts[0]) if p.parent != root else 0 for p in paths],
        np.int32,
    )
    held_out = np.arange(len(x)) % 10 == 9
    if not held_out.any():
        held_out[-1] = True
    train, validation = hold_out(Arrays(x[~held_out], label[~held_out]))
    return DataSet(
        name=f"folder:{root}",
        train=train,
        validation=validation,
        test=Arrays(x[held_out], label[held_out]),
        shape=x.shape[1:],
        classes=max(len(names), 1),
        levels=256,
    )


def _quiet_tfds() -> Any:
    from absl import logging as absl_logging

    absl_logging.set_verbosity("error")
    import tensorflow_datasets as tfds

    return tfds


@dataclass(frozen=True)
class _Records:
    """A tensorflow-datasets source under this module's names, resized where asked."""

    source: Any
    image: str
    label: str | None
    image_size: int | None

    def __len__(self) -> int:
        return len(self.source)

    def _record(self, example: dict[str, Any]) -> dict[str, Any]:
        x = example[self.image]
        if self.image_size:
            from PIL import Image

            picture = Image.fromarray(x[..., 0] if x.shape[-1] == 1 else x)
            x = np.asarray(_resize(picture, self.image_size))
            x = x[..., None] if x.ndim == 2 else x
        return {"x": x, "label": example[self.label] if self.label else 0}

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        return self._record(self.source[index])

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        return [self._record(e) for e in self.source.__getitems__(indices)]


def _tfds(
    name: str, data_dir: str | None, manual_dir: str | None, image_size: int | None
) -> DataSet:
    tfds = _quiet_tfds()
    base = name.split("/")[0].split(":")[0]
    known = tfds.list_builders(with_community_datasets=False)
    if base not in known and not (data_dir and (Path(data_dir) / base).is_dir()):
        known = ["digits", *toy.DENSITIES, *known]
        instead = f"choose {', '.join(known[:5])}, folder:PATH, or an image set of TFDS"
        raise DataError(f"unknown data set '{name}'{did_you_mean(base, known, instead)}")
    builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
    if not builder.is_prepared():
        builder = _prepare(tfds, builder, manual_dir)
    features = builder.info.features
    images = [k for k, f in features.items() if isinstance(f, tfds.features.Image)]
    labels = [k for k, f in features.items() if isinstance(f, tfds.features.ClassLabel)]
    if not images:
        raise DataError(f"data set '{name}' has no images: its features are {list(features)}.")
    shape = features[images[0]].shape
    if image_size:
        shape = (image_size, image_size, shape[-1])
    if None in shape:
        raise DataError(f"the images of '{name}' differ in size: give an image size to resize to.")

    def source(split: str) -> Source:
        records = _Records(
            builder.as_data_source(split=split), images[0], next(iter(labels), None), image_size
        )
        if len(records) * int(np.prod(shape)) > MEMORY_LIMIT:
            return records

        def decode() -> dict[str, np.ndarray]:
            chunks = np.array_split(np.arange(len(records)), max(1, len(records) // 1000))
            parts = [fetch(records, chunk) for chunk in chunks]
            return {k: np.concatenate([p[k] for p in parts]) for k in ("x", "label")}

        prepared = (Path(builder.data_dir) / "dataset_info.json").stat().st_mtime_ns
        identity = f"{builder.data_dir} {prepared} {split} {len(records)} {image_size}"
        digest = hashlib.sha256(identity.encode()).hexdigest()[:16]
        return Arrays(**kept(f"{base}-{digest}", decode))

    splits = builder.info.splits
    test = next((s for s in ("test", "validation") if s in splits), None)
    train = source("train" if test else "train[:90%]")
    if test == "test" and "validation" in splits:
        validation = source("validation")
    else:
        train, validation = hold_out(train)
    return DataSet(
        name=name,
        train=train,
        validation=validation,
        test=source(test or "train[90%:]"),
        shape=tuple(shape),
        classes=features[labels[0]].num_classes if labels else 1,
        levels=256,
    )


def _prepare(tfds: Any, builder: Any, manual_dir: str | None) -> Any:
    """Prepares a set once, as ArrayRecord files: from its original files, or by downloading.

    The two sets in IDX format are prepared without TensorFlow; every other builder needs it.
    """
    directory = Path(builder.data_dir).parents[1]
    if builder.name in IDX_SETS and manual_dir:
        builder = _idx_builder(tfds, builder.name, Path(manual_dir))(
            data_dir=directory, file_format="array_record"
        )
        builder.download_and_prepare()
        return builder
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        files = ", ".join(f for pair in IDX_FILES.values() for f in pair)
        without = f" or give a manual_dir that holds {files}" if builder.name in IDX_SETS else ""
        raise DataError(
            f"'{builder.name}' is not prepared in {directory}: "
            f"pip install 'jaxgen[prepare]' to prepare it{without}."
        ) from error
    builder = tfds.builder(
        builder.name, data_dir=directory, file_format="array_record", try_gcs=False
    )
    config = tfds.download.DownloadConfig(manual_dir=manual_dir, try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return builder


def _idx_builder(tfds: Any, name: str, manual_dir: Path) -> Any:
    """The tensorflow-datasets builder of an IDX set, reading its four files with NumPy."""
    from PIL import Image

    for file in (f for pair in IDX_FILES.values() for f in pair):
        if not (manual_dir / file).is_file():
            raise DataError(f"{manual_dir} lacks {file}, one of the original files of '{name}'.")

    def png(x: np.ndarray) -> bytes:
        buffer = io.BytesIO()
        Image.fromarray(x).save(buffer, "PNG")
        return buffer.getvalue()

    def examples(images: str, labels: str) -> Iterable[tuple[int, dict[str, Any]]]:
        x = read_idx(manual_dir / images)
        y = read_idx(manual_dir / labels)
        for i in range(len(x)):
            yield i, {"image": png(x[i]), "label": int(y[i])}

    base: Any = getattr(tfds.image_classification, IDX_SETS[name])

    class Builder(base, skip_registration=True):  # pyright: ignore
        def _split_generators(self, dl_manager: Any) -> Any:
            del dl_manager
            return {split: examples(*files) for split, files in IDX_FILES.items()}

    Builder.name = name
    return partial(Builder)


def read_idx(path: Path) -> np.ndarray:
    """A gzipped IDX file of unsigned bytes (LeCun's MNIST format).

    Raises:
      DataError: if it is not one, naming the file.
    """
    try:
        raw = gzip.decompress(path.read_bytes())
        rank = raw[3]
        if raw[:3] != b"\x00\x00\x08" or not 1 <= rank <= 3:
            raise ValueError("wrong magic number")
        shape = np.frombuffer(raw, ">u4", rank, offset=4)
        return np.frombuffer(raw, np.uint8, offset=4 + 4 * rank).reshape(*shape)
    except (OSError, EOFError, ValueError, IndexError) as error:
        raise DataError(f"{path} is not a gzipped IDX file of bytes ({error}).") from error


def did_you_mean(name: str, known: Iterable[str], instead: str | None = None) -> str:
    """A sentence's end: the names nearest to a wrong one, else ``instead``, else all of them."""
    known = list(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f": did you mean {' or '.join(near)}?"
    return f": {instead or 'choose one of ' + ', '.join(known)}."
