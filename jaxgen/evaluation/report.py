"""What generated images are worth: distances, classes, and closeness to the training set."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jaxgen.data.records import DataSet, some, spread
from jaxgen.evaluation.distances import frechet_distance, kernel_distance, nearest_distances
from jaxgen.evaluation.features import (
    NUMBERS,
    FeatureSpace,
    features_of,
    image_chunks,
    signed,
)
from jaxgen.files import replacing
from jaxgen.training.logging import console

# Images of either set in a measure whose time grows with their product:
KERNEL_LIMIT = 10_000
NEAREST_LIMIT = 1000  # held against every training image
SVM_LIMIT = 10_000  # and in a support-vector machine, which takes minutes to fit to more


@dataclass(frozen=True)
class Reference:
    """What a number is compared with: a published value, or the same measure of the data."""

    value: float
    source: str  # "Ho et al. 2020, table 1", "validation points"
    # What is wanted of the number: to be equal, or at most ("lower") or at least ("higher") this.
    direction: Literal["equal", "lower", "higher"] = "equal"
    tolerance: float = 0.0  # in the number's units

    def reached(self, value: float) -> bool:
        """Whether a value is what is wanted, within the tolerance."""
        beyond = value - self.value
        beyond = {"equal": abs(beyond), "lower": beyond, "higher": -beyond}[self.direction]
        return beyond <= self.tolerance

    def __str__(self) -> str:
        sign = {"equal": "", "lower": "≤ ", "higher": "≥ "}[self.direction]
        spread = f" ± {self.tolerance:.2g}" if self.tolerance else ""
        return f"{sign}{self.value:.4g}{spread} ({self.source})"


@dataclass(frozen=True)
class Number:
    """A measured value and how it was measured; ``std`` where it is the mean of several runs, and
    ``reference`` where there is something to compare it with."""

    name: str
    value: float
    protocol: str
    std: float | None = None
    reference: Reference | None = None


def write_report(path: Path, numbers: list[Number], weights: str = "") -> None:
    """Writes numbers with their protocols as JSON, but for those that are no numbers there.

    Numbers of other names that the file holds already are kept, if they are of the same
    ``weights``, by their fingerprint.
    """
    known = {n.name for n in numbers}
    kept = [
        row
        for row in read_report(path)
        if row["name"] not in known and weights and row.get("weights") == weights
    ]
    of = {"weights": weights} if weights else {}
    finite = [
        n if n.reference is None or math.isfinite(n.reference.value) else replace(n, reference=None)
        for n in numbers
        if math.isfinite(n.value)
    ]
    rows = [{k: v for k, v in asdict(n).items() if v is not None} | of for n in finite]
    with replacing(path) as file:
        file.write((json.dumps(rows + kept, indent=2) + "\n").encode())


def read_report(path: Path) -> list[dict[str, Any]]:
    """The numbers of a file, none where there is no such file."""
    try:
        rows = json.loads(path.read_text())
    except (OSError, ValueError):
        return []
    return [row for row in rows if isinstance(row, dict) and "name" in row]


def over_seeds(groups: Mapping[str, list[list[Number]]]) -> list[Number]:
    """Each number's mean and standard deviation over the runs of a group, by the group's name."""
    rows = []
    for name, runs in groups.items():
        by_name: dict[str, list[Number]] = {}
        for number in (n for run in runs for n in run):  # what some runs lack is of the others
            by_name.setdefault(number.name, []).append(number)
        for same in by_name.values():
            values = [number.value for number in same]
            std = float(np.std(values, ddof=1)) if len(values) > 1 else None
            reference = same[0].reference if len({n.reference for n in same}) == 1 else None
            seeds = f"mean of {len(values)} seeds; " if len(values) > 1 else ""
            title = f"{same[0].name}, {name}" if name else same[0].name
            rows.append(
                Number(title, float(np.mean(values)), seeds + same[0].protocol, std, reference)
            )
    return rows


def print_report(numbers: list[Number], path: Path, console: Any) -> None:
    """Shows numbers with their protocols as a table, under the name of their file."""
    from rich.table import Table

    table = Table(title=str(path), title_justify="left")
    compared = any(n.reference for n in numbers)
    for column in ("number", "value", *(["reference"] if compared else []), "protocol"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for n in numbers:
        spread = "" if n.std is None else f" ± {n.std:.2g}"
        reference = [str(n.reference) if n.reference else ""] if compared else []
        table.add_row(n.name, f"{n.value:.4g}{spread}", *reference, n.protocol)
    console.print(table)


def measured(name: str, value: Callable[[], float], protocol: str) -> list[Number]:
    """The number, or none where the data cannot carry it, and why is said."""
    try:
        return [Number(name, value(), protocol)]
    except ValueError as error:
        console.print(f"{name} is left out: {str(error).splitlines()[0]}")
        return []


def compare(
    data: DataSet,
    space: FeatureSpace,
    rows: Mapping[str, tuple[np.ndarray, np.ndarray | None]],
    how: str,
) -> list[Number]:
    """The Frechet distance of each row's samples, and their class agreement where conditional.

    For tables of samplers: a row is (samples ``[N, H, W, C]`` in [-1, 1], labels ``[N]`` or None)
    by its name, and the training set's features are made once.
    """
    real = features_of(data, space, data.train)
    numbers = []
    for row, (samples, labels) in rows.items():
        x = data.kind.nearest(samples)
        drawn = f"{len(x)} samples ({row}, {how})"
        protocol = f"{drawn} against {len(real)} training images, {space} features"
        distance = lambda x=x: frechet_distance(space.features(x), real)  # noqa: E731
        numbers += measured(f"frechet_distance, {row}", distance, protocol)
        if labels is not None and space.classify is not None:
            agreement = float(np.mean(space.classify(x) == labels))
            judge = f"{space} of {space.accuracy:.1%} test accuracy"
            numbers.append(Number(f"class_agreement, {row}", agreement, f"{drawn}, {judge}"))
    return numbers


def sample_numbers(
    data: DataSet, space: FeatureSpace, samples: np.ndarray, labels: np.ndarray | None, how: str
) -> list[Number]:
    """Measures samples in [-1, 1] ``[N, H, W, C]``, drawn for ``labels [N]`` where conditional.

    Samples are first rounded to the values that a pixel of the data can take. ``how`` says how
    they were drawn and becomes part of each protocol.
    """
    n, samples = len(samples), data.kind.nearest(samples)
    shown = samples[spread(n, NEAREST_LIMIT)]
    test = signed(data, some(data.test, NEAREST_LIMIT)["x"])
    parts, distances, test_distances = [], np.inf, np.inf
    for x, _ in image_chunks(data, data.train):
        parts.append(space.features(x))
        distances = np.minimum(distances, nearest_distances(shown, x))
        test_distances = np.minimum(test_distances, nearest_distances(test, x))
    real_features = np.concatenate(parts)
    generated_features = space.features(samples)
    test_features = features_of(data, space, data.test)
    drawn = f"{n} samples ({how})"
    against = f"{drawn} against {len(real_features)} training images, {space} features"
    reference = (
        f"{len(test_features)} test against {len(real_features)} training images, {space} features"
    )
    numbers = [
        *measured(
            "frechet_distance", lambda: frechet_distance(generated_features, real_features), against
        ),
        *measured(
            "frechet_distance_of_test",
            lambda: frechet_distance(test_features, real_features),
            reference,
        ),
        *measured(
            "kernel_distance",
            lambda: kernel_distance(generated_features[:KERNEL_LIMIT], _some(real_features)),
            f"{drawn}, at most {KERNEL_LIMIT} of either set, {space} features",
        ),
    ]
    if space.classify is not None:
        classes = space.classify(samples)
        judge = f"{space} of {space.accuracy:.1%} test accuracy"
        covered = len(np.unique(classes))
        numbers.append(Number("classes_covered", covered, f"{drawn}, {judge}"))
        if labels is not None:
            agreement = float(np.mean(classes == labels))
            numbers.append(Number("class_agreement", agreement, f"{drawn}, {judge}"))
            if len(data.train) <= SVM_LIMIT and len(data.train) * samples[0].size <= 2 * NUMBERS:
                numbers += _svm_agreement(data, samples, labels, drawn)
    to_training = (
        f"Euclidean distance in [-1, 1] pixels to the nearest of {len(real_features)} training "
        "images"
    )
    of_samples = f"over {len(shown)} samples, {to_training}"
    numbers += [
        Number("nearest_training_image", float(np.median(distances)), f"median {of_samples}"),
        Number("nearest_training_image_min", float(np.min(distances)), f"smallest {of_samples}"),
        Number(
            "nearest_training_image_of_test",
            float(np.median(test_distances)),
            f"median over {len(test)} test images, {to_training}",
        ),
    ]
    return numbers


def _some(features: np.ndarray) -> np.ndarray:
    return features[spread(len(features), KERNEL_LIMIT)]


def _svm_agreement(
    data: DataSet, samples: np.ndarray, labels: np.ndarray, drawn: str
) -> list[Number]:
    """An independent judge: a support-vector machine with RBF kernel on the pixels."""
    from sklearn.svm import SVC

    train, test = (some(source, SVM_LIMIT) for source in (data.train, data.test))
    flat = lambda x: x.reshape(len(x), -1)  # noqa: E731
    if len(np.unique(train["label"])) < 2:
        console.print("svm_class_agreement is left out: it needs two classes to train on")
        return []
    judge = SVC(C=10.0, gamma="scale")
    judge.fit(flat(signed(data, train["x"])), train["label"])
    accuracy = judge.score(flat(signed(data, test["x"])), test["label"])
    agreement = float(np.mean(judge.predict(flat(samples)) == labels))
    protocol = f"{drawn}, scikit-learn SVM of {accuracy:.1%} test accuracy"
    return [Number("svm_class_agreement", agreement, protocol)]
