"""The training loop: dispatches compiled steps, and keeps the host out of their way."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax import Array

from jaxgen.training.logging import Advance, MetricLog


class NonFiniteLoss(FloatingPointError):
    """Raised by :func:`fit`, with the step; the last good checkpoint is kept."""


def fit(
    state: Any,
    step: Callable[[Any, Any, Array], tuple[Any, dict[str, Array]]],
    batches: Iterator[Any],
    key: Array,
    *,
    start: int,
    stop: int,
    steps_per_call: int = 1,
    log: MetricLog,
    log_every: int,
    checkpoint: Callable[[int, Any], None],
    checkpoint_every: int,
    advance: Advance,
) -> Any:
    """Runs steps ``start + 1 .. stop`` and returns the state.

    Metrics stay on the device until a logging step, where those of every step since the last one
    are fetched together, checked and averaged: dispatch is never held up in between. ``checkpoint``
    is called with (steps made, state) every ``checkpoint_every`` steps and after the last one,
    only ever on a state whose losses were finite.

    Raises:
      NonFiniteLoss: naming the first step whose loss is not finite.
    """
    pending: list[dict[str, Array]] = []
    done = start
    advance(activity="compiling")
    while done < stop:
        state, metrics = step(state, next(batches), key)
        if done == start:
            jax.block_until_ready(metrics)
            advance(activity="training")
        done += steps_per_call
        pending.append(metrics)
        saving = done % checkpoint_every < steps_per_call or done >= stop
        if saving or done % log_every < steps_per_call:
            means = _collect(pending, done)
            pending = []
            log.write(done, means)
            advance(0, f"loss {means[_main(means)]:.4f}")
        if saving:
            checkpoint(done, state)
        advance(steps_per_call)
    return state


def _main(means: dict[str, float]) -> str:
    return "loss" if "loss" in means else next(name for name in means if name.endswith("loss"))


def _collect(pending: list[dict[str, Array]], done: int) -> dict[str, float]:
    """The mean of each metric over all pending steps, once every loss among them is finite."""
    host = jax.device_get(pending)
    rows = {name: np.concatenate([np.atleast_1d(m[name]) for m in host]) for name in host[0]}
    for name, values in rows.items():
        if name.endswith("loss") and not np.isfinite(values).all():
            first = done - len(values) + 1 + int(np.argmin(np.isfinite(values)))
            raise NonFiniteLoss(
                f"{name} is not finite at step {first}: "
                "lower the learning rate or clip the gradient."
            )
    return {name: math.fsum(values) / len(values) for name, values in rows.items()}
