"""Exact models of vectors, entry by entry: a belief network of neighbours, and NADE.

Both take x ``[B, D]`` and answer maps ``[B, D, maps]``, of which those of entry i depend on the
entries of x before i alone. :class:`~jaxgen.models.made.MADE` is the third of them.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array


class FVBN(nn.Module):
    """A fully visible belief network: each entry is linear in the ``reach`` entries before it.

    With the logits of bits that is a logistic regression for each (Frey 1998, "Graphical models for
    machine learning and digital communication"; Neal 1992), with ``reach = None`` of all before.
    """

    maps: int = 1
    reach: int | None = None

    @nn.compact
    def __call__(self, x: Array) -> Array:
        entries = x.shape[-1]
        reach = entries - 1 if self.reach is None else min(self.reach, entries - 1)
        zeros = nn.initializers.zeros_init()
        weights = self.param("weights", zeros, (entries, max(reach, 1), self.maps))
        bias = self.param("bias", zeros, (entries, self.maps))
        padded = jnp.pad(x, ((0, 0), (max(reach, 1), 0)))
        places = jnp.arange(entries)[:, None] + jnp.arange(max(reach, 1))[None]
        return jnp.einsum("bdj,djm->bdm", padded[:, places], weights) + bias[None]


class NADE(nn.Module):
    """One hidden layer for each entry, whose weights all entries share (Larochelle & Murray 2011).

    p(x_i|x_<i) comes of h_i = sigmoid(c + W_{.,<i} x_<i), and a_i = c + W_{.,<i} x_<i of the one
    before: O(D hidden) in all, as a scan over the entries (eq. 8 to 10).
    """

    maps: int = 1
    hidden: int = 500

    @nn.compact
    def __call__(self, x: Array) -> Array:
        entries, init = x.shape[-1], nn.initializers.lecun_normal()
        zeros = nn.initializers.zeros_init()
        w = self.param("w", init, (entries, self.hidden))
        c = self.param("c", zeros, (self.hidden,))
        v = self.param("v", zeros, (entries, self.hidden, self.maps))
        b = self.param("b", zeros, (entries, self.maps))

        return jnp.swapaxes(recurrence(w, v, c, x), 0, 1) + b[None]


@jax.custom_vjp
def recurrence(w: Array, v: Array, c: Array, x: Array) -> Array:
    """sigmoid(c + W_{.,<i} x_<i) V_i ``[D, B, maps]``, entry after entry.

    Its gradient runs the recurrence backwards, a_i = a_{i+1} - W_{.,i} x_i: what a scan keeps for
    it would be D times as large as a, and took four times as long to write and read.
    """
    return _forwards(w, v, c, x)[1]


def _forwards(w: Array, v: Array, c: Array, x: Array) -> tuple[Array, Array]:
    """The last a ``[B, hidden]``, and the maps."""

    def entry(a: Array, row: tuple[Array, ...]) -> tuple[Array, Array]:
        x_i, w_i, v_i = row
        return a + x_i[:, None] * w_i[None], nn.sigmoid(a) @ v_i

    return jax.lax.scan(entry, jnp.broadcast_to(c, (x.shape[0], len(c))), (x.T, w, v))


def _kept(w: Array, v: Array, c: Array, x: Array) -> tuple[Array, tuple[Array, ...]]:
    a, maps = _forwards(w, v, c, x)
    return maps, (w, v, x, a)


def _backwards(kept: tuple[Array, ...], d_maps: Array) -> tuple[Array, ...]:
    w, v, x, a = kept

    def entry(carry: tuple[Array, Array], row: tuple[Array, ...]) -> tuple[Any, Any]:
        (a, d_a), (x_i, w_i, v_i, d_i) = carry, row
        d_x, d_w = d_a @ w_i, x_i @ d_a
        a = a - x_i[:, None] * w_i[None]
        h = nn.sigmoid(a)
        return (a, d_a + h * (1 - h) * (d_i @ v_i.T)), (d_x, d_w, h.T @ d_i)

    start = (a, jnp.zeros_like(a))
    (_, d_a), found = jax.lax.scan(entry, start, (x.T, w, v, d_maps), reverse=True)
    d_x, d_w, d_v = found
    return d_w, d_v, d_a.sum(axis=0), d_x.T


recurrence.defvjp(_kept, _backwards)
