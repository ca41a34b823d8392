"""Annealed importance sampling where the normalizers are known."""

import jax
import jax.numpy as jnp
import numpy as np
from oracles import linear_gaussian_model

from jaxgen.distributions import Normal, standard_normal, sum_event
from jaxgen.evaluation.annealing import adapted_sizes, anneal, hamiltonian, sigmoid_temperatures

MODEL = linear_gaussian_model(np.random.default_rng(0))
X = (np.random.default_rng(1).standard_normal((4, 3)) @ MODEL.W.T + MODEL.b).astype(np.float32)
CHAINS = 200


def prior(z):
    return sum_event(standard_normal(z.shape).log_prob(z))


def joint(z):
    """log p(z) p(x|z), of the chains of each example."""
    mean = z @ jnp.asarray(MODEL.W.T, jnp.float32) + jnp.asarray(MODEL.b, jnp.float32)[None]
    x = jnp.repeat(jnp.asarray(X), CHAINS, axis=0)
    return prior(z) + sum_event(Normal(mean, jnp.full(mean.shape, np.log(MODEL.s))).log_prob(x))


def averaged(log_weight):
    return jax.nn.logsumexp(log_weight.reshape(4, CHAINS), axis=1) - np.log(CHAINS)


def annealed(key, start, end, z, temperatures):
    """With the sizes of a pilot run."""
    key, pilot = jax.random.split(key)

    @jax.jit
    def run(z):
        sizes = adapted_sizes(pilot, start, end, z, temperatures)
        return anneal(key, start, end, z, temperatures, sizes)

    return run(z)


def test_it_is_the_log_likelihood_from_below_and_from_above(key):
    """Forwards from the prior the log of a mean of weights is low, backwards from exact draws of
    the posterior its negative is high; on the way it brings the prior to the posterior."""
    exact, (mean, std) = MODEL.log_prob(X), MODEL.posterior(X.astype(np.float64))
    beta = sigmoid_temperatures(400)
    key, key_z = jax.random.split(key)
    draw = jax.random.normal(key_z, (4 * CHAINS, 3))
    below = annealed(key, prior, joint, draw, beta)
    np.testing.assert_allclose(averaged(below.log_weight), exact, atol=0.1)
    assert 0.5 < below.accepted.mean() < 0.9
    z = np.asarray(below.z).reshape(4, CHAINS, 3)
    assert np.abs((z.mean(1) - mean) / std).max() < 5 / np.sqrt(CHAINS)
    np.testing.assert_allclose(z.std(1), np.broadcast_to(std, (4, 3)), rtol=0.2)

    z = jnp.asarray(np.repeat(mean, CHAINS, axis=0) + std * np.asarray(draw), jnp.float32)
    above = annealed(key, joint, prior, z, beta)
    np.testing.assert_allclose(-averaged(above.log_weight), exact, atol=0.1)
    low, high = below.log_weight.reshape(4, -1).mean(1), -above.log_weight.reshape(4, -1).mean(1)
    assert (low < exact).all()
    assert (exact < high).all()
    assert (high - low < 1).all()


def test_few_temperatures_are_further_below(key):
    key, key_z = jax.random.split(key)
    z = jax.random.normal(key_z, (4 * CHAINS, 3))
    gaps = []
    for steps in (16, 64, 256):
        found = annealed(key, prior, joint, z, sigmoid_temperatures(steps))
        gaps.append((MODEL.log_prob(X) - found.log_weight.reshape(4, -1).mean(1)).mean())
    assert gaps[0] > 1.7 * gaps[1] > 1.7**2 * gaps[2] > 0


def test_one_temperature_is_importance_sampling(key):
    z = jax.random.normal(key, (4 * CHAINS, 3))
    found = anneal(key, prior, joint, z, np.array([0.0, 1.0]), jnp.full((1, len(z)), 0.1))
    np.testing.assert_allclose(found.log_weight, joint(z) - prior(z), rtol=1e-4, atol=1e-4)


def test_the_mean_of_the_weights_is_exact_where_chains_differ(key):
    """From N(0, 1) to a narrow and a wide normal: sizes that followed their own chains would give a
    mean of weights that is 7 % off here, many standard errors."""
    start = lambda z: prior(z)
    logs = lambda z, mean, std: sum_event(
        Normal(jnp.full(z.shape, mean), jnp.full(z.shape, np.log(std))).log_prob(z)
    )
    end = lambda z: jnp.logaddexp(logs(z, -2.0, 0.05), logs(z, 2.0, 1.0)) - np.log(2)
    key_z, key_pilot, key = jax.random.split(key, 3)
    z, beta = jax.random.normal(key_z, (20_000, 1)), np.linspace(0, 1, 101)

    @jax.jit
    def run(z):
        sizes = adapted_sizes(key_pilot, start, end, z[:100], beta, leapfrogs=3, first=0.3)
        sizes = jnp.broadcast_to(sizes.mean(1, keepdims=True), (100, len(z)))
        return anneal(key, start, end, z, beta, sizes, leapfrogs=3)

    w = np.exp(np.asarray(run(z).log_weight, np.float64))
    error = w.std() / np.sqrt(len(w))
    assert error < 0.025
    assert abs(w.mean() - 1) < 4 * error


def test_a_transition_leaves_its_density_invariant(key):
    """A correlated normal stays what it is over many transitions, whatever the step size."""
    cov = jnp.array([[1.0, 0.8], [0.8, 1.0]])
    root, precision = jnp.linalg.cholesky(cov), jnp.linalg.inv(cov)
    log_density = lambda z: -0.5 * jnp.einsum("bi,ij,bj->b", z, precision, z)
    z = jax.random.normal(key, (20_000, 2)) @ root.T
    size = jnp.tile(jnp.array([0.05, 0.3, 0.7, 1.2]), 5000)

    @jax.jit
    def moved(z):
        move = lambda z, k: hamiltonian(k, log_density, z, size, 5)
        return jax.lax.scan(move, z, jax.random.split(key, 20))

    z, accepted = moved(z)
    for part in range(4):
        np.testing.assert_allclose(np.cov(z[part::4].T), cov, atol=0.08)
        np.testing.assert_allclose(z[part::4].mean(0), 0, atol=0.06)
    shares = np.asarray(accepted).mean(0).reshape(-1, 4).mean(0)
    assert shares[0] > 0.99 > shares[2] > shares[3]


def test_temperatures_rise_from_0_to_1_and_are_closest_at_the_ends():
    beta = sigmoid_temperatures(100)
    assert (beta[0], beta[-1], len(beta)) == (0, 1, 101)
    gaps = np.diff(beta)
    assert (gaps > 0).all()
    assert gaps[50] > 5 * max(gaps[0], gaps[-1])
