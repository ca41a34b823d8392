"""Two players, of which the critic remembers samples of before (Shrivastava et al. 2017)."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from jaxgen.data.records import Points
from jaxgen.losses.adversarial import discriminator_loss, non_saturating_generator_loss
from jaxgen.models.mlp import MLP
from jaxgen.runner import Data, Experiment, System, Train, make_optimizer, quality, samples
from jaxgen.training.step import Aux, Turn

LATENTS, POOL = 4, 32


@dataclass(frozen=True)
class Config:
    data: Data = Data("moons")
    train: Train = Train(steps=20, batch=16, checkpoint_every=10)


@dataclass(frozen=True, eq=False)
class Pooled(System):
    generator: MLP
    critic: MLP

    def init(self, key):
        generator = self.generator.init(key, jnp.zeros((1, LATENTS)))
        critic = self.critic.init(key, jnp.zeros((1, 2)))
        return {"generator": generator, "critic": {**critic, "pool": jnp.zeros((POOL, 2))}}

    def turns(self):
        critic = Turn("critic", self.judge, self.optimizer, times=2)
        return critic, Turn("generator", self.deceive, self.optimizer)

    def draw(self, params, key, count):
        z = jax.random.normal(key, (count, LATENTS))
        return self.generator.apply({"params": params}, z)

    def judge(self, params, batch, key, now):
        fake = self.draw(now.players["generator"].params, key, len(batch["x"]))
        pool = jnp.concatenate([now.memory["pool"], fake])[-POOL:]
        score = lambda x: self.critic.apply({"params": params}, x)[:, 0]
        loss = discriminator_loss(score(batch["x"]), score(pool[: len(fake)]))
        return loss, Aux({}, {"pool": pool})

    def deceive(self, params, batch, key, now):
        fake = self.draw(params, key, len(batch["x"]))
        logits = self.critic.apply({"params": now.players["critic"].params}, fake)
        return non_saturating_generator_loss(logits[:, 0]), {}

    def sample(self, key, weights, given):
        return self.draw(weights["generator"].params, key, len(given["label"]))

    def score(self, weights, step):
        return 0.0  # the last checkpoint is as good as any


def build(config, data):
    return Pooled(data, make_optimizer(config.train), MLP(2, 16), MLP(1, 16))


EXPERIMENT = Experiment(
    "pool", __doc__, {"moons": Config()}, build, (samples,), (quality,), kinds=(Points,)
)
