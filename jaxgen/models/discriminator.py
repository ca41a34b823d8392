"""A discriminator as a body, which sees features, and a head, which says what it makes of them.

Any body goes with any head, and both networks of a GAN are called alike: ``(x, labels, train=)``,
with labels ``[B]`` that those who are not told of classes leave alone.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

Initializer = nn.initializers.Initializer
WEIGHTS = nn.initializers.lecun_normal()


class Judged(NamedTuple):
    """What a discriminator says of examples."""

    logits: Array  # [B], real above fake
    features: Array  # [B, F], what its last layer saw
    classes: Array | None = None  # logits [B, K] of an auxiliary classifier


class Linear(nn.Module):
    """features ``[B, F]`` -> logits ``[B]``, which know of no classes."""

    init_kernel: Initializer = WEIGHTS

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None) -> Judged:
        return Judged(nn.Dense(1, kernel_init=self.init_kernel)(features)[:, 0], features)


class Projection(nn.Module):
    """y^T V phi(x) + psi(phi(x)): the features along a vector of the class, and a linear map.

    Miyato & Koyama 2018, eq. 3: the logit of p(y|x) p(x) against the same of samples, where either
    p(y|x) is log-linear in the features.
    """

    classes: int
    init_kernel: Initializer = WEIGHTS

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None) -> Judged:
        logits = nn.Dense(1, kernel_init=self.init_kernel)(features)[:, 0]
        embed = nn.Embed(self.classes, features.shape[-1], embedding_init=self.init_kernel)
        return Judged(logits + jnp.sum(embed(labels) * features, axis=-1), features)


class Auxiliary(nn.Module):
    """Real or fake, and which class: two linear maps of the features (Odena et al. 2017)."""

    classes: int
    init_kernel: Initializer = WEIGHTS

    @nn.compact
    def __call__(self, features: Array, labels: Array | None = None) -> Judged:
        logits = nn.Dense(1, kernel_init=self.init_kernel, name="source")(features)[:, 0]
        classes = nn.Dense(self.classes, kernel_init=self.init_kernel, name="class")(features)
        return Judged(logits, features, classes)


class Discriminator(nn.Module):
    """Examples ``[B, ...]`` -> :class:`Judged`: ``head(among(body(x)), labels)``."""

    body: nn.Module  # (x, labels, train=) -> features [B, F]
    head: nn.Module  # (features, labels) -> Judged
    among: nn.Module | None = None  # features [B, F] -> [B, G], of each among those of its batch

    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Judged:
        features = self.body(x, labels, train=train).reshape(x.shape[0], -1)
        if self.among is not None:
            features = self.among(features)
        return self.head(features, labels)


class Reconstructing(nn.Module):
    """A discriminator that is an autoencoder: its logits are errors, which are large for fakes.

    BEGAN's (Berthelot et al. 2017, eq. 1 with eta = 1); features are its codes. The logits of this
    one are to be made small for data.
    """

    encoder: nn.Module  # (x, labels, train=) -> codes [B, F]
    decoder: nn.Module  # (codes, labels, train=) -> [B, ...]

    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Judged:
        codes = self.encoder(x, labels, train=train).reshape(x.shape[0], -1)
        apart = jnp.abs(x - self.decoder(codes, labels, train=train))
        return Judged(apart.reshape(x.shape[0], -1).mean(axis=-1), codes)


class Concatenated(nn.Module):
    """A network that sees its class beside its input: one-hot, as K more numbers or channels.

    Mirza & Osindero 2014. ``[B, D]`` becomes ``[B, D + K]``, ``[B, H, W, C]`` gets constant maps.
    """

    network: nn.Module  # (x, labels, train=) -> ...
    classes: int

    def __call__(self, x: Array, labels: Array | None = None, *, train: bool = False) -> Array:
        told = jax.nn.one_hot(labels, self.classes, dtype=x.dtype)
        told = told.reshape(x.shape[0], *[1] * (x.ndim - 2), self.classes)
        maps = jnp.broadcast_to(told, (*x.shape[:-1], self.classes))
        return self.network(jnp.concatenate([x, maps], axis=-1), labels, train=train)


class Minibatch(nn.Module):
    """features ``[B, F]`` -> ``[B, F + kernels]``: how near each is to the rest of its batch.

    o_b(x_i) = sum over j of exp(-||M_ib - M_jb||_1) of learned maps M ``[B, kernels, width]``
    (Salimans et al. 2016, section 3.2): samples that are all alike tell themselves by it. Here
    without the 1 of each with itself, and the mean of the others, so that batches of all sizes are
    alike.
    """

    kernels: int = 16
    width: int = 8

    @nn.compact
    def __call__(self, features: Array) -> Array:
        m = nn.Dense(self.kernels * self.width, use_bias=False)(features)
        m = m.reshape(features.shape[0], self.kernels, self.width)
        apart = jnp.abs(m[:, None] - m[None]).sum(axis=-1)  # [B, B, kernels]
        near = (jnp.exp(-apart).sum(axis=1) - 1) / max(features.shape[0] - 1, 1)
        return jnp.concatenate([features, near], axis=-1)
