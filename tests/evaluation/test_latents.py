import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.evaluation.latents import active_units, analogy, linear_path, spherical_path


def test_paths_begin_and_end_where_they_should(key):
    a, b = jax.random.normal(key, (2, 3, 5))
    for path in (linear_path, spherical_path):
        points = path(a, b, 7)
        assert points.shape == (7, 3, 5)
        np.testing.assert_allclose(points[0], a, atol=1e-5)
        np.testing.assert_allclose(points[-1], b, atol=1e-5)
    np.testing.assert_allclose(linear_path(a, b, 7)[3], (a + b) / 2, atol=1e-6)


def test_the_arc_keeps_norm_and_speed():
    a, b = jnp.array([2.0, 0.0]), jnp.array([0.0, 2.0])
    points = spherical_path(a, b, 10)
    np.testing.assert_allclose(jnp.linalg.norm(points, axis=1), 2.0, rtol=1e-5)
    angle = np.arctan2(points[:, 1], points[:, 0])
    np.testing.assert_allclose(angle, np.linspace(0, np.pi / 2, 10), atol=1e-5)
    assert np.isfinite(spherical_path(a, a, 4)).all()


def test_analogies_and_shapes():
    a, b, c = (jnp.full((3, 2), v) + jnp.arange(3.0)[:, None] for v in (1.0, 2.0, 10.0))
    np.testing.assert_allclose(analogy(a, b, c), [12.0, 12.0])
    with pytest.raises(AssertionError):
        linear_path(jnp.zeros(2), jnp.zeros(3), 4)


def test_units_that_do_not_follow_the_data_are_not_active():
    rng = np.random.default_rng(0)
    std = np.array([1.0, 0.11, 0.09, 0.0])
    means = 5 + std * rng.standard_normal((5000, 4))
    np.testing.assert_array_equal(active_units(means), [True, True, False, False])
    with pytest.raises(ValueError, match="two examples"):
        active_units(means[:1])
