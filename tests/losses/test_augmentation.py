"""Augmentations, exact on known images, and differentiable."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.losses import augmentation as aug

IMAGE = np.arange(1, 13, dtype=np.float32).reshape(4, 3, 1)


def test_shifts_bring_in_zeros():
    shifted = jax.jit(aug.shifted)
    for down, right in ((0, 0), (1, -1), (-2, 2), (4, 0), (0, -3)):
        want = np.zeros_like(IMAGE)
        for y in range(4):
            for x in range(3):
                if 0 <= y + down < 4 and 0 <= x + right < 3:
                    want[y + down, x + right] = IMAGE[y, x]
        np.testing.assert_array_equal(shifted(IMAGE, jnp.array([down, right])), want)


def test_holes_are_boxes_around_their_middle():
    holed = jax.jit(lambda image, middle: aug.holed(image, middle, (2, 1)))
    for y, x, rows in ((0, 0, [0]), (2, 1, [1, 2]), (4, 2, [3])):  # from y - 1 to y
        want = IMAGE.copy()
        want[rows, x] = 0
        np.testing.assert_array_equal(holed(IMAGE, jnp.array([y, x])), want)


def test_draws_reach_as_far_as_they_should_and_slopes_flow_through_what_is_left():
    """Of images of ones: what is seen of them, and d sum / dx, are alike where all is moved."""
    x = jnp.ones((400, 8, 8, 1))

    @jax.jit
    def look(key):
        parts = {"translation": aug.translation, "cutout": aug.cutout}
        found = {name: jax.vjp(lambda x: part(key, x), x) for name, part in parts.items()}  # noqa: B023
        return {name: (y, back(jnp.ones_like(y))[0]) for name, (y, back) in found.items()}

    found = look(jax.random.key(0))
    moved, slope = (np.asarray(v)[..., 0] for v in found["translation"])
    seen = moved.sum(axis=(1, 2))
    assert set(np.unique(seen)) == {49, 56, 64}  # by 0 or 1 of 8 pixels, either way
    share = [(seen == n).mean() for n in (49, 56, 64)]
    np.testing.assert_allclose(share, [4 / 9, 4 / 9, 1 / 9], atol=0.08)
    np.testing.assert_array_equal(slope.sum(axis=(1, 2)), seen)
    cut, slope = (np.asarray(v)[..., 0] for v in found["cutout"])
    np.testing.assert_array_equal(slope, cut)
    holes = 64 - cut.sum(axis=(1, 2))
    assert (holes.min(), holes.max()) == (4, 16)  # a corner of a box of 4 x 4, and all of it
    covered = (1 - cut).mean(axis=0)  # symmetric: no side is cut more often
    np.testing.assert_allclose(covered, covered[::-1, ::-1], atol=0.12)


def test_colours_change_as_said_and_not_on_average():
    """Contrast and saturation keep means, brightness moves all by one number; E is the image."""
    rng = np.random.default_rng(0)
    image = rng.uniform(-1, 1, (5, 4, 3)).astype(np.float32)
    y = np.asarray(jax.jit(aug.colour)(jax.random.key(1), jnp.tile(image, (4000, 1, 1, 1))))
    np.testing.assert_allclose(y.mean(axis=0), image, atol=0.05)
    brightness = y.mean(axis=(1, 2, 3)) - image.mean()
    assert -0.5 <= brightness.min() < -0.49
    assert 0.49 < brightness.max() <= 0.5
    # what is grey is scaled by contrast alone, what is colour by saturation too
    grey, wanted = y.mean(axis=-1), image.mean(axis=-1)
    contrast = grey.std(axis=(1, 2)) / wanted.std()
    assert 0.5 <= contrast.min() < 0.51
    assert 1.49 < contrast.max() <= 1.5001
    centred = grey - grey.mean(axis=(1, 2), keepdims=True)
    want = contrast[:, None, None] * (wanted - wanted.mean())
    np.testing.assert_allclose(centred, want, atol=1e-5)
    saturation = (y - grey[..., None]).std(axis=(1, 2, 3)) / contrast
    saturation = saturation / (image - wanted[..., None]).std()
    assert 0 <= saturation.min() < 0.01
    assert 1.99 < saturation.max() <= 2.001


def test_augmentations_compose_with_keys_of_their_own_and_with_a_probability():
    x = jnp.zeros((1000, 2))
    noisy = aug.instance_noise(2.0)

    @jax.jit
    def look(key):
        twice = aug.in_order(noisy, noisy)(key, x)
        often = [aug.with_probability(p, noisy)(key, x) for p in (0.0, 0.3, 1.0)]
        return twice, often

    twice, often = look(jax.random.key(0))
    np.testing.assert_allclose(twice.std(), np.sqrt(8), rtol=0.1)  # independent: variances add
    changed = [np.asarray(y != 0).all(axis=-1).mean() for y in often]
    assert changed[0] == 0
    assert abs(changed[1] - 0.3) < 0.05
    assert changed[2] == 1
    assert not np.any(
        np.asarray(often[1] != 0).any(axis=-1) ^ np.asarray(often[1] != 0).all(axis=-1)
    )


def test_noise_is_annealed_to_none():
    found = [float(aug.annealed(0.8, step, 11)) for step in (0, 5, 10, 20)]
    np.testing.assert_allclose(found, [0.8, 0.4, 0, 0], rtol=1e-6)


def test_the_probability_of_augmentation_follows_the_signs_of_logits():
    """From 0 to 1 in 500,000 images where all data are told apart, and back where few are."""
    update = jax.jit(lambda p, logits: aug.adapted_probability(p, logits, 50_000))
    sure, unsure = jnp.ones(10), jnp.array([1.0, -1.0] * 5)
    p, path = jnp.float32(0), []
    for logits in 12 * [sure] + 3 * [unsure]:
        p = update(p, logits)
        path.append(p)
    np.testing.assert_allclose(path[:12], [*np.arange(1, 11) / 10, 1, 1], rtol=1e-5)
    np.testing.assert_allclose(path[12:], [0.9, 0.8, 0.7], rtol=1e-5)
    held = jnp.array([1.0, 1.0, 1.0, -1.0])  # at its target, p rests
    assert aug.adapted_probability(jnp.float32(0.4), held, 50_000, target=0.5) == jnp.float32(0.4)
