"""Every autoregressive network: what an output sees, by its Jacobian, over all pairs of entries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.made import MADE
from jaxgen.models.nade import FVBN, NADE
from jaxgen.models.pixelcnn import GatedPixelCNN, PixelCNN, PixelRNN

VECTORS = {
    "fvbn": FVBN(2),
    "fvbn, 2": FVBN(2, reach=2),
    "nade": NADE(2, hidden=7),
    "made": MADE(2, hidden=40),
}
IMAGES = {
    "pixelcnn": (PixelCNN, {"width": 12, "blocks": 2}),
    "gated": (GatedPixelCNN, {"width": 6, "layers": 4}),
    "rnn": (PixelRNN, {"width": 6, "layers": 2}),
}


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


def test_a_seed_draws_an_order_and_each_is_one(key, randomized):
    """In the order that is drawn the Jacobian is strictly triangular, and some are full."""
    made, x = MADE(1, hidden=200, layers=1), jax.random.normal(key, (1, 5))
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
    x, y = jax.random.normal(key, (8, 4, 5, 3)), jnp.ones((1, 2))
    variables = randomized(key, network, x[:1], y)
    found = sees(network, variables, x, y).reshape(20, 2, 3, 20, 3)  # pixel, map, channel
    pixel = np.tril(np.ones((20, 20)), -1)[:, None, :, None] * np.ones((1, 3, 1, 3))
    own = np.eye(20)[:, None, :, None] * np.tril(np.ones((3, 3)), -1)[None, :, None, :]
    before = (pixel + (own if channels == 3 else 0)) != 0
    for i in range(2):
        seen = found[:, i]
        assert not (seen & ~before).any(), "sees what comes after"
        if name == "gated":
            np.testing.assert_array_equal(seen, before)  # no blind spot
    nearest = found[7, :, 0, 6].any() and found[7, :, 0, 2].any()
    assert nearest, "the pixels at the left and above should be seen"
    told = jax.jacobian(lambda y: network.apply(variables, x[:1], y))(y)
    assert (told != 0).any(axis=(0, 3, 4, 5)).all()


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


def test_a_map_that_is_one_everywhere_tells_what_a_vector_does(key, randomized):
    network, y = GatedPixelCNN(1, width=6, layers=2), jax.random.normal(key, (2, 3))
    x = jax.random.normal(key, (2, 4, 5, 1))
    variables = randomized(key, network, x, y)
    everywhere = jnp.broadcast_to(y[:, None, None], (2, 4, 5, 3))
    want = network.apply(variables, x, y)
    np.testing.assert_allclose(network.apply(variables, x, everywhere), want, rtol=1e-4, atol=1e-5)
    other = network.apply(variables, x, everywhere.at[:, 2, 2].add(1.0))
    assert (other != want)[:, 2, 2].all()
