"""Signals at random moments: ``python moments.py 20`` sends so many to commands of this process.

What goes on is equal in every bit, what is there stays whole.
"""

import importlib
import io
import logging
import os
import random
import re
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
from PIL import Image
from processes import COMMON, TINY, arrays, mismatches, report, results

from jaxgen.runner import main

ENDS = {  # signal -> the status it ends with, and its word
    signal.SIGINT: (130, "interrupted"),
    signal.SIGTERM: (75, "preempted"),
    signal.SIGKILL: (-9, ""),
}


def check_ended(number, status, out, err):
    """It came to its end, or says in a sentence that it was ended, and what was saved."""
    ends_with, word = ENDS[number]
    assert status in (0, ends_with), err
    assert "Traceback" not in out + err
    if status not in (0, -9):
        told = (err or out).strip().splitlines()[-1]
        assert re.fullmatch(
            rf"{word}: (nothing was lost|stopped at step \d+ of \d+ and saved: add --resume to go "
            r"on|add --resume to go on from the last checkpoint)\.",
            told,
        ), told


def check_results(directory, want):
    """Pictures and numbers are whole, and those of before."""
    numbers = {name: number["value"] for name, number in report(directory).items()}
    assert numbers == want[0]
    np.testing.assert_array_equal(np.load(results(directory) / "samples.npz")["x"], want[1])
    for path in results(directory).glob("*.png"):
        Image.open(path).load()


def results_of(directory):
    numbers = {name: number["value"] for name, number in report(directory).items()}
    return numbers, np.load(results(directory) / "samples.npz")["x"]


@contextmanager
def signalled(number, seconds):
    """Sends a signal to this process after a time; what arrives too late does nothing."""
    before = signal.signal(number, lambda *_: None)
    timer = threading.Timer(seconds, os.kill, (os.getpid(), number))
    timer.start()
    yield
    timer.cancel()
    timer.join()
    signal.signal(number, before)


def command(name, words):
    """Runs an experiment in this process: (status, output, errors)."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(importlib.import_module(f"experiments.{name}").EXPERIMENT, words.split())
    return status, out.getvalue(), err.getvalue()


def moments(count):
    """Signals to training, sampling and evaluation, each at a random moment of it."""
    rng, steps = random.Random(1), 40
    train = f"train {TINY['vae']} {COMMON} --data moons --steps {steps} --checkpoint-every 20"
    seconds = {}
    for verb, words in {"train": train, "sample": "sample", "evaluate": "evaluate"}.items():
        begun = time.monotonic()
        assert command("vae", f"{words} --dir whole")[0] == 0
        seconds[verb] = time.monotonic() - begun
    want, stopped = results_of("whole"), Counter()
    for i in range(count):
        verb = ("train", "sample", "train", "evaluate")[i % 4]
        number = rng.choice([signal.SIGINT, signal.SIGTERM])
        resume = "--resume" if Path("parts/config.json").exists() else ""
        words = f"{train} --dir parts {resume}" if verb == "train" else f"{verb} --dir whole"
        begun = time.monotonic()
        with signalled(number, rng.random() * seconds[verb]):
            ended = command("vae", words)
        check_ended(number, *ended)
        check_results("whole", want)
        stopped[verb] += ended[0] != 0
        if ended[0] == 0:  # the first time it was compiled, too
            seconds[verb] = time.monotonic() - begun
        if verb == "train" and ended[0] == 0:
            assert mismatches(arrays("whole", steps), arrays("parts", steps)) == 0
            shutil.rmtree("parts")
    resume = "--resume" if Path("parts/config.json").exists() else ""
    assert command("vae", f"{train} --dir parts {resume}")[0] == 0
    assert mismatches(arrays("whole", steps), arrays("parts", steps)) == 0
    assert all(stopped[verb] for verb in seconds), stopped
    print(dict(stopped))


if __name__ == "__main__":
    # A command would have ended. What libraries leave behind that were interrupted is not heard.
    sys.unraisablehook = lambda _: None
    logging.disable()
    moments(int(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)
