"""Pictures: grids of images, clouds of points, films, curves.

Images are ``[H, W, C]`` in [-1, 1]. Every ``save_...`` writes one file, whole or not at all, and
returns its path.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from jaxgen.data.records import spread, to_bytes
from jaxgen.files import replacing

if TYPE_CHECKING:  # importing matplotlib takes most of a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# --- images ----------------------------------------------------------------------------------


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
    return _save_png(path, _picture(tile(images, columns), zoom_of(images.shape[1])))


def save_pairs(path: Path, x: np.ndarray, y: np.ndarray, columns: int = 10) -> Path:
    """Writes a PNG of x, y, x, y, ... of two sets of images ``[N, H, W, C]``."""
    return save_grid(path, np.stack([x, y], axis=1).reshape(-1, *x.shape[1:]), columns)


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
    return _save_png(path, canvas)


def save_film(
    path: Path, frames: np.ndarray, columns: int, *, seconds: float = 4.0, hold: float = 1.5
) -> Path:
    """Writes a GIF of grids, ``frames [n, N, H, W, C]``, the last one held for ``hold`` seconds."""
    pictures = [_picture(tile(f, columns), zoom_of(frames.shape[2])) for f in frames]
    return _save_gif(path, pictures, seconds, hold)


def _save_gif(path: Path, pictures: Sequence[Image.Image], seconds: float, hold: float) -> Path:
    durations = [max(20, int(1000 * seconds / len(pictures)))] * len(pictures)
    durations[-1] = int(1000 * hold)
    first, *rest = pictures
    with replacing(path) as file:
        first.save(file, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return path


def _save_png(path: Path, picture: Image.Image) -> Path:
    with replacing(path) as file:
        picture.save(file, "PNG")
    return path


# --- panels ----------------------------------------------------------------------------------


def _panels(count: int, columns: int, width: float, height: float) -> tuple[Figure, list[Axes]]:
    """A figure with ``count`` panels in rows of ``columns``, each ``width`` x ``height`` inches."""
    # of a home that cannot be written to, in which it keeps its fonts
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    from matplotlib.figure import Figure

    columns = min(columns, count)
    rows = math.ceil(count / columns)
    figure = Figure((width * columns, height * rows), dpi=110)
    # Margins in inches: to lay panels out by their labels would draw all of them twice.
    left, right, bottom, top = 0.6, 0.15, 0.5, 0.3
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(
        left=left / (width * columns),
        right=1 - right / (width * columns),
        bottom=bottom / (height * rows),
        top=1 - top / (height * rows),
        wspace=(left + right) / (width - left - right),
        hspace=(bottom + top) / (height - bottom - top),
    )
    for axis in axes:
        axis.tick_params(which="both", labelsize=8)
    for axis in axes[count:]:
        axis.set_visible(False)
    return figure, [*axes[:count]]


def _save(path: Path, figure: Figure) -> Path:
    with replacing(path) as file:
        figure.savefig(file, format="png")
    return path


# --- points and densities in the plane -------------------------------------------------------

INK = np.linspace([255, 255, 255], [23, 78, 140], 256).round().astype(np.uint8)  # [256, RGB]
SHADE = np.round(255 * (1 - 0.4 ** np.arange(8)))  # ink where 0, 1, 2, ... dots overlap


def square_around(points: np.ndarray) -> tuple[np.ndarray, float]:
    """The centre ``[2]`` and half the side of a square that shows ``points [n, 2]``.

    A hundredth at either end of each axis may be beyond it, and there is a margin around the
    others: a few points that went astray do not make the picture small.
    """
    points = points[np.isfinite(points).all(axis=-1)]
    if not len(points):
        return np.zeros(2), 1.0
    low, high = np.quantile(points, [0.01, 0.99], axis=0)
    return (low + high) / 2, 0.6 * float((high - low).max()) or 1.0


def dots(points: np.ndarray, centre: np.ndarray, half: float, side: int = 240) -> np.ndarray:
    """The ink of ``points [n, 2]`` on a square of paper: uint8 ``[side, side]``, the top first.

    A dot is two pixels wide, without jagged edges, and darker where others are under it.
    """
    fine = 3  # sub-pixels along a side of a pixel
    near = np.arange(-fine, fine) + 0.5
    disk = np.argwhere(np.hypot(near[:, None], near[None]) <= fine) - fine
    points = points[np.isfinite(points).all(axis=-1)]
    place = (points - centre)[:, ::-1] * [-1, 1] / half  # (row, column), each in [-1, 1]
    middle = np.round((np.clip(place, -2, 2) + 1) / 2 * side * fine).astype(int)
    cells = (middle[:, None] + disk).reshape(-1, 2)
    cells = cells[((cells >= 0) & (cells < side * fine)).all(axis=-1)]
    count = np.bincount(cells @ [side * fine, 1], minlength=(side * fine) ** 2)
    ink = SHADE[np.minimum(count, len(SHADE) - 1)]
    return ink.reshape(side, fine, side, fine).mean(axis=(1, 3)).astype(np.uint8)


def save_points_film(
    path: Path, frames: np.ndarray, *, seconds: float = 4.0, hold: float = 1.5
) -> Path:
    """Writes a GIF of clouds, ``frames [F, n, 2]``, the last one held for ``hold`` seconds.

    What it shows of the plane is set by the last frame, so that noise may begin beyond it.
    """
    centre, half = square_around(frames[-1])
    pictures = [Image.fromarray(dots(points, centre, half)) for points in frames]
    for picture in pictures:
        picture.putpalette(INK.tobytes())
    return _save_gif(path, pictures, seconds, hold)


def save_films(
    path: Path,
    films: Mapping[str, np.ndarray],
    captions: Sequence[str],
    around: np.ndarray,
    *,
    columns: int = 4,
    side: int = 150,
    seconds: float = 5.0,
    hold: float = 2.0,
) -> Path:
    """Writes a GIF of films of clouds side by side, ``[F, n, 2]`` by name, under ``captions [F]``.

    All show the part of the plane that shows the points ``around [m, 2]``.
    """
    from PIL import ImageDraw, ImageFont

    centre, half = square_around(around)
    font, line, gap = ImageFont.load_default(12), 16, 8
    columns = min(columns, len(films))
    width, height = side + gap, line + side + gap
    size = columns * width + gap, line + math.ceil(len(films) / columns) * height
    pictures = []
    for i, caption in enumerate(captions):
        canvas = Image.new("L", size)
        draw = ImageDraw.Draw(canvas)
        draw.text((gap, line // 2 + 2), caption, fill=255, font=font, anchor="lm")
        for j, (name, frames) in enumerate(films.items()):
            x, y = gap + j % columns * width, 2 * line + j // columns * height
            draw.text((x, y - line // 2), name, fill=255, font=font, anchor="lm")
            draw.rectangle((x - 1, y - 1, x + side, y + side), outline=64)
            canvas.paste(Image.fromarray(dots(frames[i], centre, half, side)), (x, y))
        canvas.putpalette(INK.tobytes())
        pictures.append(canvas)
    return _save_gif(path, pictures, seconds, hold)


def save_points(
    path: Path,
    sets: Mapping[str, np.ndarray],
    limit: int = 2000,
    behind: np.ndarray | None = None,
) -> Path:
    """Draws clouds side by side on axes of one scale, up to ``limit`` points of each ``[n, 2]``.

    Where there are points ``behind`` all of them, in a light grey, it is these that set the scale.
    """
    (x, y), half = square_around(np.concatenate([*sets.values()]) if behind is None else behind)
    figure, axes = _panels(len(sets), 4, 2.8, 2.9)
    for axis, (name, points) in zip(axes, sets.items(), strict=True):
        shown = points[spread(len(points), limit)]
        if behind is not None:
            axis.scatter(*behind.T, s=4, linewidths=0, color="0.85")
        axis.scatter(*shown.T, s=4, alpha=0.5, linewidths=0, color=INK[-1] / 255)
        axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
        axis.set_title(name, fontsize=10)
    return _save(path, figure)


def save_classes(
    path: Path,
    panels: Mapping[str, np.ndarray],
    labels: np.ndarray,
    names: Sequence[str],
    behind: Mapping[str, np.ndarray] | None = None,
) -> Path:
    """Draws ``[n, 2]`` of the same examples side by side, in the colours of their ``labels [n]``.

    Panels have scales of their own, in which the axes are alike. Points ``behind`` them, by the
    names of the panels, are of a light grey.
    """
    figure, axes = _panels(len(panels), len(panels), 3.6, 3.6)
    from matplotlib import colormaps

    few = len(names) <= 20
    colours = colormaps["tab10" if len(names) <= 10 else "tab20" if few else "hsv"]
    for axis, (title, points) in zip(axes, panels.items(), strict=True):
        if behind is not None:
            axis.scatter(*behind[title].T, s=5, linewidths=0, color="0.87")
        for c, name in enumerate(names):
            ink = {"color": colours(c if few else c / len(names)), "label": name}
            axis.scatter(*points[labels == c].T, s=8, alpha=0.7, linewidths=0, **ink)
        axis.set_title(title, fontsize=10)
        axis.set_aspect("equal", adjustable="datalim")
    if len(names) > 1 and few:
        _widen(figure, 0.5 + 0.08 * max(map(len, names)))
        axes[-1].legend(fontsize=8, loc="upper left", bbox_to_anchor=(1, 1), markerscale=2)
    return _save(path, figure)


def _widen(figure: Figure, inches: float) -> None:
    """Makes room at the right of the panels, which stay as large as they are."""
    width, where = figure.get_figwidth(), figure.subplotpars
    figure.set_figwidth(width + inches)
    share = width / (width + inches)
    figure.subplots_adjust(left=where.left * share, right=where.right * share)


def save_values(path: Path, points: np.ndarray, panels: Mapping[str, np.ndarray]) -> Path:
    """Draws ``points [n, 2]`` once for each panel, coloured by its values ``[n]``, low to high."""
    (x, y), half = square_around(points)
    figure, axes = _panels(len(panels), 4, 2.8, 2.9)
    for axis, (title, values) in zip(axes, panels.items(), strict=True):
        axis.scatter(*points.T, s=6, linewidths=0, c=values, cmap="viridis")
        axis.set(xlim=(x - half, x + half), ylim=(y - half, y + half), aspect="equal")
        axis.set_title(title, fontsize=10)
    return _save(path, figure)


def save_density(path: Path, panels: Mapping[str, np.ndarray], half: float) -> Path:
    """Draws densities ``[n, n]`` on the square [-half, half]^2, indexed ``[y, x]``, from 0 upwards.

    They share one scale; the thousandth of all values that is highest may be beyond its end.
    """
    highest = np.quantile(np.stack([*panels.values()]), 0.999)
    figure, axes = _panels(len(panels), 4, 2.8, 2.9)
    square = {"origin": "lower", "extent": (-half, half, -half, half)}
    images = [
        axis.imshow(density, cmap="magma", vmin=0, vmax=highest, **square)
        for axis, density in zip(axes, panels.values(), strict=True)
    ]
    for axis, name in zip(axes, panels, strict=True):
        axis.set_title(name, fontsize=10)
    figure.colorbar(images[0], ax=axes, shrink=0.8).ax.tick_params(labelsize=8)
    return _save(path, figure)


def save_fields(
    path: Path,
    panels: Mapping[str, tuple[np.ndarray, np.ndarray]],
    half: float,
    labels: tuple[str, str],
) -> Path:
    """Draws vector fields on the square [-half, half]^2, each with a path on it.

    A panel is vectors ``[n, n, 2]`` at points evenly apart, indexed ``[y, x]``, of which directions
    are drawn and lengths shaded; and a path ``[t, 2]``, from its open dot to its full one.
    """
    figure, axes = _panels(len(panels), 4, 2.8, 2.9)
    for axis, (title, (vectors, line)) in zip(axes, panels.items(), strict=True):
        at = np.linspace(-half, half, len(vectors))
        length = np.maximum(np.linalg.norm(vectors, axis=-1), 1e-12)
        arrows = np.moveaxis(vectors / length[..., None], -1, 0)
        shade = {"cmap": "Blues", "clim": (-0.7 * length.max(), length.max())}
        size = {"scale": 1.3 * len(at), "width": 0.007, "pivot": "mid"}
        axis.quiver(at, at, *arrows, length, **shade, **size)
        axis.plot(*line.T, linewidth=0.9, color="tab:red")
        axis.plot(*line[0], "o", ms=5, mfc="white", color="tab:red")
        axis.plot(*line[-1], "o", ms=5, color="tab:red")
        axis.set(xlim=(-half, half), ylim=(-half, half), aspect="equal")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel(labels[0], fontsize=8)
        axis.set_ylabel(labels[1], fontsize=8, labelpad=-4)
    return _save(path, figure)


# --- curves ----------------------------------------------------------------------------------


def _metric(name: str) -> str:
    """What is measured, whoever the player: ``loss`` of ``generator/loss``."""
    return name.rpartition("/")[2]


def _draw(axis: Axes, lines: Mapping[str, Sequence[tuple[float, float]]], label: str) -> None:
    """Lines of (x, y) in one panel: points are marked where they are few, and the scale is
    logarithmic where they span more than a factor of 20."""
    for name, points in lines.items():
        marker = "o" if len(points) <= 20 else None
        axis.plot(*zip(*points, strict=True), label=name, linewidth=1.2, marker=marker, ms=3.5)
    values = [y for points in lines.values() for _, y in points]
    if min(values) > 0 and max(values) > 20 * min(values):
        axis.set_yscale("log")
    title = [*lines] if len(lines) == 1 else dict.fromkeys(map(_metric, lines))
    axis.set_title(", ".join(title), fontsize=10)
    axis.set_xlabel(label, fontsize=8)
    axis.grid(alpha=0.3)
    if len(lines) > 1:
        axis.legend(fontsize=8)


def _rank(metric: str) -> int:
    """Losses come first, then their validation, what else is measured, norms, and counts."""
    if "validation" in metric:
        return 1
    return {"loss": 0, "norm": 3, "skipped": 4}.get(metric.rpartition("_")[2], 2)


def curves_shown(rows: Sequence[Mapping[str, float]]) -> list[list[str]]:
    """The names in each panel of :func:`save_curves`, in order: what is trained on comes first.

    One metric of several players shares a panel, and so do the loss and its validation. Panels
    where nothing ever moves are left out, but for those of losses where nothing moves at all.
    """
    values: dict[str, set[float]] = {}
    for row in rows:
        for name in row.keys() - {"step"}:
            values.setdefault(name, set()).add(row[name])
    panels: dict[str, list[str]] = {}
    for name in sorted(values):
        alike = name == "validation" and "loss" in values
        panels.setdefault("loss" if alike else _metric(name), []).append(name)
    order = sorted(panels, key=lambda metric: (_rank(metric), metric))
    moving = [m for m in order if any(len(values[name]) > 1 for name in panels[m])]
    shown = moving or [m for m in order if _rank(m) == _rank(order[0])]
    return [panels[metric] for metric in shown]


def save_curves(
    path: Path, rows: Sequence[Mapping[str, float]], names: Sequence[str] | None = None
) -> Path:
    """Draws metrics over steps from the rows of a ``metrics.jsonl``.

    The panels are those of :func:`curves_shown`, or one for each of ``names``.
    """
    panels = [[name] for name in names] if names else curves_shown(rows)
    figure, axes = _panels(len(panels), 3, 4, 2.8)
    for axis, panel in zip(axes, panels, strict=True):
        lines = {name: [(row["step"], row[name]) for row in rows if name in row] for name in panel}
        _draw(axis, lines, "step")
    return _save(path, figure)


def save_lines(
    path: Path, x: np.ndarray, lines: Mapping[str, np.ndarray], label: str, *, log: bool = False
) -> Path:
    """Draws ``lines``, each ``[n]`` over the same ``x [n]``, in a panel each: measures of a sweep.

    ``label`` names x, whose scale is logarithmic with ``log``.
    """
    figure, axes = _panels(len(lines), 3, 4, 2.8)
    for axis, (name, y) in zip(axes, lines.items(), strict=True):
        _draw(axis, {name: [*zip(x, y, strict=True)]}, label)
        axis.set_xscale("log" if log else "linear")
    return _save(path, figure)


def save_together(
    path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], label: str, title: str
) -> Path:
    """Draws lines of (x, y) in one panel, with their names: members of a sweep."""
    figure, (axis,) = _panels(1, 1, 6, 3.5)
    _draw(axis, lines, label)
    axis.set_title(title, fontsize=10)
    return _save(path, figure)


def save_bars(
    path: Path, at: np.ndarray, height: np.ndarray, spread: np.ndarray, labels: tuple[str, str]
) -> Path:
    """Draws ``height [n]`` with its ``spread`` at the places ``at``: a histogram of means."""
    figure, (axis,) = _panels(1, 1, 6, 3.5)
    axis.bar(at, height, width=0.9 * np.diff(at, append=2 * at[-1] - at[-2]), color="tab:blue")
    axis.errorbar(at, height, spread, fmt="none", ecolor="black", elinewidth=0.8, capsize=2)
    axis.set(xlabel=labels[0], ylabel=labels[1], ylim=(0, None))
    return _save(path, figure)


def save_named_points(
    path: Path,
    points: Mapping[str, tuple[float, float, float]],
    labels: tuple[str, str, str],
) -> Path:
    """Draws ``points`` (x, y, colour) with their names; y and colour on logarithmic scales.

    The names are in a column at the right, where none lies over another, each with a line to its
    point.
    """
    figure, (axis,) = _panels(1, 1, 9, 4.5)
    figure.subplots_adjust(left=0.09, right=0.6)
    bar = figure.add_axes((0.88, figure.subplotpars.bottom, 0.02, axis.get_position().height))
    names = sorted(points, key=lambda name: points[name][1])
    x, y, colour = np.array([points[name] for name in names]).T
    dots = axis.scatter(x, y, s=40, c=colour, norm="log", cmap="viridis", zorder=2)
    axis.set(xlabel=labels[0], ylabel=labels[1], yscale="log")
    axis.margins(x=0.06, y=0.06)
    axis.autoscale_view()
    heights = axis.transAxes.inverted().transform(axis.transData.transform(np.stack([x, y], 1)))
    places = apart(heights[:, 1], 1 / max(len(names), 18))
    for name, at, place in zip(names, zip(x, y, strict=True), places, strict=True):
        line = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.7, "relpos": (0, 0.5)}
        axis.annotate(
            name,
            at,
            (1.04, place),
            textcoords="axes fraction",
            va="center",
            fontsize=8,
            arrowprops=line,
            zorder=1,
        )
    figure.colorbar(dots, cax=bar, label=labels[2])
    return _save(path, figure)


def apart(places: np.ndarray, gap: float) -> np.ndarray:
    """Rising places in 0..1, moved until there are gaps between all: up, and at the top down."""
    moved = np.array(places)
    for i in range(1, len(moved)):
        moved[i] = max(moved[i], moved[i - 1] + gap)
    moved[-1] = min(moved[-1], 1)
    for i in reversed(range(len(moved) - 1)):
        moved[i] = min(moved[i], moved[i + 1] - gap)
    return moved
