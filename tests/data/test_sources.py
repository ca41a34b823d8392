"""Data sets by name: those that need no files, and names that are wrong."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import toy
from jaxgen.data.records import DataError
from jaxgen.data.sources import load


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, bunch = load("digits"), load_digits()
    parts = (data.train, data.validation, data.test)
    assert [len(part) for part in parts] == [1295, 143, 359]
    both = np.concatenate([part["x"] for part in parts])[..., 0]
    labels = np.concatenate([part["label"] for part in parts])
    key = lambda x, y: sorted(
        (i.astype(np.uint8).tobytes(), int(j)) for i, j in zip(x, y, strict=True)
    )
    assert key(both, labels) == key(bunch.images, bunch.target)
    assert (data.shape, data.classes, data.kind.levels) == ((8, 8, 1), 10, 17)
    assert (both.dtype, labels.dtype) == (np.uint8, np.int32)
    assert both.max() == data.kind.levels - 1
    np.testing.assert_array_equal(data.given(12)["label"], [*range(10), 0, 1])


@pytest.mark.parametrize("name", toy.DENSITIES)
def test_toy_densities_are_drawn_apart_and_known(name):
    """Points are four times those of the density, and so its log density is less by 2 log 4."""
    data, again, density = load(name), load(name), toy.DENSITIES[name]
    parts = {"train": (data.train, 0), "validation": (data.validation, 2), "test": (data.test, 1)}
    assert [len(part) for part, _ in parts.values()] == [50_000, 5_000, 10_000]
    for part, seed in parts.values():
        want = 4 * density.sample(np.random.default_rng(seed), len(part))
        np.testing.assert_array_equal(part["x"], want)
        assert not part["label"].any()
    np.testing.assert_array_equal(again.train["x"], data.train["x"])
    assert (data.shape, data.classes, data.kind.noun) == ((2,), 1, "points")
    if density.modes is not None:
        np.testing.assert_array_equal(data.modes, 4 * density.modes)
    x = jnp.asarray(data.test["x"][:3])
    want = density.log_prob(x / 4) - 2 * np.log(4)
    np.testing.assert_allclose(data.log_prob(x), want, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "unknown data set 'mnits': did you mean mnist"),
        ("digit", "did you mean digits"),
        ("swisroll", "did you mean swissroll"),
        ("folders:here", "did you mean folder:PATH"),
        ("qqqqq", "unknown data set 'qqqqq': choose digits, 8gaussians, .* or an image set"),
        ("qqqqq", "folder:PATH, text:PATH, pairs:PATH, domains:PATH, hf:NAME_OR_PATH"),
    ],
)
def test_unknown_names_come_with_the_nearest(name, message):
    with pytest.raises(DataError, match=message):
        load(name)
