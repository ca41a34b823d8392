"""The applications of a diffusion model: the command, and its problems."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments.applications import STUDY, Config, make_problems
from jaxgen.diffusion.schedules import from_betas, linear_betas
from jaxgen.runner import Mistake

MODEL = (
    "--channels 8 --multipliers 1 --blocks 1 --attention --groups 4 --diffusion-steps 20 "
    "--batch 16 --steps 4 --log-every 2 --checkpoint-every 4 --devices 1"
)
TINY = (
    "--sample-batch 20 --restored 10 --restorations 2 --restore-steps 4 --jump 2 --repeats 2 "
    "--scored 12 --draws 3"
)
PROBLEMS = ("inpainting", "denoising", "super_resolution", "deblurring")


@pytest.mark.slow
def test_one_command_draws_and_measures_everything(command):
    words = f"{TINY} --train '{MODEL}' --out run"
    status, out, err = command("applications", words, tiny=False)
    assert status == 0, err
    for name in PROBLEMS:
        assert np.asarray(Image.open(results("run") / f"{name}.png").convert("L")).std() > 5
        assert f"{name}.png" in out
    numbers = report("run")
    for name in PROBLEMS:
        for of in ("", "_of_measurement", "_of_mean"):
            assert np.isfinite(numbers[f"{name}_psnr{of}"]["value"])
        assert "class hidden" in numbers[f"{name}_psnr"]["protocol"]
    for odd in ("blurred", "noisy", "rotated"):
        assert 0 <= numbers[f"auroc_of_{odd}_by_bound"]["value"] <= 1
    for by in ("bound", "error"):
        assert 0 <= numbers[f"accuracy_by_{by}"]["value"] <= 1
        assert "K = 3 draws, 12 test images" in numbers[f"accuracy_by_{by}"]["protocol"]


@pytest.mark.slow
def test_a_ddpm_without_classes_is_measured_but_does_not_classify(command):
    assert command("ddpm", f"train {MODEL} --no-conditional --dir run", tiny=False)[0] == 0
    words = f"evaluate --dir run --out run {TINY}"
    status, out, err = command("applications", words, tiny=False)
    assert status == 0, err
    assert "classification is left out: the model is not conditional" in out
    numbers = report("run")
    assert "no classes" in numbers["auroc_of_rotated_by_bound"]["protocol"]
    assert not [name for name in numbers if name.startswith("accuracy")]


def test_the_models_are_trained_with_hidden_classes():
    assert STUDY.needs(Config())["ddpm"].options == "--unlabelled 0.1"


def test_odd_sides_are_refused():
    schedule = from_betas(linear_betas(1000))
    with pytest.raises(Mistake, match="needs even sides, not 7x8: give an --image-size"):
        make_problems(Config(), schedule, (7, 8, 1))


def test_denoising_starts_at_the_level_of_its_noise():
    schedule = from_betas(linear_betas(1000))
    problem = make_problems(Config(noise=0.5), schedule, (8, 8, 1))["denoising"]
    alpha, sigma = schedule(jnp.asarray(problem.times[0]))
    assert problem.noise == pytest.approx(0.5, rel=0.01)
    assert float(sigma / alpha) == pytest.approx(problem.noise, rel=1e-5)
    y = problem.measure(jax.random.key(0), jnp.zeros((1000, 8, 8, 1)))
    assert problem.start is not None
    assert float(problem.start(y).std()) == pytest.approx(float(sigma), rel=0.01)
