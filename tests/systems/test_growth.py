"""A GAN that grows: every change of stage is smooth, and new layers come in step by step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gan import DIGITS, build
from jaxgen.data.sources import load
from jaxgen.models.progressive import averaged, repeated
from jaxgen.runner.building import begin, stage_of
from jaxgen.runner.system import moving_of, weights_of
from jaxgen.systems.gan import evaluated
from jaxgen.training.step import Now, make_turns

DATA = load("digits")
GROWING = replace(
    DIGITS, architecture="progressive", channels=4, widest=6, grow_every=4, latents=5,
    averaging=0.1, train=replace(DIGITS.train, steps=8, batch=4),
)  # fmt: skip


def judged(system, weights, x):
    return evaluated(system.discriminator, weights["discriminator"], x, None).logits


def test_at_a_change_of_stage_both_players_answer_as_before(key):
    """What was drawn and judged is the same to rounding, by the averages and by the parameters that
    move; what is remembered is carried on; four steps later the new layers count."""
    (first, small), (second, large) = build(GROWING, DATA).stages()
    assert (first, second) == (0, 4)
    batch = jax.tree.map(jnp.asarray, DATA.train.fetch(np.arange(4)))
    state = begin(small, key)
    step = jax.jit(make_turns(small.turns(), 0.5))
    for _ in range(2):
        state, _ = step(state, batch, key)
    z, y, train = large.noise(key, 4), jnp.zeros(4, jnp.int32), GROWING.train
    weights = weights_of(state), moving_of(state)
    config = replace(GROWING, train=replace(train, ema=0.5))
    grown = stage_of(large, second, config).begin((key, *weights))
    assert grown.step == 4
    assert grown["discriminator"].step == grown["generator"].step == 4  # averages do not begin anew
    for before, after in zip(weights, (weights_of(grown), moving_of(grown)), strict=True):
        x = small.generate(before, z, y)
        np.testing.assert_allclose(large.generate(after, z, y), x, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            judged(large, after, x), judged(small, before, x), rtol=1e-4, atol=1e-5
        )
    apart = [small.generate(w, z, y) for w in weights]
    assert np.abs(apart[0] - apart[1]).max() > 1e-5  # the average lags behind
    for name in ("generator", "discriminator"):
        old, new = (s[name].memory["terms"]["averaging"] for s in (state, grown))
        np.testing.assert_array_equal(old["count"], new["count"])
        kept = dict(jax.tree_util.tree_flatten_with_path(new["mean"])[0])
        for path, leaf in jax.tree_util.tree_flatten_with_path(old["mean"])[0]:
            np.testing.assert_array_equal(leaf, kept[path])
    before, after = weights[0], weights_of(grown)
    sizes = [sum(p.size for p in jax.tree.leaves(w["generator"].params)) for w in (before, after)]
    assert sizes[0] < sizes[1]
    # alpha is (step - 4) / 2: the state remembers what the step says
    step = jax.jit(make_turns(large.turns(), 0.5))
    for alpha in (0.0, 0.5, 1.0, 1.0):
        grown, metrics = step(grown, batch, key)
        for player in ("generator", "discriminator"):
            (kept,) = jax.tree.leaves(grown[player].memory["growth"])
            np.testing.assert_allclose(kept, alpha)
        assert metrics["generator/skipped"] + metrics["discriminator/skipped"] == 0
    now = weights_of(grown)
    known = {**now, "generator": now["generator"]._replace(memory={"growth": {"alpha": 0.0}})}
    apart = jnp.abs(large.generate(now, z, y) - large.generate(known, z, y)).max()
    assert apart > 1e-3


def test_data_are_faded_in_as_samples_are(key):
    """At alpha = 0 they are what the stage before saw of them, at 1 they are whole."""
    (_, _), (second, large) = build(GROWING, DATA).stages()
    batch = jax.tree.map(jnp.asarray, DATA.train.fetch(np.arange(4)))
    x, state = DATA.kind.values(batch["x"]), begin(large, key)
    players = weights_of(state)

    def shown(step):
        now = Now(step, {}, players)
        g, d = (large.applied(players[name], now) for name in ("generator", "discriminator"))
        return large.scene(key, d.params, batch, g, d, now, None)[0].x

    found = [shown(second + step) for step in (0, 1, 2)]
    coarse = repeated(averaged(x, 2), 2)
    for alpha, seen in zip((0.0, 0.5, 1.0), found, strict=True):
        np.testing.assert_allclose(seen, alpha * x + (1 - alpha) * coarse, atol=1e-6)
    assert np.abs(coarse - x).max() > 0.1


@pytest.mark.slow
def test_a_generator_of_styles_learns_with_its_paths():
    config = replace(
        GROWING, architecture="style", path_length=1.0, penalty="r1", condition="projection"
    )
    system = build(config, DATA)
    state, batch = (
        begin(system, jax.random.key(0)),
        jax.tree.map(jnp.asarray, DATA.train.fetch(np.arange(4))),
    )
    step, lengths = jax.jit(make_turns(system.turns(), 0.5)), []
    start = state
    for _ in range(5):
        state, metrics = step(state, batch, jax.random.key(1))
        assert metrics["generator/skipped"] + metrics["discriminator/skipped"] == 0
        lengths.append(float(metrics["generator/path_length"]))
    assert [length > 0 for length in lengths] == [True, False, False, False, True]  # every fourth
    # a is 0.99 a + 0.01 (mean length); what is logged is four times the length, every fourth step
    mean = (0.99 * 0.01 * lengths[0] + 0.01 * lengths[4]) / 4
    np.testing.assert_allclose(state["generator"].memory["terms"]["paths"]["mean"], mean, rtol=1e-5)
    moved = state["generator"].memory["mapping"]["mean"]
    assert np.abs(moved).max() > np.abs(start["generator"].memory["mapping"]["mean"]).max()
