"""Variations of an experiment of somebody else: other data under the same name, another name."""

from dataclasses import replace

from strangers.pool import EXPERIMENT as POOL

from jaxgen.data.records import Arrays
from jaxgen.data.sources import load


def mirrored(options):
    """The same points, the other way round."""
    data = load(options.data)
    turn = lambda source: Arrays({**source.arrays, "x": -source["x"]})
    return replace(data, train=turn(data.train), test=turn(data.test))


SAME = replace(POOL, load=mirrored)
OTHER = replace(POOL, name="other", load=mirrored)
