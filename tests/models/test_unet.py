import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.models.blocks import GroupNorm
from jaxgen.models.convolution import convolve
from jaxgen.models.embeddings import FourierFeatures
from jaxgen.models.unet import ResidualBlock, SelfAttention, UNet, double

TINY = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (), "groups": 4}


def jitted(model, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))


def test_the_cifar_model_has_the_papers_size():
    """Ho et al. 2020, appendix B: 35.7 million parameters; with checkpoints that depend on them."""
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,))
    shapes = jax.eval_shape(UNet().init, jax.random.key(0), x, t)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == 35_746_307


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 20, 3), (9, 7, 2), (5, 5, 1)])
def test_any_size_and_every_input_pixel_matters(key, randomized, shape):
    model = UNet(**TINY)
    x, t = jax.random.normal(key, (1, *shape)), jnp.array([3.0])
    variables = randomized(key, model, x, t)
    total = lambda x: jnp.sum(model.apply(variables, x, t) ** 2)
    assert jax.eval_shape(model.apply, variables, x, t).shape == x.shape
    influence = jax.jit(jax.grad(total))(x)
    assert (influence != 0).all()


def test_it_starts_as_zero_and_depends_on_time_and_label_later(key, randomized):
    model = UNet(**TINY, num_classes=3)
    x, t, y = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([1.0, 1.0]), jnp.array([0, 0])
    apply, variables = jitted(model), jax.jit(model.init)(key, x, t, y)
    np.testing.assert_array_equal(apply(variables, x, t, y), 0)
    variables = randomized(key, model, x, t, y)
    out = apply(variables, x, t, y)
    assert np.abs(out - apply(variables, x, t + 5, y)).max() > 1e-4
    assert np.abs(out - apply(variables, x, t, y + 2)).max() > 1e-4


def test_examples_do_not_mix(key, randomized):
    model = UNet(**{**TINY, "attention": (4,)})
    x, t = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([1.0, 7.0])
    variables = randomized(key, model, x, t)
    apply = jitted(model)
    apart = jnp.concatenate([apply(variables, x[i : i + 1], t[i : i + 1]) for i in (0, 1)])
    together = apply(variables, x, t)
    np.testing.assert_allclose(together, apart, rtol=1e-4, atol=1e-4)


def test_attention_is_where_it_was_asked_for(key):
    def attentions(heights):
        model = UNet(**{**TINY, "attention": heights})
        params = jax.eval_shape(model.init, key, jnp.zeros((1, 16, 16, 1)), jnp.zeros(1))["params"]
        return sorted(params[n]["Dense_1"]["kernel"].shape[0] for n in params if "Attention" in n)

    middle = [16]  # always there; TINY has 8, 16, 16 channels at 16, 8, 4 pixels
    assert attentions(()) == middle
    assert attentions((16,)) == [8, 8, 8, *middle]  # one block down, two up
    assert attentions((8, 4)) == sorted(6 * [16] + middle)


def test_dropout_only_in_training(key, randomized):
    model = UNet(**TINY, dropout=0.5)
    x, t = jax.random.normal(key, (1, 8, 8, 1)), jnp.array([1.0])
    variables = randomized(key, model, x, t)
    evaluate, train = jitted(model), jitted(model, train=True)
    np.testing.assert_array_equal(evaluate(variables, x, t), evaluate(variables, x, t))
    draws = [train(variables, x, t, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.allclose(*draws)


def test_bfloat16_computes_in_half_with_parameters_gradients_and_answers_in_single(key, randomized):
    x, t = jax.random.normal(key, (1, 8, 8, 1)), jnp.array([1.0])
    small = {**TINY, "multipliers": (1,)}
    full, half = UNet(**small), UNet(**small, dtype=jnp.bfloat16)
    variables = randomized(key, full, x, t)
    a, b = jitted(full)(variables, x, t), jitted(half)(variables, x, t)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()
    gradients = jax.jit(jax.grad(lambda v: jnp.mean(half.apply(v, x, t) ** 2)))(variables)
    for leaf in jax.tree.leaves([jax.eval_shape(half.init, key, x, t), gradients]):
        assert leaf.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_attention_is_a_softmax_over_pixels_in_every_head(key, randomized):
    """Against numpy, one head at a time."""
    model, x = SelfAttention(groups=1, heads=2), jax.random.normal(key, (2, 2, 3, 8))
    variables = jax.tree.map(lambda p: 5 * p, randomized(key, model, x))
    got = model.apply(variables, x)
    params = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    affine = params["Norm_0"]["GroupNorm_0"]
    for image, result in zip(np.asarray(x, np.float64), np.asarray(got), strict=True):
        h = (image - image.mean()) / np.sqrt(image.var() + 1e-6)
        h = (h * affine["scale"] + affine["bias"]).reshape(6, 8)
        qkv = h @ params["Dense_0"]["kernel"] + params["Dense_0"]["bias"]
        mixed = np.zeros((6, 8))
        for head in (slice(0, 4), slice(4, 8)):
            q, k, v = qkv[:, :8][:, head], qkv[:, 8:16][:, head], qkv[:, 16:][:, head]
            weights = np.exp(q @ k.T / np.sqrt(4))
            mixed[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v
        out = mixed @ params["Dense_1"]["kernel"] + params["Dense_1"]["bias"]
        np.testing.assert_allclose(result, image + out.reshape(2, 3, 8), rtol=1e-4, atol=1e-4)


def test_scale_shift_acts_on_the_second_norm(key, randomized):
    """By hand on one pixel, where a 3x3 convolution is the matrix at its centre."""
    model = ResidualBlock(4, groups=2, scale_shift=True)
    x, embedding = jax.random.normal(key, (3, 1, 1, 4)), jax.random.normal(key, (3, 5))
    variables = jax.tree.map(lambda p: 5 * p, randomized(key, model, x, embedding))
    p = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    swish = lambda z: z / (1 + np.exp(-z))
    dense = lambda name, z: z @ p[name]["kernel"] + p[name]["bias"]
    conv = lambda name, z: z @ p[name]["kernel"][1, 1] + p[name]["bias"]

    def norm(name, z):
        pairs = z.reshape(3, 2, 2)
        pairs = pairs - pairs.mean(axis=2, keepdims=True)
        pairs = pairs / np.sqrt((pairs**2).mean(axis=2, keepdims=True) + 1e-6)
        affine = p[name]["GroupNorm_0"]
        return pairs.reshape(3, 4) * affine["scale"] + affine["bias"]

    pixels, told = np.asarray(x)[:, 0, 0], dense("Dense_0", swish(np.asarray(embedding)))
    h = conv("Conv_0", swish(norm("Norm_0", pixels)))
    h = norm("Norm_1", h) * (1 + told[:, :4]) + told[:, 4:]
    want = pixels + conv("Conv_1", swish(h))
    got = model.apply(variables, x, embedding)[:, 0, 0]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_time_features_labels_and_condition_reach_their_own_example_only(key, randomized):
    model = UNet(
        **TINY, num_classes=3, condition_dim=2, scale_shift=True, time_features=FourierFeatures()
    )
    inputs = [jnp.ones((3, 8, 8, 1)), jnp.full(3, 0.5), jnp.zeros(3, int), jnp.ones((3, 2))]
    variables, apply = randomized(key, model, *inputs), jitted(model)
    out = apply(variables, *inputs)
    for position in (1, 2, 3):
        changed = list(inputs)
        changed[position] = changed[position].at[1].add(1)
        moved = np.abs(apply(variables, *changed) - out).max(axis=(1, 2, 3))
        assert moved[1] > 1e-4
        assert moved[0] == moved[2] == 0


def test_rematerialization_changes_what_is_kept_and_no_parameter_value_or_gradient(
    key, randomized, kept
):
    x, t = jax.random.normal(key, (1, 4, 4, 1)), jnp.array([1.0])
    kwargs = {**TINY, "multipliers": (1,), "attention": (4,), "dropout": 0.5}
    plain, remat = UNet(**kwargs), UNet(**kwargs, remat=True)
    variables = randomized(key, plain, x, t)

    def loss(model, params):  # with the same dropout, drawn twice by one of them
        return jnp.mean(model.apply(params, x, t, train=True, rngs={"dropout": key}) ** 2)

    (a, grad_a), (b, grad_b) = (
        jax.jit(jax.value_and_grad(functools.partial(loss, model)))(variables)
        for model in (plain, remat)
    )
    shapes = lambda model: jax.eval_shape(model.init, key, x, t)
    assert shapes(plain) == shapes(remat)
    np.testing.assert_allclose(a, b, rtol=1e-5)
    chex.assert_trees_all_close(grad_a, grad_b, rtol=1e-4, atol=1e-5 * a)
    numbers = [kept(functools.partial(loss, model), variables) for model in (plain, remat)]
    assert numbers[1] < numbers[0] / 2


def test_impossible_sizes_and_shapes_are_refused(key):
    model = UNet(**TINY)
    with pytest.raises(ValueError, match="2x8 image cannot be halved 2 times: use at most 2"):
        model.init(key, jnp.zeros((1, 2, 8, 1)), jnp.zeros(1))
    jax.eval_shape(model.init, key, jnp.zeros((1, 3, 3, 1)), jnp.zeros(1))  # 3 -> 2 -> 1
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, C\]"):
        model.init(key, jnp.zeros((8, 8, 1)), jnp.zeros(1))
    with pytest.raises(ValueError, match="labels"):
        model.init(key, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, int))
    with pytest.raises(ValueError, match="3 attention heads do not divide 16 channels"):
        jax.eval_shape(UNet(**TINY, heads=3).init, key, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1))


def test_doubling_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    want = [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    np.testing.assert_array_equal(double(x, (3, 3))[0, :, :, 0], want)


@pytest.mark.slow
def test_the_convolution_for_scans_changes_no_parameter_and_no_gradient(key, randomized):
    model = UNet(**TINY)
    x, t = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([1.0, 7.0])
    variables = randomized(key, model, x, t)
    total = lambda variables, model: jnp.sum(model.apply(variables, x, t) ** 2)
    gradient = jax.jit(jax.grad(total), static_argnums=1)
    ours = gradient(variables, model.clone(convolution=convolve))
    scale = optax.tree.norm(ours)
    chex.assert_trees_all_close(ours, gradient(variables, model), rtol=1e-4, atol=1e-5 * scale)


def test_group_norm_is_that_of_flax(key):
    x = 3 + jax.random.normal(key, (3, 5, 4, 12))
    theirs, ours = nn.GroupNorm(4, epsilon=1e-6), GroupNorm(4)
    variables = {"params": {"scale": jnp.arange(12.0), "bias": jnp.ones(12)}}
    chex.assert_trees_all_equal_shapes(ours.init(key, x), theirs.init(key, x))
    a, b = (
        jax.value_and_grad(lambda v, x, m=m: (m.apply(v, x) ** 3).mean(), (0, 1))(variables, x)
        for m in (ours, theirs)
    )
    chex.assert_trees_all_close(a, b, rtol=1e-4, atol=1e-4)
    half = ours.clone(dtype=jnp.bfloat16).apply(variables, x.astype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), theirs.apply(variables, x), atol=0.3)
