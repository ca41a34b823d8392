import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn
from jax.sharding import PartitionSpec

from jaxgen.data.records import take
from jaxgen.training import devices
from jaxgen.training.devices import (
    MODEL_AXIS,
    Pmapped,
    Sharded,
    check_divisible,
    compile_lowered,
    leave_out_ynn_convolutions,
    memory_available,
    memory_needed,
    on_one_device,
    scan_steps,
    split_longest,
)
from jaxgen.training.step import Aux, descend, init_state, make_step

DEVICES = tuple(jax.devices())
OPTIMIZER = optax.adam(1e-2)
DATA = np.random.default_rng(0).standard_normal((6, 16, 3)).astype(np.float32)


class Net(nn.Module):
    """A dense layer with batch norm, whose statistics must be those of the whole batch."""

    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train=True):
        x = nn.Dense(5, use_bias=False)(x)  # a norm takes it out: its gradient is noise
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)(x)
        return nn.Dense(1)(nn.tanh(x))[:, 0]


def initial():
    return init_state(Net().init(jax.random.key(0), DATA[0], train=False), OPTIMIZER)


def step_for(axis_name):
    """The target is a function of the data, so every placement has the same loss to fit."""
    model = Net(axis_name)

    def step(state, batch, key, axis_name=None):
        def loss(params, batch, key):
            out, memory = model.apply(
                {"params": params, **state.memory}, batch, mutable=["batch_stats"]
            )
            return jnp.mean((out - batch.sum(axis=1)) ** 2), Aux({"out": out.mean()}, memory)

        return descend(state, loss, batch, key, OPTIMIZER, ema_decay=0.9, axis_name=axis_name)

    return step


def train(placement, many=False):
    step = step_for(placement.axis_name)
    run = placement.compile(scan_steps(step) if many else step)
    state, key, rows = placement.put_state(initial()), jax.random.key(1), []
    chunks = DATA.reshape(3, 2, 16, 3) if many else DATA
    for batch in chunks:
        state, metrics = run(state, placement.put_batch(batch, leading=int(many)), key)
        rows.append(np.atleast_1d(metrics["loss"]))
    return jax.device_get(placement.get_state(state)), np.concatenate(rows)


@pytest.fixture(scope="module")
def reference():
    """A plain loop on one device, with neither jit nor a mesh."""
    state, losses = initial(), []
    for batch in DATA:
        state, metrics = step_for(None)(state, batch, jax.random.key(1))
        losses.append(metrics["loss"])
    return state, np.asarray(losses)


@pytest.mark.parametrize("many", [False, True], ids=["single", "scanned"])
@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("kind", [Sharded, Pmapped])
def test_every_placement_computes_the_same_numbers(reference, kind, count, many):
    state, losses = train(kind(DEVICES[:count]), many)
    want_state, want_losses = reference
    np.testing.assert_allclose(losses, want_losses, rtol=1e-4)
    assert jax.tree.structure(state) == jax.tree.structure(want_state)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-5), state, want_state
    )


def noisy_loss(params, batch, key):
    noise = jax.random.normal(key, batch.shape)
    return jnp.mean((params["w"][None] - batch - noise) ** 2), {}


def noisy_state():
    return init_state({"params": {"w": jnp.zeros(3)}}, OPTIMIZER)


@pytest.mark.parametrize("count", [1, 2, 8])
def test_sharded_draws_do_not_depend_on_the_number_of_devices(count):
    def run(devices):
        placement = Sharded(devices)
        step = placement.compile(make_step(noisy_loss, OPTIMIZER, 0.9))
        state = placement.put_state(noisy_state())
        for batch in DATA:
            state, _ = step(state, placement.put_batch(batch), jax.random.key(1))
        return jax.device_get(state)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        run(DEVICES[:count]),
        run(DEVICES[:1]),
    )


def test_pmapped_devices_draw_apart_and_are_averaged():
    """Device d draws from fold_in(fold_in(key, step), d); the update is the mean of theirs."""
    count, key = 4, jax.random.key(1)

    def by_hand(params, batch, key):
        parts = batch.reshape(count, -1, 3)
        losses = [noisy_loss(params, parts[d], jax.random.fold_in(key, d))[0] for d in range(count)]
        return sum(losses) / count, {}

    placement = Pmapped(DEVICES[:count])
    step = placement.compile(make_step(noisy_loss, OPTIMIZER, 0.9))
    plain = jax.jit(make_step(by_hand, OPTIMIZER, 0.9))
    state, want = placement.put_state(noisy_state()), noisy_state()
    for batch in DATA:
        state, _ = step(state, placement.put_batch(batch), key)
        want, _ = plain(want, batch, key)
    got = placement.get_state(state)
    np.testing.assert_allclose(got.params["w"], want.params["w"], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got.ema["w"], want.ema["w"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Sharded, Pmapped])
@pytest.mark.parametrize("many", [False, True])
def test_resident_data_is_gathered_on_the_devices(kind, many):
    placement = kind(DEVICES[:4])
    data = {"x": np.arange(40, dtype=np.int32).reshape(20, 2)}
    gather = placement.resident(data, take)
    index = np.random.default_rng(0).integers(20, size=(3, 8) if many else (8,)).astype(np.int32)
    batch = gather(placement.put_batch(index, leading=int(many)))
    want = placement.put_batch({"x": data["x"][index]}, leading=int(many))
    np.testing.assert_array_equal(batch["x"], want["x"])
    assert len(batch["x"].sharding.device_set) == 4


def test_the_state_is_donated():
    placement = Sharded(DEVICES[:1])
    step = placement.compile(make_step(noisy_loss, OPTIMIZER, 0.9))
    state = placement.put_state(noisy_state())
    step(state, placement.put_batch(DATA[0]), jax.random.key(0))
    assert state.params["w"].is_deleted()


def test_batches_that_devices_cannot_share_are_refused():
    with pytest.raises(ValueError, match=r"batch \(10\) is not divisible .* \(8\): use 8"):
        check_divisible(10, 8)
    for kind in (Sharded, Pmapped):
        with pytest.raises(ValueError, match="not divisible"):
            kind(DEVICES).put_batch(np.zeros((10, 2)))


WIDE = 64


def wide_loss(params, batch, key):
    noise = jax.random.normal(key, batch.shape)
    hidden = jnp.tanh((batch + noise) @ params["up"])
    return jnp.mean((hidden @ params["down"] - batch) ** 2), {}


def wide_state(key):
    up, down = jax.random.split(key)
    params = {
        "up": 0.1 * jax.random.normal(up, (3, WIDE * 8)),
        "down": 0.1 * jax.random.normal(down, (WIDE * 8, 3)),
    }
    return init_state({"params": params}, OPTIMIZER)


@pytest.mark.parametrize(("count", "model"), [(2, 2), (8, 2), (8, 8)])
def test_a_divided_state_trains_to_the_same_numbers(count, model):
    def run(placement):
        step = placement.compile(make_step(wide_loss, OPTIMIZER, 0.9))
        state = placement.init(wide_state, jax.random.key(0))
        for batch in DATA:
            state, metrics = step(state, placement.put_batch(batch), jax.random.key(1))
        return state, metrics

    state, metrics = run(Sharded(DEVICES[:count], model))
    want, want_metrics = run(Sharded(DEVICES[:1]))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        jax.device_get((state, metrics)),
        jax.device_get((want, want_metrics)),
    )
    for tree in (state.params, state.ema, state.opt_state[0].mu):
        for x in jax.tree.leaves(tree):
            assert x.addressable_shards[0].data.size == x.size // model
    whole = on_one_device(state)
    assert {len(x.sharding.device_set) for x in jax.tree.leaves(whole)} == {1}
    np.testing.assert_array_equal(whole.params["up"], jax.device_get(state.params["up"]))


def test_dividing_the_state_lowers_the_memory_of_a_device():
    def needed(placement):
        step = placement.compile(make_step(wide_loss, OPTIMIZER, 0.9))
        state = placement.init(wide_state, jax.random.key(0))
        batch = placement.put_batch(DATA[0])
        return memory_needed(step.lower(state, batch, jax.random.key(1)).compile())

    size = 4 * sum(x.size for x in jax.tree.leaves(wide_state(jax.random.key(0))))
    whole, divided = needed(Sharded(DEVICES)), needed(Sharded(DEVICES, 8))
    assert size < whole < 4 * size
    assert divided < whole - size / 2
    assert memory_available(DEVICES[0]) > whole


def test_the_longest_axis_that_can_be_is_divided():
    assert split_longest((3, 3, 64, 128), 4) == PartitionSpec(None, None, None, MODEL_AXIS)
    assert split_longest((130, 129), 2) == PartitionSpec(MODEL_AXIS, None)
    assert split_longest((129, 131), 2) == PartitionSpec()
    assert split_longest((8, 8), 2) == PartitionSpec()  # too small to be worth it
    assert split_longest((4096,), 1) == PartitionSpec()


@pytest.mark.parametrize("model", [1, 2])
def test_the_rows_of_the_only_process_are_all(model):
    assert Sharded(DEVICES, model).rows(16) == slice(0, 16)
    with pytest.raises(ValueError, match="not divisible"):
        Sharded(DEVICES, model).rows(12)


@pytest.mark.parametrize(
    ("flags", "version", "asked"),
    [
        ("", (0, 10, 2), True),
        ("--xla_cpu_multi_thread_eigen=true", (0, 12, 0), True),
        ("--xla_cpu_experimental_ynn_fusion_type=", (0, 12, 0), False),  # the user's own choice
        ("", (0, 13, 0), False),  # which may lack the flag, and would end the process
        ("", (1, 0, 0), False),
    ],
)
def test_convolutions_are_xlas_own_unless_told_otherwise(monkeypatch, flags, version, asked):
    monkeypatch.setenv("XLA_FLAGS", flags)
    monkeypatch.setattr(jax, "__version_info__", version)
    assert leave_out_ynn_convolutions() == asked
    assert os.environ["XLA_FLAGS"].startswith(flags)
    assert ("INDIVIDUAL_DOT" in os.environ["XLA_FLAGS"]) == asked
    before = os.environ["XLA_FLAGS"]
    assert not leave_out_ynn_convolutions()  # once is enough
    assert os.environ["XLA_FLAGS"] == before


def test_xla_heeds_it():
    """A compiled convolution is a library fusion of YNNPACK's before, and none after."""
    x, kernel = jnp.ones((4, 32, 32, 64)), jnp.ones((3, 3, 64, 64))
    convolve = jax.jit(
        lambda x, kernel: jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
    )
    lowered = convolve.lower(x, kernel)
    assert "__ynn_fusion" not in lowered.compile().as_text()
    everything = "LIBRARY_FUSION_TYPE_INDIVIDUAL_CONVOLUTION"
    ynn = lowered.compile({"xla_cpu_experimental_ynn_fusion_type": everything})
    assert "__ynn_fusion" in ynn.as_text()


def test_a_large_step_of_convolutions_is_compiled_otherwise_to_the_same_values(monkeypatch, key):
    monkeypatch.setattr(devices, "LARGE_STEP", 1e5)

    def loss(params, x):
        h = jax.nn.silu(nn.Conv(32, (3, 3)).apply({"params": params}, x))
        return jnp.sum(h * jnp.sin(h), axis=(1, 2, 3)).mean()

    x = jax.random.normal(key, (4, 32, 32, 32))
    params = nn.Conv(32, (3, 3)).init(key, x)["params"]
    lowered = jax.jit(jax.value_and_grad(loss)).lower(params, x)
    plain, fused = lowered.compile(), compile_lowered(lowered)
    assert fused.as_text().count("__ynn_fusion") > plain.as_text().count("__ynn_fusion")
    for a, b in zip(
        jax.tree.leaves(fused(params, x)), jax.tree.leaves(plain(params, x)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * float(jnp.abs(b).max()))


@pytest.mark.parametrize("step", ["dense", "small"])
def test_other_steps_are_compiled_as_ever(monkeypatch, key, step):
    monkeypatch.setattr(devices, "LARGE_STEP", 0 if step == "dense" else 1e12)
    x, kernel = jax.random.normal(key, (4, 32, 32, 32)), jnp.ones((3, 3, 32, 32))
    mix = {
        "dense": lambda x: x @ kernel[0, 0],
        "small": lambda x: nn.Conv(32, (3, 3)).apply(
            {"params": {"kernel": kernel, "bias": jnp.zeros(32)}}, x
        ),
    }[step]
    lowered = jax.jit(lambda x: jnp.tanh(mix(x)) * jnp.sin(x)).lower(x)
    ours, plain = compile_lowered(lowered).as_text(), lowered.compile().as_text()
    assert ours.count("__ynn_fusion") == plain.count("__ynn_fusion")
