"""The largest singular values of a network's kernels, held to those of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.losses.regularization import (
    historical_averaging,
    orthogonality,
    power_vectors,
    running_mean,
    spectral_norms,
    spectrally_normalized,
)


def test_steps_of_the_power_iteration_end_at_the_largest_singular_values(key):
    rng = np.random.default_rng(0)
    params = {
        "dense": {"kernel": rng.normal(size=(5, 3)), "bias": rng.normal(size=3)},
        "conv": {"kernel": rng.normal(size=(3, 3, 2, 4))},
        "none": {"kernel": np.zeros((2, 2))},
    }
    params = jax.tree.map(jnp.float32, params)
    vectors, norms = (
        power_vectors(key, params),
        jax.jit(jax.value_and_grad(spectral_norms, has_aux=True)),
    )
    first = None
    for _ in range(60):
        (total, vectors), slope = norms(params, vectors)
        first = total if first is None else first
    exact, outer = 0.0, {}
    for name in ("dense", "conv"):
        kernel = np.asarray(params[name]["kernel"])
        u, s, vt = np.linalg.svd(kernel.reshape(-1, kernel.shape[-1]), full_matrices=False)
        exact += s[0]
        outer[name] = np.outer(u[:, 0], vt[0]).reshape(kernel.shape)
    np.testing.assert_allclose(total, exact, rtol=1e-5)
    assert first < total  # one step alone is a lower bound
    for name, found in outer.items():
        np.testing.assert_allclose(slope[name]["kernel"], found, atol=1e-3)
    assert not np.any(slope["dense"]["bias"])
    assert np.isfinite(slope["none"]["kernel"]).all()


def test_normalized_kernels_have_one_for_their_largest_singular_value(key):
    """Of dense maps and of convolutions over their patches; biases are left as they are."""
    rng = np.random.default_rng(1)
    params = {
        "a": rng.normal(size=(6, 3)),
        "b": rng.normal(size=3),
        "c": rng.normal(size=(2, 2, 3, 5)),
    }
    params = jax.tree.map(jnp.float32, params)
    vectors, step = power_vectors(key, params), jax.jit(spectrally_normalized)
    for _ in range(60):
        found, vectors = step(params, vectors)
    for name in ("a", "c"):
        matrix = np.asarray(found[name]).reshape(-1, found[name].shape[-1])
        np.testing.assert_allclose(np.linalg.svd(matrix, compute_uv=False)[0], 1, rtol=1e-4)
        ratio = np.asarray(found[name] / params[name])
        np.testing.assert_allclose(ratio, ratio.flat[0] + np.zeros_like(ratio), rtol=1e-4)
    np.testing.assert_array_equal(found["b"], params["b"])
    # A scale of the weights changes nothing, so the gradient has no part along them (eq. 10).
    cost = lambda w: jnp.sum(spectrally_normalized({"a": w}, {"a": vectors["a"]})[0]["a"] ** 3)
    slope = jax.jit(jax.grad(cost))(params["a"])
    assert abs(np.sum(slope * params["a"])) < 1e-4 * np.linalg.norm(slope)


def test_orthogonality_sees_the_angles_between_filters_alone():
    at_right_angles = jnp.array([[3.0, 0.0], [0.0, 0.5], [0.0, 0.0]])
    assert orthogonality({"a": at_right_angles, "b": jnp.ones(2)}) == 0
    kernel = jnp.array([1.0, 2.0, 0.0, 1.0]).reshape(2, 1, 2)  # filters (1, 0) and (2, 1): 2 * 2^2
    np.testing.assert_allclose(orthogonality({"a": at_right_angles, "c": kernel}), 8)


def test_parameters_are_held_to_the_mean_of_those_before():
    path = [{"w": jnp.array([t, 2.0 * t])} for t in (1.0, 2.0, 6.0)]
    mean = {"w": jnp.zeros(2)}
    for count, params in enumerate(path):
        mean = running_mean(mean, params, count)
    np.testing.assert_allclose(mean["w"], [3, 6], rtol=1e-6)
    cost, slope = jax.value_and_grad(historical_averaging)(path[-1], mean)
    np.testing.assert_allclose(cost, 3**2 + 6**2, rtol=1e-6)
    np.testing.assert_allclose(slope["w"], [6, 12], rtol=1e-6)
