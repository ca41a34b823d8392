"""Two-dimensional densities that can be drawn exactly: points ``[n, 2]``, float32, within [-1, 1]
up to their noise. Their log densities are known as well, in nats."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

NODES = 2000  # of a midpoint rule along a curve; they lie nearer together than its noise is wide
CHUNK = 1000  # points whose distances to all nodes are held at a time


@dataclass(frozen=True, eq=False)
class Density:
    """How points are drawn, and what is known of where they lie."""

    sample: Callable[[np.random.Generator, int], np.ndarray]  # (rng, n) -> float32 [n, 2]
    log_prob: Callable[[Array], Array] | None = None  # [B, 2] -> [B], in nats
    modes: np.ndarray | None = None  # [K, 2]

    def scaled(self, factor: float) -> Density:
        """The density of the points times ``factor``."""
        log_prob = self.log_prob
        return Density(
            lambda rng, n: np.float32(factor) * self.sample(rng, n),
            log_prob and (lambda x: log_prob(x / factor) - 2 * np.log(factor)),
            self.modes if self.modes is None else factor * self.modes,
        )


def _normals(centres: np.ndarray, std: float) -> Callable[[Array], Array]:
    """The log density of a mixture of equal normals at ``centres [K, 2]``."""

    def at(x: Array) -> Array:
        exponents = -((x - centres) ** 2).sum(axis=-1) / (2 * std**2)
        return jax.nn.logsumexp(exponents) - np.log(2 * np.pi * std**2 * len(centres))

    return jax.jit(lambda x: jax.lax.map(at, x[:, None], batch_size=CHUNK))


def _midpoints(start: float, end: float, n: int) -> np.ndarray:
    return start + (end - start) * (np.arange(n) + 0.5) / n


# --- Gaussians -------------------------------------------------------------------------------


def _on_circle(angle: np.ndarray) -> np.ndarray:
    return 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)


_EIGHT = _on_circle(np.arange(8) * (np.pi / 4))
_TWENTY_FIVE = np.asarray([[x, y] for y in range(-2, 3) for x in range(-2, 3)]) / 2


def eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight modes of standard deviation 0.05 on a circle of radius 0.8."""
    centre = _EIGHT[rng.integers(8, size=n)]
    return (centre + 0.05 * rng.standard_normal((n, 2))).astype(np.float32)


def grid_of_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    """Twenty-five modes of standard deviation 0.04 on a grid over [-1, 1]^2.

    They are as far apart in their own widths as the eight are, and so less than the 40 that the
    grids of Srivastava et al. 2017 and Gulrajani et al. 2017 are.
    """
    centre = _TWENTY_FIVE[rng.integers(25, size=n)]
    return (centre + 0.04 * rng.standard_normal((n, 2))).astype(np.float32)


# --- ring ------------------------------------------------------------------------------------


def ring(rng: np.random.Generator, n: int) -> np.ndarray:
    """A circle of radius 0.8 with noise 0.05."""
    points = _on_circle(rng.uniform(0, 2 * np.pi, n))
    return (points + 0.05 * rng.standard_normal((n, 2))).astype(np.float32)


# --- two moons -------------------------------------------------------------------------------


def _on_moons(angle: np.ndarray, upper: np.ndarray) -> np.ndarray:
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    return np.stack([x, y], axis=1) / 1.6


def two_moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two interleaved half circles of radius 0.625 with noise 0.03."""
    angle = rng.uniform(0, np.pi, n)
    upper = rng.integers(2, size=n) == 0
    return (_on_moons(angle, upper) + 0.03 * rng.standard_normal((n, 2))).astype(np.float32)


# --- Swiss roll ------------------------------------------------------------------------------


def _on_spiral(turned: np.ndarray) -> np.ndarray:
    angle = 1.5 * np.pi * (1 + 2 * turned)
    return np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 15


def swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
    """A spiral of one and a half turns with noise 0.02."""
    points = _on_spiral(rng.uniform(0, 1, n))
    return (points + 0.02 * rng.standard_normal((n, 2))).astype(np.float32)


# --- checkerboard ----------------------------------------------------------------------------

_SQUARES = np.asarray([[x, y] for y in range(4) for x in range(4) if (x + y) % 2 == 0]) / 2 - 0.75


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform on the eight dark squares of a 4 x 4 board over [-1, 1]^2."""
    row = rng.integers(4, size=n)
    column = 2 * rng.integers(2, size=n) + row % 2
    corner = np.stack([column, row], axis=1)
    return ((corner + rng.uniform(0, 1, (n, 2))) / 2 - 1).astype(np.float32)


def _on_dark(x: Array) -> Array:
    """The log density of the board: its eight squares have the area 2, their edges included."""
    off = jnp.abs(x[:, None] - _SQUARES[None]).max(axis=-1).min(axis=-1)
    return jnp.where(off <= 0.25, -np.log(2), -jnp.inf)


# --- by name ---------------------------------------------------------------------------------

_HALF = _midpoints(0, np.pi, NODES // 2)
_MOONS = np.concatenate([_on_moons(_HALF, np.full(len(_HALF), which)) for which in (True, False)])

DENSITIES: dict[str, Density] = {
    "8gaussians": Density(eight_gaussians, _normals(_EIGHT, 0.05), _EIGHT),
    "25gaussians": Density(grid_of_gaussians, _normals(_TWENTY_FIVE, 0.04), _TWENTY_FIVE),
    "ring": Density(ring, _normals(_on_circle(_midpoints(0, 2 * np.pi, NODES)), 0.05)),
    "moons": Density(two_moons, _normals(_MOONS, 0.03)),
    "swissroll": Density(swiss_roll, _normals(_on_spiral(_midpoints(0, 1, NODES)), 0.02)),
    "checkerboard": Density(checkerboard, _on_dark, _SQUARES),
}
