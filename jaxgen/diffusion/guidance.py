"""Guidance and control: functions from denoiser to denoiser, so that each works in every sampler.

Given x_t, every target (eps, v, score, velocity) is affine in x_0. So an extrapolation between two
predictions is the same extrapolation between their x_0, and a term g added to the score adds
sigma^2/alpha g to x_0: all guidance can be written for x_0.

A weight may be a traced array (a scalar or ``[B]``), to be changed or vmapped without a new
compilation, or a function of the time, ``[B] -> [B]``, such as :func:`in_interval` makes. Where
that function is 0 for the whole batch, and for a weight that is the Python number 0, nothing is
evaluated that is needed for guidance only.

A denoiser with a learned variance, which answers the pair (x_0, nu), keeps its nu.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.diffusion.parameterization import Denoiser, map_x_0, with_x_0, x_0_in, x_0_of
from jaxgen.diffusion.process import Level, Noise, Schedule, diffuse, expand, standard_normal
from jaxgen.diffusion.samplers import Solver, sample

Weight = float | Array | Callable[[Array], Array]  # a value, scalar or [B], or t [B] -> [B]


def classifier_free(
    conditional: Denoiser,
    unconditional: Denoiser,
    weight: Weight,
    rescale: Array | float = 0.0,
) -> Denoiser:
    """x_0 + w (x_0 - the unconditional x_0) (Ho & Salimans 2022, eq. 6).

    w = 0 is the conditional model and w = -1 the unconditional one; papers that write
    D_0 + w (D_1 - D_0) have a w larger by 1. ``rescale`` is phi of Lin et al. 2023 (section 3.4),
    in [0, 1]: how far the standard deviation of each guided example is taken back to that of the
    conditional one. They take it of the network's output, here it is of x_0.
    """
    if _is_zero(weight):
        return conditional

    def denoise(x_t: Array, t: Array) -> Any:
        reference = lambda: x_0_of(unconditional)(x_t, t)  # noqa: E731
        return with_x_0(
            conditional(x_t, t), lambda x_0: _extrapolated(x_0, reference, t, weight, rescale)
        )

    return denoise


def doubled_classifier_free(
    denoise: Callable[[Array, Array, Any], Any],
    condition: Any,
    null: Any,
    weight: Weight,
    rescale: Array | float = 0.0,
) -> Denoiser:
    """:func:`classifier_free` by one call on a batch of twice the size, faster on accelerators.

    ``denoise(x_t, t, condition)`` is given the conditions (a tree of arrays ``[B, ...]``, such as
    labels) and then ``null``, the like of them that stands for none. Both halves are evaluated
    where the weight is 0, too.
    """
    chex.assert_trees_all_equal_shapes_and_dtypes(condition, null)

    def guided(x_t: Array, t: Array) -> Any:
        twice = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
        given = jax.tree.map(twice, condition, null)
        both = denoise(twice(x_t, x_t), twice(t, t), given)
        first, second = (jax.tree.map(lambda a: jnp.split(a, 2)[i], both) for i in (0, 1))  # noqa: B023
        reference = lambda: x_0_in(second)  # noqa: E731
        return with_x_0(first, lambda x_0: _extrapolated(x_0, reference, t, weight, rescale))

    return guided


def autoguidance(
    denoise: Denoiser, weaker: Denoiser, weight: Weight, rescale: Array | float = 0.0
) -> Denoiser:
    """x_0 + w (x_0 - the x_0 of a weaker version of the same model) (Karras et al. 2024).

    :func:`classifier_free` with another reference: a smaller or less trained model for the same
    condition. Their w is larger by 1.
    """
    return classifier_free(denoise, weaker, weight, rescale)


def in_interval(
    weight: Weight, schedule: Schedule, low: float = 0.0, high: float = math.inf
) -> Callable[[Array], Array]:
    """The weight where sigma/alpha is in (``low``, ``high``], and 0 at other noise levels.

    Kynkaanniemi et al. 2024. Outside the interval the reference is not evaluated (unless
    it is vmapped over, for then both sides of a choice are).
    """

    def limited(t: Array) -> Array:
        alpha, sigma = schedule(t)
        inside = (sigma / alpha > low) & (sigma / alpha <= high)
        return jnp.where(inside, weight(t) if callable(weight) else weight, 0.0)

    return limited


def classifier(
    denoise: Denoiser,
    schedule: Schedule,
    log_prob: Callable[[Array, Array], Array],
    weight: Weight = 1.0,
) -> Denoiser:
    """Adds w grad log p(y|x_t) to the score (Dhariwal & Nichol 2021, section 4 and algorithm 2).

    ``log_prob(x_t [B, ...], t [B]) -> [B]`` is that of a classifier of noisy x_t for the wanted y,
    in nats, each value a function of its own example. At w = 1 the exact classifier makes the
    exact conditional denoiser.
    """
    if _is_zero(weight):
        return denoise

    def guided(x_t: Array, t: Array) -> Any:
        def guide(x_0: Array) -> Array:
            def add(w: Array) -> Array:
                gradient = jax.grad(lambda x: log_prob(x, t).sum())(x_t)
                return add_to_score(x_0, expand(w, x_0) * gradient, schedule(t))

            return _guided(x_0, t, weight, add)

        return with_x_0(denoise(x_t, t), guide)

    return guided


def add_to_score(x_0: Array, gradient: Array, level: Level) -> Array:
    """x_0 + sigma^2/alpha gradient: the estimate whose score has ``gradient [B, ...]`` added.

    At clean data (sigma = 0) and at pure noise (alpha = 0) it is ``x_0``: the first knows x_0, and
    at the second no function of x_t has a gradient that says anything about it.
    """
    chex.assert_equal_shape([x_0, gradient])
    alpha, sigma = (expand(k, x_0) for k in level)
    defined = (alpha > 0) & (sigma > 0)
    # Chosen, not multiplied by 0, because the gradient may be infinite where it is not defined.
    change = jnp.where(defined, gradient, 0.0) * (sigma**2 / jnp.where(defined, alpha, 1.0))
    return x_0 + change


def clip_x_0(denoise: Denoiser, low: float = -1.0, high: float = 1.0) -> Denoiser:
    """A denoiser whose estimates are clipped to the range of the data (static thresholding)."""
    return map_x_0(denoise, lambda x_0: jnp.clip(x_0, low, high))


def dynamic_threshold(denoise: Denoiser, percentile: float = 0.995) -> Denoiser:
    """Clips each estimate of data in [-1, 1] to [-s, s] and divides it by s.

    s is the ``percentile`` of the example's |x_0|, and at least 1 (Saharia et al. 2022, section
    2.3). It is put around the guided denoiser, whose estimates leave the range of the data.

    Raises:
      ValueError: if ``percentile`` is not in [0, 1].
    """
    if not 0 <= percentile <= 1:
        raise ValueError(f"the percentile must be a number in [0, 1], got {percentile}.")

    def threshold(x_0: Array) -> Array:
        s = jnp.quantile(jnp.abs(x_0).reshape(x_0.shape[0], -1), percentile, axis=1)
        s = expand(jnp.maximum(s, 1.0), x_0)
        return jnp.clip(x_0, -s, s) / s

    return map_x_0(denoise, threshold)


def inpaint(denoise: Denoiser, known: Array, mask: Array) -> Denoiser:
    """Puts the known pixels into the estimate of x_0 (the replacement method).

    ``known`` is ``[B, ...]``, of the scale of the data; ``mask`` is 1 or True where it is known, of
    the same rank and broadcast to its shape.

    A step of :func:`~.samplers.ancestral` (with its default variance) draws from q(x_s|x_t, x_0).
    Where x_0 is the known pixel this is the forward process of that pixel, run backwards: from
    q(x_T|x_0) on, the known part of every x_t has the distribution q(x_t|x_0) exactly, and it ends
    in the pixel itself. The unknown pixels see the known ones through this noise only, so they are
    not exact draws given the known ones. With :func:`~.samplers.resampling` and
    :func:`~.samplers.resampling_times`, which let both parts mix at each level, it is RePaint
    (Lugmayr et al. 2022, algorithm 1), and the draws come closer.
    """
    chex.assert_equal_rank([known, mask])

    def put(x_0: Array) -> Array:
        chex.assert_equal_shape([x_0, known])
        is_known = jnp.broadcast_to(mask, known.shape).astype(bool)
        return jnp.where(is_known, known, x_0)

    return map_x_0(denoise, put)


def image_to_image(
    key: Array,
    denoise: Denoiser,
    schedule: Schedule,
    x: Array,
    times: Array | np.ndarray,
    solver: Solver,
    noise: Noise = standard_normal,
) -> Array:
    """SDEdit: diffuses ``x [B, ...]`` to the first of ``times``, and samples from there.

    Meng et al. 2022, algorithm 1. The later times[0] is, the less is left of ``x`` and the more
    the result, ``[B, ...]``, is like the data.
    """
    key_diffuse, key_sample = jax.random.split(key)
    x_t = diffuse(x, noise(key_diffuse, x), schedule(jnp.asarray(times)[0]))
    return sample(key_sample, denoise, schedule, x_t, times, solver, noise)


def _is_zero(value: object) -> bool:
    """Whether it is the Python number 0, known before anything is traced."""
    return isinstance(value, (int, float)) and value == 0


def _guided(x_0: Array, t: Array, weight: Weight, guide: Callable[[Array], Array]) -> Array:
    """``guide(weight)``, or ``x_0`` at a time where the weight is 0 for the whole batch."""

    def guided(w: Array) -> Array:
        return guide(w).astype(x_0.dtype)

    if not callable(weight):
        return guided(jnp.asarray(weight))
    w = weight(t)
    return jax.lax.cond(jnp.any(w != 0), guided, lambda w: x_0, w)


def _extrapolated(
    x_0: Array,
    reference: Callable[[], Array],
    t: Array,
    weight: Weight,
    rescale: Array | float,
) -> Array:
    """x_0 + w (x_0 - reference), rescaled; the reference is evaluated where it is needed."""

    def guide(w: Array) -> Array:
        other = reference()
        chex.assert_equal_shape([x_0, other])
        guided = x_0 + expand(w, x_0) * (x_0 - other)
        return guided if _is_zero(rescale) else _rescaled(guided, x_0, rescale)

    return _guided(x_0, t, weight, guide)


def _rescaled(guided: Array, x_0: Array, phi: Array | float) -> Array:
    """``guided`` times phi std(x_0)/std(guided) + 1 - phi, the deviations example by example."""
    axes = tuple(range(1, x_0.ndim))
    std, wanted = (jnp.std(x, axes, keepdims=True) for x in (guided, x_0))
    # An estimate that is constant over the example has no deviation that could be restored.
    ratio = jnp.where(std > 0, wanted / jnp.where(std > 0, std, 1.0), 1.0)
    return guided * (1 + expand(jnp.asarray(phi), guided) * (ratio - 1))
