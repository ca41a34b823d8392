"""What is asked of the weights of a network themselves."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

Vectors = Any  # a tree: for every kernel a unit vector over its outputs, None for what is no kernel


def _matrix(kernel: Array) -> Array:
    """A kernel ``[..., in, out]`` as a matrix, as a convolution is one over its patches."""
    return kernel.reshape(-1, kernel.shape[-1])


def _unit(x: Array) -> Array:
    return x / jnp.maximum(jnp.linalg.norm(x), 1e-12)


def power_vectors(key: Array, params: Any) -> Vectors:
    """Where the power iteration of :func:`spectral_norms` starts."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    drawn = [
        _unit(jax.random.normal(k, w.shape[-1:], w.dtype)) if w.ndim > 1 else None
        for k, w in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, drawn)


def power_iteration(kernel: Array, v: Array) -> tuple[Array, Array]:
    """The largest singular value of a kernel, by one step from v ``[out]``; and the v after.

    u = W v / |W v|, v = W^T u / |W^T u|, s = u^T W v (Miyato et al. 2018, algorithm 1). The
    gradient of s is u v^T, with the singular vectors held.
    """
    held = jax.lax.stop_gradient(_matrix(kernel))
    u = _unit(held @ v)
    v = _unit(held.T @ u)
    return u @ _matrix(kernel) @ v, v


def spectral_norms(params: Any, vectors: Vectors) -> tuple[Array, Vectors]:
    """sum_i s_i over the kernels, s_i the largest singular value; and the vectors after.

    Each is found by one step of the power iteration from the vectors of the step before, along with
    which the weights change but slowly (Yoshida & Miyato 2017, algorithm 1); as a penalty it keeps
    the KL of deep hierarchies bounded (Vahdat & Kautz 2020, section 3.2).
    """
    norms, after = _singular_values(params, vectors)
    return sum(jax.tree.leaves(norms), jnp.zeros(())), after


def spectrally_normalized(params: Any, vectors: Vectors) -> tuple[Any, Vectors]:
    """The parameters with W / s for every kernel W; and the vectors after.

    Miyato et al. 2018, eq. 8: linear maps become 1-Lipschitz, those of convolutions as matrices
    over their patches. The gradient goes through s (eq. 10).
    """
    norms, after = _singular_values(params, vectors)
    divided = lambda w, s: w if s is None else w / jnp.maximum(s, 1e-12)  # noqa: E731
    return jax.tree.map(divided, params, norms), after


def _singular_values(params: Any, vectors: Vectors) -> tuple[Any, Vectors]:
    """By :func:`power_iteration`; None of what is no kernel."""
    leaves, tree = jax.tree.flatten(params)
    found = [
        (None, None) if v is None else power_iteration(kernel, v)
        for kernel, v in zip(leaves, tree.flatten_up_to(vectors), strict=True)
    ]
    norms, after = zip(*found, strict=True)
    return jax.tree.unflatten(tree, norms), jax.tree.unflatten(tree, after)


def orthogonality(params: Any) -> Array:
    """sum ||W^T W * (1 - I)||_F^2 over the kernels: filters at right angles, of any norm.

    Brock et al. 2019 (BigGAN), eq. 3, whose weight is 1e-4.
    """
    total = jnp.zeros(())
    for kernel in jax.tree.leaves(params):
        if kernel.ndim > 1:
            products = _matrix(kernel).T @ _matrix(kernel)
            total = total + jnp.sum((products * (1 - jnp.eye(len(products)))) ** 2)
    return total


def running_mean(mean: Any, params: Any, count: Array | int) -> Any:
    """The mean of ``count`` parameters and these."""
    return jax.tree.map(lambda m, p: m + (p - m) / (count + 1), mean, params)


def historical_averaging(params: Any, mean: Any) -> Array:
    """||theta - mean of all theta so far||^2 (Salimans et al. 2016, section 3.3)."""
    squares = jax.tree.map(lambda p, m: jnp.sum((p - jax.lax.stop_gradient(m)) ** 2), params, mean)
    return sum(jax.tree.leaves(squares), jnp.zeros(()))
