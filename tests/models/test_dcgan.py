import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.dcgan import Body, Generator


@pytest.mark.parametrize("shape", [(8, 8, 1), (28, 28, 1), (32, 32, 3), (13, 9, 2)])
def test_shapes_and_range_for_any_size(key, shape):
    generator, body = Generator(shape, 2, 8), Body(2, 8)
    z = jax.random.normal(key, (5, 16))
    x, variables = generator.init_with_output(key, z, train=False)
    assert x.shape == (5, *shape)
    scaled = jax.tree.map(lambda p: 100 * p, variables["params"])
    loud, _ = generator.apply(
        {**variables, "params": scaled}, z, train=True, mutable=["batch_stats"]
    )
    assert np.abs(loud).max() <= 1  # Tanh
    assert np.abs(loud).max() > 0.99
    features, _ = body.init_with_output(key, x, train=False)
    smallest = [-(-side // 4) for side in shape[:2]]
    assert features.shape == (5, smallest[0] * smallest[1] * 16)


def test_it_is_built_as_radford_et_al_say(key):
    generator, body = Generator((32, 32, 3), 3, 64), Body(3, 64)
    g = generator.init(key, jnp.zeros((1, 100)), train=False)
    x = jnp.zeros((1, 32, 32, 3))
    d = body.init(key, x, train=False)
    # batch norm everywhere except the generator's output and the discriminator's input
    assert len(g["batch_stats"]) == 3
    assert [s["mean"].shape for s in g["batch_stats"].values()] == [(256,), (128,), (64,)]
    assert [s["mean"].shape for s in d["batch_stats"].values()] == [(128,), (256,)]
    for name, layer in [*g["params"].items(), *d["params"].items()]:
        if "kernel" in layer:
            kernel = np.asarray(layer["kernel"])
            std = kernel.std()
            np.testing.assert_allclose(std, 0.02, atol=6 * 0.02 / np.sqrt(2 * kernel.size))
        else:
            assert "BatchNorm" in name
            assert abs(np.mean(layer["scale"]) - 1) < 0.02


def test_leaky_slope_is_a_fifth(key):
    """Without normalization (one stage) the features of a and -a differ by the slope alone."""
    model = Body(1, 1)
    x = jax.random.normal(key, (1, 2, 2, 1))
    variables = model.init(key, x, train=False)
    out = lambda x: model.apply(variables, x, train=False)
    ratios = np.asarray(out(x) / out(-x))  # one output pixel: -0.2 or -5
    assert np.isclose(ratios, -0.2, rtol=1e-4) or np.isclose(ratios, -5, rtol=1e-4)


def test_training_uses_the_statistics_of_the_batch(key):
    model = Body(2, 8)
    x = jax.random.normal(key, (16, 8, 8, 1))
    variables = model.init(key, x, train=False)
    apply = lambda x: model.apply(variables, x, train=True, mutable=["batch_stats"])
    features, updated = apply(x)
    # moments of the normalized layer's input, by hand
    params = variables["params"]
    conv = lambda x, p: jax.lax.conv_general_dilated(
        x, p["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    h = conv(x, params["Conv_0"]) + params["Conv_0"]["bias"].reshape(1, 1, 1, -1)
    h = conv(jnp.where(h > 0, h, 0.2 * h), params["Conv_1"])
    mean = np.asarray(h).mean(axis=(0, 1, 2))
    stats = updated["batch_stats"]["BatchNorm_0"]
    np.testing.assert_allclose(stats["mean"], 0.1 * mean, rtol=1e-4, atol=1e-7)
    var = np.asarray(h).var(axis=(0, 1, 2))
    np.testing.assert_allclose(stats["var"], 0.9 + 0.1 * var, rtol=1e-4)
    # so a batch of another scale is judged alike: the normalization takes the scale out
    assert not np.allclose(features, apply(x + 3)[0], atol=1e-6)
