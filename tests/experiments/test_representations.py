"""Representations side by side: that the study compares what it says, and its command."""

from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from processes import report, results

from experiments import autoencoder, gan, vae
from experiments.representations import (
    Config,
    comparable,
    encoder,
    interpolations,
    latents,
    samples,
    standard,
    table,
)
from jaxgen.data.records import Arrays, some
from jaxgen.data.sources import load
from jaxgen.runner import Mistake, Sampling, Trained
from jaxgen.runner.building import begin
from jaxgen.runner.system import weights_of
from jaxgen.systems import gan as adversaries

LEARNED = ("autoencoder", "VAE", "discriminator")
ROWS = ("pixels", "principal components", *LEARNED, *(f"{name}, untrained" for name in LEARNED))
SMALL = {
    "autoencoder": (autoencoder, {"hidden": 16, "latents": 2}),
    "vae": (vae, {"hidden": 16, "latents": 2, "likelihood": "gaussian"}),
    "gan": (gan, {"channels": 8}),
}


def opened(name, data, **options):
    """A run at its first step."""
    module, small = SMALL[name]
    config = replace(module.DIGITS, **{**small, **options})
    config = replace(config, train=replace(config.train, devices=1))
    system, key = module.build(config, data), jax.random.key(1)
    weights = weights_of(begin(system, key))
    if name == "autoencoder":  # a GAN's generator draws nothing here
        weights = system.settled(weights)
    return Trained(system, weights, config, Path(name), Path(name), 0, key, Sampling(20, 20))


@pytest.fixture(scope="module")
def runs():
    data = load("digits")
    data = replace(data, train=Arrays(some(data.train, 400)))
    return {name: opened(name, data) for name in SMALL}


def test_the_table_has_a_row_for_each_representation(runs):
    numbers = {number.name: number for number in table(runs, Config())}
    assert numbers.keys() == {
        f"{kind}, {row}" for kind in ("dimension", "accuracy") for row in ROWS
    }
    size = {row: numbers[f"dimension, {row}"].value for row in ROWS}
    assert (size["pixels"], size["principal components"], size["autoencoder"]) == (64, 2, 2)
    assert (size["VAE"], size["discriminator"]) == (2, 2 * 2 * 16)
    share = {row: numbers[f"accuracy, {row}"].value for row in ROWS}
    assert share["pixels"] > 0.9
    assert 0.5 < share["principal components"] < 0.65  # of ten classes in two dimensions
    for row in ROWS:
        assert 0.1 < share[row] < 1
        assert (
            "400 training examples, share right of 359 test" in numbers[f"accuracy, {row}"].protocol
        )


def test_features_of_a_run_are_those_before_the_logits(runs):
    """Of the averaged discriminator with its running statistics."""
    run = runs["gan"]
    batch, d = run.test(30), run.weights["discriminator"]
    features = encoder(run, adversaries.features)(batch)
    last, x = d.params["head"]["Dense_0"], run.data.kind.values(batch["x"])
    judged = run.system.discriminator.apply({"params": d.params, **d.memory}, x, train=False)
    found = (features @ np.asarray(last["kernel"]))[:, 0] + np.asarray(last["bias"])
    np.testing.assert_allclose(found, judged.logits, rtol=1e-4, atol=1e-7)


def test_samples_of_the_autoencoder_differ_by_the_normal_alone(runs):
    """The same draws, of N(0, I) or carried to the normal that is fitted to codes."""
    run, other = runs["autoencoder"], standard(runs["autoencoder"])
    fitted = other.with_weights(other.weights._replace(memory=run.weights.memory))
    np.testing.assert_array_equal(fitted.draw(20), run.draw(20))
    assert not np.allclose(other.draw(20), run.draw(20))


def test_the_pictures_show_something(runs, tmp_path):
    for picture in (latents, samples, interpolations):
        path = tmp_path / f"{picture.__name__}.png"
        assert picture(runs, Config(), tmp_path) in (path, [path])
        assert np.asarray(Image.open(path).convert("L")).std() > 5


def test_few_test_images_have_fewer_pictures(runs, tmp_path):
    """Of three, one pair; of a single one no axes and no pair."""
    data = runs["vae"].data
    for count, drawn in ((3, [tmp_path / "interpolations.png"]), (1, [])):
        few = replace(data, test=Arrays(data.test.fetch(np.arange(count))))
        some = {name: run.but(data=few) for name, run in runs.items()}
        assert interpolations(some, Config(), tmp_path) == drawn
    assert latents(some, Config(), tmp_path) == []


def test_what_cannot_be_compared_is_refused(runs):
    data = runs["vae"].data
    with pytest.raises(Mistake, match="without --conditional"):
        comparable(runs | {"vae": opened("vae", data, conditional=True)})
    with pytest.raises(Mistake, match="of different data"):
        comparable(runs | {"vae": opened("vae", replace(data, name="letters"))})


@pytest.mark.slow
def test_one_command_trains_what_it_needs(command):
    train = "--steps 4 --steps-per-call 2 --batch 16 --log-every 2 --checkpoint-every 4 --devices 1"
    words = f"--train='{train}' --samples 20 --sample-batch 20 --out out"
    status, out, err = command("representations", words, tiny=False)
    assert status == 0, err
    assert "latents.png, samples.png, interpolations.png" in out
    assert {path.name for path in Path("runs").iterdir()} == {f"{n}-digits-001" for n in SMALL}
    numbers = report("out")
    assert numbers.keys() >= {f"accuracy, {row}" for row in ROWS}
    priors = ("autoencoder, N(0, I)", "autoencoder, fitted normal", "VAE, p(z)")
    assert all(np.isfinite(numbers[f"frechet_distance, {p}"]["value"]) for p in priors)
    assert (results("out") / "study.json").exists()
