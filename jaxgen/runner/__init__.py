"""What any experiment shares: training, checkpoints, devices, sweeps, pictures and measures.

A model of your own is a :class:`System` and an :class:`Experiment` that :func:`main` runs; a run
that is there is opened by :func:`open_run`.
"""

from jaxgen.evaluation.report import Number, Reference
from jaxgen.runner.captions import Plot
from jaxgen.runner.commands import main
from jaxgen.runner.frozen import Frozen
from jaxgen.runner.modalities import draw_samples, measure_samples
from jaxgen.runner.needs import Need
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
from jaxgen.runner.references import RunReference
from jaxgen.runner.study import Study
from jaxgen.runner.system import Experiment, Mistake, System, Weights, choose, classes_told
from jaxgen.runner.trained import Samples, Trained, open_run

__all__ = [
    "Count", "Data", "Experiment", "Frozen", "Mistake", "Natural", "Need", "NonNegative",
    "Number", "Plot", "Range", "Reference", "RunReference", "Samples", "Sampling", "Share",
    "Study", "System", "Train", "Trained", "Weights", "by_data", "choose", "classes_told",
    "compared", "draw_samples", "main", "make_ema_decay", "make_optimizer", "measure_samples",
    "measuring", "open_run", "quality", "samples",
]  # fmt: skip
