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


def spectral_norms(params: Any, vectors: Vectors) -> tuple[Array, Vectors]:
    """sum_i s_i over the kernels, s_i the largest singular value; and the vectors after.

    Each is found by one step of the power iteration from the vectors of the step before, along with
    which the weights change but slowly (Yoshida & Miyato 2017, algorithm 1); as a penalty it keeps
    the KL of deep hierarchies bounded (Vahdat & Kautz 2020, section 3.2). The gradient is
    sum_i u_i v_i^T, with the singular vectors held.
    """
    total, after = jnp.zeros(()), []
    leaves, tree = jax.tree.flatten(params)
    for kernel, v in zip(leaves, tree.flatten_up_to(vectors), strict=True):
        if v is None:
            after.append(None)
            continue
        held = jax.lax.stop_gradient(_matrix(kernel))
        u = _unit(held @ v)
        v = _unit(held.T @ u)
        total = total + u @ _matrix(kernel) @ v
        after.append(v)
    return total, jax.tree.unflatten(tree, after)
