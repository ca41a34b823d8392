"""The first moment of a command, while what it needs is imported; so nothing is imported here."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import FrameType

PACKAGES = ("jaxgen.experiments", "experiments")  # jaxgen's, installed and in a checkout


def experiments_folder() -> tuple[str, Path]:
    """The package of the experiments: in jaxgen where it is installed, beside it in a checkout."""
    for package in sorted(PACKAGES, key=lambda name: name not in sys.modules):  # once imported
        spec = importlib.util.find_spec(package)
        place = Path(spec.origin).parent if spec is not None and spec.origin else None
        # a folder of that name may be anyone's: that of a checkout lies beside jaxgen
        if place and (package != "experiments" or place == Path(__file__).parents[1] / package):
            return package, place
    raise ModuleNotFoundError("the experiments are not installed: install jaxgen anew.")


def begin(name: str) -> None:
    """Says that a command begins, and lets signals end it in a sentence until it listens itself."""
    if not {"--help", "-h", "--version"} & set(sys.argv):
        print(f"jaxgen {name}: loading JAX", flush=True)
    signal.signal(signal.SIGINT, _leave)
    signal.signal(signal.SIGTERM, _leave)


def _leave(number: int, frame: FrameType | None) -> None:
    how, status = ("interrupted", 130) if number == signal.SIGINT else ("preempted", 75)
    os.write(2, f"{how}: nothing was lost.\n".encode())
    os._exit(status)
