"""Networks of noisy data by their measures: which one serves a shape, and how labels reach it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import Array

from jaxgen import runner
from jaxgen.models.convolution import convolve
from jaxgen.models.dit import DiT
from jaxgen.models.embeddings import sinusoidal_embedding
from jaxgen.models.mlp import TimeMLP
from jaxgen.models.unet import UNet


@dataclass(frozen=True)
class Net:
    """The network."""

    network: str = "default"  # unet, dit or mlp (default: unet for images, mlp for points).
    channels: runner.Count = 32  # Of the U-Net's first level; the width of the others.
    multipliers: tuple[runner.Count, ...] = (1, 1)  # Channel factors, one a level of the U-Net.
    blocks: runner.Count = 1  # Residual blocks a level; of a DiT or a perceptron in all.
    # Heights of the U-Net's feature maps with self-attention (default: the smallest).
    attention: tuple[runner.Count, ...] | None = None
    heads: runner.Count = 1  # Of every attention.
    patch: runner.Count = 2  # Side of the squares that are a DiT's tokens.
    dropout: runner.Share = 0.0  # In the residual blocks of the U-Net.
    groups: runner.Count = 8  # Of the U-Net's group norms.
    # The embedding scales and shifts the group norms instead of being added.
    scale_shift: bool = False
    conditional: bool = True  # Condition on the class.
    # Share of training examples whose class is hidden, for classifier-free guidance.
    unlabelled: runner.Share = 0.0
    bfloat16: bool = False  # Compute in bfloat16; parameters stay float32.
    remat: bool = False  # Compute activations again for the gradient instead of keeping them.


@dataclass(frozen=True)
class Denoising:
    """A network (x_t ``[B, *shape]``, t ``[B]``) -> prediction that may be told labels ``[B]``.

    Label ``classes`` stands for a class that is hidden.
    """

    module: nn.Module
    shape: tuple[int, ...]
    classes: int | None  # that it is told; None where it is told none
    unlabelled: float = 0.0

    def init(self, key: Array) -> Any:
        """Variables; times are those of a chain of 1000 steps, or of any unit like it."""
        t = jnp.zeros((1,), jnp.int32)
        return self.module.init(key, jnp.zeros((1, *self.shape)), t, *self._told(t))

    def given(self, params: Any, labels: Array, **kwargs: Any) -> Callable[[Array, Array], Array]:
        """(x_t, t) -> the prediction, for these labels."""

        def predict(x_t: Array, t: Array) -> Array:
            x: Any = self.module.apply({"params": params}, x_t, t, *self._told(labels), **kwargs)
            return x

        return predict

    def training(self, params: Any, labels: Array, key: Array) -> Callable[[Array, Array], Array]:
        """The same in training: with dropout, and some of the labels hidden."""
        key_dropout, key_label = jax.random.split(key)
        if self.unlabelled > 0:
            hide = jax.random.bernoulli(key_label, self.unlabelled, labels.shape)
            labels = jnp.where(hide, self.hidden(labels), labels)
        return self.given(params, labels, train=True, rngs={"dropout": key_dropout})

    def hidden(self, labels: Array) -> Array:
        """The label of nobody, in the place of each of ``labels``."""
        return jnp.full_like(labels, self.classes or 0)

    def in_loops(self) -> Denoising:
        """The same network with convolutions whose gradient is fast inside a loop on CPU."""
        if not isinstance(self.module, UNet):
            return self
        return replace(self, module=self.module.clone(convolution=convolve))

    def check_guidance(self, weight: float) -> None:
        """Classifier-free guidance needs a network that was trained with and without the class.

        Raises:
          ValueError: if ``weight`` asks for guidance and this one was not.
        """
        if weight and (self.classes is None or not self.unlabelled):
            raise ValueError("guidance needs a conditional network trained with --unlabelled 0.1.")

    def _told(self, labels: Array) -> tuple[Array, ...]:
        return () if self.classes is None else (labels,)


def attended(net: Net, height: int) -> tuple[int, ...]:
    """The heights with self-attention of a U-Net for images so high.

    Raises:
      ValueError: for one that it does not have.
    """
    heights = [-(-height // 2**level) for level in range(len(net.multipliers))]
    chosen = heights[-1:] if net.attention is None else net.attention
    if missing := sorted(set(chosen) - set(heights)):
        raise ValueError(
            f"no feature map is {missing[0]} pixels high: give --attention one of "
            f"{', '.join(map(str, heights))}."
        )
    return tuple(chosen)


def denoising_network(
    net: Net, shape: tuple[int, ...], classes: int, predictions: int = 1
) -> Denoising:
    """The network of these measures for examples of ``shape``, with so many predictions each.

    Raises:
      ValueError: for a network that does not take such examples.
    """
    told = classes if net.conditional and classes > 1 else None
    unlabelled = net.unlabelled if told else 0.0
    rows = None if told is None else told + int(unlabelled > 0)
    fitting = {1: ("mlp",), 3: ("unet", "dit")}.get(len(shape), ())
    name = fitting[0] if net.network == "default" and fitting else net.network
    if name not in fitting:
        names = " or ".join(fitting) or "none"
        raise ValueError(f"no network '{name}' for examples of shape {shape}: there is {names}.")
    dtype, outputs = jnp.bfloat16 if net.bfloat16 else jnp.float32, predictions * shape[-1]
    common = {"num_classes": rows, "out_channels": outputs, "time_features": sinusoidal_embedding}
    module: nn.Module
    if name == "mlp":
        module = TimeMLP(net.channels, net.blocks, **common)
    elif name == "dit":
        module = DiT(
            net.patch, net.channels, net.blocks, net.heads, dtype=dtype, remat=net.remat, **common
        )
    else:
        module = UNet(
            channels=net.channels,
            multipliers=net.multipliers,
            blocks=net.blocks,
            attention=attended(net, shape[0]),
            heads=net.heads,
            dropout=net.dropout,
            groups=net.groups,
            scale_shift=net.scale_shift,
            dtype=dtype,
            remat=net.remat,
            **common,
        )
    return Denoising(module, shape, told, unlabelled)
