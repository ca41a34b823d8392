"""What generated points are worth: distances between clouds, modes, and densities.

A cloud is a set of points ``[n, D]``; all is computed in float64. Points that are not finite are
refused with a ValueError wherever the nearest of them are looked for.
"""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen.data.records import DataSet, some, spread
from jaxgen.evaluation.report import Number, Reference

CHAMFER_LIMIT = 2048  # points of a cloud, as point-cloud models are usually measured on
SLICED_LIMIT = 10_000
TEST_LIMIT = 10_000
TRAINING_LIMIT = 100_000
PAIRED_LIMIT = 64  # points of a set whose distances are taken


def chamfer_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The Chamfer distance of ``a [n, D]`` and ``b [m, D]``, Fan et al. 2017.

    Squared distances to the nearest point of the other cloud, summed over the points of either:
    it grows with n and m, so that only clouds of one size compare.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    from scipy.spatial import KDTree  # here, for its import takes a command half a second

    return float(sum((KDTree(to).query(x)[0] ** 2).sum() for x, to in ((a, b), (b, a))))


def sliced_wasserstein(
    a: np.ndarray, b: np.ndarray, projections: int = 256, seed: int = 0
) -> float:
    """The sliced 2-Wasserstein distance of ``a [n, D]`` and ``b [m, D]``, in their units.

    The root mean square, over random directions, of the 2-Wasserstein distance of the projections
    (Rabin et al. 2012; Bonneel et al. 2015), which is exact for any n and m: it matches quantiles.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    n, m = len(a), len(b)
    # Between neighbouring levels, in units of 1 / (n m), the quantiles of both are constant.
    levels = np.union1d(m * np.arange(1, n + 1), n * np.arange(1, m + 1))
    weight = np.diff(levels, prepend=0) / (n * m)
    of_a, of_b = (levels - 1) // m, (levels - 1) // n
    directions = np.random.default_rng(seed).standard_normal((projections, a.shape[1]))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    squared = [weight @ (np.sort(a @ u)[of_a] - np.sort(b @ u)[of_b]) ** 2 for u in directions]
    return float(np.sqrt(np.mean(squared)))


def _nearest_mode(x: np.ndarray, modes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each point's nearest mode ``[n]``, and how far it is, as a share of the smallest distance
    between two modes ``[n]``."""
    from scipy.spatial import KDTree

    tree = KDTree(np.asarray(modes, np.float64))
    apart = tree.query(tree.data, k=2)[0][:, 1].min()
    distance, mode = tree.query(np.asarray(x, np.float64))
    return np.asarray(mode), distance / apart


def mode_coverage(x: np.ndarray, modes: np.ndarray) -> float:
    """The share of the ``modes [K, D]`` that the points ``x [n, D]`` cover.

    A mode is covered where at least a quarter of its equal share, n / K, lies in the ball around
    it. The radius of the balls is half the smallest distance between two modes: they touch.
    """
    mode, distance = _nearest_mode(x, modes)
    counts = np.bincount(mode[distance <= 1 / 2], minlength=len(modes))
    return float(np.mean(counts >= len(x) / (4 * len(modes))))


def mode_precision(x: np.ndarray, modes: np.ndarray) -> float:
    """The share of the points ``x [n, D]`` near one of the ``modes [K, D]``.

    Near is within a quarter of the smallest distance between two modes. Of the eight Gaussians and
    of the twenty-five that is three standard deviations (3.06 and 3.13): the "high quality samples"
    of Srivastava et al. 2017 (VEEGAN).
    """
    return float(np.mean(_nearest_mode(x, modes)[1] <= 1 / 4))


def mode_reverse_kl(x: np.ndarray, modes: np.ndarray) -> float:
    """KL(p || uniform) in nats, p_k the share of mode k among the points ``x [n, D]`` that are near
    one of the ``modes [K, D]``, as :func:`mode_precision` counts them; nan where none is.

    log K less the entropy of p: 0 where all modes have as many points, log 2 where half of them
    have none, log K where one has all. Lin et al. 2018 (PacGAN), where data take the place of the
    uniform distribution that they are drawn from.
    """
    mode, distance = _nearest_mode(x, modes)
    counts = np.bincount(mode[distance <= 1 / 4], minlength=len(modes))
    if not counts.any():
        return np.nan
    p = counts[counts > 0] / counts.sum()
    return float(np.log(len(modes)) + p @ np.log(p))


def mean_log_density(log_prob: Callable[[Array], Array], x: np.ndarray) -> tuple[float, float]:
    """The mean of log p, in nats, over the points ``x [n, D]`` where it is finite, and the share of
    those where it is not: points outside the support. Without any of the former the mean is -inf.

    ``log_prob`` maps ``[n, D]`` to ``[n]``. Minus the mean over draws from p is its entropy, and
    over samples the cross entropy of the model with p. It is too large where samples lie where p is
    low, and too small where they keep to where p is high.
    """
    values = np.asarray(log_prob(jnp.asarray(x, jnp.float32)), np.float64)
    finite = np.isfinite(values)
    return (float(values[finite].mean()) if finite.any() else -np.inf), float(np.mean(~finite))


class NotFinite(ValueError):
    """Raised where samples are no numbers that could be compared."""


def wasserstein_1(a: np.ndarray, b: np.ndarray) -> float:
    """The 1-Wasserstein distance of numbers ``a [n]`` and ``b [m]``, in their units."""
    from scipy.stats import wasserstein_distance

    return float(wasserstein_distance(np.asarray(a, np.float64), np.asarray(b, np.float64)))


def pairwise_distances(x: np.ndarray, mask: np.ndarray, limit: int = PAIRED_LIMIT) -> np.ndarray:
    """The distances ``[pairs]`` between two points of one set, of all sets ``x [n, N, D]`` with
    ``mask [n, N]``: the same however a set is turned or moved. Of a set with more points than
    ``limit`` as many, spread over them."""
    from scipy.spatial.distance import pdist

    points = [one[there] for one, there in zip(np.asarray(x, np.float64), mask, strict=True)]
    return np.concatenate([pdist(p[spread(len(p), limit)]) for p in points])


def mask_or_all(x: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    """Which points of sets ``x [n, N, D]`` are there ``[n, N]``: without a mask all."""
    return np.ones(x.shape[:2], bool) if mask is None else np.asarray(mask, bool)


def point_set_numbers(
    data: DataSet, samples: np.ndarray, mask: np.ndarray, how: str
) -> list[Number]:
    """Measures sets of points ``samples [n, N, D]`` with ``mask [n, N]`` by as many test sets.

    Distances of all points taken together, and of the distances between two points of one set. The
    numbers called ``..._of_test`` have validation sets in the place of samples.

    Raises:
      NotFinite: if a point that is there is not finite.
    """
    if not np.isfinite(samples[mask]).all():
        raise NotFinite("points of samples are not finite.")
    size = min(TEST_LIMIT, len(samples), len(data.test), len(data.validation))
    picked = spread(len(samples), size)
    drawn = samples[picked], mask[picked]
    batches = [some(source, size) for source in (data.test, data.validation)]
    test, other = ((batch["x"], mask_or_all(batch["x"], batch.get("mask"))) for batch in batches)

    def points(of: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        found = of[0][of[1]]
        return found[spread(len(found), SLICED_LIMIT)]

    clouds = [points(of) for of in (drawn, other, test)]
    pairs = [pairwise_distances(*of) for of in (drawn, other, test)]
    measures = {
        "sliced_wasserstein": (
            sliced_wasserstein,
            clouds,
            f"at most {SLICED_LIMIT} points of either taken together, 256 directions",
        ),
        "pairwise_distance_wasserstein": (
            wasserstein_1,
            pairs,
            "1-Wasserstein distance of the distances between two points of a set",
        ),
    }
    numbers = []
    if not all(map(len, pairs)):
        del measures["pairwise_distance_wasserstein"]  # of single points
    for name, (distance, (of_samples, of_others, of_test), protocol) in measures.items():
        against = f"against as many test sets, {protocol}, in the units of the data"
        of_data = distance(of_others, of_test)
        reference = Reference(of_data, "validation sets", "lower")
        by = f"{size} samples ({how}) {against}"
        numbers.append(Number(name, distance(of_samples, of_test), by, reference=reference))
        numbers.append(Number(f"{name}_of_test", of_data, f"{size} validation {against}"))
    return numbers


def point_numbers(data: DataSet, samples: np.ndarray, how: str) -> list[Number]:
    """Measures ``samples [n, D]`` by the test points and by what is known of their density.

    The numbers called ``..._of_test`` are what a perfect model would reach: other points of the
    data stand in the place of samples. ``how`` says how the samples were drawn and becomes part of
    each protocol. A mean density without any point in the support is left out.

    Raises:
      NotFinite: if a sample is not finite.
    """
    if not np.isfinite(samples).all():
        raise NotFinite("points of samples are not finite.")
    n, real = len(samples), some(data.train, TRAINING_LIMIT)["x"]
    scale = 2 / np.std(real, dtype=np.float64)

    def against_test(
        name: str, distance: Callable[..., float], limit: int, protocol: str
    ) -> list[Number]:
        size = min(limit, n, len(data.test), len(data.validation))
        test, other = (some(source, size)["x"] for source in (data.test, data.validation))
        drawn, of_data = samples[spread(n, size)], distance(other, test)
        by, known = f"{size} samples ({how}) {protocol}", f"{size} validation points {protocol}"
        reference = Reference(of_data, "validation points", "lower")
        return [
            Number(name, distance(drawn, test), by, reference=reference),
            Number(f"{name}_of_test", of_data, known),
        ]

    numbers = against_test(
        "chamfer_distance",
        lambda a, b: chamfer_distance(scale * a, scale * b),
        CHAMFER_LIMIT,
        "against as many test points, sum of squared distances, scaled so that "
        f"{len(real)} training points have standard deviation 2",
    )
    numbers += against_test(
        "sliced_wasserstein",
        sliced_wasserstein,
        SLICED_LIMIT,
        "against as many test points, 256 directions, in the units of the data",
    )
    test = some(data.test, TEST_LIMIT)["x"]
    clouds = (samples, "", f"{n} samples ({how})"), (test, "_of_test", f"{len(test)} test points")

    def of_each(name: str, measure: Callable[..., float], protocol: str) -> list[Number]:
        return [
            Number(f"{name}{of}", measure(x), f"{drawn}, {protocol}") for x, of, drawn in clouds
        ]

    if (modes := data.modes) is not None:
        k = len(modes)
        covered = f"share of {k} modes that have a quarter of 1/{k} of the points around them"
        near = f"share within 1/4 of the smallest distance between two of {k} modes of one"
        numbers += of_each("modes_covered", lambda x: mode_coverage(x, modes), covered)
        numbers += of_each("points_near_modes", lambda x: mode_precision(x, modes), near)
        uneven = f"nats, KL of the shares of {k} modes in the points near one from 1/{k}"
        numbers += of_each("modes_reverse_kl", lambda x: mode_reverse_kl(x, modes), uneven)
    if (log_prob := data.log_prob) is not None:
        mean = lambda x: mean_log_density(log_prob, x)[0]  # noqa: E731
        outside = lambda x: mean_log_density(log_prob, x)[1]  # noqa: E731
        numbers += of_each("mean_log_density", mean, "nats, mean of log p over those with p > 0")
        numbers += of_each("outside_support", outside, "share with p = 0")
    return [number for number in numbers if np.isfinite(number.value)]
