"""What is computed once and kept for later starts."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import jax
import numpy as np


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
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        os.replace(part, path)
    except OSError:
        with suppress(OSError):
            part.unlink()
    return arrays


def keep_compiled() -> None:
    """Compiled programs are kept between runs, so that only the first start compiles."""
    jax.config.update("jax_compilation_cache_dir", str(cache_dir() / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
