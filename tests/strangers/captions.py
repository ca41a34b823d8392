"""Points that a sentence describes: text-conditional diffusion with a frozen encoder and masks."""

from dataclasses import dataclass
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxgen.data.records import Arrays, DataSet, Points, conditions_of
from jaxgen.diffusion.samplers import ddim
from jaxgen.diffusion.schedules import FlowMatching, uniform_grid
from jaxgen.runner import (
    Data,
    Experiment,
    Frozen,
    Sampling,
    Train,
    make_optimizer,
    quality,
    samples,
)
from jaxgen.systems.conditions import Condition
from jaxgen.systems.denoising import Denoising
from jaxgen.systems.diffusion import Diffusion
from jaxgen.systems.objectives import weighted

WORDS, LENGTH = ("", "left", "right", "low", "high"), 4


@dataclass(frozen=True)
class Config:
    data: Data = Data("described")
    train: Train = Train(steps=8, batch=16, learning_rate=3e-3, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)
    guidance: float = 0.0  # Weight of classifier-free guidance.


def described(options):
    """Points about (+-2, +-2), each with one or two words on where it is."""
    rng = np.random.default_rng(0)
    side = rng.integers(0, 2, (1200, 2))
    x = 4 * side - 2 + 0.3 * rng.normal(size=(1200, 2))
    words = np.stack([1 + side[:, 0], 3 + side[:, 1]], axis=1)
    count = rng.integers(1, 3, 1200)
    mask = np.arange(LENGTH)[None] < count[:, None]
    text = np.where(mask, np.pad(words, ((0, 0), (0, LENGTH - 2))), 0)
    arrays = {"x": x.astype(np.float32), "text": text.astype(np.int32), "mask": mask}
    parts = [Arrays({n: a[i::3] for n, a in arrays.items()}) for i in range(3)]
    ask = partial(conditions_of, parts[1], ("text", "mask"))
    return DataSet("described", Points((2,)), *parts, ask=ask)


class Encoder(nn.Module):
    @nn.compact
    def __call__(self, text):  # [B, L] -> [B, L, D]
        return nn.Embed(len(WORDS), 8)(text)


class Attending(nn.Module):
    @nn.compact
    def __call__(self, x, t, text, mask, train=False):  # [B, 2], [B], [B, L, D], [B, L]
        q = nn.Dense(8)(jnp.concatenate([x, t[:, None]], axis=1))
        score = jnp.einsum("bd,bld->bl", q, nn.Dense(8, use_bias=False)(text))
        score = jnp.where(mask, score, -jnp.inf)
        none = ~mask.any(axis=1, keepdims=True)
        weight = jnp.where(none, 0.0, jax.nn.softmax(jnp.where(none, 0.0, score)))
        told = jnp.einsum("bl,bld->bd", weight, jnp.where(mask[..., None], text, 0.0))
        h = nn.Dense(32)(jnp.concatenate([x, t[:, None], told], axis=1))
        return nn.Dense(2)(nn.swish(h))


def build(config, data):
    encoder = Encoder()
    variables = encoder.init(jax.random.key(7), jnp.zeros((1, LENGTH), jnp.int32))
    frozen = Frozen(
        lambda variables, given: {**given, "text": encoder.apply(variables, given["text"])},
        variables,
    )
    declared = (
        Condition("text", (LENGTH,), jnp.int32),
        Condition("mask", (LENGTH,), bool, null=False),
    )
    flow = FlowMatching()
    return Diffusion(
        data,
        make_optimizer(config.train),
        Denoising(Attending(), (2,), declared, dropped=0.1, embed=frozen),
        flow,
        weighted(flow, "velocity", None, lambda network: network),
        ddim(),
        uniform_grid(8),
        prediction="velocity",
        guidance=config.guidance,
    )


EXPERIMENT = Experiment(
    "captions",
    __doc__,
    {"described": Config()},
    build,
    (samples,),
    (quality,),
    kinds=(Points,),
    load=described,
)
