"""The first stage of a cascade: digits of 4x4, by a normal distribution of each class."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.data.records import Arrays, DataSet, Image
from jaxgen.data.sources import load
from jaxgen.runner import Data, Experiment, Sampling, System, Train, main, make_optimizer


@dataclass(frozen=True)
class Config:
    data: Data = Data("digits")
    train: Train = Train(steps=8, batch=16, learning_rate=3e-2, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)


def halved(x):
    """Means of squares of two by two pixels."""
    return x.reshape(*x.shape[:-3], x.shape[-3] // 2, 2, x.shape[-2] // 2, 2, x.shape[-1]).mean(
        axis=(-4, -2)
    )


def small(options):
    data = load(options.data)

    def of(source):
        return Arrays({**source.arrays, "x": halved(source["x"]).round().astype("uint8")})

    parts = {name: of(getattr(data, name)) for name in ("train", "validation", "test")}
    return DataSet("small digits", Image((4, 4, 1), 17), **parts, classes=10)


@dataclass(frozen=True, eq=False)
class Normals(System):
    @property
    def labelled(self):
        return True

    def init(self, key):
        return {"params": {"mean": jnp.zeros((10, 4, 4, 1)), "log_std": jnp.zeros((10, 4, 4, 1))}}

    def loss(self, params, batch, key, now):
        x, label = self.data.kind.values(batch["x"]), batch["label"]
        log_std = params["log_std"][label]
        z = (x - params["mean"][label]) * jnp.exp(-log_std)
        return (0.5 * z**2 + log_std).sum(axis=(1, 2, 3)), {}

    def sample(self, key, weights, given):
        mean, log_std = (weights.params[name][given["label"]] for name in ("mean", "log_std"))
        return mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)


EXPERIMENT = Experiment(
    "small_digits",
    __doc__,
    {"digits": Config()},
    lambda config, data: Normals(data, make_optimizer(config.train)),
    load=small,
)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
