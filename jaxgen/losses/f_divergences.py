"""D_f(P || Q) = E_q f(p / q), its variational bound, and the GANs that descend it.

For any T, E_p T(x) - E_q f*(T(x)) <= D_f, with equality at T = f'(p / q) (Nguyen et al. 2010;
Nowozin et al. 2016, f-GAN, eq. 4 and 5). A critic's logit v becomes T = g_f(v), a map onto the
domain of the conjugate f*.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.losses.adversarial import Objective, check_logits, of_fakes, over_patches

LARGEST = 30.0  # of logits that are exponentiated as they are


class FDivergence(NamedTuple):
    """A row of Nowozin et al. 2016, tables 5 and 6, as elementwise functions."""

    f: Callable[[Array], Array]  # of u = p / q > 0; convex, f(1) = 0
    conjugate: Callable[[Array], Array]  # f*(t) = sup_u ut - f(u)
    activation: Callable[[Array], Array]  # T = g_f(v)
    fake: Callable[[Array], Array]  # f*(g_f(v)), without the cancellation of either


def tamed(v: Array) -> Array:
    """v where it is at most 30, and beyond it 30 + log(1 + |v| - 30), with its sign.

    exp(v) overflows in float32 at 89. exp(tamed(v)) goes on along a straight line in place of it.
    As tamed rises through all numbers, g_f(tamed(v)) is another map onto the same domain: bounds
    stay bounds, and have the same optimum.
    """
    beyond = jnp.maximum(jnp.abs(v) - LARGEST, 0)
    return jnp.clip(v, -LARGEST, LARGEST) + jnp.sign(v) * jnp.log1p(beyond)


def _xlogx(u: Array) -> Array:
    return u * jnp.log(u)


def _exp(v: Array) -> Array:
    return jnp.exp(tamed(v))


KL = FDivergence(
    f=_xlogx,
    conjugate=lambda t: jnp.exp(t - 1),
    activation=tamed,
    fake=lambda v: jnp.exp(tamed(v) - 1),
)
REVERSE_KL = FDivergence(
    f=lambda u: -jnp.log(u),
    conjugate=lambda t: -1 - jnp.log(-t),
    activation=lambda v: -_exp(-v),
    fake=lambda v: tamed(v) - 1,
)
PEARSON = FDivergence(  # chi^2
    f=lambda u: (u - 1) ** 2,
    conjugate=lambda t: t**2 / 4 + t,
    activation=lambda v: v,
    fake=lambda v: v**2 / 4 + v,
)
SQUARED_HELLINGER = FDivergence(
    f=lambda u: (jnp.sqrt(u) - 1) ** 2,
    conjugate=lambda t: t / (1 - t),
    activation=lambda v: 1 - _exp(-v),
    fake=lambda v: _exp(v) - 1,
)
JENSEN_SHANNON = FDivergence(  # KL(p || m) + KL(q || m), m = (p + q) / 2: twice their mean
    f=lambda u: _xlogx(u) - (u + 1) * jnp.log((u + 1) / 2),
    conjugate=lambda t: -jnp.log(2 - jnp.exp(t)),
    activation=lambda v: jnp.log(2.0) - jax.nn.softplus(-v),
    fake=lambda v: jax.nn.softplus(v) - jnp.log(2.0),
)


def f_gan(divergence: FDivergence) -> Objective:
    """The saddle point of Nowozin et al. 2016, eq. 6: E_p g_f(V(x)) - E_q f*(g_f(V(G(z)))).

    The critic's loss is minus a lower bound of D_f(data || samples).
    """

    def critic(real_logits: Array, fake_logits: Array) -> Array:
        check_logits(real_logits, fake_logits)
        return over_patches(divergence.fake(fake_logits) - divergence.activation(real_logits))

    return Objective(critic, of_fakes(lambda logits: -over_patches(divergence.fake(logits))))
