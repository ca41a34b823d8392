"""Ctrl-C and SIGTERM: what a command does when it is asked to end.

Python hears a signal between two of its own operations, and a compiled program, or a compilation,
is one of them, however long it takes. So a thread listens as well, and ends a command that does not
end by itself.
"""

from __future__ import annotations

import atexit
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType

import jax
from jax.experimental import multihost_utils

from jaxgen.training.logging import console

ENDINGS = {signal.SIGINT: ("interrupted", 130), signal.SIGTERM: ("preempted", 75)}
GRACE = 1.0  # seconds in which a command that is to end at once may do so by itself

_training = threading.Event()  # there are steps that no checkpoint has
_finishing = threading.Event()  # a step is under way, after which the state is saved
_calls = itertools.count()
_remedy = "add --resume"


class Stopped(KeyboardInterrupt):
    """Raised where a signal ends a command at once."""

    def __init__(self, number: int) -> None:
        lost = f"{_remedy} to go on from the last checkpoint"
        super().__init__(lost if _training.is_set() else "nothing was lost")
        how, self.status = ENDINGS[signal.Signals(number)]
        self.sentence = f"{how}: {self.args[0]}."


@contextmanager
def ended_by_signals(insist: bool, remedy: str = "add --resume") -> Generator[None]:
    """Inside the block SIGINT and SIGTERM raise :class:`Stopped`.

    Where ``insist``, the process is ended if that does not end the block within a second.
    ``remedy`` is what goes on with training.
    """
    global _remedy
    _remedy = remedy
    if threading.current_thread() is not threading.main_thread():  # which alone hears signals
        yield
        return
    ended = threading.Event()
    with _handled_by(_stop):
        if not insist:
            yield
            return
        told, tell = os.pipe()
        os.set_blocking(tell, False)
        before = signal.set_wakeup_fd(tell)
        atexit.register(_ignore_signals)  # what is done is done, while the interpreter ends
        threading.Thread(target=_insist, args=(told, ended), daemon=True).start()
        try:
            yield
        finally:
            ended.set()
            signal.set_wakeup_fd(before)
            os.close(tell)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def _ignore_signals() -> None:
    for number in ENDINGS:
        signal.signal(number, signal.SIG_IGN)


def _insist(told: int, ended: threading.Event) -> None:
    """Ends the process a second after a signal that should have ended it."""
    by_hand = 0
    while number := os.read(told, 1):
        if number[0] not in ENDINGS:
            continue
        by_hand += number[0] == signal.SIGINT
        stopped = Stopped(number[0])  # as things are now
        if _finishing.is_set() and by_hand < 2:
            with suppress(Exception, SystemExit):  # whoever read it has gone
                console.print(
                    "stopping: this step is finished and saved; Ctrl-C again ends at once"
                )
        elif not ended.wait(GRACE):
            leave(stopped)
    os.close(told)


def leave(stopped: Stopped) -> None:
    """Ends the process with a sentence, whatever its other threads are doing."""
    try:
        console.show_cursor()
        print(stopped.sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
    finally:  # also where whoever read it has gone
        os._exit(stopped.status)


@contextmanager
def finishing_steps() -> Generator[Callable[[int], int]]:
    """Answers, inside the block, by which signal this run was asked to stop after a step, else 0.

    SIGTERM or Ctrl-C, the second of which stops at once. Of several processes SIGTERM may reach one
    alone; all then stop after the same step. One that came too late for an answer is heard again at
    the end of the block.
    """
    asked: list[int] = []
    if jax.process_count() > 1:
        reached = multihost_utils.reached_preemption_sync_point
        with _set(_training):
            yield lambda done: signal.SIGTERM if reached(next(_calls)) else 0
        return
    if threading.current_thread() is not threading.main_thread():
        yield lambda done: 0
        return

    def ask(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise Stopped(number)
        asked.append(number)

    with _handled_by(ask), _set(_training), _set(_finishing):
        yield lambda done: asked[0] if asked else 0
    if asked:
        signal.raise_signal(asked[0])


@contextmanager
def _set(flag: threading.Event) -> Generator[None]:
    flag.set()
    try:
        yield
    finally:
        flag.clear()


def _as_others() -> None:
    """A process that is forked from a command is not one: signals end it as they end others."""
    if signal.getsignal(signal.SIGTERM) is _stop:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGINT, signal.default_int_handler)


os.register_at_fork(after_in_child=_as_others)


@contextmanager
def held_back() -> Generator[None]:
    """Signals that come in the block are heard at its end: what is interrupted there would be taken
    for an error of another kind."""
    alone = jax.process_count() == 1  # else JAX listens to SIGTERM
    if threading.current_thread() is not threading.main_thread() or not alone:
        yield
        return
    came: list[int] = []
    try:
        with _handled_by(lambda number, frame: came.append(number)):
            yield
    finally:
        if came:
            signal.raise_signal(came[0])


@contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Generator[None]:
    before = {number: signal.signal(number, handler) for number in ENDINGS}
    try:
        yield
    finally:
        for number, handled in before.items():
            signal.signal(number, signal.SIG_DFL if handled is None else handled)
