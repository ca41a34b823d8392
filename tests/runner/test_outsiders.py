"""Systems that build on other runs, on conditions, on noise and on state of their own: each written
as an outsider would write it, and put through all that a run may go through."""

import importlib
import os
import shlex

import jax
import numpy as np
import pytest
from processes import arrays, finish, mismatches, results, start_together

from jaxgen.runner import main, open_run

SYSTEMS = ("upscaling", "latents", "captions", "atoms", "cycle")
BASES = {"upscaling": "small_digits-digits-001", "latents": "codes-digits-001"}


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def command(name, words="", status=0):
        experiment = importlib.import_module(f"strangers.{name}").EXPERIMENT
        got, out = main(experiment, shlex.split(words)), capsys.readouterr()
        assert got == status, out.err
        return out.out + out.err

    return command


def close(a, b, rtol=2e-3, atol=2e-4):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_run_of_an_outsiders_system_goes_through_all_of_it(run, name, tmp_path):
    out = run(name, "train --dir whole")
    assert "on each of 8 devices" in out
    if name in BASES:  # the run that it refers to was trained first, and its weights are not saved
        assert f"is trained first, in runs/{BASES[name]}" in out
        assert not any("autoencoder" in leaf or "base" in leaf for leaf in arrays("whole", 8))
    run(name, "train --steps 4 --dir parts")
    assert "resuming from step 4" in run(name, "train --steps 8 --dir parts --resume")
    whole = arrays("whole", 8)
    assert mismatches(whole, arrays("parts", 8)) == 0

    run(name, "train --devices 1 --dir one")
    close(whole, arrays("one", 8))
    run(name, "train --steps 4 --devices 2 --parallel pmap --accumulate 2 --dir pmap")
    of_pmap = arrays("pmap", 4)
    assert {leaf: x.shape for leaf, x in of_pmap.items()} == {n: x.shape for n, x in whole.items()}
    assert all(np.isfinite(x).all() for x in of_pmap.values())
    if name == "cycle":  # every example of every step, whole, however the batch was divided
        critics = "['of']['critics']['memory']"
        for of, steps in ((whole, 8), (of_pmap, 4)):
            assert of[f"{critics}['counts']['pushed']"] == 16 * steps
            buffer = of[f"{critics}['buffer']['x']"]
            assert buffer.any(axis=1).sum() == min(64, 16 * steps)

    run(name, "train --steps 4 --devices 2 --sweep seed=0,1 --dir sweep")
    run(name, "train --steps 4 --devices 2 --seed 1 --dir alone")
    close(arrays("sweep/seed=1", 4), arrays("alone", 4))

    assert "pictures: samples.png" in run(name, "sample --dir whole")
    if name != "cycle":
        run(name, "evaluate --dir sweep")
    drawn = np.load(results("whole") / "samples.npz")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    os.chdir(elsewhere)
    trained = open_run(tmp_path / "whole")
    x = trained.draw()
    x = x if isinstance(x, dict) else {"x": x}
    from_file = drawn["x"] if drawn["x"].dtype != np.uint8 else None
    if from_file is not None:
        np.testing.assert_allclose(x["x"], from_file, atol=1e-5)
    assert len(x["x"]) == 20


def test_padding_changes_no_bit(run):
    """Of a text what stands where there is no token, in training too; more of it hardly rounds."""
    run("captions", "train --steps 4 --dir run")
    trained = open_run("run")
    given = trained.data.given(20)
    assert 0 < given["mask"].mean() < 1
    other = {**given, "text": np.where(given["mask"], given["text"], 3)}
    assert (other["text"] != given["text"]).any()
    guided = trained.but(guidance=1.5)
    for run_ in (trained, guided):
        x = run_.draw(given=given)
        np.testing.assert_array_equal(x, run_.draw(given=other))
        longer = {name: np.pad(a, ((0, 0), (0, 3))) for name, a in given.items()}
        np.testing.assert_allclose(x, run_.draw(given=longer), rtol=1e-5, atol=1e-5)
    assert np.abs(guided.draw(given=given) - trained.draw(given=given)).max() > 1e-3
    batch, key = trained.test(16), jax.random.key(0)
    padded = {**batch, "text": np.where(batch["mask"], batch["text"], 4)}
    losses = [trained.system.losses(trained.weights, key, b, 16)[0] for b in (batch, padded)]
    np.testing.assert_array_equal(*losses)


def test_sets_are_equivariant_and_of_the_sizes_that_were_asked_for(run):
    """Turned noise makes turned samples; nothing is where there is no point, nor off the centre."""
    run("atoms", "train --steps 4 --dir run")
    trained = open_run("run")
    samples = trained.samples(20)
    mask = samples.given["mask"]
    np.testing.assert_array_equal(samples.x["mask"], mask)
    assert set(mask.sum(1)) == {2, 3, 4}
    assert not samples.x["x"][~mask].any()
    np.testing.assert_allclose(samples.x["x"].sum(1), 0, atol=1e-5)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(3, 3)))
    velocity = trained.system.velocity(trained.weights.params, mask)
    x, t = samples.x["x"], np.full(20, 0.3, np.float32)
    turned = velocity(x @ turn.astype(np.float32), t)
    np.testing.assert_allclose(turned, velocity(x, t) @ turn, atol=1e-5)


def test_several_processes_train_on_one_run(run):
    """A run is named to them, as each would find one of its own; its weights are on all devices."""
    run("small_digits", "train --devices 2 --dir base")
    run("upscaling", "train --devices 2 --base base --dir alone")
    words = "train --base base --dir both"
    for process in start_together(2, "strangers.upscaling", words, "."):
        status, out = finish(process)
        assert status == 0, out
    close(arrays("alone", 8), arrays("both", 8))
    for process in start_together(2, "strangers.upscaling", "train --dir other", "."):
        status, out = finish(process)
        assert status == 2
        assert "name its directory with --base DIR" in out
