"""Checkpoints through Orbax: asynchronous, atomic, verified, the last n and the best kept.

What is restored is what was saved, or is not used: each checkpoint carries a :func:`fingerprint` of
its arrays, and one that cannot be read or has another is left for the one before.
"""

from __future__ import annotations

import errno
import gc
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax import Array
from orbax.checkpoint import checkpoint_managers as managers

from jaxgen.training.logging import console
from jaxgen.training.signals import held_back


class NoCheckpoint(FileNotFoundError):
    """Raised where a checkpoint is needed and there is none."""


class DamagedCheckpoint(ValueError):
    """Raised where what is read is not what was saved."""


class StorageError(OSError):
    """Raised where a checkpoint or another file could not be written; what was there is intact."""


FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FORBIDDEN = (
    errno.EROFS, errno.EACCES, errno.EPERM, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EIO,
    errno.ESTALE, errno.ENAMETOOLONG,
)  # fmt: skip


@contextmanager
def written_or_told(place: Path, *, elsewhere: str, with_room: str) -> Generator[None]:
    """Turns what keeps a file of the block from being written into a sentence.

    Raises:
      StorageError: with the file, else ``place``, and the remedy: ``elsewhere`` where nothing may
        be written, ``with_room`` where the disk is full.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in FULL + FORBIDDEN:
            raise
        remedy = f"make room there, {with_room}" if error.errno in FULL else elsewhere
        raise StorageError(
            f"cannot write to {error.filename or place} ({error.strerror}): {remedy}."
        ) from error


def fingerprint(tree: Any) -> list[int]:
    """One number a leaf: sum_i (2 i + 1) word_i mod 2^32, over the words of its bits.

    The weights are odd and so invertible: any change of a single word is seen. The sum is of
    integers, so it does not depend on how the arrays are divided over devices, nor on whether they
    add it up or the host does.
    """
    leaves = jax.tree.leaves(tree)
    if jax.default_backend() == "cpu" and all(x.is_fully_addressable for x in leaves):
        return [_fingerprint_on_host(np.asarray(x)) for x in leaves]  # with nothing to compile
    return jax.device_get(_fingerprint_on_devices(leaves)).tolist()


def _fingerprint_on_host(x: np.ndarray) -> int:
    words = np.ascontiguousarray(x).reshape(-1).view(f"uint{8 * min(x.dtype.itemsize, 4)}")
    weights = 2 * np.arange(words.size, dtype=np.uint32) + 1
    return int(np.sum(weights * words, dtype=np.uint32))


@jax.jit
def _fingerprint_on_devices(leaves: list[Array]) -> Array:
    def of(x: Array) -> Array:
        x = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else x
        words = jax.lax.bitcast_convert_type(x, f"uint{8 * min(x.dtype.itemsize, 4)}")
        i = jnp.arange(words.size, dtype=jnp.uint32).reshape(words.shape)
        return jnp.sum((2 * i + 1) * words.astype(jnp.uint32), dtype=jnp.uint32)

    return jnp.stack([of(x) for x in leaves])


def _score(metrics: Any) -> float:
    return metrics["score"]


def _reason(error: BaseException) -> str:
    """What the system says, else the first line of an error; storage libraries write pages."""
    if "tree structures do not match" in str(error):
        return "its state has another structure: it is of another version, or of other options"
    if code := re.search(r"os_error_code='(\d+)'", str(error)):
        return os.strerror(int(code[1]))
    return f"{type(error).__name__}: {''.join(str(error).strip().splitlines()[:1])[:160]}"


def _set_unreadable_aside(directory: Path) -> dict[int, str]:
    """Renames checkpoints whose score cannot be read, which a manager reads first of all.

    Returns why, by step.
    """
    damaged = {}
    for path in directory.glob("*/metrics/metrics"):
        folder = path.parents[1]
        try:
            float(json.loads(path.read_text())["score"])
        except (ValueError, TypeError, KeyError) as error:
            if folder.name.isdigit():
                damaged[int(folder.name)] = _reason(error)
                folder.rename(folder.with_name(f"damaged-{folder.name}"))
    return damaged


@contextmanager
def told_once() -> Generator[None]:
    """What the storage library says of a failure, in pages, before it raises it: it is not heard.

    Reads and writes that a failed one leaves behind come from threads, and find the event loop
    closed.
    """
    loggers = {name: logging.getLogger(name) for name in ("absl", "asyncio")}
    levels, hook = {name: logger.level for name, logger in loggers.items()}, sys.unraisablehook

    def hear(unraisable: Any) -> None:
        if "Event loop is closed" not in str(unraisable.exc_value):
            hook(unraisable)

    for logger in loggers.values():
        logger.setLevel(logging.CRITICAL)
    sys.unraisablehook = hear
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        try:
            yield
        except Exception:
            gc.collect()
            time.sleep(0.2)
            raise
        finally:
            for name, logger in loggers.items():
                logger.setLevel(levels[name])
            sys.unraisablehook = hook


class Checkpoints:
    """The checkpoints of one run: state, data position, config, and a validation score.

    Args:
      directory: holds one folder a step; made on the first save.
      keep: how many of the latest to keep; the one with the lowest score is kept besides.
    """

    def __init__(self, directory: Path | str, keep: int = 3) -> None:
        self.directory = Path(directory).absolute()
        self._damaged = _set_unreadable_aside(self.directory)
        policy = managers.AnyPreservationPolicy(
            [
                managers.LatestN(keep),
                managers.BestN(
                    get_metric_fn=_score, reverse=True, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy, best_fn=_score, best_mode="min"
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def save(self, step: int, state: Any, config: dict, score: float) -> None:
        """Starts to write the state after ``step`` steps; the next save or close waits for it.

        The data position is the step: batch i of a run is a function of (seed, i) alone.

        Raises:
          StorageError: if this or the save before it could not be written.
        """
        if step in self._manager.all_steps():
            return
        about = {
            "config": config,
            "position": step,
            "score": score,
            "fingerprint": fingerprint(state),
        }
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), about=ocp.args.JsonSave(about)
        )
        try:
            self._manager.save(step, args=items, metrics={"score": score})
        except Exception as error:
            raise self._unwritten(error) from error

    def steps(self) -> list[int]:
        """The steps that can be restored, rising."""
        return sorted(self._manager.all_steps())

    def best(self) -> int | None:
        """The step with the lowest score."""
        return self._manager.best_step()

    def restore(self, abstract: Any, step: int | None = None) -> tuple[int, Any]:
        """The step, which is also the data position, and its state.

        If ``step`` is None it is the latest that is whole.

        ``abstract``, or what it answers for a step, is a tree of arrays or ``ShapeDtypeStruct``
        whose shardings say where each array goes, so a run may come back on another number of
        devices. A damaged latest checkpoint is passed over with a warning.

        Raises:
          NoCheckpoint: where there is none, or not that one.
          DamagedCheckpoint: where that one, or every one, is damaged.
        """
        steps, damaged = self.steps(), dict(self._damaged)
        if not steps or (step is not None and step not in steps):
            wanted = "no checkpoint" if step is None else f"no checkpoint of step {step}"
            raise NoCheckpoint(f"{wanted} in {self.directory} (there: {steps or 'none'}).")
        for candidate in reversed(steps) if step is None else [step]:
            try:
                with held_back(), told_once():
                    state = self._read(abstract, candidate)
            except jax.errors.JAXTypeError:  # of a trace, not of a file
                raise
            except Exception as error:  # whatever the readers of damaged files raise
                damaged[candidate] = _reason(error)
                continue
            for bad, reason in damaged.items():
                console.print(
                    f"warning: the checkpoint of step {bad} in {self.directory} is damaged "
                    f"({reason}); using the one of step {candidate}."
                )
            return candidate, state
        reasons = "; ".join(f"step {bad}: {reason}" for bad, reason in damaged.items())
        raise DamagedCheckpoint(
            f"no checkpoint to use in {self.directory} ({reasons}): name another with --checkpoint "
            f"(there: {steps}), or train anew with another --dir."
        )

    def _read(self, abstract: Any, step: int) -> Any:
        abstract = abstract(step) if callable(abstract) else abstract
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, abstract)
        items = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), about=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=items)
        state, about = restored["state"], restored["about"]
        if fingerprint(state) != about["fingerprint"]:
            raise DamagedCheckpoint("its arrays are not those that were saved.")
        if about["position"] != step or self._manager.metrics(step) != {"score": about["score"]}:
            raise DamagedCheckpoint("its description is not the one that was saved.")
        return state

    def drop_after(self, step: int) -> None:
        """Removes the checkpoints of later steps, which a run resumed here would write anew."""
        for later in [s for s in self.steps() if s > step]:
            self._manager.delete(later)

    def wait(self) -> None:
        """Waits for the save under way.

        Raises:
          StorageError: if it could not be written.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:
            raise self._unwritten(error) from error

    def close(self) -> None:
        """Waits for the save under way, and ends."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def _unwritten(self, error: Exception) -> StorageError:
        kept = sorted(ocp.utils.checkpoint_steps(self.directory)) if self.directory.exists() else []
        last = f"the last whole one is of step {kept[-1]}" if kept else "there is none before it"
        return StorageError(
            f"a checkpoint in {self.directory} could not be written ({_reason(error)}): {last}; "
            "make room, then --resume."
        )

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.close()
        except StorageError:
            if error is None:  # else the first error is the one to hear of
                raise
