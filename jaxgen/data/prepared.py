"""Sets that two libraries prepare: tensorflow-datasets, read without TensorFlow, and datasets."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from jaxgen.data import images, text
from jaxgen.data.images import LEVELS, Lazy, image_set, in_memory, splits_of
from jaxgen.data.pictures import Header, common_shape, fit, is_grey
from jaxgen.data.records import Batch, DataError, DataSet, Source, spread, take
from jaxgen.data.text import captions, text_set

STRINGS = ("string", "large_string")
T = TypeVar("T")


def _digest(*parts: Any) -> str:
    return hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:16]


def _first(features: Mapping[str, Any], kind: type) -> str | None:
    return next((name for name, feature in features.items() if isinstance(feature, kind)), None)


def _with_train(name: str, found: Mapping[str, T]) -> dict[str, T]:
    splits = splits_of(found)
    if "train" not in splits:
        raise DataError(f"'{name}' has no split 'train' to learn from: it has {list(found)}.")
    return splits


# --- tensorflow-datasets ---------------------------------------------------------------------


def _quiet_tfds() -> Any:
    from absl import logging as absl_logging

    absl_logging.set_verbosity("error")
    import tensorflow_datasets as tfds

    return tfds


def names(data_dir: str | None) -> list[str]:
    """The sets that tensorflow-datasets knows, and those that are prepared in ``data_dir``."""
    known = _quiet_tfds().list_builders(with_community_datasets=False)
    there = Path(data_dir).glob("*/") if data_dir else ()
    return [*known, *(path.name for path in there)]


@contextmanager
def without_code_by_name(tfds: Any) -> Iterator[None]:
    """Refuses what a prepared set's files would have imported: tensorflow-datasets imports the
    modules of feature classes that a ``features.json`` names. Its own and those that the running
    program has imported are known.

    Raises:
      DataError: naming the class.
    """
    connector = tfds.features.FeatureConnector
    by_name = connector.cls_from_name

    def known(name: str) -> Any:
        module = name.rpartition(".")[0]
        if name.startswith("tensorflow_datasets.") or module in sys.modules:
            return by_name(name)
        raise DataError(
            f"a prepared set names the feature class {name}, which tensorflow-datasets would "
            "import: import its module first, if you trust it."
        )

    connector.cls_from_name = known
    try:
        yield
    finally:
        connector.cls_from_name = by_name


def of_tensorflow(
    name: str,
    data_dir: str | None,
    manual_dir: str | None,
    image_size: int | None,
    length: int,
) -> DataSet:
    """The images and labels of a set of tensorflow-datasets, prepared if it is not; or its texts.

    Raises:
      DataError: if it cannot be prepared, has neither images nor text, or images differ in size.
    """
    tfds = _quiet_tfds()
    with without_code_by_name(tfds):
        try:
            builder = tfds.builder(name, data_dir=data_dir, try_gcs=False)
        except DataError:
            raise
        except (ValueError, AttributeError, KeyError, AssertionError) as error:
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise DataError(f"tensorflow-datasets cannot open '{name}' ({why}).") from error
        if not builder.is_prepared():
            builder = _prepare(tfds, builder, manual_dir)
        features = builder.info.features
    kinds = tfds.features.Image, tfds.features.ClassLabel, tfds.features.Text
    image, label, column = (_first(features, kind) for kind in kinds)
    if image is None and column is None:
        raise DataError(f"'{name}' has neither images nor text: its features are {list(features)}.")
    if image is None:
        if image_size:
            raise DataError(f"{name} is text: leave out --image-size.")
        rows = {split: builder.as_data_source(split=split) for split in builder.info.splits}
        told = {s: b"\n".join(e[column] for e in part) for s, part in rows.items()}
        return text_set(name, _with_train(name, told), length)
    shape = features[image].shape
    if image_size:
        shape = (image_size, image_size, 1 if shape[-1] == 1 else 3)
    if None in shape:
        raise DataError(f"the images of '{name}' differ in size: resize them with --image-size.")

    def source(split: str) -> Source:
        records = builder.as_data_source(split=split)

        def read(index: np.ndarray) -> Batch:
            examples = records.__getitems__(index.tolist())
            x = [fit(e[image], shape) if image_size else e[image] for e in examples]
            labels = [e[label] if label else 0 for e in examples]
            return {"x": np.stack(x), "label": np.asarray(labels, np.int32)}

        prepared = (Path(builder.data_dir) / "dataset_info.json").stat().st_mtime_ns
        digest = _digest(builder.data_dir, prepared, split, len(records), image_size)
        return in_memory(Lazy(len(records), read), f"{builder.name}-{digest}")

    splits = _with_train(name, {split: split for split in builder.info.splits})
    classes = features[label].names if label else ()
    sources, levels = {s: source(n) for s, n in splits.items()}, LEVELS.get(builder.name, 256)
    return image_set(name, sources, shape, classes=classes, levels=levels)


def _prepare(tfds: Any, builder: Any, manual_dir: str | None) -> Any:
    """Prepares a set once, as ArrayRecord files; tensorflow-datasets needs TensorFlow for it."""
    directory = Path(builder.data_dir).parents[1]
    try:
        import tensorflow  # noqa: F401  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        files = (images.ORIGINALS | text.ORIGINALS).get(builder.name)
        without = f", or name with --manual-dir a folder that holds {files}" if files else ""
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


# --- datasets --------------------------------------------------------------------------------


def of_hugging_face(name: str, place: str, image_size: int | None, length: int) -> DataSet:
    """A set of the hub, or a local folder of Parquet, Arrow or image files, or of ``save_to_disk``.

    The first image is ``x``, the first class label ``label``, and a string ``text`` or ``caption``
    a caption ``text [L]``; without images it is the text to model.

    Raises:
      DataError: if the library or the set is missing, or it has neither images nor text.
    """
    splits = _with_train(name, _hugging_face_splits(name, place))
    import datasets

    features = splits["train"].features
    image, label = (_first(features, f) for f in (datasets.Image, datasets.ClassLabel))
    strings = [k for k, f in features.items() if getattr(f, "dtype", "") in STRINGS]
    column = next((k for k in ("text", "caption") if k in strings), None)
    told = {s: [t or "" for t in rows[column][:]] for s, rows in splits.items()} if column else {}
    if not image and not column:
        raise DataError(f"'{name}' has neither images nor text: its features are {list(features)}.")
    if not image and image_size:
        raise DataError(f"{name} is text: leave out --image-size.")
    if not image:
        return text_set(name, {s: "\n".join(t).encode() for s, t in told.items()}, length)
    captioned = captions(told)

    def pictures(split: str, index: np.ndarray) -> list[tuple[Header, Any]]:
        try:
            found = splits[split].select_columns([image])[index.tolist()][image]
            numbered = zip(index.tolist(), found, strict=True)
            return [
                (Header(f"image {i} of '{split}'", x.size, is_grey(x.mode)), x) for i, x in numbered
            ]
        except (OSError, SyntaxError, ValueError, AttributeError) as error:
            raise DataError(f"an image of '{name}' cannot be read ({error}).") from error

    # A sample tells the shape, as to open all of a large set takes hours; what is read is checked.
    sample = [h for s, rows in splits.items() for h, _ in pictures(s, spread(len(rows), 100))]
    shape = common_shape(sample, image_size)

    def source(split: str) -> Source:
        rows = splits[split]
        labels = rows[label][:] if label else np.zeros(len(rows))
        others = {"label": np.asarray(labels, np.int32)}
        others |= {"text": captioned[split]} if column else {}

        def read(index: np.ndarray) -> Batch:
            found = pictures(split, index)
            common_shape([sample[0], *(header for header, _ in found)], image_size)
            return {"x": np.stack([fit(x, shape) for _, x in found])} | take(others, index)

        width = others["text"].shape[-1] if column else 0
        digest = _digest(rows._fingerprint, image, label, column, shape, width)
        return in_memory(Lazy(len(rows), read, digest), f"hf-{digest}")

    sources = {split: source(split) for split in splits}
    classes = features[label].names if label else ()
    return image_set(name, sources, shape, classes=classes, ask=("text", "label") if column else ())


def _hugging_face_splits(name: str, place: str) -> Mapping[str, Any]:
    try:
        import datasets
        from datasets.exceptions import DatasetsError
    except ImportError as error:
        raise DataError(f"'{name}' needs a library: pip install 'jaxgen[hf]'.") from error
    path = Path(place).expanduser()
    saved = any((path / file).is_file() for file in ("dataset_dict.json", "state.json"))
    try:
        if saved:
            found: Any = datasets.load_from_disk(str(path))
        else:
            found = datasets.load_dataset(str(path) if path.is_dir() else place)
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise DataError(
            f"'{name}' cannot be loaded ({' '.join(str(error).split())}): give a folder, or a name "
            "of the Hugging Face hub while it can be reached."
        ) from error
    splits = {"train": found} if isinstance(found, datasets.Dataset) else found
    splits = {split: rows for split, rows in splits.items() if len(rows)}
    return {"train": next(iter(splits.values()))} if len(splits) == 1 else splits
