"""Latent diffusion (Rombach et al. 2022) by the library's Diffusion, over another run's latents."""

from dataclasses import dataclass

from strangers import codes

from jaxgen.diffusion.samplers import ancestral
from jaxgen.diffusion.schedules import from_betas, linear_betas, respaced_times
from jaxgen.models.embeddings import sinusoidal_embedding
from jaxgen.models.mlp import TimeMLP
from jaxgen.runner import (
    Data,
    Experiment,
    RunReference,
    Sampling,
    Train,
    Trained,
    make_optimizer,
    quality,
    samples,
)
from jaxgen.systems.conditions import label
from jaxgen.systems.denoising import Denoising
from jaxgen.systems.diffusion import Diffusion
from jaxgen.systems.objectives import simple


@dataclass(frozen=True)
class Config:
    data: Data = Data("digits")
    train: Train = Train(steps=8, batch=16, checkpoint_every=4, log_every=4)
    sampling: Sampling = Sampling(samples=20, sample_batch=10)
    autoencoder: RunReference = RunReference(codes.EXPERIMENT)  # The run whose latents are learned.
    guidance: float = 1.0  # Weight of classifier-free guidance.


@dataclass(frozen=True)
class Latents:
    """The latents of a run, as a space that diffusion happens in."""

    run: Trained

    def encode(self, key, x):
        return self.run.system.apply(self.run.weights, x, "encode")

    def decode(self, z):
        return self.run.system.apply(self.run.weights, z, "decode")


def build(config, data):
    schedule = from_betas(linear_betas(20))
    module = TimeMLP(16, 1, sinusoidal_embedding, num_classes=11)
    return Diffusion(
        data,
        make_optimizer(config.train),
        Denoising(module, (codes.LATENTS,), (label(10),), dropped=0.2),
        schedule,
        simple(schedule),
        ancestral(),
        respaced_times(20, 4),
        guidance=config.guidance,
        space=Latents(config.autoencoder.trained),
    )


EXPERIMENT = Experiment("latents", __doc__, {"digits": Config()}, build, (samples,), (quality,))
