"""What any experiment shares: training, checkpoints, devices, sweeps, pictures and measures.

A model of your own is a :class:`System` and an :class:`Experiment` that :func:`main` runs; a run
that is there is opened by :func:`open_run`.
"""

from jaxgen.evaluation.report import Number
from jaxgen.runner.commands import main
from jaxgen.runner.options import (
    Count,
    Data,
    Natural,
    NonNegative,
    Range,
    Sampling,
    Share,
    Train,
    by_data,
    make_ema_decay,
    make_optimizer,
    measuring,
)
from jaxgen.runner.pictures import samples
from jaxgen.runner.quality import compared, quality
from jaxgen.runner.study import Need, Study
from jaxgen.runner.system import Experiment, Mistake, System, Weights, choose, classes_told
from jaxgen.runner.trained import Trained, open_run

__all__ = [
    "Count", "Data", "Experiment", "Mistake", "Natural", "Need", "NonNegative", "Number", "Range",
    "Sampling", "Share", "Study", "System", "Train", "Trained", "Weights", "by_data", "choose",
    "classes_told", "compared", "main", "make_ema_decay", "make_optimizer", "measuring", "open_run",
    "quality", "samples",
]  # fmt: skip
