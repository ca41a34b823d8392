"""Ctrl-C and SIGTERM: when they wait for a step, and what ends a command that hears nothing."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from processes import ROOT

from jaxgen.training.signals import Stopped, ended_by_signals, finishing_steps, held_back

SIGNALS = (signal.SIGINT, signal.SIGTERM)


def test_a_signal_ends_at_once_and_is_handled_as_before_afterwards():
    before = [signal.getsignal(number) for number in SIGNALS]
    for number, status in zip(SIGNALS, (130, 75), strict=True):
        with pytest.raises(Stopped, match="nothing was lost") as ended, ended_by_signals(False):
            signal.raise_signal(number)
        assert ended.value.status == status
    assert [signal.getsignal(number) for number in SIGNALS] == before


def in_training(*numbers, remedy="add --resume"):
    """What each step hears of signals, and what is raised in the end."""
    heard = []

    def train():
        with finishing_steps() as stopping:
            heard.append(stopping(1))
            for number in numbers:
                signal.raise_signal(number)
                heard.append(stopping(2))

    with ended_by_signals(False, remedy), pytest.raises(Stopped) as ended:
        train()
    return heard, ended.value.sentence


def test_in_training_the_first_waits_for_the_step_and_a_second_ctrl_c_does_not():
    once, twice = in_training(signal.SIGINT), in_training(signal.SIGINT, signal.SIGINT)
    assert once == ([0, signal.SIGINT], "interrupted: nothing was lost.")  # after the block
    assert twice[0] == [0, signal.SIGINT]
    assert twice[1] == "interrupted: add --resume to go on from the last checkpoint."
    launcher = in_training(signal.SIGTERM, signal.SIGTERM)  # as some send it
    assert launcher == ([0, *2 * [signal.SIGTERM]], "preempted: nothing was lost.")
    study = in_training(signal.SIGINT, signal.SIGINT, remedy="run it again")
    assert study[1] == "interrupted: run it again to go on from the last checkpoint."


def test_one_that_comes_too_late_for_a_step_is_heard_after_the_save():
    saved = []

    def train():
        with finishing_steps() as stopping:
            assert stopping(10) == 0  # the last step
            signal.raise_signal(signal.SIGINT)
            saved.append(10)

    with ended_by_signals(False), pytest.raises(Stopped, match="nothing was lost"):
        train()
    assert saved == [10]


def test_a_forked_child_is_no_command():
    """Its end is no signal to its parent."""
    with ended_by_signals(True):
        child = os.fork()
        if child == 0:
            time.sleep(30)
            os._exit(0)
        time.sleep(0.2)
        os.kill(child, signal.SIGTERM)
        _, status = os.waitpid(child, 0)
        time.sleep(1.5)  # the parent goes on
    assert os.WTERMSIG(status) == signal.SIGTERM


def test_a_signal_is_held_back_where_it_would_be_taken_for_an_error():
    heard = []

    def read():
        with held_back():
            signal.raise_signal(signal.SIGINT)
            heard.append("went on")
            raise ValueError("no damage")

    with ended_by_signals(False), pytest.raises(Stopped):
        read()
    assert heard == ["went on"]


def test_other_threads_are_left_alone():
    found = []

    def work():
        with ended_by_signals(True), held_back(), finishing_steps() as stopping:
            found.append(signal.getsignal(signal.SIGINT))
            assert stopping(1) == 0

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [signal.getsignal(signal.SIGINT)]


FOR_EVER = """
import sys, jax
from jaxgen.training.signals import ended_by_signals, finishing_steps
from contextlib import ExitStack
with ended_by_signals(True), ExitStack() as stack:
    if sys.argv[1] == "training":
        stack.enter_context(finishing_steps())
    print("begun", flush=True)
    jax.block_until_ready(jax.lax.while_loop(lambda n: n < 2, lambda n: -n, 1))
"""


def test_it_ends_also_where_whoever_read_it_has_gone():
    words = [sys.executable, "-c", FOR_EVER, "training"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    process.stdout.readline()
    process.stdout.close()
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.wait(timeout=10) == 130


@pytest.mark.parametrize("count", [1, 2])
def test_a_program_that_hears_nothing_is_ended(count):
    """In training by the second Ctrl-C: the first waits for a step that never ends."""
    words = [sys.executable, "-c", FOR_EVER, "training" if count == 2 else "sampling"]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen(words, env=env, **pipes)
    process.stdout.readline()
    time.sleep(0.5)
    for _ in range(count):
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    out, err = process.communicate(timeout=10)
    assert process.returncode == 130
    if count == 1:
        assert err == "interrupted: nothing was lost.\n"
    else:
        assert err == "interrupted: add --resume to go on from the last checkpoint.\n"
        assert out.startswith("stopping: this step is finished and saved")
