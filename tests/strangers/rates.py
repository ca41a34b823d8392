"""A study: two runs of one experiment, with different options, side by side."""

from dataclasses import dataclass

from strangers import pool

from jaxgen.data.records import Points
from jaxgen.evaluation.points import sliced_wasserstein
from jaxgen.evaluation.report import Number
from jaxgen.plotting import save_points
from jaxgen.runner import Data, Need, Sampling, Study


@dataclass(frozen=True)
class Config:
    data: Data = Data("moons")
    sampling: Sampling = Sampling(samples=100)


def distances(runs, config):
    found = {name: sliced_wasserstein(t.draw(), t.test(100)["x"]) for name, t in runs.items()}
    return [Number(name, value, "sliced Wasserstein") for name, value in found.items()]


def clouds(runs, config, directory):
    return save_points(directory / "clouds.png", {name: t.draw() for name, t in runs.items()})


NEEDS = lambda config: {
    "slow": Need(pool.EXPERIMENT, "--learning-rate 1e-4"),
    "fast": Need(pool.EXPERIMENT, "--learning-rate 1e-2"),
}
STUDY = Study("rates", __doc__, {"moons": Config()}, NEEDS, (clouds,), (distances,), (Points,))
