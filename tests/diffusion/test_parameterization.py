import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.parameterization import FROM_X_0, TO_X_0, clip_x_0, convert, denoiser
from jaxgen.diffusion.process import Level
from jaxgen.diffusion.schedules import from_betas, linear_betas

RNG = np.random.default_rng(0)
X_0, EPS = RNG.standard_normal((2, 6, 3)).astype(np.float32)
ALPHA = np.array([0.99, 0.8, 0.3, 0.1, 1.0, 0.5], np.float32)
SIGMA = np.array([0.14, 0.6, 0.95, 0.99, 2.0, 0.5], np.float32)  # not all variance-preserving
X_T = ALPHA[:, None] * X_0 + SIGMA[:, None] * EPS
LEVEL = Level(jnp.asarray(ALPHA), jnp.asarray(SIGMA))
TRUTH = {
    "x_0": X_0,
    "eps": EPS,
    "v": ALPHA[:, None] * EPS - SIGMA[:, None] * X_0,
    "score": -(X_T - ALPHA[:, None] * X_0) / SIGMA[:, None] ** 2,
}


@pytest.mark.parametrize(("source", "target"), list(itertools.product(TRUTH, TRUTH)))
def test_every_pair_agrees_with_the_definitions(source, target):
    got = convert(jnp.asarray(TRUTH[source]), jnp.asarray(X_T), LEVEL, source, target)
    np.testing.assert_allclose(got, TRUTH[target], rtol=2e-4, atol=2e-4)


def test_the_tables_name_the_same_targets():
    assert set(TO_X_0) == set(FROM_X_0) == set(TRUTH)


def test_the_score_is_the_gradient_of_the_log_density():
    alpha, sigma = 0.6, 0.8
    log_q = lambda x: -0.5 * ((x - alpha * X_0[0]) ** 2).sum() / sigma**2
    x_t = jnp.asarray(X_T[:1])
    got = convert(jnp.asarray(X_0[:1]), x_t, Level(alpha, sigma), "x_0", "score")
    np.testing.assert_allclose(got[0], jax.grad(log_q)(x_t[0]), rtol=1e-4)


def test_denoiser_and_clipping():
    schedule = from_betas(linear_betas())
    t = jnp.array([1, 500])
    x_0 = jnp.array([[0.5, -3.0], [2.0, 0.1]])
    eps = jnp.ones((2, 2))
    alpha, sigma = schedule(t)
    x_t = alpha[:, None] * x_0 + sigma[:, None] * eps
    denoise = denoiser(lambda x_t, t: eps, schedule)
    np.testing.assert_allclose(denoise(x_t, t), x_0, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        clip_x_0(denoise)(x_t, t), [[0.5, -1.0], [1.0, 0.1]], rtol=1e-3, atol=1e-3
    )
