import gzip
import io
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxgen.data import sources
from jaxgen.data.sources import (
    Arrays,
    DataError,
    Part,
    fetch,
    hold_out,
    in_chunks,
    load,
    read_idx,
    some,
    spread,
)

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def write_idx(path, array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture
def tiny_mnist(tmp_path):
    """A folder with the four files of MNIST's format, 40 and 20 random images."""
    rng, folder = np.random.default_rng(0), tmp_path / "manual"
    folder.mkdir()
    images = {}
    for split, n in (("train", 40), ("test", 20)):
        x = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        y = rng.integers(10, size=n, dtype=np.uint8)
        for file, array in zip(sources.IDX_FILES[split], (x, y), strict=True):
            write_idx(folder / file, array)
        images[split] = {x[i].tobytes(): y[i] for i in range(n)}
    return folder, images


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    data, bunch = load("digits"), load_digits()
    sources = (data.train, data.validation, data.test)
    assert [len(source) for source in sources] == [1295, 143, 359]
    both = np.concatenate([source.x for source in sources])[..., 0]
    labels = np.concatenate([source.label for source in sources])
    key = lambda x, y: sorted(
        (i.astype(np.uint8).tobytes(), int(j)) for i, j in zip(x, y, strict=True)
    )
    assert key(both, labels) == key(bunch.images, bunch.target)
    assert (data.shape, data.classes, data.levels) == ((8, 8, 1), 10, 17)
    assert both.max() == data.levels - 1


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets_are_prepared_and_read_as_tfds_without_tensorflow(tmp_path, tiny_mnist, name):
    import sys

    folder, images = tiny_mnist
    data = load(name, data_dir=str(tmp_path / "tfds"), manual_dir=str(folder))
    again = load(name, data_dir=str(tmp_path / "tfds"))  # prepared once
    for split, parts in (("train", (data.train, data.validation)), ("test", (data.test,))):
        read = [pair for source in parts for pair in zip(source.x, source.label, strict=True)]
        assert {x.tobytes(): y for x, y in read} == images[split]
    np.testing.assert_array_equal(again.train.x, data.train.x)
    assert (data.shape, data.classes, data.levels) == ((28, 28, 1), 10, 256)
    assert "tensorflow" not in sys.modules


def test_sets_too_large_for_memory_are_read_record_by_record(tmp_path, tiny_mnist, monkeypatch):
    folder, _ = tiny_mnist
    kwargs = {"data_dir": str(tmp_path / "tfds"), "manual_dir": str(folder)}
    held = load("mnist", **kwargs)
    monkeypatch.setattr(sources, "MEMORY_LIMIT", 0)
    streamed = load("mnist", **kwargs)
    assert isinstance(held.train, Arrays)
    assert not isinstance(streamed.train, Arrays)
    index = np.array([3, 0, 17])
    for a, b in zip(
        fetch(held.train, index).values(), fetch(streamed.train, index).values(), strict=True
    ):
        np.testing.assert_array_equal(a, b)
    small = load("mnist", **kwargs, image_size=14)
    assert small.train[0]["x"].shape == small.shape == (14, 14, 1)


@pytest.mark.skipif(not MNIST.is_dir(), reason="the real MNIST files are not here")
def test_real_mnist_through_tfds(tmp_path):
    data = load("mnist", data_dir=str(tmp_path), manual_dir=str(MNIST))
    raw = read_idx(MNIST / "train-images-idx3-ubyte.gz")
    assert data.train.x.shape == (55_000, 28, 28, 1)
    assert data.validation.x.shape == (5_000, 28, 28, 1)
    assert data.test.x.shape == (10_000, 28, 28, 1)
    read = np.concatenate([data.train.x, data.validation.x])
    labels = np.concatenate([data.train.label, data.validation.label])
    assert read.sum() == raw.sum()
    assert sorted(map(bytes, read)) == sorted(map(bytes, raw))
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # LeCun et al. 1998
    np.testing.assert_array_equal(np.bincount(labels), counts)


def folder_of_images(root, sizes=((6, 5),) * 20, mode="RGB"):
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(sizes):
        path = root / "cats" / f"{i}.png" if i % 2 else root / "dogs" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        x = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
        Image.fromarray(x).convert(mode).save(path)
    return root


def test_a_folder_is_a_data_set_with_its_subfolders_as_classes(tmp_path):
    data = load(f"folder:{folder_of_images(tmp_path)}")
    assert (data.shape, data.classes) == ((5, 6, 3), 2)
    assert [len(s) for s in (data.train, data.validation, data.test)] == [17, 1, 2]
    # sorted by path: ten cats, then ten dogs; every tenth is for testing, every tenth of the rest
    # for validation
    np.testing.assert_array_equal(data.train.label, [0] * 9 + [1] * 8)
    want = np.asarray(Image.open(tmp_path / "cats" / "1.png"))
    np.testing.assert_array_equal(data.train.x[0], want)
    resized = load(f"folder:{tmp_path}", image_size=4)
    assert resized.shape == (4, 4, 3)
    gray = load(f"folder:{folder_of_images(tmp_path / 'gray', mode='L')}")
    assert gray.shape == (5, 6, 1)


@pytest.mark.parametrize(
    ("size", "held", "trained"), [(1, 1, 1), (2, 1, 1), (9, 1, 8), (10, 1, 9), (200, 20, 180)]
)
@pytest.mark.parametrize("kind", ["arrays", "records"])
def test_what_is_held_out_is_not_trained_on(kind, size, held, trained):
    source = Arrays(np.arange(size)[:, None], np.arange(size, dtype=np.int32))
    train, validation = hold_out(source if kind == "arrays" else Part(source, np.arange(size)))
    assert isinstance(train, Arrays) == (kind == "arrays")
    seen = [fetch(s, np.arange(len(s)))["label"] for s in (train, validation)]
    assert (len(seen[0]), len(seen[1])) == (trained, held)
    assert set(seen[0]) | set(seen[1]) == set(range(size))
    assert size == 1 or not set(seen[0]) & set(seen[1])


def test_at_most_five_thousand_are_held_out():
    class Large:
        def __len__(self):
            return 1_281_167

        def __getitem__(self, index):
            return {"x": np.zeros(1), "label": index}

    train, validation = hold_out(Large())
    assert 4900 < len(validation) <= 5000
    assert len(train) + len(validation) == 1_281_167
    assert validation[0]["label"] not in (train[i]["label"] for i in range(300))


def test_a_validation_split_of_its_own_is_taken(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def png(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((4, 4), value, np.uint8)).save(buffer, "PNG")
        return buffer.getvalue()

    class Builder(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        name = "three_splits"

        def _info(self):
            features = {"image": tfds.features.Image(shape=(4, 4, 1))}
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            sizes = {"train": 30, "validation": 4, "test": 6}
            return {split: ((i, {"image": png(i)}) for i in range(n)) for split, n in sizes.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    data = load("three_splits", data_dir=str(tmp_path))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 4, 6]


def test_some_records_are_spread_over_a_sorted_set():
    np.testing.assert_array_equal(spread(5, 10), np.arange(5))
    np.testing.assert_array_equal(spread(100, 5), [0, 24, 49, 74, 99])
    data = load("digits")
    whole = some(data.train, 7)
    assert len(whole["x"]) == 7
    parts = list(in_chunks(data.train, 3, 7))
    assert [len(part["x"]) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), whole["label"])


def test_bad_folders_are_named(tmp_path):
    with pytest.raises(DataError, match="there is no folder"):
        load(f"folder:{tmp_path}/none")
    with pytest.raises(DataError, match="holds 0 images"):
        load(f"folder:{tmp_path}")
    folder_of_images(tmp_path)
    (tmp_path / "cats" / "3.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"cats/3\.png cannot be read as an image"):
        load(f"folder:{tmp_path}")
    (tmp_path / "cats" / "3.png").unlink()
    folder_of_images(tmp_path, sizes=((6, 5),) * 3 + ((7, 5),) * 2)
    with pytest.raises(DataError, match=r"give an image size"):
        load(f"folder:{tmp_path}")


def test_truncated_images_are_named(tmp_path):
    folder_of_images(tmp_path, sizes=((64, 64),) * 4)
    path = tmp_path / "dogs" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"dogs/2\.png cannot be read"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mnits", "unknown data set 'mnits': did you mean mnist"),
        ("digit", "did you mean digits"),
        ("swisroll", "did you mean swissroll"),
        ("qqqqq", "unknown data set 'qqqqq': choose digits, 8gaussians, .* or an image set"),
    ],
)
def test_unknown_names_come_with_the_nearest(name, message):
    with pytest.raises(DataError, match=message):
        load(name)


def test_unprepared_sets_say_how_to_prepare_them(tmp_path):
    with pytest.raises(DataError, match=r"jaxgen\[prepare\].*manual_dir that holds train-images"):
        load("mnist", data_dir=str(tmp_path))
    with pytest.raises(DataError, match=r"lacks train-images-idx3-ubyte\.gz"):
        load("mnist", data_dir=str(tmp_path), manual_dir=str(tmp_path))


def test_corrupt_idx_files_are_named(tmp_path):
    for content in (b"junk", gzip.compress(b"\x00\x00\x08\x03short"), b""):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.gz is not a gzipped IDX file"):
            read_idx(tmp_path / "bad.gz")


def test_scales_are_inverse_to_each_other():
    bins = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    signed = sources.to_signed(jnp.asarray(bins), 256)
    assert (signed.min(), signed.max()) == (-1, 1)
    np.testing.assert_array_equal(sources.to_bytes(signed), bins)
    np.testing.assert_allclose(2 * sources.to_unit(jnp.asarray(bins), 256) - 1, signed, atol=1e-6)


def test_flips_mirror_about_half_of_the_images(key):
    x = jnp.broadcast_to(jnp.arange(3.0).reshape(1, 1, 3, 1), (1000, 2, 3, 1))
    flipped = np.asarray(sources.random_flip(key, x))[:, :, :, 0]
    is_mirrored = (flipped == [2, 1, 0]).all(axis=(1, 2))
    assert ((flipped == [0, 1, 2]).all(axis=(1, 2)) | is_mirrored).all()
    assert 430 < is_mirrored.sum() < 570
