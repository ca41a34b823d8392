"""Runs that are killed, stopped, starved and damaged.

``pytest -m slow tests/experiments/test_faults.py`` kills every experiment at random moments, two
dozen times in all, and prints the table of the README.
"""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import filelock
import moments
import numpy as np
import pytest
from moments import ENDS, check_ended, check_results, results_of
from processes import (
    COMMON,
    ROOT,
    TINY,
    arrays,
    finish,
    mismatches,
    start,
    wait_for,
)

from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.logging import read_metrics

STEPS = 240
LONG = "--log-every 10 --checkpoint-every 20 --seed 3"
LASTING = {"distillation": "--teacher-steps 120 --round-steps 60"}


def words(name, directory):
    return f"train {TINY[name]} {COMMON} {LONG} {LASTING.get(name, '')} --dir {directory}"


def train(name, directory, cwd, steps=STEPS):
    """Starts the run, or goes on with it."""
    resume = "--resume" if (cwd / directory / "config.json").exists() else ""
    return start(name, f"{words(name, directory)} --steps {steps} {resume}", cwd)


def kill_often(name, cwd, kills, seconds, rng):
    """Kills runs, every other time in the middle of a save, and goes on with them.

    ``seconds`` is how long a whole run takes. A run that came to its end in between is compared
    with the whole one, and another begun. Returns how many were killed while saving.
    """
    done = saving = runs = 0
    while done < kills:
        folder = cwd / f"killed{runs}" / "checkpoints"
        process, end = train(name, f"killed{runs}", cwd), time.monotonic() + rng.random() * seconds
        alive = lambda p=process: p.poll() is None
        busy = lambda f=folder: any(f.glob("*tmp*"))
        moment = (lambda e=end: time.monotonic() > e) if done % 2 else busy
        wait_for(lambda a=alive, m=moment: not a() or m())
        if alive():
            done, saving = done + 1, saving + busy()
            process.kill()
        process.communicate()
        if process.returncode == 0 or done == kills:
            status, out = finish(train(name, f"killed{runs}", cwd))
            assert status == 0, out
            check_same(name, cwd, "whole", f"killed{runs}")
            runs += 1
    return saving


def check_same(name, cwd, whole, parts):
    wrong = mismatches(arrays(cwd / whole, STEPS), arrays(cwd / parts, STEPS))
    logs = [read_metrics(cwd / d / "metrics.jsonl") for d in (whole, parts)]
    assert wrong == 0, f"{wrong} arrays of {name} differ"
    assert logs[0] == logs[1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to: its directory, and how long it took."""
    cwd, begun = tmp_path_factory.mktemp("runs"), time.monotonic()
    status, out = finish(train("vae", "whole", cwd))
    assert status == 0, out
    return cwd, time.monotonic() - begun


def test_a_killed_run_goes_on_bit_for_bit(whole):
    cwd, seconds = whole
    kill_often("vae", cwd, 1, seconds, random.Random(0))


@pytest.mark.parametrize(
    ("how", "ends_with", "word"),
    [(signal.SIGTERM, 75, "preempted"), (signal.SIGINT, 130, "interrupted")],
    ids=["SIGTERM", "Ctrl-C"],
)
def test_a_run_told_to_stop_saves_and_says_so_by_its_status(whole, how, ends_with, word):
    whole, stopped = whole[0], f"stopped-{word}"
    process = train("vae", stopped, whole)
    metrics = whole / stopped / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.stat().st_size)
    process.send_signal(how)
    status, out = finish(process)
    assert status == ends_with, out
    assert f"{word}: stopped at step" in out
    with Checkpoints(whole / stopped / "checkpoints") as checkpoints:
        last = checkpoints.steps()[-1]
    assert f"stopped at step {last} of {STEPS} and saved: add --resume" in out
    status, out = finish(train("vae", stopped, whole))
    assert status == 0, out
    assert f"resuming from step {last}" in out
    assert mismatches(arrays(whole / "whole", STEPS), arrays(whole / stopped, STEPS)) == 0


def test_random_moments_of_every_verb(tmp_path):
    """Twenty, in a process that may be left in any state."""
    words = [sys.executable, moments.__file__, "20"]
    env = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": "1",
    }
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("name", "count"), [("vae", 46), ("ddpm", 27), ("gan", 27)])
@pytest.mark.timeout(1800)
def test_random_moments_of_every_process(name, count, tmp_path, capsys):
    """Ctrl-C, SIGTERM and SIGKILL from the first sentence on, in imports and compilations too."""
    rng, seconds, runs, longest, stopped = random.Random(name), {}, 0, 0.0, Counter()
    looks = {verb: f"{verb} --dir whole" for verb in ("sample", "evaluate")}
    for verb in ("train", *looks):
        begun = time.monotonic()
        process = start(name, looks[verb], tmp_path) if looks.get(verb) else None
        status, out = finish(process or train(name, "whole", tmp_path), 600)
        assert status == 0, out
        seconds[verb] = time.monotonic() - begun
    want = results_of(tmp_path / "whole")
    for i in range(count):
        verb, parts = ("train", *looks)[i % 3], f"parts{runs}"
        number = rng.choice(list(ENDS))
        process = (
            start(name, looks[verb], tmp_path) if verb in looks else train(name, parts, tmp_path)
        )
        begun, first = time.monotonic(), process.stdout.readline()
        time.sleep(rng.random() * seconds[verb])
        process.send_signal(number)
        sent = time.monotonic()
        status, out = finish(process)
        longest = max(longest, time.monotonic() - sent)
        check_ended(number, status, first + out, "")
        check_results(tmp_path / "whole", want)
        stopped[verb, number.name] += status != 0
        if status == 0:  # the first time it was compiled, too
            seconds[verb] = time.monotonic() - begun
        if verb == "train" and status == 0:
            assert (
                mismatches(arrays(tmp_path / "whole", STEPS), arrays(tmp_path / parts, STEPS)) == 0
            )
            runs += 1
    status, out = finish(train(name, f"parts{runs}", tmp_path), 600)
    assert status == 0, out
    last = arrays(tmp_path / f"parts{runs}", STEPS)
    assert mismatches(arrays(tmp_path / "whole", STEPS), last) == 0
    assert longest < 10
    with capsys.disabled():
        told = ", ".join(f"{verb} {how} {n}" for (verb, how), n in sorted(stopped.items()))
        print(f"\n{name}: {count} moments, stopped {told}; at most {longest:.1f} s to end")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kills"),
    [("vae", 5), ("gan", 5), ("ddpm", 5), ("score_sde", 4), ("distillation", 5)],
)
@pytest.mark.timeout(900)
def test_every_experiment_survives_being_killed(name, kills, tmp_path, capsys):
    begun = time.monotonic()
    status, out = finish(train(name, "whole", tmp_path), 600)
    assert status == 0, out
    saving = kill_often(name, tmp_path, kills, time.monotonic() - begun, random.Random(name))
    with capsys.disabled():
        print(f"\n{name}: {kills} killed, {saving} of them while saving, 0 mismatches")


def test_a_damaged_newest_checkpoint_is_passed_over(command):
    assert command("vae", "train --steps 12 --dir whole")[0] == 0
    assert command("vae", "train --steps 8 --dir run")[0] == 0
    (path,) = Path("run/checkpoints/8/state/d").iterdir()
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 1
    path.write_bytes(bytes(raw))
    status, out, err = command("vae", "sample --dir run", tiny=False)
    assert (status, err) == (0, "")
    assert "warning: the checkpoint of step 8 in" in out
    assert "using the one of step 4" in out
    status, _, err = command("vae", "sample --dir run --checkpoint 8", tiny=False)
    assert status == 2
    assert "step 8: " in err
    assert "name another with --checkpoint" in err
    status, out, _ = command("vae", "train --steps 12 --dir run --resume")
    assert status == 0
    assert "resuming from step 4" in out
    for step in (8, 12):
        assert mismatches(arrays("whole", step), arrays("run", step)) == 0


def test_a_run_killed_before_its_first_checkpoint_begins_again(command):
    assert command("vae", "train --steps 4 --dir whole")[0] == 0
    assert command("vae", "train --steps 4 --dir run")[0] == 0

    shutil.rmtree("run/checkpoints")
    status, out, _ = command("vae", "train --steps 4 --dir run --resume")
    assert status == 0
    assert "resuming" not in out
    assert mismatches(arrays("whole", 4), arrays("run", 4)) == 0


def test_a_directory_is_held_by_one_run(command, tmp_path):
    (tmp_path / "run").mkdir()
    with filelock.FileLock(tmp_path / "run" / ".lock"):
        status, _, err = command("vae", "train --steps 4 --dir run")
    assert status == 2
    assert err == ("error: another run is writing to run: wait for it, or give another --dir.\n")
    assert {p.name for p in Path("run").iterdir()} == {".lock"}
    assert command("vae", "train --steps 4 --dir run")[0] == 0


def test_a_directory_that_cannot_be_written_is_told(command):
    Path("file").write_text("")
    status, _, err = command("vae", "train --steps 4 --dir file/run")
    assert status == 74
    assert err.startswith("error: cannot write to file/run (")
    assert err.endswith("): give another --dir.\n")


def test_a_directory_without_permission_is_told(command, monkeypatch):
    def refused(*args):
        raise PermissionError(13, "Permission denied", "run/checkpoints")

    monkeypatch.setattr("jaxgen.runner.fitting.open_checkpoints", refused)
    status, _, err = command("vae", "train --steps 4 --dir run")
    assert status == 74
    where = "run/checkpoints (Permission denied)"
    assert err == f"error: cannot write to {where}: give another --dir.\n"


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_spares_what_is_there(command):
    import resource

    big = "--hidden 600 --steps-per-call 1 --dir run"
    assert command("vae", f"train --steps 4 {big}")[0] == 0
    before = arrays("run", 4)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        status, _, err = command("vae", f"train --steps 12 {big} --resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 74
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "could not be written" in line
    assert line.endswith("the last whole one is of step 4; make room, then --resume.")
    assert mismatches(before, arrays("run", 4)) == 0
    status, out, _ = command("vae", f"train --steps 12 {big} --resume")
    assert status == 0
    assert "resuming from step 4" in out


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_disk_is_full_at_random_moments(tmp_path):
    """Twenty limits to the size of a file, met in training, drawing and measuring."""
    rng, big, counts = random.Random(0), f"{words('vae', 'run')} --hidden 300 --steps", Counter()
    for steps, directory in ((40, "run"), (80, "whole")):
        train = big.replace("--dir run", f"--dir {directory}")
        assert finish(start("vae", f"{train} {steps}", tmp_path))[0] == 0
    for i in range(20):
        verb = ("train", "train", "sample", "evaluate")[i % 4]
        line = f"{big} 80 --resume" if verb == "train" else f"{verb} --dir run"
        limit = int(10 ** rng.uniform(1, 6))
        before = arrays(tmp_path / "run", 40)
        status, out = finish(start("vae", line, tmp_path, file_limit=limit))
        counts[verb, status] += 1
        assert status in (0, 74), out
        if status == 74:
            told = out.splitlines()
            assert [line.startswith("error: ") for line in told].count(True) == 1, out
            assert told[-1].startswith("error: "), out
            assert "make room" in told[-1]
            assert len(told) < 15, out
        with Checkpoints(tmp_path / "run" / "checkpoints") as checkpoints:
            assert set(checkpoints.steps()) >= {40}
        assert mismatches(before, arrays(tmp_path / "run", 40)) == 0
        if (tmp_path / "run" / "checkpoints" / "80").exists():
            assert mismatches(arrays(tmp_path / "run", 80), arrays(tmp_path / "whole", 80)) == 0
            shutil.rmtree(tmp_path / "run" / "checkpoints" / "80")
    assert finish(start("vae", f"{big} 80 --resume", tmp_path))[0] == 0
    assert mismatches(arrays(tmp_path / "run", 80), arrays(tmp_path / "whole", 80)) == 0
    assert counts["train", 74] > 2, counts
    assert counts["sample", 74] + counts["evaluate", 74] > 2, counts


def test_the_operation_that_answers_nan_is_named(command):
    status, _, err = command("vae", "train --steps 8 --dir run --learning-rate 1e15 --debug-nans")
    assert status == 3
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "invalid value (nan) encountered in" in line.lower()
    assert "jaxgen" in line  # a line of this project
    assert ".py:" in line


@pytest.mark.parametrize(("steps", "calls"), [(44, 10), (8, 2)])  # two steps a call
def test_a_profile_is_a_trace_that_can_be_opened(command, steps, calls):
    import gzip
    import json

    words = f"train --steps {steps} --checkpoint-every {steps} --dir run --profile"
    status, out, _ = command("vae", words)
    assert status == 0
    assert f"profile of {calls} calls in run/profile" in out
    (path,) = Path("run/profile").rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert len(events) > 100
    assert list(Path("run/profile").rglob("*.xplane.pb"))  # what TensorBoard reads


def test_what_does_not_fit_is_told_before_the_first_step(command, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("jaxgen.training.devices.memory_available", lambda device: 10_000)
        status, out, err = command("vae", "train --steps 4 --dir run --devices 1")
    assert status == 2
    assert "memory: a step needs" in out
    assert "does not fit" in err
    assert "--accumulate" in err
    assert not list(Path("run/checkpoints").glob("[0-9]*"))
    # it is no other run's directory when there is room, for another batch, say
    assert command("vae", "train --steps 4 --dir run --devices 1 --batch 8")[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "ddpm"])
def test_accumulation_and_a_divided_state_are_options(command, name):
    small = "train --steps 4 --batch 32 --learning-rate 1e-4 --hidden 128"
    small = small if name == "vae" else small.replace("--hidden 128", "")
    assert command(name, f"{small} --devices 1 --dir whole")[0] == 0
    assert command(name, f"{small} --devices 4 --model-devices 4 --dir divided")[0] == 0
    assert command(name, f"{small} --devices 1 --accumulate 2 --dir parts")[0] == 0
    whole, divided, parts = (arrays(d, 4) for d in ("whole", "divided", "parts"))
    for leaf, value in whole.items():
        np.testing.assert_allclose(value, divided[leaf], rtol=2e-3, atol=2e-5, err_msg=leaf)
    assert parts.keys() == whole.keys()
    moved = [np.abs(parts[k] - whole[k]).max() for k in whole if "params" in k]
    assert 0 < max(moved) < 1e-2  # other draws of the noise, the same objective
