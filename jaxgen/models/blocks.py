"""What the blocks of the U-Net and of the transformer have in common."""

from __future__ import annotations

from collections.abc import Callable

import jax
from flax import linen as nn
from jax import Array


def attend(q: Array, k: Array, v: Array, heads: int) -> Array:
    """Softmax attention in ``heads`` groups of channels: q, k, v and the result ``[B, N, C]``.

    Vaswani et al. 2017, section 3.2, without its linear maps; the softmax is in float32.

    Raises:
      ValueError: if the heads do not divide the channels.
    """
    channels = q.shape[-1]
    if channels % heads != 0:
        raise ValueError(f"{heads} attention heads do not divide {channels} channels.")
    split = lambda z: z.reshape(*z.shape[:2], heads, channels // heads)  # noqa: E731
    return jax.nn.dot_product_attention(split(q), split(k), split(v)).reshape(q.shape)


def applier(remat: bool) -> Callable[..., Array]:
    """``(block, *arrays) -> block(*arrays)``; with ``remat``, activations inside the block are
    computed again for its gradient instead of kept (Chen et al. 2016, section 4). That is for
    accelerators: XLA on CPU (JAX 0.10) computes them again early enough to save nothing.
    """

    def apply(block: nn.Module, *arrays: Array) -> Array:
        return block(*arrays)  # pyright: ignore[reportCallIssue]

    # The function is lifted, not the class: the class's new name would be in the parameter tree.
    return nn.remat(apply) if remat else apply
