"""Modulation against weights written out, and w: its mean, its layers, its mixtures."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.style import (
    Body,
    Generator,
    Mapping,
    demodulated,
    mixed,
    modulated,
    resized,
    truncated,
)

RNG = np.random.default_rng(0)
SHAPE, LAYERS, WIDTH = (12, 7, 2), 6, 5  # maps of 3x2, 6x4 and 12x8
MODEL = Generator(SHAPE, channels=4, widest=12, width=WIDTH, depth=2, decay=0.9)
Z = RNG.normal(size=(4, 6)).astype(np.float32)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def drawn(model, inputs):
    """Parameters of the std that they have at first, the biases and the strengths of noise too."""
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), inputs, train=False)["params"])
    slow = lambda path: 100 if path[0].key == "f" else 1  # the mapping network
    return jax.tree_util.tree_map_with_path(
        lambda path, p: jnp.asarray(slow(path) * normal(*p.shape)), shapes
    )


def without(params, *names):
    """Parameters that are 0 where these names are all in their path."""
    path_of = lambda path: "/".join(part.key for part in path)
    return jax.tree_util.tree_map_with_path(
        lambda path, p: 0 * p if all(n in path_of(path) for n in names) else p, params
    )


def test_modulation_is_a_kernel_for_every_example():
    x, kernel, s = normal(2, 4, 3, 5), normal(3, 3, 5, 6), normal(2, 5)
    around = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    plain, unit = np.asarray(modulated(x, kernel, s)), np.asarray(demodulated(x, kernel, s))
    for n in range(2):
        w = s[n][:, None] * kernel
        of = lambda w, n=n: sum(
            around[n, i : i + 4, j : j + 3] @ w[i, j] for i in range(3) for j in range(3)
        )
        np.testing.assert_allclose(plain[n], of(w), rtol=1e-4, atol=1e-4)
        norm = np.sqrt((w**2).sum(axis=(0, 1, 2)))
        np.testing.assert_allclose(unit[n], of(w / norm), rtol=1e-4, atol=1e-5)


def test_demodulated_maps_have_std_one_whatever_the_style():
    x, kernel, s = normal(40, 12, 12, 3), 9 * normal(3, 3, 3, 8), normal(40, 3)
    found = np.asarray(demodulated(x, kernel, s))
    inner = found[:, 1:-1, 1:-1]
    np.testing.assert_allclose(inner.std(axis=(0, 1, 2)), 1, atol=0.06)
    np.testing.assert_allclose(demodulated(x, kernel, 30 * s), found, rtol=1e-4, atol=1e-5)


def test_resizing_is_by_the_binomial_filter():
    """1 3 3 1, the kernel of two-tap linear interpolation at half a pixel."""
    point = np.zeros((1, 8, 1, 1), np.float32)
    point[0, 4] = 1
    np.testing.assert_allclose(resized(point, (16, 1)).ravel()[7:11], np.array([1, 3, 3, 1]) / 4)
    weights = [float(resized(np.roll(point, i, axis=1), (4, 1))[0, 2, 0, 0]) for i in range(-1, 3)]
    np.testing.assert_allclose(weights, np.array([1, 3, 3, 1]) / 8, rtol=1e-6)


MEAN = {"mean": jnp.arange(5.0)}


@pytest.fixture(scope="module")
def params():
    return drawn(MODEL, Z)


@jax.jit
def images(params, z):
    """And the memory after."""
    return MODEL.apply({"params": params, "mapping": MEAN}, z, train=False, mutable=["mapping"])


@jax.jit
def trained(params, z, key):
    variables, rngs = {"params": params, "mapping": MEAN}, {"noise": key}
    return MODEL.apply(variables, z, train=True, rngs=rngs, mutable=["mapping"])


@jax.jit
def latents(params, z):
    return MODEL.apply({"params": params, "mapping": MEAN}, z, method="mapping")


@jax.jit
def synthesis(params, w):
    return MODEL.apply({"params": params, "mapping": MEAN}, w, method="synthesis")


def test_images_are_a_function_of_w_alone(params):
    x, _ = images(params, Z)
    assert x.shape == (4, *SHAPE)
    assert np.abs(x[0] - x[1]).max() > 0.01
    np.testing.assert_array_equal(images(params, Z)[0], x)
    np.testing.assert_allclose(synthesis(params, latents(params, Z)), x, atol=1e-5)


def test_noise_is_for_who_gives_a_key(params):
    a, b = (trained(params, Z, jax.random.key(seed))[0] for seed in range(2))
    plain, _ = images(params, Z)
    for x, y in [(a, b), (a, plain), (b, plain)]:
        assert np.abs(x - y).max() > 0.01
    silent, _ = trained(without(params, "strength"), Z, jax.random.key(0))
    np.testing.assert_allclose(silent, plain, atol=1e-5)


def test_truncation_leads_to_the_mean(params):
    w, mean = normal(3, 2, WIDTH), normal(WIDTH)
    np.testing.assert_allclose(truncated(w, mean, 0.3), 0.7 * mean + 0.3 * w, rtol=1e-5, atol=1e-6)
    of = lambda psi: synthesis(params, truncated(latents(params, Z), MEAN["mean"], psi))
    np.testing.assert_allclose(of(0), np.broadcast_to(of(0)[:1], (4, *SHAPE)), atol=1e-5)
    np.testing.assert_allclose(of(1), images(params, Z)[0], atol=1e-4)


def test_the_mean_of_w_moves_in_training_alone(params):
    _, after = trained(params, Z, jax.random.key(0))
    want = 0.9 * MEAN["mean"] + 0.1 * latents(params, Z).mean(axis=0)
    np.testing.assert_allclose(after["mapping"]["mean"], want, rtol=1e-5)
    _, held = images(params, Z)
    np.testing.assert_array_equal(held["mapping"]["mean"], MEAN["mean"])


def test_every_layer_hears_its_own_w(params):
    assert MODEL.layers == LAYERS
    assert Generator((1024, 1024, 3)).layers == 18  # Karras et al. 2019, section 2
    w = jnp.asarray(normal(4, WIDTH))
    each = jnp.repeat(w[:, None], LAYERS, axis=1)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def everything(w):
        x = synthesis(params, w)
        return jnp.sum(jnp.sin(x)), x

    slope, x = everything(each)
    assert (np.abs(slope).max(axis=-1) > 0).all()
    np.testing.assert_allclose(x, synthesis(params, w), atol=1e-5)
    with pytest.raises(ValueError, match="broadcast"):
        synthesis(params, jnp.zeros((4, LAYERS + 1, WIDTH)))


def test_mixtures_cross_from_one_w_to_another():
    a, b = normal(3, WIDTH), normal(3, WIDTH)
    cross = np.array([0, 2, LAYERS])
    want = np.stack(
        [
            np.stack([a[n] if layer < cross[n] else b[n] for layer in range(LAYERS)])
            for n in range(3)
        ]
    )
    np.testing.assert_array_equal(mixed(a, b, cross, LAYERS), want)
    np.testing.assert_array_equal(mixed(a, b, 2, LAYERS)[1], want[1])


def test_the_image_is_the_sum_over_all_sizes(params):
    """Without a part of the maps it is that of the biases, which resizing keeps."""
    x, _ = images(without(params, "g", "Colours", "kernel"), Z)
    biases = sum(params["g"][f"StyledColours_{i}"]["bias"] for i in range(3))
    np.testing.assert_allclose(x, np.broadcast_to(biases, x.shape), rtol=1e-5, atol=1e-6)


def test_it_is_as_large_as_published(key):
    """Karras et al. 2020, section 4.2: the large networks have 30 and 29 million."""
    count = lambda model, v: sum(
        leaf.size
        for leaf in jax.tree.leaves(
            jax.eval_shape(lambda: model.init(key, v, train=False))["params"]
        )
    )
    z, x, logit = jnp.zeros((1, 512)), jnp.zeros((1, 1024, 1024, 3)), 513
    assert round(count(Generator((1024, 1024, 3), channels=32), z) / 1e6) == 30
    assert round((count(Body(channels=32), x) + logit) / 1e6) == 29


def test_w_is_of_the_size_of_z_at_first(key):
    """Though the weights of the mapping network are a hundred times those of others."""
    model = Mapping(256, 3, None)
    w, variables = jax.jit(model.init_with_output)(key, normal(500, 256))
    assert 0.7 < np.sqrt((w**2).mean()) < 1.4
    kernel = variables["params"]["EqualizedDense_0"]["kernel"]
    np.testing.assert_allclose(kernel.std(), 100, rtol=0.02)


def test_the_body_sees_every_pixel_and_how_examples_differ():
    model, x = Body(channels=4, widest=12), normal(4, *SHAPE)

    params = drawn(model, x)

    @jax.jit
    @partial(jax.grad, has_aux=True)
    def everything(x):
        features = model.apply({"params": params}, x, train=True)
        return jnp.sum(jnp.sin(features)), features

    slope, features = everything(x)
    _, alone = everything(np.repeat(x[:1], 4, axis=0))
    assert features.shape == (4, 12)
    assert (np.abs(slope) > 0).all()
    np.testing.assert_allclose(alone, np.broadcast_to(alone[:1], alone.shape), atol=1e-5)
    assert not np.allclose(features[0], alone[0], atol=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_so_many_images_of_a_training_step_mix_two_styles(params, key, share):
    """Drawn apart for each; in evaluation none does."""
    params = without(params, "g", "strength")
    model, z = MODEL.clone(mixing=share), jax.random.normal(key, (200, 6))
    variables = {"params": params, "mapping": MEAN}

    @partial(jax.jit, static_argnames="train")
    def draw(key, train):
        how = {"train": train, "rngs": {"noise": key}, "mutable": ["mapping"]}
        return model.apply(variables, z, **how)[0]

    plain = images(params, z)[0]
    np.testing.assert_allclose(draw(key, False), plain, rtol=1e-4, atol=1e-3)
    moved = np.abs(draw(key, True) - plain).max(axis=(1, 2, 3)) > 1e-2
    np.testing.assert_allclose(moved.mean(), share, atol=0.12)
