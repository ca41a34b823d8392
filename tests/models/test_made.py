import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.models.made import MADE


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize(("entries", "backward"), [(1, False), (5, False), (5, True)])
def test_an_entry_depends_on_all_before_it_and_on_nothing_else(
    key, randomized, entries, direct, backward
):
    made = MADE(2, hidden=40, backward=backward, direct=direct)
    x, context = jax.random.normal(key, (1, entries)), jnp.ones((1, 3))
    variables = randomized(key, made, x, context)
    jacobian = jax.jacobian(lambda x: made.apply(variables, x, context)[0])(x)[:, :, 0]  # [D, 2, D]
    before = np.tril(np.ones((entries, entries)), -1)
    before = before[::-1, ::-1] if backward else before
    for i in range(2):
        np.testing.assert_array_equal(jacobian[:, i] != 0, before != 0)
    by_context = jax.jacobian(lambda c: made.apply(variables, x, c)[0])(context)
    assert (by_context != 0).all()
