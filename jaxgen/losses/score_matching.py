"""Score matching at one noise level: objectives for s(x) close to grad log p(x).

Each is E|s - grad log p|^2 / 2 plus a constant that does not depend on s; values are sums over the
entries of an example. For many levels at once, see :mod:`jaxgen.losses.denoising`.
"""

from __future__ import annotations

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.diffusion.likelihood import Divergence, exact_divergence, hutchinson_divergence
from jaxgen.diffusion.process import Level, Noise, diffuse, expand, standard_normal
from jaxgen.distributions import sum_event

Score = Callable[[Array], Array]  # x [B, ...] -> grad log p(x) [B, ...], each example by itself


def implicit_score_matching(
    score: Score, x: Array, divergence: Divergence = exact_divergence
) -> Array:
    """tr(ds/dx) + |s|^2 / 2 at data ``x [B, ...]``, ``[B]`` (Hyvarinen 2005, theorem 1).

    Its mean over data is E|s - grad log p|^2 / 2 - E|grad log p|^2 / 2.

    Raises:
      AssertionError: if the score's shape is not that of ``x``.
    """
    s, trace = divergence(score, x)
    return trace + 0.5 * sum_event(s**2)


def sliced_score_matching(
    key: Array,
    score: Score,
    x: Array,
    projections: int = 1,
    draw: Callable[..., Array] = jax.random.rademacher,
) -> Array:
    """v^T (ds/dx) v + |s|^2 / 2 at data ``x [B, ...]``, ``[B]``, the mean over ``projections`` v.

    Song et al. 2019, eq. 8 (the form with reduced variance): :func:`implicit_score_matching` in
    the mean over v, from :func:`jax.random.rademacher` or :func:`jax.random.normal`.

    Raises:
      AssertionError: if the score's shape is not that of ``x``.
    """
    return implicit_score_matching(score, x, hutchinson_divergence(key, projections, draw))


def denoising_score_matching(
    key: Array,
    score: Score,
    x: Array,
    sigma: Array | float,
    *,
    noise: Noise = standard_normal,
) -> Array:
    """|s(x + sigma eps) + eps / sigma|^2 / 2 for data ``x [B, ...]``, ``[B]``.

    Vincent 2011, eq. 9; ``sigma`` is a scalar or ``[B]``. With p_sigma the data's density convolved
    with the noise, the mean over data and eps is E|s - grad log p_sigma|^2 / 2 plus the constant
    D / (2 sigma^2) - E|grad log p_sigma|^2 / 2. It grows like 1 / sigma^2: multiply by sigma^2 to
    weigh levels alike (Song & Ermon 2019, section 4.2).

    Raises:
      AssertionError: if the score's shape is not that of ``x``, or sigma's is neither of the above.
    """
    sigma = jnp.asarray(sigma, x.dtype)
    eps = noise(key, x)
    s = score(diffuse(x, eps, Level(jnp.ones_like(sigma), sigma)))
    chex.assert_equal_shape([s, x])
    return 0.5 * sum_event((s + eps / expand(sigma, x)) ** 2)
