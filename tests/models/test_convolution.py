import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from jax import lax

from jaxgen.models.convolution import convolve, doubled

SETTINGS = [  # height, width, channels in and out, kernel, stride, padding
    (5, 7, 3, 4, 3, 1, "SAME"),
    (5, 7, 4, 3, 3, 1, "SAME"),
    (5, 6, 4, 4, 3, 2, "SAME"),
    (6, 7, 2, 5, 3, 2, "SAME"),
    (4, 5, 3, 2, 1, 1, "SAME"),
    (6, 5, 3, 2, 3, 1, "VALID"),
    (6, 5, 4, 2, 4, 2, [(1, 1), (1, 2)]),
]


def plain(x, kernel, strides, padding):
    numbers = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers)


def arrays(setting, dtype, batch=2):
    """An input, a kernel, and a gradient of the output; both functions of the first two."""
    h, w, c, o, size, stride, padding = setting
    rng = np.random.default_rng(0)
    ours, theirs = (
        functools.partial(f, strides=(stride, stride), padding=padding) for f in (convolve, plain)
    )
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), dtype)
    x, kernel = draw(batch, h, w, c), draw(size, size, c, o)
    return ours, theirs, x, kernel, draw(*jax.eval_shape(theirs, x, kernel).shape)


def assert_close(a, b, **tolerances):
    jax.tree.map(functools.partial(np.testing.assert_allclose, **tolerances), a, b)


def pulled_back(f):
    return jax.jit(lambda x, kernel, g: jax.vjp(f, x, kernel)[1](g))


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_values_and_both_derivatives_are_those_of_the_plain_convolution(setting, dtype):
    close = functools.partial(assert_close, **dict.fromkeys(("rtol", "atol"), 1e-12))
    if dtype == "float32":
        close = functools.partial(assert_close, rtol=1e-5, atol=2e-5)
    with jax.enable_x64(dtype == "float64"):
        ours, theirs, x, kernel, g = arrays(setting, dtype)
        assert x.dtype == dtype
        close(ours(x, kernel), theirs(x, kernel))
        close(pulled_back(ours)(x, kernel, g), pulled_back(theirs)(x, kernel, g))
        for tangents in [(x[::-1], kernel[::-1]), (x[::-1], 0 * kernel), (0 * x, kernel[::-1])]:
            pushed = [jax.jvp(f, (x, kernel), tangents)[1] for f in (ours, theirs)]
            close(*pushed)
        close(*(jax.jvp(lambda x, f=f: f(x, kernel), (x,), (x + 1,)) for f in (ours, theirs)))


@pytest.mark.parametrize("setting", [SETTINGS[0], SETTINGS[1], SETTINGS[2]], ids=str)
def test_it_can_be_mapped_scanned_and_rematerialized(setting):
    ours, theirs, x, kernel, g = arrays(setting, jnp.float32)
    kernels = jnp.stack([kernel, 2 * kernel, kernel[::-1]])
    expected = [pulled_back(theirs)(x, k, g) for k in kernels]
    expected = jax.tree.map(lambda *leaves: jnp.stack(leaves), *expected)
    close = functools.partial(assert_close, rtol=1e-5, atol=1e-4)

    mapped = jax.jit(jax.vmap(pulled_back(ours), (None, 0, None)))
    close(mapped(x, kernels, g), expected)

    @jax.jit
    def scanned(x, kernels, g):
        return lax.scan(lambda _, k: (None, pulled_back(ours)(x, k, g)), None, kernels)[1]

    close(scanned(x, kernels, g), expected)
    remat = pulled_back(jax.checkpoint(ours))
    close(remat(x, kernel, g), pulled_back(theirs)(x, kernel, g))


def test_second_derivatives_and_half_precision():
    ours, theirs, x, kernel, _ = arrays(SETTINGS[1], jnp.float32)
    bend = lambda f: jax.grad(lambda k: jnp.sum(jax.grad(lambda k: jnp.sum(f(x, k) ** 3))(k) ** 2))
    a, b = (jax.jit(bend(f))(kernel) for f in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * jnp.abs(b).max())

    ours, theirs, x, kernel, g = arrays(SETTINGS[0], jnp.bfloat16)
    a, b = (pulled_back(f)(x, kernel, g) for f in (ours, theirs))
    assert all(leaf.dtype == jnp.bfloat16 for leaf in a)
    assert_close(*jax.tree.map(lambda z: z.astype(jnp.float32), (a, b)), rtol=0.03, atol=0.05)


def test_a_batch_over_eight_devices_gives_the_same_gradients():
    ours, theirs, x, kernel, g = arrays(SETTINGS[0], jnp.float32, batch=8)
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()), ("batch",))
    put = lambda z: jax.device_put(z, jax.NamedSharding(mesh, jax.P("batch")))
    sharded = pulled_back(ours)(put(x), kernel, put(g))
    assert_close(sharded, pulled_back(theirs)(x, kernel, g), rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    "options", [{"feature_group_count": 2}, {"kernel_dilation": 2}, {"input_dilation": 2}], ids=str
)
def test_flax_may_ask_for_other_convolutions(key, options):
    x = jax.random.normal(key, (2, 6, 6, 4))
    module = nn.Conv(4, (3, 3), padding=1, **options)
    variables = module.init(key, x)
    ours = module.clone(conv_general_dilated=convolve)
    np.testing.assert_allclose(ours.apply(variables, x), module.apply(variables, x), rtol=1e-6)
    line = nn.Conv(4, (3,), conv_general_dilated=convolve)  # one-dimensional
    assert line.init_with_output(key, x[:, 0])[0].shape == (2, 6, 4)


@pytest.mark.parametrize("setting", SETTINGS, ids=str)
def test_gradients_use_only_what_is_fast_in_a_scan_on_cpu(setting):
    """The kernel's is a matrix product, the input's a convolution written as the forward one is."""
    ours, theirs, x, kernel, g = arrays(setting, jnp.float32)
    lowered = pulled_back(ours).lower(x, kernel, g).as_text()
    convolutions = [line for line in lowered.splitlines() if "stablehlo.convolution(" in line]
    assert len(convolutions) == 1  # the values, which nobody asked for, need none
    assert "[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in convolutions[0]
    assert "stablehlo.dot_general" in lowered
    assert "x[0, 1, o, i]->" in pulled_back(theirs).lower(x, kernel, g).as_text()


def test_doubling_is_the_transposed_convolution(key):
    """In values and both derivatives, with a map that is not square."""
    x, kernel = jax.random.normal(key, (2, 3, 5, 4)), jax.random.normal(key, (4, 4, 4, 3))
    weigh = jax.random.normal(key, (2, 6, 10, 3))

    def transposed(x, kernel):
        numbers = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_transpose(x, kernel, (2, 2), "SAME", dimension_numbers=numbers)

    def slopes(f):
        return jax.jit(jax.value_and_grad(lambda x, k: (weigh * f(x, k) ** 2).sum(), (0, 1)))

    found, expected = (slopes(f)(x, kernel) for f in (doubled, transposed))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), found, expected
    )
    np.testing.assert_allclose(doubled(x, kernel), transposed(x, kernel), rtol=1e-4, atol=1e-4)
