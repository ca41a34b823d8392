"""Flows and each of their layers: volumes by the Jacobian, inverses, mass by quadrature."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.bijections import affine, spline
from jaxgen.distributions import sum_event
from jaxgen.models import flow
from jaxgen.models.blocks import squeeze, unsqueeze

IMAGE, POINT = (4, 4, 2), (3,)
CONV, DENSE = partial(flow.ConvNet, width=4), partial(flow.perceptron, width=6, depth=1)
KNOWN = {
    "first half": flow.first_half,
    "second half": flow.second_half,
    "even squares": flow.even_squares,
    "odd squares": flow.odd_squares,
}
CASES = {  # layer, shape of an example, features of its context
    "actnorm of points": (flow.ActNorm, POINT, 0),
    "actnorm": (flow.ActNorm, IMAGE, 0),
    "mixing of points": (flow.Mixing, POINT, 0),
    "mixing": (flow.Mixing, IMAGE, 0),
    "affine coupling of points": (lambda: flow.Coupling(affine(), DENSE), POINT, 0),
    "spline coupling of points": (lambda: flow.Coupling(spline(4), DENSE), POINT, 0),
    "spline coupling, told": (lambda: flow.Coupling(spline(4), CONV), IMAGE, 3),
    **{
        f"coupling of the {name}": (
            lambda known=known: flow.Coupling(affine(), CONV, known),
            IMAGE,
            0,
        )
        for name, known in KNOWN.items()
    },
    "squeezed, told": (lambda: flow.Squeezed(flow.Coupling(affine(), CONV)), IMAGE, 3),
    "on half": (lambda: flow.OnHalf(flow.Mixing()), IMAGE, 0),
    "realnvp of points": (lambda: flow.Chain(flow.alternating(3, affine(), DENSE)), POINT, 0),
    "spline flow of points": (lambda: flow.Chain(flow.steps(2, spline(4), DENSE)), POINT, 0),
    "realnvp": (lambda: flow.realnvp(2, 2, affine(), CONV), IMAGE, 0),
    "glow": (lambda: flow.glow(2, 1, affine(), CONV), IMAGE, 0),
    "spline flow": (lambda: flow.glow(2, 1, spline(4), CONV), IMAGE, 0),
}


def near(key, layer, x, context=None):
    """Variables of a layer: those of its initialization by x, moved at random."""
    leaves, tree = jax.tree.flatten(layer.init(key, x, context, method="forward"))
    noise = np.random.default_rng(0).standard_normal
    return jax.tree.unflatten(tree, [a + jnp.float32(0.2 * noise(a.shape)) for a in leaves])


@pytest.mark.parametrize("name", CASES)
def test_the_volume_is_that_of_the_jacobian_and_the_inverse_is_exact(key, name):
    make, shape, features = CASES[name]
    layer, x = make(), jax.random.normal(key, (3, *shape))
    context = jnp.cos(jnp.arange(3 * 16 * features).reshape(3, 4, 4, features) * 1.0)
    context = context if features else None
    variables = near(key, layer, x, context)

    @jax.jit
    def found(variables, x):
        z, log_det = layer.apply(variables, x, context, method="forward")

        def one(row, told):
            row = row.reshape(1, *shape)
            told = None if told is None else told[None]
            return layer.apply(variables, row, told, method="forward")[0].ravel()

        jacobian = jax.vmap(jax.jacfwd(one))(x.reshape(3, -1), context)
        return z, log_det, jacobian, layer.apply(variables, z, context, method="inverse")

    z, log_det, jacobian, again = found(variables, x)
    assert z.shape == x.shape
    want = np.linalg.slogdet(np.asarray(jacobian, np.float64)).logabsdet
    np.testing.assert_allclose(log_det, want, atol=2e-4)
    # The rounding of z comes back as many times as large as the map makes its shortest way shorter.
    shortest = np.linalg.svd(np.asarray(jacobian, np.float64), compute_uv=False)[:, -1]
    error = np.abs(again - x).reshape(3, -1).max(axis=1)
    assert (error <= 1e-5 / np.minimum(shortest, 1)).all(), (error, shortest)
    assert np.abs(z - x).max() > 0.05
    if "coupling" in name and not features:  # what is known stays; the rest moves by itself
        known = np.broadcast_to(layer.known(shape), shape).ravel()
        for j in np.asarray(jacobian):
            np.testing.assert_array_equal(j[known], np.eye(len(known))[known])
            of_rest = j[~known][:, ~known]
            np.testing.assert_array_equal(of_rest, np.diag(np.diag(of_rest)))


def test_actnorms_leave_the_first_batch_with_mean_0_and_std_1(key):
    """Each layer's by what the layers before it made of the batch."""
    x = 3 * jax.random.normal(key, (64, 4, 4, 2)) ** 3 + 5
    layer = flow.Chain(
        [flow.ActNorm(), flow.Mixing(), flow.Coupling(affine(), CONV), flow.ActNorm()]
    )
    z, _ = layer.init_with_output(key, x, method="forward")[0]
    np.testing.assert_allclose(z.mean(axis=(0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(z.std(axis=(0, 1, 2)), 1, atol=1e-5)


@pytest.mark.parametrize("bijection", [affine(), spline(4)], ids=["affine", "spline"])
def test_a_flow_in_the_plane_has_the_mass_1(key, bijection):
    layer, x = flow.Chain(flow.steps(2, bijection, DENSE)), jax.random.normal(key, (64, 2))
    variables = near(key, layer, x)
    side = np.linspace(-10, 10, 500, endpoint=False, dtype=np.float32)
    grid = jnp.asarray(np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2))
    log_p = jax.jit(partial(layer.apply, method="log_prob"))(variables, grid)
    p = np.exp(np.asarray(log_p, np.float64))
    np.testing.assert_allclose(p.sum() * 0.04**2, 1, atol=2e-3)
    assert p.reshape(500, 500)[0].max() < 1e-6  # nothing of it is beyond the grid


def test_far_away_and_with_huge_weights_nothing_overflows(key):
    layer, x = flow.Chain(flow.steps(2, spline(4), DENSE)), jax.random.normal(key, (8, 2))
    variables = near(key, layer, x)
    loss = lambda v, x: layer.apply(v, x, method="log_prob").sum()
    slopes = jax.jit(jax.value_and_grad(loss))
    large = jax.tree.map_with_path(
        lambda path, a: 100 * a if "MLP_0" in jax.tree_util.keystr(path) else a, variables
    )
    for v, at in ((variables, 1e4 * x), (large, x)):
        value, slope = slopes(v, at)
        assert np.isfinite(value)
        assert all(np.isfinite(a).all() for a in jax.tree.leaves(slope))


def test_the_density_of_dequantization_noise_is_that_of_its_jacobian(key, randomized):
    q, shape = flow.Dequantizer(4, 1), (2, 2, 1)
    eps, x = jax.random.normal(key, (3, *shape)), jnp.linspace(-1, 1, 12).reshape(3, *shape)
    variables = randomized(key, q, eps, x)

    @jax.jit
    def found(variables, eps):
        one = lambda e, x: q.apply(variables, e.reshape(1, *shape), x[None])[0].ravel()
        return q.apply(variables, eps, x), jax.vmap(jax.jacfwd(one))(eps.reshape(3, -1), x)

    (u, log_q), jacobian = found(variables, eps)
    volume = np.linalg.slogdet(np.asarray(jacobian, np.float64)).logabsdet
    want = -0.5 * np.asarray(sum_event(eps**2)) - 2 * np.log(2 * np.pi) - volume
    np.testing.assert_allclose(log_q, want, atol=1e-4)
    assert ((u > 0) & (u < 1)).all()
    assert np.isfinite(q.apply(variables, 1e3 * eps, x)[1]).all()


def test_squares_of_pixels_become_channels_and_odd_sides_are_refused():
    x = jnp.arange(2 * 4 * 6 * 3).reshape(2, 4, 6, 3)
    y = squeeze(x)
    np.testing.assert_array_equal(y[1, 1, 2].reshape(2, 2, 3), x[1, 2:4, 4:6])
    np.testing.assert_array_equal(unsqueeze(y), x)
    with pytest.raises(ValueError, match="fewer --levels"):
        squeeze(x[:, :3])
