import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.embeddings import FourierFeatures, conditioning, sinusoidal_embedding


def test_embedding_is_sin_and_cos_from_one_to_the_longest_period():
    t = jnp.array([0, 1, 250])
    got = np.asarray(sinusoidal_embedding(t, 8))
    for row, time in zip(got, [0, 1, 250], strict=True):
        frequency = 10_000.0 ** (-np.arange(4) / 3)
        want = [*np.sin(time * frequency), *np.cos(time * frequency)]
        np.testing.assert_allclose(row, want, atol=1e-4)


@pytest.mark.parametrize("scale", [0.3, 1.0, 16.0])
def test_products_of_fourier_features_are_a_gaussian_kernel(scale):
    """E cos(w u) = exp(-(2 pi scale u)^2 / 2) for w ~ N(0, (2 pi scale)^2)."""
    frequencies, t = 20_000, jnp.linspace(0.0, 1.0, 41)
    features = np.asarray(FourierFeatures(scale)(t, 2 * frequencies), np.float64)
    difference = np.asarray(t)[:, None] - np.asarray(t)[None, :]
    kernel = np.exp(-((2 * np.pi * scale * difference) ** 2) / 2)
    # a cosine has variance at most 1; five standard errors
    np.testing.assert_allclose(features @ features.T / frequencies, kernel, atol=5 / 20_000**0.5)


def test_fourier_frequencies_depend_on_the_seed_alone():
    t = jnp.array([0.2, 0.9])
    one = FourierFeatures()(t, 16)
    assert one.shape == (2, 16)
    np.testing.assert_array_equal(one, jax.jit(lambda t: FourierFeatures()(t, 16))(t))
    assert not np.allclose(one, FourierFeatures(seed=1)(t, 16))
    assert hash(FourierFeatures()) == hash(FourierFeatures())  # a Flax module holding it hashes


class Conditioned(nn.Module):
    num_classes: int | None = None
    condition_dim: int | None = None

    @nn.compact
    def __call__(self, features, labels=None, condition=None):
        return conditioning(features, labels, condition, width=6, **self.options())

    def options(self):
        return {"num_classes": self.num_classes, "condition_dim": self.condition_dim}


def test_class_and_condition_are_added_to_the_embedding_of_time(key, randomized):
    """Two equal examples but for the class differ by rows of the table, and so on."""
    features, model = jax.random.normal(key, (2, 4)), Conditioned(3, 5)
    labels, condition = jnp.array([2, 0]), jax.random.normal(key, (2, 5))
    variables = randomized(key, model, features, labels, condition)
    params = variables["params"]
    assert sorted(params) == ["Dense_0", "Dense_1", "Dense_2", "Embed_0"]
    time = Conditioned().apply(
        {"params": {name: params[name] for name in ("Dense_0", "Dense_1")}}, features
    )
    known = params["Embed_0"]["embedding"][labels] + condition @ params["Dense_2"]["kernel"]
    np.testing.assert_allclose(
        model.apply(variables, features, labels, condition), time + known, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize(
    ("model", "labels", "condition", "message"),
    [
        (Conditioned(), jnp.zeros(2, int), None, "labels are given if and only if"),
        (Conditioned(3), None, None, "labels are given if and only if"),
        (Conditioned(3), jnp.zeros((2, 1), int), None, r"labels must be \[2\]"),
        (Conditioned(), None, jnp.zeros((2, 5)), "condition is given if and only if"),
        (Conditioned(None, 5), None, None, "condition is given if and only if"),
        (Conditioned(None, 5), None, jnp.zeros((2, 4)), r"condition must be \[2, 5\]"),
    ],
)
def test_what_is_given_is_what_was_announced(key, model, labels, condition, message):
    with pytest.raises(ValueError, match=message):
        model.init(key, jnp.zeros((2, 4)), labels, condition)


def test_times_in_the_unit_interval_hardly_move_sinusoids():
    """Half of the features stay within a tenth, until the times are scaled."""
    t = jnp.linspace(0, 1, 101)
    travelled = lambda x: np.ptp(x, axis=0)
    assert np.mean(travelled(sinusoidal_embedding(t, 64)) < 0.1) > 0.5
    assert np.mean(travelled(sinusoidal_embedding(1000 * t, 64)) < 0.1) < 0.2
