"""What the samples of a run are worth, by the kind of its data."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from jaxgen.data.records import Image, Points
from jaxgen.evaluation.points import point_numbers
from jaxgen.evaluation.report import Number, compare, sample_numbers
from jaxgen.runner.trained import Trained


def quality(trained: Trained) -> list[Number]:
    """Distances between samples and data, and the agreement with what was asked for."""
    data, x = trained.system.likened(), trained.draw()
    if isinstance(data.kind, Image):
        labels = trained.labels(len(x)) if trained.system.labelled else None
        return sample_numbers(data, trained.features, x, labels, trained.how)
    if isinstance(data.kind, Points) and x.ndim == 2:
        return point_numbers(data, x, trained.how)
    return []


def compared(trained: Trained, rows: Mapping[str, np.ndarray], how: str) -> list[Number]:
    """A table of samplers: the Frechet distance and class agreement of each row's images."""
    labelled = trained.system.labelled
    drawn = {name: (x, trained.labels(len(x)) if labelled else None) for name, x in rows.items()}
    return compare(trained.system.likened(), trained.features, drawn, how)
