"""The training loop: dispatches compiled steps, and keeps the host out of their way."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import jax
import numpy as np
from jax import Array


class Advance(Protocol):
    """Reports progress: how many units were done, and what is going on now."""

    def __call__(self, amount: int = 0, note: str = "", *, activity: str | None = None) -> None: ...


class Log(Protocol):
    """Where the means of the metrics go."""

    def write(self, step: int, metrics: dict[str, Any]) -> None: ...


class NonFiniteLoss(FloatingPointError):
    """Raised by :func:`fit` where too many steps in a row were skipped; names the first."""


class Preempted(RuntimeError):
    """Raised by :func:`fit` after it saved, because it was asked to stop by a ``signal``."""

    def __init__(self, message: str, signal: int = 0) -> None:
        super().__init__(message)
        self.signal = signal


def fit(
    state: Any,
    step: Callable[[Any, Any, Array], tuple[Any, dict[str, Array]]],
    batches: Iterator[Any],
    key: Array,
    *,
    start: int,
    stop: int,
    steps_per_call: int = 1,
    log: Log,
    log_every: int,
    checkpoint: Callable[[int, Any], None],
    checkpoint_every: int,
    advance: Advance,
    max_skipped: int = 10,
    stopping: Callable[[int], int] = lambda done: 0,
    last: int | None = None,
) -> Any:
    """Runs steps ``start + 1 .. stop`` and returns the state; ``last`` is that of the whole run.

    Metrics stay on the device until a logging step, where those of every step since the last one
    are fetched together, checked and averaged: dispatch is never held up in between. ``checkpoint``
    is called with (steps made, state) every ``checkpoint_every`` steps and after the last one. A
    step whose loss is not finite or whose metric ``skipped`` is not 0 is left out of the average.

    Raises:
      NonFiniteLoss: if ``max_skipped`` steps in a row were skipped, or the loss of a step that
        tells of no ``skipped`` is not finite.
      Preempted: after a checkpoint, as soon as ``stopping(steps made)``.
    """
    pending: list[dict[str, Array]] = []
    done, in_a_row = start, np.zeros((), int)
    while done < stop:
        state, metrics = step(state, next(batches), key)
        if done == start:
            jax.block_until_ready(metrics)
            advance(activity="training")
        done += steps_per_call
        pending.append(metrics)
        stopped = stopping(done)
        saving = done % checkpoint_every < steps_per_call or done >= stop or stopped
        if saving or done % log_every < steps_per_call:
            means, in_a_row = _collect(pending, done, steps_per_call, in_a_row, max_skipped)
            pending = []
            log.write(done, means)
            advance(0, _note(means))
        if saving:
            checkpoint(done, state)
        advance(steps_per_call)
        if stopped and done < (last or stop):
            raise Preempted(f"stopped at step {done} of {last or stop}", stopped)
    return state


def _note(means: dict[str, np.ndarray]) -> str:
    """The loss and how many steps were skipped, for the progress bar."""
    name = "loss" if "loss" in means else next(name for name in means if name.endswith("loss"))
    skipped = sum(int(np.sum(v)) for k, v in means.items() if k.endswith("skipped"))
    return f"loss {np.mean(means[name]):.4f}" + (f", {skipped} skipped" if skipped else "")


def _collect(
    pending: list[dict[str, Array]],
    done: int,
    steps_per_call: int,
    in_a_row: np.ndarray,
    limit: int,
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The mean of each metric over the pending steps that were not skipped, and how many were.

    ``in_a_row`` counts the last steps that were skipped; the new count is returned. Values may have
    an axis of members after that of steps, and then both results have it.

    Raises:
      NonFiniteLoss: if ``limit`` in a row were skipped (by every member).
    """
    host = jax.device_get(pending)
    axis = np.concatenate if steps_per_call > 1 else np.stack
    rows = {name: axis([m[name] for m in host]) for name in host[0]}
    losses = [v for name, v in rows.items() if name.endswith("loss")]
    skips = [v for name, v in rows.items() if name.endswith("skipped")]
    limit = limit if skips else 1
    bad = ~np.all(np.isfinite(losses), axis=0) | (np.any(skips, axis=0) if skips else False)
    for i, skipped in enumerate(bad):
        in_a_row = np.where(skipped, in_a_row + 1, 0)
        if np.all(in_a_row >= limit):
            first = done - len(bad) + 1 + i - limit + 1
            raise NonFiniteLoss(
                "the loss, its gradient or its update is not finite from step "
                f"{first} on ({limit} in a row): lower the learning rate, clip the gradient, or "
                "find the operation by --debug-nans."
            )
    kept = np.sum(~bad, axis=0)
    kept = np.where(kept, kept, np.nan)  # no mean of nothing
    means = {
        name: np.sum(v, axis=0)
        if name.endswith("skipped")
        else np.sum(np.where(bad, 0.0, v), axis=0, dtype=np.float64) / kept
        for name, v in rows.items()
    }
    return means, in_a_row


class Waiting(Iterator):
    """An iterator that counts the seconds spent waiting for it."""

    def __init__(self, batches: Iterator) -> None:
        self._batches, self.seconds = batches, 0.0

    def first(self) -> Any:
        """The next element, which stays the next."""
        element = next(self)
        self._batches = itertools.chain([element], self._batches)
        return element

    def __next__(self) -> Any:
        begun = time.perf_counter()
        element = next(self._batches)
        self.seconds += time.perf_counter() - begun
        return element
