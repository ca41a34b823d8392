"""Pictures: grids, films, curves. Images are ``[H, W, C]`` in [-1, 1]."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from jaxgen.data.sources import to_bytes


def tile(images: np.ndarray, columns: int, *, pad: int = 1) -> np.ndarray:
    """Tiles ``[N, H, W, C]`` in rows of ``columns``, white lines between: uint8 ``[H', W', C]``."""
    images = to_bytes(images)
    n, h, w, c = images.shape
    rows = math.ceil(n / columns)
    canvas = np.full((rows * (h + pad) + pad, columns * (w + pad) + pad, c), 255, np.uint8)
    for i, image in enumerate(images):
        y, x = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        canvas[y : y + h, x : x + w] = image
    return canvas


def _picture(canvas: np.ndarray, zoom: int) -> Image.Image:
    canvas = np.repeat(np.repeat(canvas, zoom, axis=0), zoom, axis=1)
    return Image.fromarray(canvas[..., 0] if canvas.shape[-1] == 1 else canvas)


def zoom_of(height: int) -> int:
    """How many screen pixels a pixel gets, so that an image is about 48 high."""
    return max(1, 48 // height)


def save_grid(path: Path, images: np.ndarray, columns: int) -> Path:
    """Writes a PNG of ``images [N, H, W, C]``, enlarged so that small images can be seen."""
    _picture(tile(images, columns), zoom_of(images.shape[1])).save(path)
    return path


def save_rows(path: Path, rows: Mapping[str, np.ndarray]) -> Path:
    """Writes a PNG with one row of images ``[n, H, W, C]`` under each other, each with its name."""
    from PIL import ImageDraw, ImageFont

    first = next(iter(rows.values()))
    zoom = zoom_of(first.shape[1])
    strips = [_picture(tile(x, len(x)), zoom) for x in rows.values()]
    font = ImageFont.load_default(13)
    margin = 12 + max(int(font.getlength(name)) for name in rows)
    width, height = margin + strips[0].width, sum(s.height for s in strips)
    canvas = Image.new("RGB", (width, height), "white")
    draw, y = ImageDraw.Draw(canvas), 0
    for name, strip in zip(rows, strips, strict=True):
        canvas.paste(strip, (margin, y))
        draw.text((6, y + strip.height // 2), name, fill="black", font=font, anchor="lm")
        y += strip.height
    canvas.save(path)
    return path


def save_film(
    path: Path, frames: np.ndarray, columns: int, *, seconds: float = 4.0, hold: float = 1.5
) -> Path:
    """Writes a GIF of grids, ``frames [n, N, H, W, C]``, the last one held for ``hold`` seconds."""
    pictures = [_picture(tile(f, columns), zoom_of(frames.shape[2])) for f in frames]
    durations = [max(20, int(1000 * seconds / len(pictures)))] * len(pictures)
    durations[-1] = int(1000 * hold)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return path


def save_curves(
    path: Path, rows: Sequence[Mapping[str, float]], names: Sequence[str] | None = None
) -> Path:
    """Draws metrics over steps from the rows of a ``metrics.jsonl``, one panel a metric."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = names or sorted({name for row in rows for name in row} - {"step"})
    columns = min(3, len(names))
    grid = (math.ceil(len(names) / columns), columns)
    figure, axes = plt.subplots(*grid, figsize=(4 * columns, 2.8 * grid[0]), squeeze=False)
    for axis, name in zip(axes.flat, names, strict=False):
        points = [(row["step"], row[name]) for row in rows if name in row]
        axis.plot(*zip(*points, strict=True), linewidth=1.2)
        axis.set_title(name, fontsize=10)
        axis.set_xlabel("step", fontsize=8)
        axis.grid(alpha=0.3)
        values = [value for _, value in points]
        if min(values) > 0 and max(values) > 20 * min(values):
            axis.set_yscale("log")
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
    return path


def save_bars(
    path: Path, at: np.ndarray, height: np.ndarray, spread: np.ndarray, labels: tuple[str, str]
) -> Path:
    """Draws ``height [n]`` with its ``spread`` at the places ``at``: a histogram of means."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 3.5))
    axes.bar(at, height, width=0.9 * np.diff(at, append=2 * at[-1] - at[-2]), color="tab:blue")
    axes.errorbar(at, height, spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axes.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
