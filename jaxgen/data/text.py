"""Text as bytes: files to model, and captions."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxgen.data.records import Batch, DataError, DataSet, Tokens, windows

LONGEST_CAPTION = 256  # bytes
ORIGINALS = {"tiny_shakespeare": "input.txt"}  # what a manual_dir holds


def captions(texts: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
    """Each split's captions as UTF-8, uint8 ``[N, L]``: cut, or padded with zeros.

    L is the length of the longest in all splits, at most 256.
    """
    encoded = {split: [t.encode() for t in part] for split, part in texts.items()}
    longest = max((len(t) for part in encoded.values() for t in part), default=0)
    length = min(max(longest, 1), LONGEST_CAPTION)
    return {
        split: np.array(part, f"S{length}").view(np.uint8).reshape(len(part), length)
        for split, part in encoded.items()
    }


def text(name: str, path: Path, length: int) -> DataSet:
    """Windows of ``length`` bytes of a UTF-8 file, or of a folder's ``*.txt`` files joined.

    Raises:
      DataError: if there is no such file, one is no UTF-8, or a part holds no window.
    """
    files = sorted(path.rglob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path} holds no *.txt files: name another folder, or a file.")
    contents = []
    for file in files:
        try:
            contents.append(file.read_bytes())
            contents[-1].decode()
        except OSError as error:
            raise DataError(
                f"{file} cannot be read ({error.strerror}): name a file or a folder of *.txt files."
            ) from error
        except UnicodeDecodeError as error:
            raise DataError(f"{file} is no UTF-8 text ({error}): save it as such.") from error
    return _known(name, {"train": b"\n".join(contents)}, length)


def original(name: str, folder: Path, length: int) -> DataSet:
    """One of the sets of ``ORIGINALS`` from a folder with its original file.

    Split as tensorflow-datasets splits it: nine tenths, and half of the rest each.

    Raises:
      DataError: if the file is missing.
    """
    file = folder / ORIGINALS[name]
    if not file.is_file():
        raise DataError(f"{folder} lacks {file.name}, the original file of '{name}'.")
    whole = file.read_bytes()
    end = int(0.9 * len(whole))
    half = end + (len(whole) - end) // 2
    splits = {"train": whole[:end], "validation": whole[end:half], "test": whole[half:]}
    return _known(name, splits, length)


def python_topics(length: int) -> DataSet:
    """Windows of the language reference that comes with Python: what ``help('topics')`` shows.

    Its length and words are those of the Python that runs.
    """
    from pydoc_data.topics import topics

    whole = "\n\n".join(topics[name] for name in sorted(topics)).encode()
    return _known("python_topics", {"train": whole}, length)


def _known(name: str, splits: Mapping[str, bytes], length: int) -> DataSet:
    """:func:`text_set`, known again by all of its bytes."""
    digest = hashlib.sha256(b"".join(splits.values())).hexdigest()
    return replace(text_set(name, splits, length), contents=digest)


def text_set(name: str, splits: Mapping[str, bytes], length: int) -> DataSet:
    """Windows of ``length`` bytes: overlapping ones to train on, others to measure by.

    A missing ``test`` is ``validation``; a part that is missing then is cut off the end of
    ``train``, a twentieth each.

    Raises:
      DataError: if a part holds no window.
    """
    parts = {split: np.frombuffer(raw, np.uint8) for split, raw in splits.items()}
    if "test" not in parts and "validation" in parts:
        parts["test"] = parts.pop("validation")
    share = len(parts["train"]) // 20
    for split in ("test", "validation"):
        if split not in parts:
            parts["train"], parts[split] = np.split(parts["train"], [len(parts["train"]) - share])

    def ask(count: int) -> Batch:
        return {"prompt": np.zeros((count, 0), np.int32)}

    return DataSet(
        name,
        Tokens(length),
        windows(parts["train"], length),
        windows(parts["validation"], length, length),
        windows(parts["test"], length, length),
        ask=ask,
    )
