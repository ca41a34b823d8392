"""A small image classifier, whose last hidden layer is the feature space of the evaluation."""

from __future__ import annotations

from flax import linen as nn
from jax import Array


class Classifier(nn.Module):
    """Images ``[B, H, W, C]`` -> (logits ``[B, classes]``, features ``[B, features]``)."""

    classes: int
    channels: int = 32
    features: int = 64

    @nn.compact
    def __call__(self, x: Array, *, train: bool = False) -> tuple[Array, Array]:
        x = nn.relu(nn.Conv(self.channels, (3, 3))(x))
        x = nn.relu(nn.Conv(2 * self.channels, (3, 3), strides=2)(x))
        if min(x.shape[1:3]) > 4:
            x = nn.relu(nn.Conv(2 * self.channels, (3, 3), strides=2)(x))
        x = nn.Dropout(0.25, deterministic=not train)(x.reshape(x.shape[0], -1))
        features = nn.relu(nn.Dense(self.features)(x))
        return nn.Dense(self.classes)(features), features
