"""A teacher that learns from data, and rounds of students that take fewer steps than their teacher.

``experiments.distillation`` is its options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.diffusion.guidance import Weight
from jaxgen.diffusion.parameterization import Denoiser, x_0_of
from jaxgen.diffusion.process import diffuse
from jaxgen.diffusion.samplers import consistency, ddim
from jaxgen.diffusion.schedules import ContinuousSchedule, uniform_grid
from jaxgen.evaluation.report import Number
from jaxgen.losses import distillation as losses
from jaxgen.losses.denoising import squared_error
from jaxgen.losses.times import stratified_times
from jaxgen.plotting import save_rows
from jaxgen.systems.conditions import Conditions
from jaxgen.systems.diffusion import Diffusion
from jaxgen.training.step import Metrics, Now

FIRST = 0.02  # the time at which a consistency function is the identity


class Lesson(NamedTuple):
    """What a student learns from; all are denoisers but the number."""

    student: Denoiser
    teacher: Denoiser
    average: Denoiser  # the student with its moving average
    steps: Array  # that the student is to take


class Method(Protocol):
    """How a student learns of its teacher."""

    name: str

    def error(
        self, student: Denoiser, schedule: ContinuousSchedule, x_t: Array, t: Array, x_0: Array
    ) -> Array:
        """Of the first teacher, which learns from data: ``[B]``."""
        ...

    def loss(self, key: Array, lesson: Lesson, schedule: ContinuousSchedule, x_0: Array) -> Array:
        """Of a student at ``x_0 [B, ...]``: ``[B]``."""
        ...

    def steps(self, first: int, round: int) -> int:
        """That a student takes, where the teacher took the first."""
        ...

    def student(self, halvings: int, rounds: int) -> int | None:
        """The round whose student takes so many halvings fewer steps, if there is one."""
        ...

    def drawing(self, model: Diffusion, n: int) -> Diffusion:
        """The sampler of n steps of a student."""
        ...


class Progressive:
    """A student's step lands where two of its teacher's do (Salimans & Ho 2022)."""

    name = "progressive"
    error = staticmethod(losses.truncated_error)

    def loss(self, key: Array, lesson: Lesson, schedule: ContinuousSchedule, x_0: Array) -> Array:
        student, teacher, _, steps = lesson
        return losses.progressive_loss(key, student, teacher, schedule, x_0, steps)

    def steps(self, first: int, round: int) -> int:
        return first // 2**round

    def student(self, halvings: int, rounds: int) -> int | None:
        return halvings if halvings <= rounds else None

    def drawing(self, model: Diffusion, n: int) -> Diffusion:
        return replace(model, solver=ddim(), times=uniform_grid(n), guidance=0.0)


@dataclass(frozen=True)
class Consistency:
    """One student says the same before and after each of ``n`` steps of its teacher (Song et al.
    2023), and so takes any number of them."""

    n: int
    name = "consistency"

    def error(
        self, student: Denoiser, schedule: ContinuousSchedule, x_t: Array, t: Array, x_0: Array
    ) -> Array:
        return squared_error(x_0_of(student)(x_t, t), x_0)

    def loss(self, key: Array, lesson: Lesson, schedule: ContinuousSchedule, x_0: Array) -> Array:
        consistent = partial(losses.consistent, schedule=schedule, first=FIRST)
        student, target = consistent(x_0_of(lesson.student)), consistent(x_0_of(lesson.average))
        times, move = (
            uniform_grid(self.n, last=FIRST),
            losses.teacher_step(lesson.teacher, schedule),
        )
        return losses.consistency_loss(key, student, target, schedule, x_0, times, move)

    def steps(self, first: int, round: int) -> int:
        return 1 if round else first

    def student(self, halvings: int, rounds: int) -> int | None:
        return rounds or None

    def drawing(self, model: Diffusion, n: int) -> Diffusion:
        grid = np.append(uniform_grid(n, last=FIRST)[:-1], 0.0)
        refine = partial(losses.consistent, schedule=model.schedule, first=FIRST)
        return replace(model, solver=consistency(FIRST), times=grid, refine=refine, guidance=0.0)


@dataclass(frozen=True, eq=False)
class Distillation(runner.System):
    """A teacher that learns from data, and rounds of students, each of the one before it.

    A student's memory holds its teacher, the networks of all rounds, the first teacher's first, the
    number of steps that it learns to take and its teacher's guidance, so that all rounds are one
    program.
    """

    model: Diffusion  # the teacher's
    method: Method
    first: int  # steps of the teacher
    starts: tuple[int, ...]  # the updates before each round
    student: Any  # the optimizer of a round
    guidance: float = 0.0  # of the teacher, which the students learn
    round: int = 0  # 0 is the teacher

    def init(self, key: Array) -> Any:
        return self.model.init(key)

    def stages(self) -> tuple[tuple[int, runner.System], ...]:
        rounds = [
            (start, replace(self, optimizer=self.student, round=r))
            for r, start in enumerate(self.starts, 1)
        ]
        return ((0, self), *rounds)

    def grow(self, key: Array, weights: runner.Weights) -> Any:
        networks = weights.memory.get("networks")
        if networks is None:
            networks = jax.tree.map(lambda p: jnp.stack([p] * len(self.starts)), weights.params)
        put = lambda all_, p: jnp.asarray(all_).at[self.round - 1].set(p)  # noqa: E731
        return {
            "params": weights.params,
            "teacher": jax.tree.map(jnp.array, weights.params),
            "networks": jax.tree.map(put, networks, weights.params),
            "steps": jnp.asarray(self.method.steps(self.first, self.round), jnp.int32),
            "guidance": jnp.asarray(self.guidance if self.round == 1 else 0.0),
        }

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """The error of the teacher at data, or of a student at its teacher."""
        key, key_network = jax.random.split(key)
        x_0 = self.data.kind.values(batch["x"])
        network, schedule = self.model.network, self.model.schedule
        network = network.in_loops() if self.model.looped else network
        training = network.training(params, batch, key_network) if now.train else None
        student = self.model.denoiser_of(training or network.given(params, batch))
        if self.round == 0:
            key_t, key_eps = jax.random.split(key)
            t = stratified_times(key_t, len(x_0), low=1e-3)
            x_t = diffuse(x_0, jax.random.normal(key_eps, x_0.shape), schedule(t))
            return self.method.error(student, schedule, x_t, t, x_0), {}
        average = now.players["model"].ema if now.train else params
        teacher, average = self.teacher(now.memory, batch), self.model.denoise(average, batch)
        lesson = Lesson(student, teacher, average, now.memory["steps"])
        return self.method.loss(key, lesson, schedule, x_0), {}

    def teacher(self, memory: Any, conditions: Conditions) -> Denoiser:
        """That of a student, guided in the first round."""
        if not self.guidance:
            return self.model.denoise(memory["teacher"], conditions)
        weight: Weight = lambda t: memory["guidance"] * jnp.ones_like(t)  # noqa: E731
        return self.model.guided(memory["teacher"], conditions, weight)

    def sample(self, key: Array, weights: runner.Weights, given: Any) -> Array:
        n = self.method.steps(self.first, self.round)
        return self.drawing(n, student=self.round > 0).sample(key, weights, given)

    def drawing(self, n: int, student: bool) -> Diffusion:
        """The sampler of n steps of the teacher or of a student."""
        if student:
            return self.method.drawing(self.model, n)
        return replace(self.model, solver=ddim(), times=uniform_grid(n), guidance=self.guidance)

    @property
    def labelled(self) -> bool:
        return self.model.labelled


# --- every student at its steps ----------------------------------------------------------------


def rows(trained: runner.Trained[Distillation]) -> dict[str, runner.Samples]:
    """Samples of the teacher at falling numbers of steps, then of the student of each."""
    system, weights = trained.system, trained.weights
    networks = weights.memory.get("networks")
    each = [weights.params]  # the teacher, and the student of every round that was begun
    if networks is not None:
        each = [jax.tree.map(lambda p, r=r: p[r], networks) for r in range(system.round)] + each
    found = {}
    for student in (False, True):
        for r in range(int(student), system.first.bit_length()):
            which = system.method.student(r, len(each) - 1) if student else 0
            if which is not None:
                n = system.first // 2**r
                name = f"{'student' if student else 'teacher'}, {n}"
                weights, drawing = runner.Weights(each[which], {}), system.drawing(n, student)
                found[name] = trained.with_weights(weights, drawing).samples()
    return found


def picture(trained: runner.Trained[Distillation]) -> Path:
    """``distillation.png``: teacher and students from the same noise."""
    drawn = trained.once("rows", lambda: rows(trained))
    shown = {name: samples.x[:10] for name, samples in drawn.items()}
    return save_rows(trained.results / "distillation.png", shown)


def table(trained: runner.Trained[Distillation]) -> list[Number]:
    """The Frechet distance and class agreement of teacher and students."""
    how = f"steps, {trained.system.method.name} distillation, EMA"
    return runner.compared(trained, trained.once("rows", lambda: rows(trained)), how)
