"""Named conditions with declared nulls, from a batch to a denoiser with guidance."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen.data.records import Arrays, DataSet, Points
from jaxgen.diffusion.process import standard_normal
from jaxgen.diffusion.samplers import ancestral, ddim
from jaxgen.diffusion.schedules import FlowMatching, uniform_grid
from jaxgen.runner import Frozen, Mistake, Weights
from jaxgen.systems.conditions import Condition, dropped, label, nulled, selected
from jaxgen.systems.denoising import Denoising
from jaxgen.systems.diffusion import Diffusion
from jaxgen.systems.objectives import weighted
from jaxgen.training.step import Now

N = 4000
# A label, a vector, a sequence with its mask, a picture, and a size, which is never dropped.
DECLARED = (
    label(3),
    Condition("vector", (2,), null=0.0),
    Condition("text", (4,), jnp.int32),
    Condition("mask", (4,), bool, null=False),
    Condition("picture", (2, 2, 1), null=-1.0),
    Condition("size", (), jnp.int32),
)
GIVEN = {
    "label": np.arange(N, dtype=np.int32) % 3,
    "vector": np.ones((N, 2), np.float32),
    "text": np.ones((N, 4), np.int32),
    "mask": np.ones((N, 4), bool),
    "picture": np.ones((N, 2, 2, 1), np.float32),
    "size": np.full(N, 5, np.int32),
    "x": np.zeros((N, 1), np.float32),
}
NULLS = {"label": 3, "vector": 0, "mask": False, "picture": -1}


def test_nulls_take_the_place_of_what_has_one_and_keep_its_type():
    null = nulled(DECLARED, selected(DECLARED, GIVEN))
    assert null.keys() == {c.name for c in DECLARED}
    for name, x in null.items():
        assert (x.shape, x.dtype) == (GIVEN[name].shape, GIVEN[name].dtype)
        want = NULLS.get(name)
        np.testing.assert_array_equal(x, GIVEN[name] if want is None else np.full_like(x, want))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_conditions_of_an_example_are_dropped_together_and_by_chance(share):
    own = selected(DECLARED, GIVEN)
    found = jax.device_get(dropped(jax.random.key(0), DECLARED, own, share))
    gone = {n: np.asarray(found[n] == NULLS[n]).reshape(N, -1).all(1) for n in NULLS}
    for name in NULLS:
        np.testing.assert_array_equal(gone[name], gone["label"])
        kept = ~gone[name]
        np.testing.assert_array_equal(found[name][kept], GIVEN[name][kept])
    assert abs(gone["label"].mean() - share) < 0.025
    for name in ("text", "size"):
        np.testing.assert_array_equal(found[name], GIVEN[name])


def test_a_condition_that_is_lacking_is_named():
    with pytest.raises(ValueError, match="conditioned on picture, and there are only label, x"):
        selected((label(3), Condition("picture")), {"label": 0, "x": 1})


class Told(nn.Module):
    """Predicts what it is told: a number of each condition, all of them added."""

    @nn.compact
    def __call__(self, x, t, labels, vector, *, train=False):
        scale = self.param("scale", nn.initializers.ones, ())
        noise = self.make_rng("dropout") if train else None
        dropped_out = 0.0 if noise is None else 100.0
        return scale * (labels[:, None] + vector.sum(1, keepdims=True)) + dropped_out + 0 * x


OWN = (label(3), Condition("vector", (2,), null=0.0))


def system_of(**how):
    source = Arrays({n: GIVEN[n] for n in ("x", "label", "vector")})
    ask = lambda n: {k: GIVEN[k][:n] for k in ("label", "vector")}
    data = DataSet("told", Points((1,)), source, source, source, ask=ask, classes=3)
    flow = FlowMatching()
    network = Denoising(Told(), (1,), OWN, how.pop("dropped", 0.0), **how.pop("net", {}))
    objective = weighted(flow, "x_0", None, lambda network: network)
    return Diffusion(
        data, optax.sgd(0.1), network, flow, objective, ddim(), uniform_grid(3), "x_0", **how
    )


WEIGHTS = Weights({"scale": jnp.ones(())}, {})


@pytest.mark.parametrize("w", [-1.0, 0.0, 0.5, 2.0])
def test_guidance_extrapolates_from_the_null_to_the_conditions(w):
    """x_0 = label + 2 of the conditions, 3 of their nulls; DDIM ends in the guided x_0."""
    system = system_of(guidance=w, dropped=0.1)
    given = {name: GIVEN[name][:6] for name in ("label", "vector")}
    x = system.sample(jax.random.key(0), WEIGHTS, given)
    conditional = GIVEN["label"][:6] + 2.0
    np.testing.assert_allclose(x[:, 0], conditional + w * (conditional - 3), atol=1e-5)
    # one weight each, in place of the system's
    each = np.linspace(0, 1, 6, dtype=np.float32)
    x = system.sample(jax.random.key(0), WEIGHTS, {**given, "guidance": each})
    np.testing.assert_allclose(x[:, 0], conditional + each * (conditional - 3), atol=1e-5)


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_training_drops_conditions_and_has_dropout_and_measuring_has_neither(share):
    """The error at x_0 = 0 is the square of what the network is told, plus 100 in training."""
    system = system_of(dropped=share)
    batch = {name: GIVEN[name] for name in ("x", "label", "vector")}
    loss = lambda train: system.loss(
        WEIGHTS.params, batch, jax.random.key(0), Now(0, {}, train=train)
    )[0]
    measured, trained = loss(False), np.sqrt(loss(True)) - 100
    np.testing.assert_allclose(measured, (GIVEN["label"] + 2.0) ** 2, rtol=1e-5)
    null = np.abs(trained - 3) < 1e-3
    np.testing.assert_allclose(trained[~null], GIVEN["label"][~null] + 2.0, atol=1e-3)
    thirds = GIVEN["label"] == 1  # of whom the conditions tell 3 as the nulls do
    assert abs(null[~thirds].mean() - share) < 0.03


def test_a_frozen_encoder_stands_between_the_conditions_and_the_network():
    tripled = Frozen(lambda k, given: {**given, "vector": k * given["vector"]}, jnp.float32(3))
    system = system_of(net={"embed": tripled})
    given = {name: GIVEN[name][:6] for name in ("label", "vector")}
    x = system.sample(jax.random.key(0), WEIGHTS, given)
    np.testing.assert_allclose(x[:, 0], GIVEN["label"][:6] + 6.0, atol=1e-5)


class Halved:
    def encode(self, key, x):
        return x / 2

    def decode(self, z):
        return 2 * z


def test_diffusion_in_another_space_encodes_data_and_decodes_samples():
    system = system_of(space=Halved())
    given = {name: GIVEN[name][:6] for name in ("label", "vector")}
    x = system.sample(jax.random.key(0), WEIGHTS, given)
    np.testing.assert_allclose(x[:, 0], 2 * (GIVEN["label"][:6] + 2.0), atol=1e-5)
    batch = {"x": np.full((6, 1), 8.0, np.float32), **given}
    values, _ = system.loss(WEIGHTS.params, batch, jax.random.key(0), Now(0, {}, train=False))
    np.testing.assert_allclose(values, (GIVEN["label"][:6] + 2.0 - 4) ** 2, rtol=1e-5)


def test_noise_is_drawn_for_the_batch_and_for_the_conditions():
    """Of a mask that comes with them: none where it is false."""
    masked = lambda given: lambda key, x: standard_normal(key, x) * given["vector"][:, :1]
    system = system_of(noise=masked)
    off = np.zeros((6, 2), np.float32)
    given = {"label": GIVEN["label"][:6], "vector": off}
    assert not np.any(system.start(jax.random.key(0), given))
    on = system.start(jax.random.key(0), {**given, "vector": off + 1})
    assert np.abs(on).min() > 0
    # in the steps, too, of which the last leaves some
    noisy = replace(system, solver=ancestral(), times=uniform_grid(3, last=0.2))
    of = lambda vector: [
        noisy.sample(jax.random.key(i), WEIGHTS, {**given, "vector": vector}) for i in range(2)
    ]
    np.testing.assert_array_equal(*of(off))
    a, b = of(off + 1)
    assert np.abs(a - b).min() > 0
    blind = replace(system, objective=lambda key, network, x_0, noise: (key, noise(key, x_0)[:, 0]))
    values, _ = blind.loss(
        WEIGHTS.params, {"x": np.zeros((6, 1)), **given}, jax.random.key(0), Now(0, {})
    )
    assert not np.any(values)


def test_guidance_without_nulls_and_densities_of_other_noise_are_not_made_up():
    given = {name: GIVEN[name][:6] for name in ("label", "vector")}
    each = np.ones(6, np.float32)
    with pytest.raises(Mistake, match="a network whose conditions were dropped in training"):
        system_of().sample(jax.random.key(0), WEIGHTS, {**given, "guidance": each})
    assert system_of().has_density
    assert not system_of(space=Halved()).has_density
    assert not system_of(noise=lambda batch: standard_normal).has_density
