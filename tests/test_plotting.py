import time

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from jaxgen.plotting import (
    INK,
    curves_shown,
    dots,
    save_bars,
    save_classes,
    save_curves,
    save_density,
    save_fields,
    save_film,
    save_films,
    save_grid,
    save_lines,
    save_named_points,
    save_points,
    save_points_film,
    save_values,
    square_around,
    tile,
)


@pytest.fixture
def figures(monkeypatch):
    """The figures that were saved."""
    saved, save = [], Figure.savefig
    keep = lambda self, *args, **kwargs: (saved.append(self), save(self, *args, **kwargs))
    monkeypatch.setattr(Figure, "savefig", keep)
    return saved


def panels(figure):
    return [axis for axis in figure.axes if axis.get_visible()]


def test_tiles_are_where_they_belong():
    images = np.stack([np.full((2, 3, 1), v, np.float32) for v in (-1.0, 0.0, 1.0)])
    canvas = tile(images, columns=2)[..., 0]
    assert canvas.shape == (7, 9)
    np.testing.assert_array_equal(canvas[1:3, 1:4], 0)
    np.testing.assert_array_equal(canvas[1:3, 5:8], 128)
    np.testing.assert_array_equal(canvas[4:6, 1:4], 255)


def test_small_images_are_enlarged_without_blur(tmp_path):
    images = np.random.default_rng(0).choice([-1.0, 1.0], (4, 8, 8, 3))
    picture = np.asarray(Image.open(save_grid(tmp_path / "grid.png", images, 2)))
    assert picture.shape == (19 * 6, 19 * 6, 3)
    np.testing.assert_array_equal(picture[::6, ::6], tile(images, 2))


def test_a_film_holds_its_frames_and_its_end(tmp_path):
    frames = np.linspace(-1, 1, 5)[:, None, None, None, None] * np.ones((5, 2, 8, 8, 1))
    film = Image.open(save_film(tmp_path / "film.gif", frames, 2))
    assert film.n_frames == 5
    film.seek(4)
    assert film.info["duration"] == 1500
    assert np.asarray(film.convert("L"))[30, 30] == 255
    film.seek(0)
    assert np.asarray(film.convert("L"))[30, 30] == 0


# --- points and densities --------------------------------------------------------------------


def test_a_square_holds_the_points_but_for_those_astray():
    x = np.random.default_rng(0).uniform([1, -2], [3, -1], (1000, 2))
    centre, half = square_around(np.concatenate([x, [[1e6, 1e6], [np.nan, 0], [np.inf, 0]]]))
    np.testing.assert_allclose(centre, [2, -1.5], atol=0.05)
    np.testing.assert_allclose(half, 1.2, atol=0.05)  # half of 2, and a margin
    assert square_around(np.full((3, 2), np.nan))[1] == 1
    assert square_around(np.ones((3, 2)))[1] == 1


def test_dots_are_where_they_belong():
    """In a picture of 20 x 20 pixels over [-1, 1]^2 + (5, 0): y grows upwards, x to the right."""
    points = np.asarray([[5.0, 0.0], [5.5, 0.8], [9.0, 0.0], [np.nan, 0.0]])
    ink = dots(points, np.asarray([5.0, 0.0]), 1.0, side=20)
    assert ink.dtype == np.uint8
    inked = np.argwhere(ink > 100)
    want = [[1, 14], [1, 15], [2, 14], [2, 15], [9, 9], [9, 10], [10, 9], [10, 10]]
    np.testing.assert_array_equal(inked, want)
    assert ink.astype(bool).sum() == 8  # two pixels wide, and nothing of those beyond


def test_a_dot_has_the_area_of_a_disk_wherever_it_lies_and_dots_overlap():
    one = dots(np.asarray([[0.013, -0.007]]), np.zeros(2), 1.0, side=100)
    two = dots(np.asarray([[0.013, -0.007]] * 2), np.zeros(2), 1.0, side=100)
    assert abs(one.sum() / 255 / (0.6 * np.pi) - 1) < 0.15
    assert two.sum() > 1.3 * one.sum()
    at_the_edge = dots(np.asarray([[1.0, 1.0], [-1.0, 0.0]]), np.zeros(2), 1.0, side=100)
    assert at_the_edge[0, -1] > 0
    assert at_the_edge[49:51, 0].all()


def test_a_film_of_points_ends_in_view(tmp_path):
    """Points that begin far away arrive at the corners of a square."""
    corners = np.asarray([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    frames = corners * np.asarray([50.0, 1.1, 1.0])[:, None, None]
    film = Image.open(save_points_film(tmp_path / "film.gif", frames, hold=2.0))
    assert film.n_frames == 3
    first = np.asarray(film.convert("RGB"))
    assert first.shape == (240, 240, 3)
    assert first.min() == 255
    film.seek(2)
    assert film.info["duration"] == 2000
    last = np.asarray(film.convert("RGB"))
    centre, half = square_around(frames[-1])
    np.testing.assert_array_equal(last, INK[dots(frames[-1], centre, half)])
    assert half == 1.2
    for x, y in np.argwhere(np.ones((2, 2))) * 200 + 20:  # (1 +- 1 / 1.2) * 240 / 2
        assert last[y - 1 : y + 1, x - 1 : x + 1, 0].max() < 200


def test_films_run_side_by_side_and_show_what_the_data_show(tmp_path):
    """A point that stays, one that goes from right to left, and one that is beyond the data."""
    stays, goes = np.zeros((2, 1, 2)), np.asarray([[[0.5, 0.0]], [[-0.5, 0.0]]])
    corners = np.asarray([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])
    panels = {"stays": stays, "goes": goes, "gone": goes + 1e6}
    path = save_films(tmp_path / "film.gif", panels, ["first", "last"], corners, columns=2, side=60)
    film = Image.open(path)
    assert film.n_frames == 2
    inked = []
    for i in range(2):
        film.seek(i)
        ink = 255 - np.asarray(film.convert("L"), int)
        # the papers are 60 x 60, 8 apart, under lines of 16 for the caption and each name
        papers = [ink[y : y + 60, x : x + 60] for y, x in ((32, 8), (32, 76), (116, 8))]
        inked.append([np.argwhere(paper > 50).mean(axis=0) for paper in papers[:2]])
        assert papers[2].max() == 0
        assert ink[:16].max() > 100
        assert ink[16:31].max() > 100
    middle, right, left = [29.5, 29.5], [29.5, 29.5 + 0.5 / 1.2 * 30], [29.5, 29.5 - 0.5 / 1.2 * 30]
    np.testing.assert_allclose(inked, [[middle, right], [middle, left]], atol=1)


def test_a_film_is_drawn_fast(tmp_path):
    frames = np.random.default_rng(0).standard_normal((50, 2000, 2))
    begun = time.process_time()
    save_points_film(tmp_path / "film.gif", frames)
    assert time.process_time() - begun < 4


def test_classes_have_a_colour_in_every_panel(tmp_path, figures):
    rng, labels = np.random.default_rng(0), np.arange(30) % 3
    clouds = {name: rng.standard_normal((30, 2)) for name in ("codes", "PCA")}
    behind = {name: rng.standard_normal((7, 2)) for name in clouds}
    save_classes(tmp_path / "codes.png", clouds, labels, ["a", "b", "c"], behind)
    (figure,) = figures
    assert [axis.get_title() for axis in panels(figure)] == ["codes", "PCA"]
    for axis, points in zip(panels(figure), clouds.values(), strict=True):
        grey, *classes = axis.collections
        assert len(grey.get_offsets()) == 7
        for c, drawn in enumerate(classes):
            np.testing.assert_array_equal(drawn.get_offsets(), points[labels == c])
    colours = [[tuple(c.get_facecolor()[0]) for c in a.collections] for a in panels(figure)]
    assert colours[0] == colours[1]
    assert len(set(colours[0])) == 4
    legend = panels(figure)[-1].get_legend()
    assert [text.get_text() for text in legend.get_texts()] == ["a", "b", "c"]
    box = legend.get_window_extent()
    assert box.x1 <= figure.bbox.x1  # inside of the picture


def test_values_are_colours_of_the_same_points(tmp_path, figures):
    points = np.random.default_rng(0).standard_normal((30, 2))
    save_values(tmp_path / "values.png", points, {"x": points[:, 0], "y": points[:, 1]})
    for axis, values in zip(panels(figures[0]), points.T, strict=True):
        (drawn,) = axis.collections
        np.testing.assert_array_equal(drawn.get_offsets(), points)
        np.testing.assert_array_equal(drawn.get_array(), values)


def test_clouds_share_their_axes(tmp_path, figures):
    rng = np.random.default_rng(0)
    sets = {"data": rng.uniform(-1, 1, (5000, 2)), "samples": rng.uniform(0, 3, (50, 2))}
    picture = np.asarray(Image.open(save_points(tmp_path / "points.png", sets, limit=100)))
    left, right = panels(figures[0])
    assert [left.get_title(), right.get_title()] == ["data", "samples"]
    assert left.get_xlim() == right.get_xlim()
    assert left.get_ylim() == right.get_ylim()
    assert left.get_aspect() == 1
    shown = [axis.collections[0].get_offsets() for axis in (left, right)]
    assert [len(x) for x in shown] == [100, 50]
    np.testing.assert_allclose(shown[1], sets["samples"])
    x, y = np.round(left.transData.transform(shown[0].data[0])).astype(int)
    around = picture[len(picture) - y - 2 : len(picture) - y + 2, x - 2 : x + 2, :3]
    assert around.min() < 200  # the first point is where its coordinates are


def test_clouds_over_the_data_are_seen_where_the_data_are(tmp_path, figures):
    data = np.random.default_rng(0).uniform(-1, 1, (500, 2))
    save_points(tmp_path / "points.png", {"near": data / 2, "far": data + 1e4}, behind=data)
    for axis in panels(figures[0]):
        behind, _ = axis.collections
        np.testing.assert_array_equal(behind.get_offsets(), data)
        np.testing.assert_allclose(axis.get_xlim(), [-1.2, 1.2], atol=0.05)


def test_densities_share_their_scale_and_are_the_right_way_up(tmp_path, figures):
    low = np.zeros((40, 40))
    low[:20] = 1.0  # where y < 0
    save_density(tmp_path / "density.png", {"a": low, "b": 3 * low}, half=2.0)
    a, b, bar = panels(figures[0])
    assert [a.get_title(), b.get_title()] == ["a", "b"]
    assert a.images[0].get_clim() == b.images[0].get_clim() == (0, 3)
    assert bar.get_ylim() == (0, 3)
    assert a.images[0].get_extent() == [-2, 2, -2, 2]
    picture = np.asarray(Image.open(tmp_path / "density.png").convert("L")).astype(int)
    (x, top), (_, bottom) = np.round(b.transData.transform([[0, 1], [0, -1]])).astype(int)
    assert picture[len(picture) - bottom, x] > picture[len(picture) - top, x] + 100


# --- curves ----------------------------------------------------------------------------------


def rows_of(**metrics):
    return [
        {"step": i} | {name: values[i] for name, values in metrics.items() if i < len(values)}
        for i in range(max(map(len, metrics.values())))
    ]


def test_arrows_of_a_field_point_along_it_and_the_path_is_drawn(tmp_path, figures):
    at = np.linspace(-2, 2, 5)
    x, y = np.meshgrid(at, at)
    line = np.array([[1.0, 0.0], [0.0, 1.0]])
    save_fields(tmp_path / "fields.png", {"turn": (np.stack([y, -x], -1), line)}, 2, ("a", "b"))
    (axis,) = panels(figures[0])
    (arrows,) = axis.collections
    np.testing.assert_allclose(np.hypot(arrows.U, arrows.V), (x.ravel() != 0) | (y.ravel() != 0))
    np.testing.assert_allclose(arrows.X * arrows.U + arrows.Y * arrows.V, 0, atol=1e-9)
    assert (arrows.X * arrows.V - arrows.Y * arrows.U <= 0).all()  # clockwise
    np.testing.assert_array_equal(axis.lines[0].get_xydata(), line)
    assert (axis.get_xlabel(), axis.get_ylabel(), axis.get_title()) == ("a", "b", "turn")


def test_losses_come_first_and_what_never_moves_is_left_out():
    moving = [1.0, 2.0, 3.0]
    rows = rows_of(
        grad_norm=moving, kl=moving, loss=moving, skipped=[0.0] * 3, accuracy=moving, rate=[1.0] * 3
    )
    assert curves_shown(rows) == [["loss"], ["accuracy"], ["kl"], ["grad_norm"]]
    rows = rows_of(skipped=[0.0, 1.0], grad_norm=moving, loss=moving)
    assert curves_shown(rows) == [["loss"], ["grad_norm"], ["skipped"]]


def test_the_validation_of_the_loss_is_in_its_panel():
    rows = [*rows_of(loss=[3.0, 2.0], kl=[1.0, 2.0]), {"step": 2, "validation": 1.5}]
    assert curves_shown(rows) == [["loss", "validation"], ["kl"]]


def test_players_share_the_panels_of_their_metrics():
    names = ["d/grad_norm", "d/loss", "d/real", "d/skipped", "g/grad_norm", "g/loss", "g/skipped"]
    rows = rows_of(**{name: [0.0, "skipped" not in name] for name in names}, validation=[2.0, 1.0])
    want = [["d/loss", "g/loss"], ["validation"], ["d/real"], ["d/grad_norm", "g/grad_norm"]]
    assert curves_shown(rows) == want


def test_losses_are_drawn_even_where_nothing_moves(tmp_path, figures):
    rows = [{"step": 10, "loss": 1.0, "grad_norm": 2.0, "skipped": 0.0}]
    assert curves_shown(rows) == [["loss"]]
    save_curves(tmp_path / "curves.png", rows)
    (axis,) = panels(figures[0])
    assert axis.lines[0].get_marker() == "o"  # a line through one point is invisible


def test_curves_are_the_rows(tmp_path, figures):
    rows = [{"step": i, "loss": 1 / (i + 1), "kl": 5.0 + i % 2} for i in range(50)]
    rows.append({"step": 50, "validation": 0.5})
    picture = np.asarray(Image.open(save_curves(tmp_path / "curves.png", rows)).convert("L"))
    assert picture.std() > 10  # not blank
    loss, kl = panels(figures[0])
    np.testing.assert_allclose(loss.lines[0].get_ydata(), [1 / (i + 1) for i in range(50)])
    np.testing.assert_allclose(loss.lines[1].get_xydata(), [[50, 0.5]])
    assert [t.get_text() for t in loss.get_legend().get_texts()] == ["loss", "validation"]
    assert (loss.get_yscale(), kl.get_yscale()) == ("log", "linear")
    save_curves(tmp_path / "curves.png", rows, ["kl"])
    assert [axis.get_title() for axis in panels(figures[1])] == ["kl"]


def test_lines_have_a_panel_each_over_one_axis(tmp_path, figures):
    x = np.asarray([1.0, 10.0, 100.0])
    lines = {"class agreement": x / 100, "distance": 1 / x, "entropy": 1 + x / 100, "more": -x}
    save_lines(tmp_path / "lines.png", x, lines, "weight", log=True)
    drawn = panels(figures[0])
    assert [axis.get_title() for axis in drawn] == [*lines]
    for axis, y in zip(drawn, lines.values(), strict=True):
        np.testing.assert_array_equal(axis.lines[0].get_xydata(), np.stack([x, y], axis=1))
        assert (axis.get_xlabel(), axis.get_xscale()) == ("weight", "log")
        assert axis.lines[0].get_marker() == "o"
    assert [axis.get_yscale() for axis in drawn] == ["log", "log", "linear", "linear"]


def test_named_points_stand_where_they_belong(tmp_path, figures):
    points = {"a": (1.0, 0.1, 10.0), "b": (2.0, 5.0, 0.01), "of nearly the same": (1.9, 4.9, 0.02)}
    points |= {"again": (1.9, 4.95, 0.02)}
    save_named_points(tmp_path / "points.png", points, ("x", "y", "seconds"))
    axis, bar = panels(figures[0])
    (drawn,) = axis.collections
    rising = sorted(points.values(), key=lambda p: p[1])
    np.testing.assert_allclose(drawn.get_offsets(), [p[:2] for p in rising])
    np.testing.assert_allclose(drawn.get_array(), [p[2] for p in rising])
    assert {text.get_text(): text.xy for text in axis.texts} == {
        n: p[:2] for n, p in points.items()
    }
    boxes = [Text.get_window_extent(text) for text in axis.texts]  # without its line
    for i, box in enumerate(boxes):  # between panel and bar, none over another
        assert axis.get_window_extent().x1 <= box.x0
        assert box.x1 <= bar.get_window_extent().x0
        assert not any(box.overlaps(other) for other in boxes[:i])


def test_bars_have_their_heights(tmp_path, figures):
    height = np.asarray([1.0, 3.0, 2.0])
    save_bars(tmp_path / "bars.png", np.arange(3.0), height, 0.1 * height, ("t", "loss"))
    (axis,) = panels(figures[0])
    np.testing.assert_allclose([bar.get_height() for bar in axis.patches], height)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("t", "loss")
