"""Conditions of any kind for a network of noisy data: label, vector, sequence, picture, size.

:class:`Conditioned` is put around a network that takes labels and one vector, such as the U-Net,
the DiT or the time MLP, and makes the vector and further channels of what else is given.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen.models.embeddings import sinusoidal_embedding


class AttentionPooling(nn.Module):
    """A sequence ``[B, L, D]`` with a mask ``[B, L]`` -> ``[B, width]``, by a learned query.

    Zeros where no token is there. Neither tokens outside the mask nor the order matter: positions
    are part of what a text encoder answers.
    """

    width: int

    @nn.compact
    def __call__(self, sequence: Array, mask: Array) -> Array:
        score = nn.Dense(1, use_bias=False)(sequence)[..., 0]  # a bias would cancel
        score = jnp.where(mask, score, -jnp.inf)
        none = ~mask.any(axis=1, keepdims=True)
        weight = jnp.where(none, 0.0, jax.nn.softmax(jnp.where(none, 0.0, score), axis=1))
        value = jnp.where(mask[..., None], nn.Dense(self.width, use_bias=False)(sequence), 0.0)
        return jnp.einsum("bl,bld->bd", weight, value)


class Conditioned(nn.Module):
    """``network(x, t, labels, condition)`` for named conditions, each of them optional.

    The vector, the pooled sequence and the size are added up to the network's ``condition [B,
    width]``, and the picture is resized and concatenated to x along its channels (Saharia et al.
    2021, SR3). Which are given at initialization must be given ever after: what is dropped is
    replaced by its null.

    Attributes:
      network: with ``condition_dim = width`` where there is anything but labels and pictures, and
        ``out_channels`` set where there is a picture.
      width: of the condition.

    Raises:
      ValueError: for a sequence without its mask.
    """

    network: nn.Module
    width: int = 64

    @nn.compact
    def __call__(
        self,
        x: Array,
        t: Array,
        labels: Array | None = None,
        *,
        vector: Array | None = None,  # [B, D]
        sequence: Array | None = None,  # [B, L, D]
        mask: Array | None = None,  # [B, L], of the sequence
        picture: Array | None = None,  # [B, h, w, c]
        size: Array | None = None,  # [B] or [B, K], whole numbers
        train: bool = False,
    ) -> Array:
        told = []
        if vector is not None:
            told.append(nn.Dense(self.width, use_bias=False, name="vector")(vector))
        if sequence is not None:
            if mask is None:
                raise ValueError(
                    "a sequence comes with a mask [B, L] of the tokens that are there."
                )
            told.append(AttentionPooling(self.width, name="sequence")(sequence, mask))
        if size is not None:
            numbers = size.reshape(size.shape[0], -1)
            features = jnp.concatenate(
                [sinusoidal_embedding(numbers[:, i], 32) for i in range(numbers.shape[1])], axis=1
            )
            told.append(nn.Dense(self.width, use_bias=False, name="size")(features))
        if picture is not None:
            shape = (*x.shape[:3], picture.shape[-1])
            resized = jax.image.resize(picture, shape, "nearest").astype(x.dtype)
            x = jnp.concatenate([x, resized], axis=-1)
        condition = sum(told[1:], told[0]) if told else None
        how = {} if condition is None else {"condition": condition}
        return self.network(x, t, labels, **how, train=train)
