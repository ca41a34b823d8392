"""The loop over rows: every row once, whatever their number, the chunks and the devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.training.rows import OverRows

DEVICES = jax.devices()


@pytest.mark.parametrize("count", [1, 2, 8])
@pytest.mark.parametrize("n", [1, 3, 4, 11, 64])
def test_every_row_is_answered_in_its_place(count, n):
    rows = {"x": np.arange(n, dtype=np.float32), "y": np.arange(2 * n).reshape(n, 2)}
    double = lambda weights, key, rows: {"z": weights * rows["x"] + rows["y"].sum(axis=1)}
    found = OverRows(double, DEVICES[:count])(jnp.float32(2), jax.random.key(0), rows, 4)
    np.testing.assert_allclose(found["z"], 2 * rows["x"] + rows["y"].sum(axis=1))


@pytest.mark.parametrize("n", [4, 10, 40])
def test_draws_are_those_of_the_chunk_on_any_number_of_devices(n):
    """Chunk i draws from fold_in(key, i), and each row differs from all others."""
    draw = lambda weights, key, rows: jax.random.normal(key, rows.shape)
    key, rows = jax.random.key(3), np.zeros(n, np.float32)
    found = [OverRows(draw, DEVICES[:k])((), key, rows, 4) for k in (1, 2, 8)]
    chunks = range(-(-n // 4))
    want = np.concatenate([jax.random.normal(jax.random.fold_in(key, i), (4,)) for i in chunks])
    for x in found:
        np.testing.assert_allclose(x, want[:n], rtol=1e-6)
    assert len(set(want.tolist())) == len(want)


def test_a_loop_goes_on_where_another_ended():
    draw = OverRows(lambda weights, key, rows: jax.random.normal(key, rows.shape), DEVICES[:2])
    key, rows = jax.random.key(3), np.zeros(12, np.float32)
    first, rest = draw((), key, rows[:8], 4), draw((), key, rows[8:], 4, first=2)
    np.testing.assert_array_equal(np.concatenate([first, rest]), draw((), key, rows, 4))


def test_chunks_have_one_shape_and_use_the_devices_there_are():
    seen = []

    def record(weights, key, rows):
        seen.append(rows.shape)
        return rows

    each = OverRows(record, DEVICES)
    for n in (64, 61, 33):
        np.testing.assert_array_equal(each((), jax.random.key(0), np.arange(n), 4), np.arange(n))
    assert set(seen) == {(4,)}
    assert len(seen) == 1  # compiled once
