"""Pictures in files: what their headers tell, and their pixels.

A picture is uint8 ``[H, W, C]``, grey or RGB, as people see it: upright, its 16 bits scaled to 8,
and over white where it is transparent. Of one with several frames it is the first.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import time
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np

from jaxgen.data.cache import cache_dir
from jaxgen.data.records import DataError, listed
from jaxgen.files import replacing

FORMATS = {  # Pillow's name -> suffixes; a file is read by its content, whichever of them it has
    "PNG": (".png", ".apng"),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "TIFF": (".tif", ".tiff"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "AVIF": (".avif",),
}
SUFFIXES = {suffix for suffixes in FORMATS.values() for suffix in suffixes}
READER = 2  # of the rules that make pixels of files; what was kept by others is made anew
PATIENCE = 2.0  # seconds of work before its progress is shown
AT_ONCE = 64  # pictures that are decoded before the first of them is passed on

Shape = tuple[int, int, int]  # H, W, C
S = TypeVar("S")
T = TypeVar("T")


# --- pixels ----------------------------------------------------------------------------------


def is_grey(mode: str) -> bool:
    """Whether pictures of a mode of Pillow's are grey; a palette counts as colour."""
    return mode in ("1", "L", "LA", "La", "I") or mode.startswith("I;16")


def plain(image: Any) -> Any:
    """A picture of any mode as one of mode ``L`` or ``RGB``, as people see it.

    CMYK, YCbCr and the like become RGB by Pillow's formulas, without colour profiles.

    Raises:
      DataError: for floats and for integers beyond 16 bits, as their white is not known.
    """
    import PIL.Image
    import PIL.ImageOps

    image.load()
    bits = getattr(image, "tag_v2", {}).get(258, (16,))[0]  # a TIFF may have 12 in place of 16
    with suppress(Exception):  # where its EXIF is damaged a picture is upright
        image = PIL.ImageOps.exif_transpose(image)
    mode = "L" if is_grey(image.mode) else "RGB"
    if image.mode == "F":
        raise DataError("a picture of floats has no known white: make it one of 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_integers(image, 2**bits - 1 if image.mode != "I" else 65535)
    if image.has_transparency_data:
        white = PIL.Image.new("RGBA", image.size, "white")
        image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert(mode)


def _from_integers(image: Any, white: int) -> Any:
    """A grey picture of 8 bits, from one whose values are 0..white."""
    import PIL.Image

    x = np.asarray(image).astype(np.int64)
    if x.min() < 0 or x.max() > white:
        raise DataError(
            "a picture of more than 16 bits has no known white: make it one of 8 or 16 bits"
        )
    x = np.where(x == image.info.get("transparency"), white, x)
    return PIL.Image.fromarray(((255 * x + white // 2) // white).astype(np.uint8))


def fit(image: Any, shape: Shape) -> np.ndarray:
    """A Pillow image or an array as uint8 ``[H, W, C]``: cropped and resized where it differs."""
    import PIL.Image
    import PIL.ImageOps

    if isinstance(image, np.ndarray):
        image = PIL.Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
    image = plain(image).convert("L" if shape[-1] == 1 else "RGB")
    lanczos = PIL.Image.Resampling.LANCZOS
    return np.asarray(PIL.ImageOps.fit(image, (shape[1], shape[0]), lanczos)).reshape(shape)


# --- files -----------------------------------------------------------------------------------


@cache
def _formats() -> list[str]:
    """The formats that this Pillow reads."""
    import PIL.Image

    PIL.Image.init()
    return [name for name in FORMATS if name in PIL.Image.OPEN]


def _open(file: Any) -> Any:
    import PIL.Image

    return PIL.Image.open(file, formats=_formats())


class Known(NamedTuple):
    """What is known of a file without decoding it."""

    nbytes: int
    content: str  # a digest
    width: int  # of the upright picture
    height: int
    grey: bool
    animated: bool  # or of several pages


# A PNG may hold its EXIF behind its pixels, and Pillow decodes it to look there.
EXIF_OF_PNG = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")


def look(path: Path) -> Known:
    """Reads a file once, for its header and the digest of its content; raises what Pillow does."""
    raw = path.read_bytes()
    with _open(io.BytesIO(raw)) as image:
        if image.mode == "F":
            plain(image)  # which refuses it
        # A telephone's MPO is a photograph with previews.
        animated = image.format != "MPO" and bool(getattr(image, "is_animated", False))
        grey, (w, h) = is_grey(image.mode), _upright_size(image, raw)
    return Known(len(raw), hashlib.sha256(raw).hexdigest(), w, h, grey, animated)


def _upright_size(image: Any, raw: bytes) -> tuple[int, int]:
    orientation = 1
    if image.format != "PNG" or any(mark in raw for mark in EXIF_OF_PNG):
        with suppress(Exception):  # where its EXIF is damaged a picture is upright
            orientation = image.getexif().get(0x0112, 1)
    if orientation not in (5, 6, 7, 8):
        return image.size
    if image.format == "TIFF":  # some versions of Pillow have turned its size already
        return plain(image).size
    return image.size[::-1]


class Header(NamedTuple):
    """What is known of a picture without its pixels."""

    name: Any
    size: tuple[int, int]  # width, height
    grey: bool


@dataclass(frozen=True)
class Picture:
    """A picture in a file, or its left (0) or right (1) half; ``name`` is relative to a root."""

    name: str
    half: int | None = None

    def header(self, root: Path, known: Known) -> Header:
        """Its header.

        Raises:
          DataError: if it cannot be halved.
        """
        path, w, h = root / self.name, known.width, known.height
        if self.half is not None and w % 2:
            raise DataError(f"{path} is {w} pixels wide: two halves need an even width.")
        return Header(path, (w if self.half is None else w // 2, h), known.grey)

    def read(self, root: Path, shape: Shape) -> np.ndarray:
        """Its pixels, uint8 ``[H, W, C]``; raises what Pillow raises."""
        with _open(root / self.name) as image:
            if self.half is None:
                return fit(image, shape)
            image = plain(image)
            w, h = image.size[0] // 2, image.size[1]
            return fit(image.crop((self.half * w, 0, (self.half + 1) * w, h)), shape)


def common_shape(headers: Iterable[Header], image_size: int | None) -> Shape:
    """The shape of pictures: of one channel where all are grey, and resized where that is asked.

    Raises:
      DataError: if they differ in size and are not to be resized.
    """
    channels, first = 1, None
    for header in headers:
        first = first or header
        channels = channels if header.grey else 3
        if header.size != first.size and not image_size:
            sizes = [f"{h.name} is {h.size[0]}x{h.size[1]}" for h in (header, first)]
            raise DataError(f"{' but '.join(sizes)}: resize them with --image-size.")
    assert first is not None, "no pictures"
    w, h = (image_size, image_size) if image_size else first.size
    return h, w, channels


# --- many files ------------------------------------------------------------------------------


def attempts(
    work: Callable[[S], T], items: Sequence[S], activity: str
) -> Iterator[tuple[S, T | Exception]]:
    """Each item, in order, with what ``work`` makes of it, in threads, or the error that it raises.

    What takes longer than two seconds shows its progress.
    """

    def attempt(item: S) -> tuple[S, T | Exception]:
        try:
            return item, work(item)
        except Exception as error:  # a damaged file makes decoders raise anything
            return item, error

    _formats()  # loads what threads would load at once
    begun, advance = time.monotonic(), None
    with ThreadPoolExecutor() as pool, ExitStack() as stack:
        for done in range(0, len(items), AT_ONCE):
            if advance is None and time.monotonic() - begun > PATIENCE:
                from jaxgen.training.logging import progress

                advance = stack.enter_context(progress(activity, len(items), done))
            part = items[done : done + AT_ONCE]
            yield from pool.map(attempt, part)
            if advance:
                advance(len(part))


def unreadable(root: Path, failures: Mapping[str, Exception], count: int) -> DataError:
    """One sentence for all files that cannot be read, of ``count``."""
    import PIL

    first, error = next(iter(failures.items()))
    path, why = root / first, str(error).rstrip(".") or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        why = error.strerror
    elif isinstance(error, PIL.UnidentifiedImageError):
        why = "it is none" if path.stat().st_size else "it is empty"
    if len(failures) == 1:
        return DataError(f"{path} cannot be read as an image ({why}): remove or replace it.")
    return DataError(
        f"{len(failures)} of {count} files in {root} cannot be read as images: "
        f"{listed(list(failures))} ({first}: {why}): remove or replace them."
    )


def inspect(root: Path, names: Sequence[str]) -> dict[str, Known]:
    """What is known of files, by their names relative to ``root``.

    It is kept by size and time of change, so that a later start opens what has changed alone.

    Raises:
      DataError: for those that cannot be read, all at once.
    """
    place = hashlib.sha256(os.fsencode(root.resolve())).hexdigest()[:16]
    path, now = cache_dir() / "data" / f"files-{place}.json", time.time_ns()
    kept: dict[str, list[Any]] = {}
    with suppress(OSError, ValueError, AttributeError):
        kept = json.loads(path.read_bytes()).get(str(READER), {})
    found, times, failures = {}, {}, {}
    for name in names:
        try:
            stat = os.stat(root / name)
        except OSError as error:
            failures[name] = error
            continue
        times[name], before = stat.st_mtime_ns, kept.get(name)
        if before and before[:2] == [stat.st_mtime_ns, stat.st_size]:
            found[name] = Known(*before[1:])
    unknown = [name for name in names if name in times and name not in found]
    if not unknown and not failures:
        return found
    for name, known in attempts(lambda name: look(root / name), unknown, "opening"):
        if isinstance(known, Exception):
            failures[name] = known
        else:
            found[name] = known
    if failures:  # then the rest is decoded too, so that all that fails is told at once
        rest = [Picture(name) for name in names if name in found]
        tried = attempts(lambda picture: picture.read(root, (1, 1, 3)), rest, "decoding")
        failures |= {p.name: error for p, error in tried if isinstance(error, Exception)}
        raise unreadable(root, {n: failures[n] for n in names if n in failures}, len(names))
    # A file that has just been written may be written again within one tick of its clock.
    settled = {n: [times[n], *k] for n, k in found.items() if times[n] < now - 2 * 10**9}
    with suppress(OSError), replacing(path) as file:
        file.write(json.dumps({str(READER): settled}).encode())
    return found


def decode(root: Path, pictures: Sequence[Picture], shape: Shape) -> Iterator[np.ndarray]:
    """The pixels of pictures, uint8 ``[H, W, C]``, in order.

    Raises:
      DataError: in the end, for those that cannot be read.
    """
    failures: dict[str, Exception] = {}
    for picture, pixels in attempts(lambda p: p.read(root, shape), pictures, "decoding"):
        if isinstance(pixels, Exception):
            failures[picture.name] = pixels
        elif not failures:
            yield pixels
    if failures:
        raise unreadable(root, failures, len({p.name for p in pictures}))


def read_one(root: Path, picture: Picture, shape: Shape) -> np.ndarray:
    """The pixels of one picture, uint8 ``[H, W, C]``.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        return picture.read(root, shape)
    except Exception as error:
        raise unreadable(root, {picture.name: error}, 1) from error


def one_form(name: str) -> str:
    """A name in the one of its Unicode forms that all systems agree on."""
    return unicodedata.normalize("NFC", name)


def digest_of(known: Mapping[str, Known], more: Iterable[bytes] = ()) -> str:
    """A digest of the names, sizes and contents of files, wherever the folder lies."""
    rows = sorted(f"{one_form(name)}\0{k.nbytes}\0{k.content}\n" for name, k in known.items())
    digest = hashlib.sha256("".join(rows).encode(errors="surrogateescape"))
    for content in more:
        digest.update(content)
    return digest.hexdigest()
