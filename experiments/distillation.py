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
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from experiments import score_sde
from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.diffusion.guidance import Weight
from jaxgen.diffusion.process import diffuse
from jaxgen.diffusion.samplers import consistency, ddim
from jaxgen.diffusion.schedules import uniform_grid
from jaxgen.evaluation.report import Number
from jaxgen.losses import distillation as losses
from jaxgen.losses.denoising import squared_error
from jaxgen.losses.times import stratified_times
from jaxgen.models.denoising import Net
from jaxgen.plotting import save_rows
from jaxgen.systems.diffusion import Diffusion
from jaxgen.training.step import Metrics, Now, adam

FIRST = 0.02  # the time at which a consistency function is the identity


@dataclass(frozen=True)
class Config:
    """Distillation on images."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    net: Net = field(default_factory=Net)
    sampling: runner.Sampling = runner.measuring(lambda: runner.Sampling(1000, 250))
    method: str = "progressive"
    """progressive or consistency."""
    process: str = "cosine"
    """cosine, linear or flow."""
    prediction: str = "v"
    """v or x_0."""
    teacher_steps: runner.Count = 2000
    """Updates of the teacher; the rest of --steps distil."""
    round_steps: runner.Count = 400
    """Updates of each student."""
    first: runner.Count = 64
    """Sampling steps of the teacher, a power of two."""
    guidance: float = 0.0
    """Weight of the teacher's classifier-free guidance, which the students learn."""
    distillation_rate: runner.NonNegative = 1e-3
    """Learning rate at the start of a round; it falls to 0."""


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


@dataclass(frozen=True, eq=False)
class Distillation(runner.System):
    """A teacher that learns from data, and rounds of students, each of the one before it.

    A student's memory holds its teacher, the networks of all rounds, the first teacher's first, and
    the number of steps that it learns to take.
    """

    model: Diffusion  # the teacher's
    config: Config
    round: int = 0  # 0 is the teacher

    def init(self, key: Array) -> Any:
        return self.model.init(key)

    def stages(self) -> tuple[tuple[int, runner.System], ...]:
        rounds, updates = rounds_of(self.config)
        rate, train = self.config.distillation_rate, self.config.train
        how = {"clip": train.clip, "b1": train.b1, "weight_decay": train.weight_decay}
        student = adam(rate, decay="linear", steps=updates, **how)
        first = self.config.teacher_steps
        return (
            (0, self),
            *(
                (first + r * updates, replace(self, optimizer=student, round=r + 1))
                for r in range(rounds)
            ),
        )

    def grow(self, key: Array, weights: runner.Weights) -> Any:
        networks = weights.memory.get("networks")
        if networks is None:
            rounds, _ = rounds_of(self.config)
            networks = jax.tree.map(lambda p: jnp.stack([p] * rounds), weights.params)
        put = lambda all_, p: jnp.asarray(all_).at[self.round - 1].set(p)  # noqa: E731
        return {
            "params": weights.params,
            "teacher": jax.tree.map(jnp.array, weights.params),
            "networks": jax.tree.map(put, networks, weights.params),
            "steps": jnp.asarray(self.config.first // 2**self.round, jnp.int32),
            "guidance": jnp.asarray(self.config.guidance if self.round == 1 else 0.0),
        }

    @property
    def progressive(self) -> bool:
        return self.config.method == "progressive"

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
        n = now.memory["steps"] if self.progressive else self.config.first
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
        if self.config.guidance:
            weight: Weight = lambda t: memory["guidance"] * jnp.ones_like(t)  # noqa: E731
            teacher = self.model.guided(memory["teacher"], labels, weight)
        if self.progressive:
            return losses.two_step_target(teacher, schedule, x_t, t, s)
        x_s = losses.teacher_step(teacher, schedule)(x_t, t, s)
        return losses.consistent(self.model.denoise(own, labels), schedule, FIRST)(x_s, s)

    def sample(self, key: Array, weights: runner.Weights, given: Any) -> Array:
        n = self.config.first // 2**self.round if self.progressive else 1
        return self.drawing(n, student=self.round > 0).sample(key, weights, given)

    def drawing(self, n: int, student: bool) -> Diffusion:
        """The sampler of n steps of the teacher or of a student."""
        grid, guidance = uniform_grid(n), 0.0 if student else self.config.guidance
        if student and not self.progressive:
            grid = np.append(uniform_grid(n, last=FIRST)[:-1], 0.0)
            refine = partial(losses.consistent, schedule=self.model.schedule, first=FIRST)
            return replace(self.model, solver=consistency(FIRST), times=grid, refine=refine)
        return replace(self.model, solver=ddim(), times=grid, guidance=guidance)

    @property
    def labelled(self) -> bool:
        return self.model.labelled


def build(config: Config, data: DataSet) -> Distillation:
    """The distillation of the options."""
    runner.choose("method", config.method, ("progressive", "consistency"))
    runner.choose("process", config.process, ("cosine", "linear", "flow"))
    runner.choose("prediction", config.prediction, ("v", "x_0"))
    if config.train.decay != "none":
        raise runner.Mistake("the rate falls in every round of distillation: leave out --decay.")
    rounds_of(config)
    teacher = score_sde.Config(
        net=config.net, train=config.train, process=config.process, prediction=config.prediction
    )
    model = score_sde.build(teacher, data)
    model.network.check_guidance(config.guidance)
    return Distillation(data, model.optimizer, model, config)


# --- every student at its steps ----------------------------------------------------------------


def rows(trained: runner.Trained[Distillation]) -> dict[str, np.ndarray]:
    """Samples of the teacher at falling numbers of steps, then of the student of each."""
    system, config, weights = trained.system, trained.config, trained.weights
    networks = weights.memory.get("networks")
    each = [weights.params]  # the teacher, and the student of every round that was begun
    if networks is not None:
        each = [jax.tree.map(lambda p, r=r: p[r], networks) for r in range(system.round)] + each
    found = {}
    for student in (False, True):
        for r in range(config.first.bit_length()):
            which = min(r, len(each) - 1) if system.progressive else len(each) - 1
            if student and (r == 0 or (system.progressive and r >= len(each))):
                continue
            n, params = config.first // 2**r, each[which if student else 0]
            name = f"{'student' if student else 'teacher'}, {n}"
            of = trained.with_weights(runner.Weights(params, {}), system.drawing(n, student))
            found[name] = of.draw()
    return found


def picture(trained: runner.Trained[Distillation]) -> Path:
    """``distillation.png``: teacher and students from the same noise."""
    shown = {name: x[:10] for name, x in trained.once("rows", lambda: rows(trained)).items()}
    return save_rows(trained.directory / "distillation.png", shown)


def table(trained: runner.Trained[Distillation]) -> list[Number]:
    """The Frechet distance and class agreement of teacher and students."""
    how = f"steps, {trained.config.method} distillation, EMA"
    return runner.compared(trained, trained.once("rows", lambda: rows(trained)), how)


TEACHERS = score_sde.PRESETS
DIGITS = Config(
    train=replace(TEACHERS["digits"].train, steps=4400, ema=0.99), net=TEACHERS["digits"].net
)
MNIST = Config(
    data=runner.Data("mnist"),
    train=replace(TEACHERS["mnist"].train, steps=50_000, checkpoint_every=5000),
    net=TEACHERS["mnist"].net,
    teacher_steps=20_000,
    round_steps=5000,
    distillation_rate=2e-4,
)
PRESETS = {
    "digits": DIGITS,
    "mnist": MNIST,
    "fashion_mnist": replace(MNIST, data=runner.Data("fashion_mnist")),
}
EXPERIMENT = runner.Experiment(
    "distillation", __doc__, PRESETS, build, pictures=(picture,), measures=(table,)
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
