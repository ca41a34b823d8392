"""The smallest GAN: data are the point 0, samples the point theta, and the critic is psi x.

Mescheder et al. 2018 ("Which training methods for GANs do actually converge?", section 2): whether
training ends at its equilibrium (0, 0) can be read off the eigenvalues of its field there.
"""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.losses.adversarial import Objective
from jaxgen.losses.penalties import Penalty


@dataclass(frozen=True)
class DiracGan:
    """The game of an objective, with a penalty or with instance noise; a player is a number."""

    objective: Objective
    penalty: Penalty | None = None
    weight: float = 1.0  # of the penalty
    noise: float = 0.0  # std of instance noise

    def losses(self, theta: Array, psi: Array) -> tuple[Array, Array]:
        """What generator and critic minimize; over noise by the quadrature of Gauss and Hermite."""
        nodes, weights = np.polynomial.hermite_e.hermegauss(16 if self.noise else 1)
        real = self.noise * jnp.asarray(nodes, jnp.result_type(float))[:, None]  # [n, 1]
        fake = theta + real
        share = jnp.asarray(weights / weights.sum(), real.dtype)

        def critic(x: Array) -> Array:
            return psi * x[:, 0]

        logits = critic(real), critic(fake)
        cost = share @ self.objective.critic(*logits)
        if self.penalty is not None:
            penalty = self.penalty(jax.random.key(0), critic, real, fake)
            cost = cost + self.weight * (share @ penalty)
        return share @ self.objective.generator(*logits), cost

    def field(self, players: Array) -> Array:
        """Where both would go, ``[2]`` from (theta, psi) ``[2]``: minus the slopes of their own
        losses (eq. 3)."""
        theta, psi = players
        return -jnp.stack(
            [
                jax.grad(lambda theta: self.losses(theta, psi)[0])(theta),
                jax.grad(lambda psi: self.losses(theta, psi)[1])(psi),
            ]
        )

    def path(self, players: Array, rate: float, steps: int) -> Array:
        """``[steps + 1, 2]``: gradient descent in turns, first the critic."""

        def step(players: Array, _: None) -> tuple[Array, Array]:
            players = players.at[1].add(rate * self.field(players)[1])
            players = players.at[0].add(rate * self.field(players)[0])
            return players, players

        _, later = jax.lax.scan(step, players, length=steps)
        return jnp.concatenate([players[None], later])
