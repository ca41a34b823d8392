"""Hierarchical VAEs, held to log p(x) by quadrature over two latents."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hvae import DIGITS, build
from jaxgen.data.sources import load
from jaxgen.distributions import sum_event
from jaxgen.losses import hierarchy
from jaxgen.training.step import Now

DATA = load("digits")
SMALL = replace(DIGITS, latents=(1, 1), hidden=8, kl_warmup=0)


def noisy(key, params, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [a + scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


@pytest.mark.parametrize("inference", ["residual", "ladder"])
def test_log_p_of_two_levels_is_that_of_quadrature_and_the_bound_is_below(key, inference):
    system = build(replace(SMALL, inference=inference), DATA)
    params = noisy(key, system.init(key)["params"])
    x = jax.random.bernoulli(key, 0.5, (1, 8, 8, 1)).astype(jnp.float32)
    line = jnp.linspace(-8, 8, 161)
    top, low = (a.reshape(-1, 1) for a in jnp.meshgrid(line, line))

    @jax.jit
    def both(params, keys):
        n = len(top)
        first, second = system.steps(params)
        above = first(system.start(n))
        below = second(above.then(top))
        log_p = sum_event(above.p.log_prob(top)) + sum_event(below.p.log_prob(low))
        data = system.decode(params, below.then(low)).log_prob(jnp.broadcast_to(x, (n, 8, 8, 1)))
        exact = jax.nn.logsumexp(log_p + sum_event(data)) + 2 * jnp.log(0.1)
        steps, decode = system.steps(params, x), lambda state: system.decode(params, state)
        weigh = lambda k: hierarchy.level_log_weight(k, steps, system.start(1), decode, x)[0]
        log_w = jax.vmap(weigh)(keys)
        bound = jax.vmap(lambda k: system.terms(params, k, x).elbo()[0])(keys).mean()
        return exact, jax.nn.logsumexp(log_w) - jnp.log(len(keys)), bound

    exact, found, bound = both(params, jax.random.split(key, 5000))
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert bound < exact


def test_free_bits_and_warm_up_weigh_the_levels(key):
    batch = DATA.train.fetch(np.arange(32))
    system = build(replace(SMALL, kl_warmup=10), DATA)
    params = noisy(key, system.init(key)["params"])
    measured, m = system.loss(params, batch, key, Now(0, {}, train=False))
    np.testing.assert_allclose(measured, m["kl"] - m["reconstruction"], rtol=1e-5)
    np.testing.assert_allclose(m["kl"], m["kl_2"] + m["kl_1"], rtol=1e-5)
    for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0)):
        found, m = system.loss(params, batch, key, Now(step, {}))
        np.testing.assert_allclose(found, weight * m["kl"] - m["reconstruction"], rtol=1e-5)
    free = build(replace(SMALL, free_bits=1e6), DATA)
    found, m = free.loss(params, batch, key, Now(0, {}))
    np.testing.assert_allclose(found, 2e6 - m["reconstruction"], rtol=1e-6)
