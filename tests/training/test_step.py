import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.training.model_state import answer_of
from jaxgen.training.step import (
    Aux,
    Turn,
    adam,
    descend,
    gradient,
    half_life_decay,
    init_players,
    init_state,
    make_step,
    make_turns,
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
    np.testing.assert_array_equal(state.memory["batch_stats"]["mean"], 1)


@pytest.mark.parametrize("k", [1, 3])
def test_the_players_alternate(k):
    """On the bilinear game min_g max_d g d with step 1/10, by hand: k moves of d, then one of g."""

    def loss_d(params, batch, key, now):
        return -params["w"] * now.players["generator"].params["w"], {"part": batch}

    def loss_g(params, batch, key, now):
        return params["w"] * now.players["discriminator"].params["w"], {}

    optimizer = optax.sgd(0.1)
    turns = Turn("discriminator", loss_d, optimizer, k), Turn("generator", loss_g, optimizer)
    variables = {"generator": {"params": {"w": jnp.array(2.0)}}}
    variables |= {"discriminator": {"params": {"w": jnp.array(1.0)}}}
    state = init_players(variables, turns)
    state, metrics = jax.jit(make_turns(turns, 0.0))(state, jnp.arange(6.0), jax.random.key(0))
    g, d = 2.0, 1.0
    for _ in range(k):
        d += 0.1 * g
    g -= 0.1 * d
    np.testing.assert_allclose(state["discriminator"].params["w"], d, rtol=1e-6)
    np.testing.assert_allclose(state["generator"].params["w"], g, rtol=1e-6)
    assert (state.step, state["discriminator"].step) == (1, k)
    # each update of d sees its own part of the batch; the metric is the mean over them
    np.testing.assert_allclose(metrics["discriminator/part"], 2.5)


def critic_of(loss_d, k, optimizer):
    """A step of a critic with this loss, and a generator that stays."""
    still = lambda params, batch, key, now: (0 * params["w"].sum(), {})
    turns = Turn("discriminator", loss_d, optimizer, k), Turn("generator", still, optimizer)
    names = ("discriminator", "generator")
    state = init_players({name: {"params": PARAMS} for name in names}, turns)
    return make_turns(turns, 0.0), state


def test_every_update_of_the_critic_sees_examples_of_its_own_and_every_example_is_seen():
    """Plain gradient descent on a linear loss sums the batches that it saw."""

    def loss_d(params, batch, key, now):
        return -params["w"][0] * batch.sum(), {"first": batch[0]}

    step, state = critic_of(loss_d, 3, optax.sgd(1.0))
    state, _ = jax.jit(step)(state, 2.0 ** jnp.arange(12), jax.random.key(0))
    assert (
        state["discriminator"].params["w"][0] == 1 + 2**12 - 1
    )  # 1 + 2 + 4 + ...: each of them once
    assert state["discriminator"].step == 3


@pytest.mark.parametrize("bad", [0, 1])
def test_a_critic_update_that_is_not_finite_is_not_hidden_by_the_next(bad):
    def loss_d(params, batch, key, now):
        return params["w"].sum() + jnp.log(batch), {"mean": batch}

    step, state = critic_of(loss_d, 2, optax.sgd(0.1))
    batch = jnp.ones(4).at[bad].set(-1.0)  # in the first part, or in the second
    state, metrics = jax.jit(step)(state, batch, jax.random.key(0))
    assert metrics["discriminator/skipped"] == 1
    assert jnp.isnan(metrics["discriminator/loss"])
    np.testing.assert_allclose(
        state["discriminator"].params["w"], PARAMS["w"] - 0.1
    )  # the other one
    state, metrics = jax.jit(step)(state, -jnp.ones(4), jax.random.key(0))
    assert metrics["discriminator/skipped"] == 2


def test_a_batch_that_cannot_be_shared_among_k_updates_is_refused():
    loss = lambda params, batch, key, now: (params["w"].sum(), {})
    step, state = critic_of(loss, 3, optax.sgd(0.1))
    with pytest.raises(ValueError, match="cannot be divided"):
        step(state, jnp.zeros(7), jax.random.key(0))


def test_every_move_sees_the_last_of_the_batches_and_the_steps_of_the_run():
    """Of a step's four batches who moves once sees the last, who moves twice the last two; all see
    the step of the run, which a repeated move does not advance."""
    told = lambda params, batch, key, now: (0 * params["w"].sum(), {"x": batch, "at": now.step})
    optimizer = optax.sgd(0.1)
    turns = tuple(Turn(f"of{k}", told, optimizer, k) for k in (4, 2, 1))
    state = init_players({t.player: {"params": PARAMS} for t in turns}, turns)
    step = jax.jit(make_turns(turns, 0.0))
    for at in range(2):
        state, metrics = step(state, jnp.arange(4.0), jax.random.key(0))
        got = [float(metrics[f"of{k}/x"]) for k in (4, 2, 1)]
        np.testing.assert_allclose(got, [1.5, 2.5, 3.0])
        assert [int(metrics[f"of{k}/at"]) for k in (4, 2, 1)] == [at] * 3


def test_a_memory_is_kept_by_its_player_alone():
    """A running sum of the batches, which the loss of the other player sees as it was left."""

    def keeps(params, batch, key, now):
        return 0 * params["w"].sum(), Aux({}, {"sum": now.memory["sum"] + batch.sum()})

    def looks(params, batch, key, now):
        return 0 * params["w"].sum(), {"seen": now.players["keeper"].memory["sum"]}

    optimizer = optax.sgd(0.1)
    turns = Turn("keeper", keeps, optimizer, 2), Turn("other", looks, optimizer)
    keeper = {"params": PARAMS, "sum": jnp.zeros(())}
    state = init_players({"keeper": keeper, "other": {"params": PARAMS}}, turns)
    step, seen = jax.jit(make_turns(turns, 0.0)), []
    for _ in range(2):
        state, metrics = step(state, jnp.arange(4.0), jax.random.key(0))
        seen.append(float(metrics["other/seen"]))
    assert seen == [6.0, 12.0]
    assert state["other"].memory == {}


def test_a_gradient_above_the_limit_makes_no_update_and_is_reported():
    optimizer = adam(0.1, skip=2.0, clip=1.0)
    step = jax.jit(make_step(lambda w, batch, key: (batch * w, {}), optimizer, 0.5))
    state = init_state({"params": jnp.ones(())}, optimizer)
    key = jax.random.key(0)
    large, metrics = step(state, jnp.full(2, 3.0), key)
    assert metrics["skipped"] == 1
    assert large.params == large.ema == 1
    jax.tree.map(np.testing.assert_array_equal, large.opt_state, state.opt_state)
    small, metrics = step(large, jnp.full(2, 1.9), key)
    assert metrics["skipped"] == 0
    np.testing.assert_allclose(small.params, 0.9, rtol=1e-5)
    assert small.step == 2


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
    nothing = {}, answer_of({}, {}, None)
    loss = lambda params, batch, key: (noisy(params, batch, key)[0], nothing)
    (_, _), got = gradient(loss, PARAMS, batch, key, parts=3)
    parts = [
        jax.grad(lambda p, i=i: noisy(p, batch[i::3], jax.random.fold_in(key, i))[0])(PARAMS)["w"]
        for i in range(3)
    ]
    np.testing.assert_allclose(got["w"], sum(parts) / 3, rtol=1e-5)
    assert not np.allclose(parts[0], parts[1])


def test_parts_that_do_not_divide_the_batch_are_refused():
    step = make_step(quadratic, optax.sgd(0.1), 0.0, accumulate=5)
    with pytest.raises(ValueError, match="a batch of 12 cannot be divided into 5 parts"):
        step(init_state({"params": PARAMS}, optax.sgd(0.1)), jnp.zeros((12, 2)), jax.random.key(0))


@pytest.mark.parametrize("parts", [1, 3])
def test_counts_and_truth_values_may_be_metrics(parts):
    """Their mean over the parts is the mean over the batch; a counter of the state stays whole."""

    def loss(params, batch, key):
        metrics = {"positive": (batch > 0).sum(), "any": (batch > 0).any()}
        return (params["w"] ** 2).sum(), Aux(metrics, {"counter": jnp.array(7)})

    optimizer = optax.sgd(0.1)
    state = init_state({"params": PARAMS, "counter": jnp.array(6)}, optimizer)
    step = jax.jit(lambda s, b, k: descend(s, loss, b, k, optimizer, ema_decay=0, accumulate=parts))
    batch = jnp.array([1.0, 2.0, 0.0, 3.0, 4.0, 0.0])  # of three strided parts the last has none
    state, metrics = step(state, batch, jax.random.key(0))
    np.testing.assert_allclose(metrics["positive"] * parts, 4)
    np.testing.assert_allclose(metrics["any"], 1 if parts == 1 else 2 / 3, rtol=1e-6)
    assert state.memory["counter"] == 7
    assert state.memory["counter"].dtype == jnp.int32


@pytest.mark.parametrize("name", ["loss", "grad_norm", "update_norm", "param_norm", "skipped"])
def test_a_metric_under_a_name_of_the_steps_own_is_refused(name):
    """A loss of NaN under a metric of 0 called "loss" would pass for finite."""
    loss = lambda params, batch, key: (params["w"].sum() * jnp.nan, {name: jnp.zeros(())})
    step = make_step(loss, optax.sgd(0.1), 0.0)
    with pytest.raises(ValueError, match=f"the step itself reports {name}: give this metric"):
        jax.jit(step)(
            init_state({"params": PARAMS}, optax.sgd(0.1)), jnp.zeros(2), jax.random.key(0)
        )


def test_the_moving_average_forgets_half_after_its_half_life():
    """The product of the decays is what is left of the first parameters."""
    decay = half_life_decay(1280, batch=64, warmup=np.inf)
    left = 1.0
    for step in range(1, 21):  # 1280 images
        left *= float(decay(jnp.array(step)))
    np.testing.assert_allclose(left, 0.5, rtol=1e-5)


def test_the_moving_average_holds_nothing_of_the_initialization_and_a_twentieth_of_what_it_saw():
    """After n images h = n / 20 (Karras et al. 2022), until that reaches the half-life."""
    decay = half_life_decay(1000, batch=10)
    steps = jnp.array([0, 20, 200, 2000, 20_000])
    h = np.array([0.0, 10, 100, 1000, 1000])
    with np.errstate(divide="ignore"):
        np.testing.assert_allclose(jax.vmap(decay)(steps), 2.0 ** (-10 / h), rtol=1e-6)
    optimizer = optax.sgd(0.5)
    state = init_state({"params": PARAMS}, optimizer)
    state, _ = make_step(quadratic, optimizer, decay)(state, jnp.ones((2, 2)), jax.random.key(0))
    np.testing.assert_array_equal(state.ema["w"], state.params["w"])


@pytest.mark.parametrize("warmup", [0, 4])
@pytest.mark.parametrize("decay", ["cosine", "linear"])
def test_the_rate_decays_to_nothing_at_the_last_step(warmup, decay):
    """The update of Adam under a constant gradient is the rate in size."""
    optimizer = adam(0.1, warmup=warmup, decay=decay, steps=12)
    state, sizes = optimizer.init(PARAMS), []
    for _ in range(13):
        updates, state = optimizer.update({"w": jnp.array([3.0, 4.0])}, state, PARAMS)
        sizes.append(-float(updates["w"][0]))
    u = (np.arange(13) - warmup) / (12 - warmup)
    curve = (1 + np.cos(np.pi * u)) / 2 if decay == "cosine" else 1 - u
    want = np.where(u < 0, np.arange(13) / max(warmup, 1), curve)
    np.testing.assert_allclose(sizes, 0.1 * want, rtol=1e-3, atol=1e-7)


def test_a_decay_without_an_end_or_of_another_name_is_refused():
    for how in ({}, {"steps": 5, "warmup": 5}):
        with pytest.raises(ValueError, match="a decay needs more steps"):
            adam(0.1, decay="linear", **how)
    with pytest.raises(ValueError, match="none, cosine or linear, not 'cosin'"):
        adam(0.1, decay="cosin", steps=5)


def test_weight_decay_takes_from_kernels_alone_and_apart_from_the_gradient():
    """Without a gradient Adam stands still, and p <- p (1 - rate decay)."""
    params = {"kernel": jnp.full((2, 2), 2.0), "bias": jnp.ones(2), "scale": jnp.ones(())}
    optimizer = adam(0.1, weight_decay=0.5)
    updates, _ = optimizer.update(
        jax.tree.map(jnp.zeros_like, params), optimizer.init(params), params
    )
    new = optax.apply_updates(params, updates)
    np.testing.assert_allclose(new["kernel"], 2 * (1 - 0.1 * 0.5))
    np.testing.assert_array_equal(new["bias"], 1)
    np.testing.assert_array_equal(new["scale"], 1)


@pytest.mark.parametrize("how", [{}, {"warmup": 2}, {"decay": "linear", "warmup": 2, "steps": 6}])
def test_rate_and_weight_decay_may_be_traced(how):
    """As a sweep has them: the members are those that a number of its own each would make."""
    params = {"w": jax.random.normal(jax.random.key(0), (3, 2))}

    def trained(rate, weight_decay, images):
        optimizer = adam(rate, weight_decay=weight_decay, **how)
        decay = half_life_decay(images, batch=8)
        loss = lambda params, batch, key: (((params["w"] - 1) ** 2).mean(), {})
        step = make_step(loss, optimizer, decay)
        state = init_state({"params": params}, optimizer)
        for _ in range(4):
            state, _ = step(state, jnp.zeros(8), jax.random.key(0))
        return state.params, state.ema

    values = [(0.1, 0.0, 10.0), (0.2, 0.5, 1e6)]
    many = jax.jit(jax.vmap(trained))(*jnp.array(values).T)
    for i, value in enumerate(values):
        one = jax.jit(lambda value=value: trained(*value))()
        jax.tree.map(lambda a, b, i=i: np.testing.assert_allclose(a, b[i], rtol=1e-5), one, many)


def test_by_default_the_optimizer_is_adam_in_every_bit():
    params, bits = {"w": jax.random.normal(jax.random.key(0), (5, 3)), "b": jnp.ones(3)}, []
    for optimizer in (adam(1e-3), optax.adam(1e-3)):
        p, state = params, optimizer.init(params)
        for i in range(5):
            grads = jax.tree.map(lambda x, i=i: jnp.sin(x * (i + 1)), p)
            updates, state = optimizer.update(grads, state, p)
            p = optax.apply_updates(p, updates)
        bits.append(p)
    jax.tree.map(np.testing.assert_array_equal, *bits)


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
