"""Progressive distillation (Salimans & Ho 2022) and consistency distillation (Song et al. 2023).

python -m experiments.distillation                        # digits: 64 steps to 32, ..., 2, 1
python -m experiments.distillation --guidance 1           # of a guided teacher
python -m experiments.distillation --prediction x_0       # with x_0 in place of v
python -m experiments.distillation --method consistency   # one function for 1, 2, 4, ... steps

The first --teacher-steps updates train the teacher on data; the rest distil it, in equal rounds,
each to half the steps. `distillation.png` and the table show every student at its steps.

Expect, on digits with seed 0 on two CPU cores: 6 minutes of processor time. Frechet distance of
1000 samples: the teacher with 64, 8, 2, 1 steps 0.06, 0.10, 0.49, 2.02; its students with 8, 2, 1
steps 0.07, 0.08, 0.10.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from jaxgen import runner
from jaxgen.data.records import DataSet
from jaxgen.systems.denoising import Net
from jaxgen.systems.distillation import Consistency, Distillation, Progressive, picture, table

from . import score_sde


@dataclass(frozen=True)
class Config:
    """Distillation on images."""

    data: runner.Data = field(default_factory=runner.Data)
    train: runner.Train = field(default_factory=runner.Train)
    net: Net = field(default_factory=Net)
    sampling: runner.Sampling = runner.measuring(lambda: runner.Sampling(1000, 250))
    method: str = "progressive"  # progressive or consistency.
    process: str = "cosine"  # cosine, linear or flow.
    prediction: str = "v"  # v or x_0.
    teacher_steps: runner.Count = 2000  # Updates of the teacher; the rest of --steps distil.
    round_steps: runner.Count = 400  # Updates of each student.
    first: runner.Count = 64  # Sampling steps of the teacher, a power of two.
    # Weight of the teacher's classifier-free guidance, which the students learn.
    guidance: float = 0.0
    # Learning rate at the start of a round; it falls to 0.
    distillation_rate: runner.NonNegative = 1e-3


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


def build(config: Config, data: DataSet) -> Distillation:
    """The distillation of the options."""
    train = config.train
    methods = {"progressive": Progressive(), "consistency": Consistency(config.first)}
    runner.choose("process", config.process, ("cosine", "linear", "flow"))
    runner.choose("prediction", config.prediction, ("v", "x_0"))
    if train.decay != "none":
        raise runner.Mistake("the rate falls in every round of distillation: leave out --decay.")
    rounds, updates = rounds_of(config)
    teacher = score_sde.Config(
        net=config.net, train=train, process=config.process, prediction=config.prediction
    )
    model = score_sde.build(teacher, data)
    model.network.check_guidance(config.guidance)
    return Distillation(
        data,
        model.optimizer,
        model,
        runner.choose("method", config.method, methods),
        config.first,
        tuple(config.teacher_steps + r * updates for r in range(rounds)),
        runner.make_optimizer(
            replace(
                train,
                learning_rate=config.distillation_rate,
                warmup=0,
                decay="linear",
                steps=updates,
            )
        ),
        config.guidance,
    )


TEACHERS = score_sde.PRESETS
DIGITS = Config(
    train=replace(TEACHERS["digits"].train, steps=4400, ema=0.99), net=TEACHERS["digits"].net
)
MNIST = Config(
    train=replace(TEACHERS["mnist"].train, steps=50_000, checkpoint_every=5000),
    net=TEACHERS["mnist"].net,
    teacher_steps=20_000,
    round_steps=5000,
    distillation_rate=2e-4,
)
PRESETS = runner.by_data(digits=DIGITS, mnist=MNIST, fashion_mnist=MNIST)
EXPERIMENT = runner.Experiment(
    "distillation", __doc__, PRESETS, build, pictures=(picture,), measures=(table,)
)

if __name__ == "__main__":
    raise SystemExit(runner.main(EXPERIMENT))
