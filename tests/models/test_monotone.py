import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.monotone import MonotoneLogSNR


@pytest.mark.parametrize(("top", "bottom"), [(13.3, -5.0), (6.0, -20.0)])
def test_it_starts_between_its_endpoints_falling_evenly(key, top, bottom):
    model, t = MonotoneLogSNR(top, bottom), jnp.linspace(0.0, 1.0, 11)
    got, variables = model.init_with_output(key, t)
    np.testing.assert_allclose([got[0], got[-1]], [top, bottom], atol=1e-3)
    np.testing.assert_allclose(got, top + (bottom - top) * t, atol=0.05 * (top - bottom))
    for index in (0, 5):  # times of any shape
        assert model.apply(variables, t[index]).shape == ()
        np.testing.assert_allclose(model.apply(variables, t[index]), got[index], rtol=1e-5)
    np.testing.assert_allclose(
        model.apply(variables, t[:10].reshape(5, 2)), got[:10].reshape(5, 2), rtol=1e-5, atol=1e-5
    )


def test_it_falls_everywhere_whatever_the_parameters(key):
    model, t = MonotoneLogSNR(hidden=16), jnp.linspace(0.0, 1.0, 101)
    shapes, tree = jax.tree.flatten(jax.eval_shape(model.init, key, t))

    @jax.jit
    def slopes_and_values(key):
        keys = jax.random.split(key, len(shapes))
        leaves = [2 * jax.random.normal(k, s.shape) for k, s in zip(keys, shapes, strict=True)]
        log_snr = lambda t: model.apply(jax.tree.unflatten(tree, leaves), t)
        return jax.vmap(jax.grad(log_snr))(t), log_snr(t)

    for seed in range(20):
        slopes, values = slopes_and_values(jax.random.key(seed))
        assert (slopes < 0).all()
        assert (np.diff(values) < 0).all()


def test_it_learns_the_cosine_schedule_and_its_endpoints(key):
    """log SNR = -2 log tan(pi t / 2), cut off at t = 0.05 and 0.95: from 5.1 down to -5.1."""
    model, t = MonotoneLogSNR(7.0, -7.0, hidden=64), jnp.linspace(0.0, 1.0, 64)
    want = -2 * jnp.log(jnp.tan(jnp.pi / 2 * (0.05 + 0.9 * t)))
    optimizer, params = optax.adam(2e-2), model.init(key, t)
    error = lambda params: jnp.mean((model.apply(params, t) - want) ** 2)

    def step(carry, _):
        params, state = carry
        updates, state = optimizer.update(jax.grad(error)(params), state)
        return (optax.apply_updates(params, updates), state), None

    train = lambda params: jax.lax.scan(step, (params, optimizer.init(params)), length=1500)[0][0]
    assert np.abs(model.apply(jax.jit(train)(params), t) - want).max() < 0.3
