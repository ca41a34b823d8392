"""The second stage of a cascade: where in its square a point is, the square being drawn by another
run."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from strangers.coarse import cell, centre

from jaxgen.data.records import Points
from jaxgen.runner import (
    Data,
    Experiment,
    RunReference,
    Sampling,
    System,
    Train,
    Trained,
    make_optimizer,
    quality,
)


@dataclass(frozen=True)
class Config:
    data: Data = Data("checkerboard")
    train: Train = Train(steps=300, batch=256, learning_rate=3e-2, checkpoint_every=300)
    sampling: Sampling = Sampling(samples=2000, sample_batch=1000)
    base: RunReference = RunReference()  # The run of the first stage.


@dataclass(frozen=True, eq=False)
class Fine(System):
    base: Trained

    def init(self, key):
        return {"params": {"log_half": jnp.full((2,), -1.0)}}

    def loss(self, params, batch, key, now):
        offset = jnp.abs(batch["x"] - centre(cell(batch["x"])))
        return ((jnp.exp(params["log_half"])[None] - 2 * offset) ** 2).sum(
            1
        ), {}  # half = 2 E|offset|

    def sample(self, key, weights, given):
        key_base, key = jax.random.split(key)
        x = self.base.system.sample(key_base, self.base.weights, given)
        half = jnp.exp(weights.params["log_half"])[None]
        return x + half * jax.random.uniform(key, x.shape, minval=-1.0)


def build(config, data):
    return Fine(data, make_optimizer(config.train), config.base.trained)


EXPERIMENT = Experiment(
    "cascade", __doc__, {"checkerboard": Config()}, build, measures=(quality,), kinds=(Points,)
)
