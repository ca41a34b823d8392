"""Systems with codes for latents: what is trained, what is remembered, what is decoded."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vqvae import DIGITS, EXPERIMENT, build
from jaxgen import runner
from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.data.sources import load
from jaxgen.runner.building import begin, players, stage_of
from jaxgen.runner.system import Mistake, Weights, weights_of
from jaxgen.training.devices import Pmapped, Sharded
from jaxgen.training.step import Now, make_turns

DATA = load("digits")
SMALL = replace(
    DIGITS, width=8, blocks=1, codes=16, latents=4, levels=(4, 4), code_steps=DIGITS.train.steps
)
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


def test_what_does_not_fit_is_refused_before_the_first_stage():
    for options, advice in (
        ({"quantizer": "scalar", "depth": 2}, "--quantizer vector"),
        ({"code_steps": 10, "prior_heads": 3}, "3 heads do not divide a width of"),
    ):
        with pytest.raises(Mistake, match=advice):
            runner.building.build(EXPERIMENT, replace(SMALL, **options), DATA)


# --- the prior -----------------------------------------------------------------------------------

TINY = replace(
    SMALL, code_steps=10, prior_width=8, prior_layers=1, prior_heads=2, prior_dropout=0.0
)
PRIORS = {  # all have codes of 2x1 places
    "vector": ({"codes": 3}, 3, 1),
    "residual": ({"codes": 2, "depth": 2}, 2, 2),
    "scalar": ({"quantizer": "scalar", "levels": (3,)}, 3, 1),
    "told the class": ({"codes": 3, "conditional": True}, 3, 1),
}


def of_images(x):
    """Images ``[N, 4, 2, 1]`` as data of two classes in turn."""
    source = Arrays({"x": x.astype(np.uint8), "label": np.arange(len(x), dtype=np.int32) % 2})
    return DataSet("tiny", Image((4, 2, 1), 17), source, source, source, classes=2)


def second_stage(system, key):
    """Its state at its beginning, after a first stage of no steps."""
    first = weights_of(begin(system.autoencoder, key))
    return players(system, system.grow(jax.random.fold_in(key, 1), first))


@pytest.mark.parametrize("name", PRIORS)
def test_the_probabilities_of_all_codes_sum_to_one_and_samples_are_decoded_of_them(key, name):
    """Each sample is an image of one of all codes, which are drawn as often as they are probable;
    where the upper row is known, the rest has its conditional probability."""
    options, codes, depth = PRIORS[name]
    system = build(replace(TINY, **options), of_images(np.zeros((2, 4, 2, 1))))
    memory = weights_of(second_stage(system, key)).memory
    params = jax.tree.map(lambda a: 8 * a, system.init(key)["params"])  # far from even
    every = np.array([*itertools.product(range(codes), repeat=2 * depth)])
    every = jnp.asarray(every.reshape(-1, 2, 1, depth))
    count, draws = len(every), 400
    labels = jnp.ones(count, jnp.int32)

    @jax.jit
    def found(params, labels):
        log_p = system.log_prob(params, every, labels).sum(axis=1)
        one = lambda k: system.sample(k, Weights(params, memory), {"label": labels})
        rest = lambda k: system.drawn(k, params, every[:, :1], labels)
        keys = jax.random.split(key, draws)
        images = system.autoencoder.decoded(system.frozen(memory), every)
        return log_p, images, jax.lax.map(one, keys), jax.lax.map(rest, keys)

    log_p, images, drawn, rest = found(params, labels)
    p = np.exp(np.asarray(log_p, float))
    np.testing.assert_allclose(p.sum(), 1, rtol=1e-5)
    assert p.max() > 2 / count
    apart = np.abs(np.asarray(drawn).reshape(-1, 1, 8) - np.asarray(images).reshape(1, -1, 8))
    which = apart.max(axis=2) < 1e-4
    assert (which.sum(axis=1) == 1).all()
    error = lambda p, n: 5 * np.sqrt(p * (1 - p) / n) + 1e-6
    assert (np.abs(which.mean(axis=0) - p) < error(p, len(which))).all()
    same = np.asarray((every[:, None, :1] == every[None, :, :1]).all((2, 3, 4)))
    given = same * p[None] / (same * p[None]).sum(axis=1, keepdims=True)
    share = (rest[:, :, None] == every[None, None]).all((3, 4, 5)).mean(axis=0)
    assert (np.abs(share - given) < error(given, draws)).all()
    if system.labelled:
        other, *_ = found(params, 0 * labels)
        assert np.std(np.asarray(log_p - other)) > 0.05


def test_the_prior_learns_how_often_codes_are_and_the_first_stage_does_not_move(key):
    """Of two images, one three times as often as the other: their entropy, 0.562 nats."""
    x = np.concatenate([np.zeros((3, 4, 2, 1)), np.full((1, 4, 2, 1), 16)])
    data = of_images(x)
    fast = replace(TINY.train, learning_rate=1e-2)
    system = build(replace(TINY, quantizer="scalar", train=fast), data)
    before = state = second_stage(system, key)
    start, prior = system.stages()[1]
    begun = stage_of(prior, start, replace(TINY, train=fast)).begin
    told = weights_of(begin(system.autoencoder, key))
    assert begun((key, told, told))["model"].step == 0  # it is averaged anew
    step, batch = jax.jit(make_turns(system.turns(), 0.9)), data.train.fetch(np.arange(4))
    code = system.autoencoder.codes(system.frozen(weights_of(state).memory), key, batch)
    assert (code[2] != code[3]).any()
    for _ in range(150):
        state, _ = step(state, batch, key)
    nats, metrics = system.measured(weights_of(state), key, batch)
    entropy = -(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    np.testing.assert_allclose(2 * nats.mean(), entropy, atol=0.02)  # of two codes
    np.testing.assert_allclose(2 * nats[3], -np.log(0.25), atol=0.1)
    np.testing.assert_allclose(metrics["bits_per_code"], nats / np.log(2), rtol=1e-6)
    assert system.score(weights_of(state)) < 0
    old, new = before["model"], state["model"]
    jax.tree.map(np.testing.assert_array_equal, old.memory, new.memory)
    assert "autoencoder" in new.memory


@pytest.mark.parametrize("accumulate", [1, 4])
@pytest.mark.parametrize("kind", ["jit", "pmap"])
def test_codebooks_are_those_of_the_whole_batch(kind, accumulate):
    """On eight devices and in four parts as on one and at once; dead codes begin anew alike."""
    system = build(replace(SMALL, **KINDS["vector"]), DATA)
    batch = DATA.train.fetch(np.arange(64))

    def after(placement, parts):
        run = placement.compile(make_turns(system.turns(), 0.9, parts))
        state = placement.put_state(begin(system, jax.random.key(0)))
        state, _ = run(state, placement.put_batch(batch), jax.random.key(1))
        return jax.device_get(placement.get_state(state))["model"].memory["books"]

    devices = tuple(jax.devices())
    want = after(Sharded(devices[:1]), 1)
    many = Sharded(devices) if kind == "jit" else Pmapped(devices[:4])
    found = after(many, accumulate)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, want)
