"""Noise is a parameter: what is drawn in a subspace stays there, and is what is drawn in its
coordinates, by every loss, starting point and solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.diffusion.guidance import image_to_image
from jaxgen.diffusion.process import standard_normal
from jaxgen.diffusion.samplers import (
    ancestral,
    consistency,
    ddim,
    learned_ancestral,
    resampling,
    resampling_times,
    sample,
)
from jaxgen.diffusion.schedules import CosineLogSNR, from_betas, linear_betas, uniform_grid
from jaxgen.diffusion.solvers import SOLVERS, churned, corrected, dpm_solver_2m
from jaxgen.losses.denoising import denoising_loss, simple_loss
from jaxgen.losses.distillation import consistency_loss, progressive_loss, teacher_step
from jaxgen.losses.score_matching import denoising_score_matching

SCHEDULE = CosineLogSNR()  # its ends are neither clean data nor pure noise
# Points of three atoms on a line whose mean is zero: a plane, with an orthonormal basis.
PLANE = np.array([[1, -1, 0], [1, 1, -2]], np.float32) / np.sqrt([[2], [6]]).astype(np.float32)


def in_plane(key, x):
    """Noise without centre of mass: that of the coordinates in the plane."""
    return standard_normal(key, x @ PLANE.T) @ PLANE


def lifted(function):
    """A function of coordinates ``[B, 2]`` as one of points ``[B, 3]``."""

    def of_points(x, t):
        found = function(x @ PLANE.T, t)
        return jax.tree.map(lambda y: y @ PLANE, found)

    return of_points


def denoise(x_t, t):
    return jnp.tanh(x_t[:, ::-1] + 0.1 * t[:, None])


def with_nu(x_t, t):
    return denoise(x_t, t), jnp.full_like(x_t, 0.3)


def pair_of_points(x_t, t):
    return lifted(denoise)(x_t, t), jnp.full_like(x_t, 0.3)


GRID = uniform_grid(6, last=0.01)
CASES = {name: (solver, GRID) for name, solver in SOLVERS.items()} | {
    "ddim, eta 0.5": (ddim(0.5), GRID),
    "dpm_solver_2m, eta 0.5": (dpm_solver_2m(0.5), GRID),
    "churned": (churned(ancestral(), 0.2), GRID),
    "corrected": (corrected(ddim(), 2), GRID),
    "consistency": (consistency(0.01), GRID),
    "resampling": (resampling(ancestral()), resampling_times(GRID, 2, 2)),
}
STOCHASTIC = set(CASES) - {"ddim", "euler", "heun", "dpm_solver_2m", "dpm_solver_3m", "unipc"}


@pytest.fixture(scope="module")
def drawn():
    """What every solver makes of one start: in coordinates, in the plane, and by another noise."""
    x_T = jax.random.normal(jax.random.key(1), (5, 2))
    noisier = lambda key, x: 2 * standard_normal(key, x)

    @jax.jit
    def everything(key):
        found = {}
        for name, (solver, times) in CASES.items():
            found[name] = [
                sample(key, denoise, SCHEDULE, x_T, times, solver),
                sample(key, lifted(denoise), SCHEDULE, x_T @ PLANE, times, solver, in_plane),
                sample(key, denoise, SCHEDULE, x_T, times, solver, noisier),
            ]
        learned = learned_ancestral()
        found["learned"] = [
            sample(key, with_nu, SCHEDULE, x_T, GRID, learned),
            sample(key, pair_of_points, SCHEDULE, x_T @ PLANE, GRID, learned, in_plane),
            sample(key, with_nu, SCHEDULE, x_T, GRID, learned, noisier),
        ]
        found["SDEdit"] = [
            image_to_image(key, denoise, SCHEDULE, x_T, GRID[2:], ddim()),
            image_to_image(key, lifted(denoise), SCHEDULE, x_T @ PLANE, GRID[2:], ddim(), in_plane),
            image_to_image(key, denoise, SCHEDULE, x_T, GRID[2:], ddim(), noisier),
        ]
        return found

    return everything(jax.random.key(0))


@pytest.mark.parametrize("name", [*CASES, "learned", "SDEdit"])
def test_every_solver_draws_its_noise_from_what_is_given(drawn, name):
    coordinates, points, noisier = drawn[name]
    np.testing.assert_allclose(points, coordinates @ PLANE, atol=2e-5)
    stochastic = name in STOCHASTIC | {"learned", "SDEdit"}
    assert np.allclose(noisier, coordinates) == (not stochastic)


def test_every_loss_draws_its_noise_from_what_is_given():
    """The mean over three entries of an error in the plane is two thirds of that over its two."""
    key, x_0 = jax.random.key(0), jax.random.normal(jax.random.key(1), (7, 2))
    chain, t = from_betas(linear_betas(20)), jnp.linspace(0.1, 0.9, 7)
    times = uniform_grid(5, last=0.02)
    other = lambda x_t, t: jnp.sin(x_t)

    def losses(network, teacher, x_0, noise):
        move = teacher_step(teacher, SCHEDULE)
        return {
            "simple": simple_loss(key, network, chain, x_0, noise=noise),
            "denoising": denoising_loss(key, network, SCHEDULE, x_0, t, target="v", noise=noise),
            "progressive": progressive_loss(key, network, teacher, SCHEDULE, x_0, 4, noise=noise),
            "consistency": consistency_loss(
                key, network, teacher, SCHEDULE, x_0, times, move, noise=noise
            ),
            "score": denoising_score_matching(key, lambda x: network(x, t), x_0, 0.5, noise=noise),
        }

    coordinates = losses(denoise, other, x_0, standard_normal)
    points = losses(lifted(denoise), lifted(other), x_0 @ PLANE, in_plane)
    for name, values in coordinates.items():
        share = 1.0 if name == "score" else 2 / 3  # a sum over entries
        np.testing.assert_allclose(points[name], share * values, rtol=2e-5, err_msg=name)


def test_noise_may_depend_on_the_data():
    """Coupled to x_0, eps = -x_0 leaves nothing of the data where alpha = sigma."""
    x_0 = jax.random.normal(jax.random.key(1), (4, 3))
    level = SCHEDULE(t := jnp.full(4, 0.5))
    np.testing.assert_allclose(level.alpha, level.sigma, rtol=1e-3)
    blind = lambda x_t, t: jnp.where(jnp.abs(x_t) < 1e-2, 0.0, jnp.nan)
    coupled = lambda key, x_0: -x_0
    loss = denoising_loss(jax.random.key(0), blind, SCHEDULE, x_0, t, noise=coupled)
    np.testing.assert_allclose(loss, (x_0**2).mean(1), rtol=1e-5)
