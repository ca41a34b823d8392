"""Sets of atoms: an equivariant network, noise without centre of mass, requested sizes, and two
arrays as a sample (Hoogeboom et al. 2022)."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.data.records import DataSet, Points, conditions_of, point_sets
from jaxgen.diffusion.parameterization import denoiser
from jaxgen.diffusion.samplers import ddim, sample
from jaxgen.diffusion.schedules import FlowMatching, uniform_grid
from jaxgen.losses.denoising import denoising_loss
from jaxgen.runner import (
    Data,
    Experiment,
    Sampling,
    System,
    Train,
    make_optimizer,
    quality,
    samples,
)

LARGEST = 4


@dataclass(frozen=True)
class Config:
    data: Data = Data("stars")
    train: Train = Train(steps=8, batch=16, learning_rate=3e-3, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)


def stars(options):
    """2 to 4 atoms about their centre, all a unit away, turned at random; of two kinds in turn."""
    rng = np.random.default_rng(0)
    sizes = 2 + np.arange(600) % 3
    points, kinds = [], []
    for size in sizes:
        angle = rng.uniform(0, 2 * np.pi) + 2 * np.pi * np.arange(size) / size
        flat = np.stack([np.cos(angle), np.sin(angle), np.zeros(size)], axis=1)
        turned, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        points.append(flat @ turned)
        kinds.append(np.arange(size) % 2)
    x = np.concatenate(points).astype(np.float32)
    arrays = {"x": x, "kind": np.concatenate(kinds).astype(np.int32)}
    sets = point_sets(arrays, sizes, LARGEST)
    ask = partial(conditions_of, sets, ("mask",))
    return DataSet("stars", Points((LARGEST, 3)), sets, sets, sets, ask=ask)


def centred(mask):
    """Projects sets ``[B, N, 3]`` to those without centre of mass, of the points that are there."""

    def project(x):
        m = mask[..., None]
        return (x - (x * m).sum(1, keepdims=True) / m.sum(1, keepdims=True)) * m

    return project


def without_centre(mask):
    return lambda key, x: centred(mask)(jax.random.normal(key, x.shape, x.dtype))


class Equivariant(nn.Module):
    @nn.compact
    def __call__(self, x, t, mask):  # [B, N, 3], [B], [B, N] -> [B, N, 3], [B, N]
        apart = x[:, :, None] - x[:, None]
        squared = (apart**2).sum(-1, keepdims=True)
        told = jnp.broadcast_to(t[:, None, None, None], squared.shape)
        apart = apart / (1 + jnp.sqrt(squared + 1e-8))
        h = nn.swish(nn.Dense(16)(jnp.concatenate([jnp.log1p(squared), told], axis=-1)))
        both = (mask[:, :, None] & mask[:, None])[..., None]
        moved = (apart * nn.Dense(1)(h) * both).sum(2)
        kind = nn.Dense(1)((h * both).sum(2))[..., 0]
        return moved * mask[..., None], kind


@dataclass(frozen=True, eq=False)
class Atoms(System):
    network: nn.Module

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, 2, 3)), jnp.zeros(1), jnp.ones((1, 2), bool))

    def velocity(self, params, mask):
        return lambda x, t: self.network.apply({"params": params}, x, t, mask)[0]

    def loss(self, params, batch, key, now):
        key_t, key = jax.random.split(key)
        x, mask = batch["x"], batch["mask"]
        t = jax.random.uniform(key_t, (len(x),))
        how = {"target": "velocity", "noise": without_centre(mask)}
        error = denoising_loss(key, self.velocity(params, mask), FlowMatching(), x, t, **how)
        _, logit = self.network.apply({"params": params}, x, jnp.zeros(len(x)), mask)
        kind = jnp.where(mask, jax.nn.softplus(jnp.where(batch["kind"] > 0, -logit, logit)), 0.0)
        return error + kind.sum(1), {} if now.train else {"t": t}

    def sample(self, key, weights, given):
        key_start, key = jax.random.split(key)
        mask, noise = given["mask"], without_centre(given["mask"])
        denoise = denoiser(self.velocity(weights.params, mask), FlowMatching(), "velocity")
        start = noise(key_start, jnp.zeros((*mask.shape, 3)))
        grid = uniform_grid(8)
        x = sample(key, denoise, FlowMatching(), start, grid, ddim(0.5), noise)
        _, logit = self.network.apply({"params": weights.params}, x, jnp.zeros(x.shape[0]), mask)
        return {"x": x, "kind": (logit > 0) & mask, "mask": mask}


def build(config, data):
    return Atoms(data, make_optimizer(config.train), Equivariant())


EXPERIMENT = Experiment(
    "atoms", __doc__, {"": Config()}, build, (samples,), (quality,), kinds=(Points,), load=stars
)
