"""A byte model: a causal convolution that predicts the next byte, and goes on from a prompt."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxgen.data.records import Tokens
from jaxgen.runner import Data, Experiment, Sampling, System, Train, make_optimizer, samples
from jaxgen.runner.options import measuring

BEGIN = 256


@dataclass(frozen=True)
class Config:
    data: Data = Data("text:words.txt", length=24)
    train: Train = Train(steps=100, batch=32, learning_rate=1e-2, checkpoint_every=50)
    sampling: Sampling = measuring(lambda: Sampling(samples=10, sample_batch=10))
    prompt: str = field(default="", metadata={"measuring": True})


class Causal(nn.Module):
    @nn.compact
    def __call__(self, x):  # [B, L] -> the logits of what follows, [B, L, 256]
        h = nn.Embed(257, 16)(x)
        h = nn.relu(nn.Conv(64, (6,), padding="CAUSAL")(h))
        return nn.Dense(256)(h)


@dataclass(frozen=True, eq=False)
class Bytes(System):
    network: nn.Module

    def init(self, key):
        return self.network.init(key, jnp.zeros((1, self.data.kind.length), jnp.int32))

    def loss(self, params, batch, key, now):
        x = self.data.kind.values(batch["x"])
        before = jnp.pad(x[:, :-1], ((0, 0), (1, 0)), constant_values=BEGIN)
        logits = self.network.apply({"params": params}, before)
        nats = optax.softmax_cross_entropy_with_integer_labels(logits, x).mean(axis=1)
        return nats, {"bits_per_byte": nats / jnp.log(2)}

    def sample(self, key, weights, given):
        n, known = given["prompt"].shape
        x = jnp.full((n, self.data.kind.length + 1), BEGIN)
        x = x.at[:, 1 : known + 1].set(given["prompt"])

        def step(x, i):
            logits = self.network.apply({"params": weights.params}, x[:, :-1])[:, i]
            drawn = jax.random.categorical(jax.random.fold_in(key, i), logits)
            return x.at[:, i + 1].set(jnp.where(i < known, x[:, i + 1], drawn)), None

        return jax.lax.scan(step, x, jnp.arange(self.data.kind.length))[0][:, 1:]


def build(config, data):
    prompt = np.frombuffer(config.prompt.encode(), np.uint8).astype(np.int32)
    data = replace(data, ask=lambda n: {"prompt": np.tile(prompt, (n, 1))})
    return Bytes(data, make_optimizer(config.train), Causal())


EXPERIMENT = Experiment(
    "byte_model", __doc__, {"words": Config()}, build, pictures=(samples,), kinds=(Tokens,)
)
