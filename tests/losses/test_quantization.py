"""Codes against searches written out, and averages followed by hand."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import quantization as q

RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((5, 3)).astype(np.float32)
POINTS = RNG.standard_normal((4, 2, 3)).astype(np.float32)


def nearest_by_hand(z, vectors):
    return np.argmin(((z[..., None, :] - vectors) ** 2).sum(-1), axis=-1)


def test_a_vector_is_decoded_as_its_nearest_neighbour_with_the_gradient_of_itself():
    z, code = q.vector_quantize(jnp.asarray(POINTS), jnp.asarray(VECTORS))
    want = nearest_by_hand(POINTS, VECTORS)
    np.testing.assert_array_equal(code, want)
    np.testing.assert_allclose(z, VECTORS[want], atol=1e-6)
    weight = jnp.asarray(RNG.standard_normal(POINTS.shape), jnp.float32)
    loss = lambda z: (weight * q.vector_quantize(z, jnp.asarray(VECTORS)).z).sum()
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(POINTS)), weight, atol=1e-6)


def test_commitment_pulls_the_encoder_alone():
    z, e = jnp.asarray(POINTS), jnp.asarray(POINTS) + 2.0
    np.testing.assert_allclose(q.commitment(z, e), np.full(4, 4.0), rtol=1e-6)
    by_z, by_e = jax.grad(lambda z, e: q.commitment(z, e).sum(), argnums=(0, 1))(z, e)
    np.testing.assert_allclose(by_z, np.full(z.shape, -4 / 6), rtol=1e-5)
    assert not by_e.any()


def test_without_memory_the_codebook_is_the_mean_of_its_members_as_in_k_means(key):
    """With decay 0 an assignment is a step of Lloyd's algorithm; what has no member begins anew."""
    book = q.Codebook(jnp.ones(5), jnp.asarray(VECTORS))
    z = jnp.asarray(RNG.standard_normal((200, 3)) * [2, 1, 1], jnp.float32)
    for _ in range(30):
        book = q.assigned(key, book, z, q.nearest(z, book.vectors), decay=0.0, least=0.0)
    code = nearest_by_hand(np.asarray(z), np.asarray(book.vectors))
    want = np.stack([np.asarray(z)[code == k].mean(0) for k in range(5)])
    np.testing.assert_allclose(book.vectors, want, atol=1e-4)


def test_the_moving_average_is_that_of_counts_and_totals(key):
    book = q.Codebook(jnp.array([2.0, 1.0]), jnp.array([[2.0], [5.0]]))
    after = q.assigned(
        key, book, jnp.array([[3.0], [4.0]]), jnp.array([0, 0]), decay=0.5, least=0.1
    )
    np.testing.assert_allclose(after.count, [2.0, 0.5])  # (2 + 2) / 2 and (1 + 0) / 2
    np.testing.assert_allclose(after.vectors, [[4.5 / 2], [5.0]])  # (2 + 7) / 2; unused, it stays


def test_a_dead_code_begins_anew_at_what_is_encoded(key):
    book = q.Codebook(jnp.array([4.0, 1e-4, 0.0]), jnp.array([[4.0], [1e-2], [0.0]]))
    z = jnp.array([[1.0], [2.0], [3.0]])
    after = q.assigned(key, book, z, jnp.zeros(3, jnp.int32), decay=0.9)
    assert set(np.asarray(after.vectors)[1:, 0].tolist()) <= {1.0, 2.0, 3.0}
    np.testing.assert_allclose(after.count[1:], 1.0)  # an even share of three
    assert np.isfinite(book.vectors).all()


def test_a_residual_is_quantized_by_the_next_codebook_and_less_is_left_each_time():
    books = [jnp.asarray(RNG.standard_normal((16, 3)) / 2**i, jnp.float32) for i in range(4)]
    books = [book.at[0].set(0.0) for book in books]  # with the origin in it none makes it worse
    z, rest, left = jnp.asarray(POINTS), POINTS.copy(), []
    for depth in range(1, 5):
        found = q.residual_quantize(z, books[:depth])
        vectors = np.asarray(books[depth - 1])
        code = nearest_by_hand(rest, vectors)
        rest = rest - vectors[code]
        np.testing.assert_array_equal(found.code[..., -1], code)
        np.testing.assert_allclose(found.z, POINTS - rest, atol=1e-5)
        left.append((rest**2).sum())
    assert left == sorted(left, reverse=True)


def test_perplexity_counts_codes_used_evenly():
    np.testing.assert_allclose(q.perplexity(jnp.arange(6) % 3, 8), 3.0, rtol=1e-6)
    np.testing.assert_allclose(q.perplexity(jnp.zeros(6, jnp.int32), 8), 1.0, rtol=1e-6)


@pytest.mark.parametrize("levels", [(3,), (2, 5), (8, 5, 4)])
def test_scalars_reach_every_point_of_their_grid_and_no_other(levels):
    line = np.arctanh(np.linspace(-0.9999, 0.9999, 41))
    z = np.stack(np.meshgrid(*[line] * len(levels)), -1).reshape(-1, len(levels))
    found = q.finite_scalar(jnp.asarray(z, jnp.float32), levels)
    grids = [np.linspace(-1, 1, n) for n in levels]
    assert len(np.unique(found.code)) == np.prod(levels)
    assert (found.code.min(), found.code.max()) == (0, np.prod(levels) - 1)
    for i, grid in enumerate(grids):
        values = np.asarray(found.z[:, i])
        assert np.abs(values[:, None] - grid).min(axis=1).max() < 1e-6
        want = np.abs(np.tanh(z[:, i])[:, None] - grid).min(axis=1)  # it is the nearest
        np.testing.assert_allclose(np.abs(np.tanh(z[:, i]) - values), want, atol=1e-5)
    np.testing.assert_allclose(q.scalars_of(found.code, levels), found.z, atol=1e-6)
    by_hand = [*itertools.product(*grids[::-1])]
    for code in (0, len(by_hand) - 1, 1):
        want = by_hand[code][::-1]
        np.testing.assert_allclose(q.scalars_of(jnp.array(code), levels), want, atol=1e-6)


def test_the_gradient_of_a_scalar_is_that_of_its_bound():
    z = jnp.array([[0.3, -1.0]])
    slope = jax.grad(lambda z: q.finite_scalar(z, (5, 4)).z.sum())(z)
    np.testing.assert_allclose(slope, 1 - np.tanh(np.asarray(z)) ** 2, rtol=1e-5)
    with pytest.raises(ValueError, match="two levels"):
        q.finite_scalar(z, (5, 1))


def test_categories_are_drawn_with_their_probabilities_and_relax_to_them(key):
    logits = jnp.array([0.0, 1.0, -1.0])
    p = np.exp(np.asarray(logits)) / np.exp(np.asarray(logits)).sum()
    many = jnp.broadcast_to(logits, (50_000, 3))
    found = q.gumbel_softmax(key, many, 0.5)
    np.testing.assert_allclose(np.asarray(found.z).mean(0), p, atol=0.01)
    np.testing.assert_array_equal(np.argmax(found.z, -1), found.code)
    # at a low temperature the gradient of E f is nearly that of sum p f, on one side of a tie
    f = jnp.array([1.0, 2.0, -1.0])
    expected = lambda a: (q.gumbel_softmax(key, jnp.broadcast_to(a, (50_000, 3)), 0.2).z @ f).mean()
    exact = jax.grad(lambda a: jax.nn.softmax(a) @ f)(logits)
    np.testing.assert_allclose(jax.grad(expected)(logits), exact, atol=0.06)


def test_the_kl_to_even_categories():
    logits = jnp.asarray(RNG.standard_normal((4, 6)), jnp.float32)
    p = np.exp(np.asarray(logits, float))
    p /= p.sum(-1, keepdims=True)
    np.testing.assert_allclose(q.kl_uniform(logits), (p * np.log(6 * p)).sum(-1), rtol=1e-5)
    np.testing.assert_allclose(q.kl_uniform(jnp.zeros((2, 6))), 0, atol=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1.0, 100.0, 1e4])
def test_all_is_finite_at_extreme_inputs(key, size):
    z = size * jnp.asarray(POINTS)
    book = q.Codebook(jnp.zeros(5), jnp.zeros((5, 3)))  # not one of them used

    def loss(z):
        by_book = q.vector_quantize(z, book.vectors)
        by_grid = q.finite_scalar(z, (3, 4, 5))
        drawn = q.gumbel_softmax(key, z, 0.1)
        total = by_book.z.sum() + by_grid.z.sum() + drawn.z.sum() + q.kl_uniform(z).sum()
        return total + q.commitment(z, by_book.z).sum()

    value, slope = jax.value_and_grad(loss)(z)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()


def test_dead_codes_begin_anew_at_vectors_of_the_batch(key):
    book = q.Codebook(jnp.array([1.0, 0.0, 0.0]), jnp.array([[0.0], [9.0], [9.0]]))
    z = jnp.array([0.1, 0.2, 0.3, 5.1, 5.2, 5.3])[:, None]
    found = q.assigned(key, book, z, jnp.zeros(6, jnp.int32))
    assert np.abs(found.vectors[1:] - z.T).min(axis=1).max() < 1e-5
    np.testing.assert_allclose(found.count, [0.99 + 0.01 * 6, 2, 2], rtol=1e-6)  # of six z
