"""Networks of noisy data by their measures: which one serves a shape, and how labels reach it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from jaxgen.systems.conditions import (
    Condition,
    Conditions,
    dropped,
    label,
    nulled,
    selected,
)


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
    """A network (x_t ``[B, *shape]``, t ``[B]``) -> prediction, with the conditions that it takes.

    ``module(x_t, t, train=..., **conditions)`` is any Linen module; ``dropped`` is the share of
    training examples whose conditions are replaced by their nulls, for classifier-free guidance.
    """

    module: nn.Module
    shape: tuple[int, ...]
    conditions: tuple[Condition, ...] = ()
    dropped: float = 0.0
    # From the conditions to what the module is called with: a frozen text encoder.
    embed: Callable[[dict[str, Any]], Mapping[str, Any]] = lambda conditions: conditions

    def init(self, key: Array) -> Any:
        """Variables; times are those of a chain of 1000 steps, or of any unit like it."""
        t = jnp.zeros((1,), jnp.int32)
        told: Any = self.arguments({c.name: c.empty(1) for c in self.conditions})
        return self.module.init(key, jnp.zeros((1, *self.shape)), t, **told)

    def arguments(self, conditions: Conditions) -> dict[str, Any]:
        """What the module is called with beside x_t and t."""
        names = {c.name: c.argument or c.name for c in self.conditions}
        told = self.embed(selected(self.conditions, conditions))
        return {names.get(name, name): x for name, x in told.items()}

    def given(
        self, params: Any, conditions: Conditions, **kwargs: Any
    ) -> Callable[[Array, Array], Array]:
        """(x_t, t) -> the prediction, for these conditions."""
        told = self.arguments(conditions)

        def predict(x_t: Array, t: Array) -> Array:
            x: Any = self.module.apply({"params": params}, x_t, t, **told, **kwargs)
            return x

        return predict

    def training(
        self, params: Any, conditions: Conditions, key: Array
    ) -> Callable[[Array, Array], Array]:
        """The same in training: with dropout in the network, and some conditions dropped."""
        key_dropout, key_drop = jax.random.split(key)
        own = selected(self.conditions, conditions)
        if self.dropped > 0:
            own = dropped(key_drop, self.conditions, own, self.dropped)
        return self.given(params, own, train=True, rngs={"dropout": key_dropout})

    def null(self, conditions: Conditions) -> Conditions:
        """The null conditions of as many examples."""
        return nulled(self.conditions, conditions)

    @property
    def guidable(self) -> bool:
        """Whether it was trained with and without its conditions."""
        return self.dropped > 0 and any(c.null is not None for c in self.conditions)

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
        if weight and not self.guidable:
            raise ValueError("guidance needs a conditional network trained with --unlabelled 0.1.")


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
    return Denoising(module, shape, () if told is None else (label(told),), unlabelled)
