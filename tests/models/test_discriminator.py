"""Heads, and what stands between a body and its head, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.models.began import Decoder, Encoder
from jaxgen.models.discriminator import (
    Auxiliary,
    Concatenated,
    Discriminator,
    Linear,
    Minibatch,
    Projection,
    Reconstructing,
)
from jaxgen.models.mlp import MLP, Hidden


def test_a_projection_adds_the_features_along_the_vector_of_the_class(key):
    features, y = jax.random.normal(key, (5, 4)), jnp.array([2, 0, 1, 2, 2])
    head = Projection(3)
    said, variables = head.init_with_output(key, features, y)
    p = jax.tree.map(np.asarray, variables["params"])
    linear = np.asarray(features) @ p["Dense_0"]["kernel"][:, 0] + p["Dense_0"]["bias"]
    along = (p["Embed_0"]["embedding"][y] * np.asarray(features)).sum(axis=1)
    np.testing.assert_allclose(said.logits, linear + along, rtol=1e-5)
    # Two classes differ by log p(y|x) / p(y'|x), which is linear in the features.
    of = lambda y, f: head.apply(variables, f, jnp.full(5, y)).logits
    difference = lambda f: np.asarray(of(2, f) - of(0, f))
    np.testing.assert_allclose(difference(3 * features), 3 * difference(features), rtol=1e-4)


def test_a_class_beside_the_input_is_a_bias_of_its_own(key):
    """A linear map of [x, one-hot y] is W x + W_y; of images the class is a constant map."""
    x, y = jax.random.normal(key, (6, 2)), jnp.array([0, 1, 2, 2, 1, 0])
    network = Concatenated(MLP(1, depth=0), 3)
    out, variables = network.init_with_output(key, x, y)
    kernel = np.asarray(variables["params"]["network"]["Dense_0"]["kernel"])[:, 0]
    np.testing.assert_allclose(out[:, 0], np.asarray(x) @ kernel[:2] + kernel[2 + y], rtol=1e-5)
    images = jax.random.normal(key, (2, 4, 3, 1))
    seen = []
    told = Concatenated(lambda x, labels, train: seen.append(x) or x, 3)
    told.apply({}, images, jnp.array([1, 2]))
    np.testing.assert_array_equal(seen[0][..., :1], images)
    np.testing.assert_array_equal(seen[0][0, ..., 1:], np.broadcast_to([0.0, 1, 0], (4, 3, 3)))


def test_a_discriminator_is_what_its_head_says_of_its_body(key):
    x, y = jax.random.normal(key, (5, 2)), jnp.array([0, 1, 0, 1, 0])
    model = Discriminator(Hidden(6, 2), Auxiliary(2))
    said, variables = model.init_with_output(key, x, y)
    p = variables["params"]
    by_hand = np.asarray(x)
    for layer in p["body"].values():
        by_hand = by_hand @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
        by_hand = np.where(by_hand > 0, by_hand, 0.2 * by_hand)
    np.testing.assert_allclose(said.features, by_hand, rtol=1e-4, atol=1e-6)
    for name, of in (("source", said.logits[:, None]), ("class", said.classes)):
        expected = by_hand @ np.asarray(p["head"][name]["kernel"])
        np.testing.assert_allclose(of, expected, rtol=1e-4, atol=1e-6)


def test_minibatch_discrimination_tells_how_near_the_others_are(key):
    features = jax.random.normal(key, (5, 3))
    module = Minibatch(kernels=2, width=4)
    out, variables = module.init_with_output(key, features)
    m = (np.asarray(features) @ np.asarray(variables["params"]["Dense_0"]["kernel"])).reshape(
        5, 2, 4
    )
    for i in range(5):
        others = [np.exp(-np.abs(m[i] - m[j]).sum(axis=1)) for j in range(5) if j != i]
        np.testing.assert_allclose(out[i, 3:], np.mean(others, axis=0), rtol=1e-4)
    np.testing.assert_array_equal(out[:, :3], features)
    alike = module.apply(variables, jnp.broadcast_to(features[:1], (4, 3)))
    np.testing.assert_allclose(alike[:, 3:], 1, rtol=1e-6)  # a collapsed batch
    apart = module.apply(variables, 1e4 * features)
    np.testing.assert_allclose(apart[:, 3:], 0, atol=1e-6)
    assert np.isfinite(jax.grad(lambda f: module.apply(variables, f).sum())(alike[:, :3])).all()


def test_an_autoencoder_says_its_error(key):
    """Linear, with a code of as many numbers, and then nothing of it: L = |x - D(x)|."""
    x = jax.random.normal(key, (5, 3))
    model = Reconstructing(MLP(2, depth=0), MLP(3, depth=0))
    said, variables = model.init_with_output(key, x)
    kernels = [np.asarray(p["Dense_0"]["kernel"]) for p in variables["params"].values()]
    codes = np.asarray(x) @ kernels[0]
    np.testing.assert_allclose(said.features, codes, rtol=1e-5)
    error = np.abs(np.asarray(x) - codes @ kernels[1]).mean(axis=1)
    np.testing.assert_allclose(said.logits, error, rtol=1e-5)


def test_the_autoencoder_of_began_is_as_the_paper_draws_it(key):
    """Figure 1: pairs of 3x3 convolutions; the k-th map of the encoder has k n channels."""
    encoder, decoder = Encoder(5, stages=2, channels=4), Decoder((7, 9, 2), stages=2, channels=4)
    z = jax.random.normal(key, (2, 5))
    x, d = decoder.init_with_output(key, z)
    codes, e = encoder.init_with_output(key, x)
    assert x.shape == (2, 7, 9, 2)
    assert codes.shape == (2, 5)
    outputs = lambda p: [v["kernel"].shape[-1] for k, v in p["params"].items() if "Conv" in k]
    assert outputs(e) == [4, 4, 4, 8, 8, 8, 12, 12, 12]
    assert outputs(d) == [4] * 6 + [2]
    # No norm: an example does not see its neighbour.
    alone = encoder.apply(e, x[:1])
    np.testing.assert_allclose(codes[:1], alone, rtol=1e-4, atol=1e-6)


def test_a_linear_head_does_not_look_at_labels(key):
    features = jax.random.normal(key, (4, 3))
    said, variables = Linear().init_with_output(key, features)
    other = Linear().apply(variables, features, jnp.arange(4))
    np.testing.assert_array_equal(said.logits, other.logits)
