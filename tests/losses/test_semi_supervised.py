"""M2 over classes whose exact probabilities are enumerated."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import semi_supervised as m2

RNG = np.random.default_rng(0)
LOG_P = RNG.standard_normal((5, 3)) * 2  # log p(x|y) of five x and three classes
LOGITS = jnp.asarray(LOG_P, jnp.float32)  # of the exact p(y|x), as p(y) is even


def bound(key, y):
    """The exact log p(x|y): a conditional VAE whose gap is 0."""
    del key
    return jnp.take_along_axis(LOGITS, y[:, None], axis=1)[:, 0]


def test_with_the_exact_posterior_of_the_class_the_bound_is_log_p(key):
    want = np.log(np.exp(LOG_P).mean(axis=1))
    np.testing.assert_allclose(m2.unlabelled_bound(key, bound, LOGITS), want, rtol=1e-5)
    y = jnp.array([0, 1, 2, 0, 1])
    joint = LOG_P[np.arange(5), y] - np.log(3)
    np.testing.assert_allclose(m2.labelled_bound(key, bound, y, 3), joint, rtol=1e-5)


def test_the_gap_is_the_kl_of_the_classes(key):
    other = jnp.asarray(RNG.standard_normal((5, 3)), jnp.float32)
    q, p = (np.asarray(jax.nn.softmax(a), float) for a in (other, LOGITS))
    gap = np.log(np.exp(LOG_P).mean(axis=1)) - m2.unlabelled_bound(key, bound, other)
    np.testing.assert_allclose(gap, (q * np.log(q / p)).sum(1), rtol=1e-3, atol=1e-5)


def test_labels_teach_the_classifier_and_so_does_what_has_none(key):
    """A class that is known by its cross-entropy, one that is not by the posterior of the model."""
    y = jnp.array([0, 1, 2, 0, 1])
    loss = lambda logits, alpha: m2.labelled_loss(key, bound, logits, y, alpha)
    zero = jnp.zeros((5, 3))
    extra = loss(zero, 2.0) - loss(zero, 0.0)
    np.testing.assert_allclose(extra, 2 * np.log(3), rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda a: loss(a, 1.0).sum())(zero)
    np.testing.assert_allclose(slope[0], 1 / 3 - np.eye(3)[0], atol=1e-6)
    descended = zero
    for _ in range(300):
        descended += jax.grad(lambda a: m2.unlabelled_bound(key, bound, a).sum())(descended)
    p = jax.nn.softmax(LOGITS)
    np.testing.assert_allclose(jax.nn.softmax(descended)[1], p[1], atol=0.01)  # the exact posterior


@pytest.mark.parametrize("size", [100.0, -100.0, 1e4])
def test_sure_classes_have_finite_gradients(key, size):
    y = jnp.zeros(5, jnp.int32)
    told = lambda a: m2.labelled_loss(key, bound, a, y).sum()
    loss = lambda a: told(a) - m2.unlabelled_bound(key, bound, a).sum()
    value, slope = jax.value_and_grad(loss)(size * LOGITS)
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
