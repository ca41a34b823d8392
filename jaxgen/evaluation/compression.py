"""What is kept of data in so many bits by principal components: a measure to be beaten."""

from __future__ import annotations

import numpy as np

# Of a standard normal by a uniform quantizer of 2^b levels, b = 0, 1, ...: the best step, and the
# mean squared error that it leaves (Max 1960, table II).
STEP = (0.0, 1.5958, 0.9957, 0.5860, 0.3352, 0.1881, 0.1041, 0.0569, 0.0308)
LEFT = (1.0, 0.3634, 0.1188, 0.03744, 0.01154, 0.003495, 0.001041, 0.0003035, 0.0000869)


def bits_of_components(variance: np.ndarray, bits: int) -> np.ndarray:
    """How ``bits`` are shared among components of these variances ``[D]``: ``[D]``, at most 8 each.

    One after the other goes to where it takes off the most.
    """
    left, found = np.asarray(LEFT), np.zeros(len(variance), int)
    gain = variance * (left[0] - left[1])
    for _ in range(min(bits, 8 * len(variance))):
        i = int(np.argmax(gain))
        found[i] += 1
        b = found[i]
        gain[i] = variance[i] * (left[b] - left[b + 1]) if b + 1 < len(left) else -np.inf
    return found


def quantized_pca(train: np.ndarray, test: np.ndarray, bits: int) -> np.ndarray:
    """``test [N, D]`` as ``bits`` bits an example keep it, by the components of ``train [M, D]``.

    Each component is quantized evenly around its mean, with its share of the bits.
    """
    from sklearn.decomposition import PCA

    pca = PCA(min(train.shape[1], len(train), bits)).fit(train)
    share = bits_of_components(pca.explained_variance_, bits)
    z, std = pca.transform(test), np.sqrt(pca.explained_variance_)
    step = np.asarray(STEP)[share] * std
    levels = 2.0**share
    cell = np.floor(z / np.where(step > 0, step, 1.0))
    cell = np.clip(cell, -levels / 2, levels / 2 - 1) + 0.5
    return pca.inverse_transform(np.where(share > 0, cell * step, 0.0))
