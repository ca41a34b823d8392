"""Growth: what is faded in changes nothing at first, and every stage answers in one shape."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.models.equalized import convolved
from jaxgen.models.progressive import (
    Body,
    Generator,
    averaged,
    grown,
    map_sizes,
    map_widths,
    padded,
    repeated,
)

SHAPE = (12, 7, 2)  # maps of 3x2, 6x4 and 12x8, of which one column is cropped
STAGES = 3
RNG = np.random.default_rng(0)
ALPHAS = np.array([0.0, 0.3, 1.0], np.float32)
NETWORKS = {
    "generator": lambda stage: Generator(SHAPE, stage, channels=4, widest=12),
    "body": lambda stage: Body(stage, channels=4, widest=12),
}
INPUTS = {
    "generator": RNG.normal(size=(4, 5)).astype(np.float32),
    "body": RNG.normal(size=(4, *SHAPE)).astype(np.float32),
}
OTHER = INPUTS["body"].copy()
OTHER[:, 0, 0] += 1
OTHER[:, 2, 2] -= 1  # of the same square of 4x4, and of another of 2x2


def drawn(model, inputs, *labels):
    """Parameters from N(0, 1), as they are at first, and the biases too."""
    shapes = jax.eval_shape(
        lambda: model.init(jax.random.key(0), inputs, *labels, train=False)["params"]
    )
    return jax.tree.map(lambda p: jnp.asarray(RNG.normal(size=p.shape), p.dtype), shapes)


@pytest.fixture(scope="module")
def stages():
    """Of both networks, at every stage: parameters, answers at three alphas, and their gradient."""
    found = {}
    for name, network in NETWORKS.items():
        params = {}
        for stage in range(STAGES):
            model = network(stage)
            params = grown(params, drawn(model, INPUTS[name]))

            @jax.jit
            @partial(jax.grad, has_aux=True)
            def everything(params, alpha, x, model=model):
                variables = {"params": params, "growth": {"alpha": alpha}}
                answer = model.apply(variables, x, train=True)
                return jnp.sum(jnp.sin(answer)), answer

            over = [everything(params, alpha, INPUTS[name]) for alpha in ALPHAS]
            slopes, answers = jax.tree.map(lambda *each: np.stack(each), *over)
            found[name, stage] = params, answers, slopes
            if name == "body":
                _, found["other", stage] = everything(params, ALPHAS[-1], OTHER)
    return found


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stage", range(STAGES - 1))
def test_a_stage_begins_as_the_one_before_ended(stages, name, stage):
    (_, before, _), (_, after, _) = stages[name, stage], stages[name, stage + 1]
    scale = np.abs(before).max()
    np.testing.assert_allclose(after[0], before[-1], atol=1e-6 * scale)
    assert np.abs(after[-1] - before[-1]).max() > 0.01 * scale


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stage", range(1, STAGES))
def test_new_layers_are_heard_when_alpha_is_above_zero(stages, name, stage):
    """And old ones until it is 1: by the gradients of all their weights."""
    params, _, slopes = stages[name, stage]
    new = params.keys() - stages[name, stage - 1][0].keys()
    size = map_sizes(SHAPE)[stage][0]
    rgb = "to_rgb" if name == "generator" else "from_rgb"
    assert new == {f"block_{size}", f"{rgb}_{size}"}
    for layer in new:
        for leaf in jax.tree.leaves(slopes[layer]):
            np.testing.assert_array_equal(leaf[0], 0)
            assert (np.abs(leaf[1:]).reshape(2, -1).max(axis=1) > 0).all()
    (faded,) = {key for key in params if rgb in key} - new
    for leaf in jax.tree.leaves(slopes[faded]):
        assert (np.abs(leaf[:2]).reshape(2, -1).max(axis=1) > 0).all()
        np.testing.assert_array_equal(leaf[2], 0)


@pytest.mark.parametrize("name", NETWORKS)
def test_without_a_word_of_alpha_a_stage_is_all_there(key, name):
    model = NETWORKS[name](STAGES - 1)
    growth = jax.jit(lambda: model.init(key, INPUTS[name], train=False)["growth"])()
    assert growth == {"alpha": 1}


def test_images_are_affine_in_alpha(stages):
    for stage in range(1, STAGES):
        _, (x0, x, x1), _ = stages["generator", stage]
        np.testing.assert_allclose(x, 0.7 * x0 + 0.3 * x1, atol=1e-5 * np.abs(x).max())


def test_at_an_early_stage_images_are_of_few_pixels(stages):
    for stage in range(STAGES):
        _, answers, _ = stages["generator", stage]
        assert answers.shape == (3, 4, *SHAPE)
        side = 2 ** (STAGES - 1 - stage)
        few = answers[:, :, ::side, ::side]
        want = np.repeat(np.repeat(few, side, axis=2), side, axis=3)[:, :, :12, :7]
        np.testing.assert_array_equal(answers, want)
        finer = few[:, :, 0::2] - few[:, :, 1::2] if stage else np.ones(1)
        assert np.abs(finer).max() > 1e-3


def test_a_body_sees_means_of_the_squares_of_its_stage(stages):
    """A difference within a square of 4x4 is seen by no stage but those of smaller squares."""
    for stage in range(STAGES):
        _, answers, _ = stages["body", stage]
        assert answers.shape == (3, 4, 12)
        assert np.allclose(stages["other", stage], answers[-1], atol=1e-5) == (stage == 0)


def test_what_a_generator_repeats_a_body_averages_back():
    x = RNG.normal(size=(2, 3, 2, 2)).astype(np.float32)
    whole = np.asarray(repeated(x, 4))
    np.testing.assert_array_equal(whole, np.kron(x, np.ones((1, 4, 4, 1))))
    cropped = whole[:, : SHAPE[0], : SHAPE[1]]
    np.testing.assert_allclose(averaged(padded(cropped, (12, 8)), 4), x, rtol=1e-6)


@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ((28, 28, 1), [(4, 4), (8, 8), (16, 16), (32, 32)]),
        ((8, 5, 1), [(4, 3), (8, 6)]),
        ((3, 2, 1), [(3, 2)]),
    ],
)
def test_maps_double_up_to_images_of_any_size(key, shape, sizes):
    assert map_sizes(shape) == sizes
    z, x = jnp.zeros((2, 6)), jnp.zeros((2, *shape))
    for stage in range(len(sizes)):
        of = lambda model, v: jax.eval_shape(
            lambda v: model.init_with_output(key, v, train=False)[0], v
        )
        assert of(Generator(shape, stage, 4, 8), z).shape == (2, *shape)
        assert of(Body(stage, 4, 8), x).shape == (2, min(4 * 2 ** (len(sizes) - 1), 8))
    for stage in (-1, len(sizes)):
        with pytest.raises(ValueError, match="stage"):
            of(Generator(shape, stage, 4, 8), z)
        with pytest.raises(ValueError, match="stage"):
            of(Body(stage, 4, 8), x)


def test_it_is_as_large_as_in_table_2(key):
    """Karras et al. 2018, table 2: parameters by layer, 23.1 million in both networks."""
    widths = [512, 512, 512, 512, 256, 128, 64, 32, 16]
    assert map_widths(9, 16, 512) == widths
    count = lambda tree: sum(leaf.size for leaf in jax.tree.leaves(tree))
    of = lambda model, v: jax.eval_shape(lambda: model.init(key, v, train=False))["params"]
    g = of(Generator((1024, 1024, 3), 8), jnp.zeros((1, 512)))
    d = of(Body(8), jnp.zeros((1, 1024, 1024, 3)))
    logit = 513
    assert round(count(g) / 1e6, 1) == 23.1
    assert round((count(d) + logit) / 1e6, 1) == 23.1
    assert count(g["to_rgb_1024"]) == 51
    assert count(d["from_rgb_1024"]) == 64
    for params in (g, d):
        for size, layers in {64: (1.2e6, 590e3), 128: (295e3, 148e3), 512: (18e3, 9.2e3)}.items():
            sizes = sorted(map(count, params[f"block_{size}"].values()), reverse=True)
            np.testing.assert_allclose(sizes, layers, rtol=0.03)


def test_growth_keeps_by_name():
    old = {"a": jnp.ones(2), "gone": jnp.ones(3), "deep": {"b": jnp.ones(())}}
    fresh = {
        "a": jnp.zeros(2),
        "new": jnp.zeros(4),
        "deep": {"b": jnp.zeros(()), "c": jnp.zeros(1)},
    }
    want = {"a": jnp.ones(2), "new": jnp.zeros(4), "deep": {"b": jnp.ones(()), "c": jnp.zeros(1)}}
    jax.tree.map(np.testing.assert_array_equal, grown(old, fresh), want)
    with pytest.raises(AssertionError):
        grown({"a": jnp.ones(2)}, {"a": jnp.ones(3)})


def test_growth_keeps_what_an_optimizer_knows():
    """Adam goes on with what is old as if nothing had grown."""
    adam = optax.adam(0.1)
    old, fresh = {"a": jnp.ones(2)}, {"a": jnp.ones(2), "b": jnp.zeros(3)}
    slope = {"a": jnp.array([1.0, -3.0])}
    _, state = adam.update(slope, adam.init(old))
    want, _ = adam.update(slope, state)
    found, _ = adam.update({**slope, "b": jnp.zeros(3)}, grown(state, adam.init(fresh)))
    np.testing.assert_array_equal(found["a"], want["a"])
    np.testing.assert_array_equal(found["b"], 0)


def test_data_of_single_precision_meet_weights_of_double():
    with jax.enable_x64(True):
        x = jnp.ones((2, 4, 4, 3), jnp.float32)
        kernel = jnp.full((3, 3, 3, 5), 1e-9 + 1.0, jnp.float64)
        assert convolved(x, kernel).dtype == jnp.float64
        np.testing.assert_allclose(convolved(x, kernel)[0, 1, 1], 27 + 27e-9, rtol=1e-12)


def test_labels_say_what_is_generated():
    model, z = Generator((8, 8, 1), 1, 4, 8, num_classes=3), jnp.ones((3, 6))
    labels = jnp.array([0, 1, 0])
    variables = {"params": drawn(model, z, labels), "growth": {"alpha": jnp.ones(())}}
    x = jax.jit(partial(model.apply, train=False))(variables, z, labels)
    np.testing.assert_allclose(x[0], x[2], atol=1e-6)
    assert np.abs(x[0] - x[1]).max() > 0.1
