import os

import numpy as np
import pytest

from jaxgen.data.cache import cache_dir, kept, kept_rows


def test_arrays_are_made_once_and_again_where_the_file_is_damaged(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path))
    made = []

    def make():
        made.append(1)
        return {"x": np.arange(5, dtype=np.uint8), "label": np.int32([3])}

    for _ in range(2):
        arrays = kept("set", make)
        np.testing.assert_array_equal(arrays["x"], np.arange(5))
        assert arrays["x"].dtype == np.uint8
    assert len(made) == 1
    (path,) = (cache_dir() / "data").iterdir()
    path.write_bytes(path.read_bytes()[:40])
    np.testing.assert_array_equal(kept("set", make)["label"], [3])
    assert len(made) == 2


def test_nothing_is_kept_where_nothing_can_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "file"))
    assert kept("set", lambda: {"x": np.ones(2)})["x"].sum() == 2


def test_rows_are_written_once_and_mapped(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path))
    want, made = np.arange(24, dtype=np.uint8).reshape(4, 3, 2), []
    for _ in range(2):
        rows = kept_rows("rows", want.shape, lambda: made.append(1) or iter(want))
        np.testing.assert_array_equal(rows, want)
        assert isinstance(rows.base, np.memmap)
    assert len(made) == 1
    # of another shape, or cut short, they are others
    np.testing.assert_array_equal(kept_rows("rows", (2, 3, 2), lambda: iter(want[:2])), want[:2])
    (path,) = (tmp_path / "data").iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    np.testing.assert_array_equal(kept_rows("rows", (2, 3, 2), lambda: iter(want[2:])), want[2:])


def test_rows_that_were_not_used_for_longest_make_room(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path))
    monkeypatch.setattr("jaxgen.data.cache.ROWS_LIMIT", 400)  # a file is 128 bytes of header, and 3
    of = lambda name: kept_rows(
        f"pictures-{name}", (1, 3), lambda: iter([np.full(3, ord(name), np.uint8)])
    )
    for age, name in enumerate("abc"):
        of(name)
        path = tmp_path / "data" / f"pictures-{name}.npy"
        os.utime(path, (age, age))
    a = of("a")  # used again: b is the oldest now
    (tmp_path / "data" / "of-a-user.npy").write_bytes(bytes(1000))
    there = lambda: sorted(path.stem[-1] for path in (tmp_path / "data").iterdir())
    of("d")
    assert there() == ["a", "c", "d", "r"]
    of("e")
    of("f")
    assert there() == ["d", "e", "f", "r"]
    np.testing.assert_array_equal(a, [[97] * 3])  # who reads it keeps it


def test_rows_that_cannot_be_made_leave_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path))

    def broken(error):
        yield np.zeros(3, np.uint8)
        raise error

    assert kept_rows("rows", (2, 3), lambda: broken(OSError("the disk is full"))) is None
    with pytest.raises(ValueError, match="damaged"):
        kept_rows("rows", (2, 3), lambda: broken(ValueError("damaged")))
    assert not list((tmp_path / "data").iterdir())
