"""The README's code runs as it stands, and its commands are the ones that exist."""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from processes import arrays, mismatches

from jaxgen.data.records import Points
from jaxgen.runner import Data, Experiment, System, Train, main, make_optimizer, open_run
from jaxgen.training.logging import read_metrics

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SNIPPETS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_the_snippets_train_and_sample():
    key = jax.random.key(0)
    names = {
        "jax": jax,
        "jnp": jnp,
        "key": key,
        "params": {"w": jnp.zeros(())},
        "net": lambda params, x, t, label=0.0: (params["w"] + label) * x,
        "label": 0.3,
        "nobody": 0.1,
        "x_0": jnp.ones((4, 3)),
        "x_T": jax.random.normal(key, (5, 3)),
    }
    train, draw, continuous, guide, *_ = SNIPPETS
    exec(train, names)
    assert names["state"].step == 1
    assert np.isfinite(names["metrics"]["loss"])
    exec(draw, names)
    assert names["x_0"].shape == (5, 3)
    assert np.abs(names["x_0"]).max() <= 1
    exec(continuous, names)
    step = jax.jit(names["make_step"](names["loss_fn"], names["optimizer"], ema_decay=0.999))
    state, metrics = step(names["state"], names["x_0"], key)
    assert state.step == 2
    assert np.isfinite(metrics["loss"])
    exec(guide, names)
    assert names["x_0"].shape == (3, 5, 3)
    alone = [names[name] for name in ("key", "conditional", "schedule", "x_T", "times")]
    unguided = names["sample"](*alone, names["dpm_solver_2m"]())
    np.testing.assert_allclose(names["x_0"][0], unguided, rtol=1e-4, atol=1e-5)
    assert not np.allclose(names["x_0"][1], unguided)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A directory with the wheel installed, away from this checkout."""
    there = tmp_path_factory.mktemp("installed")
    shutil.rmtree(ROOT / "build", ignore_errors=True)  # modules that there were once
    pip = [sys.executable, "-m", "pip", "-q", "--disable-pip-version-check"]
    subprocess.run([*pip, "wheel", "--no-deps", "-w", there, ROOT], check=True)
    (wheel,) = there.glob("*.whl")
    subprocess.run([*pip, "install", "--no-deps", "--target", there / "site", wheel], check=True)
    return there / "site"


def test_a_model_of_ones_own_runs_from_the_wheel(installed, tmp_path):
    """The README's file, from another directory, on eight devices: it trains, resumes to the bit,
    sweeps, draws and measures; and its run is opened."""
    (text,) = [snippet for snippet in SNIPPETS if "class Flow(System)" in snippet]
    (more,) = [snippet for snippet in SNIPPETS if "def spread(trained)" in snippet]
    text = text.replace("def build(", f"{more}\n\ndef build(")
    text = text.replace("(samples,), (quality,)", "(samples, picture), (quality, spread)")
    (tmp_path / "flow.py").write_text(text)
    env = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    env |= {"JAX_NUM_CPU_DEVICES": "8"}

    def python(*words):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    short = ["--steps-per-call", "2", "--checkpoint-every", "4"]
    out = python("flow.py", "--steps", "8", *short)
    assert "on each of 8 devices" in out
    assert "pictures: samples.png, samples.npz, clouds.png" in out
    assert "of 1000 samples" in out
    assert "chamfer_distance" in out
    python("flow.py", "train", "--steps", "4", "--dir", "parts", *short)
    out = python("flow.py", "train", "--steps", "8", "--dir", "parts", "--resume")
    assert "resuming from step 4" in out
    whole = arrays(tmp_path / "runs/flow-moons-001", 8)
    assert mismatches(whole, arrays(tmp_path / "parts", 8)) == 0
    python("flow.py", "train", "--steps", "4", "--dir", "sweep", "--sweep", "seed=0,1", *short)
    assert {p.name for p in (tmp_path / "sweep").glob("seed=*")} == {"seed=0", "seed=1"}
    opened = "from jaxgen.runner import open_run; print(open_run('parts').draw(7).shape)"
    assert "(7, 2)" in python("-c", f"import flow; {opened}")


def test_networks_of_nnx_and_equinox_train_and_sample(tmp_path, monkeypatch):
    """The README's two systems, with a network, a loss and a sample each: the loss falls, and a run
    goes on to the bit."""
    (text,) = [snippet for snippet in SNIPPETS if "class OfNnx(System)" in snippet]

    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = nnx.Linear(2, 16, rngs=rngs), nnx.Linear(16, 2, rngs=rngs)

        def __call__(self, x):
            return self.last(nnx.tanh(self.first(x)))

    names = {
        "Net": Net, "make_net": lambda key: eqx.nn.MLP(2, 2, 16, 1, key=key), "System": System,
        "nnx": nnx, "eqx": eqx, "jax": jax,
    }  # fmt: skip
    exec(text, names)
    monkeypatch.chdir(tmp_path)
    for name in ("OfNnx", "OfEquinox"):

        class Own(names[name]):
            def loss(self, params, batch, key, now):
                return ((self.apply(params, batch["x"]) - batch["x"]) ** 2).sum(1), {}

            def sample(self, key, weights, given):
                x = jax.random.normal(key, (*given["label"].shape, 2))
                return self.apply(weights.params, x)

        build = lambda config, data, Own=Own: Own(data, make_optimizer(config.train))
        own = Experiment(name, None, {"moons": OwnConfig()}, build, kinds=(Points,))
        for words in ("whole", "parts --steps 20", "parts --steps 40 --resume"):
            assert main(own, ["train", "--dir", *words.split()]) == 0
        assert mismatches(arrays("whole", 40), arrays("parts", 40)) == 0
        rows = read_metrics(Path("whole/metrics.jsonl"))
        losses = [row["loss"] for row in rows if "loss" in row]
        assert losses[-1] < 0.7 * losses[0]
        assert open_run("whole", experiment=own).draw(3).shape == (3, 2)
        shutil.rmtree("whole"), shutil.rmtree("parts")


@dataclass(frozen=True)
class OwnConfig:
    data: Data = Data("moons")
    train: Train = Train(steps=40, batch=64, learning_rate=1e-2, checkpoint_every=20, log_every=10)


OUTSIDERS = ("upscaling", "latents", "captions", "atoms", "cycle")


def test_outsiders_run_from_the_wheel(installed, tmp_path):
    """The five systems of the runner's tests, in a process away from the checkout: trained, drawn,
    and opened in another by who imports them."""
    shutil.copytree(ROOT / "tests" / "strangers", tmp_path / "strangers")
    env = {**os.environ, "PYTHONPATH": f"{installed}:{tmp_path}", "JAX_PLATFORMS": "cpu"}

    def python(code):
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    imports = f"import importlib; names = {OUTSIDERS}\n"
    imports += "of = {n: importlib.import_module(f'strangers.{n}').EXPERIMENT for n in names}\n"
    imports += "from jaxgen.runner import main, open_run\n"
    python(f"{imports}for n in names:\n    assert main(of[n], ['train', '--dir', n]) == 0")
    drawn = "for n in names: print(n, len(open_run(n).samples(4).given))"
    assert len(python(f"{imports}{drawn}").splitlines()) >= len(OUTSIDERS)


def test_the_installed_experiments_take_no_name_from_anyone(installed, tmp_path):
    """`jaxgen vae` runs from the wheel, beside a folder of a user's own of the name experiments."""
    env = {**os.environ, "PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text("print('mine')")

    def python(*words, status=0):
        done = subprocess.run(
            [sys.executable, *words], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert python("-m", "experiments.mine") == "mine\n"
    listed = python("-m", "jaxgen")
    names = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}
    assert names == {line.split()[0] for line in listed.splitlines() if line.startswith("  ")}
    assert "did you mean vae?" in python("-m", "jaxgen", "vea", status=2)
    assert re.match(r"jaxgen \d", python("-m", "jaxgen", "--version"))
    out = python("-m", "jaxgen", "vae", "train", "--steps", "2", "--steps-per-call", "1")
    assert "results in runs/vae-digits-001" in out
    opened = "from jaxgen.runner import open_run; print(open_run('runs/vae-digits-001').step)"
    assert python("-c", opened) == "2\n"
    assert (installed / "jaxgen" / "py.typed").exists()
    assert not (installed / "experiments").exists()


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"^python3 -m venv .*-m pytest$", README, re.MULTILINE)
    assert '".[dev]"' in command
