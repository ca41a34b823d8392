"""The first moment of a command, while what it needs is imported; so nothing is imported here."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def begin(name: str) -> None:
    """Says that a command begins, and lets Ctrl-C end it in a sentence until it listens itself."""
    if not {"--help", "-h", "--version"} & set(sys.argv):
        print(f"jaxgen {name}: loading JAX", flush=True)
    signal.signal(signal.SIGINT, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted: nothing was lost.\n")
    os._exit(130)
