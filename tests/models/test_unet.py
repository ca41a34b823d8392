import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.unet import UNet, double, sinusoidal_embedding

TINY = {"channels": 8, "multipliers": (1, 2, 2), "blocks": 1, "attention": (), "groups": 4}


def jitted(model, **kwargs):
    return jax.jit(functools.partial(model.apply, **kwargs))


def randomized(key, model, *inputs):
    """Parameters drawn at random, none left at zero, so that every path carries signal."""
    shapes = jax.eval_shape(model.init, key, *inputs)
    leaves, tree = jax.tree.flatten(shapes)
    ends = np.cumsum([leaf.size for leaf in leaves])
    values = np.split(0.2 * np.asarray(jax.random.normal(key, (ends[-1],))), ends[:-1])
    return jax.tree.unflatten(
        tree, [v.reshape(leaf.shape) for v, leaf in zip(values, leaves, strict=True)]
    )


def test_the_cifar_model_has_the_papers_size():
    """Ho et al. 2020, appendix B: 35.7 million parameters."""
    x, t = jnp.zeros((1, 32, 32, 3)), jnp.zeros((1,))
    shapes = jax.eval_shape(UNet().init, jax.random.key(0), x, t)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert round(count / 1e6, 1) == 35.7


def test_embedding_is_sin_and_cos_from_one_to_the_longest_period():
    t = jnp.array([0, 1, 250])
    got = np.asarray(sinusoidal_embedding(t, 8))
    for row, time in zip(got, [0, 1, 250], strict=True):
        frequency = 10_000.0 ** (-np.arange(4) / 3)
        want = [*np.sin(time * frequency), *np.cos(time * frequency)]
        np.testing.assert_allclose(row, want, atol=1e-4)


@pytest.mark.parametrize("shape", [(28, 28, 1), (28, 20, 3), (9, 7, 2), (5, 5, 1)])
def test_any_size_and_every_input_pixel_matters(key, shape):
    model = UNet(**TINY)
    x, t = jax.random.normal(key, (1, *shape)), jnp.array([3.0])
    variables = randomized(key, model, x, t)
    total = lambda x: jnp.sum(model.apply(variables, x, t) ** 2)
    assert jax.eval_shape(model.apply, variables, x, t).shape == x.shape
    influence = jax.jit(jax.grad(total))(x)
    assert (influence != 0).all()


def test_it_starts_as_zero_and_depends_on_time_and_label_later(key):
    model = UNet(**TINY, num_classes=3)
    x, t, y = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([1.0, 1.0]), jnp.array([0, 0])
    apply, variables = jitted(model), jax.jit(model.init)(key, x, t, y)
    np.testing.assert_array_equal(apply(variables, x, t, y), 0)
    variables = randomized(key, model, x, t, y)
    out = apply(variables, x, t, y)
    assert np.abs(out - apply(variables, x, t + 5, y)).max() > 1e-4
    assert np.abs(out - apply(variables, x, t, y + 2)).max() > 1e-4


def test_examples_do_not_mix(key):
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


def test_dropout_only_in_training(key):
    model = UNet(**TINY, dropout=0.5)
    x, t = jax.random.normal(key, (1, 8, 8, 1)), jnp.array([1.0])
    variables = randomized(key, model, x, t)
    evaluate, train = jitted(model), jitted(model, train=True)
    np.testing.assert_array_equal(evaluate(variables, x, t), evaluate(variables, x, t))
    draws = [train(variables, x, t, rngs={"dropout": jax.random.key(i)}) for i in range(2)]
    assert not np.allclose(*draws)


def test_bfloat16_computes_in_half_and_answers_in_single(key):
    x, t = jax.random.normal(key, (1, 8, 8, 1)), jnp.array([1.0])
    full, half = UNet(**TINY), UNet(**TINY, dtype=jnp.bfloat16)
    variables = randomized(key, full, x, t)
    a, b = jitted(full)(variables, x, t), jitted(half)(variables, x, t)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()
    parameters = jax.tree.leaves(jax.eval_shape(half.init, key, x, t))
    assert {p.dtype for p in parameters} == {jnp.dtype("float32")}


def test_impossible_sizes_and_shapes_are_refused(key):
    model = UNet(**TINY)
    with pytest.raises(ValueError, match="2x8 image cannot be halved 2 times: use at most 2"):
        model.init(key, jnp.zeros((1, 2, 8, 1)), jnp.zeros(1))
    jax.eval_shape(model.init, key, jnp.zeros((1, 3, 3, 1)), jnp.zeros(1))  # 3 -> 2 -> 1
    with pytest.raises(ValueError, match=r"x must be \[B, H, W, C\]"):
        model.init(key, jnp.zeros((8, 8, 1)), jnp.zeros(1))
    with pytest.raises(ValueError, match="labels"):
        model.init(key, jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), jnp.zeros(1, int))


def test_doubling_repeats_pixels():
    x = jnp.arange(4.0).reshape(1, 2, 2, 1)
    want = [[0, 0, 1], [0, 0, 1], [2, 2, 3]]
    np.testing.assert_array_equal(double(x, (3, 3))[0, :, :, 0], want)
