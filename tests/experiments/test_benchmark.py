import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Refuses every package but those that a bare accelerator machine has, and what they need.
BARE = """
import sys
import jax, flax.linen, optax, numpy
allowed = {name.split(".")[0] for name in sys.modules} | {"jaxgen", "experiments"}
allowed |= set(sys.stdlib_module_names)
class Refuse:
    def find_spec(self, name, path=None, target=None):
        # jax, flax and optax import more of themselves and their needs as they are used
        caller = sys._getframe(1)
        while caller and "importlib" in caller.f_code.co_filename:
            caller = caller.f_back
        ours = caller and ("jaxgen" in caller.f_code.co_filename
                           or "experiments" in caller.f_code.co_filename)
        if ours and name.split(".")[0] not in allowed or name.split(".")[0] == "chex":
            raise ImportError(f"{name} is not on a bare machine")
sys.meta_path.insert(0, Refuse())
from experiments import benchmark
raise SystemExit(benchmark.main(sys.argv[1:]))
"""


def run(tmp_path, *words):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    words = [*words, "--json", str(tmp_path / "out.json")]
    done = subprocess.run(
        [sys.executable, "-c", BARE, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "out.json").read_text())


def test_it_runs_on_a_bare_machine_and_its_numbers_fit_together(tmp_path):
    out, n = run(tmp_path, "--model=tiny", "--rounds=2", "--sample-steps=4", "--batch=16")
    for name in n:
        assert name in out
    assert n["parameters"] == 17609
    assert n["train_images_per_s"] == pytest.approx(16 / n["train_step_ms"] * 1e3)
    share = n["train_gflops"] / n["train_step_ms"] / n["matmul_tflops_per_s"]
    assert n["train_share_of_matmul_rate"] == pytest.approx(share)
    assert 2.5 < n["train_gflops"] / n["forward_gflops"] < 3.6  # forward, and twice that backward
    assert 0 < n["train_share_of_matmul_rate"] < 1
    assert min(v for v in n.values() if isinstance(v, float)) > 0


def test_without_pytorch_the_comparison_says_what_to_install(monkeypatch):
    from experiments import benchmark

    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(SystemExit, match=r"not installed \(torch\): pip install torch diffusers"):
        benchmark.main(["--torch"])


@pytest.mark.slow
def test_the_scan_sampler_costs_no_more_than_its_forward_passes(tmp_path):
    _, n = run(tmp_path, "--model", "digits", "--rounds", "9")
    assert n["sample_over_forward_passes"] <= 1.05


@pytest.mark.slow
def test_every_solver_costs_no_more_than_its_evaluations(tmp_path):
    words = ("--solvers", "--model", "digits", "--rounds", "9")
    _, n = run(tmp_path, *words)
    assert len([name for name in n if name.endswith("_evaluations")]) == 10
    for name, value in n.items():
        if name.endswith("_over_forward_passes"):
            assert value <= 1.05, name
