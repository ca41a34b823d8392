"""Pictures to translate: what belongs together stays together, and splits stay apart."""

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import images
from jaxgen.data.records import Arrays, DataError
from jaxgen.data.sources import load


def write(path, x):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path)


def numbered(i, side, channels=3):
    """A picture that tells its number and its side."""
    return np.full((4, 6, channels), (i, side, 7)[:channels], np.uint8).squeeze()


def two_folders(root, **sizes):
    for split, n in sizes.items():
        for i in range(n):
            write(root / f"{split}A" / f"{i}.png", numbered(i, 0))
            write(root / f"{split}B" / f"{i}.png", numbered(i, 1))
    return root


def side_by_side(root, n):
    for i in range(n):
        both = np.concatenate([numbered(i, 0), numbered(i, 1)], axis=1)
        write(root / f"{i:02d}.png", both)
    return root


def numbers(source):
    """The number of each pair, after both pictures were seen to be whole and to belong together."""
    batch = source.fetch(np.arange(len(source)))
    found = batch["x"][:, 0, 0, 0].tolist()
    for name, side in (("x", 0), ("y", 1)):
        np.testing.assert_array_equal(batch[name], [numbered(i, side) for i in found])
    assert not batch["label"].any()
    return found


def sizes(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def test_two_folders_hold_pairs_of_the_same_name(tmp_path):
    data = load(f"pairs:{two_folders(tmp_path, train=20, test=3)}")
    assert (data.shape, data.kind.noun, data.classes) == ((4, 6, 3), "images", 1)
    assert sizes(data) == [18, 2, 3]
    seen = [numbers(part) for part in (data.train, data.validation, data.test)]
    assert sorted(seen[0] + seen[1]) == list(range(20))
    assert sorted(seen[2]) == list(range(3))
    two_folders(tmp_path, val=5)
    assert sizes(load(f"pairs:{tmp_path}")) == [20, 5, 3]
    small = load(f"pairs:{tmp_path}", image_size=2)
    assert small.train["y"].shape[1:] == small.shape == (2, 2, 3)


@pytest.mark.parametrize("splits", [False, True])
def test_pictures_side_by_side_are_cut_in_two(tmp_path, splits):
    if splits:
        side_by_side(tmp_path / "train", 18)
        side_by_side(tmp_path / "test", 2)
    else:
        side_by_side(tmp_path, 20)
    data = load(f"pairs:{tmp_path}")
    assert data.shape == (4, 6, 3)
    seen = [numbers(part) for part in (data.train, data.validation, data.test)]
    assert sizes(data) == [17, 1, 2]
    assert seen[2] == ([0, 1] if splits else [9, 19])
    whole = sorted(seen[0] + seen[1] + ([] if splits else seen[2]))
    assert whole == list(range(18 if splits else 20))


def test_what_is_sampled_for_are_pictures_of_the_validation_set(tmp_path):
    data = load(f"pairs:{two_folders(tmp_path, train=20, test=3)}")
    asked = data.given(5)
    assert asked.keys() == {"y", "label"}
    held = numbers(data.validation)
    np.testing.assert_array_equal(asked["y"][:, 0, 0, 0], (held * 3)[:5])
    assert asked["y"][0, 0, 0, 1] == 1


def test_sides_that_differ_in_channels_are_both_coloured(tmp_path):
    for i in range(4):
        write(tmp_path / "trainA" / f"{i}.png", numbered(i, 0))
        write(tmp_path / "trainB" / f"{i}.png", numbered(i, 1, channels=1))
    data = load(f"pairs:{tmp_path}")
    batch = data.train.fetch(np.arange(2))
    assert batch["x"].shape == batch["y"].shape == (2, 4, 6, 3)
    np.testing.assert_array_equal(batch["y"][1], np.ones((4, 6, 3)))


def test_pairs_too_large_for_memory_are_read_one_by_one(tmp_path, monkeypatch):
    held = load(f"pairs:{two_folders(tmp_path, train=20, test=3)}")
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    lazy = load(f"pairs:{tmp_path}")
    assert not isinstance(lazy.train, Arrays)
    assert numbers(lazy.train) == numbers(held.train)


def test_bad_pairs_are_named(tmp_path):
    two_folders(tmp_path, train=3)
    (tmp_path / "trainB" / "1.png").unlink()
    with pytest.raises(DataError, match=r"trainA/1\.png has no partner .* in .*trainB"):
        load(f"pairs:{tmp_path}")
    two_folders(tmp_path, train=3)
    two_folders(tmp_path, test=2)
    write(tmp_path / "testB" / "1.png", np.zeros((5, 6, 3), np.uint8))
    with pytest.raises(
        DataError, match=r"testB/1\.png is 6x5 but .* is 6x4: resize them with --image-size"
    ):
        load(f"pairs:{tmp_path}")
    for file in (tmp_path / "testB").iterdir():
        file.unlink()
    (tmp_path / "testB").rmdir()
    with pytest.raises(DataError, match=r"of testA and testB .* has only one"):
        load(f"pairs:{tmp_path}")
    for i in range(2):
        write(tmp_path / "odd" / f"{i}.png", np.zeros((4, 5), np.uint8))
    with pytest.raises(DataError, match=r"0\.png is 5 pixels wide: two halves need an even"):
        load(f"pairs:{tmp_path}/odd")
    with pytest.raises(DataError, match="there is no folder"):
        load(f"pairs:{tmp_path}/none")


def test_domains_are_every_pair_of_a_split(tmp_path):
    for side, split, n in (
        ("A", "train", 20),
        ("B", "train", 30),
        ("A", "test", 3),
        ("B", "test", 4),
    ):
        for i in range(n):
            number = i + (100 if split == "test" else 0)
            write(tmp_path / f"{split}{side}" / f"{i:02d}.png", numbered(number, int(side == "B")))
    data = load(f"domains:{tmp_path}")
    assert sizes(data) == [18 * 27, 2 * 3, 3 * 4]
    seen = {"x": [], "y": []}
    for part in (data.train, data.validation, data.test):
        batch = part.fetch(np.arange(len(part)))
        x, y = batch["x"][:, 0, 0, 0].tolist(), batch["y"][:, 0, 0, 0].tolist()
        assert (batch["x"][..., 1] == 0).all()
        assert (batch["y"][..., 1] == 1).all()
        assert len(set(zip(x, y, strict=True))) == len(part) == len(set(x)) * len(set(y))
        seen["x"].append(set(x))
        seen["y"].append(set(y))
    for (train, validation, test), n in zip(seen.values(), (20, 30), strict=True):
        assert not train & validation
        assert train | validation == set(range(n))
        assert min(test) == 100
    asked = data.given(4)
    assert asked.keys() == {"y", "label"}
    assert set(asked["y"][:, 0, 0, 0].tolist()) <= seen["y"][1]


def test_domains_need_both_sides(tmp_path):
    for i in range(2):
        write(tmp_path / "trainA" / f"{i}.png", numbered(i, 0))
    with pytest.raises(DataError, match="has no folder trainB"):
        load(f"domains:{tmp_path}")
