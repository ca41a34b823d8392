"""CycleGAN (Zhu et al. 2017) of points: two domains, four networks, a replay buffer of each."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.data.records import Arrays, DataSet, Points, conditions_of, product
from jaxgen.losses.adversarial import least_squares
from jaxgen.models.mlp import MLP
from jaxgen.runner import Data, Experiment, Sampling, System, Train, make_optimizer, samples
from jaxgen.training.model_state import COUNTER, Storage
from jaxgen.training.step import Aux, Turn

BUFFER = 64
LOSS = least_squares()


@dataclass(frozen=True)
class Config:
    data: Data = Data("sides")
    train: Train = Train(steps=8, batch=16, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)


def sides(options):
    """Points about (-2, 0), and others about (2, 0)."""
    rng = np.random.default_rng(0)

    def cloud(at, n):
        return Arrays({"x": (np.array([at, 0]) + rng.normal(size=(n, 2))).astype(np.float32)})

    parts = [product(cloud(-2, n), cloud(2, n)) for n in (200, 50, 50)]
    ask = partial(conditions_of, parts[1], ("y",))
    return DataSet("sides", Points((2,)), *parts, ask=ask)


def push(buffer, seen, key):
    """The newest samples of both domains."""
    return jax.tree.map(lambda b, s: jnp.concatenate([b, s])[-len(b) :], buffer, seen)


@dataclass(frozen=True, eq=False)
class Cycle(System):
    translate: MLP
    critic: MLP

    def init(self, key):
        keys, x = jax.random.split(key, 4), jnp.zeros((1, 2))
        of = lambda network, a, b: {
            "x": network.init(keys[a], x)["params"],
            "y": network.init(keys[b], x)["params"],
        }
        buffer = {"x": jnp.zeros((BUFFER, 2)), "y": jnp.zeros((BUFFER, 2))}
        counted = {"pushed": jnp.zeros((), jnp.int32)}
        return {
            "generators": {"params": of(self.translate, 0, 1)},
            "critics": {"params": of(self.critic, 2, 3), "buffer": buffer, "counts": counted},
        }

    def turns(self):
        rules = {"buffer": Storage(push), "counts": COUNTER}
        return (
            Turn("generators", self.generators, self.optimizer),
            Turn("critics", self.critics, self.optimizer, rules=rules),
        )

    def to(self, params, name, x):
        return x + self.translate.apply({"params": params[name]}, x)

    def logits(self, params, name, x):
        return self.critic.apply({"params": params[name]}, x)  # [B, 1], of one patch

    def generators(self, params, batch, key, now):
        x, y, critics = batch["x"], batch["y"], now.players["critics"].params
        fake = {"x": self.to(params, "x", y), "y": self.to(params, "y", x)}
        logits = [self.logits(critics, name, f) for name, f in fake.items()]
        fooled = [LOSS.generator(a, a) for a in logits]
        back = {"x": self.to(params, "x", fake["y"]), "y": self.to(params, "y", fake["x"])}
        cycle = sum(jnp.abs(back[n] - batch[n]).mean(axis=1) for n in "xy")
        return sum(fooled) + 10 * cycle, {"cycle": cycle}

    def critics(self, params, batch, key, now):
        g, before = now.players["generators"].params, now.memory["buffer"]
        fake = {"x": self.to(g, "x", batch["y"]), "y": self.to(g, "y", batch["x"])}
        at = jax.random.randint(key, (len(batch["x"]) // 2,), 0, BUFFER)
        mixed = {n: jnp.concatenate([before[n][at], f[len(at) :]]) for n, f in fake.items()}
        losses = [
            LOSS.critic(self.logits(params, n, batch[n]), self.logits(params, n, mixed[n]))
            for n in "xy"
        ]
        pushed = now.memory["counts"]["pushed"] + len(batch["x"])
        return sum(losses), Aux({}, {"buffer": fake, "counts": {"pushed": pushed}})

    def sample(self, key, weights, given):
        return self.to(weights["generators"].params, "x", given["y"])

    def score(self, weights, step):
        return 0.0


def build(config, data):
    return Cycle(data, make_optimizer(config.train), MLP(2, 16, 1), MLP(1, 16, 1))


EXPERIMENT = Experiment(
    "cycle", __doc__, {"": Config()}, build, (samples,), kinds=(Points,), load=sides
)
