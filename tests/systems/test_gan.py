"""Every objective and penalty with both architectures, and what keeps a discriminator Lipschitz."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from experiments.gan import DIGITS, OBJECTIVES, PENALTIES, POINTS, build
from jaxgen.data.sources import load
from jaxgen.models.discriminator import Judged
from jaxgen.runner.building import begin
from jaxgen.runner.system import weights_of
from jaxgen.systems.exploration import first_kernel
from jaxgen.systems.gan import forward, lipschitz
from jaxgen.training.step import Now, make_turns

DATA = {"points": load("8gaussians"), "images": load("digits")}
SMALL = {
    "points": replace(POINTS, channels=8),
    "images": replace(DIGITS, channels=4),
}


def system_of(kind, steps=4, rate=1e-2, **options):
    config = replace(SMALL[kind], **options)
    train = replace(config.train, steps=steps, learning_rate=rate, batch=8)
    return build(replace(config, train=train), DATA[kind])


def batch_of(kind, count=8):
    return jax.tree.map(jnp.asarray, DATA[kind].train.fetch(np.arange(count)))


def trained(system, kind, steps, start=None, key=0):
    """The players after so many steps on one batch, and the last metrics."""
    step = jax.jit(make_turns(system.turns(), 0.9))
    state = begin(system, jax.random.key(1)) if start is None else start
    batch, metrics = batch_of(kind, 8), {}
    for _ in range(steps):
        state, metrics = step(state, batch, jax.random.key(key))
    return state, metrics


def slopes_of(systems, kind, key):
    """Losses and the largest slopes of both players, of many systems in one program."""
    states = {name: begin(system, key) for name, system in systems.items()}

    @jax.jit
    def everything(states, batch, key):
        found = {}
        for name, system in systems.items():
            state = states[name]
            for turn in system.turns():
                player = state[turn.player]
                now = Now(jnp.int32(0), player.memory, state.of)

                def loss(params, turn=turn, now=now):
                    return turn.loss(params, batch, key, now)[0].mean()

                value, slope = jax.value_and_grad(loss)(player.params)
                largest = jnp.stack([jnp.abs(g).max() for g in jax.tree.leaves(slope)]).max()
                found[name, turn.player] = value, largest
        return found

    return everything(states, batch_of(kind), key)


@pytest.mark.parametrize("kind", ["points", pytest.param("images", marks=pytest.mark.slow)])
def test_every_objective_and_every_penalty_moves_both_players(kind, key):
    systems = {("objective", name): system_of(kind, objective=name) for name in OBJECTIVES}
    systems |= {("penalty", name): system_of(kind, penalty=name) for name in PENALTIES}
    found = slopes_of(systems, kind, key)
    for name, (value, largest) in found.items():
        assert np.isfinite(value), name
        assert 1e-9 < largest < np.inf, name
    # a penalty is the discriminator's, and adds to what it would pay
    free = found[("penalty", "none"), "discriminator"][0]
    if kind == "points":  # the same network with and without
        for name in PENALTIES:
            same = found[("penalty", name), "generator"][0]
            np.testing.assert_array_equal(same, found[("penalty", "none"), "generator"][0])
            assert found[("penalty", name), "discriminator"][0] >= free


def test_spectral_norms_keep_the_discriminator_lipschitz_however_large_its_weights(key):
    """A perceptron of leaky ReLUs is no steeper than the product of its largest singular values."""
    system = system_of("points", spectral_norm="discriminator")
    state = begin(system, key)["discriminator"]
    large = jax.tree.map(lambda p: 10 * p if p.ndim > 1 else p, state.params)
    x = 3 * jax.random.normal(key, (50, 2))

    @jax.jit
    def steepest(params, memory):
        def settled(memory, _):
            return lipschitz(params, memory).memory, None

        memory, _ = jax.lax.scan(settled, memory, length=100)
        applied, y = lipschitz(params, memory), jnp.zeros(len(x), jnp.int32)

        def steepness(params):
            def f(x):
                of = applied._replace(params=params)
                return forward(system.discriminator, of, x, y, Now(0, memory))[0].logits.sum()

            return jnp.linalg.norm(jax.grad(f)(x), axis=-1).max()

        return steepness(params), steepness(applied.params)

    before, after = steepest(large, state.memory)
    assert before > 10
    assert 0 < after <= 1 + 1e-4


def test_a_turn_of_the_discriminator_turns_its_vectors_and_clips_its_weights():
    """At a rate of 0 they stay as they are, up to the clip, which is not the generator's; what is
    kept are the weights before they are divided by their norms."""
    system = system_of(
        "points",
        objective="hinge",
        spectral_norm="discriminator",
        clip_weights=0.02,
        discriminator_rate=0.0,
    )
    start = begin(system, jax.random.key(1))
    state, metrics = trained(system, "points", 1, start)

    def pairs(player, part):
        trees = [jax.tree.leaves(getattr(s[player], part)) for s in (start, state)]
        return zip(*trees, strict=True)

    for before, after in pairs("discriminator", "params"):
        np.testing.assert_allclose(after, np.clip(before, -0.02, 0.02), atol=1e-7)
    for before, after in pairs("discriminator", "memory"):
        np.testing.assert_allclose(np.linalg.norm(after), 1, rtol=1e-5)
        assert np.abs(before - after).max() > 1e-3 or len(after) == 1
    moved = [np.abs(a - b).max() for a, b in pairs("generator", "params")]
    assert max(moved) > 1e-3
    assert max(np.abs(after).max() for _, after in pairs("generator", "params")) > 0.1
    assert metrics["discriminator/skipped"] == 0
    assert metrics.keys() >= {"discriminator/real_logit", "discriminator/fake_logit"}


def test_instance_noise_is_gone_at_the_last_step(key):
    system, x = system_of("points", instance_noise=0.5, steps=11), jnp.zeros((2000, 2))
    seen = jax.jit(lambda step: system.seen(key, x, Now(step, {})).std())
    found = [float(seen(jnp.int32(step))) for step in (0, 5, 10)]
    np.testing.assert_allclose(found, [0.5, 0.25, 0], rtol=0.05)


def test_label_smoothing_is_of_the_discriminator_alone():
    real, fake = jnp.array([2.0, -1.0]), jnp.array([0.5, 0.0])
    plain, smooth = (system_of("points", label_smoothing=s).objective for s in (0.0, 0.2))
    extra = smooth.critic(real, fake) - plain.critic(real, fake)
    # 0.2 (log D - log(1 - D)) of data
    np.testing.assert_allclose(extra, 0.2 * np.asarray(real), atol=1e-6)
    np.testing.assert_array_equal(smooth.generator(real, fake), plain.generator(real, fake))
    squares = system_of("points", objective="least_squares", label_smoothing=0.2).objective
    np.testing.assert_allclose(squares.critic(jnp.array([0.8]), jnp.array([0.0])), 0, atol=1e-7)


@pytest.mark.slow
def test_images_are_augmented_and_penalized_in_training():
    system = system_of(
        "images", objective="relativistic", penalty="r1", spectral_norm="discriminator",
        augment="diff", instance_noise=0.1, discriminator_steps=1,
    )  # fmt: skip
    start = begin(system, jax.random.key(1))
    assert start["discriminator"].memory.keys() == {"spectral"}  # no batch norm
    _, metrics = trained(system, "images", 3, start)
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["discriminator/penalty"] > 0
    assert metrics["generator/skipped"] == 0


def test_what_samples_lack_is_told():
    system = system_of("points")
    modes = np.repeat(DATA["points"].modes, 60, axis=0)
    assert system.lost(modes) == []
    (line,) = system.lost(np.concatenate([modes[:300], modes[:300]]))  # five of the eight
    assert line.startswith("3 of 8 modes are lost, among 600 samples: see --penalty")


def test_a_discriminator_that_is_sure_or_steep_is_told():
    """D = sigmoid(200 (|x| - 1/2)) is sure of data, 4 from the middle, and of samples in it."""
    system = system_of("points", penalty="r1")
    weights = weights_of(begin(system, jax.random.key(1)))
    assert system.out_of_balance(weights, 0) == []

    class Radius(nn.Module):
        @nn.compact
        def __call__(self, x, labels=None, *, train=False):
            scale = self.param("scale", nn.initializers.constant(200.0), ())
            radius = jnp.sqrt((x**2).sum(axis=-1) + 1e-12)
            return Judged(scale * (radius - 0.5), x)

    class Middle(nn.Module):
        @nn.compact
        def __call__(self, z, labels=None, *, train=False):
            return self.param("scale", nn.initializers.constant(0.01), ()) * z[:, :2]

    sure = replace(system, discriminator=Radius(), generator=Middle())
    weights = weights_of(begin(sure, jax.random.key(1)))
    told, steep = sure.out_of_balance(weights, 0)
    assert told.startswith(
        "D tells data (D = 1.000) and samples (0.000) apart: see --instance-noise"
    )
    assert steep.startswith("D is steep (penalty 2e+04, weight 10): see --penalty-weight")
    assert "--augment" not in told  # which is of images
    # while noise carries samples out of the middle, D is not sure of them
    noisy = system_of("points", penalty="r1", instance_noise=50.0, steps=4)
    noisy = replace(noisy, discriminator=Radius(), generator=Middle())
    assert len(noisy.out_of_balance(weights, 0)) == 1
    assert len(noisy.out_of_balance(weights, 4)) == 2


def test_samples_that_are_not_finite_are_the_worst(capsys):
    system = system_of("points")
    weights = weights_of(begin(system, jax.random.key(1)))
    boundless = weights["generator"]._replace(
        params=jax.tree.map(lambda p: p * 1e25, weights["generator"].params)
    )
    assert system.score({**weights, "generator": boundless}, 3) == np.inf
    assert "samples are not finite" in capsys.readouterr().out
    assert np.isfinite(system.score(weights, 3))


def test_directions_are_of_the_layer_that_latents_meet():
    """Ten latents of ten classes: no table of classes is taken for it."""
    told = {"condition": "projection", "latents": 10}
    found = {}
    for name in ("dcgan", "progressive"):
        system = system_of("images", architecture=name, **told)
        weights = weights_of(begin(system, jax.random.key(1)))
        found[name] = first_kernel(system, weights)
    assert found["dcgan"].shape[0] == found["progressive"].shape[0] == 10
    assert found["progressive"].shape[1] > 10
    cut = system_of("images", architecture="small_biggan", condition="projection", latents=48)
    assert first_kernel(cut, weights_of(begin(cut, jax.random.key(1)))) is None
