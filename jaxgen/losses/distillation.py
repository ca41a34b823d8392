"""Distillation: students that take one step where their teacher takes many.

Teachers and students are denoisers, so a teacher may be guided, of any prediction target, and a
student of a former round; of one that learned a variance, x_0 alone is taught.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser, Network, edm, from_x_0, x_0_of
from jaxgen.diffusion.process import Noise, Schedule, diffuse, expand, standard_normal
from jaxgen.diffusion.samplers import ddim_step
from jaxgen.diffusion.schedules import ContinuousSchedule
from jaxgen.losses.denoising import squared_error


def two_step_target(teacher: Denoiser, schedule: Schedule, x_t: Array, t: Array, s: Array) -> Array:
    """The x_0 with which one DDIM step from t to s lands where two of the teacher's do.

    Salimans & Ho 2022, algorithm 2 and appendix G; ``x_t [B, ...]``, times ``[B]``, two
    evaluations of ``teacher``.
    """
    teacher, middle = x_0_of(teacher), 0.5 * (t + s)
    at, half, to = schedule(t), schedule(middle), schedule(s)
    x_half = ddim_step(x_t, teacher(x_t, t), at, half)
    x_s = ddim_step(x_half, teacher(x_half, middle), half, to)
    ratio = to.sigma / at.sigma
    return (x_s - expand(ratio, x_t) * x_t) / expand(to.alpha - ratio * at.alpha, x_t)


def truncated_error(
    student: Denoiser, schedule: Schedule, x_t: Array, t: Array, target: Array
) -> Array:
    """max(SNR, 1) |target - student(x_t, t)|^2, the mean over entries, ``[B]``.

    The truncated SNR weighting of Salimans & Ho 2022 (section 4), which keeps teaching a student
    at pure noise, where it must answer with a whole image.
    """
    weight = jnp.maximum(jnp.exp(schedule(t).log_snr), 1.0)
    return weight * squared_error(x_0_of(student)(x_t, t), target)


def progressive_loss(
    key: Array,
    student: Denoiser,
    teacher: Denoiser,
    schedule: ContinuousSchedule,
    x_0: Array,
    steps: Array | int,
    *,
    noise: Noise = standard_normal,
) -> Array:
    """:func:`truncated_error` of a student of ``steps`` steps at :func:`two_step_target`, ``[B]``.

    Salimans & Ho 2022, algorithm 2: times are t = i/``steps`` of the schedule's end, for
    i = 1, ..., ``steps``, drawn uniformly, and the teacher takes two steps of half the length.
    ``steps`` may be traced; ``x_0`` is data ``[B, ...]``.
    """
    key_t, key_eps = jax.random.split(key)
    each = schedule.end / steps
    t = each * jax.random.randint(key_t, x_0.shape[:1], 1, steps + 1)
    x_t = diffuse(x_0, noise(key_eps, x_0), schedule(t))
    target = two_step_target(teacher, schedule, x_t, t, jnp.maximum(t - each, 0.0))
    return truncated_error(student, schedule, x_t, t, jax.lax.stop_gradient(target))


def consistency_function(
    network: Network, schedule: Schedule, first: float, sigma_data: float = 0.5
) -> Denoiser:
    """A denoiser f with f(x, ``first``) = x/alpha by construction: c_skip x/alpha + c_out F.

    Song et al. 2023, eq. 5 and appendix C, with x/alpha and sigma/alpha for their x and sigma, and
    both coefficients multiplied out with alpha, so that pure noise (alpha = 0) has them too. To be
    sampled by :func:`~jaxgen.diffusion.samplers.consistency` of the same ``first``.
    """

    def f(x_t: Array, t: Array) -> Array:
        (alpha, sigma), least = schedule(t), schedule(jnp.asarray(first))
        more = sigma - alpha * (least.sigma / least.alpha)  # alpha times the noise beyond `first`
        variance = (alpha * sigma_data) ** 2
        skip = alpha * sigma_data**2 / (more**2 + variance)  # c_skip/alpha
        out = sigma_data * more / jnp.sqrt(sigma**2 + variance)  # c_out
        return expand(skip, x_t) * x_t + expand(out, x_t) * network(x_t, t)

    return f


def consistency_loss(
    key: Array,
    student: Denoiser,
    target: Denoiser,
    schedule: Schedule,
    x_0: Array,
    times: Array | np.ndarray,
    move: Callable[[Array, Array, Array], Array],
    *,
    noise: Noise = standard_normal,
) -> Array:
    """|f(x_t, t) - f^-(x_s, s)|^2 for neighbours s < t of falling ``times [n + 1]``: ``[B]``.

    Consistency distillation (Song et al. 2023, algorithm 2): ``move(x_t, t, s)`` is one step of a
    teacher's ODE solver, :func:`teacher_step` for DDIM; ``target`` is the student with averaged
    parameters. The mean over entries.
    """
    key_i, key_eps = jax.random.split(key)
    i = jax.random.randint(key_i, x_0.shape[:1], 0, len(times) - 1)
    t, s = jnp.asarray(times)[i], jnp.asarray(times)[i + 1]
    x_t = diffuse(x_0, noise(key_eps, x_0), schedule(t))
    x_s = move(x_t, t, s)
    student, target = x_0_of(student), x_0_of(target)
    return squared_error(student(x_t, t), jax.lax.stop_gradient(target(x_s, s)))


def teacher_step(teacher: Denoiser, schedule: Schedule) -> Callable[[Array, Array, Array], Array]:
    """``move(x_t, t, s)`` by one DDIM step of ``teacher``."""
    return lambda x_t, t, s: ddim_step(x_t, x_0_of(teacher)(x_t, t), schedule(t), schedule(s))


def consistent(denoise: Denoiser, schedule: Schedule, first: float) -> Denoiser:
    """The :func:`consistency_function` of a denoiser, its answer read as the target F of EDM."""
    network = lambda x_t, t: from_x_0(denoise(x_t, t), x_t, schedule, t, edm())  # noqa: E731
    return consistency_function(network, schedule, first)
