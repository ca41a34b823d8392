"""The README's code runs as it stands, and its commands are the ones that exist."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


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
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    train, draw, guide = snippets
    exec(train, names)
    assert names["state"].step == 1
    assert np.isfinite(names["metrics"]["loss"])
    exec(draw, names)
    assert names["x_0"].shape == (5, 3)
    assert np.abs(names["x_0"]).max() <= 1
    exec(guide, names)
    assert names["x_0"].shape == (3, 5, 3)
    alone = [names[name] for name in ("key", "conditional", "schedule", "x_T", "times")]
    unguided = names["sample"](*alone, names["dpm_solver_2m"]())
    np.testing.assert_allclose(names["x_0"][0], unguided, rtol=1e-4, atol=1e-5)
    assert not np.allclose(names["x_0"][1], unguided)


def test_ci_runs_the_readmes_test_command():
    (command,) = re.findall(r"^python3 -m venv .*-m pytest$", README, re.MULTILINE)
    assert '".[dev]"' in command
