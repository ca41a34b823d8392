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


def test_paths_are_told_how_to_be_read(tmp_path, monkeypatch):
    for place in ("pics/cats", "words", "pairs/trainA", "pairs/trainB"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "words" / "a.txt").write_text("words")
    monkeypatch.chdir(tmp_path)
    for name, message in {
        "pics": "'pics' is a folder: write folder:pics.",
        "./pics/cats": "'./pics/cats' is a folder: write folder:pics/cats.",
        f"{tmp_path}/pics": f"is a folder: write folder:{tmp_path}/pics.",
        "words": "'words' is a folder: write text:words or folder:words.",
        "pairs": "'pairs' is a folder: write pairs:pairs or domains:pairs.",
        "words/a.txt": "is a file: write text:words/a.txt if it is text to model.",
        "./pisc": r"'./pisc' is not there: did you mean folder:pics\?",
        "/qqqq/zzzz": "'/qqqq/zzzz' is not there: write folder:/qqqq/zzzz once it is.",
        "mnits/large": "unknown data set 'mnits/large': did you mean mnist",
        "folder:": "'folder:' names no place: write folder:PATH.",
    }.items():
        with pytest.raises(DataError, match=message):
            load(name)


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("digits", "digits are 8x8"),
        ("moons", "moons is points"),
        ("text:words.txt", "text:words.txt is text"),
    ],
)
def test_what_has_no_size_to_choose_says_so(name, what):
    with pytest.raises(DataError, match=f"^{what}: leave out --image-size"):
        load(name, image_size=16)
