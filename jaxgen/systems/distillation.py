"""A teacher that learns from data, and rounds of students that take fewer steps than their teacher.

``experiments.distillation`` is its options.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jaxgen import runner
from jaxgen.diffusion.guidance import Weight
from jaxgen.diffusion.process import diffuse
from jaxgen.diffusion.samplers import consistency, ddim
from jaxgen.diffusion.schedules import uniform_grid
from jaxgen.evaluation.report import Number
from jaxgen.losses import distillation as losses
from jaxgen.losses.denoising import squared_error
from jaxgen.losses.times import stratified_times
from jaxgen.plotting import save_rows
from jaxgen.systems.diffusion import Diffusion
from jaxgen.training.step import Metrics, Now

FIRST = 0.02  # the time at which a consistency function is the identity


@dataclass(frozen=True, eq=False)
class Distillation(runner.System):
    """A teacher that learns from data, and rounds of students, each of the one before it.

    Progressive: a student's step lands where two of its teacher's do (Salimans & Ho 2022). Else one
    student says the same before and after a step of its teacher (Song et al. 2023).

    A student's memory holds its teacher, the networks of all rounds, the first teacher's first, the
    number of steps that it learns to take and its teacher's guidance, so that all rounds are one
    program.
    """

    model: Diffusion  # the teacher's
    progressive: bool
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
            "steps": jnp.asarray(self.first // 2**self.round, jnp.int32),
            "guidance": jnp.asarray(self.guidance if self.round == 1 else 0.0),
        }

    def loss(self, params: Any, batch: Any, key: Array, now: Now) -> tuple[Array, Metrics]:
        """The error of the teacher at data, or of a student at its teacher."""
        key_t, key_eps, key_network = jax.random.split(key, 3)
        x_0, labels = self.data.kind.values(batch["x"]), batch["label"]
        network = self.model.network
        network = network.in_loops() if self.model.looped else network
        told = network.training(params, labels, key_network) if now.train else None
        student = self.model.denoiser_of(told or network.given(params, labels))
        eps = jax.random.normal(key_eps, x_0.shape)
        if self.round == 0:
            t = stratified_times(key_t, len(x_0), low=1e-3)
            return self.taught(student, diffuse(x_0, eps, self.model.schedule(t)), t, x_0), {}
        n = now.memory["steps"] if self.progressive else self.first
        i = jax.random.randint(key_t, x_0.shape[:1], 1, n + 1)
        t, s = losses.neighbours(i, n, last=0.0 if self.progressive else FIRST)
        x_t = diffuse(x_0, eps, self.model.schedule(t))
        own = now.players["model"].ema if now.train else params
        target = jax.lax.stop_gradient(self.target(x_t, t, s, labels, now.memory, own))
        if not self.progressive:
            student = losses.consistent(student, self.model.schedule, FIRST)
        return self.taught(student, x_t, t, target), {}

    def taught(self, student: Any, x_t: Array, t: Array, target: Array) -> Array:
        """The error at a target, as the method weighs it."""
        if self.progressive:
            return losses.truncated_error(student, self.model.schedule, x_t, t, target)
        return squared_error(student(x_t, t), target)

    def target(self, x_t: Array, t: Array, s: Array, labels: Array, memory: Any, own: Any) -> Array:
        """Where the teacher's two steps land, or what the student itself says after one of them."""
        schedule, teacher = self.model.schedule, self.model.denoise(memory["teacher"], labels)
        if self.guidance:
            weight: Weight = lambda t: memory["guidance"] * jnp.ones_like(t)  # noqa: E731
            teacher = self.model.guided(memory["teacher"], labels, weight)
        if self.progressive:
            return losses.two_step_target(teacher, schedule, x_t, t, s)
        x_s = losses.teacher_step(teacher, schedule)(x_t, t, s)
        return losses.consistent(self.model.denoise(own, labels), schedule, FIRST)(x_s, s)

    def sample(self, key: Array, weights: runner.Weights, given: Any) -> Array:
        n = self.first // 2**self.round if self.progressive else 1
        return self.drawing(n, student=self.round > 0).sample(key, weights, given)

    def drawing(self, n: int, student: bool) -> Diffusion:
        """The sampler of n steps of the teacher or of a student."""
        grid, guidance = uniform_grid(n), 0.0 if student else self.guidance
        if student and not self.progressive:
            grid = np.append(uniform_grid(n, last=FIRST)[:-1], 0.0)
            refine = partial(losses.consistent, schedule=self.model.schedule, first=FIRST)
            return replace(self.model, solver=consistency(FIRST), times=grid, refine=refine)
        return replace(self.model, solver=ddim(), times=grid, guidance=guidance)

    @property
    def labelled(self) -> bool:
        return self.model.labelled


# --- every student at its steps ----------------------------------------------------------------


def rows(trained: runner.Trained[Distillation]) -> dict[str, np.ndarray]:
    """Samples of the teacher at falling numbers of steps, then of the student of each."""
    system, weights = trained.system, trained.weights
    networks = weights.memory.get("networks")
    each = [weights.params]  # the teacher, and the student of every round that was begun
    if networks is not None:
        each = [jax.tree.map(lambda p, r=r: p[r], networks) for r in range(system.round)] + each
    found = {}
    for student in (False, True):
        for r in range(system.first.bit_length()):
            which = min(r, len(each) - 1) if system.progressive else len(each) - 1
            if student and (r == 0 or (system.progressive and r >= len(each))):
                continue
            n, params = system.first // 2**r, each[which if student else 0]
            name = f"{'student' if student else 'teacher'}, {n}"
            of = trained.with_weights(runner.Weights(params, {}), system.drawing(n, student))
            found[name] = of.draw()
    return found


def picture(trained: runner.Trained[Distillation]) -> Path:
    """``distillation.png``: teacher and students from the same noise."""
    shown = {name: x[:10] for name, x in trained.once("rows", lambda: rows(trained)).items()}
    return save_rows(trained.results / "distillation.png", shown)


def table(trained: runner.Trained[Distillation]) -> list[Number]:
    """The Frechet distance and class agreement of teacher and students."""
    method = "progressive" if trained.system.progressive else "consistency"
    how = f"steps, {method} distillation, EMA"
    return runner.compared(trained, trained.once("rows", lambda: rows(trained)), how)
