"""What samples that are bits are measured against."""

import numpy as np

from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.systems.bounds import in_bits


def test_images_in_bits_are_drawn_once_with_the_probability_of_their_intensity():
    x = np.tile(np.arange(5, dtype=np.uint8).reshape(1, 5, 1, 1), (4000, 1, 2, 1))
    source = Arrays({"x": x, "label": np.arange(len(x))})
    data = DataSet("greys", Image((5, 2, 1), 5), source, source, source)
    assert in_bits(data, False) is data
    bits = in_bits(data, True)
    drawn = bits.train.fetch(np.arange(4000))
    assert set(np.unique(drawn["x"])) == {0, 4}
    share = drawn["x"].mean(axis=(0, 2, 3)) / 4
    np.testing.assert_allclose(share, np.arange(5) / 4, atol=0.03)
    np.testing.assert_array_equal(drawn["label"], np.arange(4000))
    some = bits.train.fetch(np.array([7, 3999, 12]))["x"]
    np.testing.assert_array_equal(some, drawn["x"][[7, 3999, 12]])
    two = drawn["x"][:, 2] / 2 - 1  # even odds: pixels and examples go their own ways
    assert abs(np.mean(two[:, 0] * two[:, 1])) < 0.07
    assert abs(np.mean(two[1:] * two[:-1])) < 0.05
