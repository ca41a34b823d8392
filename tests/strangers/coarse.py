"""The first stage of a cascade: which square of a board a point is in."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.data.records import Points
from jaxgen.runner import Data, Experiment, Sampling, System, Train, make_optimizer

CELLS, SIDE = 8, 2.0  # squares of side 2 on the board [-8, 8]^2


def cell(x):
    return jnp.floor(x / SIDE).astype(jnp.int32) + CELLS // 2


def centre(i):
    return (i - CELLS // 2 + 0.5) * SIDE


@dataclass(frozen=True)
class Config:
    data: Data = Data("checkerboard")
    train: Train = Train(steps=300, batch=256, learning_rate=3e-2, checkpoint_every=300)
    sampling: Sampling = Sampling(samples=2000, sample_batch=1000)


@dataclass(frozen=True, eq=False)
class Coarse(System):
    def init(self, key):
        return {"params": {"logits": jnp.zeros(CELLS * CELLS)}}

    def loss(self, params, batch, key, now):
        i = cell(batch["x"])
        return -jax.nn.log_softmax(params["logits"])[i[:, 0] * CELLS + i[:, 1]], {}

    def sample(self, key, weights, given):
        i = jax.random.categorical(key, weights.params["logits"], shape=given["label"].shape)
        return centre(jnp.stack([i // CELLS, i % CELLS], axis=1))


EXPERIMENT = Experiment(
    "coarse",
    __doc__,
    {"checkerboard": Config()},
    lambda config, data: Coarse(data, make_optimizer(config.train)),
    kinds=(Points,),
)
