"""The experiments built on diffusion, in a tiny form."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from processes import arrays, report, results

from experiments.distillation import PRESETS, rounds_of
from experiments.score_sde import WEIGHTINGS
from experiments.solvers import COMPARED
from jaxgen.diffusion.recipes import RECIPES
from jaxgen.diffusion.samplers import evaluations
from jaxgen.diffusion.schedules import Sigma
from jaxgen.diffusion.solvers import SOLVERS
from jaxgen.systems.objectives import training_times
from jaxgen.training.logging import read_metrics


def height(path):
    return Image.open(path).size[1]


@pytest.mark.slow
def test_score_sde_in_one_command(command):
    status, _, err = command("score_sde", "--steps 8 --dir run --guidance 1")
    assert status == 0, err
    numbers = report("run")
    assert all(np.isfinite(n["value"]) for n in numbers.values())
    assert "4 steps, 8 network evaluations" in numbers["frechet_distance"]["protocol"]  # guided
    assert "bound: continuous time" in numbers["continuous_bound_bits_per_dimension"]["protocol"]
    assert "probability-flow ODE" in numbers["ode_bits_per_dimension"]["protocol"]
    # an untrained network knows no more than which values pixels take, and a little less
    assert 1 < numbers["continuous_bound_bits_per_dimension"]["value"] < 12
    assert {p.name for p in results("run").glob("*.*")} >= {"samples.png", "film.gif"}


POINTS = (
    "--batch 16 --steps 8 --warmup 0 --steps-per-call 2 --log-every 4 --checkpoint-every 4 "
    "--samples 50 --sample-batch 50 --devices 2 --dir run"
)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("score_sde", "checkerboard", "--channels 8 --blocks 1 --sample-steps 4"),
        pytest.param(
            "ddpm", "swissroll", "--channels 8 --blocks 1 --sample-steps 4 --diffusion-steps 20",
            marks=pytest.mark.slow,
        ),
        pytest.param("vae", "moons", "--hidden 8", marks=pytest.mark.slow),
        pytest.param("gan", "8gaussians", "--channels 8", marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_points_in_one_command(command, name, data, words):
    status, out, err = command(name, f"--data {data}", words, POINTS, tiny=False)
    assert status == 0, err
    numbers = report("run")
    distances = {"chamfer_distance", "sliced_wasserstein"}
    assert numbers.keys() >= {n for d in distances for n in (d, f"{d}_of_test")}
    assert numbers.keys() >= {"mean_log_density", "outside_support"}
    assert all(np.isfinite(n["value"]) for k, n in numbers.items() if "mean_log" not in k)
    assert numbers["chamfer_distance"]["value"] > numbers["chamfer_distance_of_test"]["value"]
    pictures = ["samples.png"]
    if name in ("ddpm", "score_sde"):
        pictures += ["film.gif", "density.png"]
        assert "exact trace" in numbers["ode_log_likelihood"]["protocol"]
    for picture in pictures:
        assert picture in out
        assert np.asarray(Image.open(results("run") / picture).convert("L")).std() > 5


@pytest.mark.slow
@pytest.mark.parametrize("words", ["--network dit --channels 16 --heads 2", "--variance learned"])
def test_other_networks_and_variances_are_options(command, words):
    assert command("ddpm", "--steps 4 --dir run --devices 1", words)[0] == 0
    assert np.isfinite(report("run")["bits_per_dimension"]["value"])


@pytest.mark.slow
def test_guidance_is_drawn_over_its_weight(command):
    """One curve a measure; weight 0 is the model that is not guided."""
    train = "--steps 4 --devices 1 --dir run --unlabelled 0.2"
    assert command("score_sde", "train", train)[0] == 0
    words = "--dir run --samples 20 --sample-batch 20 --weights -1 0 2 --out out"
    status, out, err = command("guidance", words, tiny=False)
    assert status == 0, err
    assert "guidance.png, weights.png" in out
    numbers = report("out")
    for weight in ("-1", "0", "2"):
        assert np.isfinite(numbers[f"frechet_distance, {weight}"]["value"])
    assert height(results("out") / "weights.png") == 3 * height_of_a_row()


@pytest.mark.slow
@pytest.mark.parametrize("process", ["flow", "edm", "ve"])
def test_every_kind_of_process_trains_and_samples(command, process):
    words = f"--process {process} --weighting edm --devices 1 --dir run"
    assert command("score_sde", "train --steps 4", words)[0] == 0
    assert command("score_sde", "sample --dir run --solver dpm_solver_3m")[0] == 0
    assert np.asarray(Image.open(results("run") / "samples.png").convert("L")).std() > 5


def test_processes_and_solvers_fit_together():
    """Every process names a solver that there is, on a grid that falls to the data: to noise of at
    most a third of half a bin, 1/16 for the 17 levels of digits."""
    for process in RECIPES.values():
        schedule = process.schedule(17)
        times = np.asarray(process.grid(schedule, 10))
        assert (np.diff(times) < 0).all()
        assert evaluations(SOLVERS[process.solver], schedule, times) in range(10, 21)
        assert schedule(times[-1]).sigma <= 1 / 16 / 3


def test_what_a_process_cannot_do_is_refused_before_training(command):
    """Flow matching begins in pure noise: eps cannot be sampled there, nor can Euler-Maruyama."""
    for words, remedy in (
        ("--process flow --prediction eps", "predict x_0, v, velocity or edm"),
        ("--process flow --solver euler_maruyama", "use ancestral"),
    ):
        status, _, err = command("score_sde", "--steps 4 --dir run", words)
        assert status == 2
        assert remedy in err
        assert len(err.strip().splitlines()) == 1
        assert not Path("run/checkpoints").exists()


@pytest.mark.slow
@pytest.mark.parametrize("options", ["--variance learned", "--solver heun"])
def test_a_ddpm_of_another_kind(command, options):
    """With a variance learned by L_hybrid; and sampled in continuous time."""
    status, _, err = command("ddpm", "--steps 4 --dir run --diffusion-steps 20", options)
    assert status == 0, err
    numbers = report("run")
    for name in ("bits_per_dimension", "ode_bits_per_dimension", "frechet_distance"):
        assert np.isfinite(numbers[name]["value"])


@pytest.mark.slow
def test_solvers_are_compared_on_a_run_of_ddpm(command, monkeypatch):
    assert [steps for name, _, _, steps in COMPARED if name == "DDIM"] == [10, 20, 50, 100]
    some = COMPARED[0], COMPARED[7]  # one of each order, for each is a program of its own
    monkeypatch.setattr("experiments.solvers.COMPARED", some)
    assert command("ddpm", "train --steps 4 --devices 1 --dir run --diffusion-steps 100")[0] == 0
    words = "evaluate --dir run --samples 10 --sample-batch 10"
    status, out, err = command("solvers", words, tiny=False)
    assert status == 0, err
    assert "results in runs/solvers-of-run" in out
    numbers = report("runs/solvers-of-run")
    for name, _, _, steps in some:
        assert np.isfinite(numbers[f"frechet_distance, {name}, {steps}"]["value"])
        assert f"{name}, {steps}"[:8] in out


@pytest.mark.slow
def test_distillation_in_one_command(command):
    """Two rounds of two updates after four of the teacher: 4 steps to 2 and to 1."""
    status, _, err = command("distillation", "--steps 8 --dir run")
    assert status == 0, err
    assert all(
        np.isfinite(list(row.values())).all() for row in read_metrics(Path("run/metrics.jsonl"))
    )
    numbers = report("run")
    rows = ["teacher, 4", "teacher, 2", "teacher, 1", "student, 2", "student, 1"]
    assert {n.partition(", ")[2] for n in numbers} == set(rows)
    assert height(results("run") / "distillation.png") == 5 * height_of_a_row()
    at_4, at_6, at_8 = arrays("run", 4), arrays("run", 6), arrays("run", 8)
    of = "['of']['model']"
    leaves = [leaf.removeprefix(f"{of}['ema']") for leaf in at_4 if leaf.startswith(f"{of}['ema']")]
    assert leaves
    for leaf in leaves:
        networks = at_8[f"{of}['memory']['networks']{leaf}"]
        np.testing.assert_array_equal(networks[0], at_4[f"{of}['ema']{leaf}"])  # the teacher
        np.testing.assert_array_equal(networks[1], at_6[f"{of}['ema']{leaf}"])  # the first student
        teacher = at_8[f"{of}['memory']['teacher']{leaf}"]
        np.testing.assert_array_equal(networks[1], teacher)  # from whom the second one learned


def height_of_a_row():
    return (8 + 2) * 6  # an image, its two white lines, six screen pixels each


@pytest.mark.slow
def test_distillation_resumes_across_a_round(command):
    how = "train --prediction x_0 --guidance 1"
    assert command("distillation", how, "--steps 8 --dir whole")[0] == 0
    assert command("distillation", how, "--steps 6 --checkpoint-every 6 --dir parts")[0] == 0
    assert command("distillation", how, "--steps 8 --dir parts --resume")[0] == 0
    whole, parts = arrays("whole", 8), arrays("parts", 8)
    for leaf, value in whole.items():
        np.testing.assert_array_equal(value, parts[leaf], err_msg=leaf)


@pytest.mark.slow
@pytest.mark.parametrize("process", ["cosine", "flow"])
def test_consistency_distillation_in_one_command(command, process):
    """Flow matching begins in pure noise, where the consistency function is finite too."""
    words = f"--process {process} --method consistency --first 2 --checkpoint-every 3"
    status, _, err = command("distillation", "--steps 6 --dir run", words)
    assert status == 0, err
    assert not any(row.get("skipped") for row in read_metrics(Path("run/metrics.jsonl")))
    assert np.isfinite(report("run")["frechet_distance, student, 1"]["value"])


def test_rounds_must_fit():
    from dataclasses import replace

    config = PRESETS["digits"]
    assert rounds_of(config) == (6, 400)
    for wrong in (replace(config, first=48), replace(config, round_steps=399)):
        with pytest.raises(ValueError, match="--"):
            rounds_of(wrong)


@pytest.mark.parametrize("name", ["likelihood", "sigmoid"])
def test_the_times_of_edm_serve_weightings_that_are_integrated_over_time(key, name):
    """The mean of weight times w(t) f(t) is the integral of w f over sigma in [0.002, 80]."""
    schedule, weighting = Sigma(), WEIGHTINGS[name]
    t, weight = training_times(key, 200_000, schedule, True)
    f = lambda t: 1 / (1 + t)
    got = np.mean(weight * weighting(schedule, t) * f(t))
    sigma = np.geomspace(0.002, 80, 20_001)
    want = np.trapezoid(
        np.asarray(weighting(schedule, jnp.asarray(sigma, jnp.float32))) * f(sigma), sigma
    )
    np.testing.assert_allclose(got, want, rtol=0.02)
