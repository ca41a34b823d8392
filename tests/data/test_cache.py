import numpy as np

from jaxgen.data.cache import cache_dir, kept


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
