import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.mlp import TimeMLP


def test_it_starts_as_zero_and_learns_a_field_that_turns_with_time(key):
    """The field is R(2 pi t) x for one class and its mirror for the other; new points are tested,
    and a net that ignored the time, or the class, would keep an error of the field's own size.
    """

    def draw(key):
        keys = jax.random.split(key, 3)
        x, t = jax.random.normal(keys[0], (256, 2)), jax.random.uniform(keys[1], (256,))
        y = jax.random.randint(keys[2], (256,), 0, 2)
        cos, sin, sign = jnp.cos(2 * jnp.pi * t), jnp.sin(2 * jnp.pi * t), 1 - 2 * y
        turned = [cos * x[:, 0] - sin * x[:, 1], sin * x[:, 0] + cos * x[:, 1]]
        return (x, t, y), sign[:, None] * jnp.stack(turned, axis=1)

    model, optimizer = TimeMLP(width=32, depth=2, num_classes=2), optax.adam(5e-3)

    def error(params, key):
        inputs, field = draw(key)
        return jnp.mean((model.apply(params, *inputs) - field) ** 2)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(error)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    inputs, _ = draw(key)
    start, params = model.init_with_output(key, *inputs)
    np.testing.assert_array_equal(start, np.zeros((256, 2)))
    keys = jax.random.split(key, 600)
    train = jax.jit(lambda params: jax.lax.scan(step, (params, optimizer.init(params)), keys)[0][0])
    assert error(train(params), jax.random.key(1)) < 0.05


def test_examples_do_not_mix_in_many_dimensions(key, randomized):
    model, x, t = TimeMLP(width=16), jax.random.normal(key, (3, 64)), jnp.array([0.0, 0.5, 1.0])
    variables = randomized(key, model, x, t)
    out = model.apply(variables, x, t)
    assert out.shape == x.shape
    for changed in [(x.at[1].add(1), t), (x, t.at[1].add(0.1))]:
        moved = np.abs(model.apply(variables, *changed) - out).max(axis=1)
        assert moved[1] > 1e-4
        assert moved[0] == moved[2] == 0


def test_impossible_shapes_are_refused(key):
    with pytest.raises(ValueError, match=r"x must be \[B, D\] and t \[B\]"):
        TimeMLP().init(key, jnp.zeros((2, 3, 1)), jnp.zeros(2))
    with pytest.raises(ValueError, match=r"x must be \[B, D\] and t \[B\]"):
        TimeMLP().init(key, jnp.zeros((2, 3)), jnp.zeros(()))
    with pytest.raises(ValueError, match="labels"):
        TimeMLP().init(key, jnp.zeros((2, 3)), jnp.zeros(2), jnp.zeros(2, int))
