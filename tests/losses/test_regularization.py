"""The largest singular values of a network's kernels, held to those of NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.losses.regularization import power_vectors, spectral_norms


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
