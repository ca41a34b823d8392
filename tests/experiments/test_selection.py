"""What models are selected by, and what may be seen of the data for it."""

from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest

from experiments import ddpm, score_sde, vae
from jaxgen.data.records import Arrays
from jaxgen.data.sources import load
from jaxgen.runner.building import begin
from jaxgen.runner.system import weights_of

TINY = {"channels": 8, "multipliers": (1,), "groups": 4}


class Secret:
    """A source that may not be read."""

    def __len__(self):
        return 100

    def fetch(self, index):
        raise AssertionError("the test set was read")


@pytest.mark.parametrize(
    "module", [vae, ddpm, pytest.param(score_sde, marks=pytest.mark.slow)], ids=lambda m: m.__name__
)
def test_a_score_sees_the_validation_set_alone(key, module):
    data = replace(load("digits"), train=Secret(), test=Secret())
    config = module.PRESETS["digits"]
    if hasattr(config, "net"):
        config = replace(config, net=replace(config.net, **TINY))
    system = module.build(config, data)
    assert np.isfinite(system.score(weights_of(begin(system, key))))


def test_every_chunk_of_a_score_draws_noise_of_its_own(key):
    """Two chunks of one image each 250 times: binarized and coded apart, they have two means."""
    x = np.full((500, 8, 8, 1), 8, np.uint8)
    image = lambda count: replace(
        load("digits"), validation=Arrays({"x": x[:count], "label": np.zeros(count, np.int32)})
    )
    scores = []
    for count in (250, 500):
        system = vae.build(vae.DIGITS, image(count))
        scores.append(float(system.score(weights_of(begin(system, key)))))
    assert scores[0] != pytest.approx(scores[1], rel=1e-6)
    assert jnp.isfinite(jnp.asarray(scores)).all()
