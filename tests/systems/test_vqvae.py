"""Systems with codes for latents: what is trained, what is remembered, what is decoded."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from experiments.vqvae import DIGITS, build
from jaxgen.data.sources import load
from jaxgen.runner.building import begin
from jaxgen.runner.system import weights_of
from jaxgen.training.step import Now, make_turns

DATA = load("digits")
SMALL = replace(DIGITS, width=8, blocks=1, codes=16, latents=4, levels=(4, 4))
KINDS = {
    "vector": {},
    "residual": {"depth": 2},
    "scalar": {"quantizer": "scalar"},
    "gumbel": {"quantizer": "gumbel"},
}


@pytest.fixture(scope="module", params=KINDS.values(), ids=KINDS)
def trained(request):
    """A system after 200 steps, and its loss before and after."""
    system = build(replace(SMALL, **request.param), DATA)
    state = begin(system, jax.random.key(0))
    step = jax.jit(make_turns(system.turns(), 0.9))
    rng, losses = np.random.default_rng(0), []
    for _ in range(200):
        batch = DATA.train.fetch(rng.integers(len(DATA.train), size=64))
        state, metrics = step(state, batch, jax.random.key(1))
        losses.append(float(metrics["error"]))
    return system, weights_of(state), losses


def test_the_error_falls_and_codes_alone_carry_the_image(trained):
    """What is decoded of the codes has the error that the measured loss has."""
    system, weights, losses = trained
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    batch = DATA.test.fetch(np.arange(50))
    code = system.codes(weights, jax.random.key(2), batch)
    assert code.shape == (50, 4, 4, len(system.quantizer.sizes))
    assert code.max() < 16
    x = np.asarray(DATA.kind.values(batch["x"]))
    error = ((x - np.asarray(system.decoded(weights, code))) ** 2).mean(axis=(1, 2, 3))
    _, metrics = system.measured(weights, jax.random.key(2), batch)
    np.testing.assert_allclose(metrics["error"], error, rtol=1e-4)
    assert error.mean() < 0.6 * x.var()
    assert len(np.unique(code)) > 4


def test_books_are_remembered_in_training_and_stay_where_they_are_measured(trained):
    system, weights, _ = trained
    batch = DATA.train.fetch(np.arange(16))
    for train in (True, False):
        now = Now(0, weights.memory, train=train)
        _, told = system.loss(weights.params, batch, jax.random.key(0), now)
        assert (told.memory is not None) == (train and bool(weights.memory))


def test_samples_are_images_of_codes(trained):
    system, weights, _ = trained
    x = system.sample(jax.random.key(0), weights, {"label": np.zeros(3, np.int32)})
    assert x.shape == (3, 8, 8, 1)
    assert np.isfinite(x).all()


def test_a_depth_of_another_quantizer_is_refused():
    with pytest.raises(ValueError, match="--quantizer vector"):
        build(replace(SMALL, quantizer="scalar", depth=2), DATA)
