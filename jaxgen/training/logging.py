"""Where numbers go while a run goes on: ``metrics.jsonl``, TensorBoard, and the terminal."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from jaxgen.files import replacing
from jaxgen.training.loop import Advance

FLUSHED_EVERY = 10.0  # seconds, for TensorBoard to show
console = Console(highlight=False, soft_wrap=True)


class MetricLog:
    """Appends one JSON object a line to ``metrics.jsonl`` and the same scalars to TensorBoard.

    Opened at step ``start`` it first drops the lines after it: a resumed run writes them anew.
    """

    def __init__(self, directory: Path, start: int = 0) -> None:
        # Not its SummaryWriter, whose thread ends where the disk is full, and the run waits for it.
        from tensorboardX.event_file_writer import EventsWriter

        (directory / "tensorboard").mkdir(parents=True, exist_ok=True)
        path = directory / "metrics.jsonl"
        kept = [row for row in read_metrics(path) if row["step"] <= start and start > 0]
        with replacing(path) as file:
            file.writelines((json.dumps(row) + "\n").encode() for row in kept)
        self._file = path.open("a")
        self._events = EventsWriter(str(directory / "tensorboard" / "events"))
        self._flushed = time.monotonic()
        if start:  # TensorBoard hides the later events, which a resumed run writes anew
            self._events.write_event(_event(start + 1, session_log={"status": "START"}))

    def write(self, step: int, metrics: Mapping[str, float | np.ndarray]) -> None:
        from tensorboardX.summary import scalar

        values = {name: float(value) for name, value in metrics.items()}
        metrics = {name: value for name, value in values.items() if math.isfinite(value)}
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._events.write_event(_event(step, summary=scalar(name, value)))
        if time.monotonic() - self._flushed > FLUSHED_EVERY:
            self._events.flush()
            self._flushed = time.monotonic()

    def close(self) -> None:
        """Ends the files."""
        self._file.close()
        self._events.close()


def _event(step: int, **parts: Any) -> Any:
    from tensorboardX.proto import event_pb2

    made: Any = event_pb2
    return made.Event(wall_time=time.time(), step=step, **parts)


class NoLog:
    """Writes nothing: the log of all processes but the first."""

    def write(self, step: int, metrics: Mapping[str, float | np.ndarray]) -> None: ...

    def close(self) -> None: ...


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The rows of a ``metrics.jsonl``; a last line cut short by a crash is left out."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
    return rows


@contextmanager
def progress(activity: str, total: int, done: int = 0) -> Generator[Advance]:
    """A progress bar: what is happening, how far it is, how long is left. Yields its ``advance``.

    Away from a terminal a line is printed about every ten seconds instead.
    """
    if console.is_terminal:
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description:<12}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with Progress(*columns, console=console) as bar:
            task = bar.add_task(activity, total=total, completed=done, note="")

            def advance(amount: int = 0, note: str = "", *, activity: str | None = None) -> None:
                bar.update(task, advance=amount, description=activity)
                if note:
                    bar.update(task, note=note)

            yield advance
    else:
        yield _LineProgress(activity, total, done)


class _LineProgress:
    def __init__(self, activity: str, total: int, done: int, every: float = 10.0) -> None:
        self.activity, self.total, self.done, self.every = activity, total, done, every
        self.first, self.printed, self.begun_at, self.note = True, time.monotonic(), done, ""
        self.start = self.printed

    def __call__(self, amount: int = 0, note: str = "", *, activity: str | None = None) -> None:
        changed = activity is not None and activity != self.activity
        self.activity = activity or self.activity
        self.done, self.note = self.done + amount, note or self.note
        now = time.monotonic()
        if self.first or changed or self.done >= self.total or now - self.printed >= self.every:
            self.first, self.printed = False, now
            rate = (self.done - self.begun_at) / max(now - self.start, 1e-9)
            left = f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 else ""
            line = f"{self.activity}: {self.done}/{self.total}{left} {self.note}".rstrip()
            console.print(line, markup=False)
