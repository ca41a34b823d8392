"""Every preset makes a model of the data that it is for, whose parameters have shapes."""

import jax
import numpy as np
import pytest
from found import FOUND

from jaxgen.data.records import Arrays, DataSet, Image, Points, Tokens

KINDS = {
    "digits": Image((8, 8, 1), 17),
    "mnist": Image((28, 28, 1)),
    "fashion_mnist": Image((28, 28, 1)),
    "binarized_mnist": Image((28, 28, 1), 2),
    "cifar10": Image((32, 32, 3)),
    "python_topics": Tokens(128),
    "tiny_shakespeare": Tokens(256),
    "8gaussians": Points((2,)),
}
LARGE = ("cifar10",)
CASES = [
    pytest.param(name, preset, marks=pytest.mark.slow if config.data.data in LARGE else ())
    for name, experiment in FOUND.items()
    if hasattr(experiment, "build")
    for preset, config in experiment.presets.items()
    if config.data.data in KINDS and preset != "fashion_mnist"  # the same as mnist
]


@pytest.mark.parametrize(("name", "preset"), CASES)
def test_a_preset_makes_a_model_of_its_data(name, preset, key):
    experiment = FOUND[name]
    config = experiment.presets[preset]
    kind = KINDS[config.data.data]
    x = np.zeros((4 * config.train.batch, *kind.shape), np.uint8 if kind.noun != "points" else "f4")
    source = Arrays({"x": x, "label": np.arange(len(x)) % 10})
    classes = 10 if kind.noun == "images" else 1
    system = experiment.build(config, DataSet(preset, kind, source, source, source, classes))
    parameters = jax.tree.leaves(jax.eval_shape(system.init, key))
    assert sum(np.prod(p.shape) for p in parameters) > 1000
