"""The numbers the README gives: minutes long, run with ``pytest -m slow``."""

import time
from pathlib import Path

import pytest
from processes import report

from experiments.collapse import COLUMNS

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]


def values(directory):
    return {name: number["value"] for name, number in report(directory).items()}


def test_solvers_on_digits(command):
    """DDIM improves with its steps, and DPM-Solver++ needs half as many."""
    assert command("ddpm", "train --devices 1 --dir run", tiny=False)[0] == 0
    words = "evaluate --dir run --samples 2000 --sample-batch 500"
    assert command("solvers", words, tiny=False)[0] == 0
    distance = {
        name.removeprefix("frechet_distance, "): value
        for name, value in values("runs/solvers-of-run").items()
        if name.startswith("frechet")
    }
    falling = [distance[f"DDIM, {steps}"] for steps in (10, 20, 50, 100)]
    assert falling == sorted(falling, reverse=True)
    best = min(distance["DDIM, 20"], distance["DDIM, quadratic, 20"])
    assert distance["DPM-Solver++(2M), quadratic, 10"] <= best


def timed(command, *words):
    begun = time.monotonic()
    assert command(*words, tiny=False)[0] == 0
    return time.monotonic() - begun


def test_ddpm_on_digits(command):
    seconds = timed(command, "ddpm", "--devices 1 --dir run")
    numbers = values("run")
    assert numbers["svm_class_agreement"] >= 0.97
    assert numbers["nearest_training_image"] > 0.5 * numbers["nearest_training_image_of_test"]
    assert seconds < 300


@pytest.mark.parametrize("seed", range(5))
def test_the_exercise_of_the_swiss_roll(command, seed):
    """5000 updates of batch 128: 2048 samples nearer than 20, those of 50 steps of DDIM than 60."""
    seconds = timed(command, "ddpm", f"--data swissroll --seed {seed} --devices 1 --dir run")
    assert values("run")["chamfer_distance"] < 20
    words = "evaluate --dir run --solver ddim --sample-steps 50"
    assert command("ddpm", words, tiny=False)[0] == 0
    assert values("run")["chamfer_distance"] < 60
    assert seconds < 90


def test_vae_on_digits(command):
    assert timed(command, "vae", "--devices 1 --dir run") < 180
    numbers = values("run")
    assert numbers["elbo"] < numbers["log_likelihood"]


def test_remedies_of_collapse_on_digits(command):
    """Without one z tells next to nothing; with any, more than a nat more, at half a nat's cost."""
    assert command("collapse", "evaluate", tiny=False)[0] == 0
    (place,) = Path("runs").glob("collapse-of-*")
    numbers = values(place)
    for name in ("free bits", "warm-up", "cyclical", "committed rate"):
        more = {c: numbers[f"{c}, {name}"] - numbers[f"{c}, plain"] for c in COLUMNS}
        assert more["mutual_information"] > 1
        assert more["elbo"] > -1
        assert more["log_likelihood"] > -0.5
    assert numbers["mutual_information, plain"] < 0.5


def test_gan_on_digits(command):
    assert timed(command, "gan", "--devices 1 --dir run") < 180
    assert values("run")["classes_covered"] == 10


@pytest.mark.skipif(not MNIST.is_dir(), reason="the real MNIST files are not here")
def test_vae_on_mnist_through_tfds(command, tmp_path):
    words = f"--data mnist --manual-dir {MNIST} --data-dir {tmp_path}/tfds --devices 1 --dir run"
    timed(command, "vae", words)
    assert values("run")["elbo"] >= -106  # a 400-unit MLP with 20 latents, 20 epochs
