"""A cascade (Ho et al. 2022): 4x4 digits by one run, and a second that makes 8x8 of them.

The second is conditioned on low-resolution images with noise, and on how much of it (conditioning
augmentation, section 3); it draws them from the first, which is trained first where it is lacking.
"""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from strangers import small_digits

from jaxgen.diffusion.parameterization import denoiser
from jaxgen.diffusion.samplers import ddim, sample
from jaxgen.diffusion.schedules import FlowMatching, uniform_grid
from jaxgen.losses.denoising import denoising_loss
from jaxgen.runner import (
    Data,
    Experiment,
    RunReference,
    Sampling,
    System,
    Train,
    Trained,
    main,
    make_optimizer,
    quality,
    samples,
)


@dataclass(frozen=True)
class Config:
    data: Data = Data("digits")
    train: Train = Train(steps=8, batch=16, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)
    base: RunReference = RunReference(small_digits.EXPERIMENT)  # The run that draws 4x4 images.
    level: float = 0.1  # Noise that is added to what the base drew.


class Upscaler(nn.Module):
    @nn.compact
    def __call__(self, x_t, t, low, level):  # [B, 8, 8, 1], [B], [B, 4, 4, 1], [B]
        flat = [a.reshape(len(t), -1) for a in (x_t, t, low, level)]
        h = nn.swish(nn.Dense(32)(jnp.concatenate(flat, axis=1)))
        return nn.Dense(64)(h).reshape(x_t.shape)


@dataclass(frozen=True, eq=False)
class Cascade(System):
    base: Trained
    network: nn.Module
    level: float

    def init(self, key):
        low, one = jnp.zeros((1, 4, 4, 1)), jnp.zeros(1)
        return self.network.init(key, jnp.zeros((1, 8, 8, 1)), one, low, one)

    def velocity(self, params, key, low, level):
        noise = jax.random.normal(key, low.shape)
        low = low + level.reshape(-1, 1, 1, 1) * noise
        return lambda x, t: self.network.apply({"params": params}, x, t, low, level)

    def loss(self, params, batch, key, now):
        key_t, key_level, key_low, key = jax.random.split(key, 4)
        x = self.data.kind.values(batch["x"])
        level = jax.random.uniform(key_level, (len(x),))
        network = self.velocity(params, key_low, small_digits.halved(x), level)
        t = jax.random.uniform(key_t, (len(x),))
        return denoising_loss(key, network, FlowMatching(), x, t, target="velocity"), {}

    def sample(self, key, weights, given):
        key_base, key_low, key_start, key = jax.random.split(key, 4)
        low = self.base.system.sample(key_base, self.base.weights, given)
        level = jnp.full(low.shape[:1], self.level)
        network = self.velocity(weights.params, key_low, low, level)
        denoise = denoiser(network, FlowMatching(), "velocity")
        x_1 = jax.random.normal(key_start, (len(low), 8, 8, 1))
        return sample(key, denoise, FlowMatching(), x_1, uniform_grid(4), ddim())


def build(config, data):
    base = config.base.trained
    return Cascade(data, make_optimizer(config.train), base, Upscaler(), config.level)


EXPERIMENT = Experiment("upscaling", __doc__, {"digits": Config()}, build, (samples,), (quality,))

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
