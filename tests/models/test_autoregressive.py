"""Every autoregressive network: what an output sees, by its Jacobian, over all pairs of entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.made import MADE
from jaxgen.models.nade import FVBN, NADE
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN, PixelCNNpp, PixelRNN, concat_elu

VECTORS = {
    "fvbn": FVBN(2),
    "fvbn, 2": FVBN(2, reach=2),
    "nade": NADE(2, hidden=7),
    "made": MADE(2, hidden=40),
}
IMAGES = {
    "pixelcnn": (PixelCNN, {"width": 12, "blocks": 2}),
    "gated": (GatedPixelCNN, {"width": 6, "layers": 4, "places": True}),
    "rnn": (PixelRNN, {"width": 6, "layers": 2}),
    "plusplus": (PixelCNNpp, {"width": 6, "blocks": 1, "resolutions": 2, "dropout": 0.5}),
}
SEES_ALL = ("gated", "plusplus")


def sees(network, variables, x, *told):
    """Whether any map of output i depends on input j in any of the examples: a relu may be off."""
    answer = lambda x: network.apply(variables, x[None], *told)[0]
    return np.asarray(jax.jit(jax.vmap(jax.jacobian(answer)))(x) != 0).any(axis=0)


@pytest.mark.parametrize("entries", [1, 6])
@pytest.mark.parametrize("name", VECTORS)
def test_an_entry_sees_all_before_it_within_reach_and_nothing_else(key, randomized, name, entries):
    network, x = VECTORS[name], jax.random.normal(key, (8, entries))
    found = sees(network, randomized(key, network, x), x)  # [i, maps, j]
    before = np.tril(np.ones((entries, entries)), -1)
    if name == "fvbn, 2":
        before = before - np.tril(before, -3)
    for i in range(2):
        np.testing.assert_array_equal(found[:, i], before != 0)


@pytest.mark.parametrize("layers", [1, 3])
def test_a_seed_draws_an_order_and_each_is_one(key, randomized, layers):
    """In the order that is drawn the Jacobian is strictly triangular, and full."""
    made, x = MADE(1, hidden=200, layers=layers), jax.random.normal(key, (1, 5))
    variables = randomized(key, made, x)
    orders = set()
    for seed in range(4):
        found = sees(made, variables, x, None, seed)[:, 0]
        order = np.argsort(found.sum(axis=1))
        orders.add(tuple(order))
        np.testing.assert_array_equal(
            found[order][:, order], np.tril(np.ones((5, 5)), -1) != 0, err_msg=str(seed)
        )
    assert len(orders) > 1


@pytest.mark.parametrize("name", IMAGES)
@pytest.mark.parametrize("channels", [1, 3])
def test_a_channel_sees_the_pixels_before_its_own_and_the_channels_before_it(
    key, randomized, name, channels
):
    """Of what it must not see it sees nothing, whether a pixel is one entry or three."""
    build, options = IMAGES[name]
    options = options | {"width": channels * options["width"]}  # as many for each group
    network = build(2, channels=channels, **options)
    x, y = jax.random.normal(key, (8, 4, 4, 3)), jnp.ones((1, 2))
    variables = randomized(key, network, x[:1], y)
    found = sees(network, variables, x, y).reshape(16, 2, 3, 16, 3)  # pixel, map, channel
    pixel = np.tril(np.ones((16, 16)), -1)[:, None, :, None] * np.ones((1, 3, 1, 3))
    own = np.eye(16)[:, None, :, None] * np.tril(np.ones((3, 3)), -1)[None, :, None, :]
    before = (pixel + (own if channels == 3 else 0)) != 0
    for i in range(2):
        seen = found[:, i]
        assert not (seen & ~before).any(), "sees what comes after"
        if name in SEES_ALL:
            np.testing.assert_array_equal(seen, before)  # no blind spot
    nearest = found[6, :, 0, 5].any() and found[6, :, 0, 2].any()
    assert nearest, "the pixels at the left and above should be seen"
    told = jax.jacobian(lambda y: network.apply(variables, x[:1], y))(y)
    assert (told != 0).any(axis=(0, 3, 4, 5)).all()


def test_dropout_is_on_where_a_key_is_given_and_shows_nothing_of_what_comes_after(key, randomized):
    """A dropped network is another one of the same order: the first pixel is still told nothing."""
    network = PixelCNNpp(1, width=4, blocks=1, resolutions=2, dropout=0.5)
    x = jax.random.normal(key, (2, 4, 4, 1))
    variables = randomized(key, network, x)
    dropped = jax.jit(lambda x, key: network.apply(variables, x, rngs={"dropout": key}))
    one, other = (dropped(x, k) for k in jax.random.split(key))
    assert not np.allclose(one, other)
    whole = network.apply(variables, x)
    np.testing.assert_array_equal(whole, network.apply(variables, x))
    assert not np.allclose(one, whole)
    changed = dropped(x.at[:, 2, 1].add(1.0), jax.random.split(key)[0]) != one
    assert not changed.reshape(2, 16)[:, :10].any()
    assert changed.reshape(2, 16)[:, 10:].any()


@pytest.mark.parametrize("side", [(6, 4), (4, 6)])
def test_sides_that_do_not_halve_are_refused_in_a_sentence(key, side):
    network = PixelCNNpp(1, width=2, blocks=1, resolutions=3)
    with pytest.raises(ValueError, match="cannot be halved 2 times: use fewer --resolutions"):
        jax.eval_shape(network.init, key, jnp.zeros((1, *side, 1)))


@pytest.mark.parametrize("channels", [1, 2])
def test_concat_elu_is_elu_of_both_signs_with_its_gradient(key, channels):
    """Held to jax.nn.elu, at zero and far out too; groups of features stay together."""
    h = jnp.concatenate([jnp.array([[0.0, -0.0, 90.0, -90.0]]), jax.random.normal(key, (7, 4))])

    def want(h):
        of = [(jax.nn.elu(g), jax.nn.elu(-g)) for g in jnp.split(h, channels, axis=-1)]
        return jnp.concatenate([half for both in of for half in both], axis=-1)

    np.testing.assert_allclose(concat_elu(h, channels), want(h), atol=1e-6)
    weights = jax.random.normal(key, (8, 8))
    found, true = (
        jax.grad(lambda h, f=f: jnp.sum(weights * f(h)))(h)
        for f in (lambda h: concat_elu(h, channels), want)
    )
    np.testing.assert_allclose(found, true, atol=1e-6)


@pytest.mark.parametrize("layers", [1, 2])
def test_a_gated_network_sees_as_far_as_its_layers_reach(key, randomized, layers):
    """So many pixels at the left, and a row more above, as far to both sides; all of them."""
    network, (height, width) = GatedPixelCNN(1, width=12, layers=layers), (5, 6)
    x = jax.random.normal(key, (8, height, width, 1))
    found = sees(network, randomized(key, network, x[:1]), x).reshape(2 * (height, width))
    i, j, k, m = np.ogrid[:height, :width, :height, :width]
    up, left = i - k, j - m
    above = (up >= 1) & (up <= layers + 1) & (abs(left) <= layers)
    beside = (up == 0) & (left >= 1) & (left <= layers)
    np.testing.assert_array_equal(found, above | beside)


@pytest.mark.parametrize("name", IMAGES)
def test_a_map_that_is_one_everywhere_tells_what_a_vector_does(key, randomized, name):
    build, options = IMAGES[name]
    network, y = build(1, **options), jax.random.normal(key, (2, 3))
    x = jax.random.normal(key, (2, 4, 6, 1))
    variables = randomized(key, network, x, y)
    everywhere = jnp.broadcast_to(y[:, None, None], (2, 4, 6, 3))
    want = network.apply(variables, x, y)
    np.testing.assert_allclose(network.apply(variables, x, everywhere), want, rtol=1e-4, atol=1e-5)
    other = network.apply(variables, x, everywhere.at[:, 2, 2].add(1.0))
    assert (other != want)[:, 2, 2].all()


def test_the_gradient_of_nade_runs_its_recurrence_backwards(key, randomized):
    """Against the derivative of the sums written out, in parameters and entries."""
    network, x = NADE(2, hidden=5), jax.random.normal(key, (3, 9))
    variables, weigh = randomized(key, network, x), jax.random.normal(key, (3, 9, 2))

    def written_out(variables, x):
        w, v, c, b = (variables["params"][name] for name in "wvcb")
        each = x[..., None] * w[None]  # [B, D, hidden]
        a = c[None, None] + jnp.cumsum(each, axis=1) - each
        return jnp.einsum("bdh,dhm->bdm", jax.nn.sigmoid(a), v) + b[None]

    def slopes(network):
        return jax.jit(jax.grad(lambda p, x: (weigh * network(p, x) ** 2).sum(), (0, 1)))

    found, expected = (slopes(f)(variables, x) for f in (network.apply, written_out))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-5), found, expected
    )


@pytest.mark.parametrize("precision", ["float32", "float64"])
@pytest.mark.parametrize("name", [*VECTORS, *IMAGES])
def test_in_double_precision_images_of_either_are_taken(key, name, precision):
    with jax.enable_x64(True):
        x = jnp.zeros((1, 4) if name in VECTORS else (1, 4, 4, 1), precision)
        build, options = IMAGES.get(name, (None, {}))
        network = build(1, **options) if build else VECTORS[name]
        variables = jax.eval_shape(network.init, key, x)
        maps = jax.eval_shape(network.apply, variables, x)
        assert maps.shape[: x.ndim - 1] == x.shape[:-1]


@pytest.mark.parametrize("places", [False, True])
def test_maps_of_places_tell_alike_surroundings_apart(key, randomized, places):
    network, x = GatedPixelCNN(1, width=6, layers=1, places=places), jnp.ones((1, 7, 7, 1))
    inner = network.apply(randomized(key, network, x), x)[0, 2:-1, 2:-1, 0]
    assert (np.ptp(inner) > 1e-3) == places
