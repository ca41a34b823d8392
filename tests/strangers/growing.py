"""A regression whose network gets a second layer halfway, which begins as the identity."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxgen.data.records import Points
from jaxgen.runner import Data, Experiment, System, Train, make_optimizer


@dataclass(frozen=True)
class Config:
    data: Data = Data("swissroll")
    train: Train = Train(steps=16, batch=16, checkpoint_every=4, log_every=4)
    grows_at: int = 8


class Residual(nn.Module):
    depth: int

    @nn.compact
    def __call__(self, x):
        h = nn.Dense(8)(x)
        for _ in range(self.depth):
            h = h + nn.Dense(8, kernel_init=nn.initializers.zeros)(nn.relu(h))
        return nn.Dense(1)(h)[:, 0]


@dataclass(frozen=True, eq=False)
class Growing(System):
    grows_at: int
    depth: int = 1

    @property
    def network(self):
        return Residual(self.depth)

    def stages(self):
        return ((0, self), (self.grows_at, replace(self, depth=2)))

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, 2)))

    def grow(self, key, weights):
        old, fresh = weights.params, self.init(key)["params"]
        return {"params": {**old, "Dense_2": fresh["Dense_2"], "Dense_3": old["Dense_2"]}}

    def loss(self, params, batch, key, now):
        x = batch["x"]
        y = self.network.apply({"params": params}, x)
        return (y - jnp.sin(x[:, 0]) * x[:, 1]) ** 2, {}

    def sample(self, key, weights, given):
        x = jax.random.normal(key, (len(given["label"]), 2))
        return x.at[:, 1].set(self.network.apply({"params": weights.params}, x))


EXPERIMENT = Experiment(
    "growing",
    __doc__,
    {"swissroll": Config()},
    lambda config, data: Growing(data, make_optimizer(config.train), config.grows_at),
    kinds=(Points,),
)
