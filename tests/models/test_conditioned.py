"""Conditions of every kind, in every network of noisy data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxgen.models.conditioned import AttentionPooling, Conditioned
from jaxgen.models.dit import DiT
from jaxgen.models.mlp import TimeMLP
from jaxgen.models.unet import UNet
from jaxgen.systems.conditions import Condition, label
from jaxgen.systems.denoising import Denoising

WIDTH, B, L = 8, 3, 5
RNG = np.random.default_rng(0)
COMMON = {"num_classes": 4, "condition_dim": WIDTH, "out_channels": 1}
NETWORKS = {
    "unet": (UNet(8, (1, 1), 1, (), groups=4, **COMMON), (4, 4, 1)),
    "dit": (DiT(2, 8, 1, 2, **COMMON), (4, 4, 1)),
    "mlp": (TimeMLP(8, 1, **{**COMMON, "out_channels": 2}), (2,)),
}
GIVEN = {
    "label": RNG.integers(0, 3, B).astype(np.int32),
    "vector": RNG.normal(size=(B, 6)).astype(np.float32),
    "sequence": RNG.normal(size=(B, L, 7)).astype(np.float32),
    "mask": np.arange(L)[None] < np.array([2, 5, 0])[:, None],
    "size": np.array([[4, 9], [1, 2], [7, 7]], np.int32),
    "picture": RNG.normal(size=(B, 2, 2, 1)).astype(np.float32),
}
DECLARED = {
    "label": label(3),
    "vector": Condition("vector", (6,), null=0.0),
    "sequence": Condition("sequence", (L, 7)),
    "mask": Condition("mask", (L,), bool, null=False),
    "size": Condition("size", (2,), jnp.int32),
    "picture": Condition("picture", (2, 2, 1), null=0.0),
}


@pytest.fixture(scope="module", params=NETWORKS)
def predict(request):
    """conditions -> prediction ``[B, ...]`` by a network with random weights."""
    module, shape = NETWORKS[request.param]
    names = [name for name in DECLARED if len(shape) == 3 or name != "picture"]
    network = Denoising(Conditioned(module, WIDTH), shape, tuple(DECLARED[n] for n in names), 0.1)
    params = network.init(jax.random.key(0))["params"]
    leaves, tree = jax.tree.flatten(params)
    params = jax.tree.unflatten(tree, [RNG.normal(size=x.shape) * 0.5 for x in leaves])
    params = jax.tree.map(jnp.float32, params)
    x, t = jnp.asarray(RNG.normal(size=(B, *shape)), jnp.float32), jnp.full(B, 0.3)
    run = jax.jit(lambda given: network.given(params, given)(x, t))
    return (
        lambda **changes: run({name: {**GIVEN, **changes}[name] for name in names}),
        names,
        network,
    )


def test_every_condition_is_seen_by_its_own_example_alone(predict):
    run, names, _ = predict
    before = run()
    for name in set(names) - {"mask"}:
        other = GIVEN[name].copy()
        other[1] += 1
        apart = np.abs(np.asarray(run(**{name: other}) - before)).reshape(B, -1).max(axis=1)
        assert apart[1] > 1e-4, name
        np.testing.assert_array_equal(apart[[0, 2]], 0, err_msg=name)


def test_what_a_mask_leaves_out_changes_no_bit_and_the_order_no_more_than_rounding(predict):
    run, _, _ = predict
    noise = np.where(GIVEN["mask"][..., None], GIVEN["sequence"], 99.0)
    np.testing.assert_array_equal(run(sequence=noise), run())
    order = RNG.permutation(L)
    turned = {name: GIVEN[name][:, order] for name in ("sequence", "mask")}
    np.testing.assert_allclose(run(**turned), run(), atol=1e-5)
    hidden = run(mask=np.zeros_like(GIVEN["mask"]))
    assert np.isfinite(hidden).all()
    np.testing.assert_array_equal(hidden[2], run()[2])  # which had none
    assert np.abs(hidden[1] - run()[1]).max() > 1e-4


def test_nulls_of_all_conditions_tell_nothing_of_them(predict):
    run, names, network = predict
    own = {name: GIVEN[name] for name in names}
    other = {n: x if n in ("size", "mask") else x[::-1].copy() for n, x in own.items()}
    nulls = [network.null(given) for given in (own, other)]
    np.testing.assert_array_equal(run(**nulls[0]), run(**nulls[1]))


def test_a_picture_is_resized_to_what_is_diffused(predict):
    run, names, _ = predict
    if "picture" not in names:
        pytest.skip("points have no pictures beside them")
    doubled = GIVEN["picture"].repeat(2, axis=1).repeat(2, axis=2)
    np.testing.assert_array_equal(run(picture=doubled), run())


def test_pooling_is_the_mean_of_values_where_scores_are_equal():
    x, mask = RNG.normal(size=(B, L, 4)).astype(np.float32), GIVEN["mask"]
    params = {"Dense_0": {"kernel": jnp.zeros((4, 1))}, "Dense_1": {"kernel": jnp.eye(4)}}
    found = AttentionPooling(4).apply({"params": params}, x, mask)
    want = [x[i][mask[i]].mean(axis=0) if mask[i].any() else np.zeros(4) for i in range(B)]
    np.testing.assert_allclose(found, want, atol=1e-6)


def test_a_sequence_without_its_mask_is_refused():
    module = Conditioned(TimeMLP(8, 1, condition_dim=WIDTH), WIDTH)
    with pytest.raises(ValueError, match="a sequence comes with a mask"):
        module.init(
            jax.random.key(0), jnp.zeros((1, 2)), jnp.zeros(1), sequence=jnp.zeros((1, 2, 3))
        )


def test_without_conditions_it_is_the_network_itself():
    inner = TimeMLP(8, 1)
    x, t = jnp.ones((2, 2)), jnp.ones(2)
    params = Conditioned(inner).init(jax.random.key(0), x, t)["params"]
    assert isinstance(inner, nn.Module)
    assert params.keys() == {"network"}
