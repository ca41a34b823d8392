"""Distances between two sets of feature vectors, ``[n, F]`` and ``[m, F]``, in float64."""

from __future__ import annotations

import numpy as np


def frechet_gaussians(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A B)^(1/2)), the squared 2-Wasserstein distance.

    Dowson & Landau 1982; the FID of Heusel et al. 2017 on Inception features. The trace of the
    square root is that of the symmetric (A^1/2 B A^1/2)^1/2, whose eigenvalues are real.
    """
    values, vectors = np.linalg.eigh(cov_a)
    root_a = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
    trace_root = np.sqrt(np.maximum(cross, 0)).sum()
    squared = np.sum((mean_a - mean_b) ** 2) + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_root
    return float(max(squared, 0.0))


def frechet_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Frechet distance of normals fitted to two sets. It is biased upwards for small sets.

    Raises:
      ValueError: if a set has a single example, which has no covariance.
    """
    _check_two(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    cov_a, cov_b = (np.atleast_2d(np.cov(x.T)) for x in (a, b))
    return frechet_gaussians(a.mean(0), cov_a, b.mean(0), cov_b)


def _check_two(a: np.ndarray, b: np.ndarray) -> None:
    if min(len(a), len(b)) < 2:
        raise ValueError(f"it needs two examples of either set, and there are {len(a)}, {len(b)}.")


def _blocks(a: np.ndarray, size: int = 1000) -> list[np.ndarray]:
    """Rows of a, ``size`` at a time: no n x m table is ever held whole."""
    return np.split(a, range(size, len(a), size))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD under k(x, y) = (x.y / F + 1)^3; it may be slightly negative.

    Binkowski et al. 2018 (KID), over the whole sets at once; time grows with (n + m)^2.

    Raises:
      ValueError: if a set has a single example.
    """
    _check_two(a, b)
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def total(x: np.ndarray, y: np.ndarray) -> float:
        return sum(((block @ y.T / x.shape[1] + 1) ** 3).sum() for block in _blocks(x))

    def within(x: np.ndarray) -> float:
        with_itself = (((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum()
        return (total(x, x) - with_itself) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * total(a, b) / (len(a) * len(b)))


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each row of a, the Euclidean distance to the nearest row of b, ``[n]``."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    return np.sqrt(np.concatenate([_squared(x, b).min(axis=1) for x in _blocks(a)]))


def precision_recall(real: np.ndarray, fake: np.ndarray, k: int = 3) -> tuple[float, float]:
    """The share of fakes within the real set, and of the real within the fakes.

    Within a set is what lies no further from one of its members than that one's k-th nearest
    neighbour in the set (Kynkaanniemi et al. 2019, eq. 1 and 2, of rows ``[n, F]``, ``[m, F]``):
    quality, and variety.

    Raises:
      ValueError: if a set has no more than ``k`` examples.
    """
    if min(len(real), len(fake)) <= k:
        raise ValueError(f"it needs more than {k} examples of either set.")

    def share(a: np.ndarray, of: np.ndarray) -> float:
        """The share of a within a set."""
        # Its own distance, 0, comes before those of its neighbours.
        rows = [np.partition(_squared(x, of), k, axis=1)[:, k] for x in _blocks(of)]
        radii = np.concatenate(rows)[None]
        within = [(_squared(x, of) <= radii).any(axis=1) for x in _blocks(a)]
        return float(np.concatenate(within).mean())

    real, fake = np.asarray(real, np.float64), np.asarray(fake, np.float64)
    return share(fake, real), share(real, fake)


def _squared(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Squared distances ``[n, m]``."""
    norms = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None]
    return np.maximum(norms - 2 * a @ b.T, 0)


def psnr(x: np.ndarray, truth: np.ndarray) -> float:
    """10 log10(range^2 / mean squared error) in dB, of data in [-1, 1]."""
    return float(10 * np.log10(4 / np.mean((x - truth) ** 2)))
