"""Representations, compared by what a linear classifier makes of them (Alain & Bengio 2017)."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from jaxgen.data.records import Batch


class Probe(NamedTuple):
    """What a linear classifier made of a representation."""

    dimension: int
    accuracy: float  # share of the test examples that is right
    protocol: str


def probe(features: Callable[[Batch], np.ndarray], train: Batch, test: Batch) -> Probe:
    """A logistic regression of ``label`` on standardized ``features(batch) [N, F]``.

    It is fitted to ``train``, which also says what standardized means, and judged by ``test``.
    scikit-learn's, with its penalty of 1.

    Raises:
      ValueError: if all examples of ``train`` are of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = features(train)
    judge = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    accuracy = judge.fit(x, train["label"]).score(features(test), test["label"])
    fitted = f"of {len(x)} training examples, share right of {len(test['label'])} test"
    return Probe(x.shape[1], float(accuracy), f"logistic regression, standardized, {fitted}")
