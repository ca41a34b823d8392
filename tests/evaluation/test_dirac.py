"""The Dirac-GAN, whose eigenvalues are worked out by hand from Mescheder et al. 2018.

With D = psi x, data at 0 and s = sigmoid, the critic of the logistic loss descends
softplus(psi theta), and its slope is s(psi theta) theta; the generator's is -s(psi theta) psi for
log(1 - D) and -s(-psi theta) psi for -log D. At (0, 0) both s are 1/2, and the field's Jacobian is
[[0, 1/2], [-1/2, 0]]: eigenvalues +-i/2. Without the sigmoid 1/2 becomes 1: +-i. A penalty
gamma psi^2 / 2 adds -gamma to its last entry, and the eigenvalues are those of
s^2 + gamma s + 1/4 = 0. Noise of variance v at data and samples alike adds the curvature of
E softplus(-psi n) + E softplus(psi (theta + n)) by psi at 0, which is 2 s'(0) v = v / 2.

Where eigenvalues are imaginary, paths go in circles: of minimax along theta^2 + psi^2 = r^2. Of
-log D, r^2 changes by 2 theta psi (s(-psi theta) - s(psi theta)) = -2 theta psi tanh(psi theta/2),
about -r^4 / 8 over a circle: 1/r^2 grows by t / 8, so that the distance falls like 1/sqrt(t).
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.evaluation.dirac import DiracGan
from jaxgen.losses import penalties
from jaxgen.losses.adversarial import (
    HINGE,
    MINIMAX,
    NON_SATURATING,
    WASSERSTEIN,
    discriminator_loss,
    relativistic_average,
)
from jaxgen.losses.f_divergences import KL, f_gan


def roots(b, c):
    """Of s^2 + b s + c = 0."""
    return np.array(
        [(-b + np.sqrt(b * b - 4 * c + 0j)) / 2, (-b - np.sqrt(b * b - 4 * c + 0j)) / 2]
    )


# The game, its eigenvalues, and whether descent in turns ends at (0, 0).
GAMES = {
    "minimax": (DiracGan(MINIMAX), [0.5j, -0.5j], False),
    "log D": (DiracGan(NON_SATURATING), [0.5j, -0.5j], False),
    "WGAN": (DiracGan(WASSERSTEIN), [1j, -1j], False),
    "hinge": (DiracGan(HINGE), [1j, -1j], False),
    # E_p V - E_q exp(V - 1): the slope of the second is 1/e at V = 0
    "KL": (DiracGan(f_gan(KL)), [1j / np.e, -1j / np.e], False),
    # each player's two terms are alike: log D twice
    "relativistic": (DiracGan(relativistic_average(discriminator_loss)), [1j, -1j], False),
    "R1": (DiracGan(NON_SATURATING, penalties.r1, 0.4), roots(0.4, 0.25), True),
    "R1, overdamped": (DiracGan(NON_SATURATING, penalties.r1, 3.0), roots(3.0, 0.25), True),
    "R2": (DiracGan(MINIMAX, penalties.r2, 0.4), roots(0.4, 0.25), True),
    "WGAN, R1": (DiracGan(WASSERSTEIN, penalties.r1, 0.4), roots(0.4, 1.0), True),
    # 2 psi^2 / 2, the penalty being the whole square
    "WGAN, zero-centred": (
        DiracGan(WASSERSTEIN, penalties.zero_centred, 0.2), roots(0.4, 1.0), True
    ),
    "noise": (DiracGan(NON_SATURATING, noise=0.9), roots(0.405, 0.25), True),
}  # fmt: skip
SLOW = {"log D": 1 / 8, "relativistic": 1 / 4}  # by how much 1/r^2 grows in a unit of time
RATE, STEPS = 0.1, 3000
WGAN_GP = DiracGan(WASSERSTEIN, penalties.wgan_gp, 0.3)
START = jnp.array([1.0, 0.5])


@pytest.fixture(scope="module")
def found():
    """Jacobians at the equilibrium, and paths, of all games in one program."""

    @jax.jit
    def everything(start):
        jacobians = {
            name: jax.jacobian(game.field)(jnp.zeros(2)) for name, (game, *_) in GAMES.items()
        }
        games = {name: game for name, (game, *_) in GAMES.items()} | {"WGAN-GP": WGAN_GP}
        paths = {name: game.path(start, RATE, STEPS) for name, game in games.items()}
        return jacobians, paths

    return everything(START)


@pytest.mark.parametrize("name", GAMES)
def test_eigenvalues_are_those_by_hand(found, name):
    _, want, converges = GAMES[name]
    values = np.linalg.eigvals(np.asarray(found[0][name], np.float64))
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(want), atol=1e-5)
    assert converges == (values.real.max() < -1e-3)


@pytest.mark.parametrize("name", GAMES)
def test_descent_ends_at_the_equilibrium_where_they_say_so(found, name):
    away = np.linalg.norm(found[1][name], axis=-1)
    if GAMES[name][-1]:
        assert away[-1] < 1e-3
    elif name in SLOW:
        circle = 1 / (away[-500:] ** 2).mean()  # some four times around
        want = 1 / away[0] ** 2 + SLOW[name] * RATE * (STEPS - 250)
        np.testing.assert_allclose(circle, want, rtol=0.1)
    else:  # in circles, neither nearer nor further
        assert away[-500:].min() > 0.5
        assert away.max() < 3


def test_wgan_gp_has_no_equilibrium_to_come_to(found):
    """Mescheder et al. 2018, section 3.2: the penalty pushes psi from 0 to 1 and -1, so that the
    field jumps by 4 lambda at 0 and its Jacobian there does not exist; paths go on in a cycle."""
    field = jax.jit(WGAN_GP.field)
    for side in (1e-6, -1e-6):
        np.testing.assert_allclose(field(jnp.array([0.0, side]))[1], 0.6 * np.sign(side), rtol=1e-4)
    # beside the jump the field is linear: [[0, 1], [-1, -2 lambda]]
    values = np.linalg.eigvals(jax.jit(jax.jacobian(WGAN_GP.field))(jnp.array([0.0, 0.2])))
    np.testing.assert_allclose(np.sort_complex(values), np.sort_complex(roots(0.6, 1.0)), atol=1e-5)
    away = np.linalg.norm(found[1]["WGAN-GP"], axis=-1)
    assert away[-500:].min() > 0.1
