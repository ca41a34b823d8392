"""Hierarchical VAEs, held to log p(x) by quadrature over two latents."""

from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.hvae import DIGITS, build
from jaxgen.data.sources import load
from jaxgen.distributions import sum_event
from jaxgen.losses import hierarchy
from jaxgen.runner.system import Weights
from jaxgen.systems.hvae import use_of_latents
from jaxgen.training.step import Now

DATA = load("digits")
SMALL = replace(DIGITS, latents=(1, 1), hidden=8, kl_warmup=0)


def noisy(key, params, scale=0.3):
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [a + scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


def losses(system, params, batch, key):
    """``(now) -> (loss, metrics)``, compiled once for training and once for measuring."""
    compiled = jax.jit(
        lambda step, memory, train: system.loss(params, batch, key, Now(step, memory, train=train)),
        static_argnums=2,
    )
    return lambda now: compiled(now.step, now.memory, now.train)


CONV = {"model": "conv", "halvings": (3, 3), "hidden": 4}  # maps of one pixel


@pytest.mark.parametrize("options", [{}, {"inference": "ladder"}, CONV])
def test_log_p_of_two_levels_is_that_of_quadrature_and_the_bound_is_below(key, options):
    system = build(replace(SMALL, **options), DATA)
    params = noisy(key, system.init(key)["params"], 0.1)
    params = jax.tree.map(lambda a: 0.6 * a, params)  # q near to p, so that few draws do
    x = jax.random.bernoulli(key, 0.5, (1, 8, 8, 1)).astype(jnp.float32)
    line = jnp.linspace(-8, 8, 161)
    shape = (-1, 1, 1, 1) if options == CONV else (-1, 1)
    top, low = (a.reshape(shape) for a in jnp.meshgrid(line, line))

    @jax.jit
    def both(params, keys):
        n = len(top)
        first, second = system.steps(params)
        above = first(system.start(params, n))
        below = second(above.then(top))
        log_p = sum_event(above.p.log_prob(top)) + sum_event(below.p.log_prob(low))
        data = system.decode(params, below.then(low)).log_prob(jnp.broadcast_to(x, (n, 8, 8, 1)))
        exact = jax.nn.logsumexp(log_p + sum_event(data)) + 2 * jnp.log(0.1)
        steps, decode = system.steps(params, x), lambda state: system.decode(params, state)
        weigh = lambda k: hierarchy.level_log_weight(k, steps, system.start(params, 1), decode, x)[
            0
        ]
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
    loss = losses(system, params, batch, key)
    measured, m = loss(Now(0, {}, train=False))
    np.testing.assert_allclose(measured, m["kl"] - m["reconstruction"], rtol=1e-5)
    np.testing.assert_allclose(m["kl"], m["kl_2"] + m["kl_1"], rtol=1e-5)
    for step, weight in ((0, 0.0), (5, 0.5), (10, 1.0)):
        found, m = loss(Now(step, {}))
        np.testing.assert_allclose(found, weight * m["kl"] - m["reconstruction"], rtol=1e-5)
    free = build(replace(SMALL, free_bits=1e6), DATA)
    found, m = losses(free, params, batch, key)(Now(0, {}))
    np.testing.assert_allclose(found, 2e6 - m["reconstruction"], rtol=1e-6)


def test_levels_are_balanced_by_their_size_until_the_weight_of_the_kl_is_one(key):
    batch = DATA.train.fetch(np.arange(32))
    plain, balanced = (
        build(replace(SMALL, latents=(1, 3), kl_warmup=10, kl_balance=on), DATA)
        for on in (False, True)
    )
    assert balanced.sizes == (1, 3)
    params = noisy(key, plain.init(key)["params"])
    of_plain, of_balanced = (losses(s, params, batch, key) for s in (plain, balanced))
    _, m = of_plain(Now(5, {}))
    kl = np.array([m["kl_2"].mean(), m["kl_1"].mean()])
    weights = kl * [1, 3] / np.mean(kl * [1, 3])
    expected = weights[0] * m["kl_2"] + weights[1] * m["kl_1"]
    found, m = of_balanced(Now(5, {}))
    np.testing.assert_allclose(found, 0.5 * expected - m["reconstruction"], rtol=1e-4)
    for now in (Now(10, {}), Now(5, {}, train=False)):
        same = [loss(now)[0] for loss in (of_plain, of_balanced)]
        np.testing.assert_allclose(*same, rtol=1e-5)
    maps = build(replace(SMALL, **CONV | {"halvings": (2, 1)}, kl_warmup=1, kl_balance=True), DATA)
    assert maps.sizes == (4, 16)


def test_singular_values_are_added_in_training_alone_and_their_vectors_kept(key):
    batch = DATA.train.fetch(np.arange(8))
    plain, system = (build(replace(SMALL, spectral=w), DATA) for w in (0.0, 0.1))
    variables = system.init(key)
    memory = {"spectral": variables["spectral"]}
    regular, usual = (losses(s, variables["params"], batch, key) for s in (system, plain))
    for _ in range(2):
        found, aux = regular(Now(0, memory))
        memory = aux.memory
    expected, _ = usual(Now(0, {}))
    np.testing.assert_allclose(found, expected + 0.1 * aux.metrics["spectral"], rtol=1e-5)
    kernels = [w for w in jax.tree.leaves(variables["params"]) if w.ndim > 1]
    exact = sum(np.linalg.norm(w.reshape(-1, w.shape[-1]), 2) for w in kernels)
    assert 0.8 * exact < aux.metrics["spectral"] <= exact * 1.0001
    measured = Now(0, memory, train=False)
    np.testing.assert_allclose(regular(measured)[0], usual(measured)[0], rtol=1e-6)


def test_without_noise_every_sample_is_the_same(key):
    system = replace(build(SMALL, DATA), temperature=0.0)
    weights = SimpleNamespace(params=noisy(key, system.init(key)["params"]))
    x = system.sample(key, weights, {"label": np.zeros(3, int)})
    np.testing.assert_array_equal(x[0], x[1])
    warm = replace(system, temperature=1.0).sample(key, weights, {"label": np.zeros(3, int)})
    assert np.abs(warm[0] - warm[1]).max() > 0.01


@pytest.mark.parametrize(
    ("options", "names"),
    [
        ({"model": "conv", "halvings": (1, 2)}, "--halvings"),
        ({"model": "conv", "halvings": (1,)}, "--halvings"),
        ({"kl_balance": True}, "--kl-warmup"),
        ({"kl_balance": True, "kl_warmup": 5, "free_bits": 1.0}, "--free-bits"),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_name(options, names):
    with pytest.raises(ValueError, match=names):
        build(replace(SMALL, **options), DATA)


def test_levels_that_are_not_used_are_told_and_counted(key, capsys):
    """Without weights from x, q is p: nothing is used. With a shift of one latent, one is."""
    system = build(SMALL, DATA)
    params = jax.tree.map(jnp.zeros_like, system.init(key)["params"])
    weights = Weights(params, {})
    system.score(weights)
    assert "level 2, 1 is not used" in " ".join(capsys.readouterr().out.split())
    bias = params["level_1"]["below_net"]["layers_3"]["bias"].at[0].set(0.5)
    params["level_1"]["below_net"]["layers_3"]["bias"] = bias
    weights = Weights(params, {})
    system.score(weights)
    assert "level 2 is not used" in " ".join(capsys.readouterr().out.split())
    trained = SimpleNamespace(
        system=system,
        over=lambda name, function, rows, **_: function(weights, key, rows),
        once=lambda name, make: make(),
        test=lambda count: DATA.test.fetch(np.arange(50)),
        ema="EMA of step 3",
    )
    used = {number.name: number.value for number in use_of_latents(trained)}
    assert used == {"active_units_2": 0, "active_units_1": 1}
