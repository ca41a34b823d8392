import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.models.resnet_gan import (
    Attention,
    ConditionalNorm,
    DownBlock,
    ResNetBody,
    ResNetGenerator,
    UpBlock,
    biggan,
    biggan_32,
    halve,
    sagan,
    small_biggan,
    sngan,
)

BIG = ResNetGenerator(
    (7, 6, 2), (8, 8, 8), (4, 7), classes=3, shared_embedding=5, skip_z=True,
    kernel_init=nn.initializers.orthogonal(),
)  # fmt: skip

SMALL = BIG.clone(shape=(3, 4, 2), widths=(8, 4), attention=(3,))


def drawn(model, *inputs, **kwargs):
    """Variables that carry signal everywhere, of numpy: none is zero, all variances positive."""
    shapes = jax.eval_shape(partial(model.init, **kwargs), jax.random.key(0), *inputs)
    leaves, tree = jax.tree_util.tree_flatten_with_path(shapes)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        values = rng.standard_normal(leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1]))
        positive = path[-1].key in ("var", "scale")
        return np.asarray(np.exp(0.3 * values) if positive else values, np.float32)

    return jax.tree.unflatten(tree, [draw(*item) for item in leaves])


def conv(x, layer):
    """By hand: ``SAME`` convolution of 3x3 (or 1x1) kernels."""
    kernel, (height, width) = np.asarray(layer["kernel"], np.float64), x.shape[1:3]
    edge = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (edge, edge), (edge, edge), (0, 0)))
    taps = itertools.product(range(kernel.shape[0]), repeat=2)
    summed = sum(x[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in taps)
    return summed + np.asarray(layer.get("bias", 0.0))


def doubled(x, size):
    return x.repeat(2, axis=1).repeat(2, axis=2)[:, : size[0], : size[1]]


def halved(x):
    """Of 3x2 pixels, by hand."""
    return np.stack([x[:, :2].mean(axis=(1, 2)), x[:, 2:].mean(axis=(1, 2))], 1)[:, :, None]


def norm(x, variables, condition=None):
    """By hand, with running statistics."""
    (params, stats) = variables
    mean, var = stats["BatchNorm_0"]["mean"], stats["BatchNorm_0"]["var"]
    if condition is None:
        gain, bias = params["BatchNorm_0"]["scale"], params["BatchNorm_0"]["bias"]
    else:
        gain = 1 + (condition @ params["gain"]["kernel"])[:, None, None]
        bias = (condition @ params["bias"]["kernel"])[:, None, None]
    return (x - mean) / np.sqrt(var + 1e-5) * gain + bias


def up_block(x, params, stats, size, condition):
    """By hand; as in the papers the shortcut is doubled before its convolution."""
    first, second = ((params[n], stats[n]) for n in ("ConditionalNorm_0", "ConditionalNorm_1"))
    h = conv(doubled(relu(norm(x, first, condition)), size), params["Conv_0"])
    h = conv(relu(norm(h, second, condition)), params["Conv_1"])
    return h + conv(doubled(x, size), params["Conv_2"])


def down_block(x, params, down, first):
    """By hand; the shortcut is convolved before it is halved, and has to be where it is there."""
    h = conv(relu(conv(x if first else relu(x), params["Conv_0"])), params["Conv_1"])
    x = h + (conv(x, params["Conv_2"]) if "Conv_2" in params else x)
    return halved(x) if down else x


relu = lambda x: np.maximum(x, 0)
count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))


def parameters(model, *inputs):
    return jax.eval_shape(partial(model.init, train=False), jax.random.key(0), *inputs)["params"]


def test_conditional_norm_is_batch_norm_then_the_classs_own_gain_and_bias(key):
    """In numpy, by the statistics of the batch and by running ones; no class starts apart."""
    x = 3 + 2 * jax.random.normal(key, (6, 3, 2, 4))
    classes = np.array([0, 2, 1, 1, 0, 2])
    condition = jax.nn.one_hot(classes, 3)
    model, fixed = ConditionalNorm(train=True), ConditionalNorm(train=False)
    variables = drawn(model, x, condition)

    @jax.jit
    def answers(x, condition):
        trained, updated = model.apply(variables, x, condition, mutable=["batch_stats"])
        at_first = [model.init_with_output(key, x, c)[0] for c in (condition, None)]
        return trained, updated, fixed.apply(variables, x, condition), at_first

    trained, updated, evaluated, at_first = answers(x, condition)
    values, table = np.asarray(x, np.float64), variables["params"]
    gain, bias = (table[name]["kernel"][classes][:, None, None] for name in ("gain", "bias"))
    normal = lambda mean, var: (values - mean) / np.sqrt(var + 1e-5)
    mean, var = values.mean(axis=(0, 1, 2)), values.var(axis=(0, 1, 2))
    np.testing.assert_allclose(trained, normal(mean, var) * (1 + gain) + bias, atol=1e-4)
    before, after = (v["batch_stats"]["BatchNorm_0"] for v in (variables, updated))
    np.testing.assert_allclose(after["mean"], 0.9 * before["mean"] + 0.1 * mean, rtol=1e-4)
    np.testing.assert_allclose(after["var"], 0.9 * before["var"] + 0.1 * var, rtol=1e-4)
    want = normal(before["mean"], before["var"]) * (1 + gain) + bias
    np.testing.assert_allclose(evaluated, want, atol=1e-4)
    for plain in at_first:  # of classes, and without
        np.testing.assert_allclose(plain, normal(mean, var), atol=1e-4)


def test_attention_is_a_softmax_over_pooled_keys(key):
    """In numpy, pixel by pixel, on a map with an odd side."""
    x = jax.random.normal(key, (2, 5, 4, 16))
    model = Attention()
    variables = drawn(model, x)
    got = jax.jit(model.apply)(variables, x)
    p = {n: np.asarray(v["kernel"])[0, 0] for n, v in variables["params"].items() if n != "gamma"}
    assert {n: w.shape for n, w in p.items()} == {
        "f": (16, 2), "g": (16, 2), "h": (16, 8), "o": (8, 16),
    }  # fmt: skip
    for image, result in zip(np.asarray(x, np.float64), got, strict=True):
        squares = [image[i : i + 2, j : j + 2].reshape(-1, 16) for i in (0, 2, 4) for j in (0, 2)]
        keys = np.stack([(s @ p["f"]).max(axis=0) for s in squares])
        values = np.stack([(s @ p["h"]).max(axis=0) for s in squares])
        for pixel, out in zip(image.reshape(-1, 16), result.reshape(-1, 16), strict=True):
            weights = np.exp(keys @ (pixel @ p["g"]))
            mixed = weights / weights.sum() @ values
            want = pixel + float(variables["params"]["gamma"]) * mixed @ p["o"]
            np.testing.assert_allclose(out, want, rtol=1e-4, atol=1e-5)


def test_attention_commutes_with_permutations_of_squares_and_within_them(key):
    x = jax.random.normal(key, (1, 4, 6, 8))
    model = Attention()
    apply = jax.jit(model.apply)
    variables = drawn(model, x)
    within = lambda x: x.reshape(1, 2, 2, 6, 8)[:, :, ::-1].reshape(x.shape)  # rows 1 0 3 2
    across = lambda x: x.reshape(1, 4, 3, 2, 8)[:, :, [2, 0, 1]].reshape(x.shape)
    shifted = lambda x: jnp.roll(x, 1, axis=1)  # other squares
    y = apply(variables, x)
    for move, commutes in ((within, True), (across, True), (shifted, False)):
        assert np.allclose(apply(variables, move(x)), move(y), atol=1e-5) == commutes


def test_attention_starts_as_nothing(key):
    """With gamma at 0 each network is, by its other parameters, the one without attention."""
    z, labels = jax.random.normal(key, (2, 4)), jnp.array([0, 2])
    x = jax.random.normal(key, (2, 4, 3, 2))
    for model, inputs in (
        (SMALL, (z, labels)),
        (ResNetBody((8,), 1, (2,)), (x,)),
    ):
        variables = drawn(model, *inputs, train=False)
        without = {n: p for n, p in variables["params"].items() if "Attention" not in n}
        names = variables["params"].keys() - without.keys()
        at_first = {n: {**variables["params"][n], "gamma": np.float32(0)} for n in names}

        @jax.jit
        def answers(params, without, model=model, variables=variables, inputs=inputs):
            apply = lambda model, params: model.apply(
                {**variables, "params": params}, *inputs, train=False
            )
            zero = apply(model, {**without, **at_first})  # noqa: B023
            return apply(model, params), zero, apply(model.clone(attention=()), without)

        attentive, zero, plain = answers(variables["params"], without)
        assert names
        np.testing.assert_allclose(zero, plain, rtol=1e-6, atol=1e-6)  # of answers up to 1
        assert np.abs(attentive - plain).max() > 1e-2


def test_chunks_of_z_reach_their_own_layers_alone(key):
    """The Jacobian of what every layer answers in z ``[6]``, two numbers a chunk."""
    z, labels = jax.random.normal(key, (1, 6)), jnp.array([1])
    model = BIG.clone(attention=())
    variables = drawn(model, z, labels, train=False)

    def layers(z):
        keep = {"capture_intermediates": True, "mutable": ["intermediates"]}
        return model.apply(variables, z, labels, train=False, **keep)[1]["intermediates"]

    jacobian = jax.jit(jax.jacfwd(layers))(z)
    reached = lambda layer: (np.abs(layer["__call__"][0]).reshape(-1, 6) > 0).any(axis=0).tolist()
    chunks = [[i // 2 == part for i in range(6)] for part in range(3)]
    assert reached(jacobian["Dense_0"]) == chunks[0]
    for block, norm, map_ in itertools.product((0, 1), (0, 1), ("gain", "bias")):
        layer = jacobian[f"UpBlock_{block}"][f"ConditionalNorm_{norm}"][map_]
        assert reached(layer) == chunks[block + 1]
    assert reached(jacobian["UpBlock_0"]) == [True] * 4 + [False] * 2
    assert reached(jacobian["UpBlock_1"]) == [True] * 6
    # a chunk and the embedding that all share; with z in one piece the embedding alone
    for model, parts in ((BIG, (2, 2)), (BIG.clone(skip_z=False), (6, 0))):
        params = parameters(model, z, labels)
        assert params["Embed_0"]["embedding"].shape == (3, 5)
        assert params["Dense_0"]["kernel"].shape == (parts[0], 2 * 2 * 8)
        gain = params["UpBlock_0"]["ConditionalNorm_0"]["gain"]
        assert gain["kernel"].shape == (5 + parts[1], 8)


def test_blocks_without_a_residual_are_their_resized_shortcut(key):
    """The last 3x3 convolution at zero leaves the 1x1 one or the input itself; all else by hand."""
    x = jax.random.normal(key, (2, 3, 2, 4))
    values, condition = np.asarray(x, np.float64), x[:, 0, 0]
    up = UpBlock(5, nn.Conv, partial(ConditionalNorm, train=False))
    variables = drawn(up, x, size=(5, 4), condition=condition)
    params, stats = variables["params"], variables["batch_stats"]
    silent = lambda params: {**params, "Conv_1": jax.tree.map(np.zeros_like, params["Conv_1"])}

    @jax.jit
    def blocks(params):
        return up.apply({**variables, "params": params}, x, (5, 4), condition)

    want = up_block(values, params, stats, (5, 4), np.asarray(condition))
    np.testing.assert_allclose(blocks(params), want, rtol=1e-4, atol=1e-4)
    want = doubled(conv(values, params["Conv_2"]), (5, 4))
    np.testing.assert_allclose(blocks(silent(params)), want, rtol=1e-4, atol=1e-5)

    for down, first, width in itertools.product((True, False), (True, False), (4, 5)):
        block = DownBlock(width, nn.Conv, down, first)
        params = drawn(block, x)["params"]
        assert ("Conv_2" in params) == (down or width == 5)
        apply = lambda params, block=block: block.apply({"params": params}, x)
        want = down_block(values, params, down, first)
        np.testing.assert_allclose(apply(params), want, rtol=1e-4, atol=1e-4)
        shortcut = conv(values, params["Conv_2"]) if "Conv_2" in params else values
        want = halved(shortcut) if down else shortcut
        np.testing.assert_allclose(apply(silent(params)), want, rtol=1e-4, atol=1e-5)


def test_networks_are_their_blocks_in_turn(key):
    """By hand, from latents to pixels and from pixels to features."""
    z, labels = jax.random.normal(key, (2, 4)), jnp.array([2, 0])
    model, body = SMALL.clone(attention=()), ResNetBody((4, 5, 5), downs=1)
    x = jax.random.normal(key, (2, 3, 2, 1))
    variables, seen = drawn(model, z, labels, train=False), drawn(body, x, train=False)["params"]

    @jax.jit
    def answers(z, x):
        features = body.apply({"params": seen}, x, labels, train=True)
        return model.apply(variables, z, labels, train=False), features

    images, features = answers(z, x)
    params, stats = variables["params"], variables["batch_stats"]
    first, chunk = np.split(np.asarray(z), 2, axis=1)
    condition = np.concatenate([params["Embed_0"]["embedding"][[2, 0]], chunk], axis=1)
    h = first @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
    h = up_block(h.reshape(2, 2, 2, 8), params["UpBlock_0"], stats["UpBlock_0"], (3, 4), condition)
    h = norm(h, (params["ConditionalNorm_0"], stats["ConditionalNorm_0"]))
    want = np.tanh(conv(relu(h), params["Conv_0"]))
    np.testing.assert_allclose(images, want, rtol=1e-4, atol=1e-4)
    h = np.asarray(x, np.float64)
    for i, name in enumerate(("DownBlock_0", "DownBlock_1", "DownBlock_2")):
        h = down_block(h, seen[name], down=i == 0, first=i == 0)
    np.testing.assert_allclose(features, relu(h).sum(axis=(1, 2)), rtol=1e-4, atol=1e-4)


def test_halving_keeps_the_mean_of_the_pixels_there_are():
    x = jnp.arange(6.0).reshape(1, 2, 3, 1)
    np.testing.assert_allclose(halve(x)[0, 0, :, 0], [(0 + 1 + 3 + 4) / 4, (2 + 5) / 2])


def test_features_are_sums_over_what_is_seen(key):
    """Without biases black is seen as nothing: what is far apart adds up, whatever is around it,
    and features do not change as it moves by the stride. As means they would with the size."""
    model = ResNetBody((8, 8), downs=2)
    apply = jax.jit(lambda v, x: model.apply(v, x, train=True))
    a, b = np.asarray(jax.random.normal(key, (2, 4, 4, 2)))
    black = jnp.zeros((1, 20, 44, 2))
    variables = jax.jit(partial(model.init, train=False))(key, black)  # biases start at zero

    def on_black(*placed, size=(20, 44)):
        x = np.zeros((1, *size, 2), np.float32)
        for patch, i, j in placed:
            x[0, i : i + 4, j : j + 4] = patch
        return apply(variables, x)

    alone = on_black((a, 8, 8))
    assert (alone >= 0).all()
    assert np.abs(alone).max() > 0.1
    close = {"rtol": 1e-4, "atol": 1e-4}
    np.testing.assert_allclose(on_black((a, 8, 12)), alone, **close)
    np.testing.assert_allclose(on_black((a, 8, 8), size=(20, 20)), alone, **close)
    np.testing.assert_allclose(
        on_black((a, 8, 8), (b, 8, 32)), alone + on_black((b, 8, 8)), **close
    )
    assert np.abs(on_black((a, 8, 9)) - alone).max() > 1e-2  # less than the stride


def test_examples_meet_in_the_statistics_of_a_training_batch_alone(key):
    z, labels = jax.random.normal(key, (3, 4)), jnp.array([0, 1, 2])
    model, body, x = (
        SMALL.clone(attention=()),
        ResNetBody((4,), 1),
        jax.random.normal(key, (3, 4, 3, 2)),
    )
    variables, seen = drawn(model, z, labels, train=False), drawn(body, x, train=False)

    @jax.jit
    def influence(z, x):
        """The largest derivative of each example's answer ``[B]`` in each example ``[B]``."""

        def images(z, train):
            return model.apply(variables, z, labels, train=train, mutable=["batch_stats"])[0]

        features = lambda x: body.apply(seen, x, labels, train=True)
        evaluated, trained = (jax.jacfwd(images)(z, train) for train in (False, True))
        judged = jax.jacrev(features)(x)
        largest = lambda j, axes: jnp.abs(j).max(axis=axes)
        return (
            largest(evaluated, (1, 2, 3, 5)),
            largest(trained, (1, 2, 3, 5)),
            largest(judged, (1, 3, 4, 5)),
        )

    for found, mixes in zip(influence(z, x), (False, True, False), strict=True):
        assert (np.diag(found) > 1e-3).all()
        assert (found[~np.eye(3, dtype=bool)] > 0).all() == mixes
        assert mixes or np.count_nonzero(found) == 3


def test_statistics_are_of_all_devices_that_share_the_axis(key):
    z, labels = jax.random.normal(key, (4, 4)), jnp.array([0, 1, 2, 1])
    variables = drawn(SMALL, z, labels, train=False)

    def train(model, z, labels):
        return model.apply(variables, z, labels, train=True, mutable=["batch_stats"])

    @jax.jit
    def both(z, labels):
        halves = jax.vmap(
            lambda z, y: train(SMALL.clone(axis_name="devices"), z, y), axis_name="devices"
        )(z.reshape(2, 2, 4), labels.reshape(2, 2))
        return train(SMALL, z, labels), halves

    (x, stats), (apart, shared) = both(z, labels)
    np.testing.assert_allclose(apart.reshape(x.shape), x, atol=1e-4)
    for a, b in zip(jax.tree.leaves(shared), jax.tree.leaves(stats), strict=True):
        np.testing.assert_allclose(a, np.stack([b, b]), rtol=1e-4, atol=1e-5)


def test_images_of_any_size_whose_every_pixel_is_told_and_seen(key):
    z, labels = jax.random.normal(key, (1, 6)), jnp.array([1])
    model = BIG.clone(attention=())
    variables = drawn(model, z, labels, train=False)
    body = ResNetBody((4, 4, 4), 2)

    @jax.jit
    def both(z, x):
        def images(z, factor=0.5):
            scaled = jax.tree.map(lambda p: factor * p, variables)
            return model.apply(scaled, z, labels, train=False)

        total = lambda x: (body.apply(seen, x, train=False) ** 2).sum()
        return jax.jacfwd(images)(z), images(z, 3), jax.grad(total)(x)

    x = jax.random.normal(key, (1, 7, 6, 2))
    seen = drawn(body, x, train=False)
    told, loud, influence = both(z, x)
    assert (np.abs(told).max(axis=(4, 5)) > 0).all()
    assert (np.asarray(influence) != 0).all()
    assert 0.99 < np.abs(loud).max() <= 1


def test_settings_make_networks_of_any_images(key):
    for setting, size, shape in (
        (sngan, 128, (32, 32, 3)),
        (biggan_32, 80, (28, 28, 1)),
        (small_biggan, 60, (8, 8, 1)),
        (small_biggan, 60, (28, 28, 1)),
        (small_biggan, 60, (32, 32, 3)),
    ):
        generator, body = setting(shape, 10)
        z, labels, x = jnp.zeros((2, size)), jnp.zeros(2, int), jnp.zeros((2, *shape))
        for model, inputs, want in (
            (generator, (z, labels), (2, *shape)),
            (body, (x, labels), (2, body.widths[-1])),
        ):
            init = partial(model.init_with_output, train=False)
            assert jax.eval_shape(init, key, *inputs)[0].shape == want


def test_bfloat16_computes_in_half_with_parameters_and_answers_in_single(key):
    z, labels = jax.random.normal(key, (2, 4)), jnp.array([0, 2])
    x = jax.random.normal(key, (2, 4, 3, 2))
    for model, inputs in ((SMALL, (z, labels)), (ResNetBody((8,), 1, (2,)), (x,))):
        half = model.clone(dtype=jnp.bfloat16)
        variables = drawn(model, *inputs, train=False)
        low = inputs[0].astype(jnp.bfloat16), *inputs[1:]

        @jax.jit
        def answers(inputs, low, model=model, half=half, variables=variables):
            cases = (model, inputs), (half, inputs), (model, low)
            return [m.apply(variables, *given, train=False) for m, given in cases]

        full, *lower = answers(inputs, low)
        for x in lower:
            assert x.dtype == jnp.float32
            assert 0 < np.abs(x - full).max() < 0.1 * np.abs(full).max()
        shapes = jax.eval_shape(partial(half.init, train=False), key, *inputs)
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))


def test_all_kernels_start_as_asked_but_tables_of_classes(key):
    """Orthogonal for BigGAN; a class's gain is 1 and its bias 0 where these are tables."""
    z, labels, sevens = jnp.zeros((1, 6)), jnp.array([0]), nn.initializers.constant(7.0)
    models = (
        BIG.clone(kernel_init=sevens),
        BIG.clone(kernel_init=sevens, shared_embedding=None, skip_z=False),
    )
    init = jax.jit(lambda k: [m.init(k, z, labels, train=False)["params"] for m in models])
    for params, tables in zip(init(key), (False, True), strict=True):
        for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            names = [part.key for part in path]
            norm = names[-2] in ("gain", "bias")
            started = 0 if tables and norm else 7 if leaf.ndim > 1 else names[-1] == "scale"
            np.testing.assert_array_equal(leaf, started)
    for network in biggan((32, 32, 3)):
        matrix = network.kernel_init(key, (3, 3, 2, 5), jnp.float32).reshape(18, 5)
        np.testing.assert_allclose(matrix.T @ matrix, np.eye(5), atol=1e-5)


def test_published_numbers_of_parameters():
    """From the tables, by hand; in millions as the papers tell; as another implementation has."""
    label = jnp.zeros(1, int)
    block = lambda i, o: 9 * i * o + o + 9 * o * o + o
    shortcut = lambda i, o: i * o + o
    # Miyato et al. 2018, appendix B.4: a dense map, three blocks up, BN, 3x3 convolution
    generator, body = sngan((32, 32, 3))
    up = 2 * 256 + 2 * 256 + block(256, 256) + shortcut(256, 256)
    want = 129 * 4 * 4 * 256 + 3 * up + 2 * 256 + 9 * 256 * 3 + 3
    assert count(parameters(generator, jnp.zeros((1, 128)))) == want
    # two blocks down, two that keep the size and need no shortcut; (the head is 128 -> 1)
    down = block(3, 128) + shortcut(3, 128) + block(128, 128) + shortcut(128, 128)
    want = down + 2 * block(128, 128)
    assert count(parameters(body, jnp.zeros((1, 32, 32, 3)))) == want
    # per class and norm of a block a gain and a bias, in place of one
    classes, _ = sngan((32, 32, 3), 10)
    assert count(parameters(classes, jnp.zeros((1, 128)), label)) == (
        count(parameters(generator, jnp.zeros((1, 128)))) + 9 * 3 * 2 * 2 * 256
    )

    def of(networks, latents):
        generator, body = networks
        head = 1 + (1 + 1000) * body.widths[-1]  # linear, and an embedding of ImageNet's classes
        return (
            count(parameters(generator, jnp.zeros((1, latents)), label)),
            count(parameters(body, jnp.zeros((1, 128, 128, 3)))) + head,
        )

    # Brock et al. 2019, appendix B, have 70.4 and 88.0 million; google/compare_gan, resnet_biggan
    assert of(biggan((128, 128, 3), 1000), 120) == (70_433_988, 87_982_370)
    # and in their table 1 the baseline, SAGAN, 81.5 million in all
    assert round(sum(of(sagan((128, 128, 3), 1000), 128)) / 1e6, 1) == 81.5


def test_what_does_not_go_together_is_refused(key):
    z, labels = jnp.zeros((1, 6)), jnp.array([0])
    with pytest.raises(ValueError, match="labels are given if and only if classes is set"):
        BIG.init(key, z, train=False)
    with pytest.raises(ValueError, match="labels are given if and only if classes is set"):
        BIG.clone(classes=None).init(key, z, labels, train=False)
    with pytest.raises(ValueError, match="cut into 3 chunks, not 7: use 6 or 9"):
        BIG.init(key, jnp.zeros((1, 7)), labels, train=False)
    # chunks alone, without classes, are conditions too
    model = BIG.clone(classes=None, shared_embedding=None)
    params = parameters(model, z)["UpBlock_0"]["ConditionalNorm_1"]
    assert params["gain"]["kernel"].shape == (2, 8)
