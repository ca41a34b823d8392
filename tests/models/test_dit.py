import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.dit import Block, DiT, patchify, positions, unpatchify
from jaxgen.models.embeddings import FourierFeatures

TINY = {"patch": 2, "width": 16, "depth": 1, "heads": 4}


def test_patches_are_the_squares_of_the_image_row_by_row(key):
    x = jax.random.normal(key, (2, 6, 9, 2))
    tokens = patchify(x, 3)
    assert tokens.shape == (2, 6, 18)
    for index, (row, column) in enumerate([(0, 0), (0, 3), (0, 6), (3, 0), (3, 3), (3, 6)]):
        square = x[:, row : row + 3, column : column + 3]
        np.testing.assert_array_equal(tokens[:, index], square.reshape(2, 18))
    np.testing.assert_array_equal(unpatchify(tokens, 3, (6, 9)), x)


def test_products_of_positions_depend_on_the_offset_alone():
    where = np.asarray(positions(3, 5, 16)).reshape(3, 5, 16)
    for offset in [(0, 0), (1, 2), (2, -1)]:
        pairs = [
            where[i, j] @ where[i + offset[0], j + offset[1]]
            for i in range(3 - offset[0])
            for j in range(max(0, -offset[1]), 5 - max(0, offset[1]))
        ]
        np.testing.assert_allclose(pairs, pairs[0], rtol=1e-5)
        frequencies = 10_000.0 ** (-np.arange(4) / 3)
        want = np.sum([np.cos(frequencies * step) for step in offset])
        np.testing.assert_allclose(pairs[0], want, rtol=1e-5)


@pytest.mark.parametrize(
    ("width", "depth", "heads", "millions"),
    [(384, 12, 6, 33), (768, 12, 12, 130), (1024, 24, 16, 458), (1152, 28, 16, 675)],
)
def test_the_models_have_the_papers_sizes(width, depth, heads, millions):
    """Peebles & Xie 2023, table 4 (S, B, L, XL with patches of 2), on 32x32x4 latents, where one
    class more stands for none and the prediction has a mean and a variance."""
    model = DiT(2, width, depth, heads, num_classes=1001, out_channels=8)
    x, t, y = jnp.zeros((1, 32, 32, 4)), jnp.zeros(1), jnp.zeros(1, int)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x, t, y)
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    np.testing.assert_allclose(count / 1e6, millions, rtol=0.01)


def test_it_starts_as_zero_and_its_blocks_as_the_identity(key):
    x, t, y = jax.random.normal(key, (2, 4, 6, 3)), jnp.array([1.0, 9.0]), jnp.array([0, 1])
    out, _ = jax.jit(DiT(**TINY, num_classes=2).init_with_output)(key, x, t, y)
    assert out.shape == x.shape
    np.testing.assert_array_equal(out, 0)
    tokens, embedding = jax.random.normal(key, (2, 5, 16)), jax.random.normal(key, (2, 16))
    same, _ = Block(heads=4).init_with_output(key, tokens, embedding)
    np.testing.assert_array_equal(same, tokens)


def test_a_block_is_attention_and_a_perceptron_behind_gates(key, randomized):
    """Against numpy, one head at a time."""
    model, x = Block(heads=2), jax.random.normal(key, (2, 3, 4))
    embedding = jax.random.normal(jax.random.key(1), (2, 5))
    variables = jax.tree.map(lambda p: 3 * p, randomized(key, model, x, embedding))
    got = model.apply(variables, x, embedding)
    p = jax.tree.map(lambda p: np.asarray(p, np.float64), variables["params"])
    dense = lambda i, z: z @ p[f"Dense_{i}"]["kernel"] + p[f"Dense_{i}"].get("bias", 0)
    gelu = lambda z: 0.5 * z * (1 + np.tanh(np.sqrt(2 / np.pi) * (z + 0.044715 * z**3)))

    def norm(z):
        z = z - z.mean(axis=1, keepdims=True)
        return z / np.sqrt((z**2).mean(axis=1, keepdims=True) + 1e-6)

    for tokens, e, result in zip(*map(np.float64, (x, embedding, got)), strict=True):
        told = np.split(dense(0, e / (1 + np.exp(-e))), 6)
        h = norm(tokens) * (1 + told[0]) + told[1]
        q, (k, v) = dense(1, h), np.split(dense(2, h), 2, axis=1)
        mixed = np.zeros((3, 4))
        for head in (slice(0, 2), slice(2, 4)):
            weights = np.exp(q[:, head] @ k[:, head].T / np.sqrt(2))
            mixed[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head]
        tokens = tokens + told[2] * dense(3, mixed)
        h = norm(tokens) * (1 + told[3]) + told[4]
        want = tokens + told[5] * dense(5, gelu(dense(4, h)))
        np.testing.assert_allclose(result, want, rtol=2e-4, atol=2e-4)


def test_a_block_does_not_see_the_order_but_the_network_does(key, randomized):
    tokens, embedding = jax.random.normal(key, (1, 6, 16)), jax.random.normal(key, (1, 16))
    block, order = Block(heads=4), jnp.array([3, 0, 5, 1, 4, 2])
    variables = randomized(key, block, tokens, embedding)
    np.testing.assert_allclose(
        block.apply(variables, tokens[:, order], embedding),
        block.apply(variables, tokens, embedding)[:, order],
        rtol=1e-4,
        atol=1e-4,
    )
    model, x, t = DiT(**TINY), jax.random.normal(key, (1, 4, 4, 1)), jnp.zeros(1)
    apply, variables = jax.jit(model.apply), randomized(key, model, x, t)
    moved = apply(variables, jnp.roll(x, 2, axis=1), t)
    assert np.abs(moved - jnp.roll(apply(variables, x, t), 2, axis=1)).max() > 1e-3


def test_every_pixel_matters_and_what_is_told_reaches_its_own_example_only(key, randomized):
    model = DiT(**TINY, num_classes=3, condition_dim=2, time_features=FourierFeatures())
    x = jax.random.normal(key, (3, 4, 6, 1))
    inputs = [x, jnp.full(3, 0.5), jnp.zeros(3, int), jnp.ones((3, 2))]
    variables, apply = randomized(key, model, *inputs), jax.jit(model.apply)
    out = apply(variables, *inputs)
    for position in range(4):
        changed = list(inputs)
        changed[position] = changed[position].at[1].add(1)
        moved = np.abs(apply(variables, *changed) - out).max(axis=(1, 2, 3))
        assert moved[1] > 1e-4
        assert moved[0] == moved[2] == 0
    total = lambda x: jnp.sum(model.apply(variables, x, *inputs[1:]) ** 2)
    assert (jax.jit(jax.grad(total))(x) != 0).all()


def test_rematerialization_changes_what_is_kept_and_no_parameter_value_or_gradient(
    key, randomized, kept
):
    x, t = jax.random.normal(key, (2, 8, 8, 1)), jnp.array([1.0, 5.0])
    plain, remat = DiT(**TINY), DiT(**TINY, remat=True)
    variables = randomized(key, plain, x, t)
    loss = lambda model, params: jnp.mean(model.apply(params, x, t, train=True) ** 2)
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


def test_bfloat16_computes_in_half_with_parameters_gradients_and_answers_in_single(key, randomized):
    x, t = jax.random.normal(key, (1, 4, 4, 1)), jnp.array([1.0])
    full, half = DiT(**TINY), DiT(**TINY, dtype=jnp.bfloat16)
    variables = randomized(key, full, x, t)
    a, b = jax.jit(full.apply)(variables, x, t), jax.jit(half.apply)(variables, x, t)
    assert b.dtype == jnp.float32
    assert 0 < np.abs(a - b).max() < 0.1 * np.abs(a).max()
    gradients = jax.jit(jax.grad(lambda v: jnp.mean(half.apply(v, x, t) ** 2)))(variables)
    for leaf in jax.tree.leaves([jax.eval_shape(half.init, key, x, t), gradients]):
        assert leaf.dtype == jnp.float32
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


@pytest.mark.parametrize(
    ("options", "shape", "message"),
    [
        ({}, (1, 4, 5, 1), "a 4x5 image cannot be cut into 2x2 patches"),
        ({"heads": 3}, (1, 4, 4, 1), "3 attention heads do not divide 16 channels"),
        ({"width": 18}, (1, 4, 4, 1), "the width must be a multiple of 4, got 18"),
        ({}, (4, 4, 1), r"x must be \[B, H, W, C\]"),
        ({"num_classes": 2}, (1, 4, 4, 1), "labels"),
    ],
)
def test_impossible_sizes_and_shapes_are_refused(key, options, shape, message):
    with pytest.raises(ValueError, match=message):
        DiT(**{**TINY, **options}).init(key, jnp.zeros(shape), jnp.zeros(1))
