"""Two-dimensional densities that can be drawn exactly: points ``[n, 2]``, float32, within [-1, 1]
up to their noise."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
    """Eight modes of standard deviation 0.05 on a circle of radius 0.8."""
    angle = rng.integers(8, size=n) * (np.pi / 4)
    centre = 0.8 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return (centre + 0.05 * rng.standard_normal((n, 2))).astype(np.float32)


def two_moons(rng: np.random.Generator, n: int) -> np.ndarray:
    """Two interleaved half circles of radius 0.5 with noise 0.03."""
    angle = rng.uniform(0, np.pi, n)
    upper = rng.integers(2, size=n) == 0
    x = np.where(upper, np.cos(angle), 1 - np.cos(angle)) - 0.5
    y = np.where(upper, np.sin(angle), 0.5 - np.sin(angle)) - 0.25
    points = np.stack([x, y], axis=1) / 1.6
    return (points + 0.03 * rng.standard_normal((n, 2))).astype(np.float32)


def swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
    """A spiral of one and a half turns with noise 0.02."""
    angle = 1.5 * np.pi * (1 + 2 * rng.uniform(0, 1, n))
    points = np.stack([angle * np.cos(angle), angle * np.sin(angle)], axis=1) / 15
    return (points + 0.02 * rng.standard_normal((n, 2))).astype(np.float32)


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
    """Uniform on the eight dark squares of a 4 x 4 board over [-1, 1]^2."""
    row = rng.integers(4, size=n)
    column = 2 * rng.integers(2, size=n) + row % 2
    corner = np.stack([column, row], axis=1)
    return ((corner + rng.uniform(0, 1, (n, 2))) / 2 - 1).astype(np.float32)


DENSITIES: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "8gaussians": eight_gaussians,
    "moons": two_moons,
    "swissroll": swiss_roll,
    "checkerboard": checkerboard,
}
