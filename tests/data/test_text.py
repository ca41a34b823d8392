"""Text as windows of bytes: slices of the file, and nothing that is measured by is trained on."""

import numpy as np
import pytest

from jaxgen.data.records import DataError
from jaxgen.data.sources import load
from jaxgen.data.text import captions, text_set

TEXT = "".join(f"{i:04d}é" for i in range(500)).encode()  # 3,000 bytes; no window comes twice


def covered(source):
    """The set of the windows' places in the text."""
    return {TEXT.index(x.tobytes()) for x in source.fetch(np.arange(len(source)))["x"]}


@pytest.fixture
def data(tmp_path):
    (tmp_path / "book.txt").write_bytes(TEXT)
    return load(f"text:{tmp_path / 'book.txt'}", length=16)


def test_windows_of_a_file_are_parts_of_it_one_after_the_other(data):
    assert (data.kind.noun, data.shape, data.kind.vocabulary) == ("text", (16,), 256)
    assert covered(data.train) == set(range(2700 - 16 + 1))
    assert covered(data.validation) == set(range(2700, 2850 - 15, 16))
    assert covered(data.test) == set(range(2850, 3000 - 15, 16))
    assert len(data.train) == len(covered(data.train))
    assert data.kind.decode(data.train.fetch(np.array([0]))["x"][0]) == "0000é0001é0002"[:14]


def test_an_original_file_is_split_as_tensorflow_datasets_splits_it(tmp_path):
    with pytest.raises(DataError, match=r"lacks input\.txt, the original file of 'tiny"):
        load("tiny_shakespeare", manual_dir=str(tmp_path))
    (tmp_path / "input.txt").write_bytes(TEXT)
    data = load("tiny_shakespeare", manual_dir=str(tmp_path), length=16)
    parts = [part["values"].tobytes() for part in (data.train, data.validation, data.test)]
    assert (b"".join(parts), [*map(len, parts)]) == (TEXT, [2700, 150, 150])


def test_it_is_asked_for_with_an_empty_prompt(data):
    (prompt,) = data.given(3).values()
    assert (prompt.shape, prompt.dtype) == ((3, 0), np.int32)


def test_the_texts_of_a_folder_are_joined(tmp_path, data):
    folder = tmp_path / "texts"
    (folder / "more").mkdir(parents=True)
    (folder / "a.txt").write_bytes(TEXT[:1002])
    (folder / "more" / "b.txt").write_bytes(TEXT[1003:])
    (folder / "c.md").write_bytes(b"not a text file")
    joined = load(f"text:{folder}", length=16)
    want = bytearray(TEXT)
    want[1002:1003] = b"\n"
    np.testing.assert_array_equal(joined.train["values"], np.frombuffer(want[:2700], np.uint8))
    np.testing.assert_array_equal(joined.test["values"], data.test["values"])
    folder.rename(tmp_path / "moved")
    assert load(f"text:{tmp_path}/moved", length=16).digest == joined.digest
    (tmp_path / "moved" / "a.txt").write_bytes(TEXT[:1002] + b"!")
    assert load(f"text:{tmp_path}/moved", length=16).digest != joined.digest


def test_splits_that_are_there_are_taken():
    data = text_set("set", {"train": TEXT[:1000], "validation": TEXT[1000:1500]}, 16)
    assert covered(data.train) == set(range(950 - 15))
    assert covered(data.validation) == set(range(950, 1000 - 15, 16))
    assert covered(data.test) == set(range(1000, 1500 - 15, 16))
    splits = {"train": TEXT[:1000], "validation": TEXT[1000:1500], "test": TEXT[1500:]}
    data = text_set("set", splits, 16)
    assert covered(data.train) == set(range(1000 - 15))
    assert covered(data.validation) == set(range(1000, 1500 - 15, 16))
    assert covered(data.test) == set(range(1500, 3000 - 15, 16))


def test_bad_texts_are_named(tmp_path):
    with pytest.raises(DataError, match=r"none\.txt cannot be read .*: name a file or a folder"):
        load(f"text:{tmp_path}/none.txt")
    with pytest.raises(DataError, match=r"holds no \*\.txt files"):
        load(f"text:{tmp_path}")
    (tmp_path / "latin.txt").write_bytes("é".encode("latin1"))
    with pytest.raises(DataError, match=r"latin\.txt is no UTF-8 text"):
        load(f"text:{tmp_path}/latin.txt")
    for size in (0, 5, 600):
        (tmp_path / "short.txt").write_text("a" * size)
        with pytest.raises(DataError, match="tokens hold no window of 32"):
            load(f"text:{tmp_path}/short.txt", length=32)


def test_captions_are_padded_to_the_longest():
    found = captions({"train": ["é", "abc"], "test": [""]})
    np.testing.assert_array_equal(found["train"], [[195, 169, 0], [97, 98, 99]])
    np.testing.assert_array_equal(found["test"], [[0, 0, 0]])
    assert captions({"train": [""]})["train"].shape == (1, 1)
    assert captions({"train": ["a" * 300]})["train"].shape == (1, 256)
