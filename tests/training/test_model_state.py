"""Model state is that of the whole batch wherever a step runs and however its batch is divided."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.training.devices import Pmapped, Sharded, scan_steps
from jaxgen.training.model_state import COUNTER, Storage
from jaxgen.training.step import Aux, Turn, init_players, make_turns

DEVICES = tuple(jax.devices())
BATCH, POOL, CLASSES, STEPS = 16, 1024, 3, 4
RNG = np.random.default_rng(0)
X = RNG.normal(size=(STEPS, BATCH, 2)).astype(np.float32)
LABELS = RNG.integers(0, CLASSES, (STEPS, BATCH)).astype(np.int32)


def push(pool, seen, key):
    """The newest examples, the oldest of them first."""
    return jax.tree.map(lambda p, s: jnp.concatenate([p, s])[-len(p) :], pool, seen)


def replace_at_random(pool, seen, key):
    at = jax.random.permutation(key, len(pool))[: len(seen)]
    return pool.at[at].set(seen)


RULES = {"pool": Storage(push), "mixed": Storage(replace_at_random), "count": COUNTER}


def loss(params, batch, key, now):
    x, label = batch["x"], batch["label"]
    counts = jnp.bincount(label, length=CLASSES).astype(jnp.int32)
    memory = {
        "pool": {"x": x, "label": label},
        "mixed": x,
        "count": now.memory["count"] + counts,
        "mean": 0.5 * now.memory["mean"] + 0.5 * x.mean(0),
    }
    return params["w"].sum() * x[:, 0], Aux({}, memory)


TURN = Turn("model", loss, optax.sgd(0.1), rules=RULES)
FROZEN = np.full(3, 0.1, np.float32)  # which no answer names


def initial():
    variables = {
        "params": {"w": jnp.ones(2)},
        "pool": {"x": jnp.zeros((POOL, 2)), "label": jnp.full(POOL, -1, jnp.int32)},
        "mixed": jnp.zeros((POOL, 2)),
        "count": jnp.full(CLASSES, 2**24, jnp.int32),  # float32 could not add one to it
        "mean": jnp.zeros(2),
        "frozen": jnp.array(FROZEN),
    }
    return init_players({"model": variables}, [TURN])


def trained(placement, accumulate, steps_per_call=1):
    step = make_turns([TURN], 0.9, accumulate)
    many = steps_per_call > 1
    run = placement.compile(scan_steps(step) if many else step)
    state = placement.put_state(initial())
    for i in range(0, STEPS, steps_per_call):
        batch = {"x": X[i : i + steps_per_call], "label": LABELS[i : i + steps_per_call]}
        batch = batch if many else jax.tree.map(lambda a: a[0], batch)
        placed = placement.put_batch(batch, leading=int(many))
        state, _ = run(state, placed, jax.random.key(5))
    return jax.device_get(placement.get_state(state))["model"].memory


@pytest.fixture(scope="module")
def alone():
    """On one device, at once."""
    return trained(Sharded(DEVICES[:1]), 1)


def check(memory, alone):
    seen = X.reshape(-1, 2)
    np.testing.assert_array_equal(memory["pool"]["x"][-len(seen) :], seen)
    np.testing.assert_array_equal(memory["pool"]["label"][-len(seen) :], LABELS.reshape(-1))
    assert (memory["pool"]["label"][: -len(seen)] == -1).all()
    want = 2**24 + np.bincount(LABELS.reshape(-1), minlength=CLASSES)
    np.testing.assert_array_equal(memory["count"], want)
    mean = np.zeros(2)
    for x in X:
        mean = 0.5 * mean + 0.5 * x.mean(0)
    np.testing.assert_allclose(memory["mean"], mean, rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(memory["mixed"], alone["mixed"])
    filled = memory["mixed"].any(axis=1).sum()  # other places at every step
    assert STEPS * BATCH - 16 < filled <= STEPS * BATCH
    np.testing.assert_array_equal(memory["frozen"], FROZEN)
    assert {tuple(row) for row in X[-1]} <= {tuple(row) for row in memory["mixed"]}


PLACEMENTS = {
    "one device": Sharded(DEVICES[:1]),
    "jit": Sharded(DEVICES),
    "FSDP": Sharded(DEVICES, 4),
    "pmap": Pmapped(DEVICES),
    "pmap of 2": Pmapped(DEVICES[:2]),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", PLACEMENTS)
def test_state_is_that_of_the_whole_batch(alone, name, accumulate):
    check(trained(PLACEMENTS[name], accumulate), alone)


def test_state_of_several_steps_in_one_call(alone):
    check(trained(Pmapped(DEVICES[:2]), 2, steps_per_call=2), alone)


def test_state_of_each_member_of_a_sweep(alone):
    """Stacked, as those of a sweep are."""
    step = jax.jit(jax.vmap(make_turns([TURN], 0.9, 2), in_axes=(0, 0, None)))
    twice = partial(jax.tree.map, lambda a: jnp.stack([a, a]))
    state = twice(initial())
    for x, label in zip(X, LABELS, strict=True):
        state, _ = step(state, twice({"x": x, "label": label}), jax.random.key(5))
    memory = jax.device_get(state)["model"].memory
    for i in range(2):
        check(jax.tree.map(lambda a, i=i: a[i], memory), alone)


def test_a_step_that_is_not_finite_stores_nothing():
    step = jax.jit(make_turns([TURN], 0.9))
    state = initial()
    batch = {"x": jnp.full((4, 2), jnp.nan), "label": jnp.zeros(4, jnp.int32)}
    after, metrics = step(state, batch, jax.random.key(0))
    assert metrics["skipped"] == 1
    memories = after["model"].memory, state["model"].memory
    jax.tree.map(np.testing.assert_array_equal, *memories)


def test_state_that_is_not_there_is_refused():
    """Answered, or with a rule of its own: a name that is misspelt would be averaged."""
    answers = lambda params, batch, key, now: (params["w"].sum()[None], Aux({}, {"pol": batch}))
    turn = Turn("model", answers, optax.sgd(0.1))
    with pytest.raises(ValueError, match="a loss answers model state 'pol' that init did not"):
        make_turns([turn], 0.9)(initial(), jnp.zeros((4, 2)), jax.random.key(0))
    turn = Turn("model", loss, optax.sgd(0.1), rules={**RULES, "pol": COUNTER})
    batch = {"x": jnp.zeros((4, 2)), "label": jnp.zeros(4, jnp.int32)}
    with pytest.raises(ValueError, match="a rule is declared for model state 'pol' that init did"):
        make_turns([turn], 0.9)(initial(), batch, jax.random.key(0))


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("name", ["one device", "pmap"])
def test_whole_numbers_are_kept_to_the_last_digit(name, accumulate):
    """Of a statistic, whatever the parts: a large count, and the words of a key."""
    words = jnp.array([0, 2**32 - 1], jnp.uint32)

    def counts(params, batch, key, now):
        after = {"number": now.memory["state"]["number"] + 1, "words": words}
        return params["w"].sum() * batch[:, 0], Aux({}, {"state": after})

    state = {"number": jnp.int32(2**24 + 2), "words": jnp.zeros_like(words)}
    turn, placement = Turn("model", counts, optax.sgd(0.1)), PLACEMENTS[name]
    state = init_players({"model": {"params": {"w": jnp.ones(2)}, "state": state}}, [turn])
    run = placement.compile(make_turns([turn], 0.9, accumulate))
    after, _ = run(placement.put_state(state), placement.put_batch(X[0]), jax.random.key(5))
    found = jax.device_get(placement.get_state(after))["model"].memory["state"]
    assert found["number"] == 2**24 + 3
    np.testing.assert_array_equal(found["words"], [0, 2**32 - 1])
