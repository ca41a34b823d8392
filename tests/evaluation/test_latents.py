import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.evaluation.latents import (
    active_units,
    analogy,
    linear_path,
    principal_axes,
    projected,
    semantic_directions,
    spherical_path,
    turned,
)


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


def test_principal_axes_are_those_of_the_covariance():
    """A normal of stds 3, 2 and 0.1 along turned axes: they are found up to their signs."""
    rng = np.random.default_rng(0)
    basis, _ = np.linalg.qr(rng.standard_normal((3, 3)))
    z = 5 + rng.standard_normal((50_000, 3)) * [3.0, 2.0, 0.1] @ basis.T
    mean, axes = principal_axes(z)
    np.testing.assert_allclose(mean, 5, atol=0.06)
    assert axes.shape == (3, 2)
    np.testing.assert_allclose(np.abs(axes.T @ basis[:, :2]), np.eye(2), atol=0.02)


@pytest.mark.parametrize("mirror", [1, -1])
def test_what_was_turned_and_moved_is_turned_back(mirror):
    """No distance changes, a stretch the least: what was only turned, or mirrored, lies on it."""
    rng = np.random.default_rng(0)
    x, angle = rng.standard_normal((20, 2)), 0.7
    rotation = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    z = 3 * x @ rotation @ np.diag([1, mirror]) + 4
    np.testing.assert_allclose(turned(z, x), 3 * (x - x.mean(axis=0)), atol=1e-9)
    np.testing.assert_allclose(turned(-x[:, :1], x[:, :1]), x[:, :1] - x[:, :1].mean(), atol=1e-9)
    sheared = x @ np.array([[1.0, 2.0], [0.0, 1.0]])
    distances = lambda y: np.linalg.norm(y[:, None] - y, axis=-1)
    np.testing.assert_allclose(distances(turned(sheared, x)), distances(sheared), atol=1e-9)


def test_directions_are_those_that_a_first_layer_carries_furthest(key):
    kernel = np.asarray(jax.random.normal(key, (6, 20)))
    found = semantic_directions(kernel, 3)
    np.testing.assert_allclose(found @ found.T, np.eye(3), atol=1e-6)
    moved = np.linalg.norm(found @ kernel, axis=1)
    assert (np.diff(moved) < 0).all()
    values = np.linalg.eigvalsh(kernel @ kernel.T)[::-1][:3]
    np.testing.assert_allclose(moved**2, values, rtol=1e-5)


def test_an_image_is_projected_to_the_latent_that_makes_it(key):
    """Of a linear generator: least squares, with a ridge of 0.001 D / Z."""
    a = jax.random.normal(key, (3, 8))
    x = jax.random.normal(jax.random.key(1), (5, 3)) @ a
    found = projected(lambda z: z @ a, x, jnp.zeros((5, 3)), steps=500)
    kernel = np.asarray(a)
    ridge = kernel @ kernel.T + 1e-3 * 8 / 3 * np.eye(3)
    np.testing.assert_allclose(found, np.linalg.solve(ridge, kernel @ np.asarray(x).T).T, atol=2e-3)
