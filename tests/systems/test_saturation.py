"""Where the discriminator is sure: which generator still has a gradient to follow."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from experiments.gan import POINTS, build
from jaxgen.data.sources import load
from jaxgen.runner.building import begin
from jaxgen.training.step import Now

SURE = np.arange(0, 17, 2.0)  # a: samples have logits of nearly -a


def test_minimax_fades_where_the_discriminator_is_sure_and_log_d_does_not():
    """d log(1 - sigmoid(l)) / dl = -sigmoid(l), and d -log sigmoid(l) / dl = -sigmoid(-l): at
    l = -a the first falls as exp(-a), the second comes to -1; what the chain rule appends to both
    is one and the same.

    The discriminator's last layer is scaled down, so that all logits are its bias -a within 0.01,
    while their slopes are the same whatever a is.
    """
    data = load("8gaussians")
    systems = [
        build(replace(POINTS, channels=8, objective=objective), data)
        for objective in ("minimax", "non_saturating")
    ]
    state = begin(systems[0], jax.random.key(0))
    batch = jax.tree.map(jnp.asarray, data.train.fetch(np.arange(32)))
    start, judge = state["generator"], state["discriminator"]

    @jax.jit
    @jax.vmap
    def seen(a):
        """The loss of each generator, and its gradient."""
        kernel = 1e-3 * judge.params["head"]["Dense_0"]["kernel"]
        head = {"Dense_0": {"kernel": kernel, "bias": jnp.full((1,), -a)}}
        sure = replace(judge, params={**judge.params, "head": head})
        now = Now(jnp.int32(0), start.memory, {"generator": start, "discriminator": sure})
        found = []
        for system in systems:
            _, generator = system.turns()
            loss = lambda params, turn=generator: turn.loss(params, batch, key, now)[0].mean()
            found.append(jax.value_and_grad(loss)(start.params))
        return found

    key = jax.random.key(1)
    found = seen(jnp.asarray(SURE, jnp.float32))
    np.testing.assert_allclose(found[0][0], -np.log1p(np.exp(-SURE)), rtol=0.02)  # log(1 - D)
    minimax, log_d = (
        np.sqrt(sum(np.square(g, dtype=np.float64).reshape(len(SURE), -1).sum(1) for g in leaves))
        for leaves in (jax.tree.leaves(slopes) for _, slopes in found)
    )
    np.testing.assert_allclose(minimax / log_d, np.exp(-SURE), rtol=0.02)
    np.testing.assert_allclose(log_d / log_d[-1], 1 / (1 + np.exp(-SURE)), rtol=0.02)
    assert minimax[-1] < 1e-6 * minimax[0]
