"""What is computed once and kept for later starts."""

from __future__ import annotations

import math
import os
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np

from jaxgen.files import replacing

ROWS_LIMIT = 2**35  # bytes of decoded pictures


def cache_dir() -> Path:
    """``$JAXGEN_CACHE``, or ``~/.cache/jaxgen``."""
    return Path(os.environ.get("JAXGEN_CACHE", "~/.cache/jaxgen")).expanduser()


def kept(name: str, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of ``make()``, read from the cache's ``data/NAME.npz`` once they are there.

    A file that cannot be read is made anew; where none can be written, nothing is kept.
    """
    path = cache_dir() / "data" / f"{name}.npz"
    try:
        with np.load(path) as arrays:
            return dict(arrays)
    except (OSError, ValueError, zipfile.BadZipFile):
        arrays = make()
    with suppress(OSError), replacing(path) as file:
        np.savez(file, allow_pickle=False, **arrays)
    return arrays


def kept_rows(
    name: str, shape: tuple[int, ...], rows: Callable[[], Iterator[np.ndarray]]
) -> np.ndarray | None:
    """The uint8 array ``shape`` of the cache's ``data/NAME.npy``, memory-mapped.

    It is written from ``rows()``, one after the other, if it is not there; so it may be larger
    than memory. None where it cannot be written, or would take more than half of what is free.
    Of files pictures-*.npy those that were not used for longest go where they take more than
    ``ROWS_LIMIT``.
    """
    path = cache_dir() / "data" / f"{name}.npy"
    if (there := _mapped(path, shape)) is not None:
        with suppress(OSError):
            os.utime(path)  # it is in use
        return there
    header = {"descr": "|u1", "fortran_order": False, "shape": shape}
    try:
        with replacing(path) as file:
            if 2 * math.prod(shape) > shutil.disk_usage(path.parent).free:
                raise OSError(f"{path.parent} has not the room")
            np.lib.format.write_array_header_1_0(file, header)
            for row in rows():  # not through a mapping, which a full disk ends with a bus error
                file.write(row.tobytes())
    except OSError:
        return None
    _make_room(path)
    return _mapped(path, shape)


def _make_room(new: Path) -> None:
    """Removes the oldest files of pictures, but for the new one, until they are small enough."""
    with suppress(OSError):  # another process does so, too
        files = [(p.stat(), p) for p in new.parent.glob("pictures-*.npy")]
        files.sort(key=lambda file: file[0].st_mtime_ns)
        excess = sum(stat.st_size for stat, _ in files) - ROWS_LIMIT
        for stat, path in files:
            if excess > 0 and path != new:
                path.unlink()  # who has mapped it keeps it
                excess -= stat.st_size


def _mapped(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    with suppress(OSError, ValueError):
        rows = np.load(path, mmap_mode="r")
        if (rows.shape, rows.dtype) == (shape, np.uint8):
            return np.asarray(rows)
    return None


def keep_compiled() -> None:
    """Compiled programs are kept between runs, so that only the first start compiles.

    Where they cannot be written or read, they are compiled anew, without a word.
    """
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
