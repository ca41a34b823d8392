"""M2 on digits: what a pair holds, and that hidden classes teach."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.semi_supervised import DIGITS, build
from jaxgen.data.records import DataError
from jaxgen.data.sources import load
from jaxgen.runner.building import begin
from jaxgen.systems.semi_supervised import with_few_labels
from jaxgen.training.step import make_turns

DATA = load("digits")


def test_a_pair_is_one_of_few_labelled_examples_and_any_other():
    data = with_few_labels(DATA, 50)
    assert len(data.train) == 50 * len(DATA.train)
    batch = data.train.fetch(np.random.default_rng(0).integers(len(data.train), size=2000))
    known = np.unique(batch["x"].reshape(2000, -1), axis=0)
    assert len(known) == 50
    share = np.bincount(batch["label"]) / 2000
    np.testing.assert_allclose(share, 0.1, atol=0.03)
    assert len(np.unique(batch["y"].reshape(2000, -1), axis=0)) > 900
    assert data.test is DATA.test


@pytest.mark.parametrize(("labels", "advice"), [(55, "as many of each class"), (9000, "lower")])
def test_labels_that_cannot_be_are_refused(labels, advice):
    with pytest.raises(DataError, match=advice):
        with_few_labels(DATA, labels)


def test_a_step_teaches_the_vae_and_the_classifier_and_the_classifier_learns():
    data = with_few_labels(DATA, 100)
    system = build(replace(DIGITS, hidden=64, latents=4), data)
    state = begin(system, jax.random.key(0))
    step, rng = jax.jit(make_turns(system.turns(), 0.9)), np.random.default_rng(0)
    losses = []
    for _ in range(300):
        batch = data.train.fetch(rng.integers(len(data.train), size=64))
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["unlabelled"]))
    assert np.mean(losses[-20:]) < losses[0] - 10
    params = state["model"].params
    batch = DATA.test.fetch(np.arange(len(DATA.test)))
    right = np.argmax(system.logits(params, batch["x"]), axis=1) == batch["label"]
    assert right.mean() > 0.8
