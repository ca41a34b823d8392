import json
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.training.checkpoints import (
    Checkpoints,
    DamagedCheckpoint,
    NoCheckpoint,
    StorageError,
    _fingerprint_on_devices,
    fingerprint,
)
from jaxgen.training.devices import Pmapped, Sharded
from jaxgen.training.step import adam, init_state


def state(value):
    return {"w": jnp.full((4, 2), value), "step": jnp.int32(value)}


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = {10: 3.0, 20: 1.0, 30: 2.0, 40: 5.0, 50: 4.0}
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step, score in scores.items():
            checkpoints.save(step, state(step), {"a": 1}, score)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        assert checkpoints.steps() == [20, 40, 50]
        assert checkpoints.best() == 20
        step, restored = checkpoints.restore(state(0))
        assert step == 50
        np.testing.assert_array_equal(restored["w"], 50.0)
        step, restored = checkpoints.restore(state(0), 20)
        np.testing.assert_array_equal(restored["w"], 20.0)


def test_what_was_saved_is_the_state_of_its_step(tmp_path):
    """The next step donates the buffers while the save may still be under way."""
    grow = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    current = {"w": jnp.zeros((1000, 1000))}
    with Checkpoints(tmp_path, keep=10) as checkpoints:
        for step in range(5):
            checkpoints.save(step, current, {}, 0.0)
            current = grow(current)
        for step in range(5):
            restored = checkpoints.restore({"w": jnp.zeros((1000, 1000))}, step)[1]
            np.testing.assert_array_equal(restored["w"], step)


def test_a_state_returns_on_another_number_of_devices(tmp_path):
    def on(count):
        mesh = Mesh(np.asarray(jax.devices()[:count]), ("batch",))
        return NamedSharding(mesh, PartitionSpec())

    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, jax.device_put(state(7), on(8)), {}, 0.0)
        target = jax.device_put(state(0), on(2))
        _, restored = checkpoints.restore(target)
    assert restored["w"].sharding == on(2)
    np.testing.assert_array_equal(restored["w"], 7.0)


def test_nothing_to_restore_is_said(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        with pytest.raises(NoCheckpoint, match="no checkpoint in"):
            checkpoints.restore(state(0))
        checkpoints.save(3, state(3), {}, 0.0)
        with pytest.raises(NoCheckpoint, match=r"no checkpoint of step 4 .*\[3\]"):
            checkpoints.restore(state(0), 4)


def test_the_config_travels_with_the_checkpoint(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state(1), {"train": {"steps": 5}}, 0.0)
    about = next(p for p in (tmp_path / "1" / "about").iterdir() if p.is_file())
    assert json.loads(about.read_text())["config"] == {"train": {"steps": 5}}


DTYPES = ["float32", "bfloat16", "int32", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_changes_with_any_single_word(dtype):
    rng = np.random.default_rng(0)
    x = np.asarray(jnp.asarray(rng.integers(2, size=(7, 5)), dtype))
    want = fingerprint([jnp.asarray(x)])
    for i in range(x.size):
        other = x.copy()
        other.reshape(-1)[i] = 1 - other.reshape(-1)[i]
        assert fingerprint([jnp.asarray(other)]) != want
    assert fingerprint([jnp.asarray(np.roll(x, 1, axis=0))]) != want


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_fingerprint_is_the_same_on_the_host_and_on_divided_devices(dtype):
    x = jnp.asarray(np.random.default_rng(0).integers(-9, 9, size=(16, 8)), dtype)
    words = np.asarray(x).astype(np.uint8) if dtype == "bool" else np.asarray(x)
    bits = words.reshape(-1).view(f"uint{8 * words.dtype.itemsize}").tolist()
    want = sum((2 * i + 1) * word for i, word in enumerate(bits)) % 2**32
    mesh = Mesh(np.asarray(jax.devices()), ("batch",))
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("batch")))
    assert fingerprint([x]) == fingerprint([split]) == [want]
    np.testing.assert_array_equal(_fingerprint_on_devices([split]), [want])


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Three checkpoints of which the last is to be damaged."""
    directory = tmp_path_factory.mktemp("saved")
    with Checkpoints(directory) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.save(step, state(step), {"a": 1}, 1.0 / step)
    return directory


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_any_damage_to_the_newest_is_found_or_harmless(saved, tmp_path, damage, capsys):
    """Every file of the newest checkpoint in turn: what comes back was saved, or is the one before.

    Some files repeat what others hold, and are not read.
    """
    rng, passed_over = np.random.default_rng(0), 0
    files = [path for path in (saved / "3").rglob("*") if path.is_file() and path.stat().st_size]
    for i, path in enumerate(files):
        copy = tmp_path / str(i)
        shutil.copytree(saved, copy)
        broken = copy / path.relative_to(saved)
        raw = bytearray(broken.read_bytes())
        if damage == "flip":
            raw[rng.integers(len(raw))] ^= 1 << int(rng.integers(8))
        else:
            raw = raw[: len(raw) // 2]
        broken.write_bytes(bytes(raw))
        with Checkpoints(copy) as checkpoints:
            step, restored = checkpoints.restore(state(0))
        out = capsys.readouterr().out
        np.testing.assert_array_equal(restored["w"], float(step))
        assert restored["step"] == step
        if step == 2:
            passed_over += 1
            assert f"the checkpoint of step 3 in {copy} is damaged" in out
            assert "using the one of step 2" in out
        else:
            assert (step, out) == (3, "")
    assert passed_over >= 5


def test_numbers_that_differ_are_found_though_they_can_be_read(saved, tmp_path, capsys):
    """A whole checkpoint whose arrays are not those of its fingerprint."""
    copy = tmp_path / "copy"
    shutil.copytree(saved, copy)
    shutil.rmtree(copy / "3" / "state")
    shutil.copytree(copy / "2" / "state", copy / "3" / "state")
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.restore(state(0))[0] == 2
        assert "its arrays are not those that were saved" in capsys.readouterr().out
        with pytest.raises(DamagedCheckpoint, match=r"step 3.*name another"):
            checkpoints.restore(state(0), 3)
        checkpoints.drop_after(2)
        assert checkpoints.steps() == [1, 2]
        checkpoints.save(3, state(3), {}, 0.1)
    with Checkpoints(copy) as checkpoints:
        assert checkpoints.restore(state(0))[0] == 3


def test_a_full_disk_is_told_and_leaves_the_earlier_ones(tmp_path):
    """A limit on the size of files stands for the end of the disk."""
    noise = lambda i: {"w": jax.random.normal(jax.random.key(i), (300, 500)), "step": jnp.int32(i)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, noise(1), {}, 1.0)
    checkpoints.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        checkpoints.save(2, noise(2), {}, 0.5)
        with pytest.raises(StorageError, match="last whole one is of step 1; make room"):
            checkpoints.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Checkpoints(tmp_path) as checkpoints:
        step, restored = checkpoints.restore(noise(0))
    assert step == 1
    np.testing.assert_array_equal(restored["w"], noise(1)["w"])


LAYOUTS = {
    "one": Sharded(tuple(jax.devices()[:1])),
    "eight": Sharded(tuple(jax.devices())),
    "split in two": Sharded(tuple(jax.devices()), 2),
    "split in eight": Sharded(tuple(jax.devices()), 8),
    "pmap": Pmapped(tuple(jax.devices()[:4])),
}


@pytest.mark.parametrize("after", LAYOUTS)
@pytest.mark.parametrize("before", ["eight", "split in eight", "pmap"])
def test_a_state_returns_in_any_layout(tmp_path, before, after):
    def init(key):
        params = {"w": jax.random.normal(key, (64, 48)), "b": jax.random.normal(key, (3,))}
        return init_state({"params": params}, adam(1e-3))

    key = jax.random.key(3)
    old, new = LAYOUTS[before], LAYOUTS[after]
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, old.get_state(old.init(init, key)), {}, 0.0)
        _, restored = checkpoints.restore(new.stored(init, key))
    placed = new.get_state(new.put_state(restored))
    jax.tree.map(np.testing.assert_array_equal, placed, init(key))
