"""Samplers are exported once for any number of samples, and draw what they drew."""

import importlib
import shlex

import jax
import numpy as np
import pytest
from jax import export
from processes import COMMON, TINY

from jaxgen.runner.building import begin, build, load_data
from jaxgen.runner.parsing import parse
from jaxgen.runner.system import weights_of

NAMES = ("ddpm", "score_sde", "vae", "hvae", "autoencoder", "gan", "flow", "made", "pixelcnn")
SMALL = {**TINY, "made": "--hidden 16", "pixelcnn": "--width 8 --layers 1"}


@pytest.mark.parametrize("name", NAMES)
def test_a_sampler_is_exported_for_any_number_of_samples(name):
    experiment = importlib.import_module(f"experiments.{name}").EXPERIMENT
    _, config, _ = parse(experiment, ["train", *shlex.split(f"{SMALL[name]} {COMMON}")])
    data = load_data(experiment, config.data)
    system = build(experiment, config, data)
    weights = system.settled(weights_of(begin(system, jax.random.key(0))))

    def draw(key_data, given):
        return system.sample(jax.random.wrap_key_data(key_data), weights, given)

    (count,) = export.symbolic_shape("n")
    like = lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype)
    key_data = jax.random.key_data(jax.random.key(1))
    shapes = jax.ShapeDtypeStruct(key_data.shape, key_data.dtype), jax.tree.map(like, data.given(1))
    program = export.export(jax.jit(draw))(*shapes)
    for n in (3, 7):
        found = np.asarray(program.call(key_data, data.given(n)))
        assert found.shape == (n, *data.shape)
        np.testing.assert_allclose(found, jax.jit(draw)(key_data, data.given(n)), atol=1e-5)
