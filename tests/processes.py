"""Experiments as processes of their own, to be killed, stopped and joined."""

import json
import os
import resource
import socket
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

# Experiments in a tiny form, that take seconds.
NET = "--channels 8 --multipliers 1 --blocks 1 --attention --groups 4"
TINY = {
    "ddpm": (
        f"{NET} --diffusion-steps 20 "
        "--samples 20 --sample-batch 20 --sample-steps 4 --bound-images 8 --dropout 0.1 --flip"
    ),
    "score_sde": (
        f"{NET} --samples 20 --sample-batch 20 --sample-steps 4 --bound-images 8 --bound-times 4"
    ),
    "distillation": (
        f"{NET} --samples 10 --sample-batch 10 --teacher-steps 4 --round-steps 2 --first 4"
    ),
    "vae": "--hidden 16 --latents 2 --samples 20 --importance-samples 20 --steps-per-call 2",
    "hvae": (
        "--hidden 16 --latents 2 3 --samples 20 --importance-samples 20 --steps-per-call 2 "
        "--kl-warmup 0"
    ),
    "vqvae": (
        "--width 8 --blocks 1 --codes 8 --latents 4 --samples 20 --sample-batch 20 "
        "--code-steps 4 --prior-width 8 --prior-layers 1 --prior-heads 2"
    ),
    "gan": "--channels 8 --samples 20 --discriminator-steps 2",
    "autoencoder": "--hidden 16 --latents 2 --samples 20 --steps-per-call 2",
    "d3pm": (
        "--width 16 --layers 1 --samples 20 --sample-batch 20 --sample-steps 4 --bound-draws 2 "
        "--steps-per-call 2 --warmup 0"
    ),
    "flow": "--width 8 --layers 1 --levels 1 --samples 20 --sample-batch 20 --bound-samples 2",
}
COMMON = "--batch 16 --log-every 2 --checkpoint-every 4"


def results(directory):
    """The folder of a run or study with the results that were made last."""
    return max(Path(directory).glob("step-*"), key=lambda path: path.stat().st_mtime_ns)


def report(directory):
    """The report that was made last, by the names of its numbers."""
    rows = json.loads((results(directory) / "report.json").read_text())
    return {number["name"]: number for number in rows}


ROOT = Path(__file__).parents[1]


def program(name):
    """The words after ``python`` that run an experiment, or the module of an outsider."""
    return ["-m", name if "." in name else f"experiments.{name}"]


def start(name, words, cwd, devices=1, file_limit=None, **environment):
    """Starts ``python -m experiments.NAME WORDS`` in a directory.

    ``file_limit`` is the size in bytes that no file may exceed, as on a full disk.
    """
    process = subprocess.Popen(
        [sys.executable, *program(name), *words.split()],
        cwd=cwd,
        env={
            **os.environ,
            "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}",
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": str(devices),
            **environment,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    if file_limit is not None:
        resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (file_limit, file_limit))
    return process


def finish(process, timeout=200):
    """Its exit status and all that it said."""
    out, _ = process.communicate(timeout=timeout)
    return process.returncode, out


def start_together(count, name, words, cwd, devices=1):
    """Starts ``count`` processes that train together."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    join = f"{words} --coordinator localhost:{port} --num-processes {count}"
    return [start(name, f"{join} --process-id {i}", cwd, devices) for i in range(count)]


def wait_for(condition, timeout=120):
    """Polls every millisecond."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.001)


def arrays(directory, step):
    """The leaves of a saved state by their names, as they are on disk, whoever wrote them."""
    path = Path(directory).absolute() / "checkpoints" / str(step) / "state"
    checkpointer = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    tree = checkpointer.metadata(path).item_metadata.tree
    as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
    tree = checkpointer.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))
    return {jax.tree_util.keystr(k): np.asarray(v) for k, v in jax.tree.leaves_with_path(tree)}


def mismatches(a, b):
    """How many leaves of two trees of arrays differ in any bit."""
    assert a.keys() == b.keys()
    return sum(a[k].dtype != b[k].dtype or a[k].tobytes() != b[k].tobytes() for k in a)
