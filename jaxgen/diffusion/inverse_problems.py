"""Linear inverse problems y = A x_0 + noise: sampling from p(x_0|y) with a denoiser of p(x_0).

The score of x_t given y is that of x_t plus grad log p(y|x_t), where

    p(y|x_t) = int p(y|x_0) p(x_0|x_t) dx_0

is not known. The methods here take y as normal about A E[x_0|x_t], so that the gradient is one
backward pass through the denoiser, and differ in the variance they give it. They are functions from
denoiser to denoiser, as those of :mod:`jaxgen.diffusion.guidance` are.

An operator A is a linear function of a batch; those below are of images ``[B, H, W, C]``, and are
closed by ``functools.partial(downsample, factor=4)``. Each may be applied at any scale; those of
weights that sum to one keep the data's ([-1, 1] stays [-1, 1]).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.guidance import add_to_score, inpaint
from jaxgen.diffusion.parameterization import Denoiser, with_x_0, x_0_in
from jaxgen.diffusion.process import Level, Schedule, expand, transition_variance
from jaxgen.diffusion.samplers import Solver, ancestral, resampling, resampling_times, sample
from jaxgen.diffusion.schedules import DiscreteSchedule, respaced_times, steps_of
from jaxgen.distributions import sum_event

Operator = Callable[[Array], Array]  # x [B, ...] -> y [B, ...]


def posterior_sampling(
    denoise: Denoiser,
    schedule: Schedule,
    y: Array,
    operator: Operator,
    variance: Callable[[Level], Array],
) -> Denoiser:
    """x_0 + sigma^2/alpha grad log N(y; A x_0(x_t), variance I), the gradient in x_t.

    ``y [B, ...]`` is what was measured, on the scale of ``operator(x_0)``. ``variance(level)`` is
    that of y given x_t, a scalar, ``[B]``, or broadcast to y from its rank: the noise's and what
    A does to the spread of x_0 around its estimate, Cov[x_0|x_t]. Where A Cov A^T and the noise are
    diagonal and the data are normal, the result is E[x_0|x_t, y] exactly. With
    :func:`pseudoinverse_variance` it is the guidance of Song et al. 2023.
    """

    def log_likelihood(x_0: Array, t: Array) -> Array:
        v = jnp.asarray(variance(schedule(t)))
        v = v if v.ndim == y.ndim else expand(v, y)
        return -0.5 * sum_event(_residual(y, operator, x_0) ** 2 / v)

    return guided_by_estimate(denoise, schedule, log_likelihood)


def pseudoinverse_variance(
    noise_variance: Array | float = 0.0, gain: float = 1.0, data_variance: float = 1.0
) -> Callable[[Level], Array]:
    """sigma_y^2 + gain r_t^2, for :func:`posterior_sampling` (Song et al. 2023, section 3).

    r_t^2 = v sigma^2 / (v alpha^2 + sigma^2) is the variance of x_0 given x_t for independent
    normal data of variance v. ``gain`` is the c of A A^T = c I: 1 for :func:`identity` and
    :func:`masked`, 1/factor^2 for :func:`downsample`, 0.447 for :func:`grayscale`. A blur has none,
    and the sum of its squared kernel is an approximation.
    """

    def variance(level: Level) -> Array:
        alpha, sigma = level
        r2 = data_variance * sigma**2 / (data_variance * alpha**2 + sigma**2)
        return noise_variance + gain * r2

    return variance


def diffusion_posterior_sampling(
    denoise: Denoiser, schedule: Schedule, y: Array, operator: Operator, step: Array | float = 1.0
) -> Denoiser:
    """DPS with its own step size (Chung et al. 2023, algorithm 1).

    After each ancestral step from t to t - 1 they subtract zeta/||y - A x_0|| grad ||y - A x_0||^2,
    which is 2 zeta grad ||y - A x_0||; ``step`` is zeta. Such a step takes
    alpha_{t-1} sigma_{t|t-1}^2 / alpha_t of what is added to the score, and so the same is done by
    a log-likelihood of -2 zeta alpha_t/(alpha_{t-1} sigma_{t|t-1}^2) ||y - A x_0||. It is
    :func:`posterior_sampling` with a variance in proportion to the residual and to beta_t. Other
    solvers and longer steps get in proportion, so that zeta need not change with their number.

    Raises:
      TypeError: when called with real times, since their steps are not known here.
    """

    def log_likelihood(x_0: Array, t: Array) -> Array:
        if jnp.issubdtype(t.dtype, jnp.floating):
            raise TypeError("the step size is one for steps from t to t - 1: discrete schedules.")
        at, before = schedule(t), schedule(jnp.maximum(t - 1, 0))
        rate = at.alpha / (before.alpha * transition_variance(at, before))
        squared = sum_event(_residual(y, operator, x_0) ** 2)
        # Where y is met exactly the norm has no derivative, and 0 is what it should be.
        norm = jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
        return -2 * step * rate * norm

    return guided_by_estimate(denoise, schedule, log_likelihood)


def guided_by_estimate(
    denoise: Denoiser, schedule: Schedule, log_likelihood: Callable[[Array, Array], Array]
) -> Denoiser:
    """Adds the gradient in x_t of ``log_likelihood(x_0(x_t) [B, ...], t [B]) -> [B]`` to the score.

    One forward and one backward pass of ``denoise`` an evaluation.
    """

    def guided(x_t: Array, t: Array) -> Any:
        def evaluate(x: Array) -> tuple[Array, Any]:
            estimate = denoise(x, t)
            return x_0_in(estimate), estimate

        x_0, pull_back, estimate = jax.vjp(evaluate, x_t, has_aux=True)
        (gradient,) = pull_back(jax.grad(lambda x: log_likelihood(x, t).sum())(x_0))
        return with_x_0(estimate, lambda x_0: add_to_score(x_0, gradient, schedule(t)))

    return guided


def _residual(y: Array, operator: Operator, x_0: Array) -> Array:
    predicted = operator(x_0)
    chex.assert_equal_shape([y, predicted])
    return y - predicted


# --- problems --------------------------------------------------------------------------------


def identity(x: Array) -> Array:
    """x itself: denoising."""
    return x


class Problem(NamedTuple):
    """y = A x_0 + noise z, and how to draw from p(x_0|y)."""

    operator: Operator
    noise: float
    method: str
    condition: Callable[[Denoiser, Array], Denoiser]  # the denoiser of p(x_0), y -> of p(x_0|y)
    times: np.ndarray
    solver: Solver = ancestral()
    start: Callable[[Array], Array] | None = None  # y -> x at times[0], where not pure noise
    show: Callable[[Array], Array] = identity  # y -> a picture of x_0's shape

    def measure(self, key: Array, x_0: Array) -> Array:
        """y of data ``x_0 [B, ...]``."""
        y = self.operator(x_0)
        return y + self.noise * jax.random.normal(key, y.shape)

    def solve(
        self, key: Array, denoise: Denoiser, schedule: Schedule, y: Array, x_T: Array
    ) -> Array:
        """A draw from p(x_0|y) for each of ``y``; ``x_T [B, ...]`` is noise to start from."""
        x_t = x_T if self.start is None else self.start(y)
        return sample(key, self.condition(denoise, y), schedule, x_t, self.times, self.solver)


def inpainting(times: np.ndarray, mask: Array, jump: int, repeats: int) -> Problem:
    """What lies where ``mask [1, H, W, 1]`` is 0, by RePaint (Lugmayr et al. 2022)."""
    return Problem(
        partial(masked, mask=mask),
        0.0,
        "RePaint",
        lambda denoise, y: inpaint(denoise, y, mask),
        resampling_times(times, jump, repeats),
        resampling(ancestral()),
    )


def denoising(schedule: DiscreteSchedule, noise: float, steps: int) -> Problem:
    """y is x_t of the time whose sigma_t/alpha_t is nearest to ``noise``: the chain goes on."""
    steps_in_all = steps_of(schedule, "take one with steps")
    level = schedule(jnp.arange(1, steps_in_all + 1))
    ratio = np.asarray(level.sigma / level.alpha)
    first = 1 + int(np.abs(ratio - noise).argmin())
    return Problem(
        identity,
        float(ratio[first - 1]),
        f"ancestral sampling from t = {first}",
        lambda denoise, y: denoise,
        respaced_times(first, min(first, steps)),
        start=lambda y: schedule(jnp.asarray(first)).alpha * y,
    )


def super_resolution(
    schedule: DiscreteSchedule, times: np.ndarray, factor: int, zeta: float
) -> Problem:
    """From means of squares of ``factor`` pixels a side, by DPS of step size ``zeta``."""
    by = partial(downsample, factor=factor)
    show = lambda y: y.repeat(factor, axis=1).repeat(factor, axis=2)  # noqa: E731
    return Problem(by, 0.0, "DPS", _dps(schedule, by, zeta), times, show=show)


def deblurring(
    schedule: DiscreteSchedule, times: np.ndarray, kernel: np.ndarray, noise: float, zeta: float
) -> Problem:
    """From a blurred image with noise, by DPS of step size ``zeta``."""
    by = partial(blur, kernel=jnp.asarray(kernel))
    return Problem(by, noise, "DPS", _dps(schedule, by, zeta), times)


def _dps(
    schedule: DiscreteSchedule, operator: Operator, zeta: float
) -> Callable[[Denoiser, Array], Denoiser]:
    return lambda denoise, y: diffusion_posterior_sampling(denoise, schedule, y, operator, zeta)


# --- operators -------------------------------------------------------------------------------


def masked(x: Array, mask: Array) -> Array:
    """x where ``mask`` (1 or True, of x's rank, broadcast to it) and 0 elsewhere: inpainting."""
    chex.assert_equal_rank([x, mask])
    return jnp.where(mask.astype(bool), x, jnp.zeros_like(x))


def downsample(x: Array, factor: int) -> Array:
    """Means of squares of ``factor`` pixels a side, ``[B, H/f, W/f, C]``: super-resolution.

    Raises:
      ValueError: if ``factor`` does not divide H and W.
    """
    batch, height, width, channels = x.shape
    if height % factor or width % factor:
        raise ValueError(f"the factor {factor} does not divide images of {height} x {width}.")
    squares = x.reshape(batch, height // factor, factor, width // factor, factor, channels)
    return squares.mean(axis=(2, 4))


def grayscale(x: Array) -> Array:
    """The luma of ``[B, H, W, 3]`` by the weights of Rec. 601, ``[B, H, W, 1]``: colorization.

    Raises:
      ValueError: if there are not three channels.
    """
    if x.shape[-1] != 3:
        raise ValueError(f"grayscale needs 3 channels, got {x.shape[-1]}.")
    red, green, blue = jnp.split(x, 3, axis=-1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


def blur(x: Array, kernel: Array | np.ndarray) -> Array:
    """The circular convolution with a kernel, channel by channel, ``[B, H, W, C]``: deblurring.

    ``kernel`` is ``[K, L]``, or ``[K]`` for one that is separable and the same in both directions;
    its sides are odd and its middle stays in place. Sums to one where brightness is to be kept.

    Raises:
      ValueError: if a side of the kernel is even.
    """
    kernel = jnp.asarray(kernel, x.dtype)
    if kernel.ndim == 1:
        return blur(blur(x, kernel[:, None]), kernel[None, :])
    if any(side % 2 == 0 for side in kernel.shape):
        raise ValueError(f"the sides of a kernel must be odd, got {kernel.shape}.")
    rows, columns = (side // 2 for side in kernel.shape)
    x_around = jnp.pad(x, ((0, 0), (rows, rows), (columns, columns), (0, 0)), mode="wrap")
    channels = x.shape[-1]
    # XLA's convolution does not reflect its kernel. It is part of the measurement, so it is exact.
    weights = jnp.broadcast_to(kernel[::-1, ::-1, None, None], (*kernel.shape, 1, channels))
    return jax.lax.conv_general_dilated(
        x_around,
        weights,
        window_strides=(1, 1),
        padding="VALID",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=channels,
        precision=jax.lax.Precision.HIGHEST,
    )
