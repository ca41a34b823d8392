"""An autoencoder of digits, whose latents another run learns."""

from dataclasses import dataclass

import jax.numpy as jnp
from flax import linen as nn

from jaxgen.runner import Data, Experiment, Sampling, System, Train, make_optimizer

LATENTS = 4


@dataclass(frozen=True)
class Config:
    data: Data = Data("digits")
    train: Train = Train(steps=8, batch=16, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)


class Autoencoder(nn.Module):
    def setup(self):
        self.encoder, self.decoder = nn.Dense(LATENTS), nn.Dense(64)

    def encode(self, x):
        return self.encoder(x.reshape(len(x), -1))

    def decode(self, z):
        return self.decoder(z).reshape(-1, 8, 8, 1)

    def __call__(self, x):
        return self.decode(self.encode(x))


@dataclass(frozen=True, eq=False)
class Codes(System):
    network: Autoencoder

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, 8, 8, 1)))

    def apply(self, weights, x, method):
        return self.network.apply({"params": weights.params}, x, method=method)

    def loss(self, params, batch, key, now):
        x = self.data.kind.values(batch["x"])
        again = self.network.apply({"params": params}, x)
        return ((x - again) ** 2).sum(axis=(1, 2, 3)), {}


EXPERIMENT = Experiment(
    "codes",
    __doc__,
    {"digits": Config()},
    lambda config, data: Codes(data, make_optimizer(config.train), Autoencoder()),
)
