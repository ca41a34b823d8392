"""What the samples of a run are worth, by the modality of its data."""

from __future__ import annotations

from collections.abc import Mapping

from jaxgen.evaluation.points import NotFinite
from jaxgen.evaluation.report import Number, compare
from jaxgen.runner.modalities import NoArray, array_of, measure_samples
from jaxgen.runner.trained import Samples, Trained
from jaxgen.training.logging import console


def quality(trained: Trained) -> list[Number]:
    """Distances between samples and data, and the agreement with what was asked for; none, and why
    is said, where samples cannot be measured."""
    try:
        return measure_samples(trained.system.likened().kind, trained, trained.samples())
    except (NotFinite, NoArray) as error:
        console.print(f"samples are not measured: {error}")
        return []


def compared(trained: Trained, rows: Mapping[str, Samples], how: str) -> list[Number]:
    """A table of samplers: the Frechet distance and class agreement of each row's images, with the
    classes that these very samples were drawn for."""
    labelled = trained.system.labelled
    drawn = {name: (array_of(s), s.labels if labelled else None) for name, s in rows.items()}
    return compare(trained.system.likened(), trained.features, drawn, how)
