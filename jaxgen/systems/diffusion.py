"""A network of noisy data, with any schedule, objective, solver and guidance.

``experiments.ddpm`` and ``experiments.score_sde`` are its options, distillation trains students of
it, and studies and cascades vary its parts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.data.records import DataSet, Image, Points, random_flip
from jaxgen.diffusion.guidance import Weight, classifier_free, clip_x_0
from jaxgen.diffusion.parameterization import Denoiser, Network, Target, denoiser
from jaxgen.diffusion.process import (
    Noise,
    check_prior,
    known_level,
    posterior_variance,
    standard_normal,
)
from jaxgen.diffusion.samplers import Solver, Variance, evaluations, sample, sample_path
from jaxgen.diffusion.schedules import DiscreteSchedule, Interpolated
from jaxgen.evaluation.likelihood import likelihood, ode_log_density
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_film, save_points_film
from jaxgen.runner.frozen import frozen_in, with_frozen
from jaxgen.runner.modalities import columns
from jaxgen.runner.pictures import densities
from jaxgen.systems.conditions import Conditions, count_of
from jaxgen.systems.denoising import Denoising, Net
from jaxgen.systems.objectives import Objective
from jaxgen.training.step import Metrics, Now


@dataclass(frozen=True)
class Reverse:
    """How to go back from noise to data, and what to measure of it."""

    # Steps; heun and predictor_corrector evaluate the network twice a step.
    sample_steps: runner.Count = 50
    # ancestral, ddim (eta = 0), euler, heun, heun_churned, euler_maruyama, predictor_corrector,
    # dpm_solver_2m, dpm_solver_2m_sde, dpm_solver_3m or unipc (default: the process's own).
    solver: str = "default"
    # Weight of classifier-free guidance; 0 is one evaluation of the network a step.
    guidance: Annotated[float, runner.Range(-1)] = 0.0
    # Clip the estimates of x_0 to [-1, 1] (default: those of images).
    clip_samples: bool | None = None
    bound_images: runner.Count = 100  # Test examples whose likelihood is measured.
    bound_times: runner.Count = 100  # Times at which the continuous bound of each is evaluated.

    def clips(self, data: DataSet) -> bool:
        """Whether the estimates of x_0 are clipped."""
        return isinstance(data.kind, Image) if self.clip_samples is None else self.clip_samples


class Space(Protocol):
    """Where diffusion happens: data themselves, or what an autoencoder makes of them."""

    def encode(self, key: Array, x: Array) -> Array:
        """Data ``[B, ...]`` as models see them, to what is diffused."""
        ...

    def decode(self, z: Array) -> Array:
        """The way back."""
        ...


@dataclass(frozen=True)
class DataSpace:
    """Data themselves."""

    def encode(self, key: Array, x: Array) -> Array:
        return x

    def decode(self, z: Array) -> Array:
        return z


def normal_noise(batch: Any) -> Noise:
    """Standard normal noise, whatever the batch."""
    return standard_normal


@dataclass(frozen=True, eq=False)
class Diffusion(runner.System):
    """A network of noisy data, and the way back from noise."""

    network: Denoising
    schedule: Any  # of sampling, discrete or continuous
    objective: Objective
    solver: Solver
    times: np.ndarray  # of sampling, falling
    prediction: str | Target = "eps"
    read: Callable[[Network], Network] = lambda network: network  # the module as that prediction
    refine: Callable[[Denoiser], Denoiser] = lambda denoise: denoise
    guidance: Weight = 0.0
    clip: bool = False
    flip: bool = False  # training images at random
    looped: bool = False  # gradients are taken inside a loop
    variance: Variance = posterior_variance  # of the bound, where none is learned
    bound_times: int = 100
    # Of a batch or of conditions: what draws eps and where samples start from.
    noise: Callable[[Any], Noise] = normal_noise
    space: Space = DataSpace()

    def __post_init__(self) -> None:
        check_prior(self.schedule, self.times[0])
        if self.flip and not isinstance(self.data.kind, Image):
            raise ValueError("images alone can be mirrored: leave out --flip.")

    def init(self, key: Array) -> Any:
        return self.network.init(key)

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        key_flip, key_network, key = jax.random.split(key, 3)
        x, noise = self.data.kind.values(batch["x"]), self.noise(batch)
        x = random_flip(key_flip, x) if self.flip and now.train else x
        x_0 = self.space.encode(jax.random.fold_in(key_flip, 1), x)
        if not now.train:
            t, loss = self.objective(key, self.network.given(params, batch), x_0, noise)
            return loss, {"t": t}
        network = self.network.in_loops() if self.looped else self.network
        network = network.training(params, batch, key_network)
        return self.objective(key, network, x_0, noise)[1], {}

    def denoise(self, params: Any, conditions: Conditions) -> Denoiser:
        """(x_t, t) -> x_0, or (x_0, nu), for the conditions that the network takes."""
        return self.denoiser_of(self.network.given(params, conditions))

    def denoiser_of(self, network: Network) -> Denoiser:
        """The denoiser of the module as it is called, in the schedule's unit of time."""
        network = self.read(network)
        if isinstance(self.schedule, Interpolated):
            network = self.schedule.network(network)
        return self.refine(denoiser(network, self.schedule, self.prediction))

    def guided(self, params: Any, conditions: Conditions, weight: Weight) -> Denoiser:
        """:meth:`denoise` with classifier-free guidance."""
        null = self.network.null(conditions)
        return classifier_free(self.denoise(params, conditions), self.denoise(params, null), weight)

    def start(self, key: Array, conditions: Conditions) -> Array:
        """x_T ``[B, ...]`` for as many conditions: noise of the size it has at the first time."""
        like = jnp.zeros((count_of(conditions), *self.network.shape))
        return self.schedule(jnp.asarray(self.times[0])).sigma * self.noise(conditions)(key, like)

    def reverse(self, run: Callable[..., Any], key: Array, weights: Any, given: Any) -> Any:
        """``run``, sample or sample_path, from noise through the times; a ``guidance [B]`` that is
        given takes the place of the system's."""
        guidance = given.get("guidance", self.guidance)
        if "guidance" in given and not self.network.guidable:
            raise runner.Mistake(
                "guidance needs a network whose conditions were dropped in training."
            )
        denoise = self.guided(weights.params, given, guidance)
        denoise = clip_x_0(denoise) if self.clip else denoise
        key_start, key = jax.random.split(key)
        x_T, noise = self.start(key_start, given), self.noise(given)
        return run(key, denoise, self.schedule, x_T, self.times, self.solver, noise)

    def sample(self, key: Array, weights: Any, given: Any) -> Array:
        return self.space.decode(self.reverse(sample, key, weights, given))

    @property
    def labelled(self) -> bool:
        return any(c.name == "label" for c in self.network.conditions)

    def how(self) -> str:
        cost = evaluations(self.solver, self.schedule, self.times)
        cost *= 1 if isinstance(self.guidance, float) and self.guidance == 0 else 2
        return f"{len(self.times) - 1} steps, {cost} network evaluations"

    @property
    def has_density(self) -> bool:
        """Whether the bounds and the ODE are of the likelihood of data."""
        return isinstance(self.space, DataSpace) and self.noise is normal_noise

    def continuous(self) -> Diffusion:
        """The same network in continuous time."""
        if not isinstance(self.schedule, DiscreteSchedule):
            return self
        times = self.times / self.schedule.steps
        return replace(self, schedule=Interpolated(self.schedule), times=times)

    @property
    def chain(self) -> Any:
        """The discrete schedule of a network that was trained on one, else None."""
        inner = self.schedule.schedule if isinstance(self.schedule, Interpolated) else self.schedule
        return inner if isinstance(inner, DiscreteSchedule) else None

    def discrete(self) -> Diffusion:
        """The same network on its chain."""
        if not isinstance(self.schedule, Interpolated):
            return self
        times = np.round(self.times * self.chain.steps).astype(np.int32)
        return replace(self, schedule=self.chain, times=times)


# --- pictures --------------------------------------------------------------------------------


def film(trained: runner.Trained[Diffusion]) -> Path | list[Path]:
    """``film.gif``: the way from noise to samples, of about 50 frames."""
    points = isinstance(trained.data.kind, Points)
    if points and trained.data.shape != (2,):
        return []
    given = trained.data.given(1000 if points else 3 * columns(trained))

    @jax.jit
    def draw(key: Array, weights: Any, frozen: Any) -> Array:
        system = with_frozen(trained.system, frozen)
        return jax.lax.map(
            system.space.decode, system.reverse(sample_path, key, weights, given)[1][0]
        )

    key = jax.random.fold_in(trained.key, 2)
    path = np.asarray(draw(key, trained.weights, frozen_in(trained.system)))
    frames = np.concatenate([path[:: max(1, len(path) // 50)], path[-1:]])
    if points:
        return save_points_film(trained.results / "film.gif", frames)
    # Where noise is large, each frame is shown at the scale of its own noise.
    frames = frames / np.maximum(1, frames.std(axis=(1, 2, 3, 4), keepdims=True))
    return save_film(trained.results / "film.gif", frames, columns(trained))


def density(trained: runner.Trained[Diffusion]) -> list[Path]:
    """``density.png``: of points in the plane, by the ODE, beside that of the data."""
    if not trained.system.has_density:
        return []
    return densities(trained, partial(log_density, trained, tolerance=1e-3))


# --- measures --------------------------------------------------------------------------------


def log_density(
    trained: runner.Trained[Diffusion], x: np.ndarray, tolerance: float = 1e-4
) -> np.ndarray:
    """log p of points ``[N, D]`` by the probability-flow ODE, in nats."""
    system = trained.system.continuous()

    def measured(system: Diffusion, weights: Any, key: Array, rows: Any) -> Array:
        denoise = system.denoise(weights.params, rows)
        how = {"t_0": first_time(system), "tolerance": tolerance}
        return ode_log_density(denoise, system.schedule, rows["x"], **how)

    mapped = system.over_rows(measured, trained.devices)
    return trained.over("density", mapped, {**trained.data.given(len(x)), "x": x}, size=len(x))


def first_time(system: Diffusion) -> float:
    """The time nearest to the data at which the ODE is solved."""
    if isinstance(system.schedule, Interpolated):
        return 1 / system.schedule.schedule.steps
    return 0.01 if getattr(system.schedule, "end", 1.0) > 1 else 1e-3  # where time is sigma


def likelihoods(trained: runner.Trained[Diffusion]) -> list[Number]:
    """Bits a dimension of test images, by every method that serves the schedule; nats of points.
    None of latents, whose likelihood is not that of data, nor of noise that is not standard normal.
    """
    if not trained.system.has_density:
        return []
    system, count = trained.system, trained.config.reverse.bound_images
    batch = trained.test(count)
    if not isinstance(trained.data.kind, Image):
        nats = log_density(trained, batch["x"])
        how = f"nats a point, probability-flow ODE, exact trace, {len(nats)} test points, EMA"
        return [Number("ode_log_likelihood", float(nats.mean()), how)]
    flow = system.continuous()
    found = []
    if system.chain is not None:
        about, name = {"variance": system.variance}, "bits_per_dimension"
        found.append(bits(trained, system.discrete(), name, "discrete_bound", batch, about))
    elif (level := known_level(system.schedule, 0.0)) and level.sigma > 0:  # else it is infinite
        about, name = {"times": system.bound_times}, "continuous_bound_bits_per_dimension"
        found.append(bits(trained, flow, name, "continuous_bound", batch, about))
    about = {"t_0": first_time(flow), "probes": 4}
    return [*found, bits(trained, flow, "ode_bits_per_dimension", "ode", batch, about)]


def bits(
    trained: runner.Trained[Diffusion],
    system: Diffusion,
    name: str,
    method: str,
    batch: Any,
    how: dict[str, Any],
) -> Number:
    """The mean bits a dimension of a batch of test images by one method."""
    levels, told = trained.data.levels, {}

    def measured(system: Diffusion, weights: Any, key: Array, batch: Any) -> Array:
        denoise = system.denoise(weights.params, batch)
        found = likelihood(method, key, denoise, system.schedule, batch["x"], levels, **how)
        told["kind"] = found.kind
        return found.bits_per_dimension

    mapped = system.over_rows(measured, trained.devices)
    values = trained.over(method, mapped, batch, key=3)
    protocol = f"{told['kind']}, {len(values)} test images of {levels} levels, EMA"
    return Number(name, float(values.mean()), protocol)


# --- measures of training and network, by data set --------------------------------------------

Preset = dict[str, Any]  # sections of a config, by their names
DIGITS: Preset = {
    "train": runner.Train(
        steps=2000, batch=64, learning_rate=2e-3, warmup=100, clip=1.0, ema=0.995
    ),
    "net": Net(),
    "sampling": runner.Sampling(),
}
MNIST: Preset = {
    "train": runner.Train(
        steps=20_000, batch=128, learning_rate=5e-4, warmup=500, clip=1.0, ema=0.999,
        log_every=100, checkpoint_every=2000,
    ),
    "net": Net(channels=64, multipliers=(1, 2, 2), blocks=1, groups=32),
    "sampling": runner.Sampling(),
}  # fmt: skip
CIFAR10: Preset = {  # Ho et al. 2020, appendix B
    "train": runner.Train(
        steps=800_000, batch=128, learning_rate=2e-4, warmup=5000, clip=1.0, ema=0.9999,
        log_every=100, checkpoint_every=10_000,
    ),
    "net": Net(
        channels=128, multipliers=(1, 2, 2, 2), blocks=2, attention=(16,), dropout=0.1, groups=32,
        conditional=False,
    ),
    "sampling": runner.Sampling(samples=50_000, sample_batch=500),
}  # fmt: skip
POINTS: Preset = {
    "train": runner.Train(
        steps=5000, batch=128, learning_rate=6e-3, warmup=100, decay="linear", clip=10.0,
        ema=0.995, steps_per_call=50, log_every=250, checkpoint_every=2500,
    ),
    "net": Net(channels=128, blocks=3),
    "sampling": runner.Sampling(samples=2048, sample_batch=2048),
}  # fmt: skip
