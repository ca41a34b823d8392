"""Adaptive solution of an ODE, through diffrax: for likelihoods and for references."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

State = TypeVar("State")  # an array [B, ...], or a tree of them


def solve_ode(
    field: Callable[[State, Array], State],
    x: State,
    t_0: Array | float,
    t_1: Array | float,
    *,
    rtol: float = 1e-5,
    atol: float = 1e-5,
    max_steps: int = 4096,
) -> tuple[State, Array]:
    """Solves dx/dt = field(x, t) from t_0 to t_1, before or after it, by an adaptive method.

    Tsitouras' method of order 5 (Tsitouras 2011). The batch is one system with one step size: the
    error that ``rtol`` and ``atol`` bound is the root mean square over its entries.

    Args:
      field: a :data:`~.sde.Field`, called with times ``[B]``; or such a function of trees.
      x: the state at t_0, ``[B, ...]``, or a tree of such arrays.
      t_0: the first time, a scalar.
      t_1: the last time, a scalar.
      rtol: the relative tolerance.
      atol: the absolute tolerance.
      max_steps: the number of steps, rejected ones too, after which it gives up.

    Returns:
      The state at t_1, and the number of evaluations of ``field``, a scalar. Derivatives are taken
      in reverse mode only.

    Raises:
      RuntimeError: if t_1 is not reached in ``max_steps`` steps.
    """
    import diffrax  # here, since it takes a third of a second that few programs need

    leaves = jax.tree.leaves(x)
    batch, dtype = leaves[0].shape[:1], jnp.result_type(*leaves)
    t_0, t_1 = jnp.asarray(t_0, dtype), jnp.asarray(t_1, dtype)
    solution = diffrax.diffeqsolve(
        diffrax.ODETerm(lambda t, x, _: field(x, jnp.full(batch, t, dtype))),
        diffrax.Tsit5(),
        t_0,
        t_1,
        dt0=0.01 * (t_1 - t_0),  # a guess that is corrected at once
        y0=x,
        stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
        max_steps=max_steps,
    )
    assert solution.ys is not None
    # Of its seven stages the last is the first of the next step.
    evaluations = 6 * solution.stats["num_steps"] + 1
    return jax.tree.map(lambda path: path[-1], solution.ys), evaluations
