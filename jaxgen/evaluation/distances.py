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
    """The Frechet distance of normals fitted to two sets. It is biased upwards for small sets."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return frechet_gaussians(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))


def kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The unbiased squared MMD under k(x, y) = (x.y / F + 1)^3; it may be slightly negative.

    Binkowski et al. 2018 (KID), over the whole sets at once.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: np.ndarray) -> float:
        k = kernel(x, x)
        return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2 * kernel(a, b).mean())


def nearest_distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """For each row of a, the Euclidean distance to the nearest row of b, ``[n]``."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None, :] - 2 * a @ b.T
    return np.sqrt(np.maximum(squared.min(axis=1), 0.0))
