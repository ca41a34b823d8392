"""Several processes that train together give what one gives."""

import signal
import time

import numpy as np
import pytest
from processes import arrays, finish, start, start_together, wait_for

from jaxgen.data.order import ShuffledBatches

OPTIONS = (
    "train --hidden 64 --latents 2 --batch 16 --log-every 2 --checkpoint-every 4 "
    "--steps-per-call 1 --learning-rate 1e-4"
)


def together(*args, **kwargs):
    results = [finish(p) for p in start_together(*args, **kwargs)]
    assert [status for status, _ in results] == [0] * len(results), results
    return results


def assert_close(a, b):
    assert a.keys() == b.keys()
    for leaf, value in a.items():
        np.testing.assert_allclose(value, b[leaf], rtol=2e-3, atol=2e-6, err_msg=leaf)


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    """The directory of runs, with one by a single process."""
    cwd = tmp_path_factory.mktemp("runs")
    status, out = finish(start("vae", f"{OPTIONS} --steps 8 --dir one", cwd))
    assert status == 0, out
    return cwd


def test_two_processes_train_as_one(one):
    (_, first), (_, second) = together(2, "vae", f"{OPTIONS} --steps 8 --dir two", one)
    assert "on each of 2 devices" in first
    assert "training" in first
    assert "training" not in second  # one of them speaks
    assert_close(arrays(one / "one", 8), arrays(one / "two", 8))


@pytest.mark.slow
def test_four_processes_divide_the_state_and_others_go_on_with_it(one):
    divided = f"{OPTIONS} --dir four --model-devices 4"
    together(4, "vae", f"{divided} --steps 4", one)
    together(2, "vae", "train --dir four --steps 8 --model-devices 2 --resume", one, devices=2)
    assert_close(arrays(one / "one", 8), arrays(one / "four", 8))
    status, out = finish(
        start("vae", "train --dir four --steps 12 --model-devices 1 --resume", one)
    )
    assert status == 0, out
    assert "resuming from step 8" in out
    status, out = finish(start("vae", "train --dir one --steps 12 --resume", one))
    assert status == 0, out
    assert_close(arrays(one / "one", 12), arrays(one / "four", 12))


@pytest.mark.slow
def test_processes_told_to_stop_stop_at_the_same_step(one):
    processes = start_together(2, "vae", f"{OPTIONS} --steps 100000 --dir stopped", one)
    wait_for(lambda: (one / "stopped" / "metrics.jsonl").exists())
    time.sleep(1)
    processes[1].send_signal(signal.SIGTERM)  # one alone is told
    results = [finish(p) for p in processes]
    assert [status for status, _ in results] == [75, 75], results
    (said,) = {line for _, out in results for line in out.splitlines() if "preempted" in line}
    assert "and saved: add --resume to go on." in said


@pytest.mark.slow
def test_records_read_by_two_processes_are_those_of_one(one, monkeypatch):
    """A set that is not kept on the devices: each process reads its own rows alone."""
    script = """
import sys
import jax
from experiments import vae
from jaxgen.data.records import Arrays
from jaxgen.runner import fitting, main
seen = []
fetch = Arrays.fetch
Arrays.fetch = lambda source, index: seen.append(index.tolist()) or fetch(source, index)
fitting.RESIDENT_LIMIT = 0
status = main(vae.EXPERIMENT)
print("SEEN", seen)
raise SystemExit(status)
"""
    (one / "streamed.py").write_text(script)
    import processes

    monkeypatch.setattr(processes, "program", lambda name: ["streamed.py"])
    words = f"{OPTIONS} --steps 8"
    status, out = finish(start("vae", f"{words} --dir streamed1", one))
    assert status == 0, out
    results = together(2, "vae", f"{words} --dir streamed2", one)
    read = [eval(o.split("SEEN ")[1].splitlines()[0]) for o in (out, results[0][1], results[1][1])]
    for step in range(8):  # read ahead by two threads, so not always in this order
        batch = ShuffledBatches(1295, 16, seed=0)[step].tolist()
        for rows, seen in zip((batch, batch[:8], batch[8:]), read, strict=True):
            assert rows in seen
            assert sum(set(rows) == set(other) for other in seen) == 1
    assert_close(arrays(one / "streamed1", 8), arrays(one / "streamed2", 8))
    assert_close(arrays(one / "one", 8), arrays(one / "streamed2", 8))
