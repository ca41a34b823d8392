"""Sets of two libraries, from data that is prepared or lies in local files."""

import io
import sys

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import images
from jaxgen.data.records import Arrays, DataError
from jaxgen.data.sources import load

rng = np.random.default_rng(0)
X = rng.integers(256, size=(40, 4, 6, 3), dtype=np.uint8)
Y = rng.integers(3, size=40)


def sizes(data):
    return [len(part) for part in (data.train, data.validation, data.test)]


def contents(*sources):
    """Which image has which label."""
    batches = [source.fetch(np.arange(len(source))) for source in sources]
    return {x.tobytes(): y for b in batches for x, y in zip(b["x"], b["label"], strict=True)}


def wanted(*index):
    return {X[i].tobytes(): Y[i] for i in index}


# --- tensorflow-datasets ---------------------------------------------------------------------


@pytest.fixture
def prepare(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")

    def png(x):
        buffer = io.BytesIO()
        Image.fromarray(x).save(buffer, "PNG")
        return buffer.getvalue()

    def run(height=4, **splits):
        class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
            VERSION = tfds.core.Version("1.0.0")
            name = "tiny_set"

            def _info(self):
                features = {
                    "image": tfds.features.Image(shape=(height, height and 6, 3)),
                    "label": tfds.features.ClassLabel(names=["a", "b", "c"]),
                }
                return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

            def _split_generators(self, dl_manager):
                example = lambda i: (int(i), {"image": png(X[i]), "label": int(Y[i])})
                return {split: map(example, index) for split, index in splits.items()}

            def _generate_examples(self):
                raise NotImplementedError

        Builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
        return {"data_dir": str(tmp_path)}

    return run


def test_prepared_records_are_read_without_tensorflow(prepare):
    where = prepare(train=range(30), validation=range(30, 34), test=range(34, 40))
    data = load("tiny_set", **where)
    assert (data.shape, data.classes, data.classes_named) == ((4, 6, 3), 3, ("a", "b", "c"))
    assert sizes(data) == [30, 4, 6]  # a validation split of its own is taken
    assert contents(data.train) == wanted(*range(30))
    assert contents(data.validation) == wanted(*range(30, 34))
    assert contents(data.test) == wanted(*range(34, 40))
    again = load("tiny_set", **where)  # decoded once
    np.testing.assert_array_equal(again.train["x"], data.train["x"])
    assert "tensorflow" not in sys.modules


def test_prepared_texts_are_read_as_windows(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    parts = {"train": ["ab" * 20, "é" * 9], "validation": ["c" * 30], "test": ["d" * 40]}

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")
        name = "tiny_text"

        def _info(self):
            features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
            return self.dataset_info_from_configs(features=features)

        def _split_generators(self, dl_manager):
            rows = lambda texts: ((i, {"text": t}) for i, t in enumerate(texts))
            return {split: rows(texts) for split, texts in parts.items()}

        def _generate_examples(self):
            raise NotImplementedError

    Builder(data_dir=str(tmp_path), file_format="array_record").download_and_prepare()
    data = load("tiny_text", data_dir=str(tmp_path), length=8)
    for source, texts in ((data.train, parts["train"]), (data.test, parts["test"])):
        assert source["values"].tobytes().decode() in {"\n".join(texts), "\n".join(texts[::-1])}
    with pytest.raises(DataError, match="tiny_text is text: leave out --image-size"):
        load("tiny_text", data_dir=str(tmp_path), image_size=8)


@pytest.mark.parametrize(
    ("splits", "want"),
    [
        ({"train": range(30), "test": range(30, 40)}, [27, 3, 10]),
        ({"train": range(30), "validation": range(30, 40)}, [27, 3, 10]),
        ({"train": range(40)}, [33, 3, 4]),
    ],
)
def test_what_a_prepared_set_lacks_is_held_out(prepare, splits, want):
    data = load("tiny_set", **prepare(**splits))
    assert sizes(data) == want
    assert contents(data.train, data.validation, data.test) == wanted(*range(40))


def test_sets_too_large_for_memory_are_read_record_by_record(prepare, monkeypatch):
    where = prepare(train=range(30), test=range(30, 40))
    held = load("tiny_set", **where)
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    streamed = load("tiny_set", **where)
    assert isinstance(held.train, Arrays)
    assert not isinstance(streamed.train, Arrays)
    index = np.array([3, 0, 17, 3])
    for name, x in streamed.train.fetch(index).items():
        np.testing.assert_array_equal(x, held.train.fetch(index)[name])
    small = load("tiny_set", **where, image_size=2)
    assert small.train.fetch(index)["x"].shape[1:] == small.shape == (2, 2, 3)


def test_prepared_sets_that_cannot_be_taken_say_why(prepare):
    with pytest.raises(DataError, match="'tiny_set' has no split 'train'"):
        load("tiny_set", **prepare(test=range(4)))


def test_images_that_differ_in_size_need_one(prepare):
    where = prepare(height=None, train=range(20))
    with pytest.raises(
        DataError, match="the images of 'tiny_set' differ in size: resize them with --im"
    ):
        load("tiny_set", **where)
    assert load("tiny_set", **where, image_size=4).shape == (4, 4, 3)


@pytest.mark.parametrize(
    ("name", "files"),
    [("mnist", "train-images-idx3-ubyte.gz"), ("cifar10", "cifar-10-binary.tar.gz or")],
)
def test_unprepared_sets_say_how_to_prepare_them(tmp_path, name, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(
        DataError, match=rf"jaxgen\[prepare\].*--manual-dir a folder that holds {files}"
    ):
        load(name, data_dir=str(tmp_path))


# --- datasets --------------------------------------------------------------------------------


@pytest.fixture
def hf(tmp_path, monkeypatch):
    """The library, away from the user's cache and from the network."""
    datasets = pytest.importorskip("datasets")
    hub = pytest.importorskip("huggingface_hub")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub.constants, "HF_HUB_OFFLINE", True)
    return datasets


def table(datasets, index, **columns):
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])}
    rows = {"image": [Image.fromarray(X[i]) for i in index], "label": [int(Y[i]) for i in index]}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(rows | columns, features=datasets.Features(features))


@pytest.mark.parametrize("layout", ["parquet", "arrow", "saved", "saved whole", "images"])
def test_local_data_of_the_library_is_read_offline(hf, tmp_path, layout):
    place, index = tmp_path / "set", {"train": range(30), "test": range(30, 40)}
    if layout == "images":
        for split, rows in index.items():
            for i in rows:
                path = place / split / "abc"[Y[i]] / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(X[i]).save(path)
    splits = {split: table(hf, rows) for split, rows in index.items()}
    if layout == "saved":
        hf.DatasetDict(splits).save_to_disk(place)
    if layout == "saved whole":
        table(hf, range(40)).save_to_disk(place)
    for split, rows in splits.items():
        if layout == "parquet":
            rows.to_parquet(place / f"{split}.parquet")
        if layout == "arrow":
            rows.save_to_disk(tmp_path / "saved" / split)
            (place / split).mkdir(parents=True)
            (file,) = (tmp_path / "saved" / split).glob("*.arrow")
            file.rename(place / split / "0.arrow")
    data = load(f"hf:{place}")
    assert (data.shape, data.classes, data.classes_named) == ((4, 6, 3), 3, ("a", "b", "c"))
    if layout == "saved whole":
        assert sizes(data) == [33, 3, 4]
    else:
        assert sizes(data) == [27, 3, 10]
        assert contents(data.test) == wanted(*range(30, 40))
    assert contents(data.train, data.validation, data.test) == wanted(*range(40))
    assert isinstance(data.train, Arrays)


def test_decoded_images_are_kept_until_the_data_changes(hf, tmp_path, monkeypatch):
    place = tmp_path / "set"
    table(hf, range(20)).to_parquet(place / "train.parquet")
    first, made = load(f"hf:{place}"), []
    monkeypatch.setattr(images, "read_all", lambda source: made.append(1))
    again = load(f"hf:{place}")
    np.testing.assert_array_equal(again.train["x"], first.train["x"])
    assert not made
    monkeypatch.undo()
    table(hf, range(20, 40)).to_parquet(place / "train.parquet")
    changed = load(f"hf:{place}")
    assert contents(changed.train, changed.validation, changed.test) == wanted(*range(20, 40))


def test_captions_of_the_library_and_reading_example_by_example(hf, tmp_path, monkeypatch):
    texts = [f"caption {i}" for i in range(40)]
    table(hf, range(40), caption=texts).to_parquet(tmp_path / "set" / "train.parquet")
    data = load(f"hf:{tmp_path / 'set'}")
    for part in (data.train, data.validation, data.test):
        for x, text in zip(part["x"], part["text"], strict=True):
            number = int(bytes(text).rstrip(b"\0").decode().split()[1])
            np.testing.assert_array_equal(x, X[number])
    asked = data.given(2)
    assert asked.keys() == {"text", "label"}
    np.testing.assert_array_equal(asked["text"], data.validation["text"][[0, 2]])
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    lazy, index = load(f"hf:{tmp_path / 'set'}"), np.array([5, 2, 5])
    assert not isinstance(lazy.train, Arrays)
    for name, x in lazy.train.fetch(index).items():
        np.testing.assert_array_equal(x, data.train.fetch(index)[name])
    small = load(f"hf:{tmp_path / 'set'}", image_size=2)
    assert small.train.fetch(index)["x"].shape[1:] == small.shape == (2, 2, 3)


def test_texts_of_the_library_are_joined(hf, tmp_path):
    place = tmp_path / "set"
    for split, texts in (("train", ["one", None, "two"] * 30), ("validation", ["three"] * 10)):
        hf.Dataset.from_dict({"text": texts}).to_parquet(place / f"{split}.parquet")
    data = load(f"hf:{place}", length=8)
    whole = "\n".join(["one", "", "two"] * 30).encode()
    assert data.train["values"].tobytes() + data.validation["values"].tobytes() == whole
    assert data.test["values"].tobytes() == b"\n".join([b"three"] * 10)
    assert data.shape == (8,)


def test_bad_names_and_data_of_the_library_are_named(hf, tmp_path, monkeypatch):
    for name in ("no_such/set", "no_such_set", str(tmp_path / "none"), str(tmp_path)):
        with pytest.raises(DataError, match=r"cannot be loaded \(.*\): give a folder, or a name"):
            load(f"hf:{name}")
    hf.Dataset.from_dict({"number": [1, 2]}).to_parquet(tmp_path / "numbers" / "train.parquet")
    with pytest.raises(DataError, match=r"neither images nor text: its features are \['number'\]"):
        load(f"hf:{tmp_path / 'numbers'}")
    table(hf, range(9)).to_parquet(tmp_path / "tests" / "test.parquet")
    table(hf, range(9)).to_parquet(tmp_path / "tests" / "validation.parquet")
    with pytest.raises(DataError, match="has no split 'train'"):
        load(f"hf:{tmp_path / 'tests'}")
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "train.parquet").write_bytes(b"junk")
    with pytest.raises(DataError, match=r"bad' cannot be loaded \(.*\): give a folder"):
        load(f"hf:{tmp_path / 'bad'}")
    for i, size in enumerate((4, 4, 5)):
        (tmp_path / "sizes" / "train").mkdir(parents=True, exist_ok=True)
        Image.new("L", (size, 4)).save(tmp_path / "sizes" / "train" / f"{i}.png")
    with pytest.raises(
        DataError, match=r"image 2 of 'train' is 5x4 but .* resize them with --image-size"
    ):
        load(f"hf:{tmp_path / 'sizes'}")
    assert load(f"hf:{tmp_path / 'sizes'}", image_size=4).shape == (4, 4, 1)
    (tmp_path / "sizes" / "train" / "1.png").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"an image of 'hf:.*' cannot be read"):
        load(f"hf:{tmp_path / 'sizes'}", image_size=4)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"pip install 'jaxgen\[hf\]'"):
        load("hf:anything")
