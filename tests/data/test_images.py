"""Folders of images, and MNIST and CIFAR-10 from their original files."""

import gzip
import io
import json
import os
import pickle
import struct
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import images, pictures
from jaxgen.data.images import read_idx
from jaxgen.data.records import Arrays, DataError
from jaxgen.data.sources import load

MNIST = Path(__file__).parents[3] / "shared" / "data" / "mnist"


def everything(*sources):
    """All examples of some sources, one after the other."""
    batches = [source.fetch(np.arange(len(source))) for source in sources]
    return {k: np.concatenate([batch[k] for batch in batches]) for k in batches[0]}


def picture(path, x, mode=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(x)
    (image.convert(mode) if mode else image).save(path)
    return path


# --- folders ---------------------------------------------------------------------------------


def folder_of_images(root, sizes=((6, 5),) * 20, mode="RGB"):
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(sizes):
        x = rng.integers(256, size=(h, w, 3), dtype=np.uint8)
        picture(root / ("cats" if i % 2 else "dogs") / f"{i}.png", x, mode)
    return root


def test_a_folder_is_a_data_set_with_its_subfolders_as_classes(tmp_path):
    data = load(f"folder:{folder_of_images(tmp_path)}")
    assert (data.shape, data.classes, data.classes_named) == ((5, 6, 3), 2, ("cats", "dogs"))
    assert [len(s) for s in (data.train, data.validation, data.test)] == [17, 1, 2]
    # sorted by path: ten cats, then ten dogs; every tenth is for testing, every tenth of the rest
    # for validation
    np.testing.assert_array_equal(data.train["label"], [0] * 9 + [1] * 8)
    want = np.asarray(Image.open(tmp_path / "cats" / "1.png"))
    np.testing.assert_array_equal(data.train["x"][0], want)
    resized = load(f"folder:{tmp_path}", image_size=4)
    assert resized.shape == resized.train["x"].shape[1:] == (4, 4, 3)
    gray = load(f"folder:{folder_of_images(tmp_path / 'gray', mode='L')}")
    assert gray.shape == (5, 6, 1)


def test_one_picture_in_colour_makes_all_of_them_so(tmp_path):
    folder_of_images(tmp_path, mode="L")
    x = np.random.default_rng(1).integers(256, size=(5, 6, 3), dtype=np.uint8)
    picture(tmp_path / "cats" / "0.png", x)
    data = load(f"folder:{tmp_path}")
    np.testing.assert_array_equal(data.train["x"][0], x)
    gray = np.asarray(Image.open(tmp_path / "cats" / "1.png"))
    np.testing.assert_array_equal(data.train["x"][1], np.stack([gray] * 3, axis=-1))


def test_a_folder_too_large_for_memory_is_opened_as_it_is_asked_for(tmp_path, monkeypatch):
    """Where the cache has no room for its pixels either; else they are read from there."""
    held = load(f"folder:{folder_of_images(tmp_path)}")
    decoded, fit = [], pictures.fit
    monkeypatch.setattr(pictures, "fit", lambda *args: decoded.append(1) or fit(*args))
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    index = np.array([3, 0, 16, 3])

    def same(lazy):
        assert isinstance(held.train, Arrays)
        assert not isinstance(lazy.train, Arrays)
        for name, x in lazy.train.fetch(index).items():
            np.testing.assert_array_equal(x, held.train.fetch(index)[name])

    same(load(f"folder:{tmp_path}"))
    assert not decoded  # as it was, for the first
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "file"))
    same(load(f"folder:{tmp_path}"))
    assert len(decoded) == len(index)


def test_folders_of_splits_are_taken_as_they_are(tmp_path):
    for split, size in (("train", 30), ("test", 6)):
        folder_of_images(tmp_path / split, ((6, 5),) * size)
    data = load(f"folder:{tmp_path}")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [27, 3, 6]
    assert data.classes_named == ("cats", "dogs")
    folder_of_images(tmp_path / "validation", ((6, 5),) * 4)
    data = load(f"folder:{tmp_path}")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [30, 4, 6]
    for split, part in (("train", data.train), ("test", data.test)):
        files = sorted((tmp_path / split).rglob("*.png"))
        np.testing.assert_array_equal(part["x"], [np.asarray(Image.open(f)) for f in files])
        np.testing.assert_array_equal(part["label"], [f.parent.name == "dogs" for f in files])


def captioned(root, texts):
    rng, lines = np.random.default_rng(len(texts)), []
    for i, text in enumerate(texts):
        picture(root / "files" / f"{i}.png", rng.integers(256, size=(4, 4, 3), dtype=np.uint8))
        lines.append(json.dumps({"file_name": f"files/{i}.png", "text": text}))
    (root / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    picture(root / "not_named.png", np.zeros((9, 9), np.uint8))
    return root


def test_captions_come_with_the_images_they_describe(tmp_path):
    texts = [f"number {i} é" for i in range(19)] + ["z" * 40]
    data = load(f"folder:{captioned(tmp_path, texts)}")
    assert (data.shape, data.classes) == ((4, 4, 3), 1)
    seen = everything(data.train, data.validation, data.test)
    assert seen["text"].shape == (20, 40)
    assert seen["text"].dtype == np.uint8
    found = {
        bytes(t).rstrip(b"\0").decode(): x for t, x in zip(seen["text"], seen["x"], strict=True)
    }
    assert found.keys() == set(texts)
    for i, text in enumerate(texts):
        want = np.asarray(Image.open(tmp_path / "files" / f"{i}.png"))
        np.testing.assert_array_equal(found[text], want)
    asked, held = data.given(3), data.validation.fetch(np.arange(1))
    assert asked.keys() == {"text", "label"}
    np.testing.assert_array_equal(asked["text"], np.repeat(held["text"], 3, axis=0))


def test_captions_of_splits_have_one_length_and_are_cut(tmp_path):
    captioned(tmp_path / "train", ["short"] * 20)
    captioned(tmp_path / "test", ["a" * 300, "b"])
    data = load(f"folder:{tmp_path}")
    assert data.train["text"].shape == (18, 256)
    assert bytes(data.test["text"][0]) == b"a" * 256
    assert bytes(data.train["text"][0]) == b"short" + b"\0" * 251
    (tmp_path / "test" / "metadata.jsonl").unlink()
    with pytest.raises(DataError, match=r"test lacks metadata\.jsonl"):
        load(f"folder:{tmp_path}", image_size=4)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", r"line 3 of .*metadata\.jsonl is no JSON object with file_name and text"),
        ('{"file_name": "files/0.png"}', "line 3 .* is no JSON object with file_name and text"),
        ('{"file_name": "files/0.png", "text": 3}', "line 3 .* is no JSON object"),
        ('{"file_name": "none.png", "text": ""}', r"line 3 .* names none\.png, which is not there"),
    ],
)
def test_bad_metadata_is_named(tmp_path, line, message):
    captioned(tmp_path, ["a", "b"])
    with (tmp_path / "metadata.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(DataError, match=message):
        load(f"folder:{tmp_path}")


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
    with pytest.raises(DataError, match=r"resize them with --image-size"):
        load(f"folder:{tmp_path}")


def test_truncated_images_are_named(tmp_path):
    folder_of_images(tmp_path, sizes=((64, 64),) * 4)
    path = tmp_path / "dogs" / "2.png"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"dogs/2\.png cannot be read"):
        load(f"folder:{tmp_path}")


# --- MNIST -----------------------------------------------------------------------------------


def write_idx(path, array):
    header = b"\x00\x00\x08" + bytes([array.ndim]) + np.asarray(array.shape, ">u4").tobytes()
    raw = header + array.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


@pytest.fixture(params=[".gz", ""])
def tiny_mnist(tmp_path, request):
    """A folder with the four files of MNIST's format, 40 and 20 random images."""
    rng, contents = np.random.default_rng(0), {}
    for split, n in (("train", 40), ("test", 20)):
        x = rng.integers(256, size=(n, 28, 28), dtype=np.uint8)
        y = rng.integers(10, size=n, dtype=np.uint8)
        for file, array in zip(images.IDX_FILES[split], (x, y), strict=True):
            write_idx(tmp_path / (file.removesuffix(".gz") + request.param), array)
        contents[split] = {x[i].tobytes(): y[i] for i in range(n)}
    return tmp_path, contents


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_idx_sets_are_read_without_tensorflow(tiny_mnist, name, monkeypatch):
    for module in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, module, None)  # importing them fails
    folder, contents = tiny_mnist
    data = load(name, manual_dir=str(folder))
    for split, parts in (("train", (data.train, data.validation)), ("test", (data.test,))):
        seen = everything(*parts)
        read = {x.tobytes(): y for x, y in zip(seen["x"], seen["label"], strict=True)}
        assert read == contents[split]
        assert len(seen["x"]) == len(contents[split])
    assert (data.shape, data.classes, data.kind.levels) == ((28, 28, 1), 10, 256)
    small = load(name, manual_dir=str(folder), image_size=14)
    assert small.train["x"].shape[1:] == small.shape == (14, 14, 1)


def test_missing_or_mismatched_idx_files_are_named(tiny_mnist):
    folder, _ = tiny_mnist
    labels = next(folder.glob("train-labels*"))
    write_idx(labels, np.zeros(39, np.uint8))
    with pytest.raises(DataError, match="differ in number in 'train'"):
        load("mnist", manual_dir=str(folder))
    labels.unlink()
    with pytest.raises(DataError, match=r"lacks train-labels-idx1-ubyte\.gz"):
        load("mnist", manual_dir=str(folder))


def test_corrupt_idx_files_are_named(tmp_path):
    whole = gzip.compress(b"\x00\x00\x08\x01\x00\x00\x00\x40" + bytes(range(64)))
    damaged = whole[:12] + b"\xff" * 8 + whole[20:]
    for content in (b"junk", gzip.compress(b"\x00\x00\x08\x03short"), b"", whole[:30], damaged):
        (tmp_path / "bad.gz").write_bytes(content)
        with pytest.raises(DataError, match=r"bad\.gz is not a gzipped IDX file"):
            read_idx(tmp_path / "bad.gz")


@pytest.mark.skipif(not MNIST.is_dir(), reason="the real MNIST files are not here")
def test_real_mnist():
    data = load("mnist", manual_dir=str(MNIST))
    raw = read_idx(MNIST / "train-images-idx3-ubyte.gz")
    assert data.train["x"].shape == (54_000 + 1_000, 28, 28, 1)
    assert data.validation["x"].shape == (5_000, 28, 28, 1)
    assert data.test["x"].shape == (10_000, 28, 28, 1)
    seen = everything(data.train, data.validation)
    assert seen["x"].sum() == raw.sum()
    assert sorted(map(bytes, seen["x"])) == sorted(map(bytes, raw))
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]  # LeCun et al. 1998
    np.testing.assert_array_equal(np.bincount(seen["label"]), counts)


# --- CIFAR-10 --------------------------------------------------------------------------------


class AsPython2(pickle._Pickler):
    """Writes strings as Python 2 wrote its own, in which the original batches are."""

    def string(self, x):
        raw = x if isinstance(x, bytes) else x.encode()
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)

    dispatch = pickle._Pickler.dispatch | {bytes: string, str: string}


def python_batch(x, y):
    """Bytes of the pickle of one original batch: planes of red, green and blue a row."""
    buffer, planes = io.BytesIO(), x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    AsPython2(buffer, 2).dump({b"data": planes, b"labels": y.tolist(), b"batch_label": b"batch"})
    return buffer.getvalue().replace(b"numpy._core", b"numpy.core")


def binary_batch(x, y):
    """Records of a label and 3,072 bytes."""
    planes = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return np.concatenate([y[:, None].astype(np.uint8), planes], axis=1).tobytes()


def tiny_cifar(folder, layout, kind):
    """The six batches of four random images each, and what they hold."""
    rng = np.random.default_rng(0)
    x = rng.integers(256, size=(6, 4, 32, 32, 3), dtype=np.uint8)
    y = rng.integers(10, size=(6, 4))
    write, inner, end = {
        "binary": (binary_batch, "cifar-10-batches-bin", ".bin"),
        "python": (python_batch, "cifar-10-batches-py", ""),
    }[kind]
    names = [*(f"data_batch_{i}{end}" for i in range(1, 6)), f"test_batch{end}"]
    place = folder if layout == "direct" else folder / inner
    place.mkdir(parents=True, exist_ok=True)
    for name, *batch in zip(names, x, y, strict=True):
        (place / name).write_bytes(write(*batch))
    if layout == "archive":
        with tarfile.open(folder / f"cifar-10-{kind}.tar.gz", "w:gz") as archive:
            for name in reversed(names):
                archive.add(place / name, f"{inner}/{name}")
                (place / name).unlink()
        place.rmdir()
    return x, y, place


@pytest.mark.parametrize("layout", ["archive", "folder", "direct"])
@pytest.mark.parametrize("kind", ["binary", "python"])
def test_cifar_is_read_from_its_original_files(tmp_path, layout, kind, monkeypatch):
    for module in ("tensorflow", "tensorflow_datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    x, y, _ = tiny_cifar(tmp_path, layout, kind)
    data = load("cifar10", manual_dir=str(tmp_path))
    assert (data.shape, data.classes) == ((32, 32, 3), 10)
    assert (data.classes_named[0], data.classes_named[9]) == ("airplane", "truck")
    np.testing.assert_array_equal(data.test["x"], x[5])
    np.testing.assert_array_equal(data.test["label"], y[5])
    held = np.arange(20) % 10 == 9
    for part, chosen in ((data.train, ~held), (data.validation, held)):
        np.testing.assert_array_equal(part["x"], x[:5].reshape(-1, 32, 32, 3)[chosen])
        np.testing.assert_array_equal(part["label"], y[:5].reshape(-1)[chosen])


def test_missing_and_corrupt_cifar_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"lacks cifar-10-binary\.tar\.gz or cifar-10-python"):
        load("cifar10", manual_dir=str(tmp_path))
    *_, place = tiny_cifar(tmp_path, "folder", "binary")
    whole = (place / "data_batch_2.bin").read_bytes()
    (place / "data_batch_2.bin").write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"data_batch_2\.bin is not a batch of 'cifar10'"):
        load("cifar10", manual_dir=str(tmp_path))
    (place / "data_batch_2.bin").unlink()
    with pytest.raises(DataError, match=r"lacks data_batch_2\.bin"):
        load("cifar10", manual_dir=str(tmp_path))
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "cifar-10-python.tar.gz").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"cifar-10-python\.tar\.gz cannot be read"):
        load("cifar10", manual_dir=str(tmp_path / "other"))


class Harmful:
    def __reduce__(self):
        return os.mkdir, ("harmed",)


@pytest.mark.parametrize("content", [{b"data": Harmful()}, {b"data": b"", b"fine_labels": []}, 3])
def test_only_arrays_are_read_from_pickles(tmp_path, content, monkeypatch):
    monkeypatch.chdir(tmp_path)
    *_, place = tiny_cifar(tmp_path, "folder", "python")
    (place / "data_batch_1").write_bytes(pickle.dumps(content))
    with pytest.raises(DataError, match="data_batch_1 is not a batch of 'cifar10'"):
        load("cifar10", manual_dir=str(tmp_path))
    assert not (tmp_path / "harmed").exists()


def test_binarized_mnist_is_read_from_its_lines_of_bits(tmp_path):
    rng = np.random.default_rng(0)
    bits = {s: rng.integers(0, 2, (n, 784)) for s, n in (("train", 5), ("valid", 2), ("test", 3))}
    for split, rows in bits.items():
        np.savetxt(tmp_path / f"binarized_mnist_{split}.amat", rows, fmt="%d")
    data = load("binarized_mnist", manual_dir=str(tmp_path))
    assert (data.levels, data.shape, data.classes) == (2, (28, 28, 1), 1)
    for split, source in (("train", data.train), ("valid", data.validation), ("test", data.test)):
        found = source.fetch(np.arange(len(source)))["x"]
        np.testing.assert_array_equal(found.reshape(-1, 784), bits[split])
    values = np.unique(data.kind.values(found))
    np.testing.assert_array_equal(values, [-1, 1])
    (tmp_path / "binarized_mnist_valid.amat").write_text("0 1 0\n")
    with pytest.raises(DataError, match=r"valid\.amat is no whole number"):
        load("binarized_mnist", manual_dir=str(tmp_path))
    (tmp_path / "binarized_mnist_valid.amat").unlink()
    with pytest.raises(DataError, match=r"lacks binarized_mnist_valid\.amat"):
        load("binarized_mnist", manual_dir=str(tmp_path))
