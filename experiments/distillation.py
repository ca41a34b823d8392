"""Progressive distillation (Salimans & Ho 2022) and consistency distillation (Song et al. 2023).

python -m experiments.distillation                        # digits: 64 steps to 32, ..., 2, 1
python -m experiments.distillation --guidance 1           # of a guided teacher
python -m experiments.distillation --prediction x_0       # with x_0 in place of v
python -m experiments.distillation --method consistency   # one function for 1, 2, 4, ... steps

The first --teacher-steps updates train the teacher on data; the rest distil it, in equal rounds,
each to half the steps. `distillation.png` and the table show every student at its steps.

Expect, on digits with seed 0 on two CPU cores: 6 minutes of processor time. Frechet distance of
1000 samples: the teacher with 64, 8, 2, 1 steps 0.07, 0.13, 0.57, 2.05; its students with 8, 2, 1
steps 0.08, 0.09, 0.11.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jax import Array

from experiments import score_sde
from experiments.images import Net, in_batches
from experiments.runner import main
from experiments.score_sde import PROCESSES, ScoreModel, make_score_model
from experiments.system import Data, Experiment, Mistake, System, Train, choose, make_ema_decay
from jaxgen.data.sources import DataSet, some
from jaxgen.diffusion.guidance import clip_x_0
from jaxgen.diffusion.parameterization import Denoiser, edm, from_x_0
from jaxgen.diffusion.process import diffuse
from jaxgen.diffusion.samplers import consistency, ddim, sample
from jaxgen.diffusion.schedules import uniform_grid
from jaxgen.evaluation.features import FeatureSpace
from jaxgen.evaluation.report import Number, compare
from jaxgen.losses.denoising import squared_error
from jaxgen.losses.distillation import (
    consistency_function,
    teacher_step,
    truncated_error,
    two_step_target,
)
from jaxgen.losses.times import stratified_times
from jaxgen.plotting import save_rows
from jaxgen.training.devices import Placement
from jaxgen.training.step import Aux, TrainState, adam, descend, step_key

FIRST = 0.02  # the time at which a consistency function is the identity


@dataclass(frozen=True)
class Sampling:
    """What to measure."""

    clip_samples: bool = True
    """Clip the estimates of x_0 to [-1, 1]."""
    samples: int = 1000
    """Samples to measure, for each student."""
    sample_batch: int = 250
    """Samples at a time."""


@dataclass(frozen=True)
class Config:
    """Distillation on images."""

    data: Data = field(default_factory=Data)
    train: Train = field(default_factory=Train)
    net: Net = field(default_factory=Net)
    sampling: Sampling = field(default_factory=Sampling)
    method: str = "progressive"
    """progressive or consistency."""
    process: str = "cosine"
    """cosine, linear or flow."""
    prediction: str = "v"
    """v or x_0."""
    teacher_steps: int = 2000
    """Updates of the teacher; the rest of --steps distil."""
    round_steps: int = 400
    """Updates of each student."""
    first: int = 64
    """Sampling steps of the teacher, a power of two."""
    guidance: float = 0.0
    """Weight of the teacher's classifier-free guidance, which the students learn."""
    distillation_rate: float = 1e-3
    """Learning rate at the start of a round; it falls to 0."""


TEACHERS = score_sde.PRESETS
DIGITS = Config(
    train=replace(TEACHERS["digits"].train, steps=4400, ema=0.99), net=TEACHERS["digits"].net
)
MNIST = Config(
    data=Data("mnist"),
    train=replace(TEACHERS["mnist"].train, steps=50_000, checkpoint_every=5000),
    net=TEACHERS["mnist"].net,
    teacher_steps=20_000,
    round_steps=5000,
    distillation_rate=2e-4,
)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": replace(MNIST, data=Data("fashion_mnist")),
}


@struct.dataclass
class Distilling:
    """The student in training, its teacher, and the finished students of every round."""

    student: TrainState
    teacher: Any  # parameters
    kept: Any  # parameters [1 + rounds, ...], the first teacher's first

    @property
    def step(self) -> Array:
        return self.student.step


def rounds_of(config: Config) -> tuple[int, int]:
    """The number of rounds and the updates in each; consistency distillation is one long round.

    Raises:
      ValueError: if the teacher's steps cannot be halved, or there are more updates than rounds.
    """
    halvings = max(config.first, 1).bit_length() - 1
    if config.first < 2 or config.first & (config.first - 1):
        raise ValueError(f"--first must be a power of two, at least 2, not {config.first}.")
    last = config.teacher_steps + halvings * config.round_steps
    if config.train.steps > last:
        raise ValueError(
            f"the teacher and {halvings} rounds take {last} updates: lower --steps to it, or "
            "raise --round-steps."
        )
    if config.method == "consistency":
        return 1, halvings * config.round_steps
    return halvings, config.round_steps


def neighbours(i: Array, n: Array | int, last: float) -> tuple[Array, Array]:
    """The beginning and the end of step i = 1..n of n equal ones from 1 down to ``last``."""
    each = (1 - last) / n
    return last + each * i, last + each * (i - 1)


def build(config: Config, data: DataSet, placement: Placement) -> System:
    choose("method", config.method, {"progressive": 0, "consistency": 0})
    choose(
        "process", config.process, {name: PROCESSES[name] for name in ("cosine", "linear", "flow")}
    )
    choose("prediction", config.prediction, {"v": 0, "x_0": 0})
    if config.train.decay != "none":
        raise Mistake("the rate falls in every round of distillation: leave out --decay.")
    rounds, round_steps = rounds_of(config)
    parts = make_score_model(
        score_sde.Config(
            net=config.net,
            train=config.train,
            process=config.process,
            prediction=config.prediction,
        ),
        data,
    )
    model, schedule, options = parts.model, parts.schedule, config.train
    model.check_guidance(config.guidance)
    progressive = config.method == "progressive"

    def optimizer(step: Array | int) -> optax.GradientTransformation:
        done = (jnp.asarray(step) - config.teacher_steps) % round_steps / round_steps
        warm = jnp.minimum(1.0, (jnp.asarray(step) + 1) / max(options.warmup, 1))
        rate = jnp.where(
            step < config.teacher_steps,
            options.learning_rate * warm,
            config.distillation_rate * (1 - done),
        )
        return adam(rate, clip=options.clip, b1=options.b1, weight_decay=options.weight_decay)

    def init(key: Array) -> Distilling:
        student = model.init(key, optimizer(0))
        kept = jax.tree.map(lambda p: jnp.stack([p] * (rounds + 1)), student.params)
        return Distilling(student, jax.tree.map(jnp.copy, student.params), kept)

    def teaching(teacher: Any, labels: Array, of_data: Array) -> Denoiser:
        """The teacher; only the first, which learned from data, is guided."""
        if not config.guidance:
            return parts.denoise(teacher, labels)
        weight = lambda t: jnp.where(of_data, config.guidance, 0.0) * jnp.ones_like(t)  # noqa: E731
        return parts.guided(teacher, labels, weight)

    def loss(params: Any, state: Distilling, update: Array, batch: Any, key: Array) -> Array:
        """The error of the student in one of the updates: at data, or later at its teacher."""
        key_model, key_t, key_eps = jax.random.split(key, 3)
        x_0, network = model.training(params, batch, key_model)
        student, labels = parts.denoiser_of(network), batch["label"]
        learns = update < config.teacher_steps  # from data
        done = (update - config.teacher_steps) // round_steps
        n = jnp.where(learns, 1, config.first // 2 ** (done + 1)) if progressive else config.first
        i = jax.random.randint(key_t, x_0.shape[:1], 1, n + 1)
        t, s = neighbours(i, n, last=0.0 if progressive else FIRST)
        t = jnp.where(learns, stratified_times(key_t, len(x_0), low=1e-3), t)
        x_t = diffuse(x_0, jax.random.normal(key_eps, x_0.shape), schedule(t))
        teacher = teaching(state.teacher, labels, done == 0)

        def answer() -> Array:
            if progressive:
                return two_step_target(teacher, schedule, x_t, t, s)
            x_s = teacher_step(teacher, schedule)(x_t, t, s)
            return consistent(parts, parts.denoise(state.student.ema, labels))(x_s, s)

        target = jax.lax.stop_gradient(jax.lax.cond(learns, lambda: x_0, answer))
        if progressive:
            return truncated_error(student, schedule, x_t, t, target).mean()
        estimate = jnp.where(learns, student(x_t, t), consistent(parts, student)(x_t, t))
        return squared_error(estimate, target).mean()

    def step(state: Distilling, batch: Any, key: Array, axis_name: str | None = None):
        key = step_key(key, state.step, axis_name)
        since = state.step - config.teacher_steps
        begins = (since >= 0) & (since % round_steps == 0)
        choice = lambda a, b: jax.tree.map(lambda x, y: jnp.where(begins, x, y), a, b)  # noqa: E731
        student = state.student
        fresh = replace(student, params=student.ema, opt_state=optimizer(0).init(student.ema))
        state = replace(
            state, student=choice(fresh, student), teacher=choice(student.ema, state.teacher)
        )

        def objective(params, batch, key):
            return loss(params, state, state.step, batch, key), Aux({}, {})

        student, metrics = descend(
            state.student,
            objective,
            batch,
            key,
            optimizer(state.step),
            ema_decay=make_ema_decay(options),
            accumulate=options.accumulate,
            axis_name=axis_name,
        )
        which = jnp.maximum(since // round_steps + 1, 0)
        kept = jax.tree.map(lambda all_, p: all_.at[which].set(p), state.kept, student.ema)
        return replace(state, student=student, kept=kept), metrics

    @jax.jit
    def validation_loss(state, batch):
        # of the update just made: the next may begin another round
        return loss(state.student.ema, state, state.step - 1, batch, jax.random.key(0))

    def score(state: Distilling) -> float:
        return float(validation_loss(state, some(data.validation, 256)))

    def draw(of_student: bool, n: int, key: Array, params: Any, labels: Array) -> Array:
        denoise, solver, times = parts.denoise(params, labels), ddim(), uniform_grid(n)
        if config.guidance and not of_student:
            denoise = parts.guided(params, labels, config.guidance)
        if of_student and not progressive:
            denoise, solver = consistent(parts, denoise), consistency(FIRST)
            times = np.append(uniform_grid(n, last=FIRST)[:-1], 0.0)
        denoise = clip_x_0(denoise) if config.sampling.clip_samples else denoise
        key_start, key = jax.random.split(key)
        x_T = parts.start(key_start, len(labels), 1.0)
        return sample(key, denoise, schedule, x_T, times, solver)

    draws = jax.jit(draw, static_argnums=(0, 1))

    def rows(key: Array, state: Distilling, count: int):
        """The teacher at falling numbers of steps, then the student of each; the same noise."""
        all_steps = [config.first // 2**r for r in range(config.first.bit_length())]
        pairs = [("teacher", False, n, 0) for n in all_steps]
        pairs += [
            ("student", True, n, r if progressive else 1) for r, n in enumerate(all_steps) if r > 0
        ]
        found = {}
        for name, of_student, n, r in pairs:
            params = jax.tree.map(lambda p, r=r: p[r], state.kept)
            one = lambda key, labels, a=(of_student, n), p=params: draws(*a, key, p, labels)  # noqa: E731
            x, labels = in_batches(one, key, count, config.sampling.sample_batch, data.classes)
            found[f"{name}, {n}"] = x, labels if model.classes else None
        return found

    def make_pictures(key: Array, state: Distilling, directory: Path) -> list[Path]:
        shown = {name: x for name, (x, _) in rows(key, state, 10).items()}
        return [save_rows(directory / "distillation.png", shown)]

    def evaluate(key: Array, state: Distilling, space: FeatureSpace) -> list[Number]:
        drawn = rows(key, state, config.sampling.samples)
        return compare(data, space, drawn, f"steps, {config.method} distillation, EMA")

    return System(init=init, step=step, score=score, sample=make_pictures, evaluate=evaluate)


def consistent(parts: ScoreModel, denoise: Denoiser) -> Denoiser:
    """The consistency function whose network is a denoiser's, read as the target F of EDM."""
    schedule = parts.schedule
    network = lambda x_t, t: from_x_0(denoise(x_t, t), x_t, schedule, t, edm())  # noqa: E731
    return consistency_function(network, schedule, FIRST)


EXPERIMENT = Experiment("distillation", __doc__ or "", PRESETS, build)

if __name__ == "__main__":
    raise SystemExit(main(EXPERIMENT))
