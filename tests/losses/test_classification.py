"""Bayes' rule through the bound."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian, Mixture

from jaxgen.diffusion.schedules import from_betas, linear_betas
from jaxgen.losses.classification import label_estimates

CLASSES = {
    "normals": (
        Gaussian(np.array([0.6, 0.0]), np.array([[0.3, 0.1], [0.1, 0.2]])),
        Gaussian(np.array([-0.5, 0.3]), np.array([[0.1, -0.05], [-0.05, 0.4]])),
    ),
    "mixtures": (
        Mixture(np.array([0.5, 0.5]), np.array([[0.6, 0.6], [-0.6, -0.6]]), 0.3),
        Mixture(np.array([0.3, 0.7]), np.array([[0.6, -0.6], [-0.6, 0.6]]), 0.3),
    ),
}


def bounds(classes, x, draws):
    schedule = from_betas(linear_betas(1000))
    exact = [c.denoiser(schedule) for c in classes]

    def denoise(y):
        def given(x_t, t):
            return jnp.where(y[:, None] == 0, exact[0](x_t, t), exact[1](x_t, t))

        return given

    labels = jnp.tile(jnp.arange(2), (len(x), 1))
    run = jax.jit(partial(label_estimates, denoise=denoise, schedule=schedule, draws=draws))
    return np.asarray(run(jax.random.key(0), x_0=jnp.asarray(x), labels=labels).bound)


@pytest.mark.parametrize("name", CLASSES)
def test_exact_denoisers_decide_as_bayes(name):
    classes, rng = CLASSES[name], np.random.default_rng(0)
    x = np.concatenate([c.sample(rng, 200) for c in classes])
    exact = classes[1].log_prob(x) - classes[0].log_prob(x)
    errors = []
    for draws in (100, 4000):
        bound = bounds(classes, x, draws)
        found = bound[:, 0] - bound[:, 1]
        errors.append(np.sqrt(np.mean((found - exact) ** 2)))
    assert errors[1] < 0.3 * errors[0]  # as 1/sqrt(K)
    assert errors[1] < 0.05 * exact.std()
    assert abs(np.mean(found - exact)) < 0.02 * exact.std()
    assert np.mean((found > 0) == (exact > 0)) > 0.98
