import numpy as np
import pytest
from scipy import integrate, stats

from jaxgen.evaluation.compression import LEFT, STEP, bits_of_components, quantized_pca

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_table_of_uniform_quantizers_is_right(bits):
    """The error by integration over a standard normal; no other step leaves less."""

    def left(step):
        half = 2 ** (bits - 1)
        edges = np.concatenate([[-np.inf], step * np.arange(-half + 1, half), [np.inf]])
        points = step * (np.arange(-half, half) + 0.5)
        total = 0.0
        for low, high, y in zip(edges, edges[1:], points, strict=False):
            low, high = max(low, -9.0), min(high, 9.0)
            if low < high:
                total += integrate.quad(lambda x, y=y: (x - y) ** 2 * stats.norm.pdf(x), low, high)[
                    0
                ]
        return total

    error = left(STEP[bits])
    np.testing.assert_allclose(error, LEFT[bits], rtol=0.01)
    assert left(0.97 * STEP[bits]) > error - 1e-9 < left(1.03 * STEP[bits]) - 1e-9


def test_bits_go_where_they_take_off_the_most():
    """Against all ways to share six bits among three components."""
    variance = np.array([4.0, 1.0, 0.3])
    found = bits_of_components(variance, 6)
    assert found.sum() == 6
    error = lambda b: (variance * np.asarray(LEFT)[np.asarray(b)]).sum()
    ways = [(a, b, 6 - a - b) for a in range(7) for b in range(7 - a)]
    np.testing.assert_allclose(error(found), min(map(error, ways)))
    np.testing.assert_array_equal(bits_of_components(np.ones(2), 99), [8, 8])


def test_the_error_of_normal_data_is_that_of_the_table():
    scale = np.array([3.0, 2.0, 1.0, 0.2])
    turn, _ = np.linalg.qr(RNG.standard_normal((4, 4)))
    train, test = (RNG.standard_normal((20_000, 4)) * scale @ turn + 5.0 for _ in range(2))
    errors = []
    for bits in (2, 5, 9):
        error = ((test - quantized_pca(train, test, bits)) ** 2).sum(axis=1).mean()
        share = bits_of_components(scale**2, bits)
        np.testing.assert_allclose(error, (scale**2 * np.asarray(LEFT)[share]).sum(), rtol=0.05)
        errors.append(error)
    assert errors == sorted(errors, reverse=True)
