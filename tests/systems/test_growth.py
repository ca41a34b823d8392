"""A GAN that grows: every change of stage is smooth, and new layers come in step by step."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gan import DIGITS, build
from jaxgen.data.sources import load
from jaxgen.runner.building import begin, players
from jaxgen.runner.system import weights_of
from jaxgen.systems.gan import evaluated
from jaxgen.training.step import make_turns

DATA = load("digits")
GROWING = replace(
    DIGITS, architecture="progressive", channels=4, widest=6, grow_every=4, latents=5,
    train=replace(DIGITS.train, steps=8, batch=4),
)  # fmt: skip


def judged(system, weights, x):
    return evaluated(system.discriminator, weights["discriminator"], x, None).logits


def test_at_a_change_of_stage_both_players_answer_as_before(key):
    """What was drawn and judged is the same to rounding; four steps later the new layers count."""
    (first, small), (second, large) = build(GROWING, DATA).stages()
    assert (first, second) == (0, 4)
    batch = jax.tree.map(jnp.asarray, DATA.train.fetch(np.arange(4)))
    state = begin(small, key)
    step = jax.jit(make_turns(small.turns(), 0.5))
    for _ in range(2):
        state, _ = step(state, batch, key)
    before = weights_of(state)
    grown = players(large, large.grow(key, before))
    after, z = weights_of(grown), large.noise(key, 4)
    y = jnp.zeros(4, jnp.int32)
    x = small.generate(before, z, y)
    np.testing.assert_allclose(large.generate(after, z, y), x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        judged(large, after, x), judged(small, before, x), rtol=1e-4, atol=1e-5
    )
    sizes = [sum(p.size for p in jax.tree.leaves(w["generator"].params)) for w in (before, after)]
    assert sizes[0] < sizes[1]
    # alpha is (step - 4) / 2: the state remembers what the step says
    grown = replace(grown, step=grown.step + 4)
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
    # a is 0.99 a + 0.01 (mean length)
    mean = 0.99 * 0.01 * lengths[0] + 0.01 * lengths[4]
    np.testing.assert_allclose(state["generator"].memory["terms"]["paths"]["mean"], mean, rtol=1e-5)
    moved = state["generator"].memory["mapping"]["mean"]
    assert np.abs(moved).max() > np.abs(start["generator"].memory["mapping"]["mean"]).max()
