"""Diffusion of point sets of differing size: a masked network of sets, asked for sizes."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.data.records import DataSet, Points, conditions_of, point_sets
from jaxgen.diffusion.parameterization import denoiser
from jaxgen.diffusion.samplers import ddim, sample
from jaxgen.diffusion.schedules import FlowMatching, uniform_grid
from jaxgen.runner import Data, Experiment, Sampling, System, Train, make_optimizer, samples

LARGEST = 6


@dataclass(frozen=True)
class Config:
    data: Data = Data("polygons")
    train: Train = Train(steps=300, batch=64, learning_rate=3e-3, steps_per_call=10)
    sampling: Sampling = Sampling(samples=40, sample_batch=20)


def polygons(options):
    """Corners of regular polygons on the unit circle, of 3 to 6 corners, turned at random."""
    sizes = 3 + np.arange(1200) % 4
    turns = np.random.default_rng(0).uniform(0, 2 * np.pi, len(sizes))
    pairs = zip(sizes, turns, strict=True)
    angle = np.concatenate([turn + 2 * np.pi * np.arange(k) / k for k, turn in pairs])
    points = np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)
    sets = point_sets({"x": points}, sizes, LARGEST)
    ask = lambda n: conditions_of(sets, ("mask",), n)
    return DataSet("polygons", Points((LARGEST, 2)), sets, sets, sets, ask=ask)


class Sets(nn.Module):
    @nn.compact
    def __call__(self, x, t, mask):  # [B, N, 2], [B], [B, N, 1] -> [B, N, 2]
        size = mask.sum(1, keepdims=True)
        told = jnp.concatenate([t[:, None, None], t[:, None, None] ** 2, size / LARGEST], axis=2)
        h, told = nn.Dense(64)(x), nn.Dense(64)(told)
        for _ in range(3):
            mean = (h * mask).sum(1, keepdims=True) / size
            h += nn.Dense(64)(nn.swish(nn.Dense(64)(jnp.tanh(h)) + nn.Dense(64)(mean) + told))
        return nn.Dense(2)(h) * mask


@dataclass(frozen=True, eq=False)
class PointSets(System):
    network: Sets

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, 2, 2)), jnp.zeros(1), jnp.ones((1, 2, 1)))

    def velocity(self, params, mask):
        return lambda x, t: self.network.apply({"params": params}, x, t, mask[..., None])

    def loss(self, params, batch, key, now):
        x_0, mask = batch["x"], batch["mask"]
        key_t, key = jax.random.split(key)
        eps = jax.random.normal(key, x_0.shape) * mask[..., None]
        t = jax.random.uniform(key_t, (len(x_0),))
        x_t = x_0 + t[:, None, None] * (eps - x_0)
        error = (self.velocity(params, mask)(x_t, t) - (eps - x_0)) ** 2
        return error.sum((1, 2)) / mask.sum(1), {} if now.train else {"t": t}

    def sample(self, key, weights, given):
        mask = given["mask"]
        noise = jax.random.normal(key, (*mask.shape, 2)) * mask[..., None]
        denoise = denoiser(self.velocity(weights.params, mask), FlowMatching(), "velocity")
        return sample(key, denoise, FlowMatching(), noise, uniform_grid(20), ddim())


def build(config, data):
    return PointSets(data, make_optimizer(config.train), Sets())


EXPERIMENT = Experiment(
    "point_sets", __doc__, {"": Config()}, build, (samples,), kinds=(Points,), load=polygons
)
