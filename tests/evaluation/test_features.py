import dataclasses
import time

import numpy as np
import pytest

from jaxgen.data.cache import cache_dir
from jaxgen.data.sources import Arrays, fetch, load
from jaxgen.evaluation.features import feature_space, map_batches, signed_images, spread
from jaxgen.evaluation.report import sample_numbers

DATA = load("digits")


@pytest.fixture(scope="module")
def space():
    return feature_space(DATA)


def test_the_classifier_knows_the_digits_and_says_how_well(space):
    labels = space.classify(signed_images(DATA, DATA.test))
    want = np.mean(labels == DATA.test.label)
    assert space.accuracy == want > 0.96
    features = space.features(signed_images(DATA, DATA.train))
    assert features.shape == (1438, 64)
    np.testing.assert_allclose(np.mean(features**2), 1.0, rtol=1e-3)


def test_it_is_trained_once(space):
    (path,) = (cache_dir() / "features").glob("digits-*")
    written, begun = path.stat().st_mtime_ns, time.monotonic()
    again = feature_space(DATA)
    assert time.monotonic() - begun < 5
    assert path.stat().st_mtime_ns == written
    x = signed_images(DATA, DATA.test)
    np.testing.assert_allclose(again.features(x), space.features(x), rtol=1e-5)


def test_real_images_are_near_and_noise_is_far(space):
    test, labels = signed_images(DATA, DATA.test), DATA.test.label
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
    train = named(sample_numbers(DATA, space, signed_images(DATA, DATA.train)[:50], None, "copies"))
    assert train["nearest_training_image"].value < 1e-5  # copies are found out
    assert "class_agreement" not in train


def test_without_classes_features_are_principal_components():
    rng = np.random.default_rng(0)
    low_rank = rng.standard_normal((300, 3)) @ rng.standard_normal((3, 100))
    x = np.clip(low_rank * 20 + 128, 0, 255).astype(np.uint8).reshape(300, 10, 10, 1)
    source = Arrays(x, np.zeros(300, np.int32))
    data = dataclasses.replace(
        DATA, name="plain", train=source, test=source, shape=(10, 10, 1), classes=1, levels=256
    )
    space = feature_space(data)
    assert space.classify is None
    variances = space.features(signed_images(data, source)).var(axis=0)
    assert (np.diff(variances) < 1e-5).all()  # falling, and the first three hold nearly all
    assert variances[:3].sum() > 0.9 * variances.sum()


def test_batches_are_padded_and_cut():
    x = np.arange(11.0)
    seen = []
    got = map_batches(lambda b: (seen.append(len(b)), b * 2)[1], x, 4)
    np.testing.assert_array_equal(got, 2 * x)
    assert seen == [4, 4, 4]


def test_limits_spread_over_a_sorted_set():
    np.testing.assert_array_equal(spread(5, 10), np.arange(5))
    np.testing.assert_array_equal(spread(100, 5), [0, 24, 49, 74, 99])
    assert len(fetch(DATA.train, spread(len(DATA.train), 7))["x"]) == 7
