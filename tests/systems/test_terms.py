"""What players of a GAN descend beside their objectives, in training: memories by hand."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.gan import DIGITS, POINTS, build
from jaxgen.data.sources import load
from jaxgen.runner import Mistake
from jaxgen.runner.building import begin
from jaxgen.systems.gan import CHANCE, POOL, TERMS, Adaptive, from_pool, renewed
from jaxgen.training.step import Now, make_turns

DATA = {"points": load("8gaussians"), "images": load("digits")}
SMALL = {"points": replace(POINTS, channels=8), "images": replace(DIGITS, channels=4)}


def system_of(kind="points", rate=1e-2, **options):
    config = replace(SMALL[kind], **options)
    train = replace(config.train, steps=4, learning_rate=rate, batch=8)
    return build(replace(config, train=train), DATA[kind])


def batch_of(kind="points", count=8):
    return jax.tree.map(jnp.asarray, DATA[kind].train.fetch(np.arange(count)))


def steps_of(system, count, kind="points"):
    """States and metrics, of the start and of so many steps."""
    step = jax.jit(make_turns(system.turns(), 0.9))
    found = [(begin(system, jax.random.key(1)), {})]
    for _ in range(count):
        found.append(step(found[-1][0], batch_of(kind), jax.random.key(0)))
    return found


def test_what_is_averaged_is_all_that_the_parameters_were():
    """Historical averaging: the mean of thetas 0..t, and the square of the distance to it."""
    found = steps_of(system_of(averaging=0.1), 3)
    flat = lambda tree: np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])
    for name in ("discriminator", "generator"):
        thetas = [flat(state[name].params) for state, _ in found]
        mean = flat(found[3][0][name].memory[TERMS]["averaging"]["mean"])
        # at the start the mean is theta 0, which the first move sees once more
        np.testing.assert_allclose(mean, np.mean([thetas[0], *thetas[:3]], axis=0), atol=1e-6)
        before = np.mean([thetas[0], *thetas[:2]], axis=0)
        expected = ((thetas[2] - before) ** 2).sum()
        np.testing.assert_allclose(found[3][1][f"{name}/averaging"], expected, rtol=1e-4)


def test_a_lazy_penalty_weighs_as_much_as_the_steps_it_leaves_out():
    """With players that do not move: at its step n times the penalty, between them nothing."""
    often, lazy = (system_of(rate=0.0, penalty="r1", penalty_every=n) for n in (1, 3))
    every, third = ([metrics for _, metrics in steps_of(system, 4)[1:]] for system in (often, lazy))
    told = lambda rows, name: np.array([row[f"discriminator/{name}"] for row in rows])
    assert (told(every, "penalty") > 0).all()
    np.testing.assert_allclose(told(third, "penalty")[[0, 3]], 3 * told(every, "penalty")[[0, 3]])
    np.testing.assert_array_equal(told(third, "penalty")[[1, 2]], 0)
    more = told(third, "loss") - told(every, "loss")  # 10 (3 - 1) P, then -10 P
    weights = 10 * np.array([2.0, -1, -1, 2])
    np.testing.assert_allclose(more, weights * told(every, "penalty"), atol=1e-5)


def test_the_balance_of_began_follows_the_errors():
    """k_t+1 = k_t + 0.001 (L(x) / 2 - L(G(z))), from 0 and not below."""
    found = steps_of(system_of(objective="began"), 3)
    k = 0.0
    for (_, metrics), (state, _) in zip(found[1:], found[1:], strict=True):
        np.testing.assert_allclose(metrics["discriminator/k"], k, atol=1e-9)
        real, fake = (metrics[f"discriminator/{name}_logit"] for name in ("real", "fake"))
        np.testing.assert_allclose(metrics["discriminator/loss"], real - k * fake, rtol=1e-5)
        np.testing.assert_allclose(
            metrics["discriminator/convergence"], real + abs(real / 2 - fake), rtol=1e-5
        )
        k = min(max(k + 1e-3 * (real / 2 - fake), 0), 1)
        memory = state["discriminator"].memory[TERMS]["equilibrium"]
        np.testing.assert_allclose(memory["k"], k, rtol=1e-4, atol=1e-9)
    assert k > 0


def test_half_of_what_is_shown_are_samples_of_before(key):
    """What is taken out of the pool is replaced by new samples."""
    pool, made = jax.random.normal(key, (10, 2)), 100 + jax.random.normal(key, (4, 2))
    rows = lambda x: {tuple(np.asarray(row)) for row in x}
    shown, after = from_pool(key, pool, made), renewed(pool, made, key)
    assert rows(shown[:2]) <= rows(pool)
    np.testing.assert_array_equal(shown[2:], made[2:])
    assert rows(after) - rows(pool) == rows(made[:2])
    assert len(rows(pool) - rows(after)) == 2
    assert rows(from_pool(jax.random.key(9), pool, made)[:2]) != rows(shown[:2])


@pytest.mark.parametrize("moves", [1, 3])
def test_a_pool_begins_with_samples_and_is_renewed_at_every_move(moves):
    system = system_of(pool=40, discriminator_steps=moves)
    step = jax.jit(make_turns(system.turns(), 0.9))
    start = begin(system, jax.random.key(1))
    state, metrics = step(start, batch_of(count=8 * moves), jax.random.key(0))
    before, after = (s["discriminator"].memory[POOL] for s in (start, state))
    assert before.shape == (40, 2)
    assert np.std(before) > 0
    changed = (np.asarray(before) != np.asarray(after)).any(axis=1).sum()
    # other places at each move: had they been the same, 4 would have changed
    assert changed == 4 if moves == 1 else 8 <= changed <= 12
    assert metrics["discriminator/skipped"] == 0


def test_options_that_do_not_go_together_are_refused():
    for kind, options, fix in (
        ("points", {"pool": 3}, "use 0, or 4 or more"),
        ("images", {"pool": 8, "condition": "projection"}, "leave out --condition"),
        ("images", {"objective": "began", "architecture": "style"}, "leave out --architecture"),
        ("images", {"objective": "least_squares", "adaptive": True, "augment": "diff"}, "the sign"),
        ("images", {"adaptive": True}, "what --augment names"),
    ):
        with pytest.raises(Mistake, match=fix):
            system_of(kind, **options)
    config = replace(SMALL["images"], architecture="progressive")
    with pytest.raises(Mistake, match="leave out --decay"):
        build(replace(config, train=replace(config.train, decay="linear")), DATA["images"])


@pytest.mark.parametrize("decay", ["linear", "cosine"])
def test_both_rates_fall_together_however_often_the_discriminator_moves(decay):
    """At every step of the run, from the warm-up to the end: Adam's update of a constant gradient
    is the rate."""
    config = replace(SMALL["points"], discriminator_steps=3)
    train = replace(config.train, steps=12, warmup=2, decay=decay, learning_rate=0.1, b1=0.0)
    system = build(replace(config, train=train), DATA["points"])

    def rates(optimizer, times):
        params, found = jnp.ones(2), []
        state = optimizer.init(params)
        for _ in range(12 * times):
            update, state = optimizer.update(jnp.ones(2), state, params)
            found.append(-float(update[0]))
        return np.array(found[::times])

    of_generator, of_discriminator = (
        rates(system.optimizer, 1),
        rates(system.discriminator_optimizer, 3),
    )
    np.testing.assert_allclose(of_discriminator, of_generator, rtol=1e-4, atol=1e-6)
    assert of_generator[-1] > 0


@pytest.mark.parametrize(("real", "rises"), [(1.0, True), (-1.0, False)])
def test_images_are_augmented_more_often_while_all_data_are_told_apart(real, rises):
    """r_t = E sign D(x) is 1 or -1: the chance moves by what was shown, B / images, and stays
    within [0, 1]."""
    system = replace(
        system_of("images", augment="diff", adaptive=True, spectral_norm="discriminator", rate=0.0),
        adaptive=Adaptive(images=80),
    )
    start = begin(system, jax.random.key(1))
    d = start["discriminator"]
    p = jax.tree.map(jnp.zeros_like, d.params)
    p["head"]["Dense_0"]["bias"] = jnp.full(1, real)
    of = {**start.of, "discriminator": replace(d, params=p, memory={**d.memory, CHANCE: 0.95})}
    now = Now(0, of["discriminator"].memory, of)
    judging = jax.jit(lambda p, now: system.judging(p, batch_of("images"), jax.random.key(0), now))
    chance = float(judging(p, now._replace(memory=of["discriminator"].memory))[1].memory[CHANCE])
    np.testing.assert_allclose(chance, 1.0 if rises else 0.85, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "condition"),
    [
        ("dcgan", "concatenation"),
        ("dcgan", "auxiliary"),
        ("sngan", "projection"),
        ("sngan", "none"),
        ("small_biggan", "projection"),
        ("style", "concatenation"),
        ("progressive", "auxiliary"),
    ],
)
def test_both_players_learn_in_every_architecture(architecture, condition):
    """Every parameter moves, told the class in every way, with all that can be added."""
    norms = "both" if architecture in ("dcgan", "small_biggan") else "none"
    system = system_of("images", condition=condition, minibatch=True, matching=1.0, seeking=0.1,
                       orthogonality=1e-4, augment="diff", consistency=1.0, penalty="r1", latents=6,
                       architecture=architecture, widest=6, spectral_norm=norms)  # fmt: skip
    (start, _), *_, (state, metrics) = steps_of(system, 3, "images")
    assert all(np.isfinite(value) for value in metrics.values())
    assert metrics["generator/skipped"] + metrics["discriminator/skipped"] == 0
    for name in ("discriminator", "generator"):
        pairs = zip(*(jax.tree.leaves(s[name].params) for s in (start, state)), strict=True)
        assert all(np.abs(a - b).max() > 0 for a, b in pairs)
    assert metrics.keys() >= {"generator/matching", "generator/seeking", "generator/orthogonality"}


def test_points_have_no_class_to_be_told():
    with pytest.raises(Mistake, match="has none of them"):
        system_of(condition="projection")
