import numpy as np
import pytest

from jaxgen.data.order import ShuffledBatches
from jaxgen.data.pipeline import index_batches, prefetched, read_batches
from jaxgen.data.records import Arrays

SOURCE = Arrays({"x": np.arange(30).reshape(10, 3), "number": np.arange(10, dtype=np.int32)})


def take(iterator, n):
    return [next(iterator) for _ in range(n)]


def test_every_epoch_holds_every_element_once_in_a_new_order():
    order = ShuffledBatches(size=10, batch=4, seed=3)
    stream = np.concatenate([order[i] for i in range(25)])
    epochs = stream.reshape(10, 10)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(10))
    assert len({tuple(epoch) for epoch in epochs}) == 10
    other = ShuffledBatches(size=10, batch=4, seed=4)
    assert not np.array_equal(stream[:4], other[0])


def test_a_batch_is_a_function_of_seed_and_step():
    whole = take(prefetched(index_batches(10, 4, seed=3)), 9)
    resumed = take(prefetched(index_batches(10, 4, seed=3, start=5)), 4)
    np.testing.assert_array_equal(whole[5:], resumed)
    np.testing.assert_array_equal(whole[7], ShuffledBatches(10, 4, 3)[7])


def test_several_steps_are_stacked():
    single = take(prefetched(index_batches(10, 4, seed=3)), 6)
    stacked = take(prefetched(index_batches(10, 4, seed=3, stride=3)), 2)
    np.testing.assert_array_equal(np.concatenate(stacked), single)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_read_their_rows_of_one_batch(processes):
    size = 8 // processes
    rows = [slice(p * size, (p + 1) * size) for p in range(processes)]
    parts = [take(prefetched(index_batches(10, 8, seed=1, stride=2, rows=r)), 3) for r in rows]
    whole = take(prefetched(index_batches(10, 8, seed=1, stride=2)), 3)
    np.testing.assert_array_equal(np.concatenate(parts, axis=-1), whole)


def test_records_are_read_in_the_order_of_the_indices():
    indices = index_batches(10, 4, seed=0, stride=2)
    for batch, index in zip(take(read_batches(SOURCE, indices), 3), indices, strict=False):
        assert batch.keys() == {"x", "number"}
        np.testing.assert_array_equal(batch["number"], index)
        np.testing.assert_array_equal(batch["x"], SOURCE["x"][index])


def test_batches_larger_than_the_set_span_epochs():
    batch = ShuffledBatches(size=3, batch=8, seed=0)[0]
    assert np.bincount(batch).tolist() in ([3, 3, 2], [3, 2, 3], [2, 3, 3])
