"""Folders of pictures of all kinds are read as people see them, and all that is lost is said."""

import dataclasses
import json
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import folders, images, pictures
from jaxgen.data.cache import cache_dir
from jaxgen.data.records import Arrays, DataError
from jaxgen.data.sources import load

H, W = 3, 4


def noise(seed, *channels):
    return np.random.default_rng(seed).integers(256, size=(H, W, *channels), dtype=np.uint8)


def save(path, image, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(path, **how)
    return path


def ordered(root):
    """The files of a folder in the order in which they are read."""
    return sorted(p.relative_to(root) for p in Path(root).rglob("*") if p.is_file())


def held(size):
    """Whether an example is held out: every tenth, or the last."""
    return np.arange(size) % 10 == 9 if size > 9 else np.arange(size) == size - 1


def whole(data):
    """All pictures of a data set without splits, in the order of their files."""
    train, validation, test = (
        source.fetch(np.arange(len(source)))["x"]
        for source in (data.train, data.validation, data.test)
    )
    if len(train) == len(validation) == 1 and (train == validation).all():  # of two pictures
        return np.concatenate([train, test])
    x = np.empty((len(train) + len(validation) + len(test), *data.shape), np.uint8)
    tested = held(len(x))
    rest = np.flatnonzero(~tested)
    validated = held(len(rest))
    x[tested], x[rest[validated]], x[rest[~validated]] = test, validation, train
    return x


def assert_pixels(root, wanted, channels):
    data = load(f"folder:{root}")
    assert data.shape == (H, W, channels)
    assert sorted(map(Path, wanted)) == ordered(root)
    for file, x in zip(ordered(root), whole(data), strict=True):
        want = wanted[str(file)]
        want = want[..., None] if want.ndim == 2 else want
        np.testing.assert_array_equal(x, np.broadcast_to(want, x.shape), str(file))
    return data


def settled(root):
    """Files that were last written a while ago, as those of users mostly are."""
    for file in Path(root).rglob("*"):
        if file.is_file():
            os.utime(file, (1_000_000_000, 1_000_000_000))
    return root


# --- pixels ----------------------------------------------------------------------------------


def tiff_of_12_bits(x):
    """A TIFF file of values 0..4095 ``[H, W]``, two pixels in three bytes."""
    h, w = x.shape
    packed = int("".join(f"{v:012b}" for v in x.ravel().tolist()), 2).to_bytes(
        h * w * 3 // 2, "big"
    )
    tags = {256: w, 257: h, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: h, 279: len(packed)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    return head + packed + struct.pack("<H", len(tags)) + entries + bytes(4)


def greys(root):
    """Grey pictures in all forms, and their pixels."""
    x, bits = noise(0), noise(1) > 127
    deep = 257 * x.astype(np.uint16)
    deep[0] = 0, 128, 129, 65535  # 128 / 257 is less than a half, 129 / 257 more
    scaled = x.copy()
    scaled[0] = 0, 0, 1, 255
    alpha = np.where(bits, 255, 0).astype(np.uint8)
    mask = x.copy()
    mask[1, 1] = mask[2, 2] = 77
    where = {"scaled": scaled, "over": np.where(bits, x, 255), "holes": mask.copy()}
    where["holes"][mask == 77] = 255
    one = deep == deep[2, 3]
    save(root / "eight.png", x)
    save(root / "sixteen.png", deep)
    save(root / "sixteen.tif", deep)
    save(root / "sixteen-big.tiff", Image.fromarray(deep.astype(">u2")))
    save(root / "thirty-two.tif", Image.fromarray(deep.astype(np.int32)))
    save(root / "sixteen.pgm", deep)
    save(root / "sixteen-hole.png", deep, transparency=int(deep[2, 3]))
    (root / "twelve.tif").write_bytes(tiff_of_12_bits(np.round(x * (4095 / 255)).astype(int)))
    save(root / "one.pbm", Image.fromarray(np.uint8(255 * bits)).convert("1"))
    save(root / "one.png", Image.fromarray(np.uint8(255 * bits)).convert("1"))
    save(root / "alpha.png", np.stack([x, alpha], axis=-1))
    save(root / "hole.png", mask, transparency=77)
    return {
        "eight.png": x,
        "twelve.tif": x,
        **dict.fromkeys(("sixteen.png", "sixteen.tif", "sixteen-big.tiff"), scaled),
        **dict.fromkeys(("thirty-two.tif", "sixteen.pgm"), scaled),
        "sixteen-hole.png": np.where(one, 255, scaled),
        **dict.fromkeys(("one.pbm", "one.png"), alpha),
        "alpha.png": where["over"],
        "hole.png": where["holes"],
    }


def colours(root):
    """Pictures in colour in all forms, and their pixels."""
    x, index = noise(2, 3), noise(3) % 5
    table = np.random.default_rng(4).integers(256, size=(5, 3), dtype=np.uint8)
    palette = Image.fromarray(index, "L").convert("P")
    palette.putpalette(table.tobytes())
    alpha = np.full((H, W), 255, np.uint8)
    alpha[0] = 0
    over = x.copy()
    over[0] = 255
    half = np.zeros((H, W, 4), np.uint8)
    half[..., 3] = 51  # a fifth of black over white
    cmyk = np.zeros((H, W, 4), np.uint8)
    cmyk[0, 0], cmyk[0, 1], cmyk[1, 0] = (255, 0, 0, 0), (0, 0, 0, 255), (0, 255, 255, 0)
    printed = np.full((H, W, 3), 255, np.uint8)
    printed[0, 0], printed[0, 1], printed[1, 0] = (0, 255, 255), 0, (255, 0, 0)
    frames = [Image.fromarray(noise(k, 3)) for k in (6, 7, 8)]
    save(root / "plain.png", x)
    save(root / "UPPER.PNG", x)
    save(root / "lossless.webp", x, lossless=True)
    save(root / "plain.bmp", x)
    save(root / "plain.ppm", x)
    save(root / "plain.tiff", x)
    save(root / "really a png.jpg", x, format="PNG")
    save(root / "really a bmp.WebP", x, format="BMP")
    save(root / "palette.png", palette)
    save(root / "palette.gif", palette)
    save(root / "palette-hole.png", palette, transparency=bytes([0, 255, 255]))
    save(root / "palette-hole.gif", palette, transparency=1)
    save(root / "alpha.png", np.concatenate([x, alpha[..., None]], axis=-1))
    save(root / "alpha.webp", np.concatenate([x, alpha[..., None]], axis=-1), lossless=True)
    save(root / "half.png", half)
    save(root / "grey.png", noise(9))
    save(root / "grey-alpha.png", np.stack([noise(9), alpha], axis=-1))
    save(root / "cmyk.tif", Image.fromarray(cmyk, "CMYK"))
    save(root / "cmyk.jpg", Image.new("CMYK", (W, H), (0, 0, 0, 0)))
    save(root / "plain.jpe", np.full((H, W, 3), 100, np.uint8), format="JPEG")
    save(root / "plain.jfif", np.full((H, W), 100, np.uint8), format="JPEG")
    save(root / "film.webp", frames[0], save_all=True, append_images=frames[1:], lossless=True)
    save(
        root / "film.gif", palette, save_all=True, append_images=[palette.rotate(180)], duration=50
    )
    grey = np.stack([noise(9)] * 3, axis=-1)
    grey_over = grey.copy()
    grey_over[0] = 255
    plain = ("plain.png", "UPPER.PNG", "lossless.webp", "plain.bmp", "plain.ppm", "plain.tiff")
    return {
        **dict.fromkeys((*plain, "really a png.jpg", "really a bmp.WebP"), x),
        **dict.fromkeys(("palette.png", "palette.gif", "film.gif"), table[index]),
        "palette-hole.png": np.where(index[..., None] == 0, 255, table[index]),
        "palette-hole.gif": np.where(index[..., None] == 1, 255, table[index]),
        **dict.fromkeys(("alpha.png", "alpha.webp"), over),
        "half.png": np.full((H, W, 3), 204),
        "grey.png": grey,
        "grey-alpha.png": grey_over,
        "cmyk.tif": printed,
        "cmyk.jpg": np.full((H, W, 3), 255),
        **dict.fromkeys(("plain.jpe", "plain.jfif"), np.full((H, W, 3), 100)),
        "film.webp": noise(6, 3),
    }


def test_grey_pictures_of_all_kinds_keep_their_greys(tmp_path):
    data = assert_pixels(tmp_path, greys(tmp_path), channels=1)
    assert data.reading.lines()[1] == "4x3, grey"


def test_pictures_in_colour_of_all_kinds_keep_their_colours(tmp_path):
    data = assert_pixels(tmp_path, colours(tmp_path), channels=3)
    assert data.reading.lines()[1:] == [
        "4x3, colour",
        "2 with several frames, of which the first is read",
    ]


def test_luma_and_chroma_become_colours():
    x = np.full((H, W, 3), 128, np.uint8)
    x[..., 0] = noise(5)
    read = pictures.fit(Image.fromarray(x, "YCbCr"), (H, W, 3))
    np.testing.assert_array_equal(read, np.stack([noise(5)] * 3, axis=-1))


@pytest.mark.skipif(
    ".avif" not in Image.registered_extensions(), reason="this Pillow reads no AVIF"
)
def test_avif_is_read(tmp_path):
    for i in range(2):
        save(tmp_path / f"{i}.avif", np.full((8, 8, 3), 90, np.uint8), quality=95)
    assert abs(whole(load(f"folder:{tmp_path}")).astype(int) - 90).max() <= 3


SIDES = {  # of the upright picture: where the first row and the first column of the file lie
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def turned(x, orientation):
    """What a camera stores of the upright ``x`` under an orientation of EXIF."""
    h, w = x.shape[:2]
    away = np.mgrid[:h, :w]
    away = {
        "top": away[0],
        "bottom": h - 1 - away[0],
        "left": away[1],
        "right": w - 1 - away[1],
    }
    row, column = (away[side] for side in SIDES[orientation])
    stored = np.empty((row.max() + 1, column.max() + 1, *x.shape[2:]), x.dtype)
    stored[row, column] = x
    return stored


def test_all_orientations_are_turned_upright(tmp_path):
    x, exif = noise(0, 3), Image.Exif()
    deep = noise(1).astype(np.uint16) * 257
    for orientation in SIDES:
        exif[0x0112] = orientation
        save(tmp_path / f"png/{orientation}.png", turned(x, orientation), exif=exif)
        save(
            tmp_path / f"webp/{orientation}.webp", turned(x, orientation), exif=exif, lossless=True
        )
        save(tmp_path / f"tiff/{orientation}.tif", turned(x, orientation), exif=exif)
        save(tmp_path / f"deep/{orientation}.png", turned(deep, orientation), exif=exif)
    for kind, want in (("png", x), ("webp", x), ("tiff", x), ("deep", noise(1)[..., None])):
        read = whole(load(f"folder:{tmp_path / kind}"))
        np.testing.assert_array_equal(read, [want] * 8, kind)


def test_a_turned_photograph_has_the_size_of_what_is_seen(tmp_path):
    exif = Image.Exif()
    for i, orientation in enumerate((1, 3, 6, 8)):
        exif[0x0112] = orientation
        x = np.zeros((32, 16), np.uint8)
        x[:16] = 255
        save(tmp_path / f"{i}.jpg", turned(x, orientation), exif=exif, quality=100)
    data = load(f"folder:{tmp_path}")
    assert data.shape == (32, 16, 1)
    np.testing.assert_array_equal(whole(data) > 127, [x[..., None] > 127] * 4)


def test_exif_behind_the_pixels_is_found_and_damaged_exif_turns_nothing(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for i in range(2):
        raw = save(tmp_path / f"{i}.png", turned(noise(i, 3), 6), exif=exif).read_bytes()
        start = raw.index(b"eXIf") - 4
        end = start + 12 + int.from_bytes(raw[start : start + 4], "big")
        chunk, rest = raw[start:end], raw[:start] + raw[end:]
        last = rest.index(b"IEND") - 4
        (tmp_path / f"{i}.png").write_bytes(rest[:last] + chunk + rest[last:])
    save(tmp_path / "2.png", noise(2, 3), exif=b"Exif\0\0this is none")
    want = [noise(i, 3) for i in range(3)]
    np.testing.assert_array_equal(whole(load(f"folder:{tmp_path}")), want)


def test_the_smallest_and_the_widest_are_read(tmp_path):
    x = np.zeros((10, 10_000, 3), np.uint8)
    x[:, 4_995:5_005] = (10, 20, 30)
    save(tmp_path / "wide.png", x)
    save(tmp_path / "dot.png", np.full((1, 1, 3), (40, 50, 60), np.uint8))
    data = load(f"folder:{tmp_path}", image_size=2)
    read = whole(data)
    np.testing.assert_array_equal(read[0], np.full((2, 2, 3), (40, 50, 60)))
    # resampled, so up to rounding
    np.testing.assert_allclose(read[1], np.full((2, 2, 3), (10, 20, 30)), atol=1)
    assert data.reading.lines()[1] == "1x1 to 10000x10, cropped and resized to 2x2, colour"


# --- which files -----------------------------------------------------------------------------


def test_what_is_read_and_what_is_left_out_is_said(tmp_path):
    for name in ("1", "2", "10"):
        for i in range(int(name) + 2):
            save(tmp_path / name / "deeper" / f"{i}.png", noise(i, 3))
    save(tmp_path / "Größe 猫" / "ü €.png", noise(50, 3))
    for name in ("._1.png", ".git/x.png", "__MACOSX/y.png", "10/.hidden.png"):
        save(tmp_path / name, noise(51, 3), format="PNG")
    for name in (".DS_Store", "1/Thumbs.db", "desktop.ini", "notes.txt", "2/a.csv", "b.CSV", "c"):
        (tmp_path / name).write_text("no picture")
    save(tmp_path / "loose.png", noise(52, 3))
    save(tmp_path / "loose.gif", noise(53, 3))
    (tmp_path / "empty" / "inside").mkdir(parents=True)
    data = load(f"folder:{tmp_path}")
    assert data.classes_named == ("1", "2", "10", "Größe 猫")
    assert data.reading.lines() == [
        "20 pictures: 17 train, 1 validation, 2 test",
        "4x3, colour",
        "4 classes: 1 3, 2 4, 10 12, Größe 猫 1",
        "left out: 7 hidden, 4 not pictures (2 .csv, 1 no suffix, 1 .txt), "
        "2 beside the folders that are read, 1 empty (empty)",
    ]
    labels = np.concatenate([data.train["label"], data.validation["label"], data.test["label"]])
    np.testing.assert_array_equal(np.bincount(labels), [3, 4, 12, 1])
    plain = json.loads(json.dumps(dataclasses.asdict(data.reading)))
    assert plain["counts"] == {"train": 17, "validation": 1, "test": 2}
    assert plain["classes"] == {"1": 3, "2": 4, "10": 12, "Größe 猫": 1}
    assert plain["shape"] == [3, 4, 3]
    assert plain["left_out"]["hidden"] == 7


def test_symbolic_links_are_followed_and_end(tmp_path):
    for i in range(3):
        save(tmp_path / "store" / f"{i}.png", noise(i, 3))
    root = tmp_path / "set"
    save(root / "own" / "own.png", noise(9, 3))
    (root / "linked").symlink_to(tmp_path / "store")
    (root / "own" / "one.png").symlink_to(tmp_path / "store" / "0.png")
    (root / "own" / "around").symlink_to(root)
    (root / "own" / "itself").symlink_to(root / "own" / "itself")
    data = load(f"folder:{root}")
    assert data.reading.classes == {"linked": 3, "own": 2}
    want = [noise(i, 3) for i in (0, 1, 2, 0, 9)]
    np.testing.assert_array_equal(whole(data), want)
    (root / "own" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"own/gone\.png cannot be read .*\(No such file"):
        load(f"folder:{root}")


def test_splits_are_found_in_any_letter_case_and_classes_are_their_union(tmp_path):
    for place, n in (("Train/9", 3), ("Train/10", 3), ("VALID/9", 2), ("test/10", 2)):
        for i in range(n):
            save(tmp_path / place / f"{i}.png", noise(i, 3))
    save(tmp_path / "test" / "11" / "0.png", noise(0, 3))
    save(tmp_path / "test" / "loose.png", noise(1, 3))
    save(tmp_path / "beside" / "0.png", noise(1, 3))
    (tmp_path / "VALID" / "10").mkdir()
    (tmp_path / "Train" / "12").mkdir()
    data = load(f"folder:{tmp_path}")
    assert [len(s) for s in (data.train, data.validation, data.test)] == [6, 2, 3]
    assert data.classes_named == ("9", "10", "11")
    np.testing.assert_array_equal(data.train["label"], [1, 1, 1, 0, 0, 0])
    np.testing.assert_array_equal(data.validation["label"], [0, 0])
    np.testing.assert_array_equal(data.test["label"], [1, 1, 2])
    assert data.reading.lines()[2:] == [
        "3 classes: 9 5, 10 5, 11 1",
        "left out: 2 beside the folders that are read, 1 empty (12)",
    ]


def test_splits_need_no_classes(tmp_path):
    for place, n in (("train", 11), ("Validation", 2), ("TEST", 3)):
        for i in range(n):
            save(tmp_path / place / f"{i}.png", noise(i, 3))
    data = load(f"folder:{tmp_path}")
    assert data.reading.lines() == ["16 pictures: 11 train, 2 validation, 3 test", "4x3, colour"]
    assert (data.classes, data.classes_named) == (1, ())
    (tmp_path / "train" / "class").mkdir()
    save(tmp_path / "train" / "class" / "0.png", noise(0, 3))
    save(tmp_path / "train" / "class" / "1.png", noise(0, 3))
    with pytest.raises(
        DataError, match=r"Validation has no folders of classes, as train has: sort"
    ):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("places", "classes"),
    [
        (("train/a", "train/b"), ("a", "b")),  # a lone train is a split
        (("train", "car", "bus"), ("bus", "car", "train")),  # and one among others a class
        (("test", "car"), ("car", "test")),
    ],
)
def test_a_class_may_be_called_train(tmp_path, places, classes):
    for place in places:
        for i in range(2):
            save(tmp_path / place / f"{i}.png", noise(i, 3))
    assert load(f"folder:{tmp_path}").classes_named == classes


def test_splits_that_are_not_whole_are_refused(tmp_path):
    for place in ("val", "test"):
        for i in range(2):
            save(tmp_path / place / f"{i}.png", noise(i, 3))
    with pytest.raises(DataError, match="holds val and test but no folder train to learn from"):
        load(f"folder:{tmp_path}")
    for place in ("train", "Valid"):
        for i in range(2):
            save(tmp_path / place / f"{i}.png", noise(i, 3))
    with pytest.raises(DataError, match="holds both Valid and val: keep one of them"):
        load(f"folder:{tmp_path}")


def test_captions_may_name_loose_pictures_too(tmp_path):
    lines = []
    for name in ("0.png", "1.png", "deep/2.png"):
        save(tmp_path / name, noise(0, 3))
        lines.append(json.dumps({"file_name": name, "text": name}))
    save(tmp_path / "3.png", noise(0, 3))
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines))
    (tmp_path / "other.jsonl").write_text("")
    data = load(f"folder:{tmp_path}")
    assert data.classes_named == ()
    assert data.reading.lines()[2:] == [
        "left out: 1 not pictures (1 .jsonl), 1 not in metadata.jsonl"
    ]
    (tmp_path / "metadata.jsonl").write_text("\n".join(lines).replace('deep/2.png"}', 'else"}'))
    assert load(f"folder:{tmp_path}").digest != data.digest


def test_folders_that_are_not_there_are_named_with_the_nearest(tmp_path):
    save(tmp_path / "pictures" / "0.png", noise(0, 3))
    with pytest.raises(
        DataError, match=r"there is no folder .*pictrues: did you mean .*/pictures\?"
    ):
        load(f"folder:{tmp_path}/pictrues")
    with pytest.raises(DataError, match=r"there is no folder .*/elsewhere\.$"):
        load(f"domains:{tmp_path}/elsewhere")
    with pytest.raises(DataError, match=r"0\.png is a file: give a folder"):
        load(f"pairs:{tmp_path}/pictures/0.png")


# --- what cannot be read ---------------------------------------------------------------------


def test_all_that_cannot_be_read_is_named_at_once(tmp_path):
    for i in range(4):
        save(
            tmp_path / f"good{i}.png",
            np.random.default_rng(i).integers(256, size=(64, 64), dtype=np.uint8),
        )
    for i in range(4):
        x = np.random.default_rng(i).integers(256, size=(64, 64), dtype=np.uint8)
        path = save(tmp_path / f"cut{i}.png", x)  # whose header is whole
        path.write_bytes(path.read_bytes()[:2000])
    (tmp_path / "bad.jpg").write_text("not a picture")
    (tmp_path / "empty.png").write_bytes(b"")
    save(tmp_path / "float.tif", np.zeros((64, 64), np.float32))
    message = (
        r"7 of 11 files in .* cannot be read as images: bad\.jpg, cut0\.png, cut1\.png, cut2\.png, "
        r"cut3\.png and 2 more \(bad\.jpg: it is none\): remove or replace them\.$"
    )
    with pytest.raises(DataError, match=message):
        load(f"folder:{tmp_path}")
    for name in ("bad.jpg", "empty.png", "float.tif", "good3.png"):
        (tmp_path / name).unlink()
    with pytest.raises(
        DataError, match=r"4 of 7 files in .*: cut0.*cut3\.png \(cut0\.png: .*trunc"
    ):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (lambda path: path.write_bytes(b""), "it is empty"),
        (lambda path: path.write_bytes(b"\0" * 1000), "it is none"),
        (
            lambda path: save(path, np.zeros((H, W), np.float32), format="TIFF"),
            "floats has no known",
        ),
        (
            lambda path: save(path, np.full((H, W), 70_000, np.int32), format="TIFF"),
            "more than 16 bits has no known white",
        ),
    ],
)
def test_a_file_that_cannot_be_read_comes_with_the_reason(tmp_path, content, why):
    for i in range(2):
        save(tmp_path / f"{i}.png", noise(i))
    content(tmp_path / "1.tif")
    with pytest.raises(DataError, match=rf"1\.tif cannot be read as an image \(.*{why}"):
        load(f"folder:{tmp_path}")


# --- what is kept ----------------------------------------------------------------------------


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A cache of its own, and what is opened and decoded while the test goes on."""
    monkeypatch.setenv("JAXGEN_CACHE", str(tmp_path / "cache"))
    done = {"look": 0, "fit": 0}

    def counted(name):
        original = getattr(pictures, name)

        def call(*args):
            done[name] += 1
            return original(*args)

        monkeypatch.setattr(pictures, name, call)

    counted("look")
    counted("fit")
    return done


def some_pictures(root, n=12):
    for i in range(n):
        save(root / "ab"[i % 2] / f"{i:02d}.png", noise(i, 3))
    return settled(root)


def test_files_are_opened_and_decoded_once(tmp_path, fresh):
    root = some_pictures(tmp_path / "set")
    first = load(f"folder:{root}")
    assert fresh == {"look": 12, "fit": 12}
    second = load(f"folder:{root}")
    assert fresh == {"look": 12, "fit": 12}
    np.testing.assert_array_equal(whole(second), whole(first))
    assert (second.digest, second.reading) == (first.digest, first.reading)
    load(f"folder:{root}", image_size=2)
    assert fresh == {"look": 12, "fit": 24}
    save(root / "a" / "02.png", noise(99, 3))
    changed = load(f"folder:{root}")
    assert fresh == {"look": 13, "fit": 36}
    assert changed.digest != first.digest
    np.testing.assert_array_equal(whole(changed)[1], noise(99, 3))


def test_a_file_that_was_just_written_is_not_trusted(tmp_path, fresh):
    """It may be written again, to the same size, before the clock of the disk has ticked."""
    root = tmp_path / "set"
    for i in range(2):
        save(root / f"{i}.bmp", noise(i, 3))
    time = (root / "0.bmp").stat().st_mtime_ns
    before = load(f"folder:{root}")
    save(root / "0.bmp", noise(7, 3))
    os.utime(root / "0.bmp", ns=(time, time))
    after = load(f"folder:{root}")
    assert after.digest != before.digest
    np.testing.assert_array_equal(whole(after)[0], noise(7, 3))


def test_a_moved_folder_is_the_same_and_a_renamed_picture_is_not(tmp_path, fresh):
    first = load(f"folder:{some_pictures(tmp_path / 'set')}")
    shutil.move(tmp_path / "set", tmp_path / "moved")
    moved = load(f"folder:{tmp_path / 'moved'}")
    assert moved.digest == first.digest
    assert fresh["fit"] == 12
    (tmp_path / "moved" / "a").rename(tmp_path / "moved" / "A")
    assert load(f"folder:{tmp_path / 'moved'}").digest != first.digest
    (tmp_path / "moved" / "A").rename(tmp_path / "moved" / "a")
    (tmp_path / "moved" / "note.txt").write_text("of no use")
    assert load(f"folder:{tmp_path / 'moved'}").digest == first.digest


def kept_files():
    return sorted((cache_dir() / "data").glob("pictures-*.npy"))


def test_what_is_larger_than_memory_is_decoded_once_into_a_file(tmp_path, fresh, monkeypatch):
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    root = some_pictures(tmp_path / "set")
    for _ in range(2):
        data = load(f"folder:{root}")
        assert not isinstance(data.train, Arrays)
        order = sorted(range(12), key=lambda i: (i % 2, i))
        np.testing.assert_array_equal(whole(data), [noise(i, 3) for i in order])
        index = np.array([3, 0, 8, 3])
        batch = data.train.fetch(index)
        np.testing.assert_array_equal(batch["x"], [noise(order[i], 3) for i in index])
        np.testing.assert_array_equal(batch["label"], [order[i] % 2 for i in index])
    assert fresh == {"look": 12, "fit": 12}
    assert len(kept_files()) == 1


@pytest.mark.parametrize("limit", [0, images.MEMORY_LIMIT])
@pytest.mark.parametrize("fault", ["not writable", "no room", "full"])
def test_without_a_cache_all_is_read_as_well(tmp_path, fresh, monkeypatch, fault, limit):
    root = some_pictures(tmp_path / "set")
    if fault == "not writable":
        (tmp_path / "cache").write_text("")
    elif fault == "no room":
        monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(1, 1, 0))
    else:
        full = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
        monkeypatch.setattr(np.lib.format, "write_array_header_1_0", full)
    monkeypatch.setattr(images, "MEMORY_LIMIT", limit)
    data = load(f"folder:{root}")
    assert isinstance(data.train, Arrays) == bool(limit)
    assert fresh["fit"] == (12 if limit else 0)
    want = [noise(i, 3) for i in sorted(range(12), key=lambda i: (i % 2, i))]
    np.testing.assert_array_equal(whole(data), want)
    assert fault == "not writable" or not [
        p for p in (cache_dir() / "data").iterdir() if "pict" in p.name
    ]


def test_a_file_that_breaks_later_is_named(tmp_path, fresh, monkeypatch):
    root = some_pictures(tmp_path / "set")
    (tmp_path / "cache").write_text("")
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    data = load(f"folder:{root}")
    (root / "a" / "02.png").write_bytes(b"gone")
    with pytest.raises(DataError, match=r"a/02\.png cannot be read as an image \(it is none\)"):
        data.train.fetch(np.arange(3))


def test_a_damaged_cache_is_made_anew(tmp_path, fresh):
    first = load(f"folder:{some_pictures(tmp_path / 'set')}")
    (rows,) = kept_files()
    rows.write_bytes(rows.read_bytes()[:-1])
    (known,) = (cache_dir() / "data").glob("files-*.json")
    known.write_text("{")
    again = load(f"folder:{tmp_path / 'set'}")
    assert fresh == {"look": 24, "fit": 24}
    np.testing.assert_array_equal(whole(again), whole(first))


def test_two_processes_may_make_the_cache_at_once(tmp_path, fresh):
    some_pictures(tmp_path / "set", 40)
    program = (
        "import sys, numpy as np; from jaxgen.data.folders import folder; from pathlib import Path;"
        "data = folder('set', Path(sys.argv[1]), None);"
        "print(data.digest, int(data.train['x'].sum()))"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "set")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate()[0] for process in both]
    data = load(f"folder:{tmp_path / 'set'}")
    assert said == [f"{data.digest} {data.train['x'].sum()}\n"] * 2
    assert len(kept_files()) == 1
    assert not list((cache_dir() / "data").glob("*.part"))


def test_what_takes_long_shows_its_progress(tmp_path, fresh, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "PATIENCE", 0)
    monkeypatch.setattr(pictures, "AT_ONCE", 4)
    load(f"folder:{some_pictures(tmp_path / 'set')}")
    said = capsys.readouterr().out
    assert "opening: 4/12" in said
    assert "decoding: 12/12" in said


# --- pictures to translate -------------------------------------------------------------------


def test_pairs_and_domains_are_read_by_the_same_reader(tmp_path, fresh):
    exif = Image.Exif()
    exif[0x0112] = 6
    for side, split, n in (("A", "Train", 3), ("B", "TRAIN", 3), ("A", "val", 2), ("B", "val", 2)):
        for i in range(n):
            x = noise(10 * i + (side == "B"), 3)
            save(tmp_path / f"{split}{side}" / f"{i}.png", turned(x, 6), exif=exif)
    (tmp_path / "TrainA" / ".hidden.png").write_text("")
    save(tmp_path / "loose.png", noise(0))
    data = load(f"pairs:{settled(tmp_path)}")
    np.testing.assert_array_equal(data.test["x"], [noise(0, 3), noise(10, 3)])
    np.testing.assert_array_equal(data.test["y"], [noise(1, 3), noise(11, 3)])
    assert data.reading.lines() == [
        "5 pairs of pictures: 2 train, 1 validation, 2 test",
        "4x3, colour",
        "left out: 1 hidden, 1 beside the folders that are read",
    ]
    both = load(f"domains:{tmp_path}")
    assert both.digest == data.digest
    assert both.reading.lines()[0] == (
        "10 pictures: 2 train x, 1 validation x, 2 test x, 2 train y, 1 validation y, 2 test y"
    )
    save(tmp_path / "TrainA" / "1.gif", noise(0, 3))
    with pytest.raises(DataError, match=r"TrainA/1\.gif and TrainA/1\.png in .* have one name"):
        load(f"pairs:{tmp_path}")


def test_a_turned_picture_is_halved_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    for i in range(2):
        save(tmp_path / f"{i}.png", turned(noise(i, 3), 8), exif=exif)
    data = load(f"pairs:{tmp_path}")
    np.testing.assert_array_equal(data.test["x"][0], noise(1, 3)[:, : W // 2])
    np.testing.assert_array_equal(data.test["y"][0], noise(1, 3)[:, W // 2 :])


def test_domains_too_large_for_memory_are_read_as_they_are_asked_for(tmp_path, fresh, monkeypatch):
    for side, n in (("A", 4), ("B", 5)):
        for i in range(n):
            save(tmp_path / f"train{side}" / f"{i}.png", noise(10 * i + (side == "B"), 3))
    held = load(f"domains:{tmp_path}")
    monkeypatch.setattr(images, "MEMORY_LIMIT", 0)
    lazy = load(f"domains:{tmp_path}")
    assert not isinstance(lazy.train, Arrays)
    index = np.arange(len(held.train))
    for name, x in lazy.train.fetch(index).items():
        np.testing.assert_array_equal(x, held.train.fetch(index)[name])
    np.testing.assert_array_equal(lazy.given(3)["y"], held.given(3)["y"])


def test_natural_order():
    names = ["10", "9", "a2b10", "a2b9", "a10", "²", "09", "b"]
    found = sorted(names, key=folders.in_natural_order)
    assert [n for n in found if n.isdecimal()] == ["09", "9", "10"]
    assert [n for n in found if n.startswith("a")] == ["a2b9", "a2b10", "a10"]
