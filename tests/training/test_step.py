import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.training.step import (
    Aux,
    Players,
    adam,
    descend,
    gradient,
    init_state,
    make_alternating_step,
    make_step,
    step_key,
)

PARAMS = {"w": jnp.array([1.0, -2.0])}


def quadratic(params, batch, key):
    del key
    return 0.5 * jnp.mean((params["w"][None] - batch) ** 2) * 2, {"seen": batch.mean()}


def test_one_step_of_gradient_descent_by_hand():
    """loss = mean over examples and entries of (w - b)^2, so the gradient is w - mean(b)."""
    batch = jnp.array([[0.0, 0.0], [2.0, 4.0]])
    optimizer = optax.sgd(0.5)
    state = init_state({"params": PARAMS}, optimizer)
    np.testing.assert_array_equal(state.ema["w"], PARAMS["w"])  # not zero
    step = jax.jit(make_step(quadratic, optimizer, ema_decay=0.9))
    state, metrics = step(state, batch, jax.random.key(0))
    gradient = np.array([1.0, -2.0]) - [1.0, 2.0]
    w = np.array([1.0, -2.0]) - 0.5 * gradient
    np.testing.assert_allclose(state.params["w"], w)
    np.testing.assert_allclose(state.ema["w"], 0.9 * np.array([1.0, -2.0]) + 0.1 * w, rtol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], np.linalg.norm(gradient))
    np.testing.assert_allclose(metrics["seen"], 1.5)
    assert state.step == 1


def test_every_step_draws_from_its_own_key():
    drawn = lambda params, batch, key: (params["w"].sum() * 0, {"u": jax.random.uniform(key)})
    optimizer = optax.sgd(0.0)
    step = jax.jit(make_step(drawn, optimizer, 0.0))
    state, key, seen = init_state({"params": PARAMS}, optimizer), jax.random.key(3), []
    for _ in range(3):
        state, metrics = step(state, jnp.zeros(1), key)
        seen.append(float(metrics["u"]))
    assert len(set(seen)) == 3
    want = [float(jax.random.uniform(jax.random.fold_in(key, i))) for i in range(3)]
    np.testing.assert_allclose(seen, want)
    assert step_key(key, jnp.int32(1)) == jax.random.fold_in(key, 1)


def test_mutable_collections_come_back():
    def loss(params, batch, key):
        return params["w"].sum(), Aux({}, {"batch_stats": {"mean": jnp.ones(2)}})

    optimizer = optax.sgd(0.1)
    variables = {"params": PARAMS, "batch_stats": {"mean": jnp.zeros(2)}}
    state = init_state(variables, optimizer)
    state, _ = descend(state, loss, jnp.zeros(1), jax.random.key(0), optimizer, ema_decay=0.0)
    np.testing.assert_array_equal(state.mutables["batch_stats"]["mean"], 1)


@pytest.mark.parametrize("k", [1, 3])
def test_the_players_alternate(k):
    """On the bilinear game min_g max_d g d with step 1/10, by hand: k moves of d, then one of g."""

    def loss_d(params, players, batch, key):
        return -params["w"] * players.generator.params["w"], Aux({"part": batch.mean()}, {})

    def loss_g(params, players, batch, key):
        return params["w"] * players.discriminator.params["w"], Aux({}, {})

    optimizer = optax.sgd(0.1)
    state = Players(
        generator=init_state({"params": {"w": jnp.array(2.0)}}, optimizer),
        discriminator=init_state({"params": {"w": jnp.array(1.0)}}, optimizer),
    )
    step = make_alternating_step(
        Players(loss_g, loss_d), Players(optimizer, optimizer), 0.0, discriminator_steps=k
    )
    state, metrics = jax.jit(step)(state, jnp.arange(6.0), jax.random.key(0))
    g, d = 2.0, 1.0
    for _ in range(k):
        d += 0.1 * g
    g -= 0.1 * d
    np.testing.assert_allclose(state.discriminator.params["w"], d, rtol=1e-6)
    np.testing.assert_allclose(state.generator.params["w"], g, rtol=1e-6)
    assert (state.step, state.discriminator.step) == (1, k)
    last_part = {1: 2.5, 3: 4.5}[k]  # each update of d sees its own part of the batch
    np.testing.assert_allclose(metrics["discriminator/part"], last_part)


def test_a_batch_that_cannot_be_shared_among_k_updates_is_refused():
    loss = lambda params, players, batch, key: (params["w"].sum(), Aux({}, {}))
    optimizer = optax.sgd(0.1)
    state = Players(*(init_state({"params": PARAMS}, optimizer) for _ in range(2)))
    step = make_alternating_step(
        Players(loss, loss), Players(optimizer, optimizer), 0.0, discriminator_steps=3
    )
    with pytest.raises(ValueError, match="cannot be divided"):
        step(state, jnp.zeros(7), jax.random.key(0))


def test_adam_warms_up_and_clips():
    """The first update of Adam is the learning rate in size, whatever the gradient's scale."""
    optimizer = adam(0.1, warmup=4, clip=1.0)
    opt_state, sizes = optimizer.init(PARAMS), []
    for _ in range(6):
        gradient = {"w": jnp.array([300.0, 400.0])}
        updates, opt_state = optimizer.update(gradient, opt_state, PARAMS)
        sizes.append(-float(updates["w"][0]))
    np.testing.assert_allclose(sizes, [0, 0.025, 0.05, 0.075, 0.1, 0.1], rtol=1e-3)
    moments = opt_state[1][0].mu["w"]  # clipped to norm 1: (0.6, 0.8), averaged
    np.testing.assert_allclose(moments / jnp.linalg.norm(moments), [0.6, 0.8], rtol=1e-5)
    assert jnp.linalg.norm(moments) < 1


def noisy(params, batch, key):
    noise = jax.random.normal(key, batch.shape)
    return jnp.mean((params["w"][None] - batch - noise) ** 2), {}


@pytest.mark.parametrize("parts", [2, 3, 6])
def test_accumulated_gradients_are_those_of_the_large_batch(parts):
    batch = jax.random.normal(jax.random.key(1), (12, 2))
    optimizer = adam(0.1, clip=1.0)
    one = jax.jit(make_step(quadratic, optimizer, 0.9))
    many = jax.jit(make_step(quadratic, optimizer, 0.9, accumulate=parts))
    a, b = (init_state({"params": PARAMS}, optimizer) for _ in range(2))
    for i in range(4):
        a, metrics_a = one(a, batch + i, jax.random.key(0))
        b, metrics_b = many(b, batch + i, jax.random.key(0))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), a, b)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), metrics_a, metrics_b
    )


def test_each_accumulated_part_draws_from_its_own_key():
    batch, key = jnp.zeros((6, 2)), jax.random.key(4)
    loss = lambda params, batch, key: (noisy(params, batch, key)[0], Aux({}, {}))
    (_, _), got = gradient(loss, PARAMS, batch, key, parts=3)
    parts = [
        jax.grad(lambda p, i=i: noisy(p, batch[i::3], jax.random.fold_in(key, i))[0])(PARAMS)["w"]
        for i in range(3)
    ]
    np.testing.assert_allclose(got["w"], sum(parts) / 3, rtol=1e-5)
    assert not np.allclose(parts[0], parts[1])


def test_parts_that_do_not_divide_the_batch_are_refused():
    step = make_step(quadratic, optax.sgd(0.1), 0.0, accumulate=5)
    with pytest.raises(ValueError, match="a batch of 12 cannot be accumulated in 5 parts"):
        step(init_state({"params": PARAMS}, optax.sgd(0.1)), jnp.zeros((12, 2)), jax.random.key(0))


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_count(kind):
    """sqrt(|b|) has a finite value and an infinite slope at 0; log(b) is infinite there."""

    def loss(params, batch, key):
        argument = jnp.abs(params["w"].sum() - params["w"].sum() + batch).mean()
        value = jnp.log(argument) if kind == "loss" else jnp.sqrt(argument)
        return value + (params["w"] ** 2).sum(), {}

    optimizer = adam(0.1)
    step = jax.jit(make_step(loss, optimizer, 0.9))
    state = init_state({"params": PARAMS}, optimizer)
    state, metrics = step(state, jnp.ones(2), jax.random.key(0))
    assert metrics["skipped"] == 0
    after, metrics = step(state, jnp.zeros(2), jax.random.key(0))
    assert metrics["skipped"] == 1
    assert after.step == state.step + 1
    rest = lambda s: (s.params, s.opt_state, s.ema)
    jax.tree.map(np.testing.assert_array_equal, rest(after), rest(state))
    again, metrics = step(after, jnp.ones(2), jax.random.key(0))
    assert metrics["skipped"] == 0
    assert not np.array_equal(again.params["w"], after.params["w"])


def test_norms_are_those_of_the_gradient_the_update_and_the_parameters():
    optimizer = optax.sgd(0.5)
    state = init_state({"params": PARAMS}, optimizer)
    batch = jnp.array([[0.0, 0.0], [2.0, 4.0]])
    state, metrics = make_step(quadratic, optimizer, 0.9)(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["grad_norm"], 4.0)  # (1, -2) - (1, 2)
    np.testing.assert_allclose(metrics["update_norm"], 2.0)
    np.testing.assert_allclose(metrics["param_norm"], 1.0)  # (1, 0)
