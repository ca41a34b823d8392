"""Terms on q(z): sums that are known, and closed forms of normals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.distributions import Normal, kl_normal, standard_normal
from jaxgen.losses.latents import (
    cyclical,
    free_bits,
    information_by_latent,
    inverse_multiquadratic,
    kl_parts,
    mmd,
    warm_up,
)

RNG = np.random.default_rng(0)


def posteriors(n, spread=2.0, scale=0.5):
    mean = jnp.asarray(spread * RNG.standard_normal((n, 2)), jnp.float32)
    return Normal(mean, jnp.full((n, 2), np.log(scale), jnp.float32))


def test_the_parts_add_up_to_the_kl(key):
    q = posteriors(40)
    z = q.sample(key)
    parts = kl_parts(q, z, 500)
    prior = standard_normal(z.shape)
    np.testing.assert_allclose(
        parts.weighted(), (q.log_prob(z) - prior.log_prob(z)).sum(-1), rtol=1e-4, atol=1e-4
    )
    mi, tc, dw = parts
    np.testing.assert_allclose(parts.weighted(0.5, 3, 2), 0.5 * mi + 3 * tc + 2 * dw, rtol=1e-5)


def test_what_each_latent_tells_of_which_example_it_is_of(key):
    """Four means far apart tell log 4, two of them log 2, and one and the same nothing."""
    mean = jnp.array(
        [[0.0, -50.0, 3.0], [100.0, -50.0, 3.0], [200.0, 50.0, 3.0], [300.0, 50.0, 3.0]]
    )
    q = Normal(mean, jnp.zeros((4, 3)))
    found = information_by_latent(q, q.sample(key))
    np.testing.assert_allclose(found, [np.log(4), np.log(2), 0], atol=1e-5)


def test_of_one_latent_that_is_the_mutual_information(key):
    q = Normal(jnp.linspace(-1, 1, 30)[:, None], jnp.full((30, 1), -1.0))
    z = q.sample(key)
    np.testing.assert_allclose(
        information_by_latent(q, z)[0], kl_parts(q, z, 30).mutual_information.mean(), rtol=1e-4
    )


def test_of_a_whole_set_each_part_is_exact(key):
    """Two far clusters on the diagonal: log 2 nats tell x, and z_1 tells z_2: log 2 again."""
    mean = jnp.array([[10.0, 10.0], [-10.0, -10.0]])
    q = Normal(mean, jnp.zeros((2, 2)))
    draw = jax.jit(jax.vmap(lambda key: kl_parts(q, q.sample(key), 2)))
    mi, tc, dw = (part.mean() for part in draw(jax.random.split(key, 4000)))
    np.testing.assert_allclose([mi, tc], np.log(2), atol=1e-4)
    kl = kl_normal(q, standard_normal((2, 2))).sum(-1).mean()
    np.testing.assert_allclose(dw, kl - 2 * np.log(2), atol=1)  # 4 standard errors
    apart = Normal(jnp.array([[10.0, 0.0], [-10.0, 0.0]]), jnp.zeros((2, 2)))
    np.testing.assert_allclose(
        kl_parts(apart, apart.sample(key), 2).total_correlation, 0, atol=1e-4
    )


def test_the_aggregate_posterior_is_estimated_without_bias():
    """exp(log q(z)) of batches of 4 of 12 examples, against the sum over all of them."""
    q = posteriors(12, spread=1.0, scale=1.0)
    z = q.mean[0] + 0.3
    density = np.exp(np.asarray(q.log_prob(jnp.broadcast_to(z, (12, 2))).sum(-1)))
    others = np.stack([RNG.choice(np.arange(1, 12), 3, replace=False) for _ in range(3000)])

    @jax.jit
    @jax.vmap
    def estimate(others):
        chosen = jnp.concatenate([jnp.zeros(1, int), others])
        part = Normal(q.mean[chosen], q.log_std[chosen])
        at = part.mean.at[0].set(z)
        log_q_given = part.log_prob(at).sum(-1)[0]
        return jnp.exp(log_q_given - kl_parts(part, at, 12).mutual_information[0])

    found = np.asarray(estimate(others))
    np.testing.assert_allclose(found.mean(), density.mean(), atol=4 * found.std() / np.sqrt(3000))
    assert found.std() > 0.01 * density.mean()
    with pytest.raises(ValueError, match="a batch of 2 to 12 examples is needed, not of 1"):
        kl_parts(Normal(q.mean[:1], q.log_std[:1]), z[None], 12)


def test_free_bits_leave_what_is_below_alone():
    kl = jnp.array([[0.1, 2.0, 0.0], [0.3, 4.0, 0.9]])  # means 0.2, 3, 0.45
    loss, slope = jax.value_and_grad(lambda kl: free_bits(kl, 0.5).mean())(kl)
    np.testing.assert_allclose(loss, 0.5 + 3 + 0.5, rtol=1e-6)
    np.testing.assert_allclose(slope, [[0, 0.5, 0]] * 2)
    np.testing.assert_allclose(free_bits(kl, 0.0).mean(), kl.sum(-1).mean(), rtol=1e-6)


def test_the_discrepancy_of_normals_is_their_closed_form(key):
    """With a Gaussian kernel of width 1: E k(a, b) is a normal density, for any two normals."""
    kernel = lambda a, b: jnp.exp(-0.5 * jnp.sum((a[:, None] - b[None]) ** 2, axis=-1))
    mean_of = lambda shift, var: np.exp(-0.5 * shift**2 / (1 + var)) / np.sqrt(1 + var)
    want = mean_of(0, 2 * 0.25) + mean_of(0, 2) - 2 * mean_of(1.5, 1.25)

    def estimate(key):
        a, b = jax.random.normal(key, (2, 64, 1))
        return mmd(0.5 * a + 1.5, b, kernel).mean()

    values = np.asarray(jax.lax.map(estimate, jax.random.split(key, 2000), batch_size=100))
    np.testing.assert_allclose(values.mean(), want, atol=4 * values.std() / np.sqrt(2000))
    same = jax.lax.map(
        lambda k: mmd(*jax.random.normal(k, (2, 64, 3))).mean(), jax.random.split(key, 500)
    )
    assert abs(same.mean()) < 4 * same.std() / np.sqrt(500)
    assert same.min() < 0  # unbiased


def test_the_kernel_is_that_of_the_paper():
    a, b = jnp.array([[0.0, 0.0]]), jnp.array([[3.0, 4.0]])
    want = sum(4 * s / (4 * s + 25) for s in (0.1, 0.2, 0.5, 1, 2, 5, 10))
    np.testing.assert_allclose(inverse_multiquadratic()(a, b), [[want]], rtol=1e-6)


def test_weights_over_time():
    steps = jnp.array([0, 5, 10, 15, 20, 25])
    np.testing.assert_allclose(warm_up(steps, 10), [0, 0.5, 1, 1, 1, 1])
    np.testing.assert_allclose(cyclical(steps, 20), [0, 0.5, 1, 1, 0, 0.5])
    np.testing.assert_array_equal(warm_up(steps, 0), 1)
    with pytest.raises(ValueError, match="a share of the period"):
        cyclical(steps, 20, rising=0.0)
    with pytest.raises(ValueError, match="two examples"):
        mmd(jnp.zeros((1, 2)), jnp.zeros((1, 2)))
    assert np.isnan(free_bits(jnp.array([[np.nan, 2.0]]), 0.5)).all()  # no loss is hidden
