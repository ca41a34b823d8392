"""Sources in memory are the same gather on the host and on devices, and hide nothing of the set."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.data import records
from jaxgen.data.records import (
    Arrays,
    DataError,
    DataSet,
    Image,
    Part,
    Tokens,
    conditions_of,
    hold_out,
    in_chunks,
    point_sets,
    product,
    some,
    spread,
    windows,
)

TEXT = np.frombuffer(b"".join(b"%04d" % i for i in range(30)), np.uint8)
SIZES = np.array([2, 0, 3, 1])
POINTS = {
    "x": np.arange(1, 13, dtype=np.float32).reshape(6, 2),
    "kind": np.arange(1, 7, dtype=np.int32),
}
SETS = {
    "table": Arrays({"x": np.arange(12.0).reshape(4, 3), "label": np.arange(4)}),
    "windows": windows(TEXT, 8, 3),
    "point sets": point_sets(POINTS, SIZES),
    "product": product(
        Arrays({"x": np.arange(6).reshape(3, 2)}),
        Arrays({"x": np.arange(10, 14), "label": np.arange(4)}),
    ),
}


@pytest.mark.parametrize("shape", [(5,), (2, 5), (2, 3, 5)])
@pytest.mark.parametrize("name", SETS)
def test_the_gather_of_any_index_is_the_same_on_host_and_device(name, shape):
    source = SETS[name]
    index = np.random.default_rng(0).integers(len(source), size=shape).astype(np.int32)
    host = source.gather(source.arrays, index)
    device = jax.jit(source.gather)(jax.tree.map(jnp.asarray, source.arrays), jnp.asarray(index))
    one_by_one = [source.fetch(np.array([i])) for i in index.reshape(-1)]
    assert host.keys() == device.keys()
    for key, x in host.items():
        np.testing.assert_array_equal(x, device[key])
        single = np.concatenate([batch[key] for batch in one_by_one])
        np.testing.assert_array_equal(x, single.reshape(*shape, *single.shape[1:]))


@pytest.mark.parametrize("stride", [1, 3, 8])
def test_windows_are_slices_of_the_text(stride):
    source = windows(TEXT, 8, stride)
    starts = range(0, len(TEXT) - 8 + 1, stride)
    assert len(source) == len(starts)
    want = [TEXT[i : i + 8] for i in starts]
    np.testing.assert_array_equal(source.fetch(np.arange(len(source)))["x"], want)


def test_a_text_without_a_window_is_refused():
    assert len(windows(TEXT, len(TEXT))) == 1
    with pytest.raises(DataError, match="120 tokens hold no window of 121: lower --length"):
        windows(TEXT, len(TEXT) + 1)


def test_point_sets_hold_their_points_and_zeros():
    source = point_sets(POINTS, SIZES, largest=4)
    batch, start = source.fetch(np.arange(4)), 0
    assert batch["x"].shape == (4, 4, 2)
    np.testing.assert_array_equal(batch["size"], SIZES)
    for i, size in enumerate(SIZES):
        np.testing.assert_array_equal(batch["mask"][i], np.arange(4) < size)
        for name, x in POINTS.items():
            assert batch[name].dtype == x.dtype
            np.testing.assert_array_equal(batch[name][i, :size], x[start : start + size])
            assert not batch[name][i, size:].any()
        start += size


def test_a_product_holds_every_pair_once():
    source = SETS["product"]
    batch = source.fetch(np.arange(len(source)))
    pairs = {(tuple(x), y) for x, y in zip(batch["x"].tolist(), batch["y"].tolist(), strict=True)}
    assert len(source) == len(pairs) == 12
    np.testing.assert_array_equal(batch["y"] - 10, batch["label"])


@pytest.mark.parametrize(
    ("size", "held", "trained"), [(1, 1, 1), (2, 1, 1), (9, 1, 8), (10, 1, 9), (200, 20, 180)]
)
@pytest.mark.parametrize("kind", ["arrays", "part", "windows"])
def test_what_is_held_out_is_not_trained_on(kind, size, held, trained):
    arrays = Arrays({"x": np.arange(size)[:, None], "label": np.arange(size)})
    source = {
        "arrays": arrays,
        "part": Part(arrays, np.arange(size)),
        "windows": windows(np.arange(size), 1),
    }[kind]
    train, validation = hold_out(source)
    assert isinstance(train, Arrays) == (kind == "arrays")
    seen = [s.fetch(np.arange(len(s)))["x"][:, 0] for s in (train, validation)]
    assert (len(seen[0]), len(seen[1])) == (trained, held)
    assert set(seen[0]) | set(seen[1]) == set(range(size))
    assert size == 1 or not set(seen[0]) & set(seen[1])


def test_at_most_five_thousand_are_held_out():
    class Large:
        def __len__(self):
            return 1_281_167

        def fetch(self, index):
            return {"label": index}

    train, validation = hold_out(Large())
    assert 4900 < len(validation) <= 5000
    assert len(train) + len(validation) == 1_281_167
    first = validation.fetch(np.array([0]))["label"][0]
    assert first not in train.fetch(np.arange(300))["label"]


def test_some_examples_are_spread_over_a_sorted_set():
    np.testing.assert_array_equal(spread(5, 10), np.arange(5))
    np.testing.assert_array_equal(spread(100, 5), [0, 24, 49, 74, 99])
    source = Arrays({"x": np.arange(100), "label": np.arange(100) // 10})
    whole = some(source, 7)
    assert len(whole["x"]) == 7
    parts = list(in_chunks(source, 3, 7))
    assert [len(part["x"]) for part in parts] == [3, 3, 1]
    np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), whole["label"])


def test_a_set_is_asked_for_labels_in_turn_or_for_conditions_of_its_validation():
    source = Arrays({"x": np.arange(3), "y": np.arange(3) * 2})
    data = DataSet("set", Image((1, 1, 1)), source, source, source, classes=3)
    np.testing.assert_array_equal(data.given(5)["label"], [0, 1, 2, 0, 1])
    asked = conditions_of(source, ("y",), 5)
    assert asked.keys() == {"y"}
    assert set(asked["y"][:3]) == {0, 2, 4}  # all three, and again
    np.testing.assert_array_equal(asked["y"][3:], asked["y"][:2])
    for count in (1, 2, 4):  # fewer are the first of them
        np.testing.assert_array_equal(conditions_of(source, ("y",), count)["y"], asked["y"][:count])


def test_tokens_are_shown_as_text():
    kind = Tokens(4)
    assert kind.shape == (4,)
    assert kind.decode(np.frombuffer("é".encode() + b"a\xff", np.uint8)) == "éa\ufffd"


def test_scales_are_inverse_to_each_other():
    bins = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    signed = records.to_signed(jnp.asarray(bins), 256)
    assert (signed.min(), signed.max()) == (-1, 1)
    np.testing.assert_array_equal(records.to_bytes(signed), bins)
    np.testing.assert_allclose(2 * records.to_unit(jnp.asarray(bins), 256) - 1, signed, atol=1e-6)


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_samples_are_rounded_to_values_of_pixels(levels):
    kind = Image((1, 1, 1), levels)
    values = np.asarray(kind.values(np.arange(levels)))
    np.testing.assert_allclose(kind.nearest(values + 0.4 / (levels - 1)), values, atol=1e-6)
    np.testing.assert_array_equal(kind.nearest(np.array([-3.0, 3.0])), [-1, 1])


def test_flips_mirror_about_half_of_the_images(key):
    x = jnp.broadcast_to(jnp.arange(3.0).reshape(1, 1, 3, 1), (1000, 2, 3, 1))
    flipped = np.asarray(records.random_flip(key, x))[:, :, :, 0]
    is_mirrored = (flipped == [2, 1, 0]).all(axis=(1, 2))
    assert ((flipped == [0, 1, 2]).all(axis=(1, 2)) | is_mirrored).all()
    assert 430 < is_mirrored.sum() < 570


@pytest.mark.parametrize("count", [1, 5])
def test_images_are_binarized_with_their_intensity_pixel_by_pixel(key, count):
    """Means, and products of two pixels of an image, are those of independent bits."""
    x = np.broadcast_to(np.array([0, 1, 64, 128, 254, 255], np.uint8), (count, 6))
    draw = jax.jit(lambda key: records.binarize(key, x, 256))
    bits = np.asarray(jax.vmap(draw)(jax.random.split(key, 40_000)))
    assert set(np.unique(bits)) == {0.0, 1.0}
    p, n = x[0] / 255, len(bits)
    assert np.all(np.abs(bits.mean(0) - p) <= 5 * np.sqrt(p * (1 - p) / n) + 2.0**-17)
    for i, j in ((1, 2), (2, 3), (3, 4)):
        both = p[i] * p[j]
        assert np.all(np.abs((bits[..., i] * bits[..., j]).mean(0) - both) < 5 * np.sqrt(both / n))
    if count > 1:  # neighbours share a byte: so little that 40,000 draws do not show it
        assert np.all(np.abs(np.corrcoef(bits[:, :, 3].T) - np.eye(count)) < 0.03)
