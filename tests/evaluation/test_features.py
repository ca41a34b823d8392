import dataclasses
import time
import tracemalloc

import numpy as np
import pytest

from jaxgen.data.cache import cache_dir
from jaxgen.data.records import Arrays, Image
from jaxgen.data.sources import load
from jaxgen.evaluation import features as module
from jaxgen.evaluation import report
from jaxgen.evaluation.features import (
    FeatureSpace,
    feature_space,
    features_of,
    image_chunks,
    signed,
)
from jaxgen.evaluation.report import sample_numbers

DATA = load("digits")


@pytest.fixture(scope="module")
def space():
    return feature_space(DATA)


def test_the_classifier_knows_the_digits_and_says_how_well(space):
    labels = space.classify(signed(DATA, DATA.test["x"]))
    want = np.mean(labels == DATA.test["label"])
    assert space.accuracy == want > 0.96
    features = space.features(signed(DATA, DATA.train["x"]))
    assert features.shape == (1295, 64)
    np.testing.assert_allclose(np.mean(features**2), 1.0, rtol=1e-3)


def test_it_is_trained_once(space):
    (path,) = (cache_dir() / "features").glob("digits-*")
    written, begun = path.stat().st_mtime_ns, time.monotonic()
    again = feature_space(DATA)
    assert time.monotonic() - begun < 5
    assert path.stat().st_mtime_ns == written
    x = signed(DATA, DATA.test["x"])
    np.testing.assert_allclose(again.features(x), space.features(x), rtol=1e-5)


def test_real_images_are_near_and_noise_is_far(space):
    test, labels = signed(DATA, DATA.test["x"]), DATA.test["label"]
    noise = np.random.default_rng(0).uniform(-1, 1, test.shape).astype(np.float32)
    named = lambda numbers: {n.name: n for n in numbers}
    real = named(sample_numbers(DATA, space, test, labels, "test images"))
    bad = named(sample_numbers(DATA, space, noise, labels, "noise"))
    assert real["frechet_distance"].value == real["frechet_distance_of_test"].value
    assert bad["frechet_distance"].value > 5 * real["frechet_distance"].value
    assert bad["kernel_distance"].value > 10 * real["kernel_distance"].value
    assert real["class_agreement"].value == space.accuracy
    assert real["svm_class_agreement"].value > 0.98
    assert bad["svm_class_agreement"].value < 0.3
    assert real["classes_covered"].value == 10
    assert "359 samples (test images)" in real["frechet_distance"].protocol
    train = named(sample_numbers(DATA, space, signed(DATA, DATA.train["x"])[:50], None, "copies"))
    assert train["nearest_training_image"].value < 1e-5  # copies are found out
    assert "class_agreement" not in train


def test_without_classes_features_are_principal_components():
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 100))
    x = np.clip(low_rank * 20 + 128, 0, 255).astype(np.uint8).reshape(300, 10, 10, 1)
    source = Arrays({"x": x, "label": np.zeros(300, np.int32)})
    data = dataclasses.replace(
        DATA, name="plain", train=source, test=source, kind=Image((10, 10, 1)), classes=1
    )
    space = feature_space(data)
    assert space.classify is None
    variances = space.features(signed(data, source["x"])).var(axis=0)
    assert (np.diff(variances) < 1e-5).all()  # falling, and the first three hold nearly all
    assert variances[:3].sum() > 0.9 * variances.sum()


@dataclasses.dataclass(frozen=True)
class Drawn:
    """A source of images that exist only while they are read."""

    size: int

    def __len__(self):
        return self.size

    def fetch(self, index):
        draw = lambda i: np.random.default_rng(i % 97).integers(256, size=(32, 32, 3))
        return {"x": np.stack([draw(i) for i in index]).astype(np.uint8), "label": index % 3}


def test_memory_does_not_grow_with_the_data(monkeypatch):
    """What is held beside the features is a chunk of images, however many there are."""
    monkeypatch.setattr(module, "NUMBERS", 2**19)  # 128 images
    for limit in ("NEAREST_LIMIT", "KERNEL_LIMIT"):
        monkeypatch.setattr(report, limit, 100)
    take = lambda x: x[:, ::16, ::16, 0].reshape(len(x), -1)
    space = FeatureSpace("four pixels", take, lambda x: take(x).argmax(axis=1), 1.0)
    samples, peaks = np.zeros((20, 32, 32, 3), np.float32), []
    for size in (500, 4000):
        data = dataclasses.replace(
            DATA, train=Drawn(size), test=Drawn(size), kind=Image((32, 32, 3)), classes=3
        )
        tracemalloc.start()
        numbers = {n.name: n for n in sample_numbers(data, space, samples, None, "black")}
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert f"{size} test against {size} " in numbers["frechet_distance_of_test"].protocol
    images = 4000 * 32 * 32 * 3 * 4  # bytes, were they held whole
    assert peaks[1] - peaks[0] < 0.2 * images


def test_a_stream_measures_what_the_whole_would(monkeypatch, space):
    samples = signed(DATA, DATA.test["x"])[::3] + 0.1
    whole = sample_numbers(DATA, space, samples, None, "shifted")
    monkeypatch.setattr(module, "NUMBERS", 2**14)
    assert len(list(image_chunks(DATA, DATA.train))) > 4
    parts = sample_numbers(DATA, space, samples, None, "shifted")
    for a, b in zip(whole, parts, strict=True):
        assert (a.name, a.protocol) == (b.name, b.protocol)
        np.testing.assert_allclose(a.value, b.value, rtol=1e-5)
    features = features_of(DATA, space, DATA.train)
    whole = space.features(signed(DATA, DATA.train["x"]))
    np.testing.assert_allclose(features, whole, rtol=1e-5, atol=1e-6)
