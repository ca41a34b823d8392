"""Objectives of two players, held to derivatives by hand, and to divergences they are bounds of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import began
from jaxgen.losses.adversarial import (
    HINGE,
    MINIMAX,
    NON_SATURATING,
    WASSERSTEIN,
    discriminator_loss,
    feature_matching,
    hinge_critic_loss,
    least_squares,
    minimax_generator_loss,
    mode_seeking,
    non_saturating_generator_loss,
    relativistic_average,
    smoothed_discriminator_loss,
)

LOGITS = np.array([-100.0, -20.0, -1.5, 0.0, 0.7, 20.0, 100.0])
REAL = np.array([-100.0, -1.5, 0.25, 0.0, 100.0, 30.0])
FAKE = np.array([-0.7, -100.0, 100.0, 0.5, 2.0, -30.0])


def log_d(a):
    """log D in float64 without cancellation: a - log(1 + e^a) for a < 0, and its mirror."""
    return np.minimum(a, 0) - np.log1p(np.exp(-np.abs(a)))


def d(a):
    return 1 / (1 + np.exp(-a))


# What the critic minimizes of data and of fakes, and the slopes of both, by hand.
LOGISTIC = (
    lambda a: -log_d(a),
    lambda a: -log_d(-a),
    lambda a: -d(-a),
    d,
)
SQUARES = (
    lambda a: (a - 1) ** 2 / 2,
    lambda a: (a + 1) ** 2 / 2,
    lambda a: a - 1,
    lambda a: a + 1,
)
MARGINS = (
    lambda a: np.maximum(0, 1 - a),
    lambda a: np.maximum(0, 1 + a),
    lambda a: np.where(a < 1, -1.0, 0.0),
    lambda a: np.where(a > -1, 1.0, 0.0),
)
ONE, ZERO = np.ones_like, np.zeros_like
# The critic's parts as above; then the generator's loss of fakes, and its slope.
APART = {
    "minimax": (MINIMAX, LOGISTIC, lambda a: log_d(-a), lambda a: -d(a)),
    "non-saturating": (NON_SATURATING, LOGISTIC, lambda a: -log_d(a), lambda a: -d(-a)),
    "least squares, eq. 9": (
        least_squares(),
        (lambda a: (a - 1) ** 2 / 2, lambda a: a**2 / 2, lambda a: a - 1, lambda a: a),
        lambda a: (a - 1) ** 2 / 2,
        lambda a: a - 1,
    ),
    "least squares, eq. 8": (least_squares(-1, 1, 0), SQUARES, lambda a: a**2 / 2, lambda a: a),
    "Wasserstein": (
        WASSERSTEIN,
        (lambda a: -a, lambda a: a, lambda a: -ONE(a), ONE),
        lambda a: -a,
        lambda a: -ONE(a),
    ),
    "hinge": (HINGE, MARGINS, lambda a: -a, lambda a: -ONE(a)),
}
RELATIVISTIC = {
    "logistic": (relativistic_average(discriminator_loss), LOGISTIC),
    "least squares": (relativistic_average(least_squares(-1, 1).critic), SQUARES),
    "hinge": (relativistic_average(hinge_critic_loss), MARGINS),
}


def evaluated(loss, real, fake):
    """Values ``[B]``, and the slopes ``[B]`` of their sum by both logits, in float32."""
    real, fake = jnp.asarray(real, jnp.float32), jnp.asarray(fake, jnp.float32)
    slopes = jax.grad(lambda r, f: loss(r, f).sum(), argnums=(0, 1))(real, fake)
    return loss(real, fake), *slopes


def close(found, *wanted, rtol=2e-6, atol=1e-6):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", APART)
def test_objectives_and_their_slopes_are_those_by_hand(name):
    objective, (of_real, of_fake, real_slope, fake_slope), generator, generator_slope = APART[name]
    close(
        evaluated(objective.critic, REAL, FAKE),
        of_real(REAL) + of_fake(FAKE),
        real_slope(REAL),
        fake_slope(FAKE),
    )
    close(
        evaluated(objective.generator, REAL, FAKE),
        generator(FAKE),
        ZERO(REAL),
        generator_slope(FAKE),
    )


@pytest.mark.parametrize("name", RELATIVISTIC)
def test_relativistic_objectives_compare_with_the_mean_of_the_others(name):
    """Slopes by the chain rule through both means; the generator's game is the critic's, turned."""
    objective, (of_real, of_fake, real_slope, fake_slope) = RELATIVISTIC[name]
    r, f = REAL - FAKE.mean(), FAKE - REAL.mean()
    close(
        evaluated(objective.critic, REAL, FAKE),
        of_real(r) + of_fake(f),
        real_slope(r) - fake_slope(f).mean(),
        fake_slope(f) - real_slope(r).mean(),
        rtol=1e-5,
        atol=1e-5,
    )
    values, by_real, by_fake = evaluated(objective.generator, REAL, FAKE)
    turned = evaluated(objective.critic, FAKE, REAL)
    close((values, by_fake, by_real), *turned)
    # only differences of logits are told apart
    moved = objective.critic(jnp.float32(REAL + 8), jnp.float32(FAKE + 8))
    np.testing.assert_allclose(moved, of_real(r) + of_fake(f), rtol=1e-5, atol=2e-5)


def test_small_gradients_are_exact_at_logits_of_100():
    """d/da log(1 - D) = -D and d/da (-log D) = D - 1: the first fades, the second does not."""
    a = jnp.asarray(LOGITS, jnp.float32)
    minimax = jax.grad(lambda a: minimax_generator_loss(a).sum())(a)
    saturating = jax.grad(lambda a: non_saturating_generator_loss(a).sum())(a)
    np.testing.assert_allclose(minimax, -d(LOGITS), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(saturating, -d(-LOGITS), rtol=1e-5, atol=1e-37)


def test_the_optimal_discriminator_attains_the_jensen_shannon_divergence():
    """Goodfellow et al. 2014, theorem 1: at D = p / (p + q) the value is -log 4 + 2 JSD(p, q)."""
    p, q = np.array([0.1, 0.2, 0.7]), np.array([0.5, 0.3, 0.2])
    logits = jnp.asarray(np.log(p / q), jnp.float32)
    zero = jnp.full((3,), -1e4)  # contributes log(1 - D) = 0 or log D = 0 on the other side
    real = discriminator_loss(logits, zero) @ jnp.asarray(p, jnp.float32)
    fake = discriminator_loss(-zero, logits) @ jnp.asarray(q, jnp.float32)
    m = (p + q) / 2
    jsd = 0.5 * np.sum(p * np.log(p / m)) + 0.5 * np.sum(q * np.log(q / m))
    np.testing.assert_allclose(-(real + fake), -np.log(4) + 2 * jsd, rtol=1e-5)
    # and no other discriminator does better
    shifted = discriminator_loss(logits + 0.1, zero) @ jnp.asarray(p, jnp.float32)
    shifted += discriminator_loss(-zero, logits + 0.1) @ jnp.asarray(q, jnp.float32)
    assert shifted > real + fake


P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])


def expected_slope(critic, logits):
    """The gradient by the logits ``[3]`` of a critic's expected loss over P and Q."""
    _, by_real, by_fake = evaluated(critic, logits, logits)
    return P * by_real + Q * by_fake


def test_the_smoothed_label_moves_the_optimum_to_its_share_of_the_data():
    """D = target p / (p + q) (Salimans et al. 2016, section 3.4), and 1 - target costs nothing."""
    best = 0.9 * P / (P + Q)
    logits = np.log(best / (1 - best))
    close([expected_slope(smoothed_discriminator_loss(0.9), logits)], np.zeros(3))
    found, *_ = evaluated(smoothed_discriminator_loss(0.9), REAL, FAKE)
    close([found], -0.9 * log_d(REAL) - 0.1 * log_d(-REAL) - log_d(-FAKE))


def test_least_squares_minimize_pearsons_divergence_at_the_optimum():
    """Mao et al. 2017, theorem 1 and eq. 8: there 2 E[loss of G over all] is the chi^2 distance of
    (p + q) / 2 and q, up to a factor of 2."""
    critic, generator = least_squares(-1, 1, 0)
    logits = (P - Q) / (P + Q)  # (b p + a q) / (p + q), eq. 5
    close([expected_slope(critic, logits)], np.zeros(3))
    cost, *_ = evaluated(generator, logits, logits)
    close([2 * (P + Q) @ np.asarray(cost)], np.sum((2 * Q - (P + Q)) ** 2 / (P + Q)))


def test_features_are_matched_by_their_means():
    real = jnp.array([[1.0, 2.0], [3.0, 0.0]])  # mean (2, 1)
    fake = jnp.array([[0.0, 0.0], [1.0, 4.0]])  # mean (1/2, 2)
    close([feature_matching(real, fake)], 1.5**2 + 1)
    assert feature_matching(real, real[::-1]) == 0


def test_mode_seeking_grows_as_modes_collapse():
    z1, z2 = jnp.zeros((3, 2)), jnp.array([[1.0, 1.0], [2.0, 4.0], [1.0, 1.0]])
    x1, x2 = jnp.zeros((3, 1, 2)), jnp.array([[[0.5, 0.5]], [[1.0, 0.0]], [[0.0, 0.0]]])
    # distances of latents 1, 3, 1, of images 1/2, 1/2, 0
    close([mode_seeking(x1, x2, z1, z2)], [2, 6, 1e5], rtol=1e-4)
    slope = jax.grad(lambda x2: mode_seeking(x1, x2, z1, z2).sum())(x2)
    assert np.isfinite(slope).all()
    assert np.isfinite(mode_seeking(x1, x1, z1, z1)).all()


def test_the_equilibrium_variable_rests_where_errors_have_their_ratio():
    v = jnp.zeros((2, 3, 1))
    errors = began.reconstruction_error(v, v + jnp.array([1.0, 3.0])[:, None, None])
    close([errors], [1, 3])
    real, fake = errors, jnp.array([0.5, 1.5])  # means 2 and 1: in balance at gamma = 1/2
    k = jnp.float32(0.3)
    close([began.critic_loss(real, fake, k)], [1 - 0.15, 3 - 0.45])
    assert began.equilibrium(k, real, fake, 0.5, 0.1) == k
    close([began.equilibrium(k, real, fake, 0.7, 0.1)], 0.3 + 0.1 * 0.4)
    for gamma, end in ((0.0, 0.0), (1.0, 1.0)):  # kept in [0, 1] wherever it is driven
        for _ in range(9):
            k = began.equilibrium(k, real, fake, gamma, 0.2)
            assert 0 <= k <= 1
        assert k == end
    close([began.convergence(real, fake, 0.5), began.convergence(real, fake, 0.75)], 2, 2.5)


def test_ranks_are_checked():
    for loss in (MINIMAX.critic, HINGE.critic, WASSERSTEIN.critic, least_squares().critic):
        with pytest.raises(AssertionError):
            loss(jnp.zeros((4, 1)), jnp.zeros((4, 1)))
        with pytest.raises(AssertionError):
            loss(jnp.zeros(4), jnp.zeros(3))
    with pytest.raises(AssertionError):
        minimax_generator_loss(jnp.zeros((4, 1)))
