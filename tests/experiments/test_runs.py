"""Whole runs, in a tiny form: files, resumption, and the number of devices."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import COMMON, TINY, arrays, finish, mismatches, report, results, start

from experiments import ddpm, gpt
from jaxgen.data.images import SIZES, image_set
from jaxgen.data.records import Arrays
from jaxgen.runner.commands import fitting_options, parse
from jaxgen.runner.options import carried
from jaxgen.training.checkpoints import Checkpoints
from jaxgen.training.logging import read_metrics

PICTURES = {
    "ddpm": {"samples.png", "film.gif"},
    "vae": {
        "samples.png",
        "conditionals.png",
        "reconstructions.png",
        "interpolations.png",
        "manifold.png",
    },
    "gan": {"samples.png", "interpolations.png"},
    "vqvae": {"samples.png", "reconstructions.png", "completions.png"},
    "autoencoder": {"samples.png", "reconstructions.png", "interpolations.png", "codes.png"},
    "hvae": {"samples.png", "reconstructions.png", "levels.png"},
    "d3pm": {"samples.png", "film.gif", "completions.png"},
    "flow": {"samples.png", "interpolations.png", "temperatures.png"},
}
NUMBERS = {
    "ddpm": {"class_agreement", "svm_class_agreement", "bits_per_dimension"},
    "vae": {"elbo", "log_likelihood", "reconstruction_error", "classes_covered"},
    "gan": {"classes_covered"},
    "autoencoder": {"reconstruction_error", "probe_accuracy", "probe_accuracy_of_pca"},
    "hvae": {"elbo", "kl_1", "kl_2", "log_likelihood"},
    "d3pm": {"elbo", "bits_per_dimension", "time_to_draw"},
    "flow": {"elbo", "log_likelihood", "bits_per_dimension", "time_to_draw"},
}


def test_codes_and_their_prior_are_remembered_across_stops(command):
    """Codebooks are memory: a run that went on, in its first stage and in its second, has those of
    the unbroken one and its prior, bit for bit; and in the second the first no longer moves."""
    assert command("vqvae", "--steps 8 --dir whole")[0] == 0
    made = {p.name for p in results("whole").iterdir()}
    assert made >= {"report.json"} | PICTURES["vqvae"]
    assert report("whole").keys() >= {"reconstruction_error", "perplexity", "bits_per_code"}
    assert command("vqvae", "train --steps 2 --dir parts")[0] == 0
    for steps in (6, 8):
        assert command("vqvae", f"train --steps {steps} --dir parts --resume")[0] == 0
    whole, parts = arrays("whole", 8), arrays("parts", 8)
    assert mismatches(whole, parts) == 0
    books = {leaf: value for leaf, value in arrays("whole", 4).items() if "books" in leaf}
    assert books
    assert mismatches(books, {leaf: whole[leaf] for leaf in books}) == 0


@pytest.mark.parametrize(
    "name",
    ["ddpm", "d3pm"]
    + [
        pytest.param(n, marks=pytest.mark.slow)
        for n in ("autoencoder", "vae", "hvae", "gan", "flow")
    ],
)
def test_one_command_leaves_everything(command, name):
    status, out, _ = command(name, "--steps 8")
    assert status == 0
    run = Path(f"runs/{name}-digits-001")
    assert f"results in {run}" in out
    files, made = {p.name for p in run.iterdir()}, results(run)
    assert files >= {"checkpoints", "config.json", "metrics.jsonl", "tensorboard", "curves.png"}
    assert {p.name for p in made.iterdir()} >= {"report.json", "samples.npz"} | PICTURES[name]
    for picture in PICTURES[name]:
        assert picture in out
        assert np.asarray(Image.open(made / picture).convert("L")).std() > 5
    numbers = report(run)
    assert numbers.keys() >= NUMBERS[name] | {"frechet_distance", "nearest_training_image"}
    for name_, number in numbers.items():
        assert np.isfinite(number["value"])
        assert name_ in out
    assert "EMA of step 8" in numbers["frechet_distance"]["protocol"]
    assert json.loads((run / "config.json").read_text())["train"]["steps"] == 8
    rows = read_metrics(run / "metrics.jsonl")
    assert {row["step"] for row in rows} == {2, 4, 6, 8}


@pytest.mark.parametrize(
    "name", ["vae", *[pytest.param(n, marks=pytest.mark.slow) for n in ("gan", "ddpm", "flow")]]
)
def test_stopping_and_resuming_changes_no_bit(command, name):
    assert command(name, "train --steps 8 --dir whole")[0] == 0
    assert command(name, "train --steps 4 --dir parts")[0] == 0
    status, out, _ = command(name, "train --steps 8 --dir parts --resume")
    assert status == 0
    assert "resuming from step 4" in out
    whole, parts = arrays("whole", 8), arrays("parts", 8)
    assert whole.keys() == parts.keys()
    for leaf, value in whole.items():
        np.testing.assert_array_equal(value, parts[leaf], err_msg=leaf)
    first = arrays("whole", 4)
    assert any(not np.array_equal(first[leaf], whole[leaf]) for leaf in whole)
    assert read_metrics(Path("whole/metrics.jsonl")) == read_metrics(Path("parts/metrics.jsonl"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "ddpm", "gan", "flow"])
def test_the_number_of_devices_does_not_matter(command, name):
    for count in (1, 2, 8):
        words = f"train --steps 4 --devices {count} --dir on{count}"
        assert command(name, words, "--learning-rate 1e-4")[0] == 0
    one = arrays("on1", 4)
    start_and_end = [np.abs(v).max() for k, v in one.items() if "mu" in k]
    assert max(start_and_end) > 0  # it did learn
    for count in (2, 8):
        other = arrays(f"on{count}", 4)
        for leaf, value in one.items():
            np.testing.assert_allclose(
                value, other[leaf], rtol=2e-3, atol=2e-5, err_msg=f"{leaf} on {count}"
            )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vae", "gan", "flow"])
def test_pmap_trains_and_its_checkpoint_resumes_under_jit(command, name):
    words = "train --steps 4 --devices 4 --dir run"
    assert command(name, words, "--parallel pmap")[0] == 0
    assert command(name, "train --steps 8 --devices 2 --dir run --resume")[0] == 0
    for value in arrays("run", 8).values():
        assert np.isfinite(value).all()


@pytest.mark.slow
def test_a_sweep_of_vaes_draws_how_their_latents_collapse(command):
    words = "--steps 4 --dir run --sweep beta=0,50"
    status, out, err = command("vae", words)
    assert status == 0, err
    for picture in ("collapse.png", "collapse-samples.png"):
        assert picture in out
        assert np.asarray(Image.open(Path("run") / picture).convert("L")).std() > 5


def test_verbs_one_by_one(command):
    """Each run gets a directory of its own; sample and evaluate find the newest."""
    assert command("vae", "train --steps 4")[0] == 0
    assert command("vae", "train --steps 8 --latents 3")[0] == 0
    assert {p.name for p in Path("runs").iterdir()} == {"vae-digits-001", "vae-digits-002"}
    status, out, _ = command("vae", "sample", tiny=False)
    assert status == 0
    assert "runs/vae-digits-002" in out
    assert "results of step 8 in runs/vae-digits-002/step-8" in out
    made = results("runs/vae-digits-002")
    assert not (made / "manifold.png").exists()  # three latents, as it was trained
    status, out, _ = command(
        "vae", "evaluate --dir runs/vae-digits-001 --checkpoint 4 --samples 30", tiny=False
    )
    assert status == 0
    assert "30 samples" in out
    assert "samples=30" in results("runs/vae-digits-001").name
    assert report("runs/vae-digits-001")
    assert command("vae", "sample --checkpoint best --samples 7", tiny=False)[0] == 0
    assert len(np.load(made / "samples.npz")["x"]) == 20  # the first ones are kept
    with np.load(results("runs/vae-digits-002") / "samples.npz") as kept:
        assert kept["x"].shape == (7, 8, 8, 1)
        assert kept["x"].dtype == np.uint8
        np.testing.assert_array_equal(kept["label"], np.arange(7))


def test_a_home_that_cannot_be_written_to_is_no_matter(tmp_path, monkeypatch):
    monkeypatch.delenv("JAXGEN_CACHE", raising=False)
    (tmp_path / "home").write_text("")
    words = f"{TINY['vae']} {COMMON} --data moons --steps 4 --dir run"
    process = start("vae", words, tmp_path, HOME=str(tmp_path / "home"))
    status, out = finish(process)
    assert status == 0, out
    assert (results(tmp_path / "run") / "report.json").exists()
    for word in ("arning", "Traceback", "home", "rror:"):
        assert word not in out, out


def test_a_command_speaks_at_once_and_refuses_within_seconds(tmp_path):
    """A mistake takes no longer than to import JAX a few times; the better of two tries."""

    def refused():
        begun = time.monotonic()
        process = start("ddpm", "train --batch 0", tmp_path)
        assert process.stdout.readline() == "jaxgen ddpm: loading JAX\n"
        first = time.monotonic() - begun
        status, out = finish(process)
        assert (status, out) == (2, "error: --batch is at least 1, not 0.\n")
        return first, time.monotonic() - begun

    begun = time.monotonic()
    subprocess.run([sys.executable, "-c", "import jax"], check=True)
    imported = time.monotonic() - begun
    first, last = (min(times) for times in zip(refused(), refused(), strict=True))
    assert first < 1
    assert last < max(3, 4 * imported)


@pytest.mark.slow
def test_a_large_folder_starts_as_fast_as_digits_once_it_is_cached(tmp_path):
    """10,000 pictures: the second start is at most three seconds longer than one with digits."""
    rng = np.random.default_rng(0)
    for i in range(10_000):
        path = tmp_path / "pictures" / str(i % 10) / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(path)

    def seconds(directory, words):
        begun = time.monotonic()
        words = f"train {TINY['vae']} {COMMON} {words} --steps 4 --dir {directory}"
        status, out = finish(start("vae", words, tmp_path, JAXGEN_CACHE=str(tmp_path / "cache")))
        assert status == 0, out
        return time.monotonic() - begun, out

    folder = "--data folder:pictures --image-size 8 --preset digits"
    first, out = seconds("first", folder)
    assert "10000 pictures: 8100 train, 900 validation, 1000 test" in out
    seconds("warm", "")
    digits = min(seconds(f"digits{i}", "")[0] for i in range(2))
    again = min(seconds(f"folder{i}", folder)[0] for i in range(2))
    assert again < digits + 3
    assert again < first


@pytest.mark.parametrize(
    ("shape", "count", "want"),
    [
        ((8, 8, 1), 100_000, "digits"),
        ((32, 32, 3), 300, "digits"),
        ((28, 28, 1), 5_000, "digits"),
        ((28, 28, 1), 6_000, "mnist"),
        ((24, 24, 1), 60_000, "mnist"),
        ((32, 32, 3), 5_000, "cifar10"),
        ((256, 256, 3), 50_000, "cifar10"),
        ((16, 16, 3), 50_000, "mnist"),
    ],
)
def test_the_preset_follows_from_size_and_number_of_images(shape, count, want):
    arrays = Arrays({"x": np.broadcast_to(np.uint8(0), (count, *shape))})
    data = image_set("folder:x", {"train": arrays, "validation": arrays, "test": arrays}, shape)
    assert carried(ddpm.PRESETS, data)[-1] == want
    assert carried({"own": ddpm.Config()}, data) == ["own"]
    assert carried(gpt.PRESETS, data)[0] == "digits"  # not the first, which is for text
    there = {"digits": ddpm.Config(), "cifar10": ddpm.Config()}  # an experiment without the others
    assert carried(there, data) == ["digits", "cifar10"][: 1 + (want == "cifar10")]


@pytest.mark.parametrize(("side", "want"), [(32, "cifar10"), (28, "mnist")])
def test_a_preset_whose_network_does_not_fit_is_passed_over(side, want):
    """That of CIFAR-10 attends at 16 pixels, which halves of 28 never reach."""
    arrays = Arrays({"x": np.broadcast_to(np.uint8(0), (60_000, side, side, 3))})
    splits = {"train": arrays, "validation": arrays, "test": arrays}
    data = image_set("folder:x", splits, (side, side, 3))
    words, as_it_is = ["train", "--data", "folder:x"], lambda config: config
    _, config, _ = parse(ddpm.EXPERIMENT, words)
    found = fitting_options(ddpm.EXPERIMENT, words, config, data, as_it_is)
    assert found.net == ddpm.PRESETS[want].net
    assert found.data.data == "folder:x"
    digits = [*words, "--preset", "digits"]
    named = fitting_options(ddpm.EXPERIMENT, digits, config, data, as_it_is)
    assert named == config


def test_the_preset_of_a_folder_is_said_and_another_can_be_named(command, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    (tmp_path / "pictures").mkdir()
    for i in range(12):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(tmp_path / f"pictures/{i}.png")
    monkeypatch.setitem(SIZES, "mnist", (64, 12))
    words = "train --data folder:pictures --steps 2 --steps-per-call 1 --dir run"
    status, out, err = command("vae", words)
    assert status == 0, err
    assert "options: those for mnist, by the size and number of images, or --preset" in out
    train = json.loads(Path("run/config.json").read_text())["train"]
    assert (train["ema"], train["batch"], train["steps"]) == (0.999, 16, 2)  # given ones win
    status, out, err = command("vae", f"{words} --preset digits --devices 9 --batch 9")
    assert (status, "options: " in out) == (2, False)


def test_the_best_checkpoint_is_kept(command):
    assert command("vae", "train --steps 20 --keep 1 --checkpoint-every 4 --dir run")[0] == 0
    scores = {
        r["step"]: r["validation"]
        for r in read_metrics(Path("run/metrics.jsonl"))
        if "validation" in r
    }
    with Checkpoints(Path("run/checkpoints"), 1) as checkpoints:
        assert set(checkpoints.steps()) == {20, min(scores, key=scores.get)}


@pytest.mark.parametrize("name", ["vae", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_a_folder_of_images_with_odd_sizes_and_no_classes(command, tmp_path, name):
    rng = np.random.default_rng(0)
    for i in range(40):
        x = rng.integers(256, size=(7, 9, 3), dtype=np.uint8)
        Image.fromarray(x).save(tmp_path / f"{i:02}.png")
    status, _, err = command(name, f"--data folder:{tmp_path} --steps 4 --dir run")
    assert status == 0, err
    text = (results("run") / "report.json").read_text()
    assert re.search(r"pixel PCA \([0-9a-f]{8}\) features", text)
    assert Image.open(results("run") / "samples.png").mode == "RGB"


@pytest.mark.parametrize("name", ["vae", pytest.param("ddpm", marks=pytest.mark.slow)])
def test_a_model_can_be_diagnosed(command, name):
    assert command(name, "train --steps 4 --dir run --devices 1")[0] == 0
    status, out, err = command(name, "diagnose --dir run", tiny=False)
    assert status == 0, err
    assert "Total Parameters" in out
    rows = json.loads((results("run") / "diagnosis.json").read_text())
    numbers = {number["name"]: number for number in rows}
    noise = numbers["gradient_noise"]["value"] / numbers["gradient_signal"]["value"]
    np.testing.assert_allclose(numbers["gradient_noise_scale"]["value"], noise)
    rows = read_metrics(Path("run/metrics.jsonl"))
    assert {"grad_norm", "param_norm", "update_norm", "skipped"} <= rows[0].keys()
    if name == "ddpm":
        losses = [n["value"] for k, n in numbers.items() if k.startswith("loss, t = ")]
        assert len(losses) == 10
        np.testing.assert_allclose(losses, 1, rtol=0.3)  # a new network answers 0
        assert np.asarray(Image.open(results("run") / "loss_by_time.png").convert("L")).std() > 5


def test_a_folder_that_moved_is_known_again_and_one_that_changed_is_told(command):
    rng = np.random.default_rng(0)
    Path("here").mkdir()
    for i in range(24):
        Image.fromarray(rng.integers(0, 256, (8, 8), np.uint8)).save(f"here/{i:02}.png")
    status, out, _ = command("vae", "train --data folder:here --steps 4 --dir run")
    assert status == 0
    assert "24 pictures: 20 train, 2 validation, 2 test" in out
    assert json.loads(Path("run/data.json").read_text())["reading"]["counts"]["train"] == 20
    Path("here").rename("there")
    words = "train --steps 8 --dir run --resume --data folder:there"
    status, out, err = command("vae", words)
    assert status == 0, err
    assert "resuming from step 4" in out
    Image.fromarray(np.zeros((8, 8), np.uint8)).save("there/00.png")
    status, _, err = command("vae", words.replace("8", "12"))
    assert status == 2
    assert "folder:there does not hold what run was trained on: put it back" in err
    status, out, err = command("vae", "sample --dir run", tiny=False)
    assert status == 0, err
    assert "warning: folder:there does not hold what run was trained on" in out
    for path in Path("there").iterdir():
        Image.fromarray(np.zeros((6, 4), np.uint8)).save(path)
    status, _, err = command("vae", "sample --dir run", tiny=False)
    assert status == 2
    assert "run was trained on examples of 8x8x1, and those of folder:there are of 6x4x1" in err
