"""Objectives of two players, held to derivatives by hand, and to divergences they are bounds of."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.losses import began, f_divergences
from jaxgen.losses.adversarial import (
    HINGE,
    MINIMAX,
    NON_SATURATING,
    WASSERSTEIN,
    Objective,
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
from jaxgen.losses.f_divergences import f_gan

DIVERGENCES = ["KL", "REVERSE_KL", "PEARSON", "SQUARED_HELLINGER", "JENSEN_SHANNON"]

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
    "RaSGAN": (relativistic_average(discriminator_loss), LOGISTIC),
    "RaLSGAN": (relativistic_average(least_squares(-1, 1).critic), SQUARES),
    "RaHingeGAN": (relativistic_average(hinge_critic_loss), MARGINS),
}


def evaluated(loss, real, fake):
    """Values ``[B]``, and the slopes ``[B]`` of their sum by both logits."""
    slopes = jax.grad(lambda r, f: loss(r, f).sum(), argnums=(0, 1))(real, fake)
    return loss(real, fake), *slopes


@pytest.fixture(scope="module")
def found():
    """Both losses of every objective, in float32 and in one program."""
    objectives = {name: row[0] for name, row in (APART | RELATIVISTIC).items()}

    @jax.jit
    def everything(real, fake):
        return {
            name: [evaluated(loss, real, fake) for loss in (critic, generator)]
            + [evaluated(critic, fake, real), critic(real + 8, fake + 8)]
            for name, (critic, generator, *_) in objectives.items()
        }

    return everything(jnp.float32(REAL), jnp.float32(FAKE))


def close(found, *wanted, rtol=2e-6, atol=1e-6):
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)


@pytest.mark.parametrize("name", APART)
def test_objectives_and_their_slopes_are_those_by_hand(found, name):
    _, (of_real, of_fake, real_slope, fake_slope), generator, generator_slope = APART[name]
    by_critic, by_generator, *_ = found[name]
    close(by_critic, of_real(REAL) + of_fake(FAKE), real_slope(REAL), fake_slope(FAKE))
    close(by_generator, generator(FAKE), ZERO(REAL), generator_slope(FAKE))


@pytest.mark.parametrize("name", RELATIVISTIC)
def test_relativistic_objectives_compare_with_the_mean_of_the_others(found, name):
    """Slopes by the chain rule through both means; the generator's game is the critic's, turned."""
    _, (of_real, of_fake, real_slope, fake_slope) = RELATIVISTIC[name]
    by_critic, (values, by_real, by_fake), turned, moved = found[name]
    r, f = REAL - FAKE.mean(), FAKE - REAL.mean()
    want = of_real(r) + of_fake(f)
    slopes = real_slope(r) - fake_slope(f).mean(), fake_slope(f) - real_slope(r).mean()
    close(by_critic, want, *slopes, rtol=1e-5, atol=1e-5)
    close((values, by_fake, by_real), *turned)
    close([moved], want, rtol=1e-5, atol=2e-5)  # only differences of logits are told apart


def test_small_gradients_are_exact_at_logits_of_100():
    """d/da log(1 - D) = -D and d/da (-log D) = D - 1: the first fades, the second does not."""

    @jax.jit
    def slopes(a):
        losses = minimax_generator_loss, non_saturating_generator_loss
        return [jax.grad(lambda a: loss(a).sum())(a) for loss in losses]  # noqa: B023

    minimax, saturating = slopes(jnp.float32(LOGITS))
    np.testing.assert_allclose(minimax, -d(LOGITS), rtol=1e-5, atol=1e-37)
    np.testing.assert_allclose(saturating, -d(-LOGITS), rtol=1e-5, atol=1e-37)


P, Q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])


@jax.jit
def expected(logits):
    """Of all critics at one: the expected loss over P and Q, and its slope by the logits."""
    p, q = jnp.float32(P), jnp.float32(Q)
    critics = {
        "logistic": discriminator_loss,
        "smoothed": smoothed_discriminator_loss(0.9),
        "squares": least_squares(-1, 1, 0).critic,
    }

    def cost(critic, real, fake):  # a loss of real logits plus one of fake ones
        zeros = jnp.zeros(3)
        at_zero = critic(zeros, zeros)[0]
        return p @ critic(real, zeros) + q @ critic(zeros, fake) - at_zero

    return {
        name: jax.value_and_grad(lambda v: cost(critic, v, v))(logits)  # noqa: B023
        for name, critic in critics.items()
    }


def test_the_optimal_discriminator_attains_the_jensen_shannon_divergence():
    """Goodfellow et al. 2014, theorem 1: at D = p / (p + q) the value is -log 4 + 2 JSD(p, q)."""
    m = (P + Q) / 2
    jsd = 0.5 * np.sum(P * np.log(P / m)) + 0.5 * np.sum(Q * np.log(Q / m))
    best, slope = expected(jnp.float32(np.log(P / Q)))["logistic"]
    close([-best, slope], -np.log(4) + 2 * jsd, np.zeros(3))
    for other in ([0.1, 0.1, 0.1], [-0.3, 0, 0], [0, 2, -50]):  # none does better
        assert expected(jnp.float32(np.log(P / Q) + other))["logistic"][0] > best


def test_the_smoothed_label_moves_the_optimum_to_its_share_of_the_data():
    """D = target p / (p + q) (Salimans et al. 2016, section 3.4), of the loss by its definition."""
    best = 0.9 * P / (P + Q)
    _, slope = expected(jnp.float32(np.log(best / (1 - best))))["smoothed"]
    close([slope], np.zeros(3))
    values = smoothed_discriminator_loss(0.9)(jnp.float32(REAL), jnp.float32(FAKE))
    close([values], -0.9 * log_d(REAL) - 0.1 * log_d(-REAL) - log_d(-FAKE))


def test_least_squares_minimize_pearsons_divergence_at_the_optimum():
    """Mao et al. 2017, section 3.2.2: where D is best, 2 E[(D - c)^2] over data and samples is the
    chi^2 distance of p + q and 2 q, of eq. 8."""
    logits = jnp.float32((P - Q) / (P + Q))  # (b p + a q) / (p + q), eq. 5
    close([expected(logits)["squares"][1]], np.zeros(3))
    cost = least_squares(-1, 1, 0).generator(logits, logits)
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
    extreme = jax.jit(jax.grad(lambda x2, z2: mode_seeking(x1, x2, z1, z2).sum()))
    for x, z in ((x2, z2), (x1, z2), (x1, z1)):
        assert np.isfinite(extreme(x, z)).all()


def test_the_equilibrium_variable_rests_where_errors_have_their_ratio():
    # means 2 and 1: in balance at gamma = 1/2
    real, fake = jnp.array([1.0, 3.0]), jnp.array([0.5, 1.5])
    k = jnp.float32(0.3)
    assert began.equilibrium(k, real, fake, 0.5, 0.1) == k
    close([began.equilibrium(k, real, fake, 0.7, 0.1)], 0.3 + 0.1 * 0.4)
    for gamma, end in ((0.0, 0.0), (1.0, 1.0)):  # kept in [0, 1] wherever it is driven
        for _ in range(9):
            k = began.equilibrium(k, real, fake, gamma, 0.2)
            assert 0 <= k <= 1
        assert k == end
    close([began.convergence(real, fake, 0.5), began.convergence(real, fake, 0.75)], 2, 2.5)


OBJECTIVES = (
    {name: row[0] for name, row in (APART | RELATIVISTIC).items()}
    | {name: f_gan(getattr(f_divergences, name)) for name in DIVERGENCES}
    | {"smoothed": Objective(smoothed_discriminator_loss(0.9), MINIMAX.generator)}
)


def test_logits_of_patches_are_averaged_over_each_example():
    """Every objective of logits [B, H, W, C] is, for every example, the mean of its patches', each
    of which it sees as it sees an example's; so are its gradients. PatchGAN (Isola et al. 2017)."""
    real, fake = np.random.default_rng(0).normal(size=(2, 3, 2, 4, 1)).astype(np.float32)

    @jax.jit
    def both(real, fake):
        return {
            name: [evaluated(loss, real, fake) for loss in (critic, generator)]
            for name, (critic, generator, *_) in OBJECTIVES.items()
        }

    patches, alone = both(real, fake), both(real.reshape(-1), fake.reshape(-1))
    for name in OBJECTIVES:
        for (values, *slopes), (each, *apart) in zip(patches[name], alone[name], strict=True):
            assert values.shape == (3,)
            close([values], each.reshape(3, 8).mean(1))
            close(slopes, *[slope.reshape(real.shape) / 8 for slope in apart])


def test_shapes_are_checked():
    for critic, generator, *_ in OBJECTIVES.values():
        with pytest.raises(AssertionError):
            critic(jnp.zeros((4, 1)), jnp.zeros(4))
        with pytest.raises(AssertionError):
            critic(jnp.zeros(4), jnp.zeros(3))
        with pytest.raises(AssertionError):
            generator(jnp.zeros(()), jnp.zeros(()))
