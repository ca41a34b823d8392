import numpy as np
from PIL import Image

from jaxgen.plotting import save_curves, save_film, save_grid, tile


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


def test_curves_are_drawn(tmp_path):
    rows = [{"step": i, "loss": 1.0 / (i + 1)} for i in range(50)] + [{"step": 50, "other": 2.0}]
    picture = np.asarray(Image.open(save_curves(tmp_path / "curves.png", rows)).convert("L"))
    assert picture.std() > 10  # not blank
