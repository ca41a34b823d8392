"""What a linear classifier can read of features, and what it cannot."""

import numpy as np
import pytest

from jaxgen.evaluation.probes import probe

RNG = np.random.default_rng(0)
LABELS = np.arange(3000) % 3
PARTS = [{"x": x, "label": LABELS} for x in RNG.standard_normal((2, 3000, 5))]


def test_what_can_be_separated_by_a_plane_is_classified_without_fault():
    """Whatever its scale and place: features are standardized by the training set's moments."""
    scale, place = np.array([1e-3, 1.0, 1e3]), np.array([5.0, -3.0, 1e4])
    one_hot = lambda batch: np.eye(3)[batch["label"]] * scale + place
    found = probe(one_hot, *PARTS)
    assert (found.dimension, found.accuracy) == (3, 1.0)
    assert "3000 training examples, share right of 3000 test" in found.protocol


def test_what_tells_nothing_is_classified_by_chance():
    found = probe(lambda batch: batch["x"], *PARTS)
    assert found.dimension == 5
    assert abs(found.accuracy - 1 / 3) < 4 * np.sqrt(2 / 9 / 3000)  # four standard errors


def test_what_no_plane_separates_is_not_read():
    """The sign of a product: a linear classifier of the factors does as well as chance."""
    parts = [{"x": b["x"][:, :2], "label": b["x"][:, :2].prod(axis=1) > 0} for b in PARTS]
    assert probe(lambda b: b["x"], *parts).accuracy < 0.6
    assert probe(lambda b: np.sign(b["x"].prod(axis=1, keepdims=True)), *parts).accuracy == 1


def test_a_single_class_is_refused():
    with pytest.raises(ValueError, match="class"):
        probe(lambda batch: batch["x"], PARTS[0] | {"label": np.zeros(3000, int)}, PARTS[1])
