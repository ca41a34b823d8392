import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxgen.training.checkpoints import Checkpoints, NoCheckpoint


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
        step, restored, position = checkpoints.restore(state(0))
        assert (step, position) == (50, 50)
        np.testing.assert_array_equal(restored["w"], 50.0)
        step, restored, _ = checkpoints.restore(state(0), 20)
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
        _, restored, _ = checkpoints.restore(target)
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
