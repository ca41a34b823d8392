import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import linear_gaussian_model

from jaxgen.distributions import Normal, sum_event
from jaxgen.losses import elbo
from jaxgen.posteriors import Flow, FullNormal, Householder, Mixture, StandardNormal

RNG = np.random.default_rng(0)
MODEL = linear_gaussian_model(RNG)
X = (RNG.standard_normal((5, 3)) @ MODEL.W.T + MODEL.b).astype(np.float32)


def decode(z):
    mean = z @ jnp.asarray(MODEL.W.T, jnp.float32) + jnp.asarray(MODEL.b, jnp.float32)[None]
    return Normal(mean, jnp.full(mean.shape, np.log(MODEL.s)))


def encode_with(shift=0.0, widen=1.0):
    """The exact posterior, or one that is off by ``shift`` and wider by ``widen``."""

    def encode(x):
        mean, std = MODEL.posterior(np.asarray(x, np.float64))
        log_std = np.broadcast_to(np.log(widen * std), mean.shape)
        return Normal(jnp.asarray(mean + shift, jnp.float32), jnp.asarray(log_std, jnp.float32))

    return encode


def test_with_the_exact_posterior_every_draw_of_the_bound_is_log_p(key):
    terms = elbo.elbo_terms(
        key, encode_with(), decode, X, kl=elbo.kl_monte_carlo(StandardNormal(3))
    )
    np.testing.assert_allclose(terms.elbo(), MODEL.log_prob(X), rtol=1e-4)


def test_the_gap_is_the_kl_to_the_posterior(key):
    """log p(x) - ELBO = KL(q || p(z|x)), in closed form for a shifted and widened posterior."""
    shift, widen = 0.3, 1.5
    terms = elbo.elbo_terms(key, encode_with(shift, widen), decode, X, samples=20_000)
    _, std = MODEL.posterior(X)
    gap = np.sum(0.5 * (widen**2 - 1 - 2 * np.log(widen) + (shift / std) ** 2))
    np.testing.assert_allclose(MODEL.log_prob(X) - terms.elbo(), np.full(5, gap), rtol=0.03)


def test_the_two_forms_of_the_kl_agree(key):
    closed = elbo.elbo_terms(key, encode_with(0.3, 1.5), decode, X, samples=20_000)
    drawn = elbo.elbo_terms(
        key,
        encode_with(0.3, 1.5),
        decode,
        X,
        samples=20_000,
        kl=elbo.kl_monte_carlo(StandardNormal(3)),
    )
    np.testing.assert_allclose(drawn.kl, closed.kl, rtol=0.02)


def test_beta_weighs_the_kl_only(key):
    terms = elbo.elbo_terms(key, encode_with(), decode, X)
    loss = elbo.negative_elbo(key, encode_with(), decode, X, beta=4.0)
    np.testing.assert_allclose(loss, -(terms.reconstruction - 4.0 * terms.kl), rtol=1e-6)


def test_importance_bound_is_the_elbo_at_one_sample(key):
    q = encode_with(0.3, 1.5)
    one = elbo.importance_log_likelihood(key, q, decode, X, samples=1)
    same_key = jax.random.split(key, 1)[0]
    z, log_q = elbo.draws(same_key, q(X), 1)
    kl = elbo.kl_monte_carlo(StandardNormal(3))(q(X), z, log_q)
    drawn = sum_event(decode(z[0]).log_prob(jnp.asarray(X))) - kl
    np.testing.assert_allclose(one, drawn, rtol=1e-4)


def test_importance_bound_grows_to_log_p(key):
    q = encode_with(0.3, 1.5)
    want = MODEL.log_prob(X)

    def mean_over_repeats(k, repeats):
        bound = lambda key: elbo.importance_log_likelihood(key, q, decode, X, samples=k)
        return jax.vmap(bound)(jax.random.split(key, repeats)).mean(axis=0)

    gaps = [(want - mean_over_repeats(k, 500)).mean() for k in (1, 4, 16)]
    assert gaps[0] > gaps[1] > gaps[2] > 0
    many = elbo.importance_log_likelihood(key, q, decode, X, samples=20_000, chunk=100)
    np.testing.assert_allclose(many, want, atol=0.05)


def test_gradient_reaches_the_encoder_through_the_sample(key):
    """d/dm E_q[log p(x|z)] at q = N(m, s): for a linear decoder it is W^T (x - b - W m) / s^2."""
    x = X[:1]

    def reconstruction(mean):
        encode = lambda x: Normal(mean, jnp.full((1, 3), -1.0))
        terms = elbo.elbo_terms(key, encode, decode, x, samples=50_000)
        return terms.reconstruction.sum()

    mean = np.array([[0.2, -0.1, 0.4]])
    want = (x - MODEL.b - mean @ MODEL.W.T) @ MODEL.W / MODEL.s**2
    np.testing.assert_allclose(
        jax.grad(reconstruction)(jnp.asarray(mean, jnp.float32)), want, atol=0.05
    )


@pytest.mark.parametrize(
    ("likelihood", "maps"),
    [
        (elbo.bernoulli(), [0.0]),
        (elbo.discretized_logistic(17), [0.0, -1.0]),
        (elbo.gaussian(0.3), [0.1]),
        (elbo.learned_gaussian(), [0.1, -1.0]),
    ],
)
def test_likelihoods_are_normalized(likelihood, maps):
    """Summed over the values, or integrated over the line, each density is 1."""
    assert likelihood.maps == len(maps)
    grid = {1: jnp.linspace(-8, 8, 20_001), 2: jnp.linspace(-8, 8, 20_001)}[len(maps)]
    weight = 16 / 20_000
    if likelihood.density is elbo.Bernoulli:
        grid, weight = jnp.array([0.0, 1.0]), 1.0
    elif "logistic" in likelihood.density.__qualname__:
        grid, weight = jnp.linspace(-1, 1, 17), 1.0
    out = jnp.broadcast_to(jnp.asarray(maps)[None], (len(grid), len(maps)))
    log_p = likelihood.density(out).log_prob(grid[:, None])
    np.testing.assert_allclose(weight * np.exp(log_p).sum(), 1.0, rtol=1e-4)


def test_wrong_ranks_are_refused(key):
    flat = lambda x: Normal(jnp.zeros(5), jnp.zeros(5))
    with pytest.raises(AssertionError):
        elbo.elbo_terms(key, flat, decode, X)
    with pytest.raises(ValueError, match="multiple of chunk"):
        elbo.importance_log_likelihood(key, encode_with(), decode, X, samples=5, chunk=2)


def test_a_posterior_and_a_prior_of_any_kind_have_a_bound(key):
    """With the model's own posterior as a full normal, and the prior as a mixture of one, exact."""
    mean, std = MODEL.posterior(X.astype(np.float64))
    log_std = np.broadcast_to(np.log(std), mean.shape)
    q = FullNormal(*map(jnp.float32, (mean, log_std, np.zeros((5, 3, 3)))))
    prior = Mixture(jnp.zeros(1), jnp.zeros((1, 3)), jnp.zeros((1, 3)))
    terms = elbo.elbo_terms(key, lambda x: q, decode, X, kl=elbo.kl_monte_carlo(prior))
    np.testing.assert_allclose(terms.elbo(), MODEL.log_prob(X), rtol=1e-4)
    # turned twice by one reflection it is where it was
    v = jnp.broadcast_to(jnp.array([1.0, 2.0, -1.0]), (5, 3))
    turned = lambda x: Flow(q, (Householder(v), Householder(v)))
    one = elbo.importance_log_likelihood(key, turned, decode, X, samples=4, prior=prior)
    np.testing.assert_allclose(one, MODEL.log_prob(X), rtol=1e-4)
    with pytest.raises(ValueError, match="use kl_monte_carlo"):
        elbo.elbo_terms(key, turned, decode, X)
