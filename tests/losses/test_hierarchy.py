"""Bounds by level: of linear Gaussian chains exactly, and the DDPM's term by term."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import Gaussian

from jaxgen.diffusion.process import marginal, posterior_mean, posterior_variance
from jaxgen.diffusion.schedules import from_betas, linear_betas
from jaxgen.distributions import Normal, kl_normal
from jaxgen.losses import hierarchy
from jaxgen.losses.denoising import variational_bound

# z_2 ~ N(0, 1), z_1 ~ N(A z_2, B^2), x ~ N(z_1, C^2), one dimension each
A, B, C = 0.8, 0.5, 0.3
X = np.array([[-1.0], [0.2], [2.5]], np.float32)


def like(mean, std):
    return Normal(mean, jnp.full(mean.shape, jnp.log(std)))


def exact_posteriors(x, z_2):
    """q(z_2|x) and q(z_1|z_2, x), by the conditioning of normals."""
    var_x = A**2 + B**2 + C**2
    top = like(A / var_x * x, np.sqrt(1 - A**2 / var_x))
    gain = B**2 / (B**2 + C**2)
    low = None if z_2 is None else like(A * z_2 + gain * (x - A * z_2), np.sqrt(gain) * C)
    return top, low


def steps(x, shift=0.0):
    """The levels with the exact posterior, moved by ``shift``; the state is the z above."""

    def top(state):
        q, _ = exact_posteriors(x, None)
        p = like(jnp.zeros_like(x), 1.0)
        return hierarchy.Level(p, lambda z: z, Normal(q.mean + shift, q.log_std))

    def low(z_2):
        _, q = exact_posteriors(x, z_2)
        return hierarchy.Level(like(A * z_2, B), lambda z: z, Normal(q.mean + shift, q.log_std))

    return [top, low]


decode = lambda z_1: like(z_1, C)
EXACT = Gaussian(np.zeros(1), np.array([[A**2 + B**2 + C**2]])).log_prob(X)


def test_with_the_exact_posterior_every_draw_has_the_weight_of_log_p(key):
    log_w = hierarchy.level_log_weight(key, steps(X), None, decode, jnp.asarray(X))
    np.testing.assert_allclose(log_w, EXACT, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_the_gap_of_the_bound_is_the_kl_of_all_levels_to_the_posterior(key, shift):
    """A shift of each level by s costs s^2/2 times its precision, and that of z_2 moves z_1 too."""
    bound = lambda k: hierarchy.level_terms(k, steps(X, shift), None, decode, jnp.asarray(X))
    terms = jax.jit(jax.vmap(bound))(jax.random.split(key, 20_000))
    var_x = A**2 + B**2 + C**2
    var_top, var_low = 1 - A**2 / var_x, B**2 * C**2 / (B**2 + C**2)
    gap = shift**2 / 2 * (1 / var_top + 1 / var_low)
    found = (terms.reconstruction - terms.kl.sum(axis=1)).mean(axis=0)
    np.testing.assert_allclose(EXACT - found, gap, atol=0.03)
    weighed = jax.tree.map(lambda a: a[0], terms)
    np.testing.assert_allclose(
        weighed.elbo(jnp.array([2.0, 0.5])),
        weighed.reconstruction - 2 * weighed.kl[0] - 0.5 * weighed.kl[1],
        rtol=1e-5,
    )


def test_draws_of_the_model_have_its_moments_and_known_levels_stay(key):
    x = jnp.zeros((50_000, 1))
    state, found = hierarchy.draw_levels(key, steps(x), None)
    np.testing.assert_allclose(np.std(found[0]), 1, atol=0.02)
    np.testing.assert_allclose(np.std(state), np.sqrt(A**2 + B**2), atol=0.02)
    _, cool = hierarchy.draw_levels(key, steps(x), None, temperature=0.5)
    np.testing.assert_allclose(np.std(cool[1]), 0.5 * np.sqrt(A**2 + B**2), atol=0.02)
    state, again = hierarchy.draw_levels(jax.random.key(1), steps(x), None, known=found[:1])
    np.testing.assert_array_equal(again[0], found[0])
    np.testing.assert_allclose(np.cov(state[:, 0], found[0][:, 0])[0, 1], A, atol=0.02)


@pytest.mark.parametrize("variance", ["beta", "beta_tilde"])
def test_a_ddpm_is_a_hierarchical_vae_whose_encoder_is_fixed(key, variance):
    """The same code gives the DDPM's bound term by term, in the mean over draws.

    The levels are x_T, ..., x_1: q(x_T|x_0) against N(0, I), and q(x_{t-1}|x_t, x_0) against the
    reverse step.
    """
    schedule, data = from_betas(linear_betas(6, 0.05, 0.6)), Gaussian(np.zeros(2), 0.3 * np.eye(2))
    denoise = data.denoiser(schedule)
    off = lambda x_t, t: 0.7 * denoise(x_t, t) + 0.1
    x_0 = jnp.asarray(data.sample(np.random.default_rng(0), 4))

    def reverse_variance(t, s):
        own = posterior_variance(t, s)
        beta = 1 - (t.alpha / s.alpha) ** 2
        return beta if variance == "beta" else jnp.where(s.sigma > 0, own, beta)

    def top(state):
        level = schedule(jnp.asarray(6))
        p = Normal(jnp.zeros_like(x_0), jnp.zeros_like(x_0))
        return hierarchy.Level(p, lambda x_t: x_t, marginal(x_0, level))

    def step(t):
        at, to = schedule(jnp.asarray(t)), schedule(jnp.asarray(t - 1))

        def level(x_t):
            mean = posterior_mean(x_t, off(x_t, jnp.full(4, t)), at, to)
            p = like(mean, jnp.sqrt(reverse_variance(at, to)))
            q = like(posterior_mean(x_t, x_0, at, to), jnp.sqrt(posterior_variance(at, to)))
            return hierarchy.Level(p, lambda x_s: x_s, q)

        return level

    def decoder(x_1):
        at, to = schedule(jnp.asarray(1)), schedule(jnp.asarray(0))
        mean = posterior_mean(x_1, off(x_1, jnp.full(4, 1)), at, to)
        # its variance is that of t = 1: beta_1, and for beta-tilde that of t = 2
        if variance == "beta":
            return like(mean, jnp.sqrt(reverse_variance(at, to)))
        return like(mean, jnp.sqrt(posterior_variance(schedule(jnp.asarray(2)), at)))

    levels = [top, *(step(t) for t in range(6, 1, -1))]
    keys = jax.random.split(key, 20_000)
    mine = jax.jit(jax.vmap(lambda k: hierarchy.level_terms(k, levels, None, decoder, x_0)))(keys)
    choose = {"beta": lambda t, s: 1 - (t.alpha / s.alpha) ** 2, "beta_tilde": posterior_variance}
    bound = lambda k: variational_bound(k, off, schedule, x_0, variance=choose[variance])
    theirs = jax.jit(jax.vmap(bound))(keys)
    kl = mine.kl.mean(axis=0)  # [6, B], from t = T down
    np.testing.assert_allclose(kl[0], theirs.prior[0], rtol=1e-5)
    np.testing.assert_allclose(kl[1:], theirs.diffusion.mean(axis=0)[::-1], rtol=0.05, atol=0.01)
    np.testing.assert_allclose(
        -mine.reconstruction.mean(axis=0), theirs.decoder.mean(axis=0), rtol=0.05, atol=0.02
    )


def test_the_ladder_is_the_product_of_two_normals():
    rng = np.random.default_rng(0)
    m, s = rng.standard_normal((2, 2, 5)), rng.standard_normal((2, 2, 5))
    found = hierarchy.precision_weighted(
        *(Normal(*map(jnp.float32, p)) for p in zip(m, s, strict=True))
    )
    precision = np.exp(-2 * s)
    np.testing.assert_allclose(np.exp(-2 * found.log_std), precision.sum(0), rtol=1e-4)
    np.testing.assert_allclose(found.mean, (precision * m).sum(0) / precision.sum(0), rtol=1e-4)


def test_the_kl_of_a_residual_is_that_of_the_paper():
    p = Normal(jnp.array([[3.0, -2.0]]), jnp.array([[1.0, -3.0]]))
    shift, log_std = np.array([[0.3, 0.0]]), np.array([[-0.2, 0.1]])
    moved = Normal(jnp.float32(shift), jnp.float32(log_std))
    var = np.exp(2 * log_std)  # Vahdat & Kautz 2020, eq. 2
    expected = 0.5 * (shift**2 / np.exp(2 * np.asarray(p.log_std)) + var - np.log(var) - 1)
    found = kl_normal(hierarchy.residual(p, moved), p)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_balanced_weights_follow_kl_and_size_and_have_mean_one():
    kl = jnp.array([[1.0, 3.0], [4.0, 4.0]])
    np.testing.assert_allclose(hierarchy.balanced(kl, (1, 3)), [2 / 7, 12 / 7], rtol=1e-4)
    assert not jax.grad(lambda kl: hierarchy.balanced(kl, (1, 3))[0])(kl).any()
    assert np.isfinite(hierarchy.balanced(jnp.zeros((2, 2)), (1, 3))).all()


@pytest.mark.parametrize("size", [-20.0, 20.0])
def test_gradients_are_finite_at_extreme_scales(size):
    def loss(log_std):
        a, b = Normal(jnp.ones((1, 2)), log_std), Normal(jnp.zeros((1, 2)), -log_std)
        q = hierarchy.precision_weighted(a, b)
        return q.mean.sum() + q.log_std.sum() + hierarchy.residual(a, b).log_std.sum()

    value, slope = jax.value_and_grad(loss)(jnp.full((1, 2), size))
    assert np.isfinite(value)
    assert np.isfinite(slope).all()
