"""The bound of a model of levels z_L, ..., z_1, drawn from the top down, and its terms by level.

p(z) = p(z_L) prod_l p(z_l|z_{>l}), and q(z|x) likewise, each level told x: Sonderby et al. 2016
("Ladder variational autoencoders"), Vahdat & Kautz 2020 (NVAE), Child 2021 (VDVAE). A level sees
those above it through a state, which a step makes of the state before and what was drawn. A DDPM
is one of them, whose q is fixed (Ho et al. 2020). Values are in nats.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array

from jaxgen.distributions import Distribution, Normal, kl_normal, sum_event

State = Any  # what a level sees of those above it, arrays [B, ...]


class Level(NamedTuple):
    """A level, once the state above it is known."""

    p: Normal  # p(z_l|z_{>l}) over [B, ...]
    then: Callable[[Array], State]  # z_l -> the state below
    q: Normal | None = None  # q(z_l|z_{>l}, x), where x is known


Step = Callable[[State], Level]


class LevelTerms(NamedTuple):
    """The terms of the bound, the KL by level."""

    reconstruction: Array  # E_q log p(x|z), [B]
    kl: Array  # E_q KL(q(z_l|z_{>l}, x) || p(z_l|z_{>l})), [L, B], from the top down

    def elbo(self, beta: float | Array = 1.0) -> Array:
        """``reconstruction - sum_l beta_l kl_l``, ``[B]``; ``beta`` is one weight or ``[L]``."""
        beta = jnp.broadcast_to(jnp.asarray(beta, self.kl.dtype), (len(self.kl),))
        return self.reconstruction - (beta[:, None] * self.kl).sum(axis=0)


class Inferred(NamedTuple):
    """A level with its q, and a draw of it."""

    p: Normal
    q: Normal
    z: Array


def infer_levels(key: Array, steps: Sequence[Step], state: State) -> tuple[State, list[Inferred]]:
    """A draw of q from the top down: the last state, and every level.

    Raises:
      ValueError: if a level does not know q.
    """
    found = []
    for key_l, step in zip(jax.random.split(key, len(steps)), steps, strict=True):
        p, then, q = step(state)
        if q is None:
            raise ValueError("a level does not know q(z|x): give the steps x.")
        found.append(Inferred(p, q, q.sample(key_l)))
        state = then(found[-1].z)
    return state, found


def level_terms(
    key: Array,
    steps: Sequence[Step],
    state: State,
    decode: Callable[[State], Distribution],
    x: Array,
) -> LevelTerms:
    """The bound on log p(x) by one draw of each level (Sonderby et al. 2016, eq. 9).

    Args:
      key: one PRNG key.
      steps: the levels from the top down; each knows q.
      state: what the first of them sees.
      decode: the last state -> p(x|z).
      x: data ``[B, ...]``.
    """
    state, levels = infer_levels(key, steps, state)
    kl = jnp.stack([sum_event(kl_normal(level.q, level.p)) for level in levels])
    return LevelTerms(sum_event(decode(state).log_prob(x)), kl)


def level_log_weight(
    key: Array,
    steps: Sequence[Step],
    state: State,
    decode: Callable[[State], Distribution],
    x: Array,
) -> Array:
    """log p(x, z) - log q(z|x) at one draw of all levels, ``[B]``: see ``elbo.log_joint``."""
    state, levels = infer_levels(key, steps, state)
    log_w = sum_event(decode(state).log_prob(x))
    for p, q, z in levels:
        log_w = log_w + sum_event(p.log_prob(z) - q.log_prob(z))
    return log_w


def draw_levels(
    key: Array,
    steps: Sequence[Step],
    state: State,
    *,
    temperature: float | Array = 1.0,
    known: Sequence[Array] = (),
) -> tuple[State, list[Array]]:
    """A draw of p: the last state, and z of every level from the top down.

    The standard deviations of all levels are multiplied by ``temperature`` (Vahdat & Kautz 2020,
    section 4). Of the first levels z may be ``known``: what is drawn anew shows what the others
    hold.
    """
    found = []
    for i, (key_l, step) in enumerate(zip(jax.random.split(key, len(steps)), steps, strict=True)):
        level = step(state)
        cool = Normal(level.p.mean, level.p.log_std + jnp.log(temperature))
        found.append(known[i] if i < len(known) else cool.sample(key_l))
        state = level.then(found[-1])
    return state, found


# --- how q is made of what comes from below and from above --------------------------------------


def precision_weighted(above: Normal, below: Normal) -> Normal:
    """The product of two normals: the ladder's q (Sonderby et al. 2016, eq. 17 to 19)."""
    chex.assert_equal_shape([above.mean, below.mean])
    log_a, log_b = -2 * above.log_std, -2 * below.log_std  # of precisions
    log_both = jnp.logaddexp(log_a, log_b)
    share = jax.nn.sigmoid(log_a - log_b)
    mean = share * above.mean + (1 - share) * below.mean
    return Normal(mean, -0.5 * log_both)


def residual(p: Normal, moved: Normal) -> Normal:
    """q = N(mean_p + mean, (std_p std)^2), of which ``moved`` is what x adds.

    Vahdat & Kautz 2020, section 3.2; the KL to p is that of eq. 2. The shift is not in units of
    std_p: there p could shrink what is below sees of z, noise and all, at no cost.
    """
    return Normal(p.mean + moved.mean, p.log_std + moved.log_std)


def balanced(kl: Array, sizes: Sequence[int]) -> Array:
    """Weights ``[L]`` of the levels' KL ``[L, B]`` while it warms up, of mean 1.

    A level gets more weight where its share of the KL is large for its size, so that the small
    ones are not given up at first (Vahdat & Kautz 2020, appendix A; of no gradient).
    """
    share = jax.lax.stop_gradient(kl.mean(axis=1)) * jnp.asarray(sizes, kl.dtype)
    share = share + 1e-6 * share.max() + 1e-30
    return share / share.mean()
