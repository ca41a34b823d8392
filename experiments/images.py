"""What the diffusion experiments share: a U-Net on the images of a data set, and its samples."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from experiments.system import Probe, Train
from jaxgen.data.sources import DataSet, random_flip, to_signed
from jaxgen.diffusion.parameterization import Network
from jaxgen.models.convolution import convolve
from jaxgen.models.unet import UNet
from jaxgen.training.logging import progress
from jaxgen.training.step import TrainState, init_state


@dataclass(frozen=True)
class Net:
    """The U-Net."""

    channels: int = 32
    """Of the U-Net's first level."""
    multipliers: tuple[int, ...] = (1, 1)
    """Channel factors, one a level."""
    blocks: int = 1
    """Residual blocks a level."""
    attention: tuple[int, ...] = (4,)
    """Heights of feature maps with self-attention."""
    heads: int = 1
    """Of the self-attention."""
    dropout: float = 0.0
    """In the residual blocks."""
    groups: int = 8
    """Of the group norms."""
    scale_shift: bool = False
    """The embedding scales and shifts the group norms instead of being added."""
    conditional: bool = True
    """Condition on the class."""
    unlabelled: float = 0.0
    """Share of training images whose class is hidden, for classifier-free guidance."""
    flip: bool = False
    """Mirror training images at random."""
    bfloat16: bool = False
    """Compute in bfloat16; parameters stay float32."""
    remat: bool = False
    """Compute activations again for the gradient instead of keeping them."""


@dataclass(frozen=True)
class ImageModel:
    """A U-Net that predicts something of noisy images; all take labels, used where conditional.

    ``null`` is the label of an image whose class is hidden.
    """

    data: DataSet
    net: Net
    unet: UNet
    classes: int | None  # None where it is not conditional
    levels: int
    convolution: Callable[..., Array] = lax.conv_general_dilated  # of training steps

    @property
    def null(self) -> int:
        return self.data.classes

    def init(self, key: Array, optimizer: Any) -> TrainState:
        return init_state(self.unet.init(key, *self.arguments()), optimizer)

    def network(self, params: Any, labels: Array, **kwargs: Any) -> Network:
        """(x_t ``[B, H, W, C]``, t ``[B]``) -> the prediction, given labels ``[B]``."""

        def predict(x_t: Array, t: Array) -> Array:
            x: Any = self.unet.apply({"params": params}, x_t, t, self._given(labels), **kwargs)
            return x

        return predict

    def training(self, params: Any, batch: Any, key: Array) -> tuple[Array, Network]:
        """A batch's images in [-1, 1], and the network in training: dropout, hidden labels."""
        key_flip, key_dropout, key_label = jax.random.split(key, 3)
        x_0, labels = to_signed(batch["x"], self.levels), batch["label"]
        x_0 = random_flip(key_flip, x_0) if self.net.flip else x_0
        if self.net.unlabelled > 0:
            hidden = jax.random.bernoulli(key_label, self.net.unlabelled, labels.shape)
            labels = jnp.where(hidden, self.null, labels)
        trained = replace(self, unet=self.unet.clone(convolution=self.convolution))
        return x_0, trained.network(params, labels, train=True, rngs={"dropout": key_dropout})

    def arguments(self) -> tuple[Array, ...]:
        """What the network is called with for one image, but its parameters."""
        t = jnp.zeros((1,), jnp.int32)
        given = self._given(t)
        return (jnp.zeros((1, *self.data.shape)), t) + (() if given is None else (given,))

    def probe(self, loss: Callable, losses: Callable) -> Probe:
        """What ``diagnose`` looks at, given the training loss and the losses by time."""
        return Probe(
            {"UNet": (self.unet, self.arguments(), {})}, lambda state: state.params, loss, losses
        )

    def check_guidance(self, weight: float) -> None:
        """Classifier-free guidance needs a network that was trained with and without the class.

        Raises:
          ValueError: if ``weight`` asks for guidance and this one was not.
        """
        if weight and (self.classes is None or not self.net.unlabelled):
            raise ValueError("guidance needs a conditional network trained with --unlabelled 0.1.")

    def _given(self, labels: Array) -> Array | None:
        return None if self.classes is None else labels


def image_model(net: Net, data: DataSet, options: Train, predictions: int = 1) -> ImageModel:
    """The model of the options for the images of ``data``, which predicts so many numbers each."""
    looped = options.steps_per_call > 1 or options.accumulate > 1
    classes = data.classes if net.conditional and data.classes > 1 else None
    hides = classes is not None and net.unlabelled > 0
    unet = UNet(
        channels=net.channels,
        multipliers=net.multipliers,
        blocks=net.blocks,
        attention=net.attention,
        heads=net.heads,
        dropout=net.dropout,
        groups=net.groups,
        scale_shift=net.scale_shift,
        num_classes=classes + 1 if hides and classes else classes,
        out_channels=predictions * data.shape[-1],
        dtype=jnp.bfloat16 if net.bfloat16 else jnp.float32,
        remat=net.remat,
    )
    convolution = convolve if looped else lax.conv_general_dilated
    return ImageModel(data, net, unet, classes, data.levels or 256, convolution)


def film_frames(path: Array) -> np.ndarray:
    """About 50 of the states ``[n, N, H, W, C]`` of a sampler's path, and the last one."""
    states = np.asarray(path)
    return np.concatenate([states[:: max(1, len(states) // 50)], states[-1:]])


def in_batches(
    draw: Callable[[Array, Array], Array], key: Array, count: int, size: int, classes: int
) -> tuple[np.ndarray, np.ndarray]:
    """``count`` samples by ``draw(key, labels [size])``, the classes in turn, and their labels."""
    size = min(size, count)
    labels = jnp.arange(math.ceil(count / size) * size) % max(classes, 1)
    parts = []
    with progress("sampling", count) as advance:
        for i, chunk in enumerate(labels.reshape(-1, size)):
            parts.append(jax.device_get(draw(jax.random.fold_in(key, i), chunk)))
            advance(size)
    return np.concatenate(parts)[:count], np.asarray(labels[:count])
