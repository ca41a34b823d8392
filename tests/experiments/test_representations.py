"""Representations side by side: the study in a tiny form, and that it compares what it says."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from processes import COMMON, TINY, report, results

from experiments import autoencoder, gan, vae
from experiments.representations import STUDY, distances, encoder, standard, table
from jaxgen.runner import main, open_run
from jaxgen.systems import gan as adversaries

OWN = replace(STUDY, measures=(table,))  # without the judge of any images
LEARNED = ("autoencoder", "VAE", "discriminator")
ROWS = ("pixels", "principal components", *LEARNED, *(f"{name}, untrained" for name in LEARNED))


def trained(name, *words):
    module = {"autoencoder": autoencoder, "vae": vae, "gan": gan}[name]
    argv = ["train", *f"{TINY[name]} {COMMON} --steps 4 --devices 1 --dir {name}".split(), *words]
    assert main(module.EXPERIMENT, argv) == 0


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three tiny runs of digits, in the directory that the tests are in."""
    patch, place = pytest.MonkeyPatch(), tmp_path_factory.mktemp("runs")
    patch.chdir(place)
    trained("autoencoder")
    trained("vae", "--likelihood", "gaussian")
    trained("gan")
    yield place
    patch.undo()


def study(*words, runs=("autoencoder", "vae", "gan")):
    return main(OWN, [*words, "--dir", *runs, "--samples", "20", "--sample-batch", "20"])


def test_one_command_draws_and_measures_everything(runs):
    assert study("--out", "out") == 0
    made = results("out")
    for picture in ("latents.png", "samples.png", "interpolations.png"):
        assert np.asarray(Image.open(made / picture).convert("L")).std() > 5
    numbers = report("out")
    assert numbers.keys() == {
        f"{kind}, {row}" for kind in ("dimension", "accuracy") for row in ROWS
    }
    size = {row: numbers[f"dimension, {row}"]["value"] for row in ROWS}
    assert (size["pixels"], size["principal components"], size["autoencoder"]) == (64, 2, 2)
    assert (size["VAE"], size["discriminator"]) == (2, 2 * 2 * 16)
    for row in ROWS:
        found = numbers[f"accuracy, {row}"]
        assert "logistic regression" in found["protocol"]
        assert 0.1 < found["value"] <= 1
    assert numbers["accuracy, pixels"]["value"] > 0.95


def test_features_of_a_run_are_those_before_the_logits(runs):
    """Of the averaged discriminator with its running statistics."""
    run = open_run("gan")
    batch, d = run.test(30), run.weights["discriminator"]
    features = encoder(run, adversaries.features)(batch)
    last, x = d.params["Dense_0"], run.data.kind.values(batch["x"])
    logits = run.system.discriminator.apply({"params": d.params, **d.memory}, x, train=False)
    found = (features @ np.asarray(last["kernel"]))[:, 0] + np.asarray(last["bias"])
    np.testing.assert_allclose(found, logits, rtol=1e-4, atol=1e-5)


def test_samples_of_the_autoencoder_differ_by_the_normal_alone(runs):
    """N(0, I) of the same draws: where the normal is fitted to codes, it is carried to them."""
    run = open_run("autoencoder")
    other = standard(run)
    assert other.weights.params is run.weights.params
    memory = {name: np.asarray(value) for name, value in run.weights.memory.items()}
    both = other.with_weights(other.weights._replace(memory=memory))
    np.testing.assert_array_equal(both.draw(20), run.draw(20))
    assert not np.allclose(other.draw(20), run.draw(20))


def test_what_cannot_be_compared_is_refused(runs, capsys):
    trained("vae", "--conditional", "--dir", "told")
    assert study("evaluate", runs=("autoencoder", "told", "gan")) == 2
    assert "without --conditional" in capsys.readouterr().err


@pytest.mark.slow
def test_each_prior_has_a_distance(runs):
    words = ["evaluate", "--dir", "autoencoder", "vae", "gan", "--samples", "20", "--out", "far"]
    assert main(replace(STUDY, measures=(distances,)), words) == 0
    numbers = report("far")
    assert len(numbers) == 3
    assert all(np.isfinite(number["value"]) for number in numbers.values())
