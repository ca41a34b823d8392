"""Rising maps of the line: slopes by autodiff, knots in NumPy, inverses, ends."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.bijections import affine, inverse_rational_quadratic, rational_quadratic, spline

K, HALF = 5, 3.0
BIJECTIONS = {"affine": affine(), "spline": spline(K, HALF)}
RNG = np.random.default_rng(0)


def parameters(*shape, scale=1.0):
    return jnp.asarray(scale * RNG.standard_normal(shape), jnp.float32)


@pytest.mark.parametrize("name", BIJECTIONS)
def test_slopes_are_those_of_autodiff_and_inverses_undo(name):
    """Also beyond the interval; and with parameters of 0 it is the identity."""
    bijection = BIJECTIONS[name]
    x = jnp.asarray(RNG.uniform(-4, 4, 300), jnp.float32)
    p = parameters(300, bijection.maps)

    @jax.jit
    def found(x, p):
        y, log_slope = bijection.forward(x, p)
        slope = jax.vmap(jax.grad(lambda x, p: bijection.forward(x, p)[0]))(x, p)
        return y, log_slope, slope, bijection.inverse(y, p)

    y, log_slope, slope, again = found(x, p)
    np.testing.assert_allclose(log_slope, np.log(slope), atol=2e-5)
    error = np.abs(again - x) * np.minimum(1, slope)  # a flat map takes digits away
    assert error.max() < 2e-6
    y, log_slope, _, again = found(x, jnp.zeros_like(p))
    np.testing.assert_allclose(y, x, atol=1e-5)
    np.testing.assert_allclose(again, x, atol=1e-5)
    np.testing.assert_allclose(log_slope, 0, atol=1e-5)


def test_a_spline_goes_through_its_knots_with_their_slopes_and_rises():
    """Knots in float64 from the paper's section 3.1; slopes alike from the left and the right."""
    widths, heights, slopes = (0.5 * RNG.standard_normal(n) for n in (K, K, K - 1))
    # at least a thousandth of the interval each; slopes so that 0 is a slope of 1
    edges = lambda a: (
        2 * HALF * np.cumsum(1e-3 + (1 - 1e-3 * K) * np.exp(a) / np.exp(a).sum()) - HALF
    )
    xs, ys = edges(widths)[:-1], edges(heights)[:-1]
    want = 1e-3 + np.log1p(np.exp(slopes + np.log(np.exp(1 - 1e-3) - 1)))

    @jax.jit
    def at(x):
        like = lambda a: jnp.broadcast_to(jnp.asarray(a, jnp.float32), (*x.shape, len(a)))
        return rational_quadratic(x, like(widths), like(heights), like(slopes), HALF)

    ends = np.array([-HALF + 1e-5, HALF - 1e-5])
    grid = np.concatenate([np.linspace(-4, 4, 4001), xs - 1e-5, xs, xs + 1e-5, ends])
    grid = np.sort(grid)
    y, log_slope = map(np.asarray, at(jnp.asarray(grid, jnp.float32)))
    place = lambda x: np.searchsorted(grid, x)
    np.testing.assert_allclose(y[place(xs)], ys, atol=1e-5)
    for moved in (-1e-5, 1e-5):
        np.testing.assert_allclose(log_slope[place(xs + moved)], np.log(want), atol=5e-3)
    beyond = np.abs(grid) >= HALF
    np.testing.assert_array_equal(y[beyond], np.float32(grid[beyond]))
    assert not log_slope[beyond].any()
    np.testing.assert_allclose(log_slope[place(ends)], 0, atol=5e-3)
    assert (np.diff(y)[np.diff(grid) > 1e-4] > 0).all()


@pytest.mark.parametrize("size", [20.0, 100.0])
@pytest.mark.parametrize("name", BIJECTIONS)
def test_extreme_parameters_give_finite_values_and_gradients(name, size):
    bijection = BIJECTIONS[name]
    signs = np.concatenate([np.ones((1, bijection.maps)), -np.ones((1, bijection.maps))])
    mixed = np.sign(RNG.standard_normal((60, bijection.maps)))
    p = jnp.asarray(size * np.concatenate([signs, mixed]), jnp.float32)
    line = np.concatenate([np.linspace(-3.2, 3.2, 33), [-HALF, HALF, -1e4, 1e4]])
    x = jnp.asarray(np.repeat(line[:, None], len(p), axis=1), jnp.float32)
    p = jnp.broadcast_to(p, (*x.shape, bijection.maps))

    def total(x, p):
        y, log_slope = bijection.forward(x, p)
        return jnp.sum(y / 1e4 + log_slope), (y, log_slope, bijection.inverse(x, p))

    gradients, values = jax.jit(jax.grad(total, argnums=(0, 1), has_aux=True))(x, p)
    assert all(np.isfinite(a).all() for a in (*gradients, *values))
    backwards = lambda x, p: bijection.inverse(x, p).sum() / 1e4
    assert all(np.isfinite(a).all() for a in jax.jit(jax.grad(backwards, argnums=(0, 1)))(x, p))
    y = np.asarray(values[0])
    assert (np.diff(y[:33], axis=0) >= -1e-5).all()  # it rises, as far as float32 can tell


def test_steep_and_flat_bins_are_undone_as_far_as_their_slope_allows():
    """The forward map of the inverse is y: that does not hang on how flat the spline is."""
    size = (500,)
    p = [parameters(*size, n, scale=4.0) for n in (K, K, K - 1)]
    y = jnp.asarray(RNG.uniform(-3, 3, size), jnp.float32)
    again, log_slope = rational_quadratic(inverse_rational_quadratic(y, *p), *p)
    error = np.abs(again - y) / np.maximum(1, np.exp(log_slope))
    assert error.max() < 1e-5


def test_steep_knots_between_even_bins_are_undone():
    """Where the quadratic's middle term is large and negative, its root is no small difference."""
    y = jnp.linspace(-2.9, 2.9, 101)
    p = [jnp.zeros((101, n)) for n in (4, 4)] + [jnp.full((101, 3), 1e3)]
    again, _ = rational_quadratic(inverse_rational_quadratic(y, *p), *p)
    np.testing.assert_allclose(again, y, atol=1e-3)


def test_a_spline_has_two_bins_at_least():
    with pytest.raises(ValueError, match="bins, not 1"):
        spline(1)
