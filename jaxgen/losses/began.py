"""BEGAN (Berthelot et al. 2017): the critic is an autoencoder, judged by how it reconstructs.

All is said of its errors L(v) = |v - D(v)|, ``[B]``, of data and of samples. The critic descends
L(x) - k L(G(z)), the generator L(G(z)).
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from jaxgen.losses.adversarial import Objective, of_fakes


def equilibrium(k: Array, real_error: Array, fake_error: Array, gamma: float, rate: float) -> Array:
    """k after a step: k + rate (gamma E L(x) - E L(G(z))), kept in [0, 1] (section 3.4).

    It rests where E L(G(z)) = gamma E L(x), gamma being the diversity ratio (eq. 5).
    """
    return jnp.clip(k + rate * (gamma * real_error.mean() - fake_error.mean()), 0, 1)


def convergence(real_error: Array, fake_error: Array, gamma: float) -> Array:
    """M = E L(x) + |gamma E L(x) - E L(G(z))|: how far training has come (section 3.4.1)."""
    return real_error.mean() + jnp.abs(gamma * real_error.mean() - fake_error.mean())


# Of errors in place of logits, before k: L(x) for the critic, L(G(z)) for the generator.
BEGAN = Objective(lambda real_error, fake_error: real_error, of_fakes(lambda error: error))
