"""Every number that an option may not have, of every experiment and study, is refused at once."""

import itertools
import math
import time
from pathlib import Path

import pytest
from found import FOUND

from jaxgen.runner.commands import parse
from jaxgen.runner.options import Run, options_of

SHARED = {option.name for option in options_of(Run())}


def bad_values(option):
    """Just below its range and above, and what is no number where it is real."""
    if option.range is None:
        return ["nan", "-inf"] if isinstance(option.value, float) else []
    low, high = option.range
    whole = float(low).is_integer() and not isinstance(option.value, float)
    beyond = [f"{low - 1:g}", "nan" if isinstance(option.value, float) else f"{low - 10:g}"]
    return beyond + ([f"{high + 0.5:g}"] if high < math.inf and not whole else [])


def cases():
    """By default each option once, of the first that has it; and with ``-m slow`` the product."""
    seen = set()
    for name, experiment in FOUND.items():
        config = next(iter(experiment.presets.values()))
        ours = [Run()] if hasattr(experiment, "build") else []
        for option in itertools.chain(*map(options_of, [config, *ours])):
            for value in bad_values(option):
                marks = pytest.mark.slow if (option.name, value) in seen else ()
                seen.add((option.name, value))
                yield pytest.param(name, option.name, value, marks=marks)


@pytest.mark.parametrize(("name", "option", "value"), list(cases()))
def test_a_number_out_of_range_is_refused_in_a_sentence(command, name, option, value):
    flag = f"--{option.replace('_', '-')}"
    begun = time.monotonic()
    status, _, err = command(name, flag, value, tiny=False)
    assert time.monotonic() - begun < 3
    assert status == 2
    (line,) = err.strip().splitlines()
    assert line.startswith(f"error: {flag} is ")
    assert not list(Path().iterdir())


def test_there_are_enough_of_them():
    defaults = [case for case in cases() if not case.marks]
    assert len(defaults) > 100
    assert {"ddpm", "gan", "vae", "score_sde", "solvers"} <= FOUND.keys()


def test_files_have_the_options_of_their_kind():
    """Text of one's own takes those for text, where images come first; other files the first."""
    d3pm = FOUND["d3pm"]
    _, config, _ = parse(d3pm, ["train", "--data", "text:words.txt"])
    assert config.data.data == "text:words.txt"
    assert config.train == d3pm.presets["python_topics"].train
    assert config.train != d3pm.default.train
    _, config, _ = parse(d3pm, ["train", "--data", "folder:pictures"])
    assert config.train == d3pm.default.train
