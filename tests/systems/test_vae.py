"""The VAE of the options, held to log p(x) by quadrature over one latent."""

import itertools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.vae import DIGITS, build
from jaxgen.data.records import Arrays, Image
from jaxgen.data.sources import load
from jaxgen.losses import elbo
from jaxgen.runner import Mistake
from jaxgen.training.step import Now

SMALL = replace(DIGITS, latents=1, hidden=8, prior_components=5, channels=4, reach=1)
DATA = load("digits")
POSTERIORS = ("normal", "full", "planar", "householder", "iaf")
CELLS = [(q, "normal", "mlp") for q in POSTERIORS]
CELLS += [("normal", p, "mlp") for p in ("mixture", "vamp", "flow")] + [("iaf", "flow", "mlp")]
CELLS += [("normal", "normal", model) for model in ("made", "pixelcnn")]


def noisy(key, params):
    """Parameters with noise, so that no part is at its beginning."""
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(key, len(leaves))
    moved = [a + 0.1 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(tree, moved)


def system_and_params(key, **options):
    system = build(replace(SMALL, **options), DATA)
    return system, noisy(key, jax.jit(system.init)(key)["params"])


@pytest.mark.parametrize(("posterior", "prior", "model"), CELLS)
def test_log_p_of_every_posterior_and_prior_is_that_of_quadrature(key, posterior, prior, model):
    """And the bound is below it."""
    system, params = system_and_params(key, posterior=posterior, prior=prior, model=model)
    line = jnp.linspace(-15, 15, 3001)[:, None]

    @jax.jit
    def both(params, key):
        x, model = (
            system.prepare(key, DATA.test.fetch(np.arange(4))["x"]),
            system.model(params, None),
        )
        joint = jax.vmap(
            lambda z: elbo.log_joint(model.decode, x, model.prior)(z + jnp.zeros((4, 1)))
        )
        exact = jax.nn.logsumexp(joint(line[:, None]), axis=0) + jnp.log(0.01)
        encode, decode, p = model
        how = {"samples": 20_000, "chunk": 2000, "prior": p}
        found = elbo.importance_log_likelihood(key, encode, decode, x, **how)
        return exact, found, model.terms(key, x, 2000).elbo()

    exact, found, bound = both(params, key)
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert (bound < exact + 0.05).all()


NEUTRAL = {  # options that leave the ELBO what it is
    "free bits below the KL": {"free_bits": 1e-9},
    "no discrepancy": {"objective": "mmd", "mmd_weight": 0.0},
    "one sample of the importance-weighted bound": {"objective": "iwae"},
    "the end of the warm-up": {"kl_warmup": 10},
    "the top of a cycle": {"kl_cycles": 1},
}


@pytest.mark.parametrize("options", NEUTRAL.values(), ids=NEUTRAL)
def test_objectives_with_nothing_added_are_the_elbo(key, options):
    system, params = system_and_params(key)
    other, _ = system_and_params(key, **options)
    batch = DATA.train.fetch(np.arange(64))
    step = DIGITS.train.steps - 1
    loss = lambda s: lambda k: s.loss(params, batch, k, Now(step, {}))[0].mean()
    keys = jax.random.split(key, 500)
    wants, founds = (jax.jit(lambda k, s=s: jax.lax.map(loss(s), k))(keys) for s in (system, other))
    tolerance = 4 * np.hypot(np.std(wants), np.std(founds)) / np.sqrt(len(keys))
    assert abs(np.mean(wants) - np.mean(founds)) < tolerance + 1e-4


def test_the_total_correlation_of_one_latent_is_zero(key):
    """So that its weight does not matter."""
    batch, values = DATA.train.fetch(np.arange(64)), []
    for beta in (1.0, 9.0):
        system, params = system_and_params(key, objective="tc", beta=beta)
        values.append(system.loss(params, batch, key, Now(0, {}))[0])
    np.testing.assert_allclose(*values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"prior": "vamp", "posterior": "iaf"}, "use --posterior normal"),
        ({"objective": "iwae", "beta": 2.0}, "no KL to weigh"),
        ({"objective": "stl", "posterior": "planar"}, "use iwae"),
        ({"objective": "tc", "prior": "flow"}, "--prior normal"),
        ({"objective": "mmd", "free_bits": 1.0}, "--objective elbo"),
        ({"kl_warmup": 5, "kl_cycles": 2}, "leave out --kl-warmup"),
        ({"posterior": "norml"}, "did you mean normal"),
        ({"posterior": "committed", "prior": "flow"}, "use --prior normal"),
        ({"model": "made", "likelihood": "logistic_mixture"}, "use --likelihood logistic"),
    ],
)
def test_options_that_do_not_go_together_are_refused_with_advice(options, advice):
    with pytest.raises((ValueError, Mistake), match=advice):
        build(replace(SMALL, **options), DATA)


def test_a_model_that_is_told_the_class_is_another_model_for_each(key):
    """One image, ten classes: ten values, each that of quadrature over the latent."""
    system, params = system_and_params(key, conditional=True)
    line = jnp.linspace(-15, 15, 3001)[:, None, None]

    @jax.jit
    def both(params, key, labels):
        x = system.prepare(key, DATA.test.fetch(np.zeros(10, int))["x"])
        model = system.model(params, labels)
        joint = jax.vmap(lambda z: elbo.log_joint(model.decode, x)(jnp.broadcast_to(z, (10, 1))))
        exact = jax.nn.logsumexp(joint(line), axis=0) + jnp.log(0.01)
        how = {"samples": 20_000, "chunk": 2000}
        return exact, elbo.importance_log_likelihood(key, model.encode, model.decode, x, **how)

    exact, found = both(params, key, jnp.arange(10))
    np.testing.assert_allclose(found, exact, atol=0.1)
    assert np.std(exact) > 0.05
    assert system.labelled


def test_data_without_classes_cannot_be_conditional_nor_points_convolved():
    for options, advice in (
        ({"conditional": True}, "leave out --conditional"),
        ({"model": "pixelcnn"}, "use --model made"),
    ):
        with pytest.raises(ValueError, match=advice):
            build(replace(SMALL, **options), load("moons"))


def every_image(width):
    """All binary images of 1 x ``width`` pixels, as data."""
    x = np.array([*itertools.product([0, 1], repeat=width)], np.uint8).reshape(-1, 1, width, 1)
    rows = Arrays({"x": x, "label": np.zeros(len(x), np.int32)})
    return replace(DATA, kind=Image(x.shape[1:], 2), train=rows, validation=rows, test=rows)


def test_a_decoder_in_order_that_does_without_z_has_the_exact_likelihood(key):
    """Collapsed, q = p, both bounds are log p(x) in every draw, and over all x it sums to 1."""
    data = every_image(3)
    options = replace(SMALL, model="made", latents=2, latent_samples=3, objective="iwae")
    system = build(options, data)
    params = noisy(key, jax.jit(system.init)(key)["params"])
    silent = lambda tree: jax.tree.map(jnp.zeros_like, tree)
    made = params["decoder"]["MADE_0"]
    blind = {name: silent(w) if name.startswith("Dense") else w for name, w in made.items()}
    head = {"Dense_1": silent(params["encoder"]["Dense_1"])}
    collapsed = {"encoder": params["encoder"] | head, "decoder": {"MADE_0": blind}}
    batch = data.train.fetch(np.arange(8))

    @jax.jit
    def losses(params, key):
        return [system.loss(params, batch, key, Now(0, {}, train=t))[0] for t in (True, False)]

    found = [*losses(collapsed, key), *losses(collapsed, jax.random.key(1))]
    for nats in found[1:]:
        np.testing.assert_allclose(nats, found[0], rtol=1e-5)
    np.testing.assert_allclose(np.exp(-found[0]).sum(), 1, rtol=1e-5)
    assert np.std(found[0]) > 0.05
    one, other = (losses(params, k)[1] for k in jax.random.split(key))  # with z it is a bound
    assert not np.allclose(one, other, rtol=1e-3)


def test_draws_of_bits_are_likened_to_bits(key):
    """Of a decoder that draws entry by entry; means of independent bits are grey as data are."""
    for model, levels in (("mlp", None), ("made", 2)):
        seen = build(replace(DIGITS, model=model, hidden=8), DATA).likened().train.fetch(range(50))
        assert levels is None or len(np.unique(seen["x"])) == levels
        assert levels or len(np.unique(seen["x"])) > 2
